from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.admission import Backlog, Bounds
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier
from support.scheduling import request_at


def ticket_of(
    name: str,
    *,
    tenant: str = "t",
    payload_bytes: int = 0,
    tokens: float = 0.0,
    band: int = 0,
    tier: Tier = Tier.STANDARD,
) -> Ticket:
    request = request_at(name=name, tenant=Tenant(tenant), tier=tier, payload_bytes=payload_bytes)
    estimate = Estimate(tokens, tokens, tokens, tokens)
    return Ticket(request, estimate, seq=0, band=band, flow="f", rank=0.0, charge=0.0)


def test_an_empty_backlog_takes_a_request() -> None:
    assert Backlog().exceeds(Bounds(), request_at()) is None


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        (Bounds(max_waiting=2), "queue_full"),
        (Bounds(max_waiting=3), None),
        (Bounds(max_waiting_per_tenant=2), "tenant_queue_full"),
        (Bounds(max_waiting_per_tenant=3), None),
        (Bounds(max_waiting_bytes=299), "queue_bytes_full"),
        (Bounds(max_waiting_bytes=300), None),
        (Bounds(max_waiting_tokens=70), "queue_tokens_full"),
        (Bounds(max_waiting_tokens=71), None),
        (Bounds(max_waiting_tokens_per_tenant=70), "tenant_tokens_full"),
        (Bounds(max_waiting_tokens_per_tenant=71), None),
        (Bounds(max_waiting_bytes_per_tenant=299), "tenant_bytes_full"),
        (Bounds(max_waiting_bytes_per_tenant=300), None),
        (Bounds(max_waiting_per_tier={Tier.STANDARD: 2}), "tier_queue_full"),
        (Bounds(max_waiting_per_tier={Tier.STANDARD: 3, Tier.BATCH: 1}), None),
        (Bounds(max_waiting_tokens_per_tier={Tier.STANDARD: 70}), "tier_tokens_full"),
        (Bounds(max_waiting_tokens_per_tier={Tier.STANDARD: 71, Tier.PREMIUM: 1}), None),
        (Bounds(max_waiting_bytes_per_tier={Tier.STANDARD: 299}), "tier_bytes_full"),
        (Bounds(max_waiting_bytes_per_tier={Tier.STANDARD: 300, Tier.PREMIUM: 0}), None),
        (Bounds(max_waiting=2, max_waiting_bytes=0), "queue_full"),
        (Bounds(max_waiting=2, max_waiting_per_tier={Tier.STANDARD: 2}), "tier_queue_full"),
        (
            Bounds(max_waiting=2, max_waiting_per_tenant=2, max_waiting_per_tier={Tier.STANDARD: 2}),
            "tenant_queue_full",
        ),
    ],
)
def test_a_request_beyond_a_bound_is_told_which(bounds: Bounds, reason: str | None) -> None:
    backlog = Backlog()
    backlog.enter(ticket_of("a", payload_bytes=100, tokens=30))
    backlog.enter(ticket_of("b", payload_bytes=100, tokens=40))
    assert reason == backlog.exceeds(bounds, request_at(tenant=Tenant("t"), payload_bytes=100))


def test_a_tenant_that_fills_its_own_bound_keeps_nobody_else_out() -> None:
    backlog, bounds = Backlog(), Bounds(max_waiting_per_tenant=1)
    backlog.enter(ticket_of("a", tenant="flood"))
    assert "tenant_queue_full" == backlog.exceeds(bounds, request_at(tenant=Tenant("flood")))
    assert backlog.exceeds(bounds, request_at(tenant=Tenant("light"))) is None


def test_what_no_emptier_queue_would_take_is_not_worth_another_try() -> None:
    large = request_at(payload_bytes=100)
    assert Bounds().admits(large)
    assert not Bounds(max_waiting_bytes=99).admits(large)
    assert not Bounds(max_waiting_bytes_per_tenant=99).admits(large)
    assert not Bounds(max_waiting_bytes_per_tier={Tier.STANDARD: 99}).admits(large)
    assert Bounds(max_waiting_bytes_per_tier={Tier.BATCH: 99}).admits(large)


