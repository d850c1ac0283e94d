"""The words by which `rules` tells kinds of request apart, above all in English, German, Spanish and French.

Every word is a whole word in lower case, as UTF-8: bytes are cut and hashed several times faster than text. The
points were set by hand: 2 is enough for a verdict by itself, 1 is not.
"""

from collections.abc import Mapping

Points = tuple[str, float]
"""Category, and points in its favour."""


def _table(*rows: tuple[str, float, str]) -> dict[bytes, Points]:
    return {word: (category, points) for category, points, words in rows for word in _words(words)}


def _set(words: str) -> frozenset[bytes]:
    return frozenset(_words(words))


def _numbers(*rows: tuple[float, str]) -> dict[bytes, float]:
    return {word: number for number, words in rows for word in _words(words)}


def _words(words: str) -> list[bytes]:
    return words.encode().split()


OPENINGS: Mapping[bytes, Points] = _table(
    ("short_qa", 2.5, """
        who whose whom when where which true wer wen wem wann wo welche welcher welches wieviel quién
        quien quiénes cuándo dónde cuánto cuánta cuántos cuántas cuál qui quand combien quel quelle
        quels quelles classify categorize categorise what's"""),
    ("short_qa", 2.0, """
        name identify choose pick select extract retrieve detect nenne determine decide guess answer"""),
    ("summary", 3.5, """
        summarize summarise summarizing recap condense tldr distil distill shorten resumir résume
        résumer résumez resume resuma resúmeme sintetiza"""),
    ("technical", 2.5, "implement debug refactor deploy install configure compile prove derive integrate"),
    ("technical", 1.5, "code program fix solve compute calculate build optimize optimise invert find"),
    ("report", 1.5, "elaborate discuss"),
    ("other", 3.0, """
        translate rewrite rephrase proofread paraphrase reword edit improve correct capitalize suggest
        recommend brainstorm roleplay übersetze korrigiere traduce traduis corrige
        suggère thanks thank danke gracias merci hi hello hey hallo hola bonjour guten buenos"""),
    ("other", 2.0, "turn convert change let lets let's invent think list"),
    ("other", 1.0, """
        act pretend imagine how why if explain describe compare show help warum wieso pourquoi comment
        wie erkläre explica"""),
)  # fmt: skip
"""What the first word of a request says, once fillers such as `please` and `can you` are left out."""

FILLERS = _set("""
    please kindly pls you me us now just so okay ok bitte mir por favor help to want an also then and your task
    i'd i we would like some quick briefly tell
""")
MODALS = _set("can could would will kannst könntest puedes podrías peux pouvez")
YOU = _set("you u i we du sie tu usted vous")

YES_NO = _set("""
    is are was were do does did has have had can could will would should am isn't aren't doesn't don't ist sind
    war hat haben gibt es son hay
""")
"""A question that begins so is answered by yes or no."""

MEASURES = _set("""
    many much old tall long far big often fast high deep heavy large hot cold late soon wide viel viele alt hoch
    lang lange weit groß oft spät heißt heißen
""")
"""`how` before one of these asks for a number or a name."""

EXPLAINED = _set("""
    difference differences meaning best better relationship purpose impact history role importance way ways
    effect effects like if should would could can are do happened happens about
""")
"""`what` with one of these soon after asks for an explanation, not for a fact."""

COMPOSING = _set("""
    write draft compose prepare create produce generate compile develop craft author make give provide plan need
    tell design build continue schreibe schreib verfasse erstelle escribe redacta haz hazme crea rédige écris
    prépare écrire génère générer scrivi escreva crie напиши придумай составь создай
""")
"""Verbs that ask for a text to be made; what kind of text tells how long it gets."""

GENRES: Mapping[bytes, Points] = _table(
    ("report", 3.0, """
        essay report article story stories chapter novel thesis dissertation whitepaper blog speech
        screenplay proposal dossier memoir fanfiction saga lecture handbook manual monologue bericht
        aufsatz erzählung geschichte artikel analyse informe ensayo artículo cuento historia rapport
        histoire análisis essai storyline backstory fanfic racconto relazione história relatório рассказ
        история историю сценарий сценария доклад статью статья эссе"""),
    ("report", 2.5, "guide study studies strategy analysis itinerary curriculum paper podcast interview"),
    ("report", 2.0, "plan review account tutorial transcript overview scene dialogue script episode"),
    ("other", 3.0, """
        email mail tweet poem haiku limerick caption captions slogan slogans joke riddle title titles
        headline headlines invitation message letter tagline bio post list ideas song lyrics rap recipe
        quiz toast gedicht witz poema correo lettre poème poesia
        стих стихотворение песню письмо feedback tips advice suggestions names questions"""),
    ("summary", 3.5, """
        summary synopsis abstract recap digest takeaways gist rundown zusammenfassung resumen résumé"""),
)  # fmt: skip
"""What a text to be made is called; the first that comes after the verb counts."""

