from dataclasses import dataclass, field
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.engines.balance import SPILL, Work, least_work, preferred


@dataclass
class Seat:
    name: str
    slots: int = 8
    work: Work = field(default_factory=Work)

    def given(self, *expected: float) -> "Seat":
        for tokens in expected:
            self.work.begin(tokens)
        return self


def names(number: int) -> list[Seat]:
    return [Seat(f"gpu-{each}") for each in range(number)]


def test_the_least_predicted_work_counts_not_the_fewest_requests() -> None:
    long, short = Seat("long").given(900.0), Seat("short").given(20.0, 20.0, 20.0)
    assert short is least_work([long, short])


def test_work_is_counted_for_each_slot() -> None:
    small, large = Seat("small", slots=2).given(100.0), Seat("large", slots=16).given(100.0, 100.0)
    assert large is least_work([small, large])


def test_an_engine_without_a_free_slot_is_the_last_choice() -> None:
    full, free = Seat("full", slots=1).given(1.0), Seat("free", slots=1)
    free.work.tokens = 1e6
    assert free is least_work([full, free])


def test_what_has_come_is_no_longer_to_come() -> None:
    work = Work()
    job = work.begin(100.0)
    seen = []
    for produced in (0, 60, 100, 200):
        job.progress(produced)
        seen.append(work.tokens)
    assert [100.0, 40.0, 0.0, 50.0] == seen


@pytest.mark.parametrize("expected", [nan, inf, -1.0])
def test_what_is_no_length_counts_as_one_token(expected: float) -> None:
    work = Work()
    work.begin(expected)
    assert 1.0 == work.tokens


@given(st.lists(st.tuples(st.floats(0.0, 1e6), st.lists(st.integers(0, 10_000), max_size=5)), max_size=20))
def test_nothing_is_left_of_work_that_ended(jobs: list[tuple[float, list[int]]]) -> None:
    work = Work()
    begun = [(work.begin(expected), progress) for expected, progress in jobs]
    for job, progress in begun:
        for produced in progress:
            job.progress(produced)
        assert job.left >= 0
    for job, _ in begun:
        job.end()
    assert (0, 0.0) == (work.num_inflight, work.tokens)


def test_requests_with_one_key_meet_at_one_engine_and_keys_spread() -> None:
    seats = names(4)
    chosen = [preferred(seats, f"session-{number}").name for number in range(400)]
    assert chosen == [preferred(list(reversed(seats)), f"session-{number}").name for number in range(400)]
    assert all(60 <= chosen.count(seat.name) <= 140 for seat in seats)


def test_when_an_engine_goes_only_its_own_requests_move() -> None:
    seats = names(4)
    before = {key: preferred(seats, key).name for key in map(str, range(200))}
    after = {key: preferred(seats[:3], key).name for key in before}
    assert all(after[key] == name for key, name in before.items() if name != "gpu-3")


def test_an_engine_that_is_much_fuller_than_the_emptiest_is_passed_over() -> None:
    seats = names(2)
    home = preferred(seats, "key")
    home.given(*[1.0] * int(SPILL * home.slots))
    assert home is preferred(seats, "key")
    home.given(1.0)
    assert home is not preferred(seats, "key")


def test_when_all_are_full_the_least_work_decides() -> None:
    seats = [Seat("a", slots=1).given(50.0), Seat("b", slots=1).given(10.0)]
    assert {"b"} == {preferred(seats, str(number)).name for number in range(20)}
