"""Memory over time, and of waiting streams: does the gateway stay as large as it is?

    python benchmarks/soak.py [--seconds 300] [--rate 200] [--waiting 2000] [--estimator adaptive] [--json FILE]

First a steady load with everything on (keys, prediction, policy `fair`, journal, records of decisions, state),
whole and streamed answers in turn, in front of a simulated engine. After a warm-up of two fifths of the time the
memory of the process is looked at twice a second; of ten blocks of these looks the medians are taken, and a line is
laid through them: its slope, with a 95 % interval, in MB an hour and in bytes a request. Then streams are opened
that all wait for one slot, and their memory is measured. Status 1 if memory grows by more than `MAX_GROWTH_BYTES`
a request, or the streams take more than 400 MB.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from contextlib import suppress
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import aiohttp
import yaml

from driftsched.bench.processes import running
from driftsched.keys import hash_key
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit

CHAT = "/v1/chat/completions"
WARM_UP = 0.4
NUM_BLOCKS = 10
T_95 = 2.306
"""Student's t for ten blocks and a line through them, two-sided."""
MAX_WAITING_BYTES = 400e6
MAX_GROWTH_BYTES = 100.0
"""A request, at the low end of the interval: less than anything that is kept of one."""
TOPICS = ("queues", "bees", "tides", "compilers", "glass", "sleep", "trade", "volcanoes")
ASKING = ("Summarise", "List ten facts about", "Write a story of", "Explain to a child", "Write code that models")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        steady = asyncio.run(_steady(arguments, Path(folder)))
        waiting = asyncio.run(_waiting(arguments, Path(folder)))
    conditions = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    report = {"steady": steady, "waiting": waiting, "conditions": conditions}
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    grows = steady["bytes_per_request"] - steady["interval_bytes_per_request"] > MAX_GROWTH_BYTES
    sys.exit(1 if grows or waiting["rss_mb"] * 1e6 > MAX_WAITING_BYTES else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--waiting", type=int, default=2000)
    parser.add_argument("--estimator", default="adaptive")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _configuration(folder: Path, engine_url: str, estimator: str, slots: int) -> Path:
    settings = {
        "engines": [{"url": engine_url, "max_inflight": slots}],
        "estimator": {"name": estimator},
        "tenants": [{"id": "ann", "keys_sha256": [hash_key("sk-ann")]}],
        "admin": {"keys_sha256": [hash_key("sk-admin")], "max_decisions": 1000},
        "journal": {"path": str(folder / "journal.sqlite"), "max_rows": 10_000},
        "state": {"path": str(folder / "state.sqlite"), "save_seconds": 10.0},
    }
    path = folder / "driftsched.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


async def _steady(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    looks: list[tuple[float, int]] = []
    num_done = 0
    rng = Random(1)
    async with running("mock", "--slots", "64", "--speed", "200", "--port", "0") as engine_url:
        config = _configuration(folder, engine_url, arguments.estimator, 64)
        async with running("serve", "--config", str(config), "--port", "0") as url, _client(url) as http:
            pid = _serving_pid(config)
            started = at = time.monotonic()
            looking = asyncio.create_task(_look(pid, looks))
            tasks: set[asyncio.Task[None]] = set()
            while (at := at + rng.expovariate(arguments.rate)) < started + arguments.seconds:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                task = asyncio.create_task(_ask(http, rng, num_done))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                num_done += 1
            await asyncio.gather(*tasks)
            looking.cancel()
    since = started + WARM_UP * arguments.seconds
    return {
        "num_requests": num_done,
        "seconds": arguments.seconds,
        **_trend([x for x in looks if x[0] > since], num_done / arguments.seconds),
    }


async def _ask(http: aiohttp.ClientSession, rng: Random, number: int) -> None:
    content = f"{rng.choice(ASKING)} {rng.choice(TOPICS)}, number {number}. " + "Be plain. " * rng.randrange(20)
    body = {
        "model": "simulated",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "stream": number % 2 == 0,
    }
    async with http.post(CHAT, json=body) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}")


async def _waiting(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All but one of the streams wait; every client has the head of its answer or nothing yet."""
    async with running("mock", "--slots", "1", "--speed", "0.01", "--port", "0") as engine_url:
        config = _configuration(folder, engine_url, arguments.estimator, 1)
        async with running("serve", "--config", str(config), "--port", "0") as url, _client(url) as http:
            pid = _serving_pid(config)
            before = _resident_bytes(pid)
            tasks = [asyncio.create_task(_wait(http, number)) for number in range(arguments.waiting + 1)]
            await _until_waiting(http, arguments.waiting)
            after = _resident_bytes(pid)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _until_waiting(http, 0)
    return {
        "num_waiting": arguments.waiting,
        "rss_mb": round(after / 1e6, 1),
        "rss_before_mb": round(before / 1e6, 1),
        "kb_per_stream": round((after - before) / arguments.waiting / 1e3, 1),
    }


async def _wait(http: aiohttp.ClientSession, number: int) -> None:
    content = f"Say number {number} in many words. " + "Take your time and leave nothing out. " * 50
    body = {"model": "simulated", "messages": [{"role": "user", "content": content}], "stream": True}
    async with http.post(CHAT, json=body) as response:
        await response.read()


async def _until_waiting(http: aiohttp.ClientSession, number: int) -> None:
    num_waiting = -1
    while num_waiting != number:
        async with http.get("/admin/state", headers={"authorization": "Bearer sk-admin"}) as response:
            num_waiting = (await response.json())["load"]["num_waiting"]
        await asyncio.sleep(0.2)


def _client(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers={"authorization": "Bearer sk-ann"},
    )


def _serving_pid(config: Path) -> int:
    """The process that serves with this configuration."""
    wanted = str(config).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "cmdline").read_bytes().split(b"\0"):
                return int(folder.name)
    raise RuntimeError("the gateway is not running")


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def _look(pid: int, looks: list[tuple[float, int]]) -> None:
    while True:
        await asyncio.sleep(0.5)
        looks.append((time.monotonic(), _resident_bytes(pid)))


def _trend(looks: list[tuple[float, int]], rate: float) -> dict[str, float]:
    """The line through the medians of the blocks, and how sure its slope is."""
    size = len(looks) // NUM_BLOCKS
    blocks = [looks[n * size :][:size] for n in range(NUM_BLOCKS)]
    x = [fmean(at for at, _ in block) for block in blocks]
    y = [median(rss for _, rss in block) for block in blocks]
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    residuals = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y, strict=True)]
    error = sqrt(sum(each**2 for each in residuals) / (NUM_BLOCKS - 2) / spread)
    return {
        "rss_first_mb": round(y[0] / 1e6, 1),
        "rss_last_mb": round(y[-1] / 1e6, 1),
        "slope_mb_per_hour": round(slope * 3600 / 1e6, 1),
        "interval_mb_per_hour": round(T_95 * error * 3600 / 1e6, 1),
        "bytes_per_request": round(slope / rate, 1),
        "interval_bytes_per_request": round(T_95 * error / rate, 1),
    }


if __name__ == "__main__":
    main()
