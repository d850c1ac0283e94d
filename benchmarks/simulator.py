"""What a simulated request costs, from arrival to summary: requests per second of processor time, and peak memory.

    python benchmarks/simulator.py [--requests 10000 100000 1000000] [--repeats 3] [--no-peer] [--json FILE]

Poisson arrivals at nine tenths of the capacity of 32 slots run through the scheduler, the engine model, the
recorder and every measure; making the trace is not timed. Each cell is a process of its own, so that its peak
memory is its own: it counts the trace and the interpreter too. Processor time, because a shared machine's pauses
are no fault of the simulator; the median of `--repeats` runs, one run from a million requests on, and closed
micro-batches (`static`) are left out there.

The peer is sched-sim, a simulator of serving engines that steps through iterations as well, installed into a
temporary environment of its own; if it cannot be, that is said, and the rest is measured. It is given the same
requests (arrivals and lengths) and its own preset of the same machine and model; its batches are bounded by memory
instead of slots. Its clock runs while it simulates and makes its metrics; building its requests is not timed.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

from driftsched.engines.presets import get_hardware
from driftsched.sim.experiment import Case, Machine, capacity, run_case
from driftsched.sim.measures import measure
from driftsched.sim.trace import Row
from driftsched.sim.workloads import generate, make_scenario
from driftsched.simulating import PARTS

HARDWARE = "a100-llama3-8b"
RHO = 0.9
SLOTS = 32
POLICIES = ("fifo", "sjf")
MODES = ("continuous", "static")
LARGE = 1_000_000

PEER = "sched-sim==0.2.1"
PEER_REQUESTS = 10_000
PEER_TIMEOUT_SECONDS = 300
PEER_SCRIPT = """
import json, sys
from time import process_time
from sched_sim.core.event_engine import Simulator
from sched_sim.core.request import Request
from sched_sim.hardware.presets import get_hardware_profile
from sched_sim.memory.preemption import PreemptionMode
from sched_sim.schedulers.factory import create_scheduler

rows = json.load(sys.stdin)
hardware = get_hardware_profile("a100")
scheduler = create_scheduler(sys.argv[1], hardware, PreemptionMode.RECOMPUTE)
simulator = Simulator(hardware, scheduler)
simulator.submit_workload(
    [
        Request(request_id=str(number), arrived_at=at, prompt_tokens=prompt, output_tokens=completion)
        for number, (at, prompt, completion) in enumerate(rows)
    ]
)
started_at = process_time()
simulator.run()
print(process_time() - started_at)
"""


def main() -> None:
    arguments = _arguments()
    if arguments.cell:
        print(json.dumps(_cell(json.loads(arguments.cell))))
        return
    cells = [_in_a_process(cell) for cell in _cells(arguments)]
    _print(cells)
    peers = [] if arguments.no_peer else _peer()
    for peer in peers:
        own = _in_a_process(
            {**_settings(peer["policy"], "continuous", PEER_REQUESTS), "repeats": arguments.repeats}
        )
        peer["ratio"] = own["requests_per_second"] / peer["requests_per_second"]
        print(
            f"{PEER} {peer['policy']}, {PEER_REQUESTS} requests: {peer['requests_per_second']:.0f} a second; "
            f"driftsched {own['requests_per_second']:.0f}, {peer['ratio']:.1f} times as many"
        )
    document = {"conditions": _conditions(), "results": cells, "peers": peers}
    print(json.dumps(document["conditions"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000, LARGE])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="do not install and measure the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def _cells(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {**_settings(policy, mode, requests), "repeats": 1 if requests >= LARGE else arguments.repeats}
        for mode in MODES
        for policy in POLICIES
        for requests in arguments.requests
        if mode == "continuous" or requests < LARGE
    ]


def _settings(policy: str, mode: str, requests: int) -> dict[str, Any]:
    return {"policy": policy, "mode": mode, "requests": requests}


def _in_a_process(cell: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**cell, **json.loads(done.stdout)}


def _cell(cell: dict[str, Any]) -> dict[str, float]:
    machine = Machine(get_hardware(HARDWARE), cell["mode"], SLOTS)
    rows = _rows(cell["requests"], machine)
    case = Case(cell["policy"], "static", machine)
    seconds = []
    for _ in range(cell["repeats"]):
        started_at = process_time()
        measure(run_case(rows, case, 1, PARTS))
        seconds.append(process_time() - started_at)
    return {
        "requests_per_second": len(rows) / statistics.median(seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _rows(requests: int, machine: Machine) -> list[Row]:
    sample = generate(make_scenario("poisson", {"requests": "3000"}), 0, capacity=1.0)
    scenario = make_scenario("poisson", {"requests": str(requests), "rho": str(RHO)})
    return generate(scenario, 1, capacity=capacity(sample, machine))


def _peer() -> list[dict[str, Any]]:
    """Its figures by policy; empty, and said why, if it cannot be installed."""
    rows = _rows(PEER_REQUESTS, Machine(get_hardware(HARDWARE), "continuous", SLOTS))
    trace = json.dumps([(row.at, row.prompt_tokens, row.completion_tokens) for row in rows])
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = str(Path(directory) / "bin" / "python")
        installed = subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=False)
        if installed.returncode:
            print(f"left out: {PEER} could not be installed")
            return []
        return [
            {"peer": PEER, "policy": policy, "requests": len(rows), "requests_per_second": len(rows) / seconds}
            for policy in POLICIES
            if (seconds := _peer_seconds(python, policy, trace)) is not None
        ]


def _peer_seconds(python: str, policy: str, trace: str) -> float | None:
    name = {"fifo": "fcfs", "sjf": "sjf"}[policy]
    command = [python, "-c", PEER_SCRIPT, name]
    try:
        done = subprocess.run(
            command, input=trace, check=False, stdout=subprocess.PIPE, text=True, timeout=PEER_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        print(f"left out: {PEER} {policy} did not finish in {PEER_TIMEOUT_SECONDS} s")
        return None
    if done.returncode:
        print(f"left out: {PEER} {policy} failed with status {done.returncode}")
        return None
    return float(done.stdout)


def _print(cells: Sequence[dict[str, Any]]) -> None:
    print(f"{'mode':>12}{'policy':>8}{'requests':>10}{'requests/s':>12}{'peak MiB':>10}")
    for cell in cells:
        print(
            f"{cell['mode']:>12}{cell['policy']:>8}{cell['requests']:>10}"
            f"{cell['requests_per_second']:12.0f}{cell['peak_mib']:10.0f}"
        )


def _conditions() -> dict[str, Any]:
    command = ["git", "rev-parse", "HEAD"]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if "model name" in line]
    return {
        "commit": subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip(),
        "python": platform.python_version(),
        "cpu": models[0] if models else platform.processor(),
        "hardware": HARDWARE,
        "rho": RHO,
        "slots": SLOTS,
        "load_average": os.getloadavg(),
    }


if __name__ == "__main__":
    main()
