"""Everything goes wrong at once: a gateway between faulty engines and unreliable clients, and its books checked.

    python benchmarks/chaos.py [--seconds 600] [--rate 200] [--seed 1] [--json FILE]

Engines are slow, hang, die, answer garbage, refuse, say that they are full, close one direction, go away and come
back. Clients of three tenants leave at each stage, send half a body or none, read slowly or not at all, send
requests ahead, and send what is no request. Every second the configuration is read anew: other weights and
limits, a tenant more or less, and now and then a file that is wrong. For a tenth of the time the journal's disk is
full (a limit on the size of files, put on the process from outside).

Every request has a number of its own, as its `max_tokens`, which the journal keeps. At the end each must have had
exactly one outcome, the same by its client, by the journal and by the counters; all failures must have OpenAI's
form; and slots, tasks, sockets and memory must be back where they were. Status 1 if anything is amiss.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from driftsched.keys import hash_key
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit
from support.faulty_upstream import (
    DOCUMENT,
    DONE,
    EVENTS,
    Behaviour,
    Exchange,
    FaultyUpstream,
    answer,
    content_event,
    die_before_headers,
    die_mid_stream,
    garbage,
    half_close,
    hang_before_headers,
    hang_mid_stream,
    html,
    status,
    stream,
)
from support.processes import running, signal_if_alive
from support.raw import CHAT, connected_to, head_of

NUM_ENGINES = 4
MAX_AT_ONCE = 600
"""Clients; on a machine that cannot keep up the rate falls, and the report says to what."""
FIRST_NUMBER = 1_000_000
"""Of requests; so large that no answer is cut by it."""
TENANTS = {"ann": "premium", "bob": "standard", "cy": "batch"}
STALL_SECONDS = 2.0
LAST_SECONDS = 120.0
"""For the last clients to be answered."""
STEADY_SECONDS = 300.0
"""From here on memory must have become steady: before, what is kept of the last requests is still filling up."""
SETTLE_SECONDS = 20.0
"""For connections kept open to engines and clients to be given up after the last request."""
MODELS = json.dumps({"object": "list", "data": [{"id": "chaos", "object": "model"}]}).encode()
FULL = b'{"error":{"message":"full","type":"rate_limit","param":null,"code":null}}'
WRONG = b'{"error":{"message":"no such thing","type":"invalid_request_error","param":"x","code":"400"}}'
BROKEN = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
LONG = b"tell me everything"
"""In a prompt: the answer is larger than all buffers on the way."""


# Engines


async def slow(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
    for event in (*[content_event("slow")] * 20, *EVENTS, b""):
        await asyncio.sleep(0.02)
        await exchange.chunk(event)


HEALTHY: list[tuple[float, Behaviour]] = [(6, stream()), (3, slow), (1, answer(DOCUMENT)), (1, stream(EVENTS[:-1]))]
FAULTY: list[tuple[float, Behaviour]] = [
    (1, hang_before_headers()),
    (1, hang_mid_stream()),
    (3, die_before_headers()),
    (2, die_before_headers(after=b"HTTP/1.1 200 OK\r\nContent-")),
    (3, die_mid_stream()),
    (2, half_close()),
    (2, garbage()),
    (2, html()),
    (4, status(503, FULL, retry_after="1")),
    (3, status(429, FULL)),
    (3, status(500, b"oops")),
    (3, status(400, WRONG)),
    (1, status(401, b"{}")),
    (1, status(302, b"", location="http://127.0.0.1:1/")),
    (1, stream([b"data: {\n\n"])),
    (2, stream([*EVENTS[:1], b"data: {\n\n"])),
    (2, stream([*EVENTS[:1], BROKEN])),
    (2, stream(EVENTS[:1])),
    (1, stream([b"data: " + b"\xff" * 50 + b"\n\n", *EVENTS])),
    (1, answer(DOCUMENT[:40])),
    (1, answer(b"[]")),
    (1, answer(DOCUMENT, headers={"Content-Encoding": "gzip"})),
    (1, stream([content_event("x" * 1000)] * 3, close=True, end_body=False)),
]


def weather(rng: Random, faults: float) -> Behaviour:
    """An engine that fails in a share of the calls."""

    async def behave(exchange: Exchange) -> None:
        request = exchange.request
        if request.method == "GET":
            known = request.path == "/v1/models"
            await (answer(MODELS) if known else status(404, b"{}"))(exchange)
        elif LONG in request.body:
            await stream([*[content_event("x" * 100_000)] * 100, *EVENTS])(exchange)
        else:
            kinds = FAULTY if rng.random() < faults else HEALTHY
            (chosen,) = rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
            await chosen(exchange)

    return behave


async def engine(number: int, rng: Random, address: "asyncio.Future[str]") -> None:
    """An engine that goes away now and then, whatever it is doing, and comes back at the same address."""
    port = 0
    while True:
        async with FaultyUpstream(weather(rng, faults=0.1 * number), port=port) as upstream:
            port = int(upstream.url.rpartition(":")[2])
            if not address.done():
                address.set_result(upstream.url)
            await asyncio.sleep(rng.uniform(5, 40))
        await asyncio.sleep(rng.uniform(0.1, 3))


# Clients


@dataclass
class Ledger:
    """What became of each request, as its client saw it."""

    outcomes: dict[int, str] = field(default_factory=dict)
    """`finished`, `left`, `code`, or `stream_error`; and what is amiss, which begins with `!`."""
    sent: int = 0
    strangers: Counter[str] = field(default_factory=Counter)
    """What was said to those whose request was never whole."""

    def next_number(self) -> int:
        self.sent += 1
        return FIRST_NUMBER + self.sent


@dataclass
class Scene:
    """What clients work with."""

    url: str
    http: aiohttp.ClientSession
    ledger: Ledger
    rng: Random
    num_clients: int = 0

    def call(self, **fields: Any) -> tuple[int, bytes, str]:
        """A number, the body of a request that has it, and the key of a tenant."""
        number = self.ledger.next_number()
        content = f"{self.rng.choice(['What is', 'List all', 'Summarise', 'Write code for'])} {number}?"
        message = {"role": "user", "content": content}
        body = {"model": "chaos", "messages": [message], "max_tokens": number, **fields}
        return number, json.dumps(body).encode(), f"sk-{self.rng.choice(list(TENANTS))}"

    @property
    def hesitation(self) -> float:
        return self.rng.choice([0.0, 0.001, 0.01, 0.05, 0.2, 0.5])


def error_code(document: bytes) -> str:
    """The code of an error document; begins with `!` if it has not OpenAI's form."""
    try:
        error = json.loads(document)["error"]
        good = error.keys() == {"message", "type", "param", "code"} and error["message"] and error["type"]
    except (ValueError, TypeError, KeyError):
        good = False
    return str(error["code"]) if good else f"!form {document[:80]!r}"


