"""Each policy against its definition."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.model import Estimate, Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.policies import create_policy
from driftsched.policies.fair import Fair
from support.scheduling import CategoryMeans, request_at, scheduler_of, step

IDLE = Load(num_waiting=0, num_inflight=0, waiting_tokens=0.0, tokens_per_second=100.0)
BUSY = Load(num_waiting=10, num_inflight=8, waiting_tokens=2000.0, tokens_per_second=100.0)
"""200 tokens each; drains in 20 s."""


def estimate_of(tokens: float) -> Estimate:
    return Estimate(tokens, tokens, tokens, tokens)


class Foretold(CategoryMeans):
    """Expects what it was told, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, float] = {}

    def predict(self, request: Request) -> Estimate:
        return estimate_of(self.tokens[request.id])


def serve(scheduler: Scheduler, num_requests: int = 10**6) -> list[Ticket]:
    """Serve so many, one after the other; each used what its prompt has, and 10 tokens of completion."""
    tickets: list[Ticket] = []
    while len(tickets) < num_requests and (ticket := step(scheduler.dispatch(1e6))):
        tickets.append(ticket)
        assert step(scheduler.finish(ticket.id, Usage(ticket.request.prompt_tokens, 10), "stop", 1e6))
    return tickets


def order_of(policy: str, requests: Sequence[Request]) -> list[str]:
    """Ids in the order of service, when all wait before the first is served."""
    scheduler = scheduler_of(policy)
    for request in requests:
        step(scheduler.submit(request, request.arrived_at))
    return [ticket.id for ticket in serve(scheduler)]


# fifo


def test_fifo_serves_in_order_of_arrival_whoever_asks_and_whatever_for() -> None:
    requests = [
        request_at(0.0, "a", tier=Tier.BATCH, category="report"),
        request_at(1.0, "b", tier=Tier.PREMIUM, category="short_qa"),
        request_at(2.0, "c", tenant=Tenant("other"), category="summary"),
    ]
    assert ["a", "b", "c"] == order_of("fifo", requests)


# priority


def test_priority_serves_a_better_tier_first_however_late_it_comes() -> None:
    requests = [
        request_at(0.0, "batch", tier=Tier.BATCH),
        request_at(1.0, "standard1", tier=Tier.STANDARD),
        request_at(2.0, "standard2", tier=Tier.STANDARD),
        request_at(100_000.0, "premium", tier=Tier.PREMIUM),
    ]
    assert ["premium", "standard1", "standard2", "batch"] == order_of("priority", requests)


# sjf


def test_sjf_serves_the_fewest_predicted_tokens_first_prompt_included() -> None:
    requests = [
        request_at(0.0, "report", category="report", prompt_tokens=10),  # 410
        request_at(1.0, "long prompt", category="short_qa", prompt_tokens=120),  # 160
        request_at(2.0, "summary", category="summary", prompt_tokens=0),  # 150
        request_at(3.0, "short", category="short_qa", prompt_tokens=10),  # 50
    ]
    assert ["short", "summary", "long prompt", "report"] == order_of("sjf", requests)


def test_sjf_serves_requests_of_equal_size_in_order_of_arrival_and_ignores_the_tier() -> None:
    requests = [request_at(float(n), str(n), tier=Tier(2 - n)) for n in range(3)]
    assert ["0", "1", "2"] == order_of("sjf", requests)


# aging


@pytest.mark.parametrize(
    ("better", "worse", "head_start"),
    [(Tier.PREMIUM, Tier.STANDARD, 100), (Tier.STANDARD, Tier.BATCH, 100), (Tier.PREMIUM, Tier.BATCH, 200)],
)
def test_aging_gives_a_tier_a_head_start_of_100_seconds(better: Tier, worse: Tier, head_start: float) -> None:
    waited_less = [request_at(0.0, "worse", tier=worse), request_at(head_start - 1.0, "better", tier=better)]
    waited_more = [request_at(0.0, "worse", tier=worse), request_at(head_start + 1.0, "better", tier=better)]
    assert ["better", "worse"] == order_of("aging", waited_less)
    assert ["worse", "better"] == order_of("aging", waited_more)


def test_aging_orders_by_tier_less_time_waited_whenever_it_is_looked_at() -> None:
    policy = create_policy("aging", tiers_per_second=0.05)
    requests = [request_at(3.7 * n, str(n), tier=Tier(n * 7 % 3)) for n in range(60)]
    by_rank = sorted(requests, key=lambda request: policy.rank(request, estimate_of(1), IDLE))
    for now in (300.0, 3000.0):
        assert by_rank == sorted(requests, key=lambda r: r.tier - 0.05 * (now - r.arrived_at))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_aging_refuses_a_rate_that_does_not_age(rate: float) -> None:
    with pytest.raises(Exception, match="tiers_per_second must be > 0"):
        create_policy("aging", tiers_per_second=rate)


# weighted


