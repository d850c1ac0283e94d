"""`driftsched simulate`: the composition of workload, policies, estimators and engine, and its results."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.engines.model import Mode
from driftsched.engines.presets import Hardware, get_hardware
from driftsched.estimators import DEFAULT_ESTIMATOR, ESTIMATORS, create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.policies import DEFAULT_POLICY, POLICIES, create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim import reproduce as reproduction
from driftsched.sim.conditions import coefficients
from driftsched.sim.experiment import (
    ORACLE,
    Case,
    Executor,
    Experiment,
    Machine,
    Parts,
    SeedResult,
    capacity,
    run_experiment,
)
from driftsched.sim.feedback import FEEDBACKS, Feedback
from driftsched.sim.fit import Fit, fit, read_served
from driftsched.sim.fit import text as fit_text
from driftsched.sim.readers import read_trace
from driftsched.sim.shaping import assign, cut, rescale
from driftsched.sim.summary import Document, document, to_json, write_results
from driftsched.sim.tables import render
from driftsched.sim.trace import Row
from driftsched.sim.trials import PaperParts
from driftsched.sim.workloads import DRIFT, generate, make_scenario

PARTS = Parts(create_policy, create_estimator, MemoryQueue)

CAPACITY_SEED = 0
"""The capacity is measured on requests of this seed for all seeds, so that a rho means one rate."""
CAPACITY_REQUESTS = 3000
KNEE = 0.9
"""Above this utilisation a small error in the engine's coefficients becomes a large one in waiting times."""
_WITHOUT_EFFECT = frozenset({"--out", "--json", "--processes", "--executor"})
SENSITIVITY = 0.2
"""By how much the coefficients that are known least are changed for the sensitivity band."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Where requests come from: a workload by name or file, or a trace."""

    workload: str = "poisson"
    options: tuple[tuple[str, str], ...] = ()
    """Keyword arguments of the workload."""
    trace: Path | None = None
    trace_format: str | None = None
    sort: bool = False
    max_requests: int | None = None
    """Of a trace: the first so many."""
    tenants: int | None = None
    """Of a trace: draw so many tenants, by a Zipf law."""
    tier_shares: tuple[tuple[str, float], ...] = ()
    """Of a trace: give tenants tiers in these shares."""
    rho: float | None = None
    """Utilisation to offer; a trace's time is stretched to it. None: as the workload or the trace says."""

    def describe(self) -> dict[str, Any]:
        """For the results: what was asked for, without paths that differ from machine to machine."""
        facts = asdict(self) | {"trace": self.trace.name if self.trace else None, "options": dict(self.options)}
        return {name: value for name, value in facts.items() if value not in (None, (), {}, False)}


@dataclass(frozen=True, slots=True)
class Arms:
    """What is compared: each policy with each estimator, each with each kind of feedback."""

    policies: Sequence[str]
    """The first is what others are compared with."""
    estimators: Sequence[str]
    feedbacks: Sequence[Feedback] = ("reranked",)

    def check(self) -> None:
        """Raises `ConfigError` for the commonest mistakes, an unknown name and one given twice, before any work."""
        _check_names("policies", self.policies, POLICIES.names())
        _check_names("estimators", self.estimators, [*ESTIMATORS.names(), ORACLE])

    def cases(self, machine: Machine, variant: str) -> Iterator[Case]:
        """On one engine. Who knows true lengths learns nothing, so that feedback makes no difference to it."""
        for estimator in self.estimators:
            for feedback in self.feedbacks if estimator != ORACLE else ("reranked",):
                for policy in self.policies:
                    yield Case(policy, estimator, machine, variant, feedback)


def default_arms(demand: Demand) -> Arms:
    """What is compared unless asked otherwise: on `drift` the kinds of feedback, else the policies."""
    if demand.trace is None and demand.workload == DRIFT:
        return Arms(("sjf", DEFAULT_POLICY), (DEFAULT_ESTIMATOR, ORACLE), FEEDBACKS)
    return Arms(("fifo", "priority", "weighted", "sjf", "aging", "fair"), (DEFAULT_ESTIMATOR,))


