"""What the shadow found, as Prometheus metrics."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from driftsched.core.evidence import Evidence, PolicyTimes


class ShadowFindings(Protocol):
    """What the shadow tells; each is replaced and never changed, so that any thread may read it."""

    @property
    def evidence(self) -> Evidence | None:
        """The last window; None until there is one."""
        ...

    @property
    def dominated_by(self) -> str | None:
        """The policy that is better than the live one in every respect; None if none is."""
        ...

    @property
    def lag_seconds(self) -> float: ...

    @property
    def num_simulated(self) -> int: ...

    @property
    def num_dropped(self) -> int: ...


class ShadowMetrics(Collector):
    """Read at each scrape."""

    def __init__(self, findings: ShadowFindings) -> None:
        self._findings = findings

    def collect(self) -> Iterator[Metric]:
        found = self._findings
        evidence = found.evidence
        yield from _figures(evidence)
        dominates = GaugeMetricFamily("driftsched_shadow_dominates", "1: better than live", labels=["policy"])
        for shadow in evidence.shadows if evidence else ():
            dominates.add_metric([shadow.policy], shadow.policy == found.dominated_by)
        yield dominates
        yield GaugeMetricFamily("driftsched_shadow_lag_seconds", "Behind the live clock", value=found.lag_seconds)
        yield CounterMetricFamily("driftsched_shadow_simulated", "Requests simulated", value=found.num_simulated)
        yield CounterMetricFamily("driftsched_shadow_dropped", "Requests passed over", value=found.num_dropped)


def _figures(evidence: Evidence | None) -> Iterator[Metric]:
    simulated = GaugeMetricFamily(
        "driftsched_shadow_e2e_seconds", "Simulated", labels=["policy", "role", "tier", "quantile"]
    )
    measured = GaugeMetricFamily("driftsched_shadow_measured_seconds", "Measured", labels=["tier", "quantile"])
    ratio = GaugeMetricFamily("driftsched_shadow_model_ratio", "Simulated to measured", labels=["quantile"])
    requests = GaugeMetricFamily("driftsched_shadow_window_requests", "Requests looked at", labels=["tier"])
    if evidence is not None:
        _add(simulated, [evidence.live.policy, "live"], evidence.live)
        for shadow in evidence.shadows:
            _add(simulated, [shadow.policy, "shadow"], shadow)
        _add(measured, [], evidence.measured)
        for quantile, told, real in (
            ("0.5", evidence.live.times.p50, evidence.measured.times.p50),
            ("0.99", evidence.live.times.p99, evidence.measured.times.p99),
        ):
            ratio.add_metric([quantile], told / real if real > 0 else 1.0)
        requests.add_metric(["all"], evidence.measured.times.requests)
        for tier, times in evidence.measured.by_tier.items():
            requests.add_metric([tier.label], times.requests)
    yield from (simulated, measured, ratio, requests)


def _add(family: GaugeMetricFamily, labels: list[str], found: PolicyTimes) -> None:
    tiers = {"all": found.times} | {tier.label: times for tier, times in found.by_tier.items()}
    for tier, times in tiers.items():
        family.add_metric([*labels, tier, "0.5"], times.p50)
        family.add_metric([*labels, tier, "0.99"], times.p99)
