"""OpenTelemetry: spans and metrics of the GenAI conventions, sent by OTLP over HTTP. Needs the extra `otel`.

The names are those of the semantic conventions 1.41; what they have no name for begins with `driftsched.`. No text
of any request is sent.
"""

import logging
import time
from collections.abc import Callable
from random import getrandbits, random
from threading import Event as Signal
from threading import Thread
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.types import AttributeValue

from driftsched.core.events import Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Request, Tier, Usage
from driftsched.core.tracing import Span, parse_traceparent
from driftsched.telemetry.tallies import OTHER, Tally

_logger = logging.getLogger(__name__)

PROVIDER = "driftsched"
MAX_SERIES = 200
"""Of operation, model, token type and error; of what comes beyond, model and error are `other`."""
MAX_NAME_CHARS = 256
CLOSE_SECONDS = 5
"""How long closing waits for a collector that does not answer."""

SECONDS = tuple(0.01 * 2**n for n in range(14))
SECONDS_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**n) for n in range(14))
_TIERS = [tier.label for tier in Tier]

_KEYS = "gen_ai.operation.name", "gen_ai.request.model", "error.type", "gen_ai.token.type", "driftsched.tier"
_Key = tuple[str, str, str, str, str]
"""Their values; empty: not among the attributes."""


class _Series:
    """One histogram, by attributes. Written by the event loop, read by the thread that sends."""

    def __init__(self, name: str, unit: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name, self.unit, self.text = name, unit, text
        self._bounds = bounds
        self._tallies: dict[_Key, Tally] = {}

    def observe(
        self, value: float, operation: str, model: str, error: str = "", kind: str = "", tier: str = ""
    ) -> None:
        key = operation, model, error, kind, tier
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= MAX_SERIES:
                key = operation, OTHER, error and OTHER, kind, tier
            tally = self._tallies.setdefault(key, Tally(self._bounds))
        tally.observe(value)

    @property
    def has_any(self) -> bool:
        return bool(self._tallies)

    def metric(self, started_ns: int, now_ns: int) -> Metric:
        points = [self._point(key, tally, started_ns, now_ns) for key, tally in list(self._tallies.items())]
        data = Histogram(data_points=points, aggregation_temporality=AggregationTemporality.CUMULATIVE)
        return Metric(name=self.name, description=self.text, unit=self.unit, data=data)

    def _point(self, key: _Key, tally: Tally, started_ns: int, now_ns: int) -> HistogramDataPoint:
        unknown: Any = None  # smallest and largest: of no use when counts are since the start
        counts = list(tally.counts)
        said = {name: value for name, value in zip(_KEYS, key, strict=True) if value}
        return HistogramDataPoint(
            attributes={"gen_ai.provider.name": PROVIDER, **said},
            start_time_unix_nano=started_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=tally.sum,
            bucket_counts=counts,
            explicit_bounds=self._bounds,
            min=unknown,
            max=unknown,
        )


class _Metrics:
    """What each request adds."""

    def __init__(self) -> None:
        self.tokens = _Series("gen_ai.client.token.usage", "{token}", "Tokens used", TOKENS)
        self.duration = _Series("gen_ai.server.request.duration", "s", "Arrival to end", SECONDS)
        self.ttft = _Series("gen_ai.server.time_to_first_token", "s", "Arrival to first token", SECONDS)
        self.tpot = _Series(
            "gen_ai.server.time_per_output_token", "s", "Of each token after the first", SECONDS_PER_TOKEN
        )
        self.queue = _Series("driftsched.queue.duration", "s", "Arrival to dispatch", SECONDS)
        self._started_ns = time.time_ns()

    def add(self, operation: str, end: "_End") -> None:
        request, usage = end.request, end.usage
        model, arrived_at = request.model[:MAX_NAME_CHARS], request.arrived_at
        self.duration.observe(end.at - arrived_at, operation, model, end.error)
        if end.dispatched_at is not None:
            self.queue.observe(end.dispatched_at - arrived_at, operation, model, tier=_TIERS[request.tier])
            self.tokens.observe(usage.prompt_tokens, operation, model, kind="input")
            self.tokens.observe(usage.completion_tokens, operation, model, kind="output")
        if end.first_token_at is not None:
            self.ttft.observe(end.first_token_at - arrived_at, operation, model)
            if usage.completion_tokens > 1:
                each = (end.at - end.first_token_at) / (usage.completion_tokens - 1)
                self.tpot.observe(each, operation, model)

    def data(self, resource: Resource) -> MetricsData:
        now_ns = time.time_ns()
        series = (self.tokens, self.duration, self.ttft, self.tpot, self.queue)
        metrics = [each.metric(self._started_ns, now_ns) for each in series if each.has_any]
        scope = ScopeMetrics(scope=InstrumentationScope("driftsched"), metrics=metrics, schema_url="")
        return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


class _End(NamedTuple):
    """How a request ended."""

    request: Request
    at: float
    outcome: str
    reason: str
    usage: Usage = Usage()
    predicted_tokens: float | None = None
    dispatched_at: float | None = None
    first_token_at: float | None = None

    @property
    def error(self) -> str:
        """Why there was no answer; empty if there was."""
        return "" if self.outcome == "finished" else self.reason


class _GivenIds(IdGenerator):  # type: ignore[misc,unused-ignore]  # a class of no known type without the extra
    """Ids that were made when the request came in, as the engine was told of them."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class OpenTelemetry:
    """A listener; and what says which span a request is. `start` it before, `close` it in the end.

    About 9 microseconds a request, and 70 to 90 more for one whose trace is recorded; two threads send.
    """

    def __init__(
        self,
        spans: SpanExporter,
        metrics: MetricExporter,
        *,
        operation: Callable[[Request], str],
        version: str,
        sample_ratio: float = 1.0,
        export_seconds: float = 10.0,
    ) -> None:
        """`operation`: of a request, by the conventions, such as `chat`. `sample_ratio`: 0 to 1, of the requests
        whose callers say nothing; those of a caller's trace are recorded if the caller records.
        """
        self._operation = operation
        self._sample_ratio = sample_ratio
        self._export_seconds = export_seconds
        resource = Resource.create({"service.version": version})
        if str(resource.attributes.get("service.name")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "driftsched"}))
        self._resource = resource
        self._ids = _GivenIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(spans))
        self._tracer = self._provider.get_tracer("driftsched", version)
        self._spans, self._exporter = spans, metrics
        self._metrics = _Metrics()
        self._by_type: dict[type[Event], Callable[..., _End]] = {
            Finished: lambda e: _end(e, "finished", e.finish_reason, e.first_token_at),
            Evicted: lambda e: _end(e, "evicted", e.reason),
            Failed: lambda e: _end(e, "failed", e.error),
            Rejected: lambda e: _End(e.request, e.at, "rejected", e.reason),
        }
        self._closing = Signal()
        self._thread = Thread(target=self._run, name="otel-metrics", daemon=True)

    def span(self, traceparent: str) -> Span:
        """The span of a request whose caller sent this header, which may be anything."""
        span_id = f"{getrandbits(64) or 1:016x}"
        parent = parse_traceparent(traceparent)
        if parent is not None:
            return Span(parent.trace_id, span_id, parent.span_id, parent.sampled)
        return Span(f"{getrandbits(128) or 1:032x}", span_id, "", random() < self._sample_ratio)

    def __call__(self, event: Event) -> None:
        ended = self._by_type.get(type(event))
        if ended is None:
            return
        end = ended(event)
        operation = self._operation(end.request)
        self._metrics.add(operation, end)
        if end.request.span is not None and end.request.span.sampled:
            self._record(end, end.request.span, operation)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, if the collector takes it within `seconds`."""
        deadline = time.monotonic() + seconds
        self._closing.set()
        sending = [Thread(target=self._provider.shutdown, name="otel-spans", daemon=True)]
        sending[0].start()
        if self._thread.ident is not None:
            sending.append(self._thread)
        for thread in sending:
            thread.join(max(0.0, deadline - time.monotonic()))
        if sending[0].is_alive():
            self._spans.shutdown()  # it tries no more
        self._exporter.shutdown()
        for thread in sending:
            thread.join(seconds)

    def _run(self) -> None:
        while not self._closing.wait(self._export_seconds):
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            self._exporter.export(self._metrics.data(self._resource))
        except Exception:  # an exporter's own failure must not end the thread
            _logger.exception("OpenTelemetry: metrics could not be sent")

    def _record(self, end: _End, span: Span, operation: str) -> None:
        """The span of the request, and one inside it for the time that it waited."""
        request = end.request
        now_ns = time.time_ns()

        def instant(at: float) -> int:
            return now_ns - int((end.at - at) * 1e9)

        self._ids.trace_id, self._ids.span_id = int(span.trace_id, 16), int(span.span_id, 16)
        context = trace.set_span_in_context(trace.NonRecordingSpan(_context(span))) if span.parent_id else Context()
        model = request.model[:MAX_NAME_CHARS]
        recorded = self._tracer.start_span(
            f"{operation} {model}",
            context,
            kind=trace.SpanKind.CLIENT,
            attributes=_attributes(end, operation, model),
            start_time=instant(request.arrived_at),
        )
        if end.error:
            recorded.set_status(trace.StatusCode.ERROR, end.error)
        if end.dispatched_at is not None:
            self._ids.span_id = getrandbits(64) or 1
            waited = self._tracer.start_span(
                "queue", trace.set_span_in_context(recorded), start_time=instant(request.arrived_at)
            )
            waited.end(instant(end.dispatched_at))
        if end.first_token_at is not None:
            recorded.add_event("first_token", timestamp=instant(end.first_token_at))
        recorded.end(now_ns)


def open_telemetry(
    endpoint: str | None, *, operation: Callable[[Request], str], version: str, **options: float
) -> OpenTelemetry:
    """What sends to the collector at `endpoint`, or, if that is None, where the environment says (`OTEL_*`).

    `options`: see `OpenTelemetry`.
    """
    root = endpoint.rstrip("/") if endpoint else None
    return OpenTelemetry(
        OTLPSpanExporter(endpoint=root and f"{root}/v1/traces"),
        OTLPMetricExporter(endpoint=root and f"{root}/v1/metrics"),
        operation=operation,
        version=version,
        **options,
    )


def _end(
    event: Finished | Evicted | Failed, outcome: str, reason: str, first_token_at: float | None = None
) -> _End:
    ticket = event.ticket
    predicted = ticket.estimate.completion_tokens
    return _End(
        ticket.request, event.at, outcome, reason, event.usage, predicted, event.dispatched_at, first_token_at
    )


def _context(span: Span) -> trace.SpanContext:
    """That of the caller."""
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(span.trace_id, 16), int(span.parent_id, 16), is_remote=True, trace_flags=flags)


def _attributes(end: _End, operation: str, model: str) -> dict[str, AttributeValue]:
    request, usage = end.request, end.usage
    told: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.usage.input_tokens": usage.prompt_tokens or None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if end.dispatched_at is not None else None,
        "gen_ai.response.finish_reasons": (end.reason,) if end.outcome == "finished" else None,
        "gen_ai.response.time_to_first_chunk": _since(request, end.first_token_at),
        "error.type": end.error or None,
        "driftsched.request_id": request.public_id or request.id,
        "driftsched.tenant": request.tenant.id[:MAX_NAME_CHARS],
        "driftsched.tier": _TIERS[request.tier],
        "driftsched.category": request.category or None,
        "driftsched.outcome": end.outcome,
        "driftsched.predicted_tokens": end.predicted_tokens,
        "driftsched.queue_seconds": _since(request, end.dispatched_at),
    }
    return {name: value for name, value in told.items() if value is not None}


def _since(request: Request, at: float | None) -> float | None:
    return None if at is None else at - request.arrived_at
