"""What every queue does, whoever holds the order."""

from collections.abc import Callable
from math import inf, nan
from random import Random
from typing import Any

import pytest

from driftsched.core.model import Ticket
from support.queues import Accounts, ReferenceQueue, ticket

MakeQueue = Callable[[int], Accounts]
HOSTILE = [
    "",
    " ",
    "a:b",
    "{a}",
    "a}b",
    "*",
    "a\nb",
    "a\r\n",
    "a\x00b",
    "'; --",
    '"',
    "\\",
    "é",
    "\U0001f600",
    "x" * 10_000,
]


async def order(queue: Accounts, now: float = 0.0) -> list[str]:
    """Ids in the order in which they are popped, until nothing waits or no slot is free."""
    ids = []
    while popped := await queue.pop(now):
        ids.append(popped.id)
    return ids


async def push_all(queue: Accounts, *tickets: Ticket) -> None:
    for each in tickets:
        await queue.push(each)


async def test_an_empty_queue_has_nothing_to_pop(make_queue: MakeQueue) -> None:
    assert await make_queue(1).pop(0.0) is None


async def test_a_ticket_comes_back_as_it_went_in(make_queue: MakeQueue) -> None:
    queue = make_queue(1)
    pushed = ticket("a", seq=3, band=2, flow="f", rank=1.5, charge=0.1, overdue_at=7.0, expires_at=9.0)
    await queue.push(pushed)
    assert pushed == await queue.pop(0.0)


