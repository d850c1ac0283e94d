"""What everything that keeps what it learnt must do: registered estimators and token counters alike."""

import math
from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from random import Random
from typing import Any

import msgspec
import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Request, Traits, Usage
from driftsched.core.protocols import Stateful
from driftsched.estimators import COUNTERS, ESTIMATORS, create_counter, create_estimator
from driftsched.estimators.categories import CATEGORIES
from driftsched.estimators.state import MAX_NAME_CHARS
from support.prompts import request_of

WORDS = [
    "please",
    "write",
    "a",
    "detailed",
    "report",
    "on",
    "the",
    "code",
    "of",
    *(SECRETS := ["zanzibar", "lighthouse"]),
]
MOST_BYTES = 2_000_000

Part = Any
"""An estimator or a token counter."""


def make(kind: str, name: str) -> Part:
    return create_estimator(name) if kind == "estimator" else create_counter(name)


def is_stateful(kind: str, name: str) -> bool:
    try:
        return isinstance(make(kind, name), Stateful)
    except ConfigError:
        return False  # it wants an option, or a library that is not here


NAMES = {"estimator": ESTIMATORS.names(), "counter": COUNTERS.names()}
STATEFUL = [(kind, name) for kind, names in NAMES.items() for name in names if is_stateful(kind, name)]
every_stateful = pytest.mark.parametrize(("kind", "name"), STATEFUL, ids=lambda value: str(value))


def state_of(part: Part) -> dict[str, Any]:
    """The snapshot as it comes back from a file."""
    return msgspec.msgpack.decode(packed(part), type=dict[str, Any])


def packed(part: Part) -> bytes:
    return msgspec.msgpack.encode(part.snapshot())


def requests(seed: int, number: int) -> Iterator[Request]:
    rng = Random(seed)
    for _ in range(number):
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        request = request_of(
            rng.choice([*CATEGORIES, "unheard of"]),
            model=f"model-{rng.randint(0, 3)}",
            tenant=f"tenant-{rng.randint(0, 5)}",
            prompt=prompt,
            prompt_tokens=len(prompt) // 4,
            max_tokens=rng.choice([None, None, 50, 4000]),
        )
        template, turn = f"{rng.randint(0, 3):032x}", rng.randint(0, 3)
        yield replace(request, traits=Traits(template, f"{rng.randint(0, 9):032x}", turn, 200 * turn))


def teach(part: Part, *, seed: int = 1, number: int = 400, factor: float = 1.0) -> Part:
    """Let it learn answers, some of them cut short, and prompts of `factor` times the usual length."""
    rng = Random(seed)
    for request in requests(seed, number):
        finished = rng.random() > 0.1
        used = Usage(
            max(1, round(request.prompt_bytes / 3.5 * factor)),
            round(300 * factor * rng.lognormvariate(0, 0.6) * (1 if finished else 0.3)),
        )
        if hasattr(part, "count"):
            part.learn(request, used)
        else:
            part.learn(request, used, finished=finished, estimate=part.predict(request))
    return part


def answers(part: Part, number: int = 150) -> list[float]:
    """What it predicts for many requests, of models and tenants that it knows and others."""
    asked = [*requests(99, number), request_of(model="unknown", tenant="unknown", prompt="Why?")]
    if hasattr(part, "count"):
        return [float(part.count(replace(request, prompt_bytes=10**6))) for request in asked]
    estimates = [part.predict(replace(request, max_tokens=None)) for request in asked]
    return [figure for e in estimates for figure in (e.completion_tokens, e.q50, e.q80, e.q90)]


@pytest.mark.parametrize(
    ("kind", "name"), [("estimator", "calibrated"), ("estimator", "ema"), ("counter", "bytes")]
)
def test_what_learns_can_hand_on_what_it_learnt(kind: str, name: str) -> None:
    assert (kind, name) in STATEFUL


