from collections.abc import Callable

import pytest

from driftsched.core.events import Dispatched, Event, Finished
from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE, Hardware
from driftsched.estimators import create_estimator
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival, simulate
from driftsched.sim.oracle import Oracle
from driftsched.sim.reference import POLL_SECONDS, WordCountedEngine, Worker

STEP = 0.1
STEADY = Hardware(
    name="steady",
    host_ms=STEP * 1e3,
    floor_ms=0,
    g0_ms=0,
    g_us_per_token=0,
    r_us_per_sequence=0,
    kv_ns_per_token=0,
    api_ms=0,
    kv_tokens=100_000,
    source="measured",
    note="every iteration takes a tenth of a second",
)


class KnownDescriber:
    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        pass


def arrival(name: str, at: float, completion_tokens: int, category: str = "short_qa") -> Arrival:
    return Arrival(
        Request(
            id=name,
            tenant=Tenant("t"),
            tier=Tier.STANDARD,
            model="m",
            arrived_at=at,
            prompt_tokens=10,
            category=category,
        ),
        completion_tokens,
    )


def scheduler_with(listener: Callable[[Event], None], slots: int, policy: str = "fifo") -> Scheduler:
    return Scheduler(
        policy=create_policy(policy),
        estimator=create_estimator("ema"),
        describer=KnownDescriber(),
        queue=MemoryQueue(slots),
        listeners=[listener],
    )


def worker_with(
    listener: Callable[[Event], None], slots: int, policy: str = "fifo", scan_seconds: float = 0.0
) -> Worker:
    engine = BatchModel(STEADY, mode="static", max_num_seqs=slots, batch_wait_seconds=0.0)
    return Worker(scheduler_with(listener, slots, policy), engine, scan_seconds=scan_seconds)


def static_engine() -> BatchModel:
    return BatchModel(HARDWARE["l4-qwen1.5-1.8b-eager"], mode="static", max_num_seqs=8)


def dispatches(events: list[Event]) -> dict[str, float]:
    return {event.ticket.id: event.at for event in events if isinstance(event, Dispatched)}


def finishes(events: list[Event]) -> dict[str, float]:
    return {event.ticket.id: event.at for event in events if isinstance(event, Finished)}


def test_nobody_is_popped_before_the_longest_of_a_batch_is_done() -> None:
    events: list[Event] = []
    worker = worker_with(events.append, slots=2)
    end = worker.serve([arrival("short", 0.0, 2), arrival("long", 0.0, 10), arrival("next", 0.0, 5)], now=0.0)
    assert {"short": 0.0, "long": 0.0, "next": 1.0} == pytest.approx(dispatches(events))
    assert {"short": 1.0, "long": 1.0, "next": 1.5} == pytest.approx(finishes(events))
    assert [2, 1] == [batch.size for batch in worker.batches]
    assert end == pytest.approx(1.5)


def test_a_slot_left_empty_in_a_batch_stays_empty_until_it_ends() -> None:
    events: list[Event] = []
    worker_with(events.append, slots=2).serve([arrival("a", 0.0, 10), arrival("b", 0.25, 1)], now=0.0)
    assert dispatches(events)["b"] == pytest.approx(1.0)


def test_an_idle_worker_sleeps_between_two_looks_at_the_queue() -> None:
    events: list[Event] = []
    worker_with(events.append, slots=2).serve([arrival("a", 0.3 + POLL_SECONDS, 1)], now=0.0)
    assert {"a": 2 * POLL_SECONDS} == dispatches(events)


def test_looking_at_all_that_wait_for_every_pop_delays_the_batch() -> None:
    events: list[Event] = []
    worker = worker_with(events.append, slots=2, scan_seconds=0.01)
    worker.serve([arrival(name, 0.0, 1) for name in "abcd"], now=0.0)
    first = 0.01 * (4 + 3)
    second = first + STEP + 0.01 * (2 + 1)
    assert {"a": first, "b": first, "c": second, "d": second} == pytest.approx(dispatches(events))


def test_who_arrives_during_a_batch_is_predicted_before_its_feedback() -> None:
    predicted: dict[str, float] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Dispatched):
            predicted[event.ticket.id] = event.ticket.estimate.completion_tokens

    worker = worker_with(listen, slots=1)
    worker.serve([arrival("a", 0.0, 32), arrival("during", 0.05, 32), arrival("after", 3.3, 32)], now=0.0)
    assert predicted["a"] == predicted["during"]
    assert predicted["after"] < predicted["during"]


def test_the_engine_generates_tokens_while_the_accounts_are_in_words() -> None:
    events: list[Event] = []
    engine = WordCountedEngine(STEADY, {"a": (20, 10)}, mode="static", max_num_seqs=1)
    Worker(scheduler_with(events.append, 1), engine).serve([arrival("a", 0.0, 8)], now=0.0)
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished.usage == Usage(10, 8)
    assert finished.at == pytest.approx(10 * STEP)


@pytest.mark.parametrize("policy", ["fifo", "sjf", "priority"])
def test_worker_and_driver_agree_where_every_batch_is_full(policy: str) -> None:
    kinds = ("short_qa", "summary", "technical", "report")
    arrivals = [arrival(str(n), 0.0 if n < 8 else 0.01, 20 + n * 37 % 61, kinds[n * 7 % 4]) for n in range(64)]
    by_worker: list[Event] = []
    by_driver: list[Event] = []
    Worker(scheduler_with(by_worker.append, 8, policy), static_engine()).serve(arrivals, now=0.0)
    simulate(arrivals, scheduler_with(by_driver.append, 8, policy), static_engine())
    assert finishes(by_driver) == finishes(by_worker)
    assert 64 == len(finishes(by_worker))


def test_the_oracle_knows_and_does_not_learn() -> None:
    oracle = Oracle({"a": 77})
    request = arrival("a", 0.0, 77).request
    oracle.learn(request, Usage(10, 5), finished=True)
    assert 77 == oracle.predict(request).completion_tokens
    assert 1.0 == oracle.bias(request)
