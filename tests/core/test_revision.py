from math import inf, nan

import pytest

from driftsched.core.model import Estimate, Load, Ticket
from driftsched.core.revision import Revisions
from support.scheduling import request_at

LOAD = Load(0, 0, 0.0, 0.0)


def ticket(name: str, category: str = "summary") -> Ticket:
    return Ticket(request_at(0.0, name, category=category), Estimate(1, 1, 1, 1), 0, 0, "all", 0.0, 0.0)


def revisions(*names: str, max_reranks: int = 16) -> Revisions:
    """In which tickets of one kind wait."""
    made = Revisions(max_reranks)
    for name in names:
        made.enter(ticket(name), LOAD)
    return made


def moved(made: Revisions, before: float = 1.0, after: float = 2.0, category: str = "summary") -> None:
    made.recalibrated(request_at(category=category), before, after)


def due(made: Revisions) -> list[str]:
    return [waiting.ticket.id for waiting in made.due()]


def test_nothing_is_due_before_feedback_has_moved() -> None:
    assert [] == due(revisions("a", "b"))


def test_what_waits_is_due_once_for_each_move_in_the_order_of_admission() -> None:
    made = revisions("a", "b", "c")
    moved(made)
    assert ["a", "b", "c"] == due(made)
    assert [] == due(made)
    assert not made.any_due
    moved(made, 2.0, 1.0)
    assert ["a", "b", "c"] == due(made)


def test_a_call_hands_out_no_more_than_its_maximum_and_the_next_one_goes_on() -> None:
    made = revisions(*"abcde", max_reranks=2)
    moved(made)
    assert [["a", "b"], ["c", "d"], ["e"], []] == [due(made) for _ in range(4)]


def test_whoever_was_admitted_since_the_move_is_not_due() -> None:
    made = revisions("a")
    moved(made)
    made.enter(ticket("b"), LOAD)
    assert ["a"] == due(made)


def test_a_move_while_others_are_still_due_takes_those_first_that_were_predicted_longest_ago() -> None:
    made = revisions(*"abcd", max_reranks=3)
    moved(made, 1.0, 2.0)
    assert ["a", "b", "c"] == due(made)
    made.enter(ticket("e"), LOAD)
    moved(made, 2.0, 4.0)
    assert [["d", "a", "b"], ["c", "e"], []] == [due(made) for _ in range(3)]


def test_only_the_kind_that_moved_is_due() -> None:
    made = revisions("a")
    made.enter(ticket("b", "report"), LOAD)
    moved(made, category="report")
    assert ["b"] == due(made)


def test_kinds_that_moved_take_turns() -> None:
    made = Revisions(max_reranks=1)
    for number in range(2):
        for kind in ("summary", "report"):
            made.enter(ticket(f"{kind}{number}", kind), LOAD)
    for kind in ("summary", "report"):
        moved(made, category=kind)
    assert {"summary0", "report0"} == {*due(made), *due(made)}
    assert {"summary1", "report1"} == {*due(made), *due(made)}


def test_a_kind_that_moves_again_and_again_takes_no_more_turns_than_others() -> None:
    made = Revisions(max_reranks=1)
    for number in range(2):
        for kind in ("summary", "report"):
            made.enter(ticket(f"{kind}{number}", kind), LOAD)
    for bias in (1.0, 2.0, 4.0, 8.0):
        moved(made, bias, 2 * bias, category="summary")
    moved(made, category="report")
    assert {"summary0", "report0"} == {*due(made), *due(made)}


def test_small_moves_count_once_they_add_up_to_a_tenth() -> None:
    made = revisions("a")
    moved(made, 1.0, 1.06)
    assert [] == due(made)
    moved(made, 1.06, 1.11)
    assert ["a"] == due(made)
    moved(made, 1.11, 1.06)
    assert [] == due(made)
    moved(made, 1.06, 1.0)
    assert ["a"] == due(made)


@pytest.mark.parametrize("nonsense", [nan, inf, 0.0, -1.0])
def test_a_correction_that_is_none_moves_nothing_and_hides_no_later_move(nonsense: float) -> None:
    made = revisions("a")
    moved(made, 1.0, nonsense)
    moved(made, nonsense, 1.0)
    assert [] == due(made)
    moved(made)
    assert ["a"] == due(made)


def test_that_two_requests_of_a_kind_are_corrected_differently_is_no_move() -> None:
    made = revisions("a")
    for bias in (1.0, 3.0, 0.2):
        moved(made, bias, 1.01 * bias)
    assert [] == due(made)


def test_whoever_left_is_not_due_and_is_returned_as_it_last_stood() -> None:
    made = revisions("a", "b")
    moved(made)
    (first, second) = made.due()
    first.ticket = revised = ticket("a")
    assert revised is made.leave(ticket("a"))
    assert (False, True) == (made.holds(first), made.holds(second))
    moved(made, 2.0, 1.0)
    assert ["b"] == due(made)


def test_a_ticket_that_was_never_held_is_returned_as_it_is() -> None:
    stranger = ticket("z")
    assert stranger is revisions("a").leave(stranger)
    assert stranger is Revisions().leave(stranger)


def test_whoever_leaves_while_tickets_are_handed_out_is_passed_over() -> None:
    made = revisions("a", "b", "c")
    moved(made)
    handed = []
    for waiting in made.due():
        handed.append(waiting.ticket.id)
        made.leave(ticket("b"))
    assert ["a", "c"] == handed


def test_a_kind_of_which_nothing_waits_any_more_is_forgotten() -> None:
    made = revisions("a")
    moved(made)
    made.leave(ticket("a"))
    made.enter(ticket("b"), LOAD)
    assert [] == due(made)
    assert not made.any_due


def test_with_a_maximum_of_zero_nothing_is_ever_due() -> None:
    made = revisions("a", max_reranks=0)
    moved(made)
    assert [] == due(made)
