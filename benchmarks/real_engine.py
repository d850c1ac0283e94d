"""What the order does on a real engine: setups of the gateway, interleaved in one run at saturation.

    python benchmarks/real_engine.py [--engine URL] [--arms LIST] [--rounds 6] [--requests 80] [--rho 1.1]
        [--json FILE]

Without --engine it starts `driftsched local` (llama.cpp on the CPU; the extra `local`). Each arm has a gateway of
its own for the whole run, so that its estimator learns from its own blocks. A round measures the engine's capacity
with the same mix of requests, sent straight to it; then each arm gets the same requests at the same instants, open
loop, at `--rho` times that capacity, the arms in random order. The first round is practice and counts in nothing;
Ctrl-C ends the run, and the whole rounds count. Prompts are about twenty topics, in wordings that make short and
long answers; temperature 0; limits of 48, 80 and 128 tokens that say nothing of the length; five tenants, one of
which sends half of all requests.

An arm is POLICY+ESTIMATOR, and after slashes what the gateway does with the engine: `inflight=16` dispatches so
many at once (default: the engine's slots), `priority` sends the engine a priority with every request.
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp
import msgspec
import uvloop

from driftsched.bench.capacity import measure_capacity
from driftsched.bench.comparison import Comparison, compare
from driftsched.bench.live import BlockResult, Sending, Sent, live_figures, run_blocks
from driftsched.bench.plan import Block, Setup, interleaved, parse_setup, shots_of
from driftsched.bench.pooled import Column, e2e, setup_figures, ttft, values_by_seed
from driftsched.bench.processes import running
from driftsched.bench.prompts import TOPICS
from driftsched.benching import gateway_settings, running_gateway
from driftsched.core.model import Tier
from driftsched.engines.kinds import Discovery
from driftsched.engines.openai import OpenAIEngine
from driftsched.sim.conditions import capture_environment, source_commit
from driftsched.sim.trace import Row, on_grid

T = TypeVar("T")

ARMS = "fifo+adaptive,sjf+ema,fair+adaptive"
KINDS = {
    "sentence": (12, ("In one sentence, what is {topic}?", "In one short sentence, tell me why {topic} matters.")),
    "summary": (4, ("Summarize the key ideas of {topic}.", "Summarize the history of {topic}.")),
    "question": (2, ("What is {topic} and why is it important?", "Who benefits from {topic}, and how?")),
    "report": (2, ("Write a detailed report on {topic}.", "Explain step by step how {topic} works.")),
}
"""Kind -> its weight, and wordings."""
LIMITS = (48, 80, 128)
"""Of tokens, drawn for each request whatever it asks."""
HEAVY = "heavy"
TENANTS = {
    HEAVY: (50, Tier.STANDARD),
    "premium": (10, Tier.PREMIUM),
    "standard-1": (15, Tier.STANDARD),
    "standard-2": (15, Tier.STANDARD),
    "batch": (10, Tier.BATCH),
}
"""Who asks: percent of the requests, and tier."""
COLUMNS: dict[str, tuple[Column, Callable[[Sent], bool]]] = {
    "e2e_seconds": (e2e, lambda _: True),
    "ttft_seconds": (ttft, lambda _: True),
    "light.e2e_seconds": (e2e, lambda each: each.row.tenant != HEAVY),
    "heavy.e2e_seconds": (e2e, lambda each: each.row.tenant == HEAVY),
    "premium.e2e_seconds": (e2e, lambda each: each.row.tier is Tier.PREMIUM),
    "batch.e2e_seconds": (e2e, lambda each: each.row.tier is Tier.BATCH),
    "sentence.e2e_seconds": (e2e, lambda each: each.row.category == "sentence"),
}
"""What is compared: times of all requests, or of some."""
CAPACITY_REQUESTS_PER_SLOT = 4
ORDER_SEED = 1
PRACTICE_SEED = 0


@dataclass(frozen=True)
class Arm:
    label: str
    setup: Setup
    max_inflight: int | None
    engine_priority: bool

    @classmethod
    def parse(cls, text: str) -> "Arm":
        parts, *extras = text.strip().split("/")
        setup = parse_setup(parts, "adaptive")._replace(variant=" ".join(extras) or "base")
        options = dict(extra.partition("=")[::2] for extra in extras)
        unknown = options.keys() - {"inflight", "priority"}
        if unknown:
            sys.exit(f"--arms: {text}: unknown {', '.join(unknown)}")
        inflight = int(options["inflight"]) if "inflight" in options else None
        return cls(text.strip(), setup, inflight, "priority" in options)


@dataclass(frozen=True)
class Engine:
    url: str
    discovery: Discovery
    slots: int
    facts: dict[str, Any]

    def settings(self, arm: Arm) -> dict[str, Any]:
        """The entry of `engines` in the arm's gateway. Its metrics are left alone: gateways share it, in turns."""
        entry: dict[str, Any] = {"url": self.url, "max_inflight": arm.max_inflight or self.slots}
        entry |= {"scrape_seconds": None}
        return entry | ({"priority": True} if arm.engine_priority else {})


