"""The recorded order of service, and each policy's definition worked out anew: no record certifies itself.

The witnesses below know requests, true lengths and instants, and nothing of policies, queues or heaps: at every
dispatch they look at all that waits and say who should have been next.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import exp

import pytest

from driftsched.core.events import Admitted, Dispatched, Event, Finished
from driftsched.core.model import Request
from driftsched.policies import POLICIES
from golden.regenerate import POLICIES as RECORDED
from golden.regenerate import SEED, golden_path, golden_text
from support.scheduling import MEAN_TOKENS, SLOTS, dispatch_order, simulated_events, workload

SHARES = (50, 30, 20)


class Witness(ABC):
    """Watches requests come and go; `who_is_next` is the policy's definition, over all that waits."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []

    def admitted(self, request: Request, at: float) -> None:
        self.waiting.append(request)

    def dispatched(self, request: Request, at: float) -> None:
        self.waiting.remove(request)

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:  # noqa: B027 - most do not care
        pass

    @abstractmethod
    def who_is_next(self, now: float) -> Request: ...


class Ordered(Witness):
    """Smallest key first, the key being a function of the request and the time."""

    def __init__(self, key: Callable[[Request, float], tuple[float, ...]]) -> None:
        super().__init__()
        self._key = key

    def who_is_next(self, now: float) -> Request:
        return min(self.waiting, key=lambda request: self._key(request, now))


class Shared(Witness):
    """Least served account first, in exact arithmetic; whoever starts to wait again forgoes what it left unused."""

    def __init__(self) -> None:
        super().__init__()
        self.service: dict[str, Fraction] = {}
        self.floor = Fraction(0)

    @abstractmethod
    def account(self, request: Request) -> str: ...

    @abstractmethod
    def price(self, request: Request, completion_tokens: int) -> Fraction: ...

    def place(self, request: Request) -> float:
        """Place among the requests of one account."""
        return request.arrived_at

    def expected_price(self, request: Request) -> Fraction:
        return self.price(request, int(MEAN_TOKENS[request.category]))

    def waiting_accounts(self) -> set[str]:
        return {self.account(request) for request in self.waiting}

    def admitted(self, request: Request, at: float) -> None:
        name = self.account(request)
        if name not in self.waiting_accounts():
            self.floor = max([self.floor, *([self.service[self.least_served()]] if self.waiting else [])])
            self.service[name] = max(self.service.get(name, self.floor), self.floor)
        super().admitted(request, at)

    def dispatched(self, request: Request, at: float) -> None:
        super().dispatched(request, at)
        self.service[self.account(request)] += self.expected_price(request)
        if not self.waiting:
            self.floor = max(self.floor, self.service[self.account(request)])

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:
        self.service[self.account(request)] += self.price(request, completion_tokens) - self.expected_price(request)

    def least_served(self) -> str:
        return min(self.waiting_accounts(), key=lambda name: (self.service[name], name))

    def who_is_next(self, now: float) -> Request:
        name = self.least_served()
        return min((request for request in self.waiting if self.account(request) == name), key=self.place)


class WeightedWitness(Shared):
    """Requests by tier, 50 : 30 : 20."""

    def account(self, request: Request) -> str:
        return str(int(request.tier))

    def price(self, request: Request, completion_tokens: int) -> Fraction:
        return Fraction(1, SHARES[request.tier])


