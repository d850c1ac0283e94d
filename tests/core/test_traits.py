"""Which calls are told to be of one program, and of one conversation."""

import os
import subprocess
import sys
from typing import Any, SupportsIndex

import pytest

from driftsched.core.model import NO_TRAITS, Traits
from driftsched.core.traits import MAX_MEASURED_CHARS, MAX_OPENING, MAX_RECENT, read_traits, relevant

SYSTEM = ("system", "You answer questions about invoices.")


def template_of(prompt: str, system: str = "", tools: tuple[str, ...] = ()) -> str:
    messages = [("system", system), ("user", prompt)] if system else [("user", prompt)]
    return read_traits(messages, tools=tools).template


def session_of(*messages: tuple[str, str], tenant: str = "", session: str = "") -> str:
    return read_traits(messages, tenant=tenant, session=session).session


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Summarise the following ticket: printer on fire", "Summarise the following ticket: no paper"),
        ("Summarise the following ticket: printer on fire", "summarise  the following TICKET:\nno paper"),
        ("Summarise the following ticket:\r\nprinter on fire", "Summarise the following ticket:\r\nno paper"),
        ("Translate this text to French\nGood morning", "Translate this text to French\nGood night"),
        ("Hello,\nplease translate this: yes", "Hello,\nplease translate this: no"),
        ("Sort these numbers\nthree one two", "Sort these numbers\nfour six five"),
        ("Sort these:\r\nthree one two", "Sort these:\r\nfour six five"),
        ("Ticket 4711: printer on fire", "Ticket 12: no paper"),
        ("At 2026-11-25T10:15:00Z explain the error", "At 2025-01-02T03:04:05Z explain the error"),
        ("On Monday, 3 March 2025 who was there?", "On Friday, 12 June 2026 who was there?"),
        (
            "Look up 123e4567-e89b-12d3-a456-426614174000 and report",
            "Look up 00112233-4455-6677-8899-aabbccddeeff and report",
        ),
        ("Commit 3f61855c: what changed here", "Commit a07d695b: what changed here"),
        ("Write to ann@example.com about it", "Write to bob.b@example.org about it"),
        ("Read https://example.com/a?b=c and report", "Read http://example.org:80/d and report"),
        ('Translate "good morning" to French', 'Translate "see you: soon" to French'),
        ("Translate “good morning” to French", "Translate “see you soon” to French"),
        ("要約：今日は晴れ", "要約：明日は雨"),  # noqa: RUF001
        ("要約してください今日は晴れ", "要約してください明日は雨"),
    ],
)
def test_prompts_that_differ_in_their_data_only_are_of_one_template(one: str, other: str) -> None:
    assert template_of(one) == template_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Summarise the following ticket: x", "Translate the following ticket: x"),
        ("List three capitals", "List three rivers"),
        ("Hello\nexplain the rain", "Hello\ndescribe the rain"),
        ("(1): explain the rain", "(1): describe the rain"),
        ("要約してください", "翻訳してください"),
        ("Résumez ce texte", "Traduisez ce texte"),
    ],
)
def test_prompts_that_ask_for_different_things_are_not_of_one_template(one: str, other: str) -> None:
    assert template_of(one) != template_of(other)


def test_the_system_prompt_without_its_changing_parts_is_in_the_template() -> None:
    today = template_of("hi", "You help the staff of Acme. Today is Monday, 2 March 2026, 10:15 AM.")
    assert today == template_of("hi", "You help the staff of Acme. Today is Friday, 5 June 2026, 04:01 PM.")
    assert today != template_of("hi", "You help the staff of Ajax. Today is Monday, 2 March 2026, 10:15 AM.")


def test_the_first_four_words_count_with_a_system_prompt_and_without() -> None:
    for system in ("", "be kind"):
        assert template_of("what does one do in rain", system) == template_of("what does one do in snow", system)
        assert template_of("what does one do", system) != template_of("what does one see", system)
    assert template_of("what does one do") != template_of("what does one do", "be kind")


def test_the_tools_are_in_the_template() -> None:
    search, mail = '{"function":{"name":"search"}}', '{"function":{"name":"mail"}}'
    assert template_of("hi", tools=(search,)) == template_of("hi", tools=(search,))
    assert 4 == len({template_of("hi", tools=tools) for tools in [(), (search,), (mail,), (search, mail)]})


def test_the_last_user_message_is_what_the_template_is_made_of() -> None:
    later = read_traits(
        [("user", "tell me a story"), ("assistant", "no"), ("user", "count the words"), ("tool", "4")]
    )
    assert template_of("count the words") == later.template


@pytest.mark.parametrize("prompt", ["", "  \n", "2026 11 25", "?!", "a@b.c"])
def test_a_prompt_without_words_has_no_template(prompt: str) -> None:
    assert "" == template_of(prompt)


def test_no_messages_have_no_traits() -> None:
    assert NO_TRAITS == read_traits([])


def test_all_turns_of_a_conversation_have_its_session() -> None:
    turns = [
        SYSTEM,
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "and now?"),
        ("assistant", "no"),
        ("user", "ok"),
    ]
    assert 1 == len({session_of(*turns[:count]) for count in (2, 4, 6)})
    assert "" != session_of(*turns[:2])


