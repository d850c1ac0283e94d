import gc
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.errors import RejectedError
from driftsched.core.events import Admitted, Dispatched, Event, Evicted, PolicyChanged
from driftsched.core.model import Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.policies import POLICIES, create_policy
from driftsched.telemetry.decisions import Decision, Decisions, document
from support.scheduling import (
    TENANTS,
    Learning,
    request_at,
    scheduler_of,
    simulated_events,
    step,
    workload,
)


class Scene:
    """A scheduler whose decisions are kept, and all that happened."""

    def __init__(self, policy: str = "sjf", *, max_ended: int = 10_000, **options: Any) -> None:
        self.decisions = Decisions(policy, max_ended)
        self.events: list[Event] = []
        self.scheduler: Scheduler = scheduler_of(
            policy, estimator=Learning(), listeners=[self.decisions, self.events.append], **options
        )

    def submit(self, *names: str, at: float = 0.0, category: str = "summary", **fields: Any) -> None:
        for name in names:
            step(self.scheduler.submit(request_at(at, name, category=category, **fields), at))

    def serve_one(self, at: float, tokens: int = 150) -> str:
        ticket = step(self.scheduler.dispatch(at))
        assert ticket is not None
        assert step(self.scheduler.finish(ticket.id, Usage(10, tokens), "stop", at + 1.0))
        return ticket.id

    def told(self, name: str, now: float = 9.0) -> dict[str, Any]:
        record = self.decisions.find(name)
        assert record is not None
        told: dict[str, Any] = json.loads(msgspec.json.encode(document(record, now - record.arrived_at, 1_000.0)))
        return told


def test_a_record_tells_the_story_of_its_request() -> None:
    scene = Scene()
    scene.submit("long", category="report")
    scene.submit("short", at=1.0, category="short_qa")
    assert "short" == scene.serve_one(2.0, tokens=40)
    assert {
        "object": "request.decision",
        "id": "short",
        "tenant": "t",
        "tier": "standard",
        "model": "m",
        "arrived_at": 992.0,
        "status": "finished",
        "reason": "stop",
        "category": "short_qa",
        "prompt_tokens": 10,
        "max_tokens": None,
        "predicted": {"completion_tokens": 40.0, "q50": 40.0, "q80": 40.0, "q90": 40.0},
        "placed": {"policy": "sjf", "band": 0, "flow": "all", "rank": 50.0, "charge": 0.0},
        "found": {
            "position": 2,
            "num_waiting": 1,
            "num_inflight": 0,
            "waiting_tokens": 400.0,
            "tokens_per_second": 0.0,
            "drain_seconds": 0.0,
            "eta_seconds": None,
            "eta_low_seconds": None,
            "eta_high_seconds": None,
        },
        "reranked": 0,
        "placed_last": {
            "policy": "sjf",
            "band": 0,
            "flow": "all",
            "rank": 50.0,
            "charge": 0.0,
            "predicted_tokens": 40.0,
        },
        "overtaken": 0,
        "served": {"because": "smallest_rank", "queue_seconds": 1.0, "overtook": 1},
        "first_token_seconds": None,
        "ended_seconds": 2.0,
        "used": {"completion_tokens": 40, "charge": 0.0},
    } == scene.told("short")


def test_while_it_waits_a_request_is_told_by_how_many_it_was_overtaken_so_far() -> None:
    scene = Scene()
    scene.submit("long", category="report")
    scene.submit("a", "b", category="short_qa")
    scene.serve_one(1.0, tokens=40)
    told = scene.told("long")
    assert ("waiting", 1, None, None) == (told["status"], told["overtaken"], told["served"], told["used"])


def test_a_request_in_flight_is_running() -> None:
    scene = Scene()
    scene.submit("a")
    step(scene.scheduler.dispatch(1.0))
    step(scene.scheduler.progress("a", Usage(10, 1), 3.0))
    told = scene.told("a")
    assert ("running", "only_waiting", 3.0, None) == (
        told["status"],
        told["served"]["because"],
        told["first_token_seconds"],
        told["ended_seconds"],
    )


def test_the_place_of_admission_and_the_last_one_are_both_kept() -> None:
    scene = Scene()
    scene.submit("s1", "s2")
    scene.serve_one(1.0, tokens=600)  # four times as long as was thought
    told = scene.told("s2")
    assert (160.0, 150.0) == (told["placed"]["rank"], told["predicted"]["completion_tokens"])
    assert (1, 610.0, 600.0) == (
        told["reranked"],
        told["placed_last"]["rank"],
        told["placed_last"]["predicted_tokens"],
    )


def test_another_policy_that_takes_over_is_told_with_the_place_it_gave() -> None:
    scene = Scene("sjf")
    scene.submit("a", "b")
    step(scene.scheduler.adopt(create_policy("priority"), PolicyChanged(1.0, "sjf", "priority", "to see")))
    step(scene.scheduler.place_anew(9))
    assert scene.told("b")["placed_last"] is None
    scene.serve_one(2.0)
    scene.serve_one(3.0)
    told = scene.told("b")
    assert ("sjf", 160.0) == (told["placed"]["policy"], told["placed"]["rank"])
    assert ("priority", 1, 0.0) == (
        told["placed_last"]["policy"],
        told["placed_last"]["band"],
        told["placed_last"]["rank"],
    )


