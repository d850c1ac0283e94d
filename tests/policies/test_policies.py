"""Each policy against its definition."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.errors import ConfigError
from driftsched.core.events import Finished
from driftsched.core.model import Estimate, Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.protocols import Policy
from driftsched.core.scheduler import Scheduler
from driftsched.policies import create_policy
from driftsched.policies.boost import Boost
from driftsched.policies.composite import Composite
from driftsched.policies.edf import Edf
from driftsched.policies.fair import Fair
from driftsched.policies.lag import Lag
from driftsched.policies.slack import Slack
from driftsched.policies.vtc import Vtc
from support.scheduling import Foretold, request_at, scheduler_of, simulated_events, step, workload

IDLE = Load(num_waiting=0, num_inflight=0, waiting_tokens=0.0, tokens_per_second=100.0)
BUSY = Load(
    num_waiting=10,
    num_inflight=8,
    waiting_tokens=2000.0,
    tokens_per_second=100.0,
    long_tokens=400.0,
    middle_tokens=150.0,
    usual_drain_seconds=20.0,
)
"""200 tokens each; drains in 20 s, as usual."""


def estimate_of(tokens: float) -> Estimate:
    return Estimate(tokens, tokens, tokens, tokens)


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


@pytest.mark.parametrize("policy", ["vtc", "fair"])
def test_shares_of_a_long_backlog_are_within_3_percent_of_tiers_and_weights(policy: str) -> None:
    """Three tiers, and a tenant of twice the weight beside one of its tier, predicted without regard to length."""
    tenants = [Tenant("p", Tier.PREMIUM), Tenant("s", Tier.STANDARD), Tenant("b", Tier.BATCH)]
    tenants.append(Tenant("s2", Tier.STANDARD, weight=2.0))
    shares = {"p": 50, "s": 30, "b": 20, "s2": 60}
    scheduler = scheduler_of(policy, slots=4)
    lengths = random.Random(7)
    for n in range(1500):
        for tenant in tenants:
            step(scheduler.submit(request_at(0.0, f"{tenant.id}-{n}", tenant=tenant, tier=tenant.tier), 0.0))
    tokens: Counter[str] = Counter()
    inflight: list[Ticket] = []
    for _ in range(2000):
        while ticket := step(scheduler.dispatch(0.0)):
            inflight.append(ticket)
        done = inflight.pop(lengths.randrange(len(inflight)))
        usage = Usage(10, lengths.randint(1, 400))
        tokens[done.request.tenant.id] += usage.prompt_tokens + 2 * usage.completion_tokens
        assert step(scheduler.finish(done.id, usage, "stop", 0.0))
    for name, share in shares.items():
        assert pytest.approx(share / 160, rel=0.03) == tokens[name] / tokens.total()


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


@pytest.mark.parametrize("slack", [-1.0, float("nan"), float("inf")])
def test_fair_refuses_a_slack_that_is_no_multiple(slack: float) -> None:
    with pytest.raises(Exception, match="slack must be a number >= 0"):
        create_policy("fair", slack=slack)


@settings(max_examples=50, derandomize=True)
@given(tokens=st.floats(0, 1e6), slack=st.floats(0, 10))
def test_fair_is_vtc_between_tenants_and_slack_inside_each(tokens: float, slack: float) -> None:
    fair, request = Fair(slack), request_at(5.0, tenant=Tenant("x", weight=3.0))
    assert Vtc().flow(request) == fair.flow(request)
    assert Vtc().charge(request, Usage(7, 9)) == fair.charge(request, Usage(7, 9))
    assert Slack(slack).rank(request, estimate_of(tokens), BUSY) == fair.rank(request, estimate_of(tokens), BUSY)


# vtc


def test_vtc_serves_the_requests_of_a_tenant_in_order_of_arrival_whatever_their_length() -> None:
    requests = [request_at(float(n), str(n), category=c) for n, c in enumerate(("report", "short_qa", "summary"))]
    assert ["0", "1", "2"] == order_of("vtc", requests)


def test_vtc_and_fair_charge_a_long_answer_as_it_grows() -> None:
    for policy in ("vtc", "fair"):
        scheduler = scheduler_of(policy, slots=2)
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")):
            step(scheduler.submit(request_at(0.0, name, tenant=Tenant(tenant)), 0.0))
        first = [step(scheduler.dispatch(0.0)) for _ in range(2)]
        assert ["a1", "b1"] == [ticket.id for ticket in first if ticket]
        step(scheduler.progress("a1", Usage(10, 400), 1.0))  # ten times what was expected, and it goes on
        assert step(scheduler.finish("b1", Usage(10, 40), "stop", 2.0))
        after = step(scheduler.dispatch(2.0))
        assert after is not None
        assert "b2" == after.id


# slack


@settings(max_examples=50, derandomize=True)
@given(tokens=st.floats(0, 1e6), drain=st.floats(0, 600))
def test_slack_without_slack_is_order_of_arrival(tokens: float, drain: float) -> None:
    load = replace(BUSY, usual_drain_seconds=drain)
    assert 5.0 == Slack(beta=0).rank(request_at(5.0), estimate_of(tokens), load)


@settings(max_examples=100, derandomize=True)
@given(tokens=st.floats(0, 1e6), beta=st.floats(0, 10))
def test_slack_lets_nobody_be_overtaken_by_what_arrives_after_beta_times_the_usual_drain_time(
    tokens: float, beta: float
) -> None:
    rank = Slack(beta).rank(request_at(5.0), estimate_of(tokens), BUSY)
    assert 5.0 <= rank <= 5.0 + beta * BUSY.usual_drain_seconds


def test_slack_lets_the_shorter_half_overtake_the_longer_half_that_came_shortly_before() -> None:
    slack = Slack(beta=2.0)
    ranks = [slack.rank(request_at(0.0), estimate_of(tokens), BUSY) for tokens in (0, 75, 150, 300, 4000)]
    assert pytest.approx([0.0, 40 / 257, 20.0, 40 * 256 / 257, 40.0], abs=1e-9) == ranks  # 2 to the 8th is 256


@settings(max_examples=100, derandomize=True)
@given(shorter=st.floats(0, 1e6), longer=st.floats(0, 1e6), middle=st.floats(0, 1e7))
def test_slack_never_lets_the_longer_of_two_overtake(shorter: float, longer: float, middle: float) -> None:
    shorter, longer = sorted((shorter, longer))
    load = replace(BUSY, middle_tokens=middle)
    slack, request = Slack(), request_at(5.0)
    assert slack.rank(request, estimate_of(shorter), load) <= slack.rank(request, estimate_of(longer), load)


def test_slack_hardly_tells_apart_lengths_that_hardly_differ() -> None:
    ranks = [Slack().rank(request_at(0.0), estimate_of(tokens), BUSY) for tokens in (148, 152)]
    assert ranks[1] - ranks[0] < 0.06 * 3 * BUSY.usual_drain_seconds


def test_slack_is_order_of_arrival_until_lengths_and_speed_are_known() -> None:
    for load in (replace(BUSY, usual_drain_seconds=0.0), IDLE):
        assert 5.0 == Slack().rank(request_at(5.0), estimate_of(400), load)


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_slack_refuses_a_beta_that_is_no_multiple(beta: float) -> None:
    with pytest.raises(Exception, match="beta must be a number >= 0"):
        create_policy("slack", beta=beta)


# boost


def test_boost_takes_a_short_request_for_one_that_came_earlier() -> None:
    # gamma is 1 / 20 s; 400 tokens are 4 s of work, 100 tokens 1 s
    ranks = [Boost().rank(request_at(100.0), estimate_of(tokens), BUSY) for tokens in (100, 400)]
    assert pytest.approx([100 - 20 * log(1 / (1 - exp(-1 / 20))), 100 - 20 * log(1 / (1 - exp(-4 / 20)))]) == ranks


def test_boost_tilted_to_the_median_boosts_as_under_a_longer_backlog() -> None:
    tilted = Boost(tilt=0.5).rank(request_at(100.0), estimate_of(100), BUSY)
    assert Boost().rank(request_at(100.0), estimate_of(100), replace(BUSY, usual_drain_seconds=40.0)) == tilted


@settings(max_examples=100, derandomize=True)
@given(tokens=st.floats(0, 1e6), longer=st.floats(0, 1e6), tilt=st.floats(0.1, 10))
def test_boost_never_boosts_the_longer_of_two_more(tokens: float, longer: float, tilt: float) -> None:
    boost = Boost(tilt)
    ranks = [boost.rank(request_at(5.0), estimate_of(length), BUSY) for length in (tokens, tokens + longer)]
    assert ranks[0] <= ranks[1] <= 5.0


def test_boost_is_order_of_arrival_until_the_speed_and_the_backlog_are_known() -> None:
    for load in (replace(BUSY, usual_drain_seconds=0.0), replace(BUSY, tokens_per_second=0.0)):
        assert 5.0 == Boost().rank(request_at(5.0), estimate_of(400), load)


@pytest.mark.parametrize("tilt", [0.0, -1.0, float("nan"), float("inf")])
def test_boost_refuses_a_tilt_that_is_no_factor(tilt: float) -> None:
    with pytest.raises(Exception, match="tilt must be a number > 0"):
        create_policy("boost", tilt=tilt)


# gittins


def spread_estimate(*lengths: float) -> Estimate:
    mean = sum(lengths) / len(lengths)
    return Estimate(mean, lengths[0], lengths[-1], lengths[-1], mean_tokens=mean, lengths=lengths)


def test_gittins_tries_what_may_end_at_once_before_what_takes_a_while_for_sure() -> None:
    # the first is longer on average; given up at 10 it costs 20 for each answer that ends
    policy = create_policy("gittins")
    may_end = policy.rank(request_at(), spread_estimate(10, 10, 500, 500), BUSY)
    surely = policy.rank(request_at(), spread_estimate(100, 100, 100, 100), BUSY)
    assert (20.0, 100.0) == (may_end, surely)


@settings(max_examples=200, derandomize=True)
@given(lengths=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_gittins_is_the_best_ratio_of_endings_to_tokens(lengths: list[float]) -> None:
    estimate = spread_estimate(*sorted(lengths))
    ratios = [
        sum(min(length, given_up) for length in lengths) / sum(length <= given_up for length in lengths)
        for given_up in lengths
    ]
    assert pytest.approx(min(ratios)) == create_policy("gittins").rank(request_at(), estimate, BUSY)


def test_gittins_by_risk_serves_the_surer_of_two_with_the_same_mean_first() -> None:
    policy = create_policy("gittins", index="risk", b=0.5)
    sure, doubtful = spread_estimate(*[100.0] * 20), spread_estimate(*[50.0] * 18, 500.0, 600.0)
    ranks = [policy.rank(request_at(), estimate, BUSY) for estimate in (sure, doubtful)]
    assert [100 + 0.5 * 100, 100 + 0.5 * 550] == ranks


def test_gittins_goes_by_the_point_where_no_distribution_is_predicted() -> None:
    for index in ("gittins", "risk"):
        policy = create_policy("gittins", index=index, b=0.0)
        assert 70.0 == policy.rank(request_at(), estimate_of(70), BUSY)


@pytest.mark.parametrize(("option", "value"), [("index", "whittle"), ("b", -1.0), ("b", float("nan"))])
def test_gittins_refuses_what_is_out_of_range(option: str, value: object) -> None:
    with pytest.raises(Exception, match=f"{option} must be"):
        create_policy("gittins", **{option: value})


# lag


def test_lag_lets_short_requests_of_any_tenant_pass_until_another_lags_by_the_tokens() -> None:
    scheduler = scheduler_of(Lag(tokens=100.0), slots=10)
    for n in range(6):
        step(scheduler.submit(request_at(0.0, f"a{n}", tenant=Tenant("a")), 0.0))
    step(scheduler.submit(request_at(1.0, "b", tenant=Tenant("b")), 0.0))
    # each is 10 + 2 * 40 = 90 tokens: `a` may be served once more while it is ahead by 90, not while by 180
    assert ["a0", "a1", "b", "a2"] == [t.id for _ in range(4) if (t := step(scheduler.dispatch(0.0)))]


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf")])
def test_lag_refuses_a_number_of_tokens_that_is_no_bound(tokens: float) -> None:
    with pytest.raises(Exception, match="tokens must be a number > 0"):
        create_policy("lag", tokens=tokens)


# edf


TARGETS = {Tier.PREMIUM: 30.0, Tier.STANDARD: 60.0, Tier.BATCH: 600.0}


def num_in_time(policy: str | Policy, requests_per_second: float, num_requests: int = 600) -> int:
    """Those answered within their tier's target."""
    arrivals = workload(5, num_requests=num_requests, requests_per_second=requests_per_second)
    events = simulated_events(policy, arrivals)
    finished = [event for event in events if isinstance(event, Finished)]
    assert num_requests == len(finished)
    requests = ((event.at, event.ticket.request) for event in finished)
    return sum(at - request.arrived_at <= TARGETS[request.tier] for at, request in requests)


