"""Another policy takes over while requests wait: nobody is lost, and all stand where it would have put them."""

import logging
from dataclasses import replace
from math import nan

import pytest

from driftsched.core.events import Dispatched, Event, Evicted, PolicyChanged
from driftsched.core.model import Request, Ticket, Tier, Usage
from driftsched.core.protocols import Policy
from driftsched.core.scheduler import Scheduler
from driftsched.policies import create_policy
from driftsched.policies.fifo import Fifo
from driftsched.queues.memory import MemoryQueue
from support.scheduling import TENANTS, dispatch_order, request_at, scheduler_of, step

CHANGE = PolicyChanged(1.0, "before", "after", "to see what happens")
ACME, BOLT, CYAN, DUNE = TENANTS


def adopt(scheduler: Scheduler, policy: Policy, *, at_once: int = 3) -> None:
    step(scheduler.adopt(policy, CHANGE))
    while step(scheduler.place_anew(at_once)):
        pass


def drain(scheduler: Scheduler, now: float = 2.0) -> list[str]:
    """Serve one after the other; ids in order of service."""
    order = []
    while ticket := step(scheduler.dispatch(now)):
        order.append(ticket.id)
        step(scheduler.finish(ticket.id, Usage(10, 100), "stop", now))
    return order


def submit(scheduler: Scheduler, *requests: Request) -> list[Ticket]:
    return [step(scheduler.submit(request, request.arrived_at)) for request in requests]


def mixed(number: int = 8) -> list[Request]:
    """Of all tenants and kinds, in order of arrival."""
    kinds = ("report", "short_qa", "technical", "summary", "short_qa")
    return [
        request_at(n / 10, f"r{n}", tenant=TENANTS[n % 4], tier=TENANTS[n % 4].tier, category=kinds[n % 5])
        for n in range(number)
    ]


@pytest.mark.parametrize("after", ["sjf", "fifo", "priority", "slack", "gittins", "edf", "boost", "aging"])
@pytest.mark.parametrize("before", ["fifo", "fair", "composite", "lag"])
def test_what_waits_is_served_as_if_the_policy_had_been_in_force_all_along(before: str, after: str) -> None:
    changed, constant = scheduler_of(before), scheduler_of(after)
    submit(changed, *mixed())
    submit(constant, *mixed())
    adopt(changed, create_policy(after))
    assert drain(constant) == drain(changed)


@pytest.mark.parametrize("after", ["fair", "vtc", "weighted", "composite", "lag"])
def test_flows_share_as_if_they_had_just_come(after: str) -> None:
    changed, constant = scheduler_of("fifo"), scheduler_of(after)
    submit(changed, *mixed(16))
    submit(constant, *mixed(16))
    adopt(changed, create_policy(after))
    assert drain(constant) == drain(changed)


def test_until_it_is_placed_anew_a_ticket_waits_where_it_was() -> None:
    scheduler = scheduler_of("fifo")
    submit(scheduler, request_at(0.0, "long", category="report"), request_at(0.1, "short"))
    step(scheduler.adopt(create_policy("sjf"), CHANGE))
    submit(scheduler, request_at(0.2, "new", category="report"))
    ticket = step(scheduler.dispatch(2.0))
    assert ticket is not None
    assert "long" == ticket.id


def test_a_call_places_no_more_than_its_maximum_and_says_whether_any_is_left() -> None:
    scheduler = scheduler_of("fifo")
    submit(scheduler, *mixed(5))
    step(scheduler.adopt(create_policy("sjf"), CHANGE))
    assert [True, True, False, False] == [step(scheduler.place_anew(2)) for _ in range(4)]


def test_who_left_meanwhile_is_not_placed_again() -> None:
    scheduler = scheduler_of("fifo")
    tickets = submit(scheduler, *mixed(4))
    step(scheduler.adopt(create_policy("fair"), CHANGE))
    step(scheduler.cancel(tickets[1], Usage(), 1.0))
    served = step(scheduler.dispatch(1.0))
    while step(scheduler.place_anew(1)):
        pass
    assert (2, 1) == (scheduler.load.num_waiting, scheduler.load.num_inflight)
    assert served is not None
    assert step(scheduler.finish(served.id, Usage(), "stop", 1.5))
    assert {"r2", "r3"} == set(drain(scheduler))


def test_the_change_is_told_once_and_before_anybody_is_placed() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fifo", listeners=[events.append])
    submit(scheduler, *mixed(3))
    adopt(scheduler, create_policy("sjf"))
    assert [CHANGE] == events[3:]