@every_stateful
def test_a_restored_one_predicts_the_same(kind: str, name: str) -> None:
    taught, restored = teach(make(kind, name)), make(kind, name)
    assert answers(taught) != answers(restored)
    restored.restore(state_of(taught))
    assert answers(taught) == answers(restored)


@every_stateful
def test_a_restored_one_goes_on_learning_the_same(kind: str, name: str) -> None:
    taught, restored = teach(make(kind, name)), make(kind, name)
    restored.restore(state_of(taught))
    assert answers(teach(taught, seed=2)) == answers(teach(restored, seed=2))


@every_stateful
def test_restoring_forgets_what_was_known(kind: str, name: str) -> None:
    taught, restored = teach(make(kind, name)), teach(make(kind, name), seed=5, factor=3.0)
    restored.restore(state_of(taught))
    assert answers(taught) == answers(restored)
    restored.restore(state_of(make(kind, name)))
    assert answers(make(kind, name)) == answers(restored)


@every_stateful
def test_a_snapshot_does_not_change_when_learning_goes_on(kind: str, name: str) -> None:
    part = teach(make(kind, name))
    snapshot = part.snapshot()
    before = msgspec.msgpack.encode(snapshot)
    teach(part, seed=2)
    assert before == msgspec.msgpack.encode(snapshot)


@every_stateful
def test_learning_goes_on_without_changing_the_state_that_was_restored_or_merged(kind: str, name: str) -> None:
    state = state_of(teach(make(kind, name)))
    before = msgspec.msgpack.encode(state)
    for take in ("restore", "merge"):
        part = make(kind, name)
        getattr(part, take)(state)
        teach(part, seed=2)
        assert before == msgspec.msgpack.encode(state)


@every_stateful
def test_merging_an_empty_state_changes_nothing(kind: str, name: str) -> None:
    part = teach(make(kind, name))
    before = answers(part)
    part.merge(state_of(make(kind, name)))
    assert before == answers(part)


@every_stateful
def test_merging_into_an_empty_one_gives_all_that_was_learnt(kind: str, name: str) -> None:
    taught, merged = teach(make(kind, name)), make(kind, name)
    merged.merge(state_of(taught))
    assert pytest.approx(answers(taught), rel=0.01) == answers(merged)


@every_stateful
def test_it_matters_little_who_merges_whom(kind: str, name: str) -> None:
    one, other = teach(make(kind, name)), teach(make(kind, name), seed=2, number=150, factor=2.0)
    one_state, other_state = state_of(one), state_of(other)
    one.merge(other_state)
    other.merge(one_state)
    assert pytest.approx(answers(one), rel=0.02) == answers(other)


@every_stateful
def test_who_learnt_more_counts_for_more(kind: str, name: str) -> None:
    much, little = teach(make(kind, name), number=1000), teach(make(kind, name), seed=2, number=40, factor=2.0)
    at_first, also = sum(answers(much)), sum(answers(little))
    much.merge(state_of(little))
    merged = sum(answers(much))
    assert min(at_first, also) < merged < max(at_first, also)
    assert abs(merged - at_first) < abs(merged - also)


@every_stateful
def test_merging_halves_comes_near_to_learning_the_whole(kind: str, name: str) -> None:
    whole = teach(teach(make(kind, name), seed=1), seed=2)
    one, other = teach(make(kind, name), seed=1), teach(make(kind, name), seed=2)
    one.merge(state_of(other))
    assert pytest.approx(sum(answers(whole)), rel=0.15) == sum(answers(one))


WRONG: list[Any] = [
    None,
    math.nan,
    math.inf,
    -math.inf,
    -(10**18),
    10**18,
    1e300,
    True,
    "x",
    "x" * 10**5,
    b"",
    [],
    {},
]


