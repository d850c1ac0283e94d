"""The default estimator: what it learns, from whom, how sure it is, and what it does not let happen.

Faults planted in it by hand that are caught here: bounds that say nothing are learnt; a bound raises the guess
without end; all answers in a row teach; distance from the tenant's own kind; words of those learnt apart shared; no
limit on figures; no correction of q80; q80 below q50; the kind's level stays behind at an alarm; the shift told as
a logarithm; negative counts learnt; nobody learnt apart.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import exp, isfinite, log
from random import Random
from statistics import fmean, median
from typing import Any

import pytest

from driftsched.core.model import Estimate, Request, Traits, Usage
from driftsched.estimators.adaptive import MAX_LENGTH, Adaptive
from driftsched.estimators.categories import BASE_TOKENS, CATEGORIES
from driftsched.estimators.text import MAX_CHARS
from support.prompts import request_of

PROMPTS = [
    f"{verb} {number} about {topic}"
    for verb in ("Explain", "List", "Write a story of")
    for number in ("ships", "2 cats")
    for topic in ("topic 1", "topic 2")
]


def answer(estimator: Adaptive, request: Request, tokens: Any, *, finished: bool = True) -> float | None:
    """Predict, and learn at once."""
    return estimator.learn(
        request, Usage(request.prompt_tokens, tokens), finished=finished, estimate=estimator.predict(request)
    )


def lognormal(rng: Random, middle: float, sigma: float) -> int:
    return max(1, round(middle * exp(rng.gauss(0, sigma))))


def played(
    estimator: Adaptive, demand: Iterator[tuple[Request, int]], late: int = 32
) -> Iterator[tuple[Request, int, Estimate]]:
    """Each request, its length and what was predicted at admission; learnt `late` requests later."""
    flying: deque[tuple[Request, int, Estimate]] = deque()
    for request, length in demand:
        estimate = estimator.predict(request)
        yield request, length, estimate
        flying.append((request, length, estimate))
        if len(flying) > late:
            oldest, tokens, promised = flying.popleft()
            estimator.learn(oldest, Usage(9, tokens), finished=True, estimate=promised)


def is_sane(estimate: Estimate, limit: float = MAX_LENGTH * 1.01) -> bool:
    figures = (estimate.completion_tokens, estimate.q50, estimate.q80, estimate.q90, estimate.expected_tokens)
    return (
        all(isfinite(figure) and 0 < figure <= limit for figure in (*figures, *estimate.lengths))
        and estimate.q50 <= estimate.q80 <= estimate.q90
        and 20 == len(estimate.lengths)
        and list(estimate.lengths) == sorted(estimate.lengths)
        and 1 <= estimate.remaining_tokens(5)
    )


# Hostile input

TEXTS = {
    "huge": "write " * 1_700_000,
    "emoji": "\U0001f600" * 5000,
    "controls": "\x01\x1b\x7f\x85" * 1000,
    "surrogates": "a\ud800 b" * 1000,
    "nul": "\0" * 5000,
    "repetition": "9999999999 words " * 2000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_makes_it_insane(name: str) -> None:
    estimator, text = Adaptive(), TEXTS[name]
    hostile = request_of(prompt=text, prompt_bytes=len(text), tenant=text[:9], model=text[:9])
    for tokens in (1, 10**6, 300) * 5:
        answer(estimator, hostile, tokens)
        assert is_sane(estimator.predict(hostile))
    Adaptive().restore(estimator.snapshot())


def test_a_prompt_is_read_to_its_bound_only() -> None:
    estimator, head = Adaptive(), ("List 20 ships. " * 200)[:MAX_CHARS]
    for number, prompt in enumerate([head, *PROMPTS] * 5):
        answer(estimator, request_of(prompt=prompt), 50 + 90 * (number % 13))
    equal = {
        estimator.predict(request_of(prompt=head + rest, prompt_bytes=9))
        for rest in ("", "x", " say 1 word" * 10**5)
    }
    assert 1 == len(equal)


@pytest.mark.parametrize("limit", [1, 2, 10**9])
def test_no_figure_exceeds_the_clients_limit(limit: int) -> None:
    estimator = Adaptive()
    for number in range(50):
        answer(estimator, request_of(max_tokens=limit), min(limit, 200 + number), finished=limit > 300)
        assert is_sane(estimator.predict(request_of(max_tokens=limit)), float(min(limit, MAX_LENGTH)))


@pytest.mark.parametrize(
    "tokens", [float("nan"), float("inf"), -1, -float("inf"), 10**400, MAX_LENGTH + 1], ids=str
)
@pytest.mark.parametrize("finished", [True, False])
def test_counts_that_no_engine_can_mean_teach_nothing(tokens: Any, *, finished: bool) -> None:
    estimator, request = Adaptive(), request_of("report")
    answer(estimator, request, 300)
    before = estimator.snapshot()
    assert answer(estimator, request, tokens, finished=finished) is None
    assert before == estimator.snapshot()


def test_any_number_of_names_fits_in_its_tables() -> None:
    estimator = Adaptive(max_tenants=20)
    for number in range(300):
        traits = Traits(template=f"template-{number}", session=f"session-{number}")
        request = request_of(tenant=f"t-{number}", prompt=f"say {number}", prompt_tokens=number)
        answer(estimator, replace(request, traits=traits), 100)
    tables = {name: rows for name, rows in estimator.snapshot().items() if isinstance(rows, list)}
    sizes = {name: len(tables[name]) for name in ("tenants", "own", "sessions", "templates", "prompts", "sizes")}
    assert {20} == set(sizes.values())


def test_a_table_of_no_tenants_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tenants"):
        Adaptive(max_tenants=0)


def test_a_snapshot_holds_no_text_of_a_prompt() -> None:
    estimator = Adaptive()
    for _ in range(5):
        answer(estimator, request_of(prompt="extraordinarily secret words"), 100)
    plain = json.dumps(estimator.snapshot(), default=lambda data: data.decode("latin-1"))
    assert not [word for word in ("extraordinarily", "secret") if word in plain]


# Nobody moves others


def by(tenant: str, number: int) -> Request:
    """The same prompts, templates, categories and sizes from whomever."""
    request = request_of(
        CATEGORIES[number % 4],
        tenant=tenant,
        prompt=PROMPTS[number % len(PROMPTS)],
        prompt_tokens=5 + number % 40,
    )
    return replace(request, traits=Traits(template=f"template-{number % 3}"))


def honest_world(num: int, seed: int = 1, *, estimator: Adaptive | None = None) -> Adaptive:
    """`num` tenants, 60, 120, 240 .. tokens, 150 answers each."""
    rng, world = Random(seed), estimator or Adaptive()
    for number in range(150 * num):
        answer(world, by(f"honest-{number % num}", rng.randrange(200)), lognormal(rng, 60 << number % num, 0.5))
    return world


def figures_of(world: Adaptive, num: int) -> list[list[float]]:
    told = [world.predict(by(f"honest-{tenant}", 17 * i)) for tenant in range(num) for i in range(8)]
    return [[e.q50, e.q80, e.completion_tokens] for e in told]


def largest_move(world: Adaptive, num: int, report: Callable[[int], int], *, finished: bool = True) -> list[float]:
    """Of anybody's q50, q80 and point, as a logarithm, after 1,000 answers of one more tenant."""
    before = figures_of(world, num)
    for number in range(1000):
        answer(world, by("hostile", 7 * number), report(number), finished=finished)
    after = figures_of(world, num)
    return [
        max(abs(log(b / a)) for a, b in zip(*column, strict=True))
        for column in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
    ]