def tiers_served(num_requests: int, backlogged: Sequence[Tier] = tuple(Tier)) -> list[Tier]:
    """Tiers in order of service, while each of `backlogged` has requests waiting all the time."""
    scheduler = scheduler_of("weighted")
    for tier in backlogged:
        for n in range(num_requests):
            step(scheduler.submit(request_at(0.0, f"{tier}-{n}", tier=tier), 0.0))
    return [ticket.request.tier for ticket in serve(scheduler, num_requests)]


def test_weighted_serves_50_30_and_20_of_any_100_while_all_tiers_wait() -> None:
    tiers = tiers_served(1000)
    shares = {tuple(Counter(tiers[n : n + 100])[tier] for tier in Tier) for n in range(901)}
    assert {(50, 30, 20)} == shares


def test_weighted_spreads_the_shares_evenly() -> None:
    tiers = tiers_served(1000)
    longest = {
        tier: max(b - a for a, b in pairwise([n for n, other in enumerate(tiers) if other == tier]))
        for tier in Tier
    }
    assert {Tier.PREMIUM: 3, Tier.STANDARD: 4, Tier.BATCH: 6} == longest


def test_weighted_divides_the_share_of_an_absent_tier_among_the_others() -> None:
    tiers = tiers_served(70, backlogged=(Tier.STANDARD, Tier.BATCH))
    assert Counter({Tier.STANDARD: 42, Tier.BATCH: 28}) == Counter(tiers)


def test_weighted_gives_no_credit_for_time_in_which_a_tier_did_not_ask() -> None:
    scheduler = scheduler_of("weighted")
    for n in range(500):
        step(scheduler.submit(request_at(0.0, f"batch{n}", tier=Tier.BATCH), 0.0))
    serve(scheduler, 100)
    for n in range(100):
        step(scheduler.submit(request_at(1.0, f"premium{n}", tier=Tier.PREMIUM), 1.0))
    tiers = [ticket.request.tier for ticket in serve(scheduler, 70)]
    assert Counter({Tier.PREMIUM: 50, Tier.BATCH: 20}) == Counter(tiers)


# fair


def test_fair_charges_a_prompt_token_1_and_a_completion_token_2_by_weight_and_tier() -> None:
    request = request_at(tenant=Tenant("t", Tier.PREMIUM, weight=2.0), tier=Tier.BATCH)
    assert (100 + 2 * 30) / (2.0 * 20) == Fair().charge(request, Usage(100, 30))


def test_fair_serves_the_least_served_tenant() -> None:
    scheduler = scheduler_of("fair", slots=10)
    for n in range(3):
        step(scheduler.submit(request_at(0.0, f"a{n}", tenant=Tenant("a"), category="report"), 0.0))
    for n in range(30):
        step(scheduler.submit(request_at(0.0, f"b{n}", tenant=Tenant("b"), category="short_qa"), 0.0))
    # a report is 10 + 2 * 400 = 810, a short answer 10 + 2 * 40 = 90: one of the former, nine of the latter
    assert ["a0", *(f"b{n}" for n in range(9))] == [t.id for _ in range(10) if (t := step(scheduler.dispatch(0.0)))]


CHARGE = 10 + 2 * 500
"""Greatest price of a request in the two properties below, before it is divided by the tier's share."""


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    slots=st.integers(1, 6),
    lengths=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=80),
    ends=st.lists(st.integers(0, 5), min_size=80, max_size=80),
    foreseen=st.booleans(),
)
def test_fair_keeps_two_backlogged_tenants_within_the_bound_of_the_virtual_token_counter(
    slots: int, lengths: list[tuple[int, int]], ends: list[int], foreseen: bool
) -> None:
    """W(a) - W(b) stays within one request's price if lengths are foreseen, within one per slot if they are not.

    Whoever is dispatched was the least served: by what was expected of the requests in flight. If what they really
    use differs, it differs by a request's price each. Between any two instants both differences may add up, hence
    the factor 2 of the paper's bound.
    """
    estimator = Foretold()
    scheduler = scheduler_of("fair", slots=slots, estimator=estimator)
    actual: dict[str, int] = {}
    # `a` sends what the lists say; `b` as many, twice, so that both wait until `a` has nothing left
    for n, (true_length, predicted) in enumerate(lengths):
        for name, tokens in ((f"a{n}", true_length), (f"b{n}", 500 - true_length), (f"b{n}'", true_length)):
            actual[name] = tokens
            estimator.tokens[name] = tokens if foreseen else predicted
            step(scheduler.submit(request_at(0.0, name, tenant=Tenant(name[0])), 0.0))
    waiting = Counter(name[0] for name in actual)
    work = {"a": 0.0, "b": 0.0}
    inflight: list[Ticket] = []
    bound = CHARGE if foreseen else slots * CHARGE
    for end in ends:
        while ticket := step(scheduler.dispatch(0.0)):
            tenant = ticket.request.tenant.id
            waiting[tenant] -= 1
            inflight.append(ticket)
            work[tenant] += 10 + 2 * actual[ticket.id]
            assert abs(work["a"] - work["b"]) <= bound
            if 0 in waiting.values():
                return
        done = inflight.pop(end % len(inflight))
        assert step(scheduler.finish(done.id, Usage(10, actual[done.id]), "stop", 0.0))


