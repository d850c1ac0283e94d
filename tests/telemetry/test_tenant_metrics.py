"""Series by tenant: bounded, never counting anything twice, and of those who are served most."""

from collections import defaultdict
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.events import Dispatched, Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.telemetry.tenants import CHANGE_SECONDS, HALF_LIFE_SECONDS, TenantMetrics

Samples = dict[tuple[str, ...], float]


def ticket(tenant: str, arrived_at: float = 0.0) -> Ticket:
    request = Request("r", Tenant(tenant), Tier.STANDARD, "m", arrived_at)
    return Ticket(request, Estimate(1, 1, 1, 1), seq=0, band=0, flow="", rank=0.0, charge=0.0)


def served(tenant: str, tokens: int, at: float = 0.0) -> Finished:
    return Finished(at, ticket(tenant), Usage(0, tokens), "stop", 0.0, None, 0.0)


def told(metrics: TenantMetrics, events: Iterable[Event]) -> TenantMetrics:
    for event in events:
        if type(event) in metrics.handlers:
            metrics.handlers[type(event)](event)
    return metrics


def samples(metrics: TenantMetrics) -> Samples:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


TENANTS = st.sampled_from([f"t{n}" for n in range(12)] + ["other"])
AMOUNTS = st.integers(0, 5000)
EVENTS = st.lists(
    st.one_of(
        st.builds(served, TENANTS, AMOUNTS),
        TENANTS.map(lambda tenant: Dispatched(3.0, ticket(tenant, arrived_at=1.0), "only_waiting")),
        TENANTS.map(lambda tenant: Rejected(0.0, ticket(tenant).request, "queue_full", None)),
        st.builds(
            lambda tenant, n: Evicted(0.0, ticket(tenant), "cancelled", Usage(n, n), None, 0.0), TENANTS, AMOUNTS
        ),
        st.builds(
            lambda tenant, n: Failed(0.0, ticket(tenant), "refused", Usage(n, 1), 0.0, 0.0), TENANTS, AMOUNTS
        ),
    ),
    max_size=120,
)


@given(EVENTS, st.integers(1, 4))
def test_series_are_bounded_and_every_step_is_counted_once_in_one_of_them(events: list[Event], most: int) -> None:
    metrics = TenantMetrics(most)
    risen: dict[str, float] = defaultdict(float)
    before = samples(metrics)
    for number, event in enumerate(events):
        late = _at(event, 61.0 * number)
        told(metrics, [late])
        after = samples(metrics)
        assert len(after) <= 8 * (most + 1)
        for series, value in after.items():
            risen[series[0]] += value - before.get(series, 0.0)  # as rate() sees it: a new series began at 0
            assert value >= before.get(series, 0.0)
        before = after
    ends = [e for e in events if isinstance(e, Finished | Evicted | Failed)]
    assert len(ends) + sum(isinstance(e, Rejected) for e in events) == risen["driftsched_tenant_requests_total"]
    assert sum(e.usage.total_tokens for e in ends) == risen["driftsched_tenant_tokens_total"]
    dispatched = [e for e in events if isinstance(e, Dispatched)]
    assert len(dispatched) == risen["driftsched_tenant_queue_seconds_count"]


def _at(event: Event, at: float) -> Event:
    if isinstance(event, Finished):
        return served(event.ticket.request.tenant.id, event.usage.completion_tokens, at)
    if isinstance(event, Evicted):
        return Evicted(at, event.ticket, event.reason, event.usage, None, 0.0)
    if isinstance(event, Failed):
        return Failed(at, event.ticket, event.error, event.usage, 0.0, 0.0)
    return event


def test_each_number_follows_its_definition() -> None:
    waited = Dispatched(5.0, ticket("ann", arrived_at=2.0), "only_waiting")
    events: list[Event] = [
        served("ann", 10),
        waited,
        Finished(6.0, ticket("ann"), Usage(7, 20), "stop", 5.0, None, 0.0),
    ]
    found = samples(told(TenantMetrics(1), events))
    assert 2 == found["driftsched_tenant_requests_total", "ann", "finished"]
    assert 7 == found["driftsched_tenant_tokens_total", "ann", "prompt"]
    assert 30 == found["driftsched_tenant_tokens_total", "ann", "completion"]
    assert (1, 3.0) == (
        found["driftsched_tenant_queue_seconds_count", "ann"],
        found["driftsched_tenant_queue_seconds_sum", "ann"],
    )


def test_who_comes_when_all_series_are_taken_counts_as_other() -> None:
    found = samples(told(TenantMetrics(1), [served("ann", 10), served("bob", 15)]))
    assert 15 == found["driftsched_tenant_tokens_total", "other", "completion"]
    assert ("driftsched_tenant_tokens_total", "bob", "completion") not in found


def test_while_there_are_series_left_a_tenant_has_its_own_from_its_first_dispatch_on() -> None:
    found = samples(told(TenantMetrics(1), [Dispatched(3.0, ticket("ann", arrived_at=1.0), "only_waiting")]))
    assert 2.0 == found["driftsched_tenant_queue_seconds_sum", "ann"]
    assert 0.0 == found["driftsched_tenant_queue_seconds_sum", "other"]


def test_who_is_served_twice_as_much_takes_the_series_of_the_least() -> None:
    metrics = told(TenantMetrics(2), [served("ann", 100), served("bob", 10), served("eve", 20)])
    assert ("ann", "bob") == metrics.named
    assert ("ann", "eve") == told(metrics, [served("eve", 1, at=2.0)]).named


def test_one_series_a_minute_changes_hands() -> None:
    metrics = told(TenantMetrics(2), [served("ann", 1), served("bob", 1)])
    flood = [served(f"made-up-{n}", 1000 * (n + 1), at=10.0 * n) for n in range(13)]
    changes = 0
    for event in flood:
        before = metrics.named
        changes += before != told(metrics, [event]).named
    assert 1 + 120 // CHANGE_SECONDS == changes


def test_who_was_large_long_ago_makes_room() -> None:
    metrics = told(TenantMetrics(1), [served("ann", 1000)])
    assert ("ann",) == told(metrics, [served("bob", 600, at=10.0)]).named
    later = 3 * HALF_LIFE_SECONDS
    assert ("bob",) == told(metrics, [served("bob", 200, at=later)]).named


def test_a_tenant_called_other_has_no_series_of_its_own() -> None:
    metrics = told(TenantMetrics(3), [served("other", 10), served("ann", 1)])
    assert ("ann",) == metrics.named
    assert 10 == samples(metrics)["driftsched_tenant_tokens_total", "other", "completion"]


def test_who_was_served_nothing_takes_no_series() -> None:
    metrics = told(TenantMetrics(3), [Evicted(0.0, ticket("ann"), "cancelled", Usage(), None, 0.0)])
    assert () == metrics.named
    assert 1 == samples(metrics)["driftsched_tenant_requests_total", "other", "evicted"]
