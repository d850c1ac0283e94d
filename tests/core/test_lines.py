"""What the order guarantees beyond the conformance of queues: fairness, bounded memory, bounded work."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.lines import Lines
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import run_now
from support.queues import entries_held, flows_remembered, most_entries, ticket


def served(lines: Lines, num: int) -> list[str]:
    """Flows of the next `num` tickets."""
    popped = [lines.pop(0.0) for _ in range(num)]
    return [each.flow for each in popped if each]


@given(charges=st.lists(st.floats(0.1, 50.0), min_size=40, max_size=40), num_flows=st.integers(2, 4))
def test_flows_that_wait_are_never_further_apart_than_the_largest_charge(
    charges: list[float], num_flows: int
) -> None:
    lines = Lines()
    left: Counter[str] = Counter()
    for seq, charge in enumerate(charges):
        flow = str(seq % num_flows)
        lines.push(ticket(f"{seq}", seq=seq, flow=flow, charge=charge))
        left[flow] += 1
    while min(left.values()) > 0:
        left.subtract(served(lines, 1))
        services = [lines.service(0, flow) for flow in left]
        assert max(services) - min(services) <= max(charges) + 1e-9


def test_a_flood_delays_a_light_flow_by_no_more_than_its_own_turn() -> None:
    lines = Lines()
    for seq in range(1000):
        lines.push(ticket(f"flood{seq}", seq=seq, flow="flood", charge=10.0))
    served(lines, 100)
    lines.push(ticket("light", seq=1000, flow="light", charge=10.0))
    assert "light" in served(lines, 2)


def test_a_flow_cannot_save_up_an_idle_past() -> None:
    lines = Lines()
    for seq in range(200):
        lines.push(ticket(f"busy{seq}", seq=seq, flow="busy"))
    served(lines, 100)
    for seq in range(200, 300):
        lines.push(ticket(f"idle{seq}", seq=seq, flow="idle"))
    assert {"busy": 25, "idle": 25} == Counter(served(lines, 50))


def test_a_past_without_rivals_is_not_held_against_a_flow() -> None:
    lines = Lines()
    for seq in range(150):
        lines.push(ticket(f"a{seq}", seq=seq, flow="a"))
    served(lines, 50)
    for seq in range(150, 250):
        lines.push(ticket(f"b{seq}", seq=seq, flow="b"))
    assert {"a": 50, "b": 50} == Counter(served(lines, 100))


def test_the_floor_never_falls_when_refunds_come_in() -> None:
    lines = Lines()
    lines.push(ticket("a", seq=0, flow="a", charge=100.0))
    lines.pop(0.0)
    lines.settle("a", 1.0, release=True)
    lines.push(ticket("b", seq=1, flow="b"))
    lines.push(ticket("a2", seq=2, flow="a"))
    assert (100.0, 100.0) == (lines.service(0, "a"), lines.service(0, "b"))


def test_the_service_of_a_flow_never_heard_of_is_zero() -> None:
    assert 0.0 == Lines().service(3, "nobody")


def test_removing_returns_the_ticket_as_last_reranked() -> None:
    lines = Lines()
    lines.push(ticket("a", seq=0, rank=1.0, charge=1.0))
    lines.rerank("a", 2.0, 3.0)
    assert ticket("a", seq=0, rank=2.0, charge=3.0) == lines.remove("a")
    assert lines.remove("a") is None


def test_a_refused_ticket_leaves_no_band_behind() -> None:
    lines = Lines()
    with pytest.raises(ValueError, match="charge must be finite and not negative, not -1"):
        lines.push(ticket("a", seq=0, band=7, charge=-1.0))
    assert {} == lines._bands


@pytest.mark.parametrize("seed", range(4))
def test_memory_follows_what_is_alive_through_floods_and_ebbs(seed: int) -> None:
    queue, rng = MemoryQueue(50), Random(seed)
    waiting: list[str] = []
    inflight: list[str] = []
    for seq in range(6000):
        flood = seq // 1000 % 2 == 0
        name = f"{seq}"
        flow = f"flow{rng.randrange(200)}"
        overdue_at, expires_at = seq + rng.expovariate(0.001), seq + rng.expovariate(0.001)
        new = ticket(
            name,
            seq=seq,
            flow=flow,
            band=rng.randrange(2),
            rank=rng.random(),
            charge=rng.expovariate(0.1),
            overdue_at=overdue_at,
            expires_at=expires_at,
        )
        run_now(queue.push(new))
        waiting.append(name)
        for _ in range(rng.randrange(2 if flood else 5)):
            gone = waiting.pop(rng.randrange(len(waiting))) if waiting else ""
            verb = rng.random()
            if verb < 0.4:
                run_now(queue.remove(gone))
            elif verb < 0.6 and run_now(queue.rerank(gone, rng.random(), 1.0)):
                waiting.append(gone)
            elif popped := run_now(queue.pop(float(seq))):
                inflight.append(popped.id)
        while len(inflight) > rng.randrange(1, 50):
            run_now(queue.settle(inflight.pop(0), rng.expovariate(0.1), release=True))
        run_now(queue.reap(float(seq)))
        for held, living in entries_held(queue):
            assert held <= most_entries(living)
    run_now(queue.reap(1e9))
    for name in inflight:
        run_now(queue.settle(name, 1.0, release=True))
    assert (0, 0) == (queue.num_waiting, queue.num_inflight)


def test_strangers_leave_nothing_behind() -> None:
    queue = MemoryQueue(1)
    for seq in range(1000):
        run_now(queue.push(ticket(f"{seq}", seq=seq, flow=f"stranger{seq}", charge=5.0)))
        run_now(queue.pop(0.0))
        run_now(queue.settle(f"{seq}", 5.0, release=True))
    assert 0 == flows_remembered(queue)


def test_a_flow_that_comes_and_goes_ahead_of_others_leaves_nothing_behind() -> None:
    queue = MemoryQueue(2)
    for seq, (flow, charge) in enumerate([("far", 100.0), ("near", 50.0), ("waits", 1.0)]):
        run_now(queue.push(ticket(flow, seq=seq, flow=flow, charge=charge)))
    for flow, charge in (("far", 100.0), ("near", 50.0)):
        run_now(queue.pop(0.0))
        run_now(queue.settle(flow, charge, release=True))
    assert (1, 3) == (queue.num_waiting, flows_remembered(queue))
    for seq in range(3, 200):
        run_now(queue.push(ticket("guest", seq=seq, flow="far")))
        run_now(queue.remove("guest"))
    for held, living in entries_held(queue):
        assert held <= most_entries(living)
