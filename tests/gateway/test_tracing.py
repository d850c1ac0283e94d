"""A request as one step of a trace that its caller began and the engine goes on with."""

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from driftsched.core.events import Finished
from driftsched.observing import operation
from driftsched.telemetry.otel import open_telemetry
from support.collector import Collector, collecting
from support.servers import chat, live_gateway, simulated

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


async def test_an_engine_is_told_of_our_span_and_the_collector_of_both(
    collector: Collector, http: aiohttp.ClientSession
) -> None:
    otel = open_telemetry(collector.url, operation=operation, version="1")
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "a=b"}
    async with live_gateway(simulated(), listeners=[otel], trace=otel.span) as house:
        async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
            await response.read()
        await house.settled()
        payload: Any = house.of(Finished)[0].ticket.request.payload
    otel.close()
    upstream = dict(payload.headers)
    span = next(span for span in collector.spans if span.name == "chat simulated")
    assert f"00-{TRACE}-{span.span_id.hex()}-01" == upstream["traceparent"]
    assert CALLER == span.parent_span_id.hex()
    assert "a=b" == upstream["tracestate"]


async def test_the_state_of_a_trace_that_is_none_goes_no_further(
    collector: Collector, http: aiohttp.ClientSession
) -> None:
    otel = open_telemetry(collector.url, operation=operation, version="1")
    headers = {"traceparent": "nonsense", "tracestate": "a=b"}
    async with live_gateway(simulated(), listeners=[otel], trace=otel.span) as house:
        async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
            await response.read()
        await house.settled()
        payload: Any = house.of(Finished)[0].ticket.request.payload
    otel.close()
    assert "tracestate" not in dict(payload.headers)