def test_a_session_outlives_the_clock_in_its_system_prompt_and_what_the_system_says_later() -> None:
    first = session_of(("system", "Now it is 10:15."), ("user", "hello"))
    later = [("assistant", "hi"), ("system", "be brief"), ("user", "and now?")]
    assert first == session_of(("system", "Now it is 10:17."), ("user", "hello"), *later)


def test_conversations_that_begin_differently_are_different_sessions() -> None:
    long = "word " * 1000
    openings = [
        [("user", "hello")],
        [("user", "Hello")],
        [SYSTEM, ("user", "hello")],
        [("user", f"{long}end")],
        [("user", f"{long}End")],
        [("user", f"{long}{long}end")],
    ]
    assert len(openings) == len({session_of(*opening) for opening in openings})


def test_a_session_that_the_client_names_is_one_whatever_is_said() -> None:
    assert session_of(("user", "a"), session="s1") == session_of(("user", "b"), session="s1")
    assert session_of(("user", "a"), session="s1") != session_of(("user", "a"), session="s2")
    assert session_of(("user", "s1")) != session_of(("user", "a"), session="s1")


def test_nobody_enters_the_session_of_another_tenant() -> None:
    assert session_of(("user", "hello"), tenant="ann") != session_of(("user", "hello"), tenant="bob")
    assert session_of(session="1", tenant="ann") != session_of(session="1", tenant="bob")


def test_where_no_user_speaks_there_is_no_session() -> None:
    assert "" == session_of(SYSTEM)


def test_turns_and_lengths_are_counted() -> None:
    traits = read_traits(
        [("system", "Grüße"), ("developer", "be brief"), ("user", "a"), ("assistant", "one"), ("user", "b"),
         ("assistant", "zwei ß"), ("user", "c")],
        tools=["{}", "{}"], choices=3, structured=True, stops=True,
    )  # fmt: skip
    expected = Traits(
        template=traits.template,
        session=traits.session,
        turn=2,
        previous_bytes=len("zwei ß".encode()),
        system_bytes=len("Grüßebe brief".encode()),
        choices=3,
        tools=2,
        structured=True,
        stops=True,
    )
    assert expected == traits


def test_digests_are_short_and_tell_nothing() -> None:
    traits = read_traits([("user", "my password is secret")], session="s")
    assert [16, 16] == [len(bytes(text, "ascii")) for text in (traits.template, traits.session)]
    assert int(traits.template, 16) != int(traits.session, 16)


def test_digests_are_the_same_in_every_process() -> None:
    code = "from driftsched.core.traits import read_traits; print(read_traits([('user', 'hello there')]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"{read_traits([('user', 'hello there')])}" == told.stdout.strip()


HOSTILE = [
    "\x00\x1b\x07\u202e",
    "🎉👩‍👩‍👧🏽",
    "\ud800\udfff",
    '"' * 999,
    ":" * 999,
    "\n" * 999,
    "İ" * 999,
    "�\x85\u2028",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_is_too_strange(text: str) -> None:
    said = [("system", text), ("user", text), ("assistant", text), (text, text)]
    traits = read_traits(said, tenant=text, session=text, tools=[text])
    assert len(text.encode("utf-8", "surrogatepass")) == traits.previous_bytes
    assert traits == read_traits(said, tenant=text, session=text, tools=[text])


class Measured(str):
    """A text that adds up how many of its characters are taken out of it."""

    taken = 0

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        part = super().__getitem__(key)
        self.taken += len(part)
        return part

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.taken += len(self)
        return super().encode(encoding, errors)

    def replace(self, *changes: Any) -> str:
        self.taken += len(self)
        return super().replace(*changes)


def test_of_a_very_long_text_a_bounded_part_is_read() -> None:
    texts = [Measured("wörter " * 1_500_000) for _ in range(4)]
    read_traits([("user", texts[0]), ("assistant", texts[1]), ("user", texts[2])], session=texts[3])
    assert 2 * MAX_MEASURED_CHARS > max(text.taken for text in texts)


def test_the_length_of_a_very_long_text_is_estimated_from_its_beginning() -> None:
    text = "é" * 1_000_000
    assert 2_000_000 == read_traits([("user", "a"), ("assistant", text)]).previous_bytes


def test_of_very_many_messages_the_first_and_the_last_are_looked_at() -> None:
    messages = [SYSTEM] + [("user", "hi"), ("assistant", "yes")] * 100_000 + [("user", "count")]
    traits = read_traits(messages)
    assert MAX_OPENING + MAX_RECENT == len(relevant(messages))
    assert read_traits(relevant(messages)) == traits
    assert session_of(*messages[:2]) == traits.session
    assert template_of("count", SYSTEM[1]) == traits.template


def test_many_tools_are_counted_and_the_first_of_them_read() -> None:
    tools = [Measured("x" * 100_000) for _ in range(1000)]
    assert 1000 == read_traits([("user", "hi")], tools=tools).tools
    assert 0 == tools[-1].taken
    assert 1000 > max(tool.taken for tool in tools)
