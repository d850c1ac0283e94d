"""What the gateway costs on one core, beside other gateways in the same run.

    python benchmarks/gateway.py --tools DIR [--litellm] [--router PROGRAM] [--repeats 3] [--json FILE]

`DIR` holds `mock.c`, a fast OpenAI-like upstream, and `load.c`, a closed-loop client; both are compiled with `cc`.
Measured are driftsched with the default policy and everything on, once with the estimator `calibrated`, once with
`adaptive`, and once with `calibrated` and `stream_whole_answers: false` ("unstreamed"); nginx, if it is installed;
with `--litellm` LiteLLM, which is installed at first use; with `--router` the vLLM production stack's router, whose
program is named. `peers.py` says how each is set up.

A gateway has core 0 for itself in its turn; upstream and client share core 1. Bodies have 2 kB or 50 kB; a stream
is 32 chunks, each written by itself. In every repeat all take turns at every case. The speed of a shared machine
wanders: figures are medians over the repeats, with the least and the greatest, ratios medians of the ratios inside
each repeat. Trust those.
"""

import argparse
import json
import re
import resource
import subprocess
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError

import peers
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit
from peers import Command, UnavailableError
from pinned import Server, start

GATEWAY_CORE, TOOLS_CORE = "0", "1"
UPSTREAM_PORT = 9470
UPSTREAM = f"http://127.0.0.1:{UPSTREAM_PORT}"
CHUNKS = 32
NUM_WAITING = 2_000
FOREVER_US = 3_600_000_000
WARM_SECONDS = 0.5
OPEN_FILES = 20_000
"""Two for each stream, and driftsched takes half of what it may have for clients."""


@dataclass(frozen=True)
class Case:
    """One load, and what is read off it."""

    connections: int
    body: str
    figures: dict[str, str]
    """By name, the field of the client's report."""
    pace_us: int = 0
    """Between two chunks of a stream."""


CASES = (
    Case(64, "2kB", {"requests/s, 64 connections, 2 kB": "rps", "CPU us per request, 2 kB": "cpu_us_per_request"}),
    Case(
        64, "50kB", {"requests/s, 64 connections, 50 kB": "rps", "CPU us per request, 50 kB": "cpu_us_per_request"}
    ),
    Case(1, "2kB", {"added us P50, 1 connection": "p50_us", "added us P99, 1 connection": "p99_us"}),
    Case(32, "stream", {"chunks/s, 32 streams": "events_s"}),
    Case(256, "stream", {"CPU us per chunk, 256 paced streams": "cpu_us_per_event"}, pace_us=20_000),
)
RSS, RSS_WAITING = "RSS MB after load", f"RSS MB, {NUM_WAITING:,} waiting streams"

Figures = dict[str, dict[str, list[float]]]
"""By name and server, one value for each repeat; of memory there is one value."""