SMALL = st.one_of(st.just(10_000), st.integers(1, 6))
PER_TIER = st.dictionaries(st.sampled_from(Tier), st.integers(1, 6))
BOUNDS = st.builds(
    Bounds,
    max_waiting=SMALL,
    max_waiting_per_tenant=SMALL,
    max_waiting_bytes=SMALL,
    max_waiting_tokens=SMALL,
    max_waiting_tokens_per_tenant=SMALL,
    max_waiting_bytes_per_tenant=SMALL,
    max_waiting_per_tier=PER_TIER,
    max_waiting_tokens_per_tier=PER_TIER,
    max_waiting_bytes_per_tier=PER_TIER,
)
NEWCOMERS = st.builds(
    lambda tenant, tier, size, tokens: ticket_of(
        f"{tenant}{tier}", tenant=tenant, tier=tier, payload_bytes=size, tokens=tokens
    ),
    st.sampled_from("ab"),
    st.sampled_from(Tier),
    st.integers(0, 3),
    st.integers(0, 3),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(bounds=BOUNDS, steps=st.lists(st.one_of(NEWCOMERS, st.integers(0, 20)), max_size=40))
def test_bounds_hold_at_every_moment_and_only_those_they_are_of_are_turned_away(
    bounds: Bounds, steps: list[Ticket | int]
) -> None:
    backlog, waiting = Backlog(), list[Ticket]()
    for one in steps:
        if isinstance(one, int):  # somebody leaves
            if waiting:
                backlog.leave(waiting.pop(one % len(waiting)))
            continue
        reason = backlog.exceeds(bounds, one.request)
        assert (reason is None) == all(fits for fits, _ in _checks(bounds, waiting, one.request))
        if reason is None:
            backlog.enter(one)
            waiting.append(one)
        else:
            assert reason in {name for fits, name in _checks(bounds, waiting, one.request) if not fits}
    for ticket in waiting:
        backlog.leave(ticket)
    assert (0, 0.0, 0) == (backlog.num_waiting, backlog.waiting_tokens, backlog.waiting_bytes)
    assert ({}, {}) == (backlog._by_tenant, backlog._by_band_and_tier)


def _checks(bounds: Bounds, waiting: list[Ticket], newcomer: Request) -> Iterator[tuple[bool, str]]:
    """Of every bound, whether it has room for the newcomer, counted anew from all that waits."""
    tenant = [t for t in waiting if t.request.tenant.id == newcomer.tenant.id]
    tier = [t for t in waiting if t.request.tier == newcomer.tier]
    number = bounds.max_waiting_per_tier.get(newcomer.tier, inf)
    size = bounds.max_waiting_bytes_per_tier.get(newcomer.tier, inf)
    tokens = bounds.max_waiting_tokens_per_tier.get(newcomer.tier, inf)
    scopes: list[tuple[str, list[Ticket], float, float, float]] = [
        ("queue", waiting, bounds.max_waiting, bounds.max_waiting_bytes, bounds.max_waiting_tokens),
        (
            "tenant",
            tenant,
            bounds.max_waiting_per_tenant,
            bounds.max_waiting_bytes_per_tenant,
            bounds.max_waiting_tokens_per_tenant,
        ),
        ("tier", tier, number, size, tokens),
    ]
    for name, tickets, number, size, tokens in scopes:
        yield len(tickets) < number, "queue_full" if name == "queue" else f"{name}_queue_full"
        yield sum(t.request.payload_bytes for t in tickets) + newcomer.payload_bytes <= size, f"{name}_bytes_full"
        yield sum(t.estimate.expected_tokens for t in tickets) < tokens, f"{name}_tokens_full"


def test_a_tenants_tokens_are_what_is_predicted_for_it_now_and_nobody_elses() -> None:
    backlog, bounds = Backlog(), Bounds(max_waiting_tokens_per_tenant=50)
    short, long = ticket_of("a", tenant="flood", tokens=10), ticket_of("a", tenant="flood", tokens=60)
    backlog.enter(short)
    backlog.enter(ticket_of("b", tenant="flood", tokens=5))
    flood, light = (request_at(tenant=Tenant(name)) for name in ("flood", "light"))
    assert backlog.exceeds(bounds, flood) is None
    backlog.revise(short, long)
    assert ("tenant_tokens_full", None) == (backlog.exceeds(bounds, flood), backlog.exceeds(bounds, light))
    backlog.leave(long)
    assert (None, 5.0) == (backlog.exceeds(bounds, flood), backlog.waiting_tokens_of(Tenant("flood")))


def test_who_leaves_makes_room() -> None:
    backlog, bounds = Backlog(), Bounds(max_waiting=1, max_waiting_bytes=10)
    ticket = ticket_of("a", payload_bytes=10)
    backlog.enter(ticket)
    backlog.leave(ticket)
    assert backlog.exceeds(bounds, request_at(payload_bytes=10)) is None
    assert (0, 0) == (backlog.num_waiting, backlog.waiting_of(ticket.request.tenant))


def test_an_empty_backlog_holds_no_rounding_error() -> None:
    backlog = Backlog()
    tickets = [ticket_of(str(n), tokens=0.1 * n) for n in range(100)]
    for ticket in tickets:
        backlog.enter(ticket)
    assert pytest.approx(495.0) == backlog.waiting_tokens
    for ticket in reversed(tickets):
        backlog.leave(ticket)
    assert 0.0 == backlog.waiting_tokens


def test_a_rounding_error_never_makes_the_backlog_negative() -> None:
    backlog = Backlog()
    for tokens in (0.2, 0.5, 0.0):
        backlog.enter(ticket_of(str(tokens), tokens=tokens))
    for tokens in (0.2, 0.5):  # in doubles, 0.2 + 0.5 - 0.2 is less than 0.5
        backlog.leave(ticket_of(str(tokens), tokens=tokens))
    assert 0.0 == backlog.waiting_tokens


def test_tenants_are_forgotten_when_they_wait_no_longer() -> None:
    backlog = Backlog()
    for n in range(1000):
        ticket = ticket_of(str(n), tenant=f"tenant-{n}")
        backlog.enter(ticket)
        backlog.leave(ticket)
        backlog.waiting_of(ticket.request.tenant)
    assert not backlog._by_tenant


def test_what_waits_is_also_counted_by_band_and_tier_and_forgotten_when_it_leaves() -> None:
    backlog = Backlog()
    premium = ticket_of("a", tokens=10, tier=Tier.PREMIUM)
    late, later = (ticket_of(name, tokens=0.1, band=1) for name in "bc")
    for ticket in (premium, late, later):
        backlog.enter(ticket)
    backlog.revise(premium, ticket_of("a", tokens=30, tier=Tier.PREMIUM))
    assert {(0, Tier.PREMIUM): 30, (1, Tier.STANDARD): 0.2} == backlog.tokens_by_band_and_tier()
    backlog.leave(late)
    assert {(0, Tier.PREMIUM): 30, (1, Tier.STANDARD): 0.1} == backlog.tokens_by_band_and_tier()
    backlog.leave(later)
    assert {(0, Tier.PREMIUM): 30} == backlog.tokens_by_band_and_tier()
