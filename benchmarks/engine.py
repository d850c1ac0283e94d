"""What an engine over HTTP costs the gateway: processor time per request and per streamed chunk.

    python benchmarks/engine.py [--repeats 5] [--json FILE]

`OpenAIEngine` asks a server that answers at once, in a process of its own on another core; requests have 2
kB. Beside it the HTTP client that it uses and aiohttp, each alone, do the same and look at nothing. A chunk's
cost is what an answer of 32 chunks costs more than one of a single chunk, divided by 31: all written at once
over 64 streams, or 20 ms apart over 256. The scanner that reads the events is timed by itself as well.
Medians over the repeats, in which all take turns.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import process_time
from typing import cast

import aiohttp
import uvloop

from driftsched.core.model import Request, Tenant, Tier
from driftsched.engines.http import READ_BUFFER_BYTES, HttpClient
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.payload import Payload
from driftsched.engines.sse import EventScanner
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit

EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
NUM_EVENTS = 32
CASES = {"one": (1, 0.0, 64, 2000), "at once": (NUM_EVENTS, 0.0, 64, 2000), "apart": (NUM_EVENTS, 0.02, 256, 1024)}
"""Events of an answer, seconds between them, streams at a time, requests in all."""

ENDPOINT = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "model", "stream": True, "messages": [{"role": "user", "content": "word " * 390}]}
).encode()
REQUEST = Request("r", Tenant("t"), Tier.STANDARD, "model", 0.0, payload=Payload(ENDPOINT, BODY, True, False))

Ask = Callable[[], Awaitable[None]]


class Upstream(asyncio.Protocol):
    """One connection of a server that streams the same events to whatever it is asked."""

    def __init__(self, num_events: int, gap_seconds: float) -> None:
        self._num_events = num_events
        self._gap_seconds = gap_seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        self._received = b""
        if self._gap_seconds:
            self._transport.write(HEAD)
            self._write_next(self._num_events)
        else:
            self._transport.write(HEAD + _framed(EVENT) * self._num_events + _END)

    def _write_next(self, left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_framed(EVENT) if left > 1 else _framed(EVENT) + _END)
        if left > 1:
            asyncio.get_running_loop().call_later(self._gap_seconds, self._write_next, left - 1)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_END = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def serve(ports: Connection) -> None:
    """A server for each case, until the process is ended."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(partial(Upstream, num_events, gap_seconds), "127.0.0.1", 0)
            for num_events, gap_seconds, *_ in CASES.values()
        ]
        ports.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    uvloop.run(run())


async def measure(ports: list[int], repeats: int) -> dict[str, dict[str, float]]:
    """Processor time per request, in microseconds, by who asks and case."""
    urls = {case: f"http://127.0.0.1:{port}" for case, port in zip(CASES, ports, strict=True)}
    engines = {case: OpenAIEngine(url) for case, url in urls.items()}
    clients = {case: HttpClient(url, connect_seconds=5.0) for case, url in urls.items()}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=READ_BUFFER_BYTES) as session:

        async def ask_engine(case: str) -> None:
            async for _ in engines[case].generate(REQUEST):
                pass

        async def ask_client(case: str) -> None:
            response = await clients[case].request("POST", ENDPOINT, BODY)
            while await response.read():
                pass

        async def ask_aiohttp(case: str) -> None:
            async with session.post(urls[case] + ENDPOINT, data=BODY) as response:
                while await response.content.readany():
                    pass

        askers = {"engine": ask_engine, "client": ask_client, "aiohttp": ask_aiohttp}
        times: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in askers}
        for _ in range(repeats):
            for case, (_, _, num_streams, num_requests) in CASES.items():
                for name, ask in askers.items():
                    times[name][case].append(await _microseconds(partial(ask, case), num_streams, num_requests))
    for case in CASES:
        await engines[case].close()
        await clients[case].close()
    return {name: {case: median(values) for case, values in cases.items()} for name, cases in times.items()}


async def _microseconds(ask: Ask, num_streams: int, num_requests: int) -> float:
    async def stream(num_calls: int) -> None:
        for _ in range(num_calls):
            await ask()

    started_at = process_time()
    await asyncio.gather(*(stream(num_requests // num_streams) for _ in range(num_streams)))
    return (process_time() - started_at) / (num_requests // num_streams * num_streams) * 1e6


def scanner_microseconds(num_events: int, repeats: int) -> float:
    """Per event, in blocks of `num_events`."""
    times = []
    for _ in range(repeats):
        scanner, block = EventScanner(), EVENT * num_events
        started_at = process_time()
        for _ in range(10_000 // num_events):
            scanner.feed(block)
        times.append((process_time() - started_at) / (10_000 // num_events * num_events))
    return median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    upstream = multiprocessing.get_context("spawn").Process(target=serve, args=(sender,), daemon=True)
    upstream.start()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    costs = uvloop.run(measure(receiver.recv(), arguments.repeats))
    upstream.terminate()
    results = {
        name: {
            "request of one chunk": cost["one"],
            "further chunk, 20 ms after the last": (cost["apart"] - cost["one"]) / (NUM_EVENTS - 1),
            "further chunk, all at once": (cost["at once"] - cost["one"]) / (NUM_EVENTS - 1),
        }
        for name, cost in costs.items()
    }
    results["scanner"] = {
        f"event, in blocks of {size}": scanner_microseconds(size, arguments.repeats) for size in (1, NUM_EVENTS)
    }
    conditions = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    conditions["repeats"] = arguments.repeats
    for name, figures in results.items():
        for what, microseconds in figures.items():
            print(f"{name:10}{what:40}{microseconds:8.1f} us")
    print(json.dumps(conditions))
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": conditions, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