class Tools:
    """The upstream and the client, on their core."""

    def __init__(self, sources: Path, folder: Path) -> None:
        self._folder = folder
        for name in ("mock", "load"):
            subprocess.run(["cc", "-O2", "-o", str(folder / name), str(sources / f"{name}.c")], check=True)
        for name, num_bytes, stream in (("2kB", 2_000, False), ("50kB", 50_000, False), ("stream", 2_000, True)):
            (folder / f"{name}.json").write_text(json.dumps(_body(num_bytes, stream)))

    def start_upstream(self) -> Server:
        return start("direct", [str(self._folder / "mock"), "-p", str(UPSTREAM_PORT)], UPSTREAM_PORT, TOOLS_CORE)

    def load(self, port: int, case: Case, seconds: float, warm_seconds: float = 0.0) -> dict[str, float]:
        """What the client saw after warming up."""
        self._pace(case.pace_us)
        command = self._client(port, case.connections, case.body)
        command += ["-s", str(seconds), "-w", str(warm_seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        report: dict[str, float] = json.loads(done.stdout)
        return report

    @contextmanager
    def hanging(self, port: int, streams: int) -> Iterator[None]:
        """So many streams of which the upstream answers none."""
        self._pace(0, first_us=FOREVER_US)
        client = subprocess.Popen([*self._client(port, streams, "stream"), "-s", "600"])
        try:
            yield
        finally:
            client.kill()
            client.wait()
            self._pace(0)

    def inflight(self) -> int:
        """Requests at the upstream."""
        return int(json.loads(_get(f"{UPSTREAM}/_stats"))["inflight"])

    def _client(self, port: int, connections: int, body: str) -> list[str]:
        command = ["taskset", "-c", TOOLS_CORE, str(self._folder / "load"), "-p", str(port), "-k", peers.KEY]
        return [*command, "-c", str(connections), "-b", str(self._folder / f"{body}.json")]

    def _pace(self, pace_us: int, first_us: int = 0) -> None:
        _get(f"{UPSTREAM}/_ctl?ttft_us={first_us}&delay_us={pace_us}&chunks={CHUNKS}")


def main() -> None:
    arguments = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, OPEN_FILES), most))  # inherited
    with tempfile.TemporaryDirectory() as name, ExitStack() as ending:
        tools = Tools(arguments.tools, Path(name))
        direct = tools.start_upstream()
        ending.callback(direct.end)
        wait_until_ready(direct)
        gateways = list(_started(_commands(arguments), Path(name), ending))
        figures = _measure(tools, direct, gateways, arguments)
    _print(figures)
    if arguments.json:
        document = {"conditions": _conditions(arguments), "figures": figures}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--litellm", action="store_true")
    parser.add_argument("--router", type=Path, metavar="PROGRAM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _body(num_bytes: int, stream: bool) -> dict[str, Any]:
    sentence = "Say in a few words what a fair queue is, and why an engine that many share should have one. "
    text = (sentence * (num_bytes // len(sentence) + 1))[: num_bytes - 120]  # 120: what is around it
    messages = [{"role": "user", "content": text}]
    return {"model": peers.MODEL, "messages": messages, "max_tokens": 256, "stream": stream}


def _commands(arguments: argparse.Namespace) -> dict[str, Command]:
    commands = {
        "driftsched calibrated": peers.driftsched("calibrated"),
        "driftsched adaptive": peers.driftsched("adaptive"),
        "driftsched unstreamed": peers.driftsched("calibrated", stream_whole_answers=False),
        "nginx": peers.nginx,
    }
    if arguments.litellm:
        commands["LiteLLM"] = peers.litellm
    if arguments.router:
        commands["production-stack"] = peers.production_stack(arguments.router)
    return commands


def _started(commands: dict[str, Command], folder: Path, ending: ExitStack) -> Iterator[Server]:
    """Those that can be had here, warm and stopped; of each other one line says why not."""
    for port, (name, command) in enumerate(commands.items(), UPSTREAM_PORT + 1):
        try:
            program, environment = command(folder, UPSTREAM, port)
            server = start(name, program, port, GATEWAY_CORE, environment)
            ending.callback(server.end)
            wait_until_ready(server)
        except UnavailableError as reason:
            print(f"SKIPPED {name}: {reason}")
            continue
        server.settle()
        server.stop()
        yield server


def wait_until_ready(server: Server, seconds: float = 90.0) -> None:
    """Until a chat completion is answered. Raises `UnavailableError`."""
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    headers = {"authorization": f"Bearer {peers.KEY}", "content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(_body(200, stream=False)).encode(), headers)
    deadline = time.monotonic() + seconds
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=10).read()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise UnavailableError(f"no answer within {seconds:g} seconds")


def _measure(tools: Tools, direct: Server, gateways: list[Server], arguments: argparse.Namespace) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for _ in range(arguments.repeats):
        for case in CASES:
            reports = {direct.name: tools.load(direct.port, case, arguments.seconds, WARM_SECONDS)}
            for gateway in gateways:
                reports[gateway.name] = _take_turn(tools, gateway, case, arguments.seconds)
            _add(figures, case, reports)
    for gateway in gateways:
        gateway.resume()
        figures[RSS][gateway.name] = [gateway.rss_megabytes()]
        figures[RSS_WAITING][gateway.name] = [_megabytes_while_waiting(tools, gateway)]
        gateway.stop()
    return figures


def _take_turn(tools: Tools, gateway: Server, case: Case, seconds: float) -> dict[str, float]:
    """The client's report, and the processor time of the gateway."""
    gateway.resume()
    tools.load(gateway.port, case, WARM_SECONDS)
    before = gateway.cpu_seconds()
    report = tools.load(gateway.port, case, seconds)
    cpu_us = (gateway.cpu_seconds() - before) * 1e6
    report["cpu_us_per_request"] = cpu_us / report["reqs"] if report["reqs"] else 0.0
    report["cpu_us_per_event"] = cpu_us / report["events"] if report["events"] else 0.0
    if report["errs"] or report["non200"]:
        print(f"{gateway.name}: {report['errs']} errors, {report['non200']} answers other than 200 in {case}")
    gateway.settle()
    gateway.stop()
    return report


def _add(figures: Figures, case: Case, reports: dict[str, dict[str, float]]) -> None:
    for figure, field in case.figures.items():
        for name, report in reports.items():
            if figure.startswith("added"):
                figures[figure][name].append(report[field] - reports["direct"][field])
            elif field in report:
                figures[figure][name].append(report[field])


def _megabytes_while_waiting(tools: Tools, gateway: Server, seconds: float = 30.0) -> float:
    """Resident memory when all streams have come: driftsched holds them in its queue, the others hand them on."""
    streams = peers.MAX_INFLIGHT + NUM_WAITING
    deadline = time.monotonic() + seconds
    with tools.hanging(gateway.port, streams):
        while (come := tools.inflight() + _waiting(gateway)) < streams and time.monotonic() < deadline:
            time.sleep(0.2)
        megabytes = gateway.rss_megabytes()
    if come < streams:
        print(f"{gateway.name}: {come} streams instead of {streams} after {seconds:g} seconds")
    gateway.settle()
    return megabytes


def _waiting(gateway: Server) -> int:
    """Requests that it holds back from the upstream; 0 also while it is too busy with them to say."""
    if not gateway.name.startswith("driftsched"):
        return 0
    try:
        metrics = _get(f"http://127.0.0.1:{gateway.port}/metrics").decode()
    except OSError:
        return 0
    found = re.search(r"^driftsched_waiting_requests (\S+)$", metrics, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _get(url: str) -> bytes:
    answer: bytes = urllib.request.urlopen(url, timeout=10).read()
    return answer


def _print(figures: Figures) -> None:
    names = list(next(iter(figures.values())))
    print(f"{'':40}" + "".join(f"{name:>22}" for name in names))
    for figure, values in figures.items():
        print(f"{figure:40}" + "".join(_cell(values.get(name)) for name in names))
    ours = [name for name in names if name.startswith("driftsched")]
    for peer in names:
        if peer in ours or peer == "direct":
            continue
        print(f"\nfigures of driftsched as multiples of those of {peer}, in the same repeat")
        for figure, values in figures.items():
            print(f"{figure:40}" + "".join(f"{_ratio(values, name, peer):>22}" for name in ours))


def _cell(values: list[float] | None) -> str:
    """Median, least and greatest."""
    if not values or not any(values):  # not measured, or nothing came to its end in time
        return f"{'-':>22}"
    spread = f" ({min(values):.0f}-{max(values):.0f})" if len(values) > 1 else ""
    return f"{f'{median(values):,.0f}{spread}':>22}"


def _ratio(values: dict[str, list[float]], name: str, peer: str) -> str:
    if not all(values[peer]):
        return "peer did none"
    return f"{median(a / b for a, b in zip(values[name], values[peer], strict=True)):.3g}"


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"repeats": arguments.repeats, "seconds": arguments.seconds, "litellm": peers.LITELLM}
    return {"commit": source_commit(), **capture_environment(), **capture_conditions(), **settings}


if __name__ == "__main__":
    main()
