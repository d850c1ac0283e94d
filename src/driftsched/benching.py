"""`driftsched bench`: the composition of workload, servers and load, and its results."""

import asyncio
import os
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isnan
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import yaml

from driftsched.bench.live import (
    LIVE,
    BlockResult,
    Sending,
    Tally,
    live_figures,
    lost,
    measure_live,
    recording_of,
    run_blocks,
)
from driftsched.bench.load import root_url
from driftsched.bench.plan import Block, Setup, interleaved, with_warmup
from driftsched.bench.processes import running
from driftsched.bench.results import live_text, write_live
from driftsched.core.errors import ConfigError
from driftsched.engines.kinds import Discovery
from driftsched.engines.openai import OpenAIEngine
from driftsched.estimators import ESTIMATORS
from driftsched.policies import POLICIES
from driftsched.sim.conditions import capture_conditions
from driftsched.sim.measures import Objective, Run
from driftsched.sim.readers import read_trace
from driftsched.sim.recording import Recording
from driftsched.sim.shaping import cut, rescale
from driftsched.sim.summary import document, to_json
from driftsched.sim.tables import WIDTH, render
from driftsched.sim.trace import Row, trace_hash
from driftsched.sim.workloads import WORKLOADS, generate, make_scenario

EXIT_OK = 0
EXIT_ERRORS = 4
EXIT_INTERRUPTED = 130

DEFAULT_SLOTS = 32
"""Of a target that does not say how many requests it serves at once."""
ORDER_SEED = 1
"""Of the order of blocks."""
PROGRESS_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""


@dataclass(frozen=True, slots=True)
class LiveDemand:
    """What is sent: a workload by name or file, or a trace, and how fast."""

    workload: str = "poisson"
    options: tuple[tuple[str, str], ...] = ()
    trace: Path | None = None
    requests: int | None = 300
    """In each block, the warm-up not counted. None: all that the trace or scenario holds."""
    warmup_requests: int = 0
    rate: float | None = None
    """Requests per second; None: as the workload or the trace says."""

    def rows(self, seed: int) -> list[Row]:
        """The requests of one block. Raises `ConfigError`."""
        most = None if self.requests is None else self.requests + self.warmup_requests
        if self.trace is not None:
            rows = read_trace(self.trace)
            rows = cut(rows, max_requests=most) if most is not None else rows
            rows = rescale(rows, self.rate) if self.rate is not None else rows
        else:
            rows = self._generated(seed, most)
        if self.warmup_requests >= len(rows):
            raise ConfigError(f"--warmup-requests: must be fewer than the {len(rows)} requests of a block")
        return with_warmup(rows, self.warmup_requests)

    def _generated(self, seed: int, most: int | None) -> list[Row]:
        options: dict[str, object] = dict(self.options)
        if self.workload in WORKLOADS:
            if self.rate is not None:
                options["rate"] = str(self.rate)
            elif self.workload != "paper" and "rate" not in options:
                raise ConfigError("--rate: give requests a second, or --rho with --capacity")
            if most is not None:
                options.setdefault("requests", str(most))
        rows = generate(make_scenario(self.workload, options), seed)
        if self.workload in WORKLOADS:
            return rows
        rows = cut(rows, max_requests=most) if most is not None else rows
        return rescale(rows, self.rate) if self.rate is not None else rows


@dataclass(frozen=True, slots=True)
class Target:
    """What is loaded: the server at `url`, or gateways of our own in front of the engine there."""

    url: str
    setups: tuple[Setup, ...] = ()
    """What to run a gateway with, one after the other. Empty: load the server itself."""
    key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    slots: int | None = None
    """Requests it serves at once. None: what it says, else `DEFAULT_SLOTS`."""

    def key(self) -> str | None:
        """Raises `ConfigError` if the variable is not set."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            raise ConfigError(f"--key-env: the environment variable {self.key_env} is not set")
        return key

    def check(self) -> None:
        """Raises `ConfigError` for names nobody knows, before any work."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"--url, --engine: must begin with http:// or https://, unlike {self.url!r}")
        for setup in self.setups:
            if setup.policy not in POLICIES.names():
                raise ConfigError(f"--policies: unknown {setup.policy!r}: use one of {', '.join(POLICIES.names())}")
            if setup.estimator not in ESTIMATORS.names():
                raise ConfigError(
                    f"--estimator: unknown {setup.estimator!r}: use one of {', '.join(ESTIMATORS.names())}"
                )
        if len(set(self.setups)) < len(self.setups):
            raise ConfigError("--policies: one is given twice")


@dataclass(frozen=True, slots=True)
class LiveOutput:
    """Where results go beside the terminal, and what they are held to."""

    out: Path | None = None
    json: Path | None = None
    quiet: bool = False
    objective: Objective | None = None
    max_error_rate: float = 0.01