@pytest.mark.parametrize(("heavy", "light"), [(1.0, 1.0), (2.0, 1.0), (3.0, 0.5)])
def test_fair_divides_tokens_by_weight(heavy: float, light: float) -> None:
    scheduler = scheduler_of("fair")
    for n in range(2000):
        step(scheduler.submit(request_at(0.0, f"a{n}", tenant=Tenant("a", weight=heavy)), 0.0))
        step(scheduler.submit(request_at(0.0, f"b{n}", tenant=Tenant("b", weight=light), prompt_tokens=70), 0.0))
    tokens: Counter[str] = Counter()
    for ticket in serve(scheduler, 1000):
        tokens[ticket.request.tenant.id] += ticket.request.prompt_tokens + 2 * 10
    assert pytest.approx(heavy / light, rel=0.02) == tokens["a"] / tokens["b"]


@pytest.mark.parametrize(("flooding", "light"), [("a", "b"), ("b", "a")])
def test_a_flooding_tenant_delays_a_light_one_by_one_request_at_most(flooding: str, light: str) -> None:
    scheduler = scheduler_of("fair")
    for n in range(1000):
        step(scheduler.submit(request_at(0.0, f"flood{n}", tenant=Tenant(flooding), category="report"), 0.0))
    for n in range(20):
        serve(scheduler, 20)
        step(scheduler.submit(request_at(1.0, f"light{n}", tenant=Tenant(light)), 1.0))
        next_two = [ticket.request.tenant.id for ticket in serve(scheduler, 2)]
        assert light in next_two


def test_a_tenant_gains_nothing_by_being_underestimated() -> None:
    estimator = Foretold()
    scheduler = scheduler_of("fair", estimator=estimator)
    for n in range(400):
        for tenant, predicted in (("honest", 100.0), ("sly", 1.0)):
            estimator.tokens[f"{tenant}{n}"] = predicted
            step(scheduler.submit(request_at(0.0, f"{tenant}{n}", tenant=Tenant(tenant)), 0.0))
    tenants: Counter[str] = Counter()
    for _ in range(400):
        ticket = step(scheduler.dispatch(0.0))
        assert ticket is not None
        tenants[ticket.request.tenant.id] += 1
        step(scheduler.finish(ticket.id, Usage(10, 100), "stop", 0.0))
    assert abs(tenants["honest"] - tenants["sly"]) <= 1


@settings(max_examples=50, derandomize=True)
@given(tokens=st.floats(0, 1e6), waiting_tokens=st.floats(0, 1e6), rate=st.floats(0, 1e4))
def test_fair_without_slack_is_order_of_arrival_inside_a_tenant(
    tokens: float, waiting_tokens: float, rate: float
) -> None:
    load = Load(num_waiting=10, num_inflight=8, waiting_tokens=waiting_tokens, tokens_per_second=rate)
    assert 5.0 == Fair(slack=0).rank(request_at(5.0), estimate_of(tokens), load)


@settings(max_examples=100, derandomize=True)
@given(tokens=st.floats(0, 1e6), slack=st.floats(0, 10))
def test_fair_lets_nobody_be_overtaken_by_what_arrives_after_slack_times_the_drain_time(
    tokens: float, slack: float
) -> None:
    rank = Fair(slack=slack).rank(request_at(5.0), estimate_of(tokens), BUSY)
    assert 5.0 <= rank <= 5.0 + slack * BUSY.drain_seconds


def test_fair_lets_short_requests_overtake_long_ones_that_came_shortly_before() -> None:
    fair = Fair(slack=2.0)
    long_one = fair.rank(request_at(0.0), estimate_of(400), BUSY)
    middling = fair.rank(request_at(0.0), estimate_of(100), BUSY)
    short_one = fair.rank(request_at(0.0), estimate_of(0), BUSY)
    assert (40.0, 10.0, 0.0) == (long_one, middling, short_one)


def test_fair_exiles_nobody_because_the_engine_stood_still() -> None:
    stalled = Load(num_waiting=10, num_inflight=8, waiting_tokens=2000.0, tokens_per_second=1e-320)
    assert 5.0 + 2 * 600 == Fair(slack=2).rank(request_at(5.0), estimate_of(400), stalled)


def test_fair_is_order_of_arrival_while_nobody_waits_or_the_speed_is_unknown() -> None:
    unknown = Load(num_waiting=10, num_inflight=8, waiting_tokens=2000.0, tokens_per_second=0.0)
    assert 5.0 == Fair().rank(request_at(5.0), estimate_of(400), IDLE)
    assert 5.0 == Fair().rank(request_at(5.0), estimate_of(400), unknown)


@pytest.mark.parametrize("slack", [-1.0, float("nan"), float("inf")])
def test_fair_refuses_a_slack_that_is_no_multiple(slack: float) -> None:
    with pytest.raises(Exception, match="slack must be a number >= 0"):
        create_policy("fair", slack=slack)