def test_edf_serves_first_who_must_start_soonest() -> None:
    requests = [
        request_at(0.0, "batch", tier=Tier.BATCH),
        request_at(1.0, "standard", tier=Tier.STANDARD),
        request_at(2.0, "premium", tier=Tier.PREMIUM),
        request_at(33.0, "late premium", tier=Tier.PREMIUM),
    ]
    assert ["premium", "standard", "late premium", "batch"] == order_of("edf", requests)


def test_edf_starts_a_long_answer_sooner_by_what_it_takes_in_four_cases_of_five() -> None:
    # 100 tokens/s over 8 answers: a token takes 0.08 s
    edf, lengths = Edf(), spread_estimate(100, 100, 100, 200, 1000)
    assert 5.0 + 60 - 200 * 0.08 == edf.rank(request_at(5.0), lengths, BUSY)
    assert 5.0 + 60 - 50 * 0.08 == edf.rank(request_at(5.0), estimate_of(50), BUSY)


def test_edf_judges_late_whoever_cannot_start_in_time_behind_those_as_urgent_and_in_time() -> None:
    edf = Edf()

    def band_behind(tokens: float, band: int = 0, ahead: Tier = Tier.STANDARD) -> int:
        load = replace(BUSY, waiting_by_band_and_tier={(band, ahead): tokens})
        return edf.triage(request_at(5.0), estimate_of(125), load)  # takes 10 s of its 60

    assert [0, 1] == [band_behind(2500), band_behind(2501)]  # half of the 50 s until it must start
    assert [1, 0] == [band_behind(9000, ahead=tier) for tier in (Tier.PREMIUM, Tier.BATCH)]
    assert 0 == band_behind(9000, band=1)