ANYWHERE: Mapping[bytes, Points] = _table(
    ("summary", 2.5, """
        summarize summarise summary synopsis takeaways gist condense tldr zusammenfassung resumen
        zusammenfassen zusammen sinopsis"""),
    ("summary", 1.0, "recap digest rundown shorten abstract"),
    ("report", 2.0, "comprehensive exhaustive umfassende umfassenden exhaustivo"),
    ("report", 1.5, """
        detailed thorough extensive depth lengthy elaborate detail ausführlich ausführlichen
        ausführliche detallado detallada détaillé extenso essay dissertation thesis"""),
    ("report", 1.0, "complete full long lange"),
    ("short_qa", 1.5, "briefly concisely classified categorize sentiment"),
    ("technical", 2.0, """
        python java javascript typescript sql postgresql postgres mysql sqlite mongodb html css php
        golang kotlin rust bash powershell linux ubuntu docker dockerfile kubernetes kubectl nginx git
        github api apis regex json yaml xml algorithm algorithms compiler database databases backend
        frontend react django flask fastapi pytorch tensorflow numpy pandas vba matlab latex kernel
        mutex semaphore tcp https tls dns graphql grpc debug traceback stacktrace eigenvalues theorem
        differential arduino async recursion recursive microservice microservices datenbank codebase
        typeerror spring angular vue webpack terraform ansible redis kafka deploy c++ c# integral
        derivative eigenvalue lemma polynomial pytest subsequence algoritmo código funktion prism
        rhombus architecture technical ios android flutter swiftui aws azure website webpage wordpress
        makefile vimscript graphviz debian gentoo rhel ssh"""),
    ("technical", 1.5, "code software bug array arrays integers integer matrix pointer loop equation javac"),
    ("technical", 1.0, """
        function functions class method methods program script server query schema string strings
        encryption protocol thread threads excel csv module library framework app programa programm cpu
        gpu cache sensors neural index table monitoring component compute service función probability
        formula vector vectors triangle remainder circuit velocity encrypt container containers drivers"""),
)  # fmt: skip
"""What a word says wherever it stands in the request."""

NOT_AFTER: Mapping[bytes, frozenset[bytes]] = {
    b"code": _set("dress zip area postal tax penal morse bar qr building civil genetic promo discount"),
    b"program": _set("tv training"),
    b"class": _set("minute first second social middle working my"),
    b"long": _set("how so as no"),
    b"library": _set("new public local"),
}
"""A word says nothing when one of these stands before it."""

NOT_BEFORE: Mapping[bytes, frozenset[bytes]] = {
    b"code": _set("of"),
    b"summary": _set("report judgment judgement dismissal execution offence offense"),
    b"technical": _set("university college school"),
}
"""The same when one of these follows."""

PHRASES: Mapping[bytes, Points] = {
    b"main points": ("summary", 2.5),
    b"key points": ("summary", 2.0),
    b"main ideas": ("summary", 2.5),
    b"main arguments": ("summary", 2.0),
    b"key findings": ("summary", 2.5),
    b"important points": ("summary", 2.0),
    b"sum up": ("summary", 3.0),
    b"boil this down": ("summary", 3.0),
    b"wichtigsten punkte": ("summary", 2.5),
    b"tl dr": ("summary", 3.0),
    b"this article about": ("summary", 2.5),
    b"this text about": ("summary", 2.5),
    b"this passage about": ("summary", 2.5),
    b"this paper about": ("summary", 2.5),
    b"yes or no": ("short_qa", 3.0),
    b"true or false": ("short_qa", 3.0),
    b"single letter": ("short_qa", 3.0),
    b"just the number": ("short_qa", 3.0),
    b"only the number": ("short_qa", 3.0),
    b"just the answer": ("short_qa", 3.0),
    b"short reply": ("short_qa", 2.0),
    b"quick answer": ("short_qa", 2.0),
    b"following categories": ("short_qa", 2.0),
    b"correct option": ("short_qa", 2.0),
    b"following question": ("short_qa", 1.5),
    b"write code": ("technical", 1.0),
    b"step by step": ("technical", 0.5),
    b"data structures": ("technical", 1.5),
    b"machine learning": ("technical", 1.5),
    b"garbage collector": ("technical", 2.0),
    b"unit tests": ("technical", 2.0),
}
"""What words in a row say. Anything but letters and digits counts as a space."""

CODE: Mapping[bytes, tuple[bytes, ...]] = {
    b"`": (b"```",),
    b"{": (b"){", b") {"),
    b"<": (b"</", b"/>", b"#include"),
    b"=": (b"=>", b"==", b" = ["),
    b"(": (b"();", b");\n", b"printf(", b"console.log(", b"\ndef ", b":\n    "),
    b"^": (b"^2", b"^{"),
    b"\\": (b"\\frac", b"\\int", b"\\begin{", b"\\le"),
}
"""What hardly occurs but in source code and formulas, by a sign without which there is none of it."""
CODE_POINTS = 2.0

TOKENS_A_UNIT: Mapping[bytes, float] = _numbers(
    (1.4, "word words"),
    (1.6, "palabras mots"),
    (2, "worten wörter wörtern"),
    (25, "sentence sentences"),
    (30, "satz sätzen frase frases phrase phrases"),
    (110, "paragraph paragraphs"),
    (120, "absätze"),
    (600, "page pages seiten páginas chapters"),
)
"""What one of them is worth, in tokens, as people write."""
SHORT_TOKENS = 60
LONG_TOKENS = 400
"""An answer asked to be at most, or at least, about so long is short, or long."""

NUMBERS: Mapping[bytes, float] = _numbers(
    (1, "one single einem una une"),
    (2, "two couple zwei dos deux"),
    (3, "three few drei tres trois"),
    (4, "four vier"),
    (5, "five several fünf cinco"),
    (6, "six"),
    (7, "seven"),
    (8, "eight"),
    (10, "ten zehn diez"),
    (20, "twenty"),
)