def test_maximum_waits_and_expiry_go_on_as_they_were() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fifo", max_wait_seconds={Tier.BATCH: 5.0}, listeners=[events.append])
    submit(
        scheduler,
        request_at(0.0, "overdue", tier=Tier.BATCH, category="report"),
        request_at(0.1, "expires", expires_at=3.0),
        request_at(0.2, "short"),
    )
    adopt(scheduler, create_policy("priority"))
    assert ["expires"] == [ticket.id for ticket in step(scheduler.expire(3.0))]
    assert ["overdue", "short"] == drain(scheduler, now=6.0)
    assert [True, False] == [e.overdue for e in events if isinstance(e, Dispatched)]
    assert ["expired"] == [e.reason for e in events if isinstance(e, Evicted)]


def test_accounts_go_on_when_only_the_order_inside_a_flow_changes() -> None:
    queue = MemoryQueue(2)
    scheduler = scheduler_of(create_policy("fair", slack=4.0), queue=queue)
    submit(scheduler, *(request_at(0.0, f"r{n}", tenant=tenant) for n, tenant in enumerate([BOLT, CYAN] * 3)))
    for _ in range(2):
        step(scheduler.dispatch(1.0))
    before = [queue.service(0, tenant.id) for tenant in (BOLT, CYAN)]
    adopt(scheduler, create_policy("fair", slack=0.0))
    assert before == [queue.service(0, tenant.id) for tenant in (BOLT, CYAN)]
    step(scheduler.finish("r0", Usage(10, 400), "stop", 2.0))
    assert before[0] < queue.service(0, BOLT.id)


def test_accounts_begin_anew_under_other_prices_and_what_flies_does_not_enter_them() -> None:
    queue = MemoryQueue(2)
    scheduler = scheduler_of("fair", queue=queue)
    premium = replace(BOLT, id="premium")  # as `weighted` calls a flow
    submit(scheduler, *(request_at(0.0, f"r{n}", tenant=premium, tier=Tier.STANDARD) for n in range(4)))
    for _ in range(2):
        step(scheduler.dispatch(1.0))
    assert queue.service(0, "premium") > 0
    adopt(scheduler, create_policy("weighted"))
    assert 0.0 == queue.service(0, "premium")
    step(scheduler.progress("r0", Usage(10, 4000), 2.0))
    step(scheduler.finish("r0", Usage(10, 4000), "stop", 2.0))
    assert 0.0 == queue.service(0, "premium")


def test_what_waits_tells_the_next_request_its_new_band() -> None:
    scheduler = scheduler_of("fifo")
    submit(scheduler, request_at(0.0, "p", tier=Tier.PREMIUM), request_at(0.0, "b", tier=Tier.BATCH))
    adopt(scheduler, create_policy("priority"))
    drain(scheduler)
    assert 0.0 == scheduler.load.waiting_tokens


class Broken(Fifo):
    """A plug-in that cannot rank what a tenant asks, or says nonsense."""

    def __init__(self, answer: float | None) -> None:
        self.answer = answer

    def rank(self, request: Request, *_: object) -> float:
        if request.tenant is not CYAN:
            return -request.arrived_at
        if self.answer is None:
            raise RuntimeError("no rank")
        return self.answer


@pytest.mark.parametrize("answer", [None, nan])
def test_who_cannot_be_placed_keeps_its_place_and_is_served(
    answer: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fifo", listeners=[events.append])
    submit(scheduler, *(request_at(n / 10, f"r{n}", tenant=t) for n, t in enumerate([ACME, BOLT, CYAN, DUNE])))
    with caplog.at_level(logging.ERROR):
        adopt(scheduler, Broken(answer))
    assert ["r3", "r1", "r0", "r2"] == drain(scheduler)
    assert ["r3", "r1", "r0", "r2"] == dispatch_order(events)
    assert 1 == len(caplog.records)


class Priceless(Fifo):
    def charge(self, request: Request, usage: Usage) -> float:
        raise RuntimeError("no price")


def test_a_policy_that_cannot_price_what_flies_is_not_adopted() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fifo", listeners=[events.append])
    submit(scheduler, *mixed(2))
    step(scheduler.dispatch(1.0))
    with pytest.raises(RuntimeError, match="no price"):
        step(scheduler.adopt(Priceless(), CHANGE))
    assert CHANGE not in events
    step(scheduler.finish("r0", Usage(), "stop", 1.0))
    assert ["r1"] == drain(scheduler)