def aiming_at(seconds: float | None, *, at: float = 5.0, tier: Tier = Tier.STANDARD) -> Request:
    return replace(request_at(at, tier=tier), target_seconds=seconds)


def test_edf_believes_a_request_of_its_own_target_within_bounds() -> None:
    def latest_start(seconds: float | None, tokens: float = 125) -> float:
        return Edf().rank(aiming_at(seconds), estimate_of(tokens), BUSY)  # 125 tokens take 10 s

    assert [55.0, 55.0] == [latest_start(seconds) for seconds in (None, 60.0)]
    assert [5.0 + 40 - 10, 5.0 + 3600 - 10] == [latest_start(seconds) for seconds in (40.0, 3600.0)]
    assert [25.0, 25.0] == [latest_start(seconds) for seconds in (30.0, 0.001)]
    assert 5.0 == latest_start(0.001, tokens=1e6), "it need not have started before it came"


def test_edf_lets_nobody_pass_a_better_tier_by_claiming_a_short_target() -> None:
    estimate = estimate_of(50)
    for worse, better in ((Tier.STANDARD, Tier.PREMIUM), (Tier.BATCH, Tier.STANDARD)):
        claimed = Edf().rank(aiming_at(1e-6, tier=worse), estimate, BUSY)
        assert claimed >= Edf().rank(request_at(5.0, tier=better), estimate, BUSY)


