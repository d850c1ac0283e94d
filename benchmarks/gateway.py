"""What the gateway costs: requests and streamed chunks per second on one core, beside the upstream asked directly.

    python benchmarks/gateway.py --tools DIR [--policy fifo] [--estimator calibrated] [--repeats 5] [--json FILE]

`DIR` holds `mock.c`, a fast OpenAI-like upstream, and `load.c`, a closed-loop client; both are compiled with `cc`.
The gateway has core 0 for itself; upstream and client share core 1. Bodies are 2 kB; an answer is 32 chunks of one
token, written one by one. Each figure is the median over the repeats, in which all targets take turns, because the
speed of a shared machine wanders: trust the ratios.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from driftsched.bench.processes import running
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit

CHUNKS = 32
UPSTREAM_PORT = 9470
GATEWAY_CORE, TOOLS_CORE = "0", "1"
CASES = {
    "whole, 64 connections": (64, False, "rps"),
    "stream, 32 connections": (32, True, "events_s"),
    "whole, 1 connection": (1, False, "p50_us"),
}
UNITS = {"rps": "requests/s", "events_s": "chunks/s", "p50_us": "us P50"}


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder)
        for name in ("mock", "load"):
            source = str(arguments.tools / f"{name}.c")
            subprocess.run(["cc", "-O2", "-o", str(tools / name), source], check=True)
        for stream in (False, True):
            (tools / _body_name(stream)).write_text(json.dumps(_body(stream)))
        with _upstream(tools):
            results = asyncio.run(_measure(tools, arguments))
    _print(results)
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": _conditions(arguments), "results": results}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--policy", default="fifo")
    parser.add_argument("--estimator", default="calibrated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _body(stream: bool) -> dict[str, Any]:
    text = "Say in a few words what a fair queue is, and why an engine that many share should have one. " * 19
    return {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": 256, "stream": stream}


def _body_name(stream: bool) -> str:
    return f"body-{'stream' if stream else 'whole'}.json"


@contextmanager
def _upstream(tools: Path) -> Iterator[None]:
    command = ["taskset", "-c", TOOLS_CORE, str(tools / "mock"), "-p", str(UPSTREAM_PORT), "-n", str(CHUNKS)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _measure(tools: Path, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    serve = ["serve", "--engine", f"http://127.0.0.1:{UPSTREAM_PORT}", "--max-inflight", "64", "--port", "0"]
    serve += ["--no-state", "--policy", arguments.policy, "--estimator", arguments.estimator]
    os.sched_setaffinity(0, {int(GATEWAY_CORE)})  # inherited by the gateway
    results: dict[str, dict[str, list[float]]] = {case: {"direct": [], "driftsched": []} for case in CASES}
    async with running(*serve) as url:
        ports = {"direct": UPSTREAM_PORT, "driftsched": int(url.rpartition(":")[2])}
        for _ in range(arguments.repeats):
            for case, (connections, stream, figure) in CASES.items():
                for target, port in ports.items():
                    report = await asyncio.to_thread(_load, tools, port, connections, stream, arguments.seconds)
                    if report["errs"] or report["non200"]:
                        sys.exit(f"{target}: {report['errs']} errors, {report['non200']} answers other than 200")
                    results[case][target].append(report[figure])
    return results


def _load(tools: Path, port: int, connections: int, stream: bool, seconds: int) -> dict[str, float]:
    command = ["taskset", "-c", TOOLS_CORE, str(tools / "load"), "-p", str(port), "-c", str(connections)]
    command += ["-s", str(seconds), "-w", "1", "-b", str(tools / _body_name(stream))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, float] = json.loads(done.stdout)
    return report


def _print(results: dict[str, dict[str, list[float]]]) -> None:
    print(f"{'':24}{'direct':>12}{'driftsched':>12}{'min':>10}{'max':>10}  unit")
    for case, targets in results.items():
        direct, ours = median(targets["direct"]), targets["driftsched"]
        unit = UNITS[CASES[case][2]]
        print(f"{case:24}{direct:12.0f}{median(ours):12.0f}{min(ours):10.0f}{max(ours):10.0f}  {unit}")


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("policy", "estimator", "repeats", "seconds")}
    return {"commit": source_commit(), **capture_environment(), **capture_conditions(), **settings}


if __name__ == "__main__":
    main()
