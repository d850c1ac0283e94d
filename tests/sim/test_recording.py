from math import inf, isnan, nan
from random import Random

import pytest

from driftsched.core.admission import Bounds
from driftsched.core.events import Admitted, Dispatched, Event, Evicted, Failed, Finished, Recalibrated, Rejected
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware
from driftsched.estimators import create_estimator
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival, simulate
from driftsched.sim.recording import MAX_BIAS_POINTS, MAX_DEPTH_POINTS, Recorder, runtime_class
from driftsched.sim.statistics import unaccounted
from support.recordings import Served, recording_of


def recorder(phases: list[str] | None = None) -> Recorder:
    return Recorder(
        policy="fifo", estimator="static", engine_mode="continuous", variant="plain", seed=3, slots=2, phases=phases
    )


def request(name: str, at: float, **more: object) -> Request:
    given: dict[str, object] = {"tenant": Tenant("acme", weight=2.0), "tier": Tier.PREMIUM, "model": "m"}
    return Request(id=name, arrived_at=at, **{**given, **more})  # type: ignore[arg-type]


def ticket(name: str, at: float, predicted: float = 50.0, prompt_tokens: int = 10) -> Ticket:
    asked = request(name, at, prompt_tokens=prompt_tokens, category="summary")
    return Ticket(asked, Estimate(predicted, predicted, predicted, predicted), 0, 0, "f", 0.0, 1.0)


def finished(held: Ticket, dispatched_at: float, at: float, completion_tokens: int = 40) -> Finished:
    usage = Usage(12, completion_tokens)
    return Finished(at, held, usage, "stop", dispatched_at, first_token_at=dispatched_at + 0.5, charge=7.0)


def test_a_finished_request_fills_every_column() -> None:
    hear = recorder(["warm-up"])
    held = ticket("a", 1.0)
    for event in (Admitted(1.0, held, 1), Dispatched(2.0, held, why="smallest_rank"), finished(held, 2.0, 5.0)):
        hear(event)
    run = hear.recording()
    assert ("fifo", "static", "continuous", "plain", 3, 2) == (
        run.policy,
        run.estimator,
        run.engine_mode,
        run.variant,
        run.seed,
        run.slots,
    )
    assert 1 == len(run)
    assert (1.0, 2.0, 2.5, 5.0) == (
        run.arrived_at[0],
        run.dispatched_at[0],
        run.first_token_at[0],
        run.finished_at[0],
    )
    assert ("acme", 2.0, "premium", "summary", "short", "warm-up") == (
        run.tenant[0],
        run.tenant_weight[0],
        run.tier[0],
        run.category[0],
        run.runtime_class[0],
        run.phase[0],
    )
    assert (12, 40, 50.0) == (run.prompt_tokens[0], run.completion_tokens[0], run.predicted_tokens[0])
    assert ("finished", "stop", 7.0) == (run.outcome[0], run.finish_reason[0], run.charge[0])
    assert 4.0 == run.makespan_seconds
    assert 3.0 == run.busy_slot_seconds


def test_requests_keep_the_order_of_arrival_whatever_the_order_in_which_they_end() -> None:
    hear = recorder()
    first, second = ticket("a", 1.0), ticket("b", 2.0)
    for event in (Admitted(1.0, first, 1), Admitted(2.0, second, 2)):
        hear(event)
    hear(Rejected(3.0, request("c", 3.0), "queue_full", 1.0))
    for held, at in ((second, 4.0), (first, 6.0)):
        hear(Dispatched(at, held, why="smallest_rank"))
        hear(finished(held, at, at + 1))
    run = hear.recording()
    assert [1.0, 2.0, 3.0] == list(run.arrived_at)
    assert [7.0, 5.0] == list(run.finished_at)[:2]
    assert ["finished", "finished", "rejected"] == run.outcome
    assert "queue_full" == run.finish_reason[2]
    assert isnan(run.finished_at[2])
    assert isnan(run.predicted_tokens[2])
    assert ["steady"] * 3 == run.phase


def test_evicted_and_failed_requests_keep_what_they_used_and_when_they_left() -> None:
    hear = recorder()
    waiting, served, broken = ticket("a", 1.0), ticket("b", 1.0), ticket("c", 1.0)
    for held in (waiting, served, broken):
        hear(Admitted(1.0, held, 1))
    for held in (served, broken):
        hear(Dispatched(2.0, held, why="smallest_rank"))
    hear(Evicted(3.0, waiting, "expired", Usage(), None, 0.0))
    hear(Evicted(4.0, served, "cancelled", Usage(10, 6), 2.0, 5.0))
    hear(Failed(5.0, broken, "broke_off", Usage(10, 9), 2.0, 6.0))
    run = hear.recording()
    assert ["evicted", "evicted", "failed"] == run.outcome
    assert ["expired", "cancelled", "broke_off"] == run.finish_reason
    assert [3.0, 4.0, 5.0] == list(run.finished_at)
    assert [0, 6, 9] == list(run.completion_tokens)
    assert [10, 10, 10] == list(run.prompt_tokens)
    assert [0.0, 5.0, 6.0] == list(run.charge)
    assert 5.0 == run.busy_slot_seconds
    assert (3.0, 0) == run.queue_depth[-1]


