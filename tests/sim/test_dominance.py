from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.sim.dominance import WINDOWS, Dominance


def window(**shadows: tuple[float, float]) -> Evidence:
    """P50 and P99 by policy; those of the live one are 10 and 100."""

    def times(policy: str, p50: float, p99: float) -> PolicyTimes:
        return PolicyTimes(policy, Times(400, p50, p50, p99, p99), {})

    live = times("fifo", 10.0, 100.0)
    return Evidence(0.0, 1.0, live, tuple(times(name, *values) for name, values in shadows.items()), live)


def changes(*windows: Evidence) -> list[tuple[int, str | None]]:
    """Window number and new verdict, of each change."""
    dominance = Dominance()
    return [(number, dominance.by) for number, one in enumerate(windows, 1) if dominance.observe(one)]


def test_a_policy_better_in_both_respects_for_long_enough_dominates_and_this_is_told_once() -> None:
    assert [(WINDOWS, "sjf")] == changes(*[window(sjf=(5.0, 80.0))] * 20)


def test_neither_a_better_median_nor_a_better_tail_alone_dominates() -> None:
    assert [] == changes(*[window(sjf=(5.0, 95.0), fair=(9.5, 50.0))] * 20)


def test_what_is_better_now_and_then_does_not_dominate() -> None:
    assert [] == changes(*[window(sjf=(5.0, 80.0))] * (WINDOWS - 1), window(sjf=(5.0, 99.0))) * 5
    assert [] == changes(*[window(sjf=(5.0, 80.0)), window(sjf=(9.5, 80.0))] * 20)


def test_it_ends_once_the_live_policy_has_been_as_good_for_long_enough() -> None:
    windows = [window(sjf=(5.0, 80.0))] * WINDOWS + [window(sjf=(9.9, 99.0))] * WINDOWS
    assert [(WINDOWS, "sjf"), (2 * WINDOWS, None)] == changes(*windows)


def test_of_several_the_one_with_the_lowest_median_is_named_and_kept_while_it_dominates() -> None:
    first, then = window(sjf=(5.0, 80.0), fair=(6.0, 70.0)), window(sjf=(6.5, 80.0), fair=(6.0, 70.0))
    assert [(WINDOWS, "sjf")] == changes(*[first] * WINDOWS, *[then] * 20)