async def test_the_smallest_rank_is_first(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(
        queue, *(ticket(f"{rank}", seq=seq, rank=rank) for seq, rank in enumerate([2.0, -1.0, 1e300, 0.5]))
    )
    assert ["-1.0", "0.5", "2.0", "1e+300"] == await order(queue)


async def test_equal_ranks_are_served_by_seq_whatever_the_ids_and_the_order_of_pushes(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("b", seq=10), ticket("a", seq=11), ticket("c", seq=9), ticket("d", seq=100))
    assert ["c", "b", "a", "d"] == await order(queue)


async def test_a_smaller_band_is_served_first_whatever_its_service(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("low", seq=0, band=10, rank=-5.0, charge=0.0), ticket("mid", seq=1, band=2))
    await push_all(queue, ticket("high", seq=2, band=0, charge=100.0), ticket("next", seq=3, band=0, rank=9.0))
    assert ["high", "next", "mid", "low"] == await order(queue)


async def test_the_least_served_flow_is_first_whatever_the_ranks(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    for number in range(3):
        await queue.push(ticket(f"dear{number}", seq=number, flow="dear", rank=-9.0, charge=3.0))
        await queue.push(ticket(f"cheap{number}", seq=10 + number, flow="cheap", rank=9.0, charge=1.0))
    assert ["cheap0", "dear0", "cheap1", "cheap2", "dear1", "dear2"] == await order(queue)


async def test_flows_of_equal_service_take_turns_by_name(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    for seq, flow in enumerate(["b", "a", "é", "Z", "b", "a"]):
        await queue.push(ticket(f"{flow}{seq}", seq=seq, flow=flow))
    assert ["Z3", "a1", "b0", "é2", "a5", "b4"] == await order(queue)


async def test_the_longest_overdue_is_served_before_any_band(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("urgent", seq=0, band=0), ticket("late", seq=1, band=2, overdue_at=5.0))
    await push_all(
        queue, ticket("later", seq=2, band=1, overdue_at=4.0), ticket("not yet", seq=3, band=3, overdue_at=6.0)
    )
    assert ["later", "late", "urgent", "not yet"] == await order(queue, now=5.0)


async def test_an_overdue_ticket_is_charged_like_any_other(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("late", seq=0, flow="a", charge=4.0, overdue_at=0.0), ticket("a", seq=1, flow="a"))
    await queue.push(ticket("b", seq=2, flow="b"))
    assert ["late", "b", "a"] == await order(queue)
    assert 5.0 == queue.service(0, "a")


async def test_a_flow_is_charged_when_it_is_popped(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a1", seq=0, flow="a", charge=2.5), ticket("a2", seq=1, flow="a"))
    assert 0.0 == queue.service(0, "a")
    await queue.pop(0.0)
    assert 2.5 == queue.service(0, "a")


async def test_a_settled_flow_has_paid_exactly_the_actual_price(make_queue: MakeQueue) -> None:
    queue = make_queue(1)
    await push_all(queue, ticket("a1", seq=0, flow="a", charge=10.0), ticket("a2", seq=1, flow="a"))
    await queue.pop(0.0)
    assert await queue.settle("a1", 3.0, release=True)
    assert 3.0 == queue.service(0, "a")


async def test_a_ticket_is_settled_once(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a1", seq=0, flow="a"), ticket("a2", seq=1, flow="a"))
    await queue.pop(0.0)
    answers = [await queue.settle("a1", 8.0, release=release) for release in (True, True, False)]
    assert [True, False, False] == answers
    assert 8.0 == queue.service(0, "a")
    assert 0 == queue.num_inflight


async def test_settled_part_way_it_pays_and_keeps_its_slot(make_queue: MakeQueue) -> None:
    queue = make_queue(1)
    await push_all(queue, ticket("a1", seq=0, flow="a", charge=1.0), ticket("a2", seq=1, flow="a"))
    await queue.pop(0.0)
    assert await queue.settle("a1", 6.0, release=False)
    assert (6.0, None) == (queue.service(0, "a"), await queue.pop(0.0))
    assert await queue.settle("a1", 7.0, release=True)
    assert (7.0, ["a2"]) == (queue.service(0, "a"), await order(queue))


async def test_a_refund_moves_a_waiting_flow_forward(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a1", seq=0, flow="a", charge=50.0), ticket("a2", seq=1, flow="a"))
    await push_all(queue, ticket("b1", seq=2, flow="b", charge=9.0), ticket("b2", seq=3, flow="b"))
    assert ["a1", "b1"] == [popped.id for popped in [await queue.pop(0.0), await queue.pop(0.0)] if popped]
    await queue.settle("a1", 2.0, release=True)
    assert ["a2", "b2"] == await order(queue)


async def test_a_ticket_that_waits_cannot_be_settled(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0))
    assert not await queue.settle("a", 1.0, release=True)
    assert ["a"] == await order(queue)


async def test_a_flow_that_returns_starts_with_those_who_wait(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    for number in range(5):
        await queue.push(ticket(f"busy{number}", seq=number, flow="busy", charge=10.0))
    for _ in range(3):
        await queue.pop(0.0)
    await queue.push(ticket("back", seq=9, flow="back", charge=10.0))
    assert 30.0 == queue.service(0, "back")
    assert ["back", "busy3", "busy4"] == await order(queue)


async def test_a_flow_that_comes_after_the_queue_went_empty_starts_where_the_last_one_was(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0, flow="a", charge=10.0))
    await queue.pop(0.0)
    await queue.push(ticket("b", seq=1, flow="b"))
    assert 10.0 == queue.service(0, "b")


@pytest.mark.parametrize("leaves_by", ["remove", "reap"])
async def test_a_flow_that_comes_after_the_last_one_gave_up_starts_where_that_was(
    make_queue: MakeQueue, leaves_by: str
) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a1", seq=0, flow="a", charge=10.0), ticket("a2", seq=1, flow="a", expires_at=1.0))
    await queue.pop(0.0)
    await (queue.remove("a2") if leaves_by == "remove" else queue.reap(1.0))
    await queue.push(ticket("b", seq=2, flow="b"))
    assert 10.0 == queue.service(0, "b")


async def test_a_flow_ahead_of_the_others_is_remembered_while_it_is_away(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("b1", seq=0, flow="b", charge=1.0), ticket("b2", seq=1, flow="b", charge=1.0))
    await queue.push(ticket("a1", seq=2, flow="a", charge=100.0))
    await queue.pop(0.0)
    await queue.settle("a1", 100.0, release=True)
    assert 100.0 == queue.service(0, "a")
    await queue.push(ticket("a2", seq=3, flow="a"))
    assert ["b1", "b2", "a2"] == await order(queue)


async def test_a_flow_the_others_have_passed_is_forgotten(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0, flow="a", charge=10.0))
    await queue.pop(0.0)
    await queue.settle("a", 10.0, release=True)
    assert 0.0 == queue.service(0, "a")


async def test_bands_keep_separate_accounts(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a", seq=0, band=0, flow="f", charge=10.0), ticket("b", seq=1, band=1, flow="f"))
    await queue.pop(0.0)
    assert (10.0, 0.0) == (queue.service(0, "f"), queue.service(1, "f"))


async def test_a_reranked_ticket_takes_its_new_place_and_price(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, *(ticket(name, seq=seq, rank=float(seq)) for seq, name in enumerate("abc")))
    assert await queue.rerank("a", 1.5, 8.0)
    assert ["b", "a"] == [popped.id for popped in [await queue.pop(0.0), await queue.pop(0.0)] if popped]
    assert 9.0 == queue.service(0, "flow")


async def test_a_ticket_reranked_there_and_back_is_served_once(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a", seq=0, rank=1.0), ticket("b", seq=1, rank=2.0))
    for rank in (3.0, 1.0, 3.0, 1.0):
        await queue.rerank("a", rank, 1.0)
    assert ["a", "b"] == await order(queue)


async def test_what_does_not_wait_can_be_neither_reranked_nor_removed(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0))
    await queue.pop(0.0)
    for gone in ("a", "never came"):
        assert not await queue.rerank(gone, 1.0, 1.0)
        assert not await queue.remove(gone)
    assert 1 == queue.num_inflight


async def test_a_removed_ticket_is_never_served_and_costs_nothing(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a", seq=0, charge=5.0, overdue_at=0.0), ticket("b", seq=1, charge=0.0))
    assert [True, False] == [await queue.remove("a"), await queue.remove("a")]
    assert ["b"] == await order(queue)
    assert 0.0 == queue.service(0, "flow")


async def test_an_id_may_be_used_again_once_it_left_and_nothing_of_it_remains(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0, flow="old", rank=-9.0, overdue_at=1.0, expires_at=1.0))
    await queue.remove("a")
    await push_all(queue, ticket("b", seq=1, flow="new"), ticket("a", seq=2, flow="new"))
    assert [] == await queue.reap(5.0)
    assert ["b", "a"] == await order(queue, now=5.0)


async def test_reaping_returns_the_expired_earliest_first_and_uncharged(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    expiries = {"a": 3.0, "b": 1.0, "c": inf, "d": 3.0, "e": 4.0}
    pushed = {
        name: ticket(name, seq=seq, expires_at=expires_at)
        for seq, (name, expires_at) in enumerate(expiries.items())
    }
    await push_all(queue, *pushed.values())
    assert [pushed["b"], pushed["a"], pushed["d"]] == await queue.reap(3.0)
    assert [] == await queue.reap(3.0)
    assert (2, 0.0) == (queue.num_waiting, queue.service(0, "flow"))
    assert ["c", "e"] == await order(queue)


async def test_a_ticket_in_flight_does_not_expire(make_queue: MakeQueue) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0, expires_at=1.0))
    await queue.pop(0.0)
    assert [] == await queue.reap(2.0)
    assert await queue.settle("a", 1.0, release=True)


async def test_no_more_than_the_slots_are_ever_in_flight(make_queue: MakeQueue) -> None:
    queue = make_queue(2)
    await push_all(queue, *(ticket(f"{number}", seq=number) for number in range(4)))
    assert ["0", "1"] == await order(queue)
    await queue.settle("0", 1.0, release=True)
    assert ["2"] == await order(queue)


async def test_a_shrunk_queue_starts_nobody_until_there_is_room(make_queue: MakeQueue) -> None:
    queue = make_queue(3)
    await push_all(queue, *(ticket(f"{number}", seq=number) for number in range(6)))
    await order(queue)
    await queue.resize(1)
    for finished in ("0", "1"):
        await queue.settle(finished, 1.0, release=True)
        assert await queue.pop(0.0) is None
    await queue.settle("2", 1.0, release=True)
    assert ["3"] == await order(queue)


async def test_a_grown_queue_starts_more_at_once(make_queue: MakeQueue) -> None:
    queue = make_queue(0)
    await push_all(queue, *(ticket(f"{number}", seq=number) for number in range(3)))
    assert [] == await order(queue)
    await queue.resize(2)
    assert ["0", "1"] == await order(queue)


async def test_a_negative_number_of_slots_is_refused(make_queue: MakeQueue) -> None:
    with pytest.raises(ValueError, match="max_inflight must not be negative, but is -1"):
        make_queue(-1)
    queue = make_queue(1)
    with pytest.raises(ValueError, match="max_inflight must not be negative, but is -2"):
        await queue.resize(-2)
    await push_all(queue, ticket("a", seq=0), ticket("b", seq=1))
    assert ["a"] == await order(queue)


async def test_an_id_in_use_is_refused(make_queue: MakeQueue) -> None:
    queue = make_queue(1)
    await push_all(queue, ticket("flies", seq=0), ticket("waits", seq=1))
    await queue.pop(0.0)
    for used in ("flies", "waits"):
        with pytest.raises(ValueError, match=f"'{used}' is in use"):
            await queue.push(ticket(used, seq=2, flow="other"))
    assert (1, 1) == (queue.num_waiting, queue.num_inflight)


@pytest.mark.parametrize(
    ("rank", "charge"), [(nan, 1.0), (inf, 1.0), (-inf, 1.0), (0.0, nan), (0.0, inf), (0.0, -0.5)]
)
async def test_a_rank_or_charge_no_order_can_hold_changes_nothing(
    make_queue: MakeQueue, rank: float, charge: float
) -> None:
    queue = make_queue(9)
    await push_all(queue, ticket("a", seq=0, charge=2.0), ticket("b", seq=1))
    await queue.pop(0.0)
    with pytest.raises(ValueError, match="must be finite"):
        await queue.push(ticket("c", seq=2, flow="other", rank=rank, charge=charge))
    with pytest.raises(ValueError, match="must be finite"):
        await queue.rerank("b", rank, charge)
    if rank == 0.0:
        with pytest.raises(ValueError, match="charge must be finite and not negative"):
            await queue.settle("a", charge, release=True)
    assert (1, 1, 2.0) == (queue.num_waiting, queue.num_inflight, queue.service(0, "flow"))
    assert ["b"] == await order(queue)
    assert 3.0 == queue.service(0, "flow")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"band": None}, "band must be an int, not None"),
        ({"band": "0"}, "band must be an int, not '0'"),
        ({"band": nan}, "band must be an int, not nan"),
        ({"flow": None}, "flow must be a str, not None"),
        ({"flow": 5}, "flow must be a str, not 5"),
    ],
)
async def test_a_band_or_flow_of_the_wrong_type_changes_nothing_however_often_it_is_tried(
    make_queue: MakeQueue, place: dict[str, Any], message: str
) -> None:
    queue = make_queue(9)
    await queue.push(ticket("a", seq=0, charge=4.0))
    for attempt in range(2):
        with pytest.raises(TypeError, match=message):
            await queue.push(ticket("wrong", seq=1 + attempt, **place))
    assert ["a"] == await order(queue)
    await queue.settle("a", 4.0, release=True)
    await queue.push(ticket("b", seq=3, flow="other"))
    assert 4.0 == queue.service(0, "other"), "the floor followed the last flow that stopped waiting"
    assert ["b"] == await order(queue)
    assert 0 == queue.num_waiting