def run_bench(demand: LiveDemand, target: Target, sending: Sending, *, seeds: int, output: LiveOutput) -> int:
    """Drive every block, print the tables, write the files; the exit status.

    0, 4 if more than `max_error_rate` of the requests failed, 130 if interrupted: what was done by then is reported
    all the same, as not complete. Raises `ConfigError`, `EngineError` if the server cannot be reached, and
    `StartError` if a gateway does not start.
    """
    target.check()
    key = target.key()
    traces = {seed: demand.rows(seed) for seed in range(1, seeds + 1)}
    blocks = interleaved(target.setups or (Setup(""),), list(traces), ORDER_SEED)
    results: list[BlockResult] = []
    status = EXIT_OK
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        discovery = runner.run(_discover(target.url, key))
        target = replace(target, slots=target.slots or discovery.slots or DEFAULT_SLOTS)
        sending = replace(sending, model=sending.model or _first_model(discovery), api_key=key)
        _announce(traces, blocks, output.quiet)
        try:
            with _progress(len(blocks), output.quiet) as on_change:
                serve = _serve(target, traces)
                runner.run(run_blocks(blocks, traces.__getitem__, serve, sending, results, on_change))
        except KeyboardInterrupt:
            status = EXIT_INTERRUPTED
    started = [result for result in results if result.sent]
    if not started:
        return status
    _report(demand, target, sending, traces, _told(started), output, complete=status == EXIT_OK)
    return status or _error_status(started, output.max_error_rate)


async def _discover(url: str, key: str | None) -> Discovery:
    engine = OpenAIEngine(url, api_key=key)
    try:
        return await engine.discover()
    finally:
        await engine.close()


def _first_model(discovery: Discovery) -> str:
    if not discovery.models:
        raise ConfigError("--model: the server lists none: name one")
    return discovery.models[0]


def _serve(
    target: Target, traces: Mapping[int, Sequence[Row]]
) -> Callable[[Block], AbstractAsyncContextManager[str]]:
    """A fresh gateway for each block, or the server itself."""

    @asynccontextmanager
    async def gateway(block: Block) -> AsyncIterator[str]:
        if not target.setups:
            yield root_url(target.url)
            return
        async with running_gateway(_settings(target, block.setup, traces[block.seed])) as url:
            yield url

    return gateway


@asynccontextmanager
async def running_gateway(settings: Mapping[str, Any]) -> AsyncIterator[str]:
    """The URL of a gateway with these settings, in a process of its own. Raises `StartError`."""
    with tempfile.NamedTemporaryFile("w", prefix="driftsched-", suffix=".yaml") as file:
        yaml.safe_dump(dict(settings), file)
        file.flush()
        async with running("serve", "--config", file.name, "--port", "0") as url:
            yield url


def _settings(target: Target, setup: Setup, rows: Sequence[Row]) -> dict[str, Any]:
    """Of a gateway that knows the tenants of the trace and their tiers."""
    engine = {"url": root_url(target.url), "max_inflight": target.slots, "api_key_env": target.key_env}
    return gateway_settings(setup, engine, rows)