def test_edf_judges_a_short_target_late_behind_its_own_tier_and_a_long_one_behind_others_too() -> None:
    def band(seconds: float | None, ahead: Tier, tokens: float = 1500) -> int:
        load = replace(BUSY, waiting_by_band_and_tier={(0, ahead): tokens})  # 15 s
        return Edf().triage(aiming_at(seconds), estimate_of(125), load)

    assert [0, 1] == [band(seconds, Tier.STANDARD) for seconds in (None, 30.0)]
    assert [0, 0] == [band(seconds, Tier.BATCH, 1e6) for seconds in (None, 30.0)]
    assert 1 == band(700.0, Tier.BATCH, 1e6)


@pytest.mark.parametrize("tightest", [0.0, -1.0, 1.1, float("nan")])
def test_edf_refuses_a_tightest_target_that_is_no_share(tightest: float) -> None:
    with pytest.raises(Exception, match="tightest must be above 0 and at most 1"):
        create_policy("edf", tightest=tightest)


def test_edf_judges_nobody_late_before_the_speed_is_known() -> None:
    load = replace(BUSY, tokens_per_second=0.0, waiting_by_band_and_tier={(0, Tier.STANDARD): 1e9})
    assert 0 == Edf().triage(request_at(), estimate_of(1e9), load)