def test_the_forecast_at_admission_is_the_one_that_the_client_got() -> None:
    scene = Scene("fifo")
    for number in range(40):
        scene.submit(f"{number}", at=float(number))
        if number % 2:
            scene.serve_one(number + 0.5)
    scene.submit("last", at=40.0)
    eta = scene.scheduler.eta_of("last", 40.0)
    record = scene.decisions.find("last")
    assert isinstance(record, Decision)
    assert eta is not None
    assert record.eta == eta


def test_a_rejected_request_is_told_why() -> None:
    scene = Scene()
    scene.scheduler.close()
    with suppress(RejectedError):
        scene.submit("a", at=2.0)
    told = scene.told("a")
    assert ("rejected", "shutting_down", 0.0) == (told["status"], told["reason"], told["ended_seconds"])


def test_only_the_last_that_ended_are_remembered_and_all_that_are_alive() -> None:
    scene = Scene("fifo", max_ended=2)
    names = [f"{number}" for number in range(6)]
    scene.submit(*names)
    for at in range(4):
        scene.serve_one(float(at))
    assert ["2", "3", "4", "5"] == [name for name in names if scene.decisions.find(name)]
    assert ["4", "5"] == [decision.id for decision in scene.decisions.alive]


def test_a_record_holds_no_text_and_nothing_of_what_the_engine_gets() -> None:
    payload = ["a secret"]
    scene = Scene()
    scene.submit("a", payload=payload)
    assert not [one for one in gc.get_referrers(scene.decisions.find("a")) if one is payload]
    assert "a secret" not in repr(scene.decisions.find("a"))


CHOICES = st.tuples(
    st.sampled_from(["submit", "submit", "submit", "dispatch", "finish", "cancel", "expire"]),
    st.integers(0, 30),
    st.integers(0, 200),
)


def play(scene: Scene, choices: Iterable[tuple[str, int, int]]) -> None:
    """Run the scheduler as the choices say, then serve all that waits."""
    scheduler, now, tickets = scene.scheduler, 0.0, []
    for number, (verb, whom, amount) in enumerate(choices):
        now += amount / 100
        if verb == "submit":
            tenant = TENANTS[whom % len(TENANTS)]
            category = ("short_qa", "summary", "report")[amount % 3]
            request = request_at(
                now, str(number), tenant=tenant, tier=tenant.tier, category=category, expires_at=now + amount / 10
            )
            tickets.append(step(scheduler.submit(request, now)))
        elif verb == "dispatch":
            step(scheduler.dispatch(now))
        elif verb == "expire":
            step(scheduler.expire(now))
        elif tickets and verb == "finish":
            step(scheduler.finish(tickets[whom % len(tickets)].id, Usage(1, amount), "stop", now))
        elif tickets:
            step(scheduler.cancel(tickets[whom % len(tickets)], Usage(), now))
    for ticket in tickets:
        step(scheduler.finish(ticket.id, Usage(1, 1), "stop", now))
    while served := step(scheduler.dispatch(now)):
        step(scheduler.finish(served.id, Usage(1, 1), "stop", now))


def looked_at(events: Iterable[Event]) -> dict[str, tuple[int, int]]:
    """By request, how many it overtook and by how many it was overtaken: every pair is looked at."""
    waiting: list[str] = []  # in order of admission
    overtook: dict[str, int] = {}
    overtaken: dict[str, int] = {}
    for event in events:
        match event:
            case Admitted():
                waiting.append(event.ticket.id)
                overtook[event.ticket.id] = overtaken[event.ticket.id] = 0
            case Dispatched():
                earlier = waiting[: waiting.index(event.ticket.id)]
                overtook[event.ticket.id] = len(earlier)
                for name in earlier:
                    overtaken[name] += 1
                waiting.remove(event.ticket.id)
            case Evicted(dispatched_at=None):
                waiting.remove(event.ticket.id)
            case _:
                pass
    return {name: (overtook[name], overtaken[name]) for name in overtook}


@settings(max_examples=300, derandomize=True, deadline=None)
@given(policy=st.sampled_from(POLICIES.names()), choices=st.lists(CHOICES, max_size=80))
def test_whoever_overtakes_somebody_is_counted_on_both_sides(
    policy: str, choices: list[tuple[str, int, int]]
) -> None:
    scene = Scene(policy, slots=2, max_wait_seconds={Tier.BATCH: 5.0})
    play(scene, choices)
    counted = {}
    for name in looked_at(scene.events):
        record = scene.decisions.find(name)
        assert isinstance(record, Decision)
        counted[name] = (record.overtook, record.overtaken)
    assert looked_at(scene.events) == counted
    assert sum(overtook for overtook, _ in counted.values()) == sum(overtaken for _, overtaken in counted.values())
    assert [] == list(scene.decisions.alive)


@pytest.mark.parametrize(
    ("policy", "whys"),
    [
        ("fifo", {"only_waiting", "smallest_rank"}),
        ("vtc", {"only_waiting", "least_served", "smallest_rank"}),
        ("priority", {"only_waiting", "smallest_rank", "best_band"}),
        ("lag", {"only_waiting", "least_served", "smallest_rank", "lead"}),
    ],
)
def test_a_policy_serves_for_its_own_reasons(policy: str, whys: set[str]) -> None:
    events = simulated_events(policy, workload(1))
    assert whys == {event.why for event in events if isinstance(event, Dispatched)}