def damaged(state: Any) -> Iterator[tuple[Any, Any]]:
    """The state with one thing in it wrong, and that thing: whatever there is of `WRONG`, cut short, doubled."""
    yield from ((wrong, wrong) for wrong in WRONG if type(wrong) is not type(state) or wrong != state)
    if isinstance(state, dict):
        for key, value in state.items():
            yield {k: v for k, v in state.items() if k != key}, None
            yield from ((state | {key: wrong}, thing) for wrong, thing in damaged(value))
    elif isinstance(state, list) and state:
        yield state[:-1], "cut short"
        yield [*state, state[0]], "doubled"
        for place in {0, len(state) // 2, len(state) - 1}:
            cases = damaged(state[place])
            yield from (([*state[:place], wrong, *state[place + 1 :]], thing) for wrong, thing in cases)
    elif isinstance(state, bytes):
        yield state[:-1], "cut short"
        yield state[:0] + bytes([255]) * len(state), "all ones"


@every_stateful
@pytest.mark.parametrize("take", ["restore", "merge"])
def test_a_damaged_state_is_refused_and_does_no_harm(kind: str, name: str, take: str) -> None:
    state, part = state_of(teach(make(kind, name), seed=2)), teach(make(kind, name), number=50)
    before = answers(part, 10)
    num_refused = 0
    for wrong, thing in damaged(state):
        if not isinstance(wrong, dict):
            continue
        try:
            getattr(part, take)(wrong)
        except ValueError:
            num_refused += 1
        else:
            assert not isinstance(thing, float) or isfinite(thing), f"accepted with {thing}"
            assert all(isfinite(figure) and figure >= 0 for figure in answers(part, 10)), (
                f"not sane with {thing!r:.50}"
            )
            part = teach(make(kind, name), number=50)
        assert before == answers(part, 10), f"{thing!r:.50}"
    assert num_refused > 40


@every_stateful
@pytest.mark.parametrize("version", [None, 0, 2, 10**30, "1", 1.0, True])
def test_another_version_is_refused(kind: str, name: str, version: object) -> None:
    part = teach(make(kind, name))
    state, before = state_of(part) | {"version": version}, answers(part)
    for take in (part.restore, part.merge):
        with pytest.raises(ValueError, match="version"):
            take(state)
    assert before == answers(part)


@every_stateful
def test_its_own_state_is_accepted_whatever_it_has_learnt(kind: str, name: str) -> None:
    part, absurd = make(kind, name), [0, 1, 10**9, -1, float("nan"), float("inf"), 10**6]
    for number, request in enumerate(requests(3, 3000)):
        used: Any = absurd[number // 400 % len(absurd)]
        if hasattr(part, "count"):
            part.learn(request, Usage(used, used))
        else:
            part.learn(request, Usage(used, used), finished=number % 3 > 0)
    restored = make(kind, name)
    restored.restore(state_of(part))
    assert answers(part) == answers(restored)


@every_stateful
def test_its_state_is_of_bounded_size(kind: str, name: str) -> None:
    part = make(kind, name)
    for number in range(5000):
        long = "n" * MAX_NAME_CHARS * (1 + number % 2)
        request = replace(next(requests(number, 1)), model=f"{number}{long}", category=f"{number % 7}")
        if hasattr(part, "count"):
            part.learn(request, Usage(1 + request.prompt_bytes // 4, 100))
        else:
            part.learn(request, Usage(10, 100), finished=True)
    assert len(packed(part)) < MOST_BYTES
    make(kind, name).restore(state_of(part))


@every_stateful
def test_names_that_cannot_be_written_spoil_nothing(kind: str, name: str) -> None:
    part = teach(make(kind, name))
    before = packed(part)
    for model in ("\ud800", "n" * 10**6):
        for request in requests(1, 20):
            used = Usage(1 + request.prompt_bytes // 4, 100)
            if hasattr(part, "count"):
                part.learn(replace(request, model=model), used)
            else:
                part.learn(replace(request, model=model, category=model), used, finished=True)
    assert len(before) == pytest.approx(len(packed(part)), rel=0.01)


@every_stateful
def test_no_word_of_a_prompt_is_in_the_state(kind: str, name: str) -> None:
    state = packed(teach(make(kind, name)))
    assert [] == [word for word in SECRETS if word.encode() in state]
