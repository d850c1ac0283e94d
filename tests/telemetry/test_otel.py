"""What is sent to an OpenTelemetry collector: a real one, as far as HTTP and the protocol go."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from driftsched.core.events import Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.tracing import Span
from driftsched.telemetry.otel import MAX_SERIES, OpenTelemetry, open_telemetry
from support.collector import Collector, collecting, told

TRACE, CALLER, OURS = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
SPAN = Span(TRACE, OURS, CALLER, True)
REQUEST = Request(
    "own-1",
    Tenant("ann"),
    Tier.BATCH,
    "qwen",
    arrived_at=10.0,
    prompt="My secret is 42",
    category="fact",
    max_tokens=500,
    public_id="c-7",
    span=SPAN,
)


def ticket(request: Request = REQUEST) -> Ticket:
    return Ticket(request, Estimate(100, 90, 150, 200), seq=0, band=0, flow="", rank=0.0, charge=0.0)


def finished(request: Request = REQUEST) -> Finished:
    return Finished(14.0, ticket(request), Usage(7, 31), "stop", 12.0, 12.5, 1.0)


FAILED = Failed(11.0, ticket(), "broken_stream", Usage(5, 8), 10.5, 1.0)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def sender(collector: Collector, **options: float) -> OpenTelemetry:
    return open_telemetry(collector.url, operation=lambda _: "chat", version="1.2.3", **options)


def send(collector: Collector, *events: Event) -> None:
    """Have them told, and all of it sent."""
    otel = sender(collector)
    otel.start()
    for event in events:
        otel(event)
    otel.close()


def of(**said: str) -> frozenset[tuple[str, str]]:
    return frozenset(
        {("gen_ai.operation.name", "chat"), ("gen_ai.request.model", "qwen")}
        | {(name.replace("_", "."), value) for name, value in said.items()}
    )


def test_each_metric_follows_its_definition(collector: Collector) -> None:
    send(collector, finished(), FAILED)
    used = {**of_tokens("input", 2, 12), **of_tokens("output", 2, 39)}
    assert used == collector.points("gen_ai.client.token.usage")
    assert {of(): (1, 4.0), of(error_type="broken_stream"): (1, 1.0)} == collector.points(
        "gen_ai.server.request.duration"
    )
    assert {of(): (1, 2.5)} == collector.points("gen_ai.server.time_to_first_token")
    assert {of(): (1, 0.05)} == collector.points("gen_ai.server.time_per_output_token")
    assert {of(driftsched_tier="batch"): (2, 2.5)} == collector.points("driftsched.queue.duration")


def of_tokens(kind: str, count: int, total: float) -> dict[frozenset[tuple[str, str]], tuple[int, float]]:
    return {of() | {("gen_ai.token.type", kind)}: (count, total)}


def test_metrics_have_their_units_and_add_up_since_the_start(collector: Collector) -> None:
    send(collector, finished())
    units = {name: metric.unit for name, metric in collector.metrics.items()}
    assert {
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.server.request.duration": "s",
        "gen_ai.server.time_to_first_token": "s",
        "gen_ai.server.time_per_output_token": "s",
        "driftsched.queue.duration": "s",
    } == units
    histogram = collector.metrics["gen_ai.server.request.duration"].histogram
    assert 2 == histogram.aggregation_temporality  # cumulative
    [point] = histogram.data_points
    assert len(point.explicit_bounds) + 1 == len(point.bucket_counts)
    assert 4.0 <= point.explicit_bounds[list(point.bucket_counts).index(1)]


def test_the_span_of_a_request_is_one_between_its_caller_and_the_engine(collector: Collector) -> None:
    send(collector, finished())
    span = next(span for span in collector.spans if span.name == "chat qwen")
    assert (TRACE, OURS, CALLER) == (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    assert 4_000_000_000 == pytest.approx(span.end_time_unix_nano - span.start_time_unix_nano, abs=10)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "driftsched",
        "gen_ai.request.model": "qwen",
        "gen_ai.request.max_tokens": 500,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 31,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 2.5,
        "driftsched.request_id": "c-7",
        "driftsched.tenant": "ann",
        "driftsched.tier": "batch",
        "driftsched.category": "fact",
        "driftsched.outcome": "finished",
        "driftsched.predicted_tokens": 100,
        "driftsched.queue_seconds": 2.0,
    } == told(span.attributes)


def test_the_time_in_the_queue_is_a_span_inside(collector: Collector) -> None:
    send(collector, finished())
    queue = next(span for span in collector.spans if span.name == "queue")
    assert (TRACE, OURS) == (queue.trace_id.hex(), queue.parent_span_id.hex())
    assert OURS != queue.span_id.hex()
    assert 2_000_000_000 == pytest.approx(queue.end_time_unix_nano - queue.start_time_unix_nano, abs=10)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (FAILED, "broken_stream"),
        (Evicted(11.0, ticket(), "expired", Usage(), None, 0.0), "expired"),
        (Rejected(10.0, REQUEST, "queue_full", 1.0), "queue_full"),
    ],
)
def test_a_request_without_an_answer_is_an_error(event: Event, error: str, collector: Collector) -> None:
    send(collector, event)
    span = next(span for span in collector.spans if span.name == "chat qwen")
    assert (2, error) == (span.status.code, told(span.attributes)["error.type"])


def test_no_word_of_a_prompt_is_sent(collector: Collector) -> None:
    send(collector, finished())
    assert collector.bodies
    assert not [body for body in collector.bodies if b"secret" in body]


def test_what_the_caller_does_not_record_is_not_recorded_here(collector: Collector) -> None:
    send(collector, finished(replace(REQUEST, span=replace(SPAN, sampled=False))))
    assert [] == collector.spans
    assert 1 == collector.points("gen_ai.server.request.duration")[of()][0]


def test_who_is_sending_is_told(collector: Collector) -> None:
    send(collector, finished())
    assert ("driftsched", "1.2.3") == (collector.resource["service.name"], collector.resource["service.version"])


def test_models_and_errors_add_no_series_for_ever(collector: Collector) -> None:
    flood = [
        replace(FAILED, ticket=ticket(replace(REQUEST, model=f"m{n}", span=None))) for n in range(2 * MAX_SERIES)
    ]
    send(collector, *flood)
    points = collector.points("gen_ai.server.request.duration")
    assert MAX_SERIES + 1 == len(points)
    assert 2 * MAX_SERIES == sum(count for count, _ in points.values())


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False)])
def test_a_caller_decides_whether_its_trace_is_recorded(flags: str, sampled: bool, collector: Collector) -> None:
    span = sender(collector, sample_ratio=0.0 if sampled else 1.0).span(f"00-{TRACE}-{CALLER}-{flags}")
    assert (TRACE, CALLER, sampled) == (span.trace_id, span.parent_id, span.sampled)
    assert span.span_id not in (CALLER, "0" * 16)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_trace_that_begins_here_is_recorded_by_the_ratio(ratio: float, collector: Collector) -> None:
    otel = sender(collector, sample_ratio=ratio)
    one, other = otel.span(""), otel.span("nonsense")
    assert ("", bool(ratio)) == (one.parent_id, one.sampled)
    assert one.trace_id != other.trace_id


def test_a_collector_that_is_gone_is_no_ones_trouble() -> None:
    otel = open_telemetry("http://127.0.0.1:9", operation=lambda _: "chat", version="1")
    otel.start()
    otel(finished())
    otel.close(0.1)
    assert not otel._thread.is_alive()
