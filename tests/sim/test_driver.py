from collections.abc import Callable
from math import inf, nan

import pytest

from driftsched.core.admission import Bounds
from driftsched.core.events import (
    Admitted,
    Dispatched,
    DriftDetected,
    Event,
    Evicted,
    Finished,
    FirstToken,
    Rejected,
)
from driftsched.core.model import Estimate, Request, Tenant, Tier, Usage
from driftsched.core.protocols import Estimator
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE, Hardware
from driftsched.estimators import create_estimator
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival, StuckError, run_now, simulate
from support.scheduling import CategoryMeans, scheduler_of

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
    """Everything about the prompt is known already."""

    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        pass


def request_at(at: float, name: str, expires_at: float = inf, prompt_tokens: int = 10) -> Request:
    return Request(
        id=name,
        tenant=Tenant("t"),
        tier=Tier.STANDARD,
        model="m",
        arrived_at=at,
        prompt_tokens=prompt_tokens,
        category="short_qa",
        expires_at=expires_at,
    )


def scheduler_with(
    listener: Callable[[Event], None], *, slots: int = 1, policy: str = "fifo", bounds: Bounds | None = None
) -> Scheduler:
    return Scheduler(
        policy=create_policy(policy),
        estimator=create_estimator("static"),
        describer=KnownDescriber(),
        queue=MemoryQueue(slots),
        bounds=bounds,
        listeners=[listener],
    )


def test_times_are_those_of_the_engine_model() -> None:
    events: list[Event] = []
    end = simulate(
        [Arrival(request_at(1.0, "a"), completion_tokens=5)], scheduler_with(events.append), BatchModel(STEADY)
    )
    dispatched = next(e for e in events if isinstance(e, Dispatched))
    first_token = next(e for e in events if isinstance(e, FirstToken))
    finished = next(e for e in events if isinstance(e, Finished))
    assert dispatched.at == 1.0
    assert first_token.at == pytest.approx(1.0 + STEP)
    assert finished.at == pytest.approx(1.0 + 5 * STEP)
    assert end == finished.at
    assert finished.usage == Usage(10, 5)


def test_a_request_waits_for_the_slot_and_not_longer() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.0, "a"), 10), Arrival(request_at(0.25, "b"), 10)]
    simulate(arrivals, scheduler_with(events.append), BatchModel(STEADY))
    dispatched = {e.ticket.id: e.at for e in events if isinstance(e, Dispatched)}
    finished = {e.ticket.id: e.at for e in events if isinstance(e, Finished)}
    assert dispatched["b"] == finished["a"] == pytest.approx(1.0)


def test_who_arrives_during_an_iteration_is_dispatched_at_its_own_time_and_joins_the_next_iteration() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.0, "a"), 10), Arrival(request_at(0.25, "b"), 1)]
    simulate(arrivals, scheduler_with(events.append, slots=2), BatchModel(STEADY))
    dispatched = {e.ticket.id: e.at for e in events if isinstance(e, Dispatched)}
    first = {e.ticket.id: e.at for e in events if isinstance(e, FirstToken)}
    assert dispatched["b"] == 0.25
    assert first["b"] == pytest.approx(0.4)


def test_events_leave_in_order_of_time() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.07 * n, str(n)), 1 + n % 7) for n in range(200)]
    simulate(arrivals, scheduler_with(events.append, slots=4), BatchModel(HARDWARE["l4-qwen1.5-1.8b"]))
    times = [event.at for event in events]
    assert sorted(times) == times
    assert sum(isinstance(event, Finished) for event in events) == 200


def test_an_iteration_that_ends_when_a_request_arrives_is_reported_first() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.0, "a"), 1), Arrival(request_at(STEP, "b"), 1)]
    simulate(arrivals, scheduler_with(events.append), BatchModel(STEADY))
    told = [(type(e), e.ticket.id) for e in events if isinstance(e, Admitted | Finished)]
    assert [(Admitted, "a"), (Finished, "a"), (Admitted, "b"), (Finished, "b")] == told


def test_an_answer_ends_as_the_arrival_says() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.0, "a"), 2), Arrival(request_at(0.0, "b"), 2, finish_reason="length")]
    simulate(arrivals, scheduler_with(events.append), BatchModel(STEADY))
    assert {"a": "stop", "b": "length"} == {e.ticket.id: e.finish_reason for e in events if isinstance(e, Finished)}