def outcome_of(status_code: int, reason: str | None, streams: bool, body: bytes) -> str:
    """What a client makes of a whole reply."""
    if status_code != 200:
        code = error_code(body)
        return code if code.startswith("!") or reason is None else reason
    if not streams:
        return "finished" if b'"choices"' in body and json.loads(body)["choices"] else f"!document {body[:80]!r}"
    last = body.rstrip().rpartition(b"\n\n")[2]
    if last == DONE.strip() or b'"finish_reason":"stop"' in body or b'"finish_reason": "stop"' in body:
        return "finished"
    code = error_code(last.removeprefix(b"data: "))
    return "stream_error" if not code.startswith("!") else f"!cut {body[-80:]!r}"


async def polite(scene: Scene) -> None:
    """Asks, and reads to the end."""
    streams = scene.rng.random() < 0.5
    number, body, key = scene.call(stream=streams)
    await ask(scene, number, body, key, streams)


async def ask(scene: Scene, number: int, body: bytes, key: str, streams: bool) -> None:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        async with scene.http.post(scene.url + CHAT, data=body, headers=headers) as response:
            text = await response.read()
            reason = response.headers.get("x-driftsched-reason")
            scene.ledger.outcomes[number] = outcome_of(response.status, reason, streams, text)
    except aiohttp.ClientError as error:
        scene.ledger.outcomes[number] = f"!lost {error!r}"


