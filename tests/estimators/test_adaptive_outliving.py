"""What `adaptive` makes of an answer that becomes longer than promised, before it ends."""

import random
from dataclasses import replace
from heapq import heappop, heappush
from math import exp, floor, inf, nan
from statistics import median
from typing import Any

import pytest

from driftsched.core.model import Calibration, Estimate, Request, Usage
from driftsched.core.protocols import Outliving
from driftsched.estimators.adaptive import MAX_OUTLIVED, Adaptive
from support.prompts import request_of

TOKEN_SECONDS = 0.03


def request(number: int, tenant: str = "t") -> Request:
    return replace(request_of("summary", tenant=tenant, prompt_tokens=20), id=f"{tenant} {number}")


def taught(seed: int = 1, num_answers: int = 200, tenants: str = "abcde") -> Adaptive:
    """An estimator that has seen answers of about 200 tokens."""
    lengths = random.Random(seed)
    estimator = Adaptive()
    for number in range(num_answers):
        tokens = round(200 * exp(lengths.gauss(0, 0.4)))
        asked = request(-1 - number, tenants[number % len(tenants)])
        estimator.learn(asked, Usage(20, tokens), finished=True, estimate=estimator.predict(asked))
    return estimator


def pass_promise(estimator: Adaptive, asked: Request) -> Estimate:
    """Let an answer run one token beyond its q90."""
    estimate = estimator.predict(asked)
    estimator.outlive(asked, estimate, floor(estimate.q90) + 1)
    return estimate


def calibration(estimator: Adaptive) -> Calibration:
    (row,) = estimator.calibration()
    return row


def seconds_to_alarm(seed: int, *, listens: bool) -> float:
    """From a shift by 2.5 to the alarm: two requests a second, all served at once, 30 ms a token."""
    rng = random.Random(seed)
    estimator = taught(seed)
    happenings: list[tuple[float, int, str, Request, Estimate, int]] = []
    at = 0.0
    for number in range(120):
        at += rng.expovariate(2.0)
        asked = request(number, rng.choice("abcde"))
        while happenings and happenings[0][0] <= at:
            then, _, what, about, said, count = heappop(happenings)
            if hear(estimator, what, about, said, count):
                return then
        estimate = estimator.predict(asked)
        tokens = max(1, round(500 * exp(rng.gauss(0, 0.4))))
        heappush(happenings, (at + tokens * TOKEN_SECONDS, number, "ends", asked, estimate, tokens))
        milestone = floor(estimate.q90) + 1
        if listens and milestone <= tokens:
            heappush(happenings, (at + milestone * TOKEN_SECONDS, number, "goes on", asked, estimate, milestone))
    return inf


def hear(estimator: Adaptive, what: str, asked: Request, estimate: Estimate, tokens: int) -> float | None:
    if what == "goes on":
        return estimator.outlive(asked, estimate, tokens)
    return estimator.learn(asked, Usage(20, tokens), finished=True, estimate=estimate)


def test_it_listens() -> None:
    assert isinstance(Adaptive(), Outliving)


def test_a_shift_upwards_is_noticed_seconds_earlier() -> None:
    with_it = [seconds_to_alarm(seed, listens=True) for seed in range(5)]
    without = [seconds_to_alarm(seed, listens=False) for seed in range(5)]
    assert median(with_it) < median(without) - 2
    assert sum(a <= b for a, b in zip(with_it, without, strict=True)) >= 4


def test_what_runs_long_raises_q90_at_once_and_the_point_only_at_its_end() -> None:
    estimator = taught()
    asked = request(2)
    before = estimator.predict(asked)
    pass_promise(estimator, request(1))
    after = estimator.predict(asked)
    assert (before.completion_tokens, before.q50) == (after.completion_tokens, after.q50)
    assert before.q80 < after.q80
    assert before.q90 < after.q90
    estimator.learn(request(1), Usage(20, 5000), finished=True)
    assert after.q50 < estimator.predict(asked).q50


@pytest.mark.parametrize("finished", [True, False])
def test_each_answer_counts_once_for_coverage(finished: bool) -> None:
    early, late = taught(), taught()
    for number in range(10):
        asked = request(number, "abcde"[number % 5])
        tokens = 10_000 if number % 3 == 0 else 150
        for estimator, listens in ((early, True), (late, False)):
            estimate = estimator.predict(asked)
            if listens and tokens > estimate.q90:
                estimator.outlive(asked, estimate, floor(estimate.q90) + 1)
            estimator.learn(asked, Usage(20, tokens), finished=finished or tokens < 1000, estimate=estimate)
    assert pytest.approx(calibration(late).coverage) == calibration(early).coverage