@dataclass(frozen=True, slots=True)
class TraceOf:
    """The requests of a seed; pickles, so that other processes can make them."""

    demand: Demand
    machine: Machine

    def __call__(self, seed: int) -> Sequence[Row]:
        demand = self.demand
        if demand.trace is None:
            options = dict(demand.options)
            if demand.rho is not None:
                options["rho"] = str(demand.rho)
            return generate(make_scenario(demand.workload, options), seed, capacity=self.capacity())
        rows = _trace_rows(demand)
        if demand.tenants is not None or demand.tier_shares:
            tiers = {Tier.parse(label): share for label, share in demand.tier_shares}
            rows = assign(rows, tenants=demand.tenants, tiers=tiers or None, seed=seed)
        return rescale(rows, demand.rho * self.capacity()) if demand.rho is not None else rows

    def capacity(self) -> float:
        """Requests per second at utilisation 1."""
        return _capacity(self.demand, self.machine)


@lru_cache(maxsize=4)
def _trace_rows(demand: Demand) -> list[Row]:
    assert demand.trace is not None  # noqa: S101 - asked only of a trace
    rows = read_trace(demand.trace, format=demand.trace_format, sort=demand.sort)
    return cut(rows, max_requests=demand.max_requests) if demand.max_requests is not None else rows


