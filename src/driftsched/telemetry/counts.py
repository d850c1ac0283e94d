"""What every request adds to the metrics, by the tier at which it is served."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from driftsched.core.events import Admitted, Dispatched, Event, Evicted, Failed, Finished, FirstToken, Rejected
from driftsched.core.model import Tier, Usage
from driftsched.telemetry.tallies import OTHER, Reasons, Tally, tallies

SECONDS_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

MAX_REASONS = 100
"""Pairs of tier and reason, or error. Reasons are ours, but kinds of error may be those of another's engine."""
MAX_CATEGORIES = 100
"""A classifier may be another's as well."""


Handlers = dict[type[Event], Callable[..., None]]
"""What is to be called with each kind of event."""


class _OfTier:
    """One for each tier, there from the start: a series that is absent until its first event breaks `rate()`."""

    __slots__ = ("completion", "e2e", "finished", "overdue", "prompt", "queue", "submitted", "ttft")

    def __init__(self) -> None:
        self.submitted = self.finished = self.overdue = self.prompt = self.completion = 0
        self.queue, self.ttft, self.e2e = (Tally(SECONDS_BUCKETS) for _ in range(3))

    def use(self, usage: Usage) -> None:
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens


class Counts(Collector):
    """What it hears, and what it exports."""

    def __init__(self) -> None:
        self._tiers = [_OfTier() for _ in Tier]  # by their numbers: an enumeration's hash is slow
        self._rejected, self._evicted, self._failed = (Reasons(MAX_REASONS) for _ in range(3))
        self._error: dict[str, Tally] = {}
        self.handlers: Handlers = {
            Admitted: self._on_admitted,
            Rejected: self._on_rejected,
            Dispatched: self._on_dispatched,
            FirstToken: self._on_first_token,
            Finished: self._on_finished,
            Evicted: self._on_evicted,
            Failed: self._on_failed,
        }

    def collect(self) -> Iterator[Metric]:
        of = dict(zip(Tier, self._tiers, strict=True))
        yield _counter("requests_submitted", "Requests that asked", {t: s.submitted for t, s in of.items()})
        yield _counter("requests_finished", "Requests answered in full", {t: s.finished for t, s in of.items()})
        yield self._rejected.family("driftsched_requests_rejected", "Requests never queued", "reason")
        yield self._evicted.family("driftsched_requests_evicted", "Requests that left before the end", "reason")
        yield self._failed.family("driftsched_requests_failed", "Requests that the engine failed", "error")
        yield _counter("overdue_dispatches", "Served at maximum wait", {t: s.overdue for t, s in of.items()})
        yield _counter("prompt_tokens", "Prompt tokens served", {t: s.prompt for t, s in of.items()})
        yield _counter("completion_tokens", "Tokens generated", {t: s.completion for t, s in of.items()})
        for name, text, by_tier in (
            ("queue", "Arrival to dispatch", {t.label: s.queue for t, s in of.items()}),
            ("ttft", "Arrival to first token", {t.label: s.ttft for t, s in of.items()}),
            ("e2e", "Arrival to last token", {t.label: s.e2e for t, s in of.items()}),
        ):
            yield tallies(by_tier, f"driftsched_{name}_seconds", text, "tier")
        yield tallies(self._error, "driftsched_prediction_error_tokens", "Absolute error", "category")

    def _on_admitted(self, event: Admitted) -> None:
        self._tiers[event.ticket.request.tier].submitted += 1

    def _on_rejected(self, event: Rejected) -> None:
        self._tiers[event.request.tier].submitted += 1
        self._rejected.inc(event.request.tier.label, event.reason)

    def _on_dispatched(self, event: Dispatched) -> None:
        of_tier = self._tiers[event.ticket.request.tier]
        of_tier.queue.observe(event.queue_seconds)
        of_tier.overdue += event.overdue

    def _on_first_token(self, event: FirstToken) -> None:
        request = event.ticket.request
        self._tiers[request.tier].ttft.observe(event.at - request.arrived_at)

    def _on_finished(self, event: Finished) -> None:
        request, usage = event.ticket.request, event.usage
        of_tier = self._tiers[request.tier]
        of_tier.finished += 1
        of_tier.use(usage)
        of_tier.e2e.observe(event.at - request.arrived_at)
        if event.finish_reason != "length":  # the true length of a truncated answer is unknown
            error = abs(usage.completion_tokens - event.ticket.estimate.completion_tokens)
            self._error_of(request.category).observe(error)

    def _on_evicted(self, event: Evicted) -> None:
        tier = event.ticket.request.tier
        self._evicted.inc(tier.label, event.reason)
        self._tiers[tier].use(event.usage)

    def _on_failed(self, event: Failed) -> None:
        tier = event.ticket.request.tier
        self._failed.inc(tier.label, event.error)
        self._tiers[tier].use(event.usage)

    def _error_of(self, category: str) -> Tally:
        tally = self._error.get(category)
        if tally is None:
            name = category if len(self._error) < MAX_CATEGORIES else OTHER
            tally = self._error.setdefault(name, Tally(TOKENS_BUCKETS))
        return tally


def _counter(name: str, text: str, by_tier: Mapping[Tier, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"driftsched_{name}", text, labels=["tier"])
    for tier, count in by_tier.items():
        family.add_metric([tier.label], count)
    return family
