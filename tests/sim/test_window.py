from driftsched.core.model import Tier
from driftsched.sim.window import MAX_ROWS, MIN_ROWS, TELLING_ROWS, WINDOW_SECONDS, Row, Window, times_of


def filled(num: int, every_seconds: float) -> Window:
    window = Window()
    for number in range(num):
        window.add(Row(number * every_seconds, Tier.BATCH, 1.0, (1.0,)))
    return window


def test_a_window_holds_the_last_ten_minutes() -> None:
    rows = filled(2000, 1.0).rows
    assert WINDOW_SECONDS + 1 == len(rows)


def test_of_a_quiet_gateway_it_holds_older_requests_too() -> None:
    assert MIN_ROWS == len(filled(2000, 60.0).rows)


def test_of_a_busy_gateway_it_holds_a_sample_of_as_long_a_time() -> None:
    rows = filled(100_000, 0.01).rows
    assert MAX_ROWS / 4 <= len(rows) <= MAX_ROWS
    assert rows[-1].arrived_at - rows[0].arrived_at > 0.9 * WINDOW_SECONDS
    steps = {round(b.arrived_at - a.arrived_at, 2) for a, b in zip(list(rows), list(rows)[1:], strict=False)}
    assert 1 == len(steps)


def test_it_is_telling_once_there_is_enough_and_then_whenever_a_quarter_is_new() -> None:
    window = Window()
    told_at = []
    for number in range(200):
        window.add(Row(float(number), Tier.BATCH, 1.0, (1.0,)))
        if window.telling:
            window.told()
            told_at.append(number + 1)
    assert [TELLING_ROWS, 134, 179] == told_at


def test_times_are_those_of_all_and_of_each_tier_that_had_requests() -> None:
    rows = [Row(0.0, Tier.PREMIUM, 1.0, (5.0,)), Row(0.0, Tier.BATCH, 3.0, (7.0,))]
    *_, made = times_of("sjf", rows, lambda row: row.simulated[0])
    assert made is not None
    assert ("sjf", 6.0, 2) == (made.policy, made.times.mean, made.times.requests)
    assert {Tier.PREMIUM: 5.0, Tier.BATCH: 7.0} == {tier: times.max for tier, times in made.by_tier.items()}