async def test_flow_names_and_ids_may_hold_any_characters(make_queue: MakeQueue) -> None:
    queue = make_queue(99)
    for seq, name in enumerate(HOSTILE):
        await queue.push(ticket(f"id{name}", seq=seq, flow=name, charge=1.0 + seq))
        await queue.push(ticket(f"second{name}", seq=100 + seq, flow=name, charge=1000.0))
    for _ in HOSTILE:
        await queue.pop(0.0)
    assert [1.0 + seq for seq in range(len(HOSTILE))] == [queue.service(0, name) for name in HOSTILE]
    assert all([await queue.settle(f"id{name}", 0.0, release=True) for name in HOSTILE])
    assert [f"second{name}" for name in sorted(HOSTILE)] == await order(queue)


async def test_accounts_are_the_reference_s_to_the_last_bit(make_queue: MakeQueue) -> None:
    queue, reference = make_queue(16), ReferenceQueue(16)
    rng = Random(11)
    for seq in range(2000):
        flow = rng.choice("abcdefgh")
        new = ticket(f"{seq}", seq=seq, flow=flow, rank=rng.random(), charge=rng.expovariate(0.01))
        reference.push(new)
        await queue.push(new)
        if seq % 3:
            assert reference.pop(0.0) == await queue.pop(0.0)
        for ticket_id in list(reference.inflight)[: rng.randrange(3)]:
            charge, release = rng.expovariate(0.01), rng.random() < 0.8
            assert reference.settle(ticket_id, charge, release=release)
            assert await queue.settle(ticket_id, charge, release=release)
        assert [reference.service(0, flow) for flow in "abcdefgh"] == [
            queue.service(0, flow) for flow in "abcdefgh"
        ]