@pytest.mark.parametrize("requests_per_second", [3.5, 5.0, 8.0])
def test_edf_answers_more_in_time_under_overload_than_orders_that_know_no_targets(
    requests_per_second: float,
) -> None:
    in_time = {policy: num_in_time(policy, requests_per_second) for policy in ("edf", "fifo", "fair", "sjf")}
    assert "edf" == max(in_time, key=lambda policy: in_time[policy])


def test_edf_does_not_thrash_where_an_order_by_deadline_alone_does() -> None:
    class ByDeadlineAlone(Edf):
        def triage(self, request: Request, estimate: Estimate, load: Load) -> int:
            return 0

    assert num_in_time(Edf(), 5.0, num_requests=1500) > 1.5 * num_in_time(ByDeadlineAlone(), 5.0, num_requests=1500)


@pytest.mark.parametrize("option", ["premium_seconds", "standard_seconds", "batch_seconds", "headroom"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_edf_refuses_a_target_that_is_no_time(option: str, seconds: float) -> None:
    with pytest.raises(Exception, match=f"{option} must be a number > 0"):
        create_policy("edf", **{option: seconds})


# composite


def test_composite_serves_the_best_tier_first_and_inside_it_as_the_inner_policy_does() -> None:
    policy = Composite("sjf")
    assert [2.0e9 + 60, 10 + 40] == [
        policy.rank(request_at(9.0, tier=tier, prompt_tokens=10), estimate_of(tokens), BUSY)
        for tier, tokens in ((Tier.BATCH, 50), (Tier.PREMIUM, 40))
    ]


def test_composite_serves_a_lower_tier_only_after_the_better_one_while_neither_lags() -> None:
    scheduler = scheduler_of("composite")
    for n in range(30):
        for tier in (Tier.BATCH, Tier.PREMIUM):
            step(scheduler.submit(request_at(float(n), f"{tier.label}{n}", tier=tier), float(n)))
    tiers = [ticket.request.tier for ticket in serve(scheduler)]
    assert [Tier.PREMIUM] * 30 + [Tier.BATCH] * 30 == tiers


@pytest.mark.parametrize("reserve", [0.05, 0.1, 0.25])
@pytest.mark.parametrize(("better", "worse"), [(Tier.PREMIUM, Tier.STANDARD), (Tier.STANDARD, Tier.BATCH)])
def test_composite_keeps_a_share_of_the_tokens_for_a_lower_tier_however_much_the_better_one_asks_for(
    reserve: float, better: Tier, worse: Tier
) -> None:
    scheduler = scheduler_of(Composite(reserve=reserve, tokens=500.0))
    for n in range(3000):
        for tier in (better, worse):
            step(scheduler.submit(request_at(0.0, f"{tier}-{n}", tier=tier), 0.0))
    tiers = Counter(ticket.request.tier for ticket in serve(scheduler, 3000))  # each uses 10 + 2 * 10 tokens
    assert pytest.approx(reserve, rel=0.1) == tiers[worse] / 3000


def test_composite_starves_no_tier_while_both_others_flood() -> None:
    scheduler = scheduler_of(Composite(reserve=0.2, tokens=500.0))
    for n in range(2000):
        for tier in Tier:
            step(scheduler.submit(request_at(0.0, f"{tier}-{n}", tier=tier), 0.0))
    tiers = Counter(ticket.request.tier for ticket in serve(scheduler, 2000))
    # 1 : 1/4 : 1/16
    assert pytest.approx({Tier.PREMIUM: 1524, Tier.STANDARD: 381, Tier.BATCH: 95}, rel=0.1) == tiers


@pytest.mark.parametrize(
    ("option", "value"),
    [("inner", "composite"), ("reserve", 0.0), ("reserve", 0.6), ("tokens", 0.0), ("tokens", float("inf"))],
)
def test_composite_refuses_what_is_out_of_range(option: str, value: object) -> None:
    with pytest.raises(Exception, match=f"{option} must be"):
        create_policy("composite", **{option: value})


def test_composite_refuses_an_inner_policy_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="unknown policy 'lifo'"):
        create_policy("composite", inner="lifo")
