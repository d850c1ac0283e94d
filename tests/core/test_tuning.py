"""What serves is changed by evidence: slowly up, at once down, and never to and fro for noise."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.errors import ConfigError
from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.core.goals import parse_goal
from driftsched.core.tuning import LONG_REST, MARGIN, PATIENCE, Tuner

GOAL = "p50 while p99 <= 1.2 x fifo"
GRID = ("fair:slack=0", "fair:slack=2", "fair:slack=4", "fair:slack=8")
Figures = Mapping[str, tuple[float, float]]
"""P50 and P99 by policy."""

BETTER: Figures = dict(zip((*GRID, "fifo"), [(10, 10), (8, 10), (6, 10), (5, 10), (10, 10)], strict=True))
"""The further along the grid, the lower the median; the tail stays."""


def with_tail(p99: float, *specs: str) -> Figures:
    return {spec: (p50, p99 if spec in specs else tail) for spec, (p50, tail) in BETTER.items()}


def window(figures: Figures, at: float = 0.0, *, live: str = "fair:slack=0", requests: int = 1000) -> Evidence:
    made = {
        spec: PolicyTimes(spec, Times(requests, p50, p50, p99, p99), {}) for spec, (p50, p99) in figures.items()
    }
    others = tuple(found for spec, found in made.items() if spec != live)
    return Evidence(at - 600, at, made[live], others, made[live])


def tuner(current: str = GRID[0], candidates: Sequence[str] = GRID, goal: str = GOAL, **options: bool) -> Tuner:
    return Tuner(parse_goal(goal), candidates, current, every_seconds=0.0, **options)


def shown(made: Tuner, windows: Iterable[Figures], *, useful: bool = True) -> list[str]:
    """What is in force after each window."""
    return [made.current for figures in windows if made.observe(window(figures), useful=useful) or True]


def test_it_goes_up_by_one_step_at_a_time_and_rests_after_each() -> None:
    steps = shown(tuner(), [BETTER] * 4 * PATIENCE)
    assert [GRID[0]] * (PATIENCE - 1) == steps[: PATIENCE - 1]
    assert [GRID[1]] * PATIENCE == steps[PATIENCE - 1 : 2 * PATIENCE - 1]
    assert GRID[3] == steps[-1]
    assert list(GRID) == list(dict.fromkeys(steps))


def test_one_window_that_says_otherwise_and_the_count_begins_anew() -> None:
    flat = dict.fromkeys(BETTER, (10.0, 10.0))
    assert {GRID[0]} == set(shown(tuner(), [BETTER, BETTER, flat] * 5))


def test_a_gain_below_the_margin_changes_nothing() -> None:
    little = {spec: (10 * (1 - 0.9 * MARGIN) if spec != GRID[0] else 10, 10.0) for spec in BETTER}
    assert {GRID[0]} == set(shown(tuner(), [little] * 10))


def test_it_stops_before_a_candidate_beyond_the_bound() -> None:
    assert GRID[2] == shown(tuner(), [with_tail(12.5, GRID[3])] * 20)[-1]


def test_a_step_that_is_beyond_the_bound_is_not_taken_even_on_the_way_to_a_better_one() -> None:
    assert {GRID[0]} == set(shown(tuner(), [with_tail(12.5, GRID[1])] * 20))


def test_a_step_that_looks_worse_is_not_taken_even_on_the_way_to_a_better_one() -> None:
    assert {GRID[0]} == set(shown(tuner(), [{**BETTER, GRID[1]: (10.1, 10.0)}] * 20))


def test_windows_without_worth_break_the_row() -> None:
    made = tuner()
    for _ in range(5):
        assert {GRID[0]} == set(shown(made, [BETTER] * (PATIENCE - 1)))
        shown(made, [BETTER], useful=False)


def test_within_the_bound_but_not_by_the_margin_is_not_good_enough_to_go_up() -> None:
    assert {GRID[0]} == set(shown(tuner(), [with_tail(11.5, *GRID)] * 20))


def test_once_in_force_a_candidate_stays_until_it_is_beyond_the_bound_by_the_margin() -> None:
    assert [GRID[2]] == shown(tuner(GRID[2]), [with_tail(12.5, *GRID[2:])])


def test_it_backs_off_at_once_to_the_best_that_holds() -> None:
    assert [GRID[1]] == shown(tuner(GRID[3]), [with_tail(13.0, *GRID[2:])])


def test_it_backs_off_to_the_first_if_none_holds() -> None:
    assert [GRID[0]] == shown(tuner(GRID[3]), [with_tail(13.0, *GRID)])


def test_after_a_broken_bound_it_rests_for_long() -> None:
    made = tuner(GRID[1])
    shown(made, [with_tail(13.0, *GRID[1:])])
    steps = shown(made, [BETTER] * (LONG_REST + 1))
    assert [GRID[0]] * (LONG_REST - 1) == steps[: LONG_REST - 1]
    assert GRID[1] == steps[-1]


def test_with_worthless_predictions_the_first_serves_until_they_are_worth_something_again() -> None:
    made = tuner(GRID[3])
    assert [GRID[0]] * 20 == shown(made, [BETTER] * 20, useful=False)
    assert GRID[1] == shown(made, [BETTER] * PATIENCE)[-1]


def test_windows_come_no_closer_than_told_and_small_ones_are_passed_over() -> None:
    made = Tuner(parse_goal(GOAL), GRID, GRID[3], every_seconds=300.0, min_requests=300)
    broken = with_tail(20.0, GRID[3])
    assert made.observe(window(broken, 0.0, requests=299), useful=True) is None
    assert made.observe(window(BETTER, 1.0), useful=True) is None
    assert made.observe(window(broken, 300.0), useful=True) is None
    choice = made.observe(window(broken, 301.0), useful=True)
    assert choice is not None
    assert GRID[2] == choice.policy
    assert "67 % beyond p99 <= 1.2 x fifo" == choice.why


def test_other_policies_are_gone_to_directly_where_that_is_allowed() -> None:
    candidates = (*GRID[:2], "slack:beta=0", "slack:beta=4")
    figures = {**BETTER, "slack:beta=0": (10.0, 10.0), "slack:beta=4": (3.0, 10.0)}
    assert "slack:beta=4" == shown(tuner(candidates=candidates, change_policy=True), [figures] * PATIENCE)[-1]


def test_what_is_not_in_the_evidence_is_not_gone_to() -> None:
    known = {spec: BETTER[spec] for spec in (*GRID[:2], "fifo")}
    assert GRID[1] == shown(tuner(), [known] * 20)[-1]
    without_fifo = {spec: figures for spec, figures in BETTER.items() if spec != "fifo"}
    assert GRID[0] == shown(tuner(), [without_fifo] * 20)[-1]


@pytest.mark.parametrize(
    ("candidates", "complaint"),
    [
        (GRID[:1], "at least two"),
        ((*GRID, GRID[0]), "none twice"),
        ((*GRID, "slack:beta=2"), "of several policies"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(candidates: Sequence[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tuner(candidates=candidates)


JITTERS = st.sampled_from([0.97, 1.03]) | st.floats(0.97, 1.03)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    p50s=st.lists(st.floats(1, 10), min_size=4, max_size=4).map(lambda values: sorted(values, reverse=True)),
    p99s=st.lists(st.floats(5, 20), min_size=4, max_size=4),
    start=st.integers(0, 3),
    noise=st.lists(st.lists(JITTERS, min_size=10, max_size=10), min_size=1, max_size=40),
)
def test_noise_of_three_percent_never_brings_back_what_was_left(
    p50s: list[float], p99s: list[float], start: int, noise: list[list[float]]
) -> None:
    truth = {**dict(zip(GRID, zip(p50s, p99s, strict=True), strict=True)), "fifo": (10.0, 10.0)}
    made = tuner(GRID[start])
    jittered = (
        {spec: (p50 * by[2 * n], p99 * by[2 * n + 1]) for n, (spec, (p50, p99)) in enumerate(truth.items())}
        for by in noise * 2
    )
    serving = [GRID[start], *shown(made, jittered)]
    visits = [spec for n, spec in enumerate(serving) if n == 0 or serving[n - 1] != spec]
    ups = visits[1:] if len(visits) > 1 and GRID.index(visits[1]) < start else visits
    assert len(ups) == len(set(ups)), "after at most one step back, what was left is never taken up again"


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    windows=st.lists(
        st.lists(st.tuples(st.floats(1, 10), st.floats(1, 20)), min_size=5, max_size=5), min_size=1, max_size=30
    ),
    seed=st.integers(0, 9),
)
def test_whatever_happens_it_goes_only_to_what_holds_or_to_the_first(
    windows: list[list[tuple[float, float]]], seed: int
) -> None:
    made, dice = tuner(), Random(seed)
    for pairs in windows:
        figures = dict(zip((*GRID, "fifo"), pairs, strict=True))
        for _ in range(PATIENCE):
            before = made.current
            choice = made.observe(window(figures), useful=dice.random() < 0.9)
            if choice is None:
                assert before == made.current
                continue
            assert (choice.policy, before) == (made.current, before)
            assert choice.policy == GRID[0] or figures[choice.policy][1] <= 1.2 * figures["fifo"][1]
            assert GRID.index(choice.policy) <= GRID.index(before) + 1