ABSURD: dict[str, Callable[[int], int]] = {
    "one": lambda number: 1,
    "million": lambda number: 10**6,
    "alternating": lambda number: (1, 10**6)[number % 2],
    "by turns": lambda number: (1, 10**6)[number // 50 % 2],
    "half": lambda number: (1, 300)[number % 2],
    "seldom": lambda number: 250 if number % 5 else 10**6,
}
ONE_STEP = log(1.05) + 0.02
"""By which the point, in steps of 5 % and whole tokens, moves when the median moves a little."""


@pytest.mark.parametrize("num", [5, 2])
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_lengths_move_nobody_else(name: str, num: int) -> None:
    q50, q80, point = largest_move(honest_world(num), num, ABSURD[name])
    assert max(q50, q80) < 0.02
    assert point < ONE_STEP


@pytest.mark.parametrize("name", ["million", "alternating", "one"])
def test_absurd_lower_bounds_move_nobody_else(name: str) -> None:
    q50, q80, point = largest_move(honest_world(5), 5, ABSURD[name], finished=False)
    assert max(q50, q80) < 0.02
    assert point < ONE_STEP


def test_who_was_there_first_with_absurd_lengths_moves_nobody_later() -> None:
    world = Adaptive()
    for number in range(300):
        answer(world, by("hostile", 7 * number), ABSURD["alternating"](number))
    assert max(largest_move(honest_world(5, estimator=world), 5, ABSURD["alternating"])[:2]) < 0.05


def test_who_creeps_away_from_usual_lengths_moves_others_little() -> None:
    def creeping(number: int) -> int:
        return round(100 * 1.2 ** (number // 20))

    assert max(largest_move(honest_world(5), 5, lambda number: min(creeping(number), MAX_LENGTH))[:2]) < 0.1


def test_a_tenant_learnt_apart_is_predicted_well_and_comes_back() -> None:
    world = honest_world(5)
    for number in range(100):
        answer(world, by("odd", number), 20_000)
    assert pytest.approx(20_000, rel=0.1) == world.predict(by("odd", 3)).q50
    for number in range(300):
        answer(world, by("odd", number), 200)
    assert pytest.approx(200, rel=0.2) == world.predict(by("odd", 3)).q50
    assert not [row for row in _rows(world, "tenants") if row[0] == ["m", "odd"] and row[1][-1]]


def _rows(world: Adaptive, table: str) -> list[Any]:
    rows = world.snapshot()[table]
    assert isinstance(rows, list)
    return rows


# Shifts


def mixed(
    rng: Random, num: int, sigma: float, factor: Callable[[int, str], float]
) -> Iterator[tuple[Request, int]]:
    for number in range(num):
        category = rng.choice(CATEGORIES)
        request = request_of(category, tenant=f"t{rng.randrange(3)}", prompt_tokens=rng.randint(15, 30))
        yield request, lognormal(rng, BASE_TOKENS[category] * factor(number, category), sigma)


@pytest.mark.parametrize("shift", [1.6, 0.625])
@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5])
def test_sixty_answers_after_a_shift_of_one_category_the_error_is_back(shift: float, sigma: float) -> None:
    old: list[float] = []
    new: list[float] = []
    for seed in range(3):
        rng, estimator = Random(seed), Adaptive()
        for _ in played(estimator, mixed(rng, 1200, sigma, lambda *_: 0.8), late=0):
            pass
        for number in range(140):
            request = request_of("technical", tenant=f"t{number % 3}", prompt_tokens=20)
            length = lognormal(rng, BASE_TOKENS["technical"] * 0.8 * shift, sigma)
            if number >= 60:
                new.append(abs(log(length / estimator.predict(request).q50)))
                old.append(abs(log(length / (BASE_TOKENS["technical"] * 0.8 * shift))))
            answer(estimator, request, length)
    assert fmean(new) <= 1.1 * fmean(old) + 0.01


@pytest.mark.parametrize("shift", [1.6, 0.625])
def test_the_alarm_tells_the_factor_and_leaves_other_categories_alone(shift: float) -> None:
    rng, estimator = Random(1), Adaptive()
    for _ in played(estimator, mixed(rng, 1200, 0.25, lambda *_: 1.0), late=0):
        pass
    others = [request_of(category, tenant="t1", prompt_tokens=20) for category in ("summary", "report", "short_qa")]
    before = [estimator.predict(request).q50 for request in others]
    after = mixed(rng, 240, 0.25, lambda _, category: shift if category == "technical" else 1.0)
    told = [answer(estimator, request, length) for request, length in after]
    first = next(factor for factor in told if factor is not None)
    assert pytest.approx(log(shift), abs=0.3) == log(first)
    assert pytest.approx(before, rel=0.1) == [estimator.predict(request).q50 for request in others]
    row = next(row for row in estimator.calibration() if row.category == "technical")
    assert 1 <= row.num_drifts
    assert row.answers_since_drift is not None
    assert row.answers_since_drift < 80


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_steady_lengths_seldom_raise_the_alarm(sigma: float) -> None:
    rng, estimator = Random(1), Adaptive()
    told = [answer(estimator, request, length) for request, length in mixed(rng, 3000, sigma, lambda *_: 1.0)]
    assert len([factor for factor in told if factor is not None]) < 3000 / 500


def test_a_shift_reaches_tenants_that_come_later_at_once() -> None:
    rng, estimator, newcomer = Random(1), Adaptive(), request_of("technical", tenant="new", prompt_tokens=20)
    for _ in played(estimator, mixed(rng, 1200, 0.25, lambda *_: 1.0), late=0):
        pass
    before = estimator.predict(newcomer).q50
    for request, length in mixed(rng, 240, 0.25, lambda _, category: 1.6 if category == "technical" else 1.0):
        if answer(estimator, request, length):
            break
    assert estimator.predict(newcomer).q50 > 1.35 * before


# Doubt


@pytest.mark.parametrize("shift", [1.0, 1.6])
def test_promises_hold_over_any_thousand_requests_also_through_a_shift(shift: float) -> None:
    rng, within = Random(3), []

    def factor(number: int, category: str) -> float:
        return shift if number >= 1500 and category == "technical" else 1.0

    for _, length, estimate in played(Adaptive(), mixed(rng, 3000, 0.5, factor)):
        within.append((length <= estimate.q80, length <= estimate.q90))
    for place, target in enumerate((0.80, 0.90)):
        hits = [pair[place] for pair in within[500:]]
        shares = [fmean(hits[i : i + 1000]) for i in range(0, len(hits) - 999, 25)]
        assert target - 0.03 <= min(shares) <= max(shares) <= target + 0.03


def test_promises_that_proved_too_long_are_cut_down_to_the_median_at_most() -> None:
    told, promised = [], Adaptive().predict(request_of())
    for estimate in (None, promised):
        rng, estimator = Random(1), Adaptive()
        for _ in range(400):
            estimator.learn(request_of(), Usage(9, lognormal(rng, 100, 0.4)), finished=True, estimate=estimate)
        told.append(estimator.predict(request_of()))
    usual, cut = told
    assert cut.q80 < 0.9 * usual.q80
    assert cut.q50 <= cut.q80 <= cut.q90


def test_what_is_left_of_an_answer_falls_while_it_runs_and_grows_when_it_outlives_all() -> None:
    rng, estimator = Random(1), Adaptive()
    for _ in range(300):
        answer(estimator, request_of(), lognormal(rng, 200, 0.4))
    estimate = estimator.predict(request_of())
    left = [estimate.remaining_tokens(produced) for produced in (0, 50, 100)]
    assert left == sorted(left, reverse=True)
    assert pytest.approx(216, rel=0.15) == left[0]
    assert estimate.remaining_tokens(10_000) > estimate.remaining_tokens(1_000)


# Answers cut short


@pytest.mark.parametrize(("limit", "low", "high"), [(200, 170, 260), (120, 110, 300)])
def test_lengths_cut_by_a_limit_are_lower_bounds(limit: int, low: float, high: float) -> None:
    """Half of the answers are longer than 200 tokens, nine of ten longer than 120."""
    rng, estimator = Random(1), Adaptive()
    for _ in range(1000):
        length = lognormal(rng, 200, 0.4)
        answer(estimator, request_of(max_tokens=limit), min(length, limit), finished=length < limit)
    assert low < estimator.predict(request_of()).q50 < high


def test_where_nearly_all_is_cut_the_guess_neither_falls_to_the_limit_nor_explodes() -> None:
    rng, estimator = Random(1), Adaptive()
    for number in range(1000):
        cut = bool(number % 20)
        answer(estimator, request_of(max_tokens=100), 100 if cut else rng.randrange(30, 100), finished=not cut)
    assert 100 < estimator.predict(request_of()).q50 < 400


def test_early_cancels_teach_next_to_nothing() -> None:
    rng, estimator = Random(1), Adaptive()
    for _ in range(200):
        answer(estimator, request_of(), lognormal(rng, 200, 0.4))
    before = estimator.predict(request_of())
    for _ in range(1000):
        answer(estimator, request_of(), 2, finished=False)
    after = estimator.predict(request_of())
    assert pytest.approx([before.q50, before.q80], rel=0.02) == [after.q50, after.q80]


def test_cancels_without_any_finished_answer_do_not_carry_the_guess_away() -> None:
    estimator = Adaptive()
    first = estimator.predict(request_of()).q50
    for _ in range(1000):
        answer(estimator, request_of(), 2, finished=False)
    assert pytest.approx(first, rel=0.1) == estimator.predict(request_of()).q50


# Revising and learning


def test_revised_without_news_nothing_changes_and_no_prompt_is_read_again() -> None:
    estimator = Adaptive()
    for number in range(60):
        answer(estimator, by("t", number), 50 + 10 * (number % 9))
    request = by("t", 5)
    first = estimator.predict(request)
    assert first == estimator.revise(request, first) == estimator.revise(replace(request, prompt=""), first)
    answer(estimator, by("t", 5), 5000)
    assert estimator.predict(request) == estimator.revise(replace(request, prompt=""), first) != first


def test_an_estimate_of_somebody_elses_is_predicted_anew() -> None:
    estimator, request = Adaptive(), by("t", 5)
    foreign = Estimate(1.0, q50=1.0, q80=1.0, q90=1.0)
    assert estimator.predict(request) == estimator.revise(request, foreign)
    estimator.learn(request, Usage(1, 100), finished=True, estimate=foreign)
    other = Adaptive()
    other.learn(request, Usage(1, 100), finished=True)
    assert other.snapshot() == estimator.snapshot()


def test_the_prompt_tells_lengths_that_nothing_else_tells() -> None:
    rng, estimator = Random(1), Adaptive()
    kinds = (("Write a poem about number %d", 400), ("Translate into French number %d", 40))
    for number in range(400):
        prompt, middle = rng.choice(kinds)
        answer(estimator, request_of(prompt=prompt % number), lognormal(rng, middle, 0.2))
    told = [estimator.predict(request_of(prompt=prompt % 9999)).q50 for prompt, _ in kinds]
    assert told[0] > 4 * told[1]


def test_a_prompt_that_recurs_is_remembered() -> None:
    rng, estimator = Random(1), Adaptive()
    prompts = [
        f"{word} it" for word in ("alpha", "beta", "gamma", "delta", "eta", "zeta", "mu", "theta", "iota", "nu")
    ]
    for number in range(600):
        index = number % 10
        answer(estimator, request_of(prompt=prompts[index]), lognormal(rng, 30 * 1.5**index, 0.1))
    assert pytest.approx(30 * 1.5**8, rel=0.35) == estimator.predict(request_of(prompt=prompts[8])).q50


def test_calibration_tells_of_each_model_and_category_but_not_of_who_is_learnt_apart() -> None:
    world = honest_world(5)
    for number in range(60):
        answer(world, by("odd", number), 10**6)
    rows = {(row.model, row.category): row for row in world.calibration()}
    assert {("m", category) for category in CATEGORIES} == set(rows)
    for row in rows.values():
        assert 0.8 < row.bias < 1.25
        assert 0.2 < row.error < 0.7
        assert 0.7 < row.coverage < 0.95


# Never much worse than a running median


def scattered(rng: Random) -> tuple[Request, int]:
    return request_of(rng.choice(CATEGORIES), prompt_tokens=rng.randrange(5, 500)), lognormal(rng, 200, 0.8)


def two_models(rng: Random) -> tuple[Request, int]:
    small = rng.random() < 0.5
    return request_of(model="small" if small else "large"), lognormal(rng, 40 if small else 600, 0.5)


def constant_tenants(rng: Random) -> tuple[Request, int]:
    tenant = rng.randrange(6)
    return request_of(tenant=f"t{tenant}"), 30 << tenant


@pytest.mark.parametrize("demand", [scattered, two_models, constant_tenants])
def test_it_is_not_much_worse_than_the_running_median_of_the_model(
    demand: Callable[[Random], tuple[Request, int]],
) -> None:
    rng, errors, plain = Random(1), [], []
    seen: dict[str, list[int]] = {}
    late: deque[tuple[str, int]] = deque()
    for request, length, estimate in played(Adaptive(), (demand(rng) for _ in range(2000))):
        known = seen.setdefault(request.model, [])
        errors.append(abs(length - estimate.completion_tokens))
        plain.append(abs(length - (median(known) if known else 200)))
        late.append((request.model, length))
        if len(late) > 32:
            model, tokens = late.popleft()
            seen[model].append(tokens)
    assert fmean(errors[200:]) <= 1.05 * fmean(plain[200:])
