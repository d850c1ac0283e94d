"""Prometheus metrics. What each means is defined in docs/metrics.md; no label has values without bound."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import exp
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from driftsched.core.events import DriftDetected, Event, PolicyChanged, Recalibrated, Reranked
from driftsched.core.limit import EngineState, Vitals
from driftsched.core.model import Calibration, Load
from driftsched.telemetry.counts import Counts, Handlers
from driftsched.telemetry.tenants import MAX_TENANTS, TenantMetrics

_logger = logging.getLogger(__name__)

MAX_KIND_SERIES = 200
"""Pairs of model and category of which anything is exported; bounded, as clients can make up model names."""


class PrometheusListener:
    """Counts and times every event. Own registry, so that several may live in one process.

    About 4 microseconds a request, all its events and the series by tenant together.
    """

    def __init__(
        self,
        *,
        policy: str,
        estimator: str,
        version: str,
        max_tenants: int = MAX_TENANTS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_tenants`: those with series of their own; 0: no series by tenant at all.

        `wall_clock`: seconds since 1970 UTC.
        """
        self.registry = CollectorRegistry()
        r: dict[str, Any] = {"registry": self.registry}
        counts = Counts()
        self.registry.register(counts)
        tenants = TenantMetrics(max_tenants) if max_tenants else None
        if tenants is not None:
            self.registry.register(tenants)
        self._kinds = _Kinds(wall_clock)
        self.registry.register(self._kinds)
        self._reranked = Counter("driftsched_reranked_tickets", "Waiting requests placed anew", **r)
        self._changes = Counter("driftsched_policy_changes", "Times another policy took over", **r)
        self._info = Gauge("driftsched_info", "1, labelled with what runs", ["version", "policy", "estimator"], **r)
        self._version, self._estimator = version, estimator
        self._info.labels(version, policy, estimator).set(1)
        own: Handlers = {
            Recalibrated: self._kinds.on_recalibrated,
            DriftDetected: self._kinds.on_drift_detected,
            Reranked: self._on_reranked,
            PolicyChanged: self._on_policy_changed,
        }
        heard = [own, counts.handlers, *([tenants.handlers] if tenants else [])]
        self._by_type = {kind: [each[kind] for each in heard if kind in each] for kind in {*own, *counts.handlers}}

    def watch(
        self,
        load: Callable[[], Load],
        dropped_rows: Callable[[], int] = lambda: 0,
        calibration: Callable[[], Iterable[Calibration]] = tuple,
        num_held: Callable[[], int] = lambda: 0,
    ) -> None:
        """Export what waits, what is held before the line, what is in flight, what the journal lost and how right
        predictions have lately been, read at each scrape. Call once.
        """
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "driftsched_waiting_requests": ("Requests in the queue now", lambda: load().num_waiting),
            "driftsched_held_requests": ("Requests held before the queue now", num_held),
            "driftsched_inflight_requests": ("Requests at the engines now", lambda: load().num_inflight),
            "driftsched_waiting_tokens": ("Predicted tokens of what waits", lambda: load().waiting_tokens),
            "driftsched_throughput_tokens_per_second": ("Lately, while busy", lambda: load().tokens_per_second),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(value)
        self.registry.register(_Dropped(dropped_rows))
        self.registry.register(_Calibrations(calibration))

    def watch_engines(self, states: Callable[[], Iterable[EngineState]]) -> None:
        """Export the limit of each engine and what it says of itself, read at each scrape. Call once."""
        self.registry.register(_Engines(states))

    def watch_away(self, seconds: Callable[[], float]) -> None:
        """Export for how long no engine could be reached, read at each scrape. Call once."""
        text = "For which no engine could be reached; 0 while one can"
        Gauge("driftsched_engines_away_seconds", text, registry=self.registry).set_function(seconds)

    def export(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def __call__(self, event: Event) -> None:
        for handle in self._by_type[type(event)]:
            handle(event)

    def _on_reranked(self, event: Reranked) -> None:
        self._reranked.inc(event.count)

    def _on_policy_changed(self, event: PolicyChanged) -> None:
        self._changes.inc()
        self._info.clear()
        self._info.labels(self._version, event.after, self._estimator).set(1)


class _Kinds(Collector):
    """What feedback changed, by model and category: of the first `MAX_KIND_SERIES` kinds that were heard of."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._kinds: set[tuple[str, str]] = set()
        self._biases: dict[tuple[str, str], float] = {}
        self._drifts: dict[
            tuple[str, str], tuple[int, float, float]
        ] = {}  # how many; the last one's factor, instant

    def on_recalibrated(self, event: Recalibrated) -> None:
        kind = event.model, event.category
        if self._is_exported(kind):
            self._biases[kind] = event.bias_after

    def on_drift_detected(self, event: DriftDetected) -> None:
        kind = event.model, event.category
        if self._is_exported(kind):
            before = self._drifts.get(kind, (0, 1.0, 0.0))[0]
            self._drifts[kind] = before + 1, event.factor, self._wall_clock()

    def _is_exported(self, kind: tuple[str, str]) -> bool:
        if len(self._kinds) < MAX_KIND_SERIES:
            self._kinds.add(kind)
        return kind in self._kinds

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "category"]
        bias = GaugeMetricFamily("driftsched_prediction_bias_ratio", "Correction in force", labels=labels)
        drifts = CounterMetricFamily("driftsched_drifts_detected", "Shifts of lengths", labels=labels)
        factor = GaugeMetricFamily("driftsched_last_drift_ratio", "Factor of the last shift", labels=labels)
        instant = GaugeMetricFamily(
            "driftsched_last_drift_timestamp_seconds", "When it was detected", labels=labels
        )
        for kind, correction in self._biases.items():
            bias.add_metric(kind, correction)
        for kind, (number, last, at) in self._drifts.items():
            drifts.add_metric(kind, number)
            factor.add_metric(kind, last)
            instant.add_metric(kind, at)
        yield from (bias, drifts, factor, instant)


class _Dropped(Collector):
    """A counter that somebody else keeps."""

    def __init__(self, value: Callable[[], int]) -> None:
        self._value = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily("driftsched_journal_dropped", "Rows that the journal lost", value=self._value())


class _Engines(Collector):
    """What is known of the engines; there is no series for what one does not say."""

    def __init__(self, states: Callable[[], Iterable[EngineState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        engine = ["engine"]
        limit = GaugeMetricFamily("driftsched_engine_limit_requests", "Requests it may hold", labels=engine)
        inflight = GaugeMetricFamily("driftsched_engine_inflight_requests", "It was given", labels=engine)
        running = GaugeMetricFamily("driftsched_engine_running_requests", "In its batch", labels=engine)
        waiting = GaugeMetricFamily("driftsched_engine_waiting_requests", "In its own queue", labels=engine)
        memory = GaugeMetricFamily("driftsched_engine_kv_usage_ratio", "Context memory in use", labels=engine)
        failed = CounterMetricFamily("driftsched_engine_failed_scrapes", "Metrics not to be had", labels=engine)
        changes = CounterMetricFamily(
            "driftsched_engine_limit_changes", "Moves of the limit", labels=["engine", "reason"]
        )
        work = GaugeMetricFamily("driftsched_engine_outstanding_tokens", "Predicted to come", labels=engine)
        alone = GaugeMetricFamily("driftsched_engine_left_alone", "1 while not well", labels=engine)
        opened = CounterMetricFamily("driftsched_engine_outages", "Times it was left alone", labels=engine)
        retries = CounterMetricFamily("driftsched_engine_retries", "Sent elsewhere after it failed", labels=engine)
        spared = CounterMetricFamily("driftsched_engine_retries_refused", "Beyond the budget", labels=engine)
        for state in self._states():
            name = [state.name]
            if (standing := state.standing) is not None:
                work.add_metric(name, standing.outstanding_tokens)
                alone.add_metric(name, standing.circuit != "closed")
                opened.add_metric(name, standing.num_opened)
                retries.add_metric(name, standing.num_retries)
                spared.add_metric(name, standing.num_unretried)
            limit.add_metric(name, state.limit)
            inflight.add_metric(name, state.inflight)
            failed.add_metric(name, state.failed_scrapes)
            for reason, number in state.changes.items():
                changes.add_metric([state.name, reason], number)
            told = state.vitals or Vitals()
            for family, value in (
                (running, told.running),
                (waiting, told.waiting),
                (memory, told.kv_usage),
            ):
                if value is not None:
                    family.add_metric(name, value)
        yield from (limit, inflight, running, waiting, memory, failed, changes)
        yield from (work, alone, opened, retries, spared)


class _Calibrations(Collector):
    """Gauges that an estimator keeps; of the kinds that answers came for last."""

    def __init__(self, calibration: Callable[[], Iterable[Calibration]]) -> None:
        self._calibration = calibration

    def collect(self) -> Iterator[GaugeMetricFamily]:
        kind = ["model", "category"]
        correction = GaugeMetricFamily("driftsched_drift_correction_ratio", "Correction for drift", labels=kind)
        error = GaugeMetricFamily("driftsched_prediction_error_ratio", "Typical factor off", labels=kind)
        coverage = GaugeMetricFamily("driftsched_prediction_coverage_ratio", "Share within q80", labels=kind)
        try:
            for row in deque(self._calibration(), maxlen=MAX_KIND_SERIES):
                labels = [row.model, row.category]
                correction.add_metric(labels, row.bias)
                error.add_metric(labels, exp(row.error))
                coverage.add_metric(labels, row.coverage)
        except Exception:  # a plug-in's failure is its own: the other metrics are still asked for
            _logger.exception("the estimator could not say how right it has been")
        yield from (correction, error, coverage)
