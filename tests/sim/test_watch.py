from driftsched.core.events import Dispatched, Event, Finished
from driftsched.core.limit import AdaptiveLimit
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival
from driftsched.sim.watch import Watched
from support.scheduling import SLOTS, request_at, scheduler_of, simulated_events, workload


def watched(arrivals: list[Arrival], limit: AdaptiveLimit, *, slots: int = SLOTS) -> tuple[list[Event], float]:
    """All that happens under a limit that follows the engine, and when it ends."""
    events: list[Event] = []
    queue = MemoryQueue(limit.limit)
    scheduler = scheduler_of(queue=queue, listeners=[events.append])
    engine = BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=slots)
    ended_at = Watched(scheduler, queue, engine, limit).simulate(arrivals)
    return events, ended_at


def test_a_limit_that_cannot_move_changes_nothing() -> None:
    arrivals = workload(1, num_requests=150)
    events, ended_at = watched(arrivals, AdaptiveLimit(SLOTS, floor=SLOTS, ceiling=SLOTS))
    plain = simulated_events("fifo", arrivals)

    assert [e.ticket.id for e in plain if isinstance(e, Dispatched)] == [
        e.ticket.id for e in events if isinstance(e, Dispatched)
    ]
    expected = {e.ticket.id: e.at for e in plain if isinstance(e, Finished)}
    found = {e.ticket.id: e.at for e in events if isinstance(e, Finished)}
    assert expected.keys() == found.keys()
    assert max(abs(expected[name] - found[name]) for name in expected) < 1e-6
    assert abs(max(expected.values()) - ended_at) < 1e-6


def test_the_limit_follows_the_engine_while_requests_wait() -> None:
    limit = AdaptiveLimit(64)
    watched(workload(1, num_requests=600), limit)

    assert SLOTS <= limit.limit <= SLOTS + 4


def test_a_slot_that_a_look_frees_is_given_at_once() -> None:
    """Two long answers hold both slots; the third waits for the limit to rise and not for their end."""
    arrivals = [Arrival(request_at(0.0, f"r{number}"), completion_tokens=2000) for number in range(3)]
    events, _ = watched(arrivals, AdaptiveLimit(2))
    dispatched = {e.ticket.id: e.at for e in events if isinstance(e, Dispatched)}

    assert {"r0": 0.0, "r1": 0.0, "r2": 3.0} == dispatched
