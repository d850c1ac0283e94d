"""The recorded order of service, and each policy's definition worked out anew: no record certifies itself.

The witnesses below know requests, true lengths and instants, and nothing of policies, queues or heaps: at every
dispatch they look at all that waits and say who should have been next.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from math import exp, log

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

    def as_rightful(self, request: Request, rightful: Request) -> bool:
        """Whether only a rounding sets `request` apart from who is next in exact arithmetic."""
        return request is rightful


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


class Custom:
    """What is usual, from all that was admitted so far: recomputed from the definitions in `core/usual.py`."""

    def __init__(self) -> None:
        self._num_inflight = 0
        self._busy_seconds = 0.0
        self._seen_at = 0.0
        self._ends: list[tuple[float, int]] = []  # busy seconds at each end, and the tokens that ended
        self._drains: list[float] = []
        self._middle = 0.0  # logarithm
        self._num_lengths = 0

    def admitted(self, tokens: float, waiting_tokens: float) -> None:
        self._num_lengths += 1
        if self._num_lengths == 1:
            self._middle = log(tokens)
        else:
            self._middle += max(0.03, 1 / self._num_lengths) * (0.5 if log(tokens) > self._middle else -0.5)
        if self._ends:
            self._drains.append(waiting_tokens / self.tokens_per_second())

    def dispatched(self, at: float) -> None:
        self._pass_time(at)
        self._num_inflight += 1

    def finished(self, completion_tokens: int, at: float) -> None:
        self._pass_time(at)
        self._num_inflight -= 1
        self._ends.append((self._busy_seconds, completion_tokens))

    @property
    def drain_seconds(self) -> float:
        """Fewer than a thousand were admitted: the plain mean."""
        return sum(self._drains) / len(self._drains) if self._drains else 0.0

    @property
    def middle_tokens(self) -> float:
        """Up by half a step at each longer length, down by half a step at each other."""
        return exp(self._middle)

    def tokens_per_second(self) -> float:
        """Tokens over busy seconds, both weighted by e to the minus age in minutes; 0 before the first end."""
        if not self._ends:
            return 0.0
        tokens = sum(tokens * exp((end - self._busy_seconds) / 60) for end, tokens in self._ends)
        return tokens / (60 * (1 - exp(-self._busy_seconds / 60)))

    def _pass_time(self, at: float) -> None:
        if self._num_inflight:
            self._busy_seconds += at - self._seen_at
        self._seen_at = at


class Placed(Witness):
    """Smallest place first, fixed at admission by what was usual then."""

    def __init__(self, place: Callable[[Request, Custom], float]) -> None:
        super().__init__()
        self._place = place
        self.custom = Custom()
        self.places: dict[str, float] = {}

    def admitted(self, request: Request, at: float) -> None:
        self.places[request.id] = self._place(request, self.custom)
        waiting_tokens = sum(MEAN_TOKENS[other.category] for other in self.waiting)
        self.custom.admitted(MEAN_TOKENS[request.category], waiting_tokens)
        super().admitted(request, at)

    def dispatched(self, request: Request, at: float) -> None:
        self.custom.dispatched(at)
        super().dispatched(request, at)

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:
        self.custom.finished(completion_tokens, at)
        super().finished(request, completion_tokens, at)

    def who_is_next(self, now: float) -> Request:
        return min(self.waiting, key=lambda request: (self.places[request.id], request.arrived_at))


def slack_place(request: Request, custom: Custom) -> float:
    """Arrival plus three times the usual drain time times the share for which such a length gives way."""
    if custom.drain_seconds == 0.0:
        return request.arrived_at
    relative = (MEAN_TOKENS[request.category] / custom.middle_tokens) ** 8
    return request.arrived_at + 3 * custom.drain_seconds * relative / (1 + relative)


def boost_place(request: Request, custom: Custom) -> float:
    """Arrival less ln(1 / (1 - e^-gs)) / g, with g one over the usual drain time."""
    if custom.drain_seconds == 0.0:
        return request.arrived_at
    relative = MEAN_TOKENS[request.category] / custom.tokens_per_second() / custom.drain_seconds
    return request.arrived_at - log(1 / (1 - exp(-relative))) * custom.drain_seconds


class VtcWitness(Shared):
    """Tokens by tenant and weight."""

    def account(self, request: Request) -> str:
        return request.tenant.id

    def price(self, request: Request, completion_tokens: int) -> Fraction:
        share = Fraction(request.tenant.weight) * SHARES[request.tier]
        return (request.prompt_tokens + 2 * Fraction(completion_tokens)) / share

    def as_rightful(self, request: Request, rightful: Request) -> bool:
        """Sums of floating-point charges may tell apart tenants whose exact accounts are level."""
        name = self.account(request)
        level = self.service[name] == self.service[self.least_served()] == self.service[self.account(rightful)]
        own = [other for other in self.waiting if self.account(other) == name]
        return request is rightful or (level and request is min(own, key=self.place))


class FairWitness(VtcWitness):
    """Tokens by tenant and weight; inside a tenant as `slack`."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = Placed(slack_place)

    def place(self, request: Request) -> float:
        return self._inside.places[request.id]

    def admitted(self, request: Request, at: float) -> None:
        self._inside.admitted(request, at)
        super().admitted(request, at)

    def dispatched(self, request: Request, at: float) -> None:
        self._inside.dispatched(request, at)
        super().dispatched(request, at)

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:
        self._inside.finished(request, completion_tokens, at)
        super().finished(request, completion_tokens, at)