async def slow_reader(scene: Scene) -> None:
    """Takes ten megabytes in small pieces, though never as slowly as to be sent away."""
    number, body, key = scene.call(stream=True)
    body = body.replace(b"?", LONG)
    headers = {"authorization": f"Bearer {key}"}
    text = bytearray()
    try:
        async with scene.http.post(scene.url + CHAT, data=body, headers=headers) as response:
            async for block in response.content.iter_chunked(1 << 18):
                text += block
                await asyncio.sleep(0.02)
            reason = response.headers.get("x-driftsched-reason")
            scene.ledger.outcomes[number] = outcome_of(response.status, reason, True, bytes(text))
    except aiohttp.ClientError as error:
        scene.ledger.outcomes[number] = f"!lost {error!r}"


async def leaver(scene: Scene) -> None:
    """Leaves at some moment after its request is sent."""
    number, body, key = scene.call(stream=scene.rng.random() < 0.5)
    _, writer = await connected_to(scene.url)
    writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body)
    await asyncio.sleep(scene.hesitation)
    writer.transport.abort()
    scene.ledger.outcomes[number] = "left"


async def leaver_at_the_first_byte(scene: Scene) -> None:
    number, body, key = scene.call(stream=True)
    reader, writer = await connected_to(scene.url)
    writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body)
    with suppress(ConnectionError):
        await reader.read(1)
    writer.transport.abort()
    scene.ledger.outcomes[number] = "left"


async def leaver_with_more_sent_ahead(scene: Scene) -> None:
    sent = [scene.call(stream=True) for _ in range(2)]
    _, writer = await connected_to(scene.url)
    for _, body, key in sent:
        writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body)
    await asyncio.sleep(scene.hesitation)
    writer.transport.abort()
    scene.ledger.outcomes |= dict.fromkeys((number for number, _, _ in sent), "left")


async def half_closer(scene: Scene) -> None:
    """Ends its own side when its request is sent; to most servers that means that it has left."""
    number, body, key = scene.call()
    reader, writer = await connected_to(scene.url)
    writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body)
    writer.write_eof()
    with suppress(ConnectionError):
        await reader.read(-1)
    writer.transport.abort()
    scene.ledger.outcomes[number] = "left"


async def never_reads(scene: Scene) -> None:
    """Asks for much and takes nothing of it, until it is sent away."""
    number, body, key = scene.call(stream=True)
    body = body.replace(b"?", LONG)
    reader, writer = await connected_to(scene.url)
    writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body)
    await asyncio.sleep(STALL_SECONDS * 3)  # the reader takes 128 kB, and no more
    del reader
    writer.transport.abort()
    scene.ledger.outcomes[number] = "left"