def test_the_end_moves_doubt_no_more() -> None:
    estimator = taught()
    estimate = pass_promise(estimator, request(1))
    told = offsets(estimator)
    estimator.learn(request(1), Usage(20, 2_000), finished=True, estimate=estimate)
    assert told == offsets(estimator)
    estimator.learn(request(2), Usage(20, 2_000), finished=True, estimate=estimator.predict(request(2)))
    assert all(before < after for before, after in zip(told, offsets(estimator), strict=True))


def test_the_detector_hears_of_an_answer_once() -> None:
    early, late = taught(tenants="t"), taught(tenants="t")
    pass_promise(early, request(1))
    for estimator in (early, late):
        estimator.learn(request(1), Usage(20, 350), finished=True)
    (once,), (at_the_end,) = (kinds(estimator) for estimator in (early, late))
    assert once.drift.ups.num == at_the_end.drift.ups.num


def test_to_the_detector_an_answer_that_goes_on_is_longer_than_one_that_ended_there() -> None:
    goes_on, ended = taught(tenants="t"), taught(tenants="t")
    estimate = pass_promise(goes_on, request(1))
    ended.learn(request(1), Usage(20, floor(estimate.q90) + 1), finished=True, estimate=estimate)
    (more,), (less,) = (kinds(estimator) for estimator in (goes_on, ended))
    assert less.drift.ups.total < more.drift.ups.total


def test_an_answer_that_ended_may_come_again_under_its_id() -> None:
    estimator = taught(tenants="t")
    for _ in range(2):
        before = offsets(estimator)
        pass_promise(estimator, request(1))
        assert before != offsets(estimator)
        told = offsets(estimator)
        estimator.learn(request(1), Usage(20, 800), finished=True)
        assert told == offsets(estimator)


@pytest.mark.parametrize("produced", [0, -1, 10**9, nan, inf])
def test_counts_that_no_engine_can_mean_say_nothing(produced: Any) -> None:
    estimator = taught()
    before = estimator.snapshot()
    assert estimator.outlive(request(1), estimator.predict(request(1)), produced) is None
    assert before == estimator.snapshot()


def test_an_estimate_of_somebody_elses_says_nothing() -> None:
    estimator = taught()
    before = estimator.snapshot()
    assert estimator.outlive(request(1), Estimate(10.0, 10.0, 20.0, 30.0), 31) is None
    assert before == estimator.snapshot()


def test_what_never_ends_is_forgotten() -> None:
    estimator = Adaptive(max_tenants=10)
    estimate = estimator.predict(request(0))
    for number in range(MAX_OUTLIVED + 100):
        estimator.outlive(request(number), estimate, 2000)
    assert MAX_OUTLIVED == len(estimator._outlived)


@pytest.mark.parametrize("seed", range(4))
def test_a_tenant_whose_answers_never_end_moves_nobody_elses_predictions(seed: int) -> None:
    estimator = taught(seed)
    honest = [request(0, tenant) for tenant in "abcde"]
    before = [estimator.predict(asked) for asked in honest]
    for number in range(300):
        pass_promise(estimator, request(number, "hostile"))
    after = [estimator.predict(asked) for asked in honest]
    assert [e.q50 for e in before] == [e.q50 for e in after]
    assert pytest.approx([e.q80 for e in before], rel=0.05) == [e.q80 for e in after]
    assert pytest.approx([e.q90 for e in before], rel=0.05) == [e.q90 for e in after]


def test_what_was_not_heard_while_it_ran_is_heard_at_its_end() -> None:
    estimator = taught()
    estimates = [pass_promise(estimator, request(number)) for number in range(2)]
    told = offsets(estimator)
    estimator.learn(request(1), Usage(20, 1000), finished=True, estimate=estimates[1])
    assert all(before < after for before, after in zip(told, offsets(estimator), strict=True))


def kinds(estimator: Adaptive) -> list[Any]:
    return [kind for _, kind in estimator._memory.kinds.items()]


def offsets(estimator: Adaptive) -> list[float]:
    (family,) = (family for _, family in estimator._memory.families.items())
    return list(family.conformal.offsets)