class LagWitness(FairWitness):
    """The first in the order of `slack`, unless its tenant is more than 20,000 tokens by weight ahead."""

    def who_is_next(self, now: float) -> Request:
        first = min(self.waiting, key=lambda request: (self.place(request), request.arrived_at))
        least = self.least_served()
        ahead = self.service[self.account(first)] - self.service[least]
        return first if ahead <= Fraction(20_000, SHARES[1]) else super().who_is_next(now)


class CompositeWitness(LagWitness):
    """Best tier first, inside it as `slack`, unless the tier is more than 20,000 tokens ahead of its share."""

    def account(self, request: Request) -> str:
        return str(int(request.tier))

    def price(self, request: Request, completion_tokens: int) -> Fraction:
        return (request.prompt_tokens + 2 * Fraction(completion_tokens)) * (1, 9, 81)[request.tier]

    def place(self, request: Request) -> float:
        return request.tier * 1e9 + super().place(request)

    def who_is_next(self, now: float) -> Request:
        first = min(self.waiting, key=lambda request: (self.place(request), request.arrived_at))
        ahead = self.service[self.account(first)] - self.service[self.least_served()]
        return first if ahead <= 20_000 else FairWitness.who_is_next(self, now)


class EdfWitness(Witness):
    """Those in time before those late, judged at admission; the one that must start soonest first."""

    TARGETS = (30.0, 60.0, 600.0)

    def __init__(self) -> None:
        super().__init__()
        self._custom = Custom()
        self._num_inflight = 0
        self._places: dict[str, tuple[bool, float]] = {}

    def admitted(self, request: Request, at: float) -> None:
        rate = self._custom.tokens_per_second()
        ahead = takes = 0.0
        if rate:
            takes = MEAN_TOKENS[request.category] * max(1, self._num_inflight) / rate
            as_urgent = (other for other in self.waiting if other.tier <= request.tier)
            ahead = sum(MEAN_TOKENS[o.category] for o in as_urgent if not self._places[o.id][0]) / rate
        target = self.TARGETS[request.tier]
        self._places[request.id] = (ahead > (target - takes) / 2, at + target - takes)
        super().admitted(request, at)

    def dispatched(self, request: Request, at: float) -> None:
        self._custom.dispatched(at)
        self._num_inflight += 1
        super().dispatched(request, at)

    def finished(self, request: Request, completion_tokens: int, at: float) -> None:
        self._custom.finished(completion_tokens, at)
        self._num_inflight -= 1

    def who_is_next(self, now: float) -> Request:
        return min(self.waiting, key=lambda request: (*self._places[request.id], request.arrived_at))


WITNESSES: dict[str, Callable[[], Witness]] = {
    "fifo": lambda: Ordered(lambda r, now: (r.arrived_at,)),
    "priority": lambda: Ordered(lambda r, now: (r.tier, r.arrived_at)),
    "sjf": lambda: Ordered(lambda r, now: (r.prompt_tokens + MEAN_TOKENS[r.category], r.arrived_at)),
    "aging": lambda: Ordered(lambda r, now: (r.tier - 0.01 * (now - r.arrived_at),)),
    "weighted": WeightedWitness,
    "slack": lambda: Placed(slack_place),
    "boost": lambda: Placed(boost_place),
    "composite": CompositeWitness,
    "edf": EdfWitness,
    "gittins": lambda: Ordered(lambda r, now: (MEAN_TOKENS[r.category], r.arrived_at)),
    "vtc": VtcWitness,
    "lag": LagWitness,
    "fair": FairWitness,
}


def misplaced(events: Iterable[Event], witness: Witness) -> Iterator[tuple[str, str]]:
    """Everybody who was served when it was somebody else's turn, and whose turn it was."""
    for event in events:
        if isinstance(event, Admitted):
            witness.admitted(event.ticket.request, event.at)
        elif isinstance(event, Dispatched):
            request, rightful = event.ticket.request, witness.who_is_next(event.at)
            if not witness.as_rightful(request, rightful):
                yield request.id, rightful.id
            witness.dispatched(request, event.at)
        elif isinstance(event, Finished):
            witness.finished(event.ticket.request, event.usage.completion_tokens, event.at)


def test_there_is_a_record_and_a_witness_of_every_policy() -> None:
    assert POLICIES.names() == sorted(RECORDED) == sorted(WITNESSES)


@pytest.mark.parametrize("policy", RECORDED)
def test_the_order_of_service_is_the_recorded_one(policy: str) -> None:
    assert golden_path(policy).read_text() == golden_text(policy)


@pytest.mark.parametrize("policy", RECORDED)
def test_the_order_of_service_is_the_one_that_the_definition_demands(policy: str) -> None:
    assert [] == list(misplaced(simulated_events(policy, workload(SEED)), WITNESSES[policy]()))


@pytest.mark.parametrize("policy", RECORDED)
def test_the_definition_also_holds_for_a_pool_that_falls_idle_now_and_then(policy: str) -> None:
    """Tenants come and go, so that accounts are lifted; the test above has them waiting nearly all the time."""
    arrivals = workload(SEED + 1, num_requests=400, requests_per_second=1.8)
    assert [] == list(misplaced(simulated_events(policy, arrivals), WITNESSES[policy]()))


def test_a_witness_tells_one_policy_from_another() -> None:
    events = {policy: simulated_events(policy, workload(SEED)) for policy in RECORDED}
    for policy, witness in WITNESSES.items():
        for other in RECORDED:
            assert (policy == other) == (not any(misplaced(events[other], witness()))), (policy, other)


def test_the_workload_saturates_the_slots() -> None:
    events = simulated_events("fifo", workload(SEED))
    waits = [event.queue_seconds for event in events if isinstance(event, Dispatched)]
    assert sum(wait > 0 for wait in waits) > len(waits) - 3 * SLOTS
    assert len(waits) == len(dispatch_order(events)) == len(workload(SEED))