class FairWitness(Shared):
    """Tokens by tenant and weight; inside a tenant, arrival plus twice the drain time times the relative length."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, float] = {}
        self._num_inflight = 0
        self._busy_seconds = 0.0
        self._seen_at = 0.0
        self._ends: list[tuple[float, int]] = []  # busy seconds at each end, and the tokens that ended

    def account(self, request: Request) -> str:
        return request.tenant.id

    def price(self, request: Request, completion_tokens: int) -> Fraction:
        share = Fraction(request.tenant.weight) * SHARES[request.tier]
        return (request.prompt_tokens + 2 * Fraction(completion_tokens)) / share

    def place(self, request: Request) -> float:
        return self._places[request.id]

    def admitted(self, request: Request, at: float) -> None:
        self._places[request.id] = at
        if self.waiting and self._ends:
            waiting_tokens = sum(MEAN_TOKENS[other.category] for other in self.waiting)
            drain_seconds = waiting_tokens / self._tokens_per_second()
            twice_the_mean = 2 * waiting_tokens / len(self.waiting)
            length = min(1.0, MEAN_TOKENS[request.category] / twice_the_mean)
            self._places[request.id] += 2 * drain_seconds * length
        super().admitted(request, at)

    def dispatched(self, request: Request, at: float) -> None:
        self._pass_time(at)
        self._num_inflight += 1
        super().dispatched(request, at)

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:
        self._pass_time(at)
        self._num_inflight -= 1
        self._ends.append((self._busy_seconds, completion_tokens))
        super().finished(request, completion_tokens, at)

    def _pass_time(self, at: float) -> None:
        if self._num_inflight:
            self._busy_seconds += at - self._seen_at
        self._seen_at = at

    def _tokens_per_second(self) -> float:
        """Tokens over busy seconds, both weighted by e to the minus age in minutes."""
        tokens = sum(tokens * exp((end - self._busy_seconds) / 60) for end, tokens in self._ends)
        return tokens / (60 * (1 - exp(-self._busy_seconds / 60)))


WITNESSES: dict[str, Callable[[], Witness]] = {
    "fifo": lambda: Ordered(lambda r, now: (r.arrived_at,)),
    "priority": lambda: Ordered(lambda r, now: (r.tier, r.arrived_at)),
    "sjf": lambda: Ordered(lambda r, now: (r.prompt_tokens + MEAN_TOKENS[r.category], r.arrived_at)),
    "aging": lambda: Ordered(lambda r, now: (r.tier - 0.01 * (now - r.arrived_at),)),
    "weighted": WeightedWitness,
    "fair": FairWitness,
}


def misplaced(events: Iterable[Event], witness: Witness) -> list[tuple[str, str]]:
    """Everybody who was served when it was somebody else's turn, and whose turn it was."""
    wrong = []
    for event in events:
        if isinstance(event, Admitted):
            witness.admitted(event.ticket.request, event.at)
        elif isinstance(event, Dispatched):
            request, rightful = event.ticket.request, witness.who_is_next(event.at)
            if request is not rightful:
                wrong.append((request.id, rightful.id))
            witness.dispatched(request, event.at)
        elif isinstance(event, Finished):
            witness.finished(event.ticket.request, event.usage.completion_tokens, event.at)
    return wrong


def test_there_is_a_record_and_a_witness_of_every_policy() -> None:
    assert POLICIES.names() == sorted(RECORDED) == sorted(WITNESSES)


@pytest.mark.parametrize("policy", RECORDED)
def test_the_order_of_service_is_the_recorded_one(policy: str) -> None:
    assert golden_path(policy).read_text() == golden_text(policy)


@pytest.mark.parametrize("policy", RECORDED)
def test_the_order_of_service_is_the_one_that_the_definition_demands(policy: str) -> None:
    assert [] == misplaced(simulated_events(policy, workload(SEED)), WITNESSES[policy]())


@pytest.mark.parametrize("policy", RECORDED)
def test_the_definition_also_holds_for_a_pool_that_falls_idle_now_and_then(policy: str) -> None:
    """Tenants come and go, so that accounts are lifted; the test above has them waiting nearly all the time."""
    arrivals = workload(SEED + 1, num_requests=400, requests_per_second=1.8)
    assert [] == misplaced(simulated_events(policy, arrivals), WITNESSES[policy]())


def test_a_witness_tells_one_policy_from_another() -> None:
    events = {policy: simulated_events(policy, workload(SEED)) for policy in RECORDED}
    for policy, witness in WITNESSES.items():
        for other in RECORDED:
            assert (policy == other) == (not misplaced(events[other], witness())), (policy, other)


def test_the_workload_saturates_the_slots() -> None:
    events = simulated_events("fifo", workload(SEED))
    waits = [event.queue_seconds for event in events if isinstance(event, Dispatched)]
    assert sum(wait > 0 for wait in waits) > len(waits) - 3 * SLOTS
    assert len(waits) == len(dispatch_order(events)) == len(workload(SEED))