async def half_a_body(scene: Scene) -> None:
    """Sends half a body and leaves, or waits until it is sent away."""
    _, body, key = scene.call()
    reader, writer = await connected_to(scene.url)
    writer.write(head_of(body, f"Authorization: Bearer {key}", close=False) + body[: len(body) // 2])
    await asyncio.sleep(scene.hesitation)
    if scene.rng.random() < 0.3:
        with suppress(ConnectionError):
            note_stranger(scene, await reader.read(1 << 16))
    writer.transport.abort()


async def stranger(scene: Scene) -> None:
    """Sends what is no request to be admitted."""
    _, body, _ = scene.call()
    key = "Authorization: Bearer sk-ann"
    request = scene.rng.choice(
        [
            b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
            b"\x16\x03\x01\x02\x00\x01",
            b"POST / HTTP/1.1\r\nHost: x\r\n",
            head_of(body) + body,
            head_of(body, "Authorization: Bearer sk-nobody") + body,
            head_of(body, key, "Transfer-Encoding: chunked") + body,
            head_of(body, key, "Content-Encoding: gzip") + body,
            head_of(b"", key, length="99999999") + body,
            head_of(body[:-1], key) + body[:-1],
            head_of(b"[" * 9999, key) + b"[" * 9999,
            head_of(body, key, path="/v1/../../etc/passwd") + body,
            head_of(body.replace(b"chaos", b"http://evil/"), key) + body.replace(b"chaos", b"http://evil/"),
        ]
    )
    reader, writer = await connected_to(scene.url)
    with suppress(ConnectionError):
        writer.write(request)
        note_stranger(scene, await reader.read(-1))
    writer.transport.abort()


def note_stranger(scene: Scene, reply: bytes) -> None:
    body = reply.partition(b"\r\n\r\n")[2]
    scene.ledger.strangers[error_code(body) if body else "closed"] += 1


async def onlooker(scene: Scene) -> None:
    """Asks where a request is, and for what there is to be seen."""
    path = scene.rng.choice(["/v1/queue/1", "/v1/models", "/readyz", "/health", "/v1/queue/..%2f"])
    with suppress(aiohttp.ServerDisconnectedError):  # a kept connection, given up just now
        async with scene.http.get(scene.url + path, headers={"authorization": "Bearer sk-ann"}) as response:
            await response.read()


CLIENTS: list[tuple[float, Callable[[Scene], Awaitable[None]]]] = [
    (60, polite),
    (8, leaver),
    (5, leaver_at_the_first_byte),
    (2, leaver_with_more_sent_ahead),
    (2, half_closer),
    (0.3, never_reads),
    (0.5, slow_reader),
    (6, half_a_body),
    (10, stranger),
    (6, onlooker),
]


# The gateway seen from outside


@dataclass
class Observed:
    """The process."""

    rss_bytes: int
    num_files: int
    num_tasks: int


async def state_of(scene: Scene) -> Any:
    headers = {"authorization": "Bearer sk-admin"}
    async with scene.http.get(scene.url + "/admin/state", headers=headers) as response:
        return await response.json()


async def observed(pid: int, scene: Scene) -> Observed:
    state = await state_of(scene)
    return Observed(resident_bytes(pid), len(os.listdir(f"/proc/{pid}/fd")), state["num_tasks"])


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def counters(scene: Scene) -> Counter[str]:
    """Sums of the metrics over all labels."""
    sums: Counter[str] = Counter()
    async with scene.http.get(scene.url + "/metrics") as response:
        for line in (await response.text()).splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                with suppress(ValueError, OverflowError):
                    sums[name.partition("{")[0]] += round(float(value))
    return sums


async def watch(pid: int, scene: Scene, seen: list[Observed]) -> None:
    while True:
        await asyncio.sleep(1)
        with suppress(aiohttp.ClientError):
            seen.append(await observed(pid, scene))


async def fill_the_disk(pid: int, scene: Scene, seconds: float) -> int:
    """For a tenth of the time no file may grow. Rows that the journal wrote meanwhile: none."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    await asyncio.sleep(0.4 * seconds)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    await asyncio.sleep(0.5)  # for what is being written
    before = (await state_of(scene))["journal"]["written"]
    await asyncio.sleep(min(0.1 * seconds, 60))
    after = (await state_of(scene))["journal"]["written"]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    return int(after - before)


async def reload(process: Process, folder: Path, urls: list[str]) -> None:
    """Another configuration every second; one of ten is wrong, and must change nothing."""
    for number in count(1):
        await asyncio.sleep(1)
        if number % 10 == 0:
            replace(folder / "driftsched.yaml", "tenants: 5")
        else:
            configuration(folder, urls, number)
        signal_if_alive(process, signal.SIGHUP)


def replace(path: Path, text: str) -> None:
    """At once: who reads meanwhile sees it before or after."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def configuration(folder: Path, urls: list[str], number: int = 0) -> Path:
    """The `number`-th, which differs from others in what may change while serving."""
    timeouts = {"first_token_seconds": 1.5, "between_tokens_seconds": 1.0, "total_seconds": 20.0}
    engines = [{"url": url, "max_inflight": 24, "check_seconds": 1.0, "timeouts": timeouts} for url in urls]
    tenants: list[dict[str, Any]] = [
        {"id": name, "tier": tier, "weight": 1 + number % 3, "keys_sha256": [hash_key(f"sk-{name}")]}
        for name, tier in TENANTS.items()
    ]
    if number % 2:
        tenants.append({"id": "guest", "keys_sha256": [hash_key("sk-guest")]})
    limits = {"max_stall_seconds": STALL_SECONDS, "max_waiting": 200 - number % 100, "max_queue_seconds": 5.0}
    settings = {
        "engines": engines,
        "tenants": tenants,
        "admin": {"keys_sha256": [hash_key("sk-admin")], "max_decisions": 500},
        "limits": {**limits, "max_body_bytes": 100_000},
        "journal": {"path": str(folder / "journal.sqlite")},
        "state": {"path": str(folder / "state.sqlite"), "save_seconds": 5.0},
    }
    path = folder / "driftsched.yaml"
    replace(path, yaml.safe_dump(settings))
    return path


# The run


async def play(seconds: float, rate: float, seed: int, folder: Path) -> dict[str, Any]:
    rng = Random(seed)
    loop = asyncio.get_running_loop()
    addresses: list[asyncio.Future[str]] = [loop.create_future() for _ in range(NUM_ENGINES)]
    async with AsyncExitStack() as stack:
        engines = [asyncio.create_task(engine(n, Random(f"{seed} {n}"), a)) for n, a in enumerate(addresses)]
        stack.push_async_callback(cancelled, engines)
        urls = list(await asyncio.gather(*addresses))
        config = configuration(folder, urls)
        process, url = await stack.enter_async_context(running("serve", "--config", str(config)))
        patient = aiohttp.ClientTimeout(total=None, sock_connect=None)
        http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patient)
        await stack.enter_async_context(http)
        scene = Scene(url, http, Ledger(), rng)
        before = await observed(process.pid, scene)
        seen: list[Observed] = []
        others = [asyncio.create_task(watch(process.pid, scene, seen))]
        others.append(asyncio.create_task(reload(process, folder, urls)))
        stack.push_async_callback(cancelled, others)
        full_disk = asyncio.create_task(fill_the_disk(process.pid, scene, seconds))
        await send_all(scene, seconds, rate)
        num_written = await full_disk
        await http.close()
        scene.http = await stack.enter_async_context(aiohttp.ClientSession())
        after = await at_rest(process.pid, scene, before)
        counts = await counters(scene)
        process.terminate()
        async with asyncio.timeout(30):
            code = await process.wait()
    rows = journal_rows(folder / "journal.sqlite")
    report = {"seconds": seconds, "rate": rate, "seed": seed, **summary(scene, rows, counts)}
    report["memory"] = memory(seen)
    report["before"], report["after"] = vars(before), vars(after)
    report["amiss"] = [
        *amiss_in_books(scene.ledger, rows, counts),
        *amiss_at_rest(before, after, counts),
        *(amiss_in_memory(report["memory"]) if seconds >= STEADY_SECONDS else []),
        *([f"the gateway ended with status {code}"] if code else []),
        *([f"{num_written} rows were written to a full disk"] if num_written else []),
    ]
    return report


async def send_all(scene: Scene, seconds: float, rate: float) -> None:
    """Clients come at random, at this rate, unless too many are there already."""
    tasks: set[asyncio.Task[None]] = set()
    kinds, weights = [kind for _, kind in CLIENTS], [weight for weight, _ in CLIENTS]
    at = started = time.monotonic()
    while (at := at + scene.rng.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        (kind,) = scene.rng.choices(kinds, weights)
        scene.num_clients += 1
        task = asyncio.ensure_future(kind(scene))
        tasks.add(task)
        if len(tasks) >= MAX_AT_ONCE:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            at = max(at, time.monotonic() - 1)  # what could not be sent is not made up for
        task.add_done_callback(tasks.discard)
    async with asyncio.timeout(LAST_SECONDS):
        await asyncio.gather(*tasks)


async def at_rest(pid: int, scene: Scene, before: Observed) -> Observed:
    """What is left when all clients are gone and idle connections were given up."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        after = await observed(pid, scene)
        if (after.num_files <= before.num_files and after.num_tasks <= before.num_tasks) or (
            time.monotonic() > deadline
        ):
            return after
        await asyncio.sleep(0.5)


async def cancelled(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# The books


def journal_rows(path: Path) -> list[tuple[int, str, str]]:
    """(number, outcome, reason) of all rows."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT max_tokens, outcome, reason FROM requests").fetchall()


def summary(scene: Scene, rows: list[tuple[int, str, str]], counts: Counter[str]) -> dict[str, Any]:
    ledger = scene.ledger
    return {
        "num_clients": scene.num_clients,
        "sent": ledger.sent,
        "clients": dict(Counter(ledger.outcomes.values()).most_common()),
        "never_admitted": dict(ledger.strangers.most_common()),
        "journal": dict(Counter(f"{outcome} {reason}" for _, outcome, reason in rows).most_common()),
        "counters": {name: value for name, value in counts.items() if name.startswith("driftsched_requests_")},
        "retries": counts["driftsched_engine_retries_total"],
        "outages": counts["driftsched_engine_outages_total"],
        "reloads": {
            name: value for name, value in counts.items() if "reload" in name and not name.endswith("_created")
        },
    }


NEVER_ADMITTED = ("body_timeout", "invalid_json")
EVICTED = {"queue_timeout": "expired", "shed": "shed"}


def amiss_in_books(ledger: Ledger, rows: list[tuple[int, str, str]], counts: Counter[str]) -> list[str]:
    """Where the books of clients, journal and counters differ."""
    entered: dict[int, list[tuple[str, str]]] = {}
    for number, outcome, reason in rows:
        entered.setdefault(number, []).append((outcome, reason))
    found = [f"{n} is entered {len(entries)} times" for n, entries in entered.items() if len(entries) > 1]
    for number, seen in ledger.outcomes.items():
        entries = entered.pop(number, [])
        if seen.startswith("!") or not _agree(seen, entries):
            found.append(f"{number}: the client saw {seen}, the journal {entries}")
    found += [f"{number} is entered, but was never whole" for number in entered]
    found += [f"a stranger was told {said}" for said in ledger.strangers if said.startswith("!")]
    ended = Counter(outcome for _, outcome, _ in rows)
    for outcome in ("finished", "rejected", "evicted", "failed"):
        if ended[outcome] != counts[f"driftsched_requests_{outcome}_total"]:
            found.append(f"{outcome}: {ended[outcome]} in the journal, not as counted")
    if counts["driftsched_requests_submitted_total"] != len(rows):
        found.append("not every submitted request has a row")
    if counts["driftsched_journal_dropped_total"]:
        found.append("the journal lost rows")
    return found


def _agree(seen: str, entries: list[tuple[str, str]]) -> bool:
    if seen == "left":  # at whatever stage that was, and perhaps before it was read
        return len(entries) <= 1
    if len(entries) != 1:
        return False
    outcome, reason = entries[0]
    if seen in ("finished", "stream_error"):
        return outcome == ("finished" if seen == "finished" else "failed")
    return (outcome, reason) == ("evicted", EVICTED[seen]) if seen in EVICTED else reason == seen


def memory(seen: list[Observed]) -> dict[str, float]:
    """Megabytes: the median of each third, and the highest. The first third is for warming up."""
    sizes = [each.rss_bytes / 1e6 for each in seen]
    third = max(1, len(sizes) // 3)
    parts = {
        name: round(median(sizes[n * third :][:third]), 1) for n, name in enumerate(("first", "second", "last"))
    }
    return {**parts, "highest": round(max(sizes), 1)}


def amiss_at_rest(before: Observed, after: Observed, counts: Counter[str]) -> list[str]:
    """What was not given back."""
    found = [
        f"{counts[name]} {name}"
        for name in (
            "driftsched_waiting_requests",
            "driftsched_inflight_requests",
            "driftsched_engine_inflight_requests",
        )
        if counts[name]
    ]
    if after.num_tasks > before.num_tasks:
        found.append(f"{after.num_tasks} tasks, {before.num_tasks} before")
    if after.num_files > before.num_files + 4:  # those of the journal and the state, opened since
        found.append(f"{after.num_files} files and sockets, {before.num_files} before")
    return found


def amiss_in_memory(memory: dict[str, float]) -> list[str]:
    grows = memory["last"] > 1.1 * memory["second"] + 5
    return [f"memory grows: {memory}"] if grows else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(play(arguments.seconds, arguments.rate, arguments.seed, Path(folder)))
    report["conditions"] = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    print(json.dumps({**report, "amiss": report["amiss"][:20]}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if report["amiss"] else 0)


if __name__ == "__main__":
    main()
