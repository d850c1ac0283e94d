"""How far what two waiting tenants are served can be apart: the bounds that docs/policies/vtc.md derives.

Prices are prompt + 2 x completion tokens, by the tenant's weight and tier. P is the greatest price of a request, E
the greatest error of a price that was expected of one, n the number of slots.
"""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.model import Tenant, Ticket, Tier, Usage
from driftsched.policies import create_policy
from driftsched.policies.weighted import TIER_SHARES
from support.scheduling import Foretold, request_at, scheduler_of, step

PROMPT_TOKENS = 10
ROUNDING = 1e-6
"""In weighted tokens: accounts are sums of quotients."""
ENDS = 4
"""Quarters of an answer that make it whole."""

Lengths = list[tuple[int, int]]
"""True and predicted completion tokens; the requests of a tenant have them by turns."""


class Bench:
    """A scheduler stepped by hand, and what the tenants `a`, `b` and `c` were really served."""

    def __init__(self, policy: str, slots: int, **options: object) -> None:
        self.waiting = dict.fromkeys("abc", 0)
        self.inflight: list[Ticket] = []
        self.highest = dict.fromkeys("abc", 0.0)
        """P, by tenant."""
        self.error = 0.0
        """E"""
        self._dispatched = dict.fromkeys("abc", 0.0)  # whole prices, those of requests in flight as they will be
        self._true: dict[str, int] = {}
        self._produced: dict[str, int] = {}
        self._estimator = Foretold()
        self._scheduler = scheduler_of(create_policy(policy, **options), slots=slots, estimator=self._estimator)

    def submit(self, tenant: Tenant, true: int, predicted: int) -> None:
        name = f"{tenant.id}{len(self._true)}"
        self._true[name], self._estimator.tokens[name] = true, predicted
        request = request_at(0.0, name, tenant=tenant, tier=tenant.tier, prompt_tokens=PROMPT_TOKENS)
        step(self._scheduler.submit(request, 0.0))
        self.waiting[tenant.id] += 1

    def dispatch(self) -> str | None:
        """The tenant that is served next; None if nobody waits or no slot is free."""
        ticket = step(self._scheduler.dispatch(0.0))
        if ticket is None:
            return None
        tenant, price = ticket.request.tenant.id, price_of(ticket, self._true[ticket.id])
        expected = price_of(ticket, round(self._estimator.tokens[ticket.id]))
        self.waiting[tenant] -= 1
        self.inflight.append(ticket)
        self._dispatched[tenant] += price
        self.highest[tenant] = max(self.highest[tenant], price)
        self.error = max(self.error, abs(price - expected))
        return tenant

    def generate(self, which: int, quarters: int) -> None:
        """One of those in flight comes so far, or to its end."""
        if not self.inflight:
            return
        ticket = self.inflight[which % len(self.inflight)]
        true = self._true[ticket.id]
        if quarters < ENDS:
            produced = self._produced[ticket.id] = max(self._produced.get(ticket.id, 0), true * quarters // ENDS)
            step(self._scheduler.progress(ticket.id, Usage(PROMPT_TOKENS, produced), 0.0))
        else:
            self.inflight.remove(ticket)
            assert step(self._scheduler.finish(ticket.id, Usage(PROMPT_TOKENS, true), "stop", 0.0))

    def ahead(self) -> float:
        """How much more of `a` than of `b` was dispatched."""
        return self._dispatched["a"] - self._dispatched["b"]

    def ahead_as_generated(self) -> float:
        """How much more of `a` than of `b` was generated, and read of its prompts."""
        generated = dict(self._dispatched)
        for ticket in self.inflight:
            to_come = price_of(ticket, self._true[ticket.id]) - price_of(ticket, self._produced.get(ticket.id, 0))
            generated[ticket.request.tenant.id] -= to_come
        return generated["a"] - generated["b"]


def price_of(ticket: Ticket, completion_tokens: int) -> float:
    tenant = ticket.request.tenant
    return (PROMPT_TOKENS + 2 * completion_tokens) / (tenant.weight * TIER_SHARES[tenant.tier])


TENANTS = st.tuples(
    *(st.builds(Tenant, st.just(n), st.sampled_from(Tier), st.sampled_from([0.5, 1.0, 3.0])) for n in "abc")
)
MISJUDGED = st.tuples(st.integers(0, 500), st.integers(0, 500))
FORESEEN = st.integers(0, 500).map(lambda tokens: (tokens, tokens))
LENGTHS = st.one_of([st.tuples(*[st.lists(pair, min_size=1, max_size=8)] * 3) for pair in (MISJUDGED, FORESEEN)])
GENERATED = st.tuples(st.integers(0, 3), st.sampled_from([1, 3, ENDS, ENDS, ENDS]))
"""Which of those in flight goes on, and how many quarters of its answer it then has."""


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    policy=st.sampled_from(["vtc", "fair", "lag"]),
    slots=st.integers(1, 4),
    tenants=TENANTS,
    lengths=LENGTHS,
    generated=st.lists(GENERATED, min_size=80, max_size=80),
)
def test_two_tenants_that_wait_from_the_start_are_never_apart_by_more_than_the_bound(
    policy: str, slots: int, tenants: Sequence[Tenant], lengths: Sequence[Lengths], generated: Lengths
) -> None:
    """By P + (n - 1) E of what was dispatched, and by n P more of what was generated; `lag` adds its lead."""
    lead, options = (1000.0 / TIER_SHARES[Tier.STANDARD], {"tokens": 1000.0}) if policy == "lag" else (0.0, {})
    bench = Bench(policy, slots, **options)
    for tenant, pairs in zip(tenants[:2], lengths[:2], strict=True):
        for number in range(100):  # more than will be served of both
            bench.submit(tenant, *pairs[number % len(pairs)])
    for which, quarters in generated:
        while bench.dispatch():
            errors = lead + (slots - 1) * bench.error + ROUNDING
            assert -bench.highest["b"] - errors <= bench.ahead() <= bench.highest["a"] + errors
        highest = max(bench.highest.values())
        assert abs(bench.ahead_as_generated()) <= highest + errors + slots * highest
        bench.generate(which, quarters)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    policy=st.sampled_from(["vtc", "fair"]),
    slots=st.integers(1, 4),
    tenants=TENANTS,
    lengths=LENGTHS,
    comings=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=12, max_size=12),
    generated=st.lists(GENERATED, min_size=12, max_size=20),
)
def test_while_two_tenants_both_wait_neither_gains_more_than_the_bound_whoever_comes_and_goes(
    policy: str,
    slots: int,
    tenants: Sequence[Tenant],
    lengths: Sequence[Lengths],
    comings: Lengths,
    generated: Lengths,
) -> None:
    """Between any two instants of a time in which both wait: by the P of each and 3 n E of what was dispatched."""
    bench = Bench(policy, slots)
    seen: list[float] = []  # how much `a` was ahead since both wait
    for who, how_many in comings:
        for number in range(how_many):
            bench.submit(tenants[who], *lengths[who][number % len(lengths[who])])
        for which, quarters in generated:
            seen.append(bench.ahead())
            while bench.dispatch():
                seen.append(bench.ahead())
                bound = bench.highest["a"] + bench.highest["b"] + 3 * slots * bench.error + ROUNDING
                assert max(seen) - min(seen) <= bound
                if not (bench.waiting["a"] and bench.waiting["b"]):
                    seen.clear()
            bench.generate(which, quarters)
