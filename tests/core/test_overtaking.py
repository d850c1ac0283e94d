from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.overtaking import BLOCK, Overtaking


@dataclass
class Looked:
    """The counts as their definition puts them: every pair is looked at."""

    waiting: list[int] = field(default_factory=list)
    dispatched: list[tuple[int, set[int]]] = field(default_factory=list)  # and whom each left waiting

    def counts(self, number: int) -> tuple[int, int]:
        overtook = sum(other < number for other in self.waiting)
        overtaken = sum(other > number and number in left for other, left in self.dispatched)
        return overtook, overtaken

    def leave(self, number: int, *, is_dispatched: bool) -> None:
        self.waiting.remove(number)
        if is_dispatched:
            self.dispatched.append((number, set(self.waiting)))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["enter", "dispatch", "give up"]), st.integers(0, 200)), max_size=60))
def test_the_counts_are_those_of_looking_at_every_pair(choices: list[tuple[str, int]]) -> None:
    overtaking, looked = Overtaking(), Looked()
    for verb, amount in choices:
        if verb == "enter":
            looked.waiting.extend(overtaking.enter() for _ in range(1 + amount * BLOCK // 100))
        elif looked.waiting:
            number = looked.waiting[amount % len(looked.waiting)]
            expected = looked.counts(number)
            assert expected == overtaking.counts(number)
            if verb == "dispatch":
                assert expected == overtaking.dispatch(number)
            else:
                assert expected[1] == overtaking.give_up(number)
            looked.leave(number, is_dispatched=verb == "dispatch")


def test_in_order_of_arrival_nobody_is_overtaken() -> None:
    overtaking = Overtaking()
    numbers = [overtaking.enter() for _ in range(3 * BLOCK)]
    assert {(0, 0)} == {overtaking.dispatch(number) for number in numbers}


def test_the_last_that_comes_first_overtakes_all_and_each_is_overtaken_once() -> None:
    overtaking = Overtaking()
    numbers = [overtaking.enter() for _ in range(3 * BLOCK)]
    assert (3 * BLOCK - 1, 0) == overtaking.dispatch(numbers[-1])
    assert {(0, 1)} == {overtaking.dispatch(number) for number in numbers[:-1]}


def test_nothing_is_held_of_what_came_before_all_that_wait() -> None:
    overtaking = Overtaking()
    for _ in range(20 * BLOCK + 1):
        overtaking.dispatch(overtaking.enter())
    assert [1, 1, 1, 1] == [len(column) for column in overtaking._columns]


def test_one_that_waits_on_keeps_what_overtook_it_and_no_more() -> None:
    overtaking = Overtaking()
    patient = overtaking.enter()
    for _ in range(5 * BLOCK):
        overtaking.dispatch(overtaking.enter())
    assert (0, 5 * BLOCK) == overtaking.dispatch(patient)
    assert 1 == len(overtaking._waiting)