def test_a_prompt_of_unknown_length_is_served() -> None:
    events: list[Event] = []
    arrivals = [Arrival(request_at(0.0, "a", prompt_tokens=0), 2)]
    simulate(arrivals, scheduler_with(events.append), BatchModel(STEADY))
    assert [Usage(0, 2)] == [e.usage for e in events if isinstance(e, Finished)]


def test_a_second_call_goes_on_where_the_first_ended() -> None:
    events: list[Event] = []
    scheduler, engine = scheduler_with(events.append), BatchModel(STEADY)
    end = simulate([Arrival(request_at(0.0, "a"), 3)], scheduler, engine)
    later = simulate([Arrival(request_at(end + 15, "b"), 3)], scheduler, engine)
    assert later == pytest.approx(end + 15 + 3 * STEP)


class Listening(CategoryMeans):
    """Promises 8.5 tokens, and notes which answers became longer."""

    def __init__(self) -> None:
        self.outlived: list[tuple[str, int]] = []
        self.ended: list[str] = []

    def predict(self, request: Request) -> Estimate:
        return Estimate(4.0, q50=4.0, q80=6.0, q90=8.5)

    def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
        self.outlived.append((request.id, produced))
        return 2.0

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        self.ended.append(request.id)
        return None


@pytest.mark.parametrize("num_jobs", [1, 3])
def test_an_answer_that_becomes_longer_than_promised_is_told_at_that_instant(num_jobs: int) -> None:
    events: list[Event] = []
    estimator = Listening()
    scheduler = scheduler_of(slots=3, estimator=estimator, listeners=[events.append])
    lengths = [20, 9, 8][:num_jobs]
    simulate([Arrival(request_at(0.0, str(n)), n) for n in lengths], scheduler, BatchModel(STEADY))
    assert [(str(n), 9) for n in lengths if n > 8] == estimator.outlived
    told = [event.at for event in events if isinstance(event, DriftDetected)]
    assert pytest.approx([9 * STEP] * len(told)) == told
    assert [str(n) for n in sorted(lengths)] == estimator.ended


def test_times_are_the_same_whether_or_not_the_estimator_listens() -> None:
    def ends(estimator: Estimator) -> dict[str, float]:
        events: list[Event] = []
        scheduler = scheduler_of(slots=4, estimator=estimator, listeners=[events.append])
        arrivals = [Arrival(request_at(0.07 * n, str(n)), 1 + n % 17) for n in range(200)]
        simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"]))
        return {e.ticket.id: e.at for e in events if isinstance(e, Finished)}

    assert pytest.approx(ends(CategoryMeans()), rel=1e-12) == ends(Listening())


def test_rejected_and_expired_requests_never_reach_the_engine() -> None:
    events: list[Event] = []
    scheduler = scheduler_with(events.append, bounds=Bounds(max_waiting=1))
    arrivals = [
        Arrival(request_at(0.0, "served"), 10),
        Arrival(request_at(0.1, "expired", expires_at=0.5), 10),
        Arrival(request_at(0.2, "rejected"), 10),
    ]
    simulate(arrivals, scheduler, BatchModel(STEADY))
    assert ["served"] == [e.ticket.id for e in events if isinstance(e, Finished)]
    assert [("expired", "expired")] == [(e.ticket.id, e.reason) for e in events if isinstance(e, Evicted)]
    assert ["rejected"] == [e.request.id for e in events if isinstance(e, Rejected)]


@pytest.mark.parametrize("second", [0.5, nan])
def test_unsorted_arrivals_are_refused(second: float) -> None:
    arrivals = [Arrival(request_at(1.0, "a"), 1), Arrival(request_at(second, "b"), 1)]
    with pytest.raises(ValueError, match="sorted by time"):
        simulate(arrivals, scheduler_with(lambda _: None), BatchModel(STEADY))


def test_a_queue_without_slots_is_said_to_be_stuck() -> None:
    with pytest.raises(StuckError, match="1 requests wait"):
        simulate([Arrival(request_at(0.0, "a"), 1)], scheduler_with(lambda _: None, slots=0), BatchModel(STEADY))


def test_a_coroutine_that_waits_has_no_place_in_virtual_time() -> None:
    class Suspends:
        def __await__(self):  # type: ignore[no-untyped-def]
            yield

    async def waits() -> None:
        await Suspends()

    with pytest.raises(RuntimeError, match="nothing to wait for"):
        run_now(waits())
