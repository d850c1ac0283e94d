"""Series by tenant: of the few that are served most, and of all others together.

There may be any number of tenants, and on an open server anybody can make up more; so there is a bound on how many
have series at once, and on how often a series changes hands.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from driftsched.core.events import Dispatched, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Request, Usage
from driftsched.telemetry.counts import Handlers
from driftsched.telemetry.heavy import HeavyHitters
from driftsched.telemetry.tallies import OTHER

MAX_TENANTS = 20

TRACKED_PER_NAME = 10
"""Tenants whose tokens are followed for each that has series: so that who has become large is noticed."""
LEAD = 2.0
"""A tenant takes the series of another once it was served this many times as much."""
CHANGE_SECONDS = 60.0
"""At least so long between two of these changes: no more than 1,440 new names a day, whoever makes them up."""
LOOK_SECONDS = 1.0
"""Between two looks for whoever is served least among those that have series."""
HALF_LIFE_SECONDS = 3600.0
"""After which tokens served count half, for the question who has series; the series themselves forget nothing."""


class _Sums:
    """What one tenant's series show."""

    __slots__ = ("completion_tokens", "ends", "prompt_tokens", "queue_count", "queue_seconds")

    def __init__(self) -> None:
        self.ends = {"finished": 0, "rejected": 0, "evicted": 0, "failed": 0}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.queue_count = 0
        self.queue_seconds = 0.0


class TenantMetrics(Collector):
    """What it hears, and what it exports.

    Each request counts once, in the series that its tenant has at that moment. A tenant that loses its series takes
    their counts with it, and begins at zero if it gets them back, which `rate()` understands: sums of rates over
    tenants are those of all requests at any time.
    """

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        """`max_tenants`, >= 1: with series of their own."""
        self._max_tenants = max_tenants
        self._served: HeavyHitters[str] = HeavyHitters(TRACKED_PER_NAME * max_tenants)
        self._named: dict[str, _Sums] = {}
        self._other = _Sums()
        self._look_at = 0.0
        self._decay_at: float | None = None
        self.handlers: Handlers = {
            Dispatched: self._on_dispatched,
            Rejected: self._on_rejected,
            Finished: lambda event: self._on_end(event, "finished"),
            Evicted: lambda event: self._on_end(event, "evicted"),
            Failed: lambda event: self._on_end(event, "failed"),
        }

    @property
    def named(self) -> tuple[str, ...]:
        """Tenants that have series now."""
        return tuple(self._named)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "driftsched_tenant_requests", "Requests that ended", labels=["tenant", "outcome"]
        )
        tokens = CounterMetricFamily("driftsched_tenant_tokens", "Tokens served", labels=["tenant", "kind"])
        queue = SummaryMetricFamily("driftsched_tenant_queue_seconds", "Arrival to dispatch", labels=["tenant"])
        for tenant, sums in (*self._named.items(), (OTHER, self._other)):
            for outcome, count in sums.ends.items():
                requests.add_metric([tenant, outcome], count)
            tokens.add_metric([tenant, "prompt"], sums.prompt_tokens)
            tokens.add_metric([tenant, "completion"], sums.completion_tokens)
            queue.add_metric([tenant], sums.queue_count, sums.queue_seconds)
        yield from (requests, tokens, queue)

    def _on_dispatched(self, event: Dispatched) -> None:
        request = event.ticket.request
        self._name_if_free(request.tenant.id)
        sums = self._sums(request)
        sums.queue_count += 1
        sums.queue_seconds += event.queue_seconds

    def _on_rejected(self, event: Rejected) -> None:
        self._sums(event.request).ends["rejected"] += 1

    def _on_end(self, event: Finished | Evicted | Failed, outcome: str) -> None:
        request, usage = event.ticket.request, event.usage
        self._serve(request.tenant.id, usage, event.at)
        sums = self._sums(request)
        sums.ends[outcome] += 1
        sums.prompt_tokens += usage.prompt_tokens
        sums.completion_tokens += usage.completion_tokens

    def _sums(self, request: Request) -> _Sums:
        return self._named.get(request.tenant.id, self._other)

    def _serve(self, tenant: str, usage: Usage, at: float) -> None:
        """Take note of what it was served, and give it series if it has become one of the large ones."""
        self._age(at)
        served = self._served.add(tenant, usage.prompt_tokens + usage.completion_tokens)
        if tenant in self._named or tenant == OTHER or not served:
            return
        if not self._name_if_free(tenant) and at >= self._look_at:
            least = min(self._named, key=self._served.__getitem__)
            self._look_at = at + LOOK_SECONDS
            if served > LEAD * self._served[least]:
                del self._named[least]
                self._named[tenant] = _Sums()
                self._look_at = at + CHANGE_SECONDS

    def _name_if_free(self, tenant: str) -> bool:
        """Whether it has series: there may be some that nobody has had so far."""
        if tenant not in self._named and tenant != OTHER and len(self._named) < self._max_tenants:
            self._named[tenant] = _Sums()
        return tenant in self._named

    def _age(self, at: float) -> None:
        if self._decay_at is None:
            self._decay_at = at + HALF_LIFE_SECONDS
        elif at >= self._decay_at:
            self._served.decay(0.5 ** ((at - self._decay_at) / HALF_LIFE_SECONDS + 1))
            self._decay_at = at + HALF_LIFE_SECONDS
