"""What is read of a prompt and the form of its call."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from driftsched.core.model import Traits
from driftsched.estimators.text import (
    FIGURES,
    MAX_CHARS,
    MAX_WORDS,
    NUM_DENSE,
    TABLE_BITS,
    Reading,
    asked_tokens,
    read,
)
from support.prompts import request_of

HOSTILE = {
    "huge": "write " * 1_700_000,
    "one word": "a" * 10_000_000,
    "emoji": "\U0001f600" * 5000,
    "controls": "\x01\x1b\x7f\x85\u2028" * 1000,
    "surrogates": "a\ud800\udfff b" * 1000,
    "nul": "\0" * 5000,
    "digits": "9" * 4000 + " words",
    "small caps": "\u1e9e\u0130" * 3000,
    "mixed": "list 20 " + "1 words " * 5000,
}


def figure(name: str, prompt: str = "", **options: Any) -> float:
    return float(read(request_of(prompt=prompt, **options)).dense[FIGURES.index(name)])


def asked(prompt: str) -> float:
    return asked_tokens(prompt.lower().encode().split())


def alike(one: Reading, other: Reading) -> bool:
    return one[2:] == other[2:] and all(np.array_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_any_prompt_gives_a_sane_reading_of_bounded_size(name: str) -> None:
    dense, places, *_ = read(request_of(prompt=HOSTILE[name], prompt_bytes=1))
    assert (NUM_DENSE,) == dense.shape
    assert np.isfinite(dense).all()
    assert np.abs(dense).max() < 20
    assert len(places) < 2 * MAX_WORDS
    assert not len(places) or 0 <= places.min() <= places.max() < 1 << TABLE_BITS


@pytest.mark.parametrize("name", HOSTILE)
def test_only_the_head_of_a_prompt_is_read(name: str) -> None:
    whole, head = HOSTILE[name], HOSTILE[name][:MAX_CHARS]
    assert alike(read(request_of(prompt=head, prompt_bytes=1)), read(request_of(prompt=whole, prompt_bytes=1)))


def test_prompts_that_differ_within_the_head_are_told_apart() -> None:
    one, other = (read(request_of(prompt="a " * 1000 + end)).prompt for end in ("x", "y"))
    assert one != other


@pytest.mark.parametrize("extreme", [-(10**9), -1, 0, 10**9, 10**400])
def test_absurd_traits_and_sizes_give_sane_figures(extreme: int) -> None:
    traits = Traits(turn=abs(extreme), previous_bytes=min(extreme, 10**300), choices=extreme, tools=extreme)
    request = replace(request_of(prompt_tokens=min(extreme, 10**300), max_tokens=extreme), traits=traits)
    assert np.isfinite(read(request).dense).all()


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Write an essay of 500 words", 700),
        ("in two sentences", 50),
        ("one sentence only", 25),
        ("list 20 animals", 400),
        ("give me 7 of them", 140),
        ("Write 3 short paragraphs", 330),
        ("100 words or 2 pages", 1200),
        ("tell me a story", 0),
        ("in other words", 0),
        ("", 0),
        ("99999 pages", 20_000),
        ("9999999999 words", 0),
    ],
)
def test_the_length_asked_for_is_understood(prompt: str, tokens: float) -> None:
    assert pytest.approx(tokens) == asked(prompt)


@pytest.mark.parametrize(
    ("name", "prompt", "without"),
    [
        ("code", "```x = 1```", "x is 1"),
        ("braces and semicolons", "if (a) { b; }", "if a then b"),
        ("ends with a question mark", "is it so? ", "so it is"),
        ("starts like a question", "What is it", "It is what"),
        ("bytes beyond chars", "日本語で答えて", "answer this"),
        ("length asked for", "in 50 words", "in words"),
        ("words csv format json latex markdown schema xml yaml", "as JSON please", "as it is"),
        ("quotation marks", 'say "yes"', "say yes"),
        ("lines", "a\nb", "a b"),
    ],
)
def test_a_prompt_shows_its_form(name: str, prompt: str, without: str) -> None:
    assert figure(name, prompt) > 0 == figure(name, without)


def test_words_are_read_whatever_their_case_and_punctuation() -> None:
    one, other = (read(request_of(prompt=prompt)).words.tolist() for prompt in ("Write, a POEM!", "write a poem"))
    assert one == other
    assert 5 == len(one)


def test_prompts_of_one_program_share_their_head() -> None:
    one, other, third = (
        read(request_of(prompt=f"{start} this text for me {i}")) for i, start in enumerate(("Fix", "Fix", "Break"))
    )
    assert one.head == other.head != third.head
    assert one.prompt != other.prompt


def test_the_form_of_the_call_is_read() -> None:
    traits = Traits(turn=3, previous_bytes=400, choices=2, tools=1, structured=True, stops=True)
    dense = read(replace(request_of(max_tokens=100), traits=traits)).dense
    names = ("max_tokens given", "choices", "stops", "structured", "tools", "turn", "previous answer known")
    assert all(dense[FIGURES.index(name)] > 0 for name in names)
    assert pytest.approx(np.log(100) - 5) == dense[FIGURES.index("previous answer")]
    plain = read(request_of()).dense
    assert not any(plain[FIGURES.index(name)] for name in names)


def test_the_sessions_last_answer_goes_before_what_the_call_repeats() -> None:
    request = replace(request_of(), traits=Traits(previous_bytes=400))
    assert pytest.approx(np.log(50) - 5) == read(request, 50.0).dense[FIGURES.index("previous answer")]


def test_no_prompt_has_no_words_and_no_checksums() -> None:
    reading = read(request_of())
    assert (0, 0, 0) == (len(reading.words), reading.prompt, reading.head)