def test_a_second_end_of_a_request_is_counted_and_changes_nothing() -> None:
    hear = recorder()
    held = ticket("a", 1.0)
    for event in (Admitted(1.0, held, 1), Dispatched(1.0, held, why="smallest_rank"), finished(held, 1.0, 2.0)):
        hear(event)
    hear(finished(held, 1.0, 9.0))
    run = hear.recording()
    assert 2.0 == run.finished_at[0]
    assert 1 == run.stray_events
    assert "1 ends were told" in (unaccounted(run) or "")


def test_depth_is_what_an_instant_leaves_behind() -> None:
    hear = recorder()
    held = [ticket(str(number), 1.0) for number in range(3)]
    for number, each in enumerate(held):
        hear(Admitted(1.0, each, number + 1))
    hear(Dispatched(1.0, held[0], why="smallest_rank"))
    hear(Dispatched(2.0, held[1], why="smallest_rank"))
    hear(Dispatched(2.0, held[2], why="smallest_rank"))
    run = hear.recording()
    assert [(1.0, 2), (2.0, 0)] == run.queue_depth
    assert 3 == run.max_queue_depth


def test_samples_of_a_long_run_are_bounded_and_spread_over_all_of_it() -> None:
    hear = recorder()
    num_requests = 20_000
    for number in range(num_requests):
        held = ticket(str(number), float(number))
        hear(Admitted(float(number), held, 1))
        hear(Dispatched(number + 0.5, held, why="smallest_rank"))
        hear(finished(held, number + 0.5, number + 0.75))
        hear(Recalibrated(number + 0.75, "m", "summary", 1.0, 1.0 + number))
    run = hear.recording()
    assert MAX_DEPTH_POINTS / 4 < len(run.queue_depth) <= MAX_DEPTH_POINTS
    assert MAX_BIAS_POINTS / 4 < len(run.bias) <= MAX_BIAS_POINTS
    for instants in ([at for at, _ in run.queue_depth], [at for at, _, _ in run.bias]):
        assert sorted(instants) == instants
        for quarter in range(4):
            inside = sum(quarter <= 4 * at / num_requests < quarter + 1 for at in instants)
            assert inside == pytest.approx(len(instants) / 4, rel=0.05)


def test_bias_names_the_model_only_where_there_are_several() -> None:
    hear = recorder()
    hear(Recalibrated(1.0, "m", "summary", 1.0, 1.1))
    assert [(1.0, "summary", 1.1)] == hear.recording().bias
    hear(Recalibrated(2.0, "n", "summary", 1.0, 1.2))
    assert [(1.0, "m/summary", 1.1), (2.0, "n/summary", 1.2)] == hear.recording().bias


def test_phases_must_name_every_request_submitted() -> None:
    hear = recorder(["a", "b"])
    hear(Admitted(1.0, ticket("a", 1.0), 1))
    with pytest.raises(ValueError, match="phases name 2 requests, but 1 were submitted"):
        hear.recording()


@pytest.mark.parametrize(
    ("tokens", "name"), [(1, "short"), (128, "short"), (129, "medium"), (512, "medium"), (512.5, "long")]
)
def test_classes_are_those_of_the_paper(tokens: float, name: str) -> None:
    assert name == runtime_class(tokens)


def test_a_run_nobody_came_to_has_no_makespan() -> None:
    assert 0.0 == recording_of([]).makespan_seconds
    assert 0.0 == recording_of([Served(1.0, outcome="rejected")]).makespan_seconds


class _Described:
    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        pass


def test_a_simulated_run_is_recorded_as_its_events_tell() -> None:
    draw = Random(5)
    events: list[Event] = []
    hear = recorder()
    scheduler = Scheduler(
        policy=create_policy("fair"),
        estimator=create_estimator("calibrated"),
        describer=_Described(),
        queue=MemoryQueue(4),
        bounds=Bounds(max_waiting=20),
        listeners=[events.append, hear],
    )
    at = 0.0
    arrivals = []
    for number in range(300):
        at += draw.expovariate(4.0)
        asked = request(
            f"r{number}",
            at,
            tenant=Tenant(draw.choice("abc")),
            prompt_tokens=20,
            category="summary",
            expires_at=at + 4 if draw.random() < 0.3 else inf,
        )
        arrivals.append(Arrival(asked, draw.randint(5, 300), draw.choice(["stop", "length"])))
    simulate(arrivals, scheduler, BatchModel(get_hardware("l4-qwen1.5-1.8b"), max_num_seqs=4))
    run = hear.recording()

    assert [arrival.request.arrived_at for arrival in arrivals] == list(run.arrived_at)
    assert unaccounted(run, submitted=300) is None
    assert {"finished", "rejected", "evicted"} == set(run.outcome)
    ends = {e.ticket.id: e for e in events if isinstance(e, Finished)}
    for place, arrival in enumerate(arrivals):
        end = ends.get(arrival.request.id)
        assert (run.outcome[place] == "finished") == (end is not None)
        if end:
            assert (end.dispatched_at, end.first_token_at or nan, end.at, end.charge) == (
                run.dispatched_at[place],
                run.first_token_at[place],
                run.finished_at[place],
                run.charge[place],
            )
            assert arrival.completion_tokens == run.completion_tokens[place]
    assert 20 == run.max_queue_depth
    assert 0 == run.queue_depth[-1][1]
