"""Prometheus metrics. What each means is defined in docs/metrics.md; tenants are no label, they are unbounded."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import exp
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from driftsched.core.events import (
    Admitted,
    Dispatched,
    DriftDetected,
    Event,
    Evicted,
    Failed,
    Finished,
    FirstToken,
    PolicyChanged,
    Recalibrated,
    Rejected,
    Reranked,
)
from driftsched.core.limit import EngineState, Vitals
from driftsched.core.model import Calibration, Load, Tier

_logger = logging.getLogger(__name__)

SECONDS_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

MAX_KIND_SERIES = 200
"""Pairs of model and category of which anything is exported; bounded, as clients can make up model names."""

M = TypeVar("M", bound=MetricWrapperBase)


class PrometheusListener:
    """Counts and times every event. Own registry, so that several may live in one process."""

    def __init__(
        self, *, policy: str, estimator: str, version: str, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """`wall_clock`: seconds since 1970 UTC."""
        self.registry = CollectorRegistry()
        r: dict[str, Any] = {"registry": self.registry}
        tier, reason, error = ["tier"], ["tier", "reason"], ["tier", "error"]
        self._submitted = _per_tier(Counter("driftsched_requests_submitted", "Requests that asked", tier, **r))
        self._finished = _per_tier(Counter("driftsched_requests_finished", "Requests answered in full", tier, **r))
        self._rejected = Counter("driftsched_requests_rejected", "Requests never queued", reason, **r)
        self._evicted = Counter("driftsched_requests_evicted", "Requests that left before the end", reason, **r)
        self._failed = Counter("driftsched_requests_failed", "Requests that the engine failed", error, **r)
        self._overdue = _per_tier(Counter("driftsched_overdue_dispatches", "Served at maximum wait", tier, **r))
        self._prompt = _per_tier(Counter("driftsched_prompt_tokens", "Prompt tokens served", tier, **r))
        self._completion = _per_tier(Counter("driftsched_completion_tokens", "Tokens generated", tier, **r))
        s: dict[str, Any] = {**r, "buckets": SECONDS_BUCKETS}
        self._queue = _per_tier(Histogram("driftsched_queue_seconds", "Arrival to dispatch", tier, **s))
        self._ttft = _per_tier(Histogram("driftsched_ttft_seconds", "Arrival to first token", tier, **s))
        self._e2e = _per_tier(Histogram("driftsched_e2e_seconds", "Arrival to last token", tier, **s))
        self._error = Histogram(
            "driftsched_prediction_error_tokens", "Absolute error", ["category"], buckets=TOKENS_BUCKETS, **r
        )
        self._bias = Gauge("driftsched_prediction_bias_ratio", "Correction in force", ["model", "category"], **r)
        self._reranked = Counter("driftsched_reranked_tickets", "Waiting requests placed anew", **r)
        kind = ["model", "category"]
        self._drifts = Counter("driftsched_drifts_detected", "Shifts of lengths", kind, **r)
        self._drift_factor = Gauge("driftsched_last_drift_ratio", "Factor of the last shift", kind, **r)
        self._drift_at = Gauge("driftsched_last_drift_timestamp_seconds", "When it was detected", kind, **r)
        self._kinds: set[tuple[str, str]] = set()
        self._wall_clock = wall_clock
        self._changes = Counter("driftsched_policy_changes", "Times another policy took over", **r)
        self._info = Gauge("driftsched_info", "1, labelled with what runs", ["version", "policy", "estimator"], **r)
        self._version, self._estimator = version, estimator
        self._info.labels(version, policy, estimator).set(1)
        self._by_type: dict[type[Event], Callable[..., None]] = {
            Admitted: self._on_admitted,
            Rejected: self._on_rejected,
            Dispatched: self._on_dispatched,
            FirstToken: self._on_first_token,
            Finished: self._on_finished,
            Evicted: self._on_evicted,
            Failed: self._on_failed,
            Recalibrated: self._on_recalibrated,
            DriftDetected: self._on_drift_detected,
            Reranked: self._on_reranked,
            PolicyChanged: self._on_policy_changed,
        }

    def watch(
        self,
        load: Callable[[], Load],
        dropped_rows: Callable[[], int] = lambda: 0,
        calibration: Callable[[], Iterable[Calibration]] = tuple,
    ) -> None:
        """Export what waits, what is in flight, what the journal lost and how right predictions have lately been,
        read at each scrape. Call once.
        """
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "driftsched_waiting_requests": ("Requests in the queue now", lambda: load().num_waiting),
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

    def export(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def __call__(self, event: Event) -> None:
        self._by_type[type(event)](event)

    def _on_admitted(self, event: Admitted) -> None:
        self._submitted[event.ticket.request.tier].inc()

    def _on_rejected(self, event: Rejected) -> None:
        self._submitted[event.request.tier].inc()
        self._rejected.labels(event.request.tier.label, event.reason).inc()

    def _on_dispatched(self, event: Dispatched) -> None:
        self._queue[event.ticket.request.tier].observe(event.queue_seconds)
        if event.overdue:
            self._overdue[event.ticket.request.tier].inc()

    def _on_first_token(self, event: FirstToken) -> None:
        request = event.ticket.request
        self._ttft[request.tier].observe(event.at - request.arrived_at)

    def _on_finished(self, event: Finished) -> None:
        request = event.ticket.request
        self._finished[request.tier].inc()
        self._prompt[request.tier].inc(event.usage.prompt_tokens)
        self._completion[request.tier].inc(event.usage.completion_tokens)
        self._e2e[request.tier].observe(event.at - request.arrived_at)
        if event.finish_reason != "length":  # the true length of a truncated answer is unknown
            error = abs(event.usage.completion_tokens - event.ticket.estimate.completion_tokens)
            self._error.labels(request.category).observe(error)

    def _on_evicted(self, event: Evicted) -> None:
        tier = event.ticket.request.tier
        self._evicted.labels(tier.label, event.reason).inc()
        self._prompt[tier].inc(event.usage.prompt_tokens)
        self._completion[tier].inc(event.usage.completion_tokens)

    def _on_failed(self, event: Failed) -> None:
        tier = event.ticket.request.tier
        self._failed.labels(tier.label, event.error).inc()
        self._prompt[tier].inc(event.usage.prompt_tokens)
        self._completion[tier].inc(event.usage.completion_tokens)

    def _on_recalibrated(self, event: Recalibrated) -> None:
        if self._is_exported(event.model, event.category):
            self._bias.labels(event.model, event.category).set(event.bias_after)

    def _on_drift_detected(self, event: DriftDetected) -> None:
        kind = event.model, event.category
        if self._is_exported(*kind):
            self._drifts.labels(*kind).inc()
            self._drift_factor.labels(*kind).set(event.factor)
            self._drift_at.labels(*kind).set(self._wall_clock())

    def _is_exported(self, model: str, category: str) -> bool:
        """It is one of the first `MAX_KIND_SERIES` kinds that were heard of."""
        if len(self._kinds) < MAX_KIND_SERIES:
            self._kinds.add((model, category))
        return (model, category) in self._kinds

    def _on_reranked(self, event: Reranked) -> None:
        self._reranked.inc(event.count)

    def _on_policy_changed(self, event: PolicyChanged) -> None:
        self._changes.inc()
        self._info.clear()
        self._info.labels(self._version, event.after, self._estimator).set(1)


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
        for state in self._states():
            name = [state.name]
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


def _per_tier(metric: M) -> dict[Tier, M]:
    """One child per tier, there from the start: a series that is absent until its first event breaks `rate()`."""
    return {tier: metric.labels(tier.label) for tier in Tier}