def main() -> None:
    arguments = _arguments()
    arms = [Arm.parse(text) for text in arguments.arms.split(",")]
    before = os.getloadavg()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        document = runner.run(_run(arguments, arms))
    document |= {"load_average": {"start": before, "end": os.getloadavg()}}
    _print(document)
    if arguments.json:
        arguments.json.write_text(json.dumps(_plain(msgspec.to_builtins(document)), indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="URL; without it driftsched local is started")
    parser.add_argument(
        "--slots", type=int, help="requests the engine serves at once; default: what it says, else 4"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the engine started here")
    parser.add_argument("--engine-version", help="recorded, where the engine does not say itself")
    parser.add_argument("--arms", default=ARMS, help="separated by commas; the first two are compared with")
    parser.add_argument("--rounds", type=int, default=6, help="that count")
    parser.add_argument("--requests", type=int, default=80, help="in each block")
    parser.add_argument("--rho", type=float, default=1.1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, arms: Sequence[Arm]) -> dict[str, Any]:
    async with _engine(arguments) as engine, AsyncExitStack() as stack:
        urls = {
            arm.setup: await stack.enter_async_context(
                running_gateway(gateway_settings(arm.setup, engine.settings(arm), rows_of(PRACTICE_SEED, 200, 1.0)))
            )
            for arm in arms
        }

        @asynccontextmanager
        async def serve(block: Block) -> AsyncIterator[str]:
            yield urls[block.setup]

        sending = Sending(engine.discovery.models[0], temperature=0.0)
        rates: dict[int, float] = {}
        results: list[BlockResult] = []
        with suppress(asyncio.CancelledError):  # interrupted: what is whole is reported
            for seed in range(PRACTICE_SEED, arguments.rounds + 1):
                capacity = await _capacity(engine, seed, sending)
                rates[seed] = arguments.rho * capacity
                print(f"round {seed} of {arguments.rounds}: capacity {capacity:.2f}/s", file=sys.stderr, flush=True)
                rows = rows_of(seed, arguments.requests, rates[seed])
                blocks = interleaved([arm.setup for arm in arms], [seed], ORDER_SEED + seed)
                await run_blocks(blocks, lambda _, rows=rows: rows, serve, sending, results)  # type: ignore[misc]
        results = [result for result in results if result.complete]
        return _document(arguments, arms, engine, rates, results)


@asynccontextmanager
async def _engine(arguments: argparse.Namespace) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        slots, threads = arguments.slots, arguments.threads
        local = ("local", "--port", "0", "--slots", str(slots or 4), "--threads", str(threads))
        url = arguments.engine or await stack.enter_async_context(running(*local, start_seconds=600))
        client = OpenAIEngine(url)
        stack.push_async_callback(client.close)
        discovery = await client.discover()
        slots = slots or discovery.slots or 4
        version = arguments.engine_version or await _version(url)
        facts = {"kind": discovery.kind, "version": version, "model": discovery.models[0], "slots": slots}
        yield Engine(url, discovery, slots, facts | ({} if arguments.engine else {"threads": threads}))


async def _version(url: str) -> str:
    """As llama-server and vLLM tell it."""
    async with aiohttp.ClientSession() as session:
        for path, field in (("/props", "build_info"), ("/version", "version")):
            async with session.get(url + path) as response:
                document = await response.json() if response.status == 200 else {}
            if field in document:
                return str(document[field])
    return "unknown"


async def _capacity(engine: Engine, seed: int, sending: Sending) -> float:
    rows = rows_of(-1 - seed, CAPACITY_REQUESTS_PER_SLOT * engine.slots, 1.0)
    return await measure_capacity(engine.url, shots_of(rows, seed), sending, slots=engine.slots)


def rows_of(seed: int, requests: int, rate: float) -> list[Row]:
    """A Poisson stream in which kinds, tenants and limits have exactly their shares."""
    random = Random(f"{seed}:real engine")
    kinds = _shares({kind: weight for kind, (weight, _) in KINDS.items()}, requests, random)
    tenants = _shares({tenant: share for tenant, (share, _) in TENANTS.items()}, requests, random)
    limits = _shares(dict.fromkeys(LIMITS, 1), requests, random)
    at, rows = 0.0, []
    for kind, tenant, limit in zip(kinds, tenants, limits, strict=True):
        prompt = random.choice(KINDS[kind][1]).format(topic=random.choice(TOPICS))
        prompt_tokens = round(1.3 * len(prompt.split()))
        tier = TENANTS[tenant][1]
        rows.append(Row(on_grid(at), prompt_tokens, 1, tenant, tier, kind, max_tokens=limit, prompt=prompt))
        at += random.expovariate(rate)
    return rows


def _shares(weights: Mapping[T, int], count: int, random: Random) -> list[T]:
    """`count` names in random order, each as often as its weight says."""
    made: list[T] = []
    total, passed = sum(weights.values()), 0
    for name, weight in weights.items():
        passed += weight
        made += [name] * (round(count * passed / total) - len(made))
    random.shuffle(made)
    return made


def _document(
    arguments: argparse.Namespace,
    arms: Sequence[Arm],
    engine: Engine,
    rates: dict[int, float],
    results: Sequence[BlockResult],
) -> dict[str, Any]:
    complete = Counter(result.block.seed for result in results)
    counting = [r for r in results if r.block.seed != PRACTICE_SEED and complete[r.block.seed] == len(arms)]
    by_arm = {arm.label: [r for r in counting if r.block.setup == arm.setup] for arm in arms}
    environment = capture_environment()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": source_commit(),
        "driftsched": environment["driftsched"],
        "python": environment["python"],
        "cores": environment["cores"],
        "engine": engine.facts,
        "rho": arguments.rho,
        "rounds": len({result.block.seed for result in counting}),
        "requests_per_block": arguments.requests,
        "arms": {label: setup_figures(mine) for label, mine in by_arm.items()},
        "comparisons": _comparisons(by_arm),
        "rounds_requests_per_second": {
            seed: {"capacity": rate / arguments.rho, "offered": rate} for seed, rate in rates.items()
        },
        "blocks": [live_figures(result, position) for position, result in enumerate(results)],
    }


def _comparisons(by_arm: dict[str, list[BlockResult]]) -> list[Any]:
    """Each arm with the first two, the arms with extras also with the one before them."""
    labels = list(by_arm)
    pairs = [(label, other) for place, label in enumerate(labels) for other in labels[: min(place, 2)]]
    pairs += [(label, labels[place - 1]) for place, label in enumerate(labels) if place > 2]
    found = []
    for label, other in pairs:
        for name, (column, only) in COLUMNS.items():
            mine = values_by_seed(by_arm[label], column, only)
            theirs = values_by_seed(by_arm[other], column, only)
            found += compare(name, label, mine, other, theirs)
    return found


def _plain(value: Any) -> Any:
    """For a file: without what could not be given, and no more digits than were measured."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return round(value, 5) if isinstance(value, float) else value


def _print(document: dict[str, Any]) -> None:
    facts = ", ".join(f"{name} {value}" for name, value in document["engine"].items())
    print(
        f"{facts}; rho {document['rho']}, {document['rounds']} rounds of {document['requests_per_block']} requests"
    )
    heads = "".join(
        head.rjust(7) for head in ("mean", "P50", "P95", "P99", "max", "TTFT50", "MAE", "tau", "failed")
    )
    print(f"{'s':32}{heads}")
    for label, arm in document["arms"].items():
        times, said = arm.e2e_seconds, arm.prediction
        cells = [times.mean, times.p50, times.p95, times.p99, times.max, arm.ttft_seconds.p50]
        cells += [said.mae_tokens, said.kendall_tau, arm.failed]
        print(f"{label:32}" + "".join(" " * 6 + "-" if value is None else f"{value:7.2f}" for value in cells))
    for each in document["comparisons"]:
        interval = f"{each.change:+.0%} {each.low:+.0%}..{each.high:+.0%}"
        print(f"{each.setup} against {each.baseline}, {each.figure}: {interval}{_by_block(each)}")


def _by_block(comparison: Comparison) -> str:
    interval = comparison.by_block
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"; by block {interval.mean:+.0%} {interval.low:+.0%}..{interval.high:+.0%}"


if __name__ == "__main__":
    main()