def gateway_settings(setup: Setup, engine: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Of a gateway in front of `engine`, an entry of `engines`; it knows the tenants of `rows` and their tiers."""
    tiers = {row.tenant: row.tier.label for row in rows}
    return {
        "engines": [dict(engine)],
        "policy": {"name": setup.policy},
        "estimator": {"name": setup.estimator},
        "tenants": [{"id": tenant, "tier": tier} for tenant, tier in tiers.items()],
        "state": {"path": None},  # it starts knowing nothing
    }


def _told(results: Sequence[BlockResult]) -> list[BlockResult]:
    """With blocks of a server that was loaded as it is named by the policy that it says it has."""
    named = []
    for result in results:
        said = next((sent.hit.policy for sent in result.sent if sent.hit.policy), "none")
        setup = result.block.setup
        setup = setup._replace(policy=setup.policy or said)
        named.append(replace(result, block=replace(result.block, setup=setup)))
    return named


def _report(
    demand: LiveDemand,
    target: Target,
    sending: Sending,
    traces: Mapping[int, Sequence[Row]],
    results: Sequence[BlockResult],
    output: LiveOutput,
    *,
    complete: bool,
) -> None:
    slots = target.slots or DEFAULT_SLOTS
    recordings = [recording_of(result.sent, result.block, slots=slots) for result in results]
    figures = [live_figures(result, position) for position, result in enumerate(results)]
    done = [place for place, result in enumerate(results) if result.complete] or [0]  # of none, the one cut off
    runs = [measure_live(results[place], recordings[place], output.objective) for place in done]
    made = document(
        _in_order(runs, target.setups),
        scenario={
            **_description(demand, target, sending, output.objective),
            "seeds": list(traces),
            "command": shlex.join(["driftsched", *sys.argv[1:]]),
            "conditions": capture_conditions(),
            "blocks": msgspec.to_builtins(figures),
        },
        trace_hash=sha256("".join(trace_hash(rows) for rows in traces.values()).encode()).hexdigest(),
        baseline=target.setups[0].policy if target.setups else None,
        complete=complete,
    )
    sys.stdout.write(_heading(demand, target, sending, traces) + render(made) + live_text(made, figures))
    for result in results:
        problem = lost(result)
        if problem and complete:
            sys.stdout.write(f"! {result.block.setup.policy}, seed {result.block.seed}: {problem}\n")
    if output.json is not None:
        output.json.write_bytes(to_json(made))
    if output.out is not None:
        from driftsched.sim.report import write_report

        write_live(output.out, made, figures, results, recordings)
        # the page cannot draw requests of which nobody knows how long they waited: of those it has the tables
        drawn = [each for each in recordings if not any(map(isnan, _waits(each)))]
        write_report(output.out / "report.html", made, drawn)


def _waits(recording: Recording) -> Iterable[float]:
    """Queue times of what was answered; nan where the server said none."""
    columns = zip(recording.arrived_at, recording.dispatched_at, recording.outcome, strict=True)
    return (began - arrived for arrived, began, outcome in columns if outcome == "finished")


def _in_order(runs: Sequence[Run], setups: Sequence[Setup]) -> list[Run]:
    """As the setups were asked for, not by the random order of the blocks."""
    places = {setup: place for place, setup in enumerate(setups)}
    return sorted(runs, key=lambda run: (run.seed, places.get(Setup(run.policy, run.estimator, run.variant), 0)))


def _description(
    demand: LiveDemand, target: Target, sending: Sending, objective: Objective | None
) -> dict[str, Any]:
    facts = {
        "workload": None if demand.trace else demand.workload,
        "options": dict(demand.options),
        "trace": demand.trace.name if demand.trace else None,
        "rate": demand.rate,
        "requests": demand.requests,
        "warmup_requests": demand.warmup_requests,
        "engine_mode": LIVE,
        "model": sending.model,
        "stream": sending.stream,
        "impose_lengths": sending.impose_lengths,
        "max_tokens": sending.max_tokens,
        "temperature": sending.temperature,
        "slots": target.slots,
        "slo": None if objective is None else [objective.ttft_seconds, objective.e2e_seconds],
    }
    return {name: value for name, value in facts.items() if value is not None and value != {}}


def _heading(demand: LiveDemand, target: Target, sending: Sending, traces: Mapping[int, Sequence[Row]]) -> str:
    what = demand.trace.name if demand.trace else demand.workload
    rate = f" at {demand.rate:g}/s" if demand.rate is not None else ""
    counted = len(next(iter(traces.values()))) - demand.warmup_requests
    warmup = f" after a warm-up of {demand.warmup_requests}" if demand.warmup_requests else ""
    where = "gateways in front of " if target.setups else ""
    lines = [
        f"{what}{rate}, open loop, seeds 1 to {len(traces)}",
        f"{counted} requests a block{warmup}",
        f"{where}{root_url(target.url)}, model {sending.model}",
    ]
    return "".join(f"{line[:WIDTH]}\n" for line in lines) + "\n"


def _error_status(results: Sequence[BlockResult], max_error_rate: float) -> int:
    hits = [sent.hit for result in results for sent in result.sent]
    failed = sum(not hit.ok for hit in hits)
    return EXIT_ERRORS if failed > max_error_rate * len(hits) else EXIT_OK


def _announce(traces: Mapping[int, Sequence[Row]], blocks: Sequence[Block], quiet: bool) -> None:
    if not quiet:
        seconds = sum(traces[block.seed][-1].at for block in blocks)
        print(f"{len(blocks)} blocks, at least {seconds:.0f} s of load", file=sys.stderr, flush=True)


@contextmanager
def _progress(num_blocks: int, quiet: bool) -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal, a line every few seconds elsewhere, nothing when quiet; on stderr."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("load")
            yield lambda tally: bars.update(task, description=_say(tally), completed=tally.done, total=tally.total)
    else:
        yield _lines(num_blocks)


def _lines(num_blocks: int) -> Callable[[Tally], None]:
    seen: dict[Block, None] = {}
    said_at = -PROGRESS_SECONDS

    def say(tally: Tally) -> None:
        nonlocal said_at
        seen.setdefault(tally.block)
        now = time.monotonic()
        if now - said_at >= PROGRESS_SECONDS or tally.done == tally.total:
            said_at = now
            print(f"block {len(seen)} of {num_blocks}: {_say(tally)}", file=sys.stderr, flush=True)

    return say


def _say(tally: Tally) -> str:
    errors = f", {tally.errors} errors" if tally.errors else ""
    policy = f"{tally.block.setup.policy}, " if tally.block.setup.policy else ""
    open_now = tally.sent - tally.done
    return f"{policy}seed {tally.block.seed}: {tally.done} of {tally.total} done, {open_now} open{errors}"