@lru_cache(maxsize=16)
def _capacity(demand: Demand, machine: Machine) -> float:
    """Measured on requests like those to come; their lengths do not depend on when they arrive."""
    if demand.trace is not None:
        return capacity(_trace_rows(demand)[:CAPACITY_REQUESTS], machine)
    rows = generate(make_scenario(demand.workload, dict(demand.options)), CAPACITY_SEED, capacity=1.0)
    return capacity(rows[:CAPACITY_REQUESTS], machine)


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go beside the terminal."""

    out: Path | None = None
    json: Path | None = None
    quiet: bool = False


def run_simulate(
    demand: Demand,
    arms: Arms,
    *,
    num_seeds: int,
    hardware: str,
    mode: Mode,
    slots: int,
    limits: Sequence[str] = (),
    max_inflight_tokens: int | None = None,
    recorded: Path | None = None,
    sensitivity: bool = False,
    processes: int = 1,
    executor: Executor = "processes",
    output: Output | None = None,
) -> None:
    """Run, print the tables, write the files. Raises `ConfigError`.

    `limits`: requests in flight, each a number, or `adaptive:` and the number it starts from; all arms run under
    each. With `recorded`, a requests.jsonl, the engine is fitted to it, and `hardware` only tells what that run
    does not.
    """
    output = output or Output()
    arms.check()
    fitted = fit(read_served(recorded), get_hardware(hardware)) if recorded is not None else None
    tokens = inf if max_inflight_tokens is None else max_inflight_tokens
    machine = Machine(
        fitted.hardware if fitted else get_hardware(hardware), mode, slots, max_inflight_tokens=tokens
    )
    cases = list(_cases(arms, machine, sensitivity, limits))
    source = TraceOf(demand, machine)
    experiment = Experiment(source, tuple(cases), tuple(range(1, num_seeds + 1)), PARTS)
    with _progress(output.quiet) as progress:
        results = run_experiment(
            experiment,
            processes=processes,
            executor=executor,
            keep_recordings_of=1 if output.out else None,
            progress=progress,
        )
    made = _document(results, demand, machine, arms.policies[0], fitted)
    if fitted is not None:
        sys.stdout.write(fit_text(fitted) + "\n")
    sys.stdout.write(_heading(demand, machine, results) + render(made))
    if output.json is not None:
        output.json.write_bytes(to_json(made))
    if output.out is not None:
        _write(output.out, made, results)


def run_reproduce(
    *, num_seeds: int, processes: int, out: Path | None = None, json: Path | None = None, quiet: bool = False
) -> None:
    """Reproduce the paper, print it, write the files. Raises `ConfigError`."""
    parts = PaperParts(create_policy, create_estimator, MemoryQueue, KeywordClassifier().classify)
    with _progress(quiet) as progress:
        made = reproduction.reproduce(range(1, num_seeds + 1), processes, parts, progress=progress)
    sys.stdout.write(reproduction.text(made))
    if json is not None:
        json.write_bytes(to_json(made.summary))
    if out is not None:
        reproduction.write_reproduction(out, made)


def parse_feedbacks(names: Sequence[str]) -> list[Feedback]:
    """Raises `ConfigError` for one that is unknown or given twice."""
    _check_names("feedback", names, FEEDBACKS)
    return [feedback for name in names for feedback in FEEDBACKS if feedback == name]


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    if not names:
        raise ConfigError(f"{kind}: give at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ConfigError(f"{kind}: unknown {name!r}: use one of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{kind}: one is given twice")


def _cases(arms: Arms, machine: Machine, sensitivity: bool, limits: Sequence[str]) -> Iterator[Case]:
    for limit in limits:
        adaptive, number = _limit(limit)
        limited = replace(machine, inflight=number, adaptive=adaptive)
        yield from arms.cases(limited, f"{'adaptive from' if adaptive else 'in flight'} {number}")
    if not limits:
        yield from arms.cases(machine, "base")
    if sensitivity:
        for name, changed in _band(machine.hardware):
            yield from arms.cases(replace(machine, hardware=changed), name)


def _limit(text: str) -> tuple[bool, int]:
    """Whether it adapts, and the number. Raises `ConfigError`."""
    kind, colon, number = text.rpartition(":")
    if (colon and kind != "adaptive") or not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"inflight {text!r}: write a number of requests, or adaptive: and one, e.g. adaptive:64")
    return bool(colon), int(number)


def _band(hardware: Hardware) -> Iterator[tuple[str, Hardware]]:
    """The engine with the terms that are known least 20 % lower and higher."""
    for factor in (1 - SENSITIVITY, 1 + SENSITIVITY):
        percent = f"{factor - 1:+.0%}"
        yield f"floor{percent}", replace(hardware, floor_ms=hardware.floor_ms * factor)
        yield f"kv{percent}", replace(hardware, kv_ns_per_token=hardware.kv_ns_per_token * factor)


def _document(
    results: Sequence[SeedResult], demand: Demand, machine: Machine, baseline: str, fitted: Fit | None
) -> Document:
    scenario = {
        **demand.describe(),
        "seeds": [result.seed for result in results],
        "hardware": machine.hardware.name,
        "engine_mode": machine.mode,
        "slots": machine.slots,
        "coefficients": coefficients(machine.hardware),
        "command": _command(),
        **({"fit": _fit_facts(fitted)} if fitted else {}),
    }
    digest = sha256("".join(result.trace_hash for result in results).encode()).hexdigest()
    runs = [run for result in results for run in result.runs]
    return document(runs, scenario=scenario, trace_hash=digest, baseline=baseline)


def _fit_facts(fitted: Fit) -> dict[str, Any]:
    """For the results: how each fitted number is known, and how well they predict."""
    return {name: value for name, value in asdict(fitted).items() if name != "hardware"}


def _command() -> str:
    """What was asked for, less what changes nothing about the figures: where they go, and who computes them."""
    words = ["driftsched"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        name, equals, _ = word.partition("=")
        if name in _WITHOUT_EFFECT:
            if not equals:
                next(arguments, None)
        elif word != "--quiet":
            words.append(word)
    return shlex.join(words)


def _heading(demand: Demand, machine: Machine, results: Sequence[SeedResult]) -> str:
    what = demand.trace.name if demand.trace else demand.workload
    load = f" at rho {demand.rho:g}" if demand.rho is not None else ""
    num_requests = results[0].runs[0].requests
    lines = [
        f"{what}{load}: {num_requests} requests a seed, seeds 1 to {len(results)}",
        f"{machine.hardware.name} ({machine.hardware.source}), {machine.slots} slots, {machine.mode} batching",
    ]
    if demand.rho is not None and demand.rho > KNEE:
        lines.append(f"! rho above {KNEE:g}: compare policies, do not trust the seconds; try --sensitivity")
    return "\n".join(lines) + "\n\n"


def _write(out: Path, made: Document, results: Sequence[SeedResult]) -> None:
    from driftsched.sim.report import write_report

    recordings = [recording for result in results for recording in result.recordings]
    write_results(out, made, recordings)
    try:
        write_report(out / "report.html", made, recordings)
    except ConfigError as error:
        print(f"no report.html: {error}", file=sys.stderr)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, lines elsewhere, nothing when quiet; on stderr, so that stdout holds results only."""
    if quiet:
        yield lambda _done, _total: None
    elif not sys.stderr.isatty():
        yield lambda done, total: print(f"{done} of {total} done", file=sys.stderr, flush=True)
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("seeds", total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def parse_options(texts: Sequence[str]) -> Mapping[str, str]:
    """`name=value` pairs. Raises `ConfigError` for one without `=`, or given twice."""
    options: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in options:
            raise ConfigError(f"option {text!r}: write name=value, each name once")
        options[name] = value
    return options
