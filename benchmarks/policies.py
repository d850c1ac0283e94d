"""What the order of service does to median, tail, longest wait and light tenants, on recorded lengths.

    python benchmarks/policies.py [--quick] [--only TEXT] [--data DIR] [--seeds 10] [--requests 8000] [--json FILE]

Two sets of lengths: `chat`, prompt and answer lengths of the Azure 2023 conversation trace, drawn anew for each
seed; and `text`, public prompts with the lengths of the answers that models gave, none drawn twice in a seed, so
that estimators see real texts. They arrive as a Poisson process at a utilisation of 0.8, 0.9, 0.97 and 1.1 (`chat`
also 0.985, and 0.5, 0.6 and 0.7, where no order may do harm) of 32 slots of a simulated A100 under continuous
batching, from eight tenants in equal parts. In two more scenes one of them comes in bursts (on for 60 of every
120 s), at its share on average and at twenty times its share. Then comes the DriftSched paper's workload, where
the baseline is its whole system: closed batches, `sjf`, `ema`.

Every policy is given the same requests; every percentile is over all that arrived. `slack` with the true
lengths tells how much of what is missing is the estimator's. Each figure is the mean over the seeds; each change is
paired by seed, with a 95 % interval. Below each scene are the targets that apply to it, and whether the mean change
meets them. `--quick` is three seeds of the scenes that have targets; `--only` leaves scenes out whose name does not
contain the text.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

from msgspec.structs import replace

from driftsched.engines.presets import get_hardware
from driftsched.estimators import create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.conditions import capture_environment, source_commit
from driftsched.sim.experiment import Case, Machine, Parts, capacity, run_case
from driftsched.sim.recording import Recording
from driftsched.sim.statistics import Interval, paired_difference
from driftsched.sim.trace import Row, on_grid
from driftsched.sim.workloads import generate, make_scenario

DATA = Path(__file__).parents[2] / "shared" / "data"
MACHINE = Machine(get_hardware("a100-llama3-8b"), "continuous", slots=32)
PAPER_HARDWARE = get_hardware("l4-qwen1.5-1.8b-eager")
PARTS = Parts(create_policy, create_estimator, MemoryQueue)

NUM_TENANTS = 8
FLOODING = "flooding"
ON_SECONDS, PERIOD_SECONDS = 60.0, 120.0
CAPACITY_REQUESTS = 10_000
MAX_PROMPT_CHARS = 4000
MAX_ANSWER_TOKENS = 4000

FIFO = Case("fifo", "static", MACHINE)
SJF = Case("sjf", "ema", MACHINE)
KNOWING = Case("slack", "oracle", MACHINE, "true lengths")
CASES = (FIFO, SJF, *(Case(policy, "adaptive", MACHINE) for policy in ("slack", "fair")), KNOWING)
FLOOD_CASES = (*CASES, *(Case(policy, "adaptive", MACHINE) for policy in ("vtc", "lag")))
PAPER_SYSTEM = Case("sjf", "ema", Machine(PAPER_HARDWARE, "static", slots=32), "its whole system")
PAPER_CASES = (
    PAPER_SYSTEM,
    *(Case(policy, "adaptive", Machine(PAPER_HARDWARE, slots=32)) for policy in ("fifo", "slack", "fair")),
)


class Scene(NamedTuple):
    """What is asked of the engine."""

    lengths: str
    """`chat`, `text`, or `paper`."""
    rho: float = 0.0
    times_share: float = 0.0
    """Of the flooding tenant; 0: nobody floods."""

    def __str__(self) -> str:
        flood = f", one tenant in bursts at {self.times_share:g} x its share" if self.times_share else ""
        return f"{self.lengths} at {self.rho:g}{flood}" if self.rho else "the paper's own workload"


class Target(NamedTuple):
    """The change of a figure of `policy` against a baseline is to be `most` at most."""

    policy: str
    figure: str
    baseline: Case
    most: float


CHAT, HEAVY, TEXT = Scene("chat", 0.97), Scene("chat", 0.985), Scene("text", 0.97)
FLOOD, DELUGE = Scene("chat", 0.97, 1.0), Scene("chat", 0.97, 20.0)
PAPER = Scene("paper")
CALM = tuple(Scene("chat", rho) for rho in (0.5, 0.6, 0.7))
SCENES = (
    *(Scene(lengths, rho) for lengths in ("chat", "text") for rho in (0.8, 0.9, 0.97, 1.1)),
    HEAVY,
    FLOOD,
    DELUGE,
    PAPER,
    *CALM,
)
_HARMLESS = tuple(
    Target(policy, figure, FIFO, 0.03) for policy in ("slack", "fair") for figure in ("p50", "p95", "p99", "max")
)
_STEADY = (
    Target("slack", "p99", SJF, -0.45),
    Target("slack", "max", SJF, -0.80),
    Target("slack", "p50", SJF, 0.05),
    Target("slack", "p50", FIFO, -0.50),
    Target("slack", "p99", FIFO, 0.30),
)
TARGETS: dict[Scene, tuple[Target, ...]] = {
    CHAT: _STEADY,
    HEAVY: _STEADY,
    TEXT: _STEADY,
    FLOOD: (
        Target("fair", "light p99", SJF, -0.60),
        Target("fair", "p99", SJF, -0.30),
        Target("fair", "p50", SJF, 0.20),
    ),
    DELUGE: (Target("fair", "light p99", SJF, -0.60), Target("fair", "light p99", FIFO, -0.60)),
    **dict.fromkeys(CALM, _HARMLESS),
    PAPER: (Target("fair", "p50", PAPER_SYSTEM, -0.40), Target("fair", "p99", PAPER_SYSTEM, -0.10)),
}

Figures = dict[str, float]
"""Of one run: end-to-end seconds."""


def main() -> None:
    arguments = _arguments()
    if not arguments.data.exists():
        print(f"left out: there is no {arguments.data}")
        return
    seeds = range(1, 1 + (3 if arguments.quick else arguments.seeds))
    scenes = [scene for scene in (TARGETS if arguments.quick else SCENES) if arguments.only in str(scene)]
    documents = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for scene in scenes:
            runs = list(pool.map(partial(_run, scene, arguments.data, arguments.requests), seeds))
            print("\n".join(_told(scene, runs)), flush=True)
            documents.append({"scene": str(scene), "runs": [_named(run) for run in runs]})
    conditions = {"commit": source_commit(), **capture_environment()}
    print(json.dumps(conditions))
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": conditions, "scenes": documents}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds of the scenes that have targets")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenes whose name contains it")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=8000, help="of a scene and seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _run(scene: Scene, data: Path, requests: int, seed: int) -> dict[Case, Figures]:
    """The figures of every case on one trace."""
    if scene == PAPER:
        rows = generate(make_scenario("paper", {}), seed)
        return {case: _figures(run_case(rows, case, seed, PARTS)) for case in PAPER_CASES}
    rows = _rows(scene, data, requests, seed)
    cases = FLOOD_CASES if scene.times_share else CASES
    return {case: _figures(run_case(rows, case, seed, PARTS)) for case in cases}


def _figures(recording: Recording) -> Figures:
    spans = list(zip(recording.arrived_at, recording.finished_at, recording.tenant, recording.tier, strict=True))
    seconds = sorted(end - start for start, end, _, _ in spans)
    light = sorted(end - start for start, end, tenant, _ in spans if tenant != FLOODING)
    by_tier = {tier: [end - start for start, end, _, of in spans if of == tier] for tier in set(recording.tier)}
    return {
        "p50": _percentile(seconds, 0.5),
        "p95": _percentile(seconds, 0.95),
        "p99": _percentile(seconds, 0.99),
        "max": seconds[-1],
        "mean": fmean(seconds),
        "light p99": _percentile(light, 0.99),
        "makespan": recording.makespan_seconds,
        **{tier: fmean(values) for tier, values in by_tier.items()},
    }


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _rows(scene: Scene, data: Path, requests: int, seed: int) -> list[Row]:
    """About so many requests; those of one purpose do not change with those of another."""
    sample = _sample(scene.lengths, data)
    rate = scene.rho * _capacity(scene.lengths, data)
    times = list(_times(scene, rate, requests, seed))
    random = Random(f"{seed}:lengths")
    without_repeats = scene.lengths == "text" and len(times) <= len(sample)
    drawn = random.sample(sample, len(times)) if without_repeats else random.choices(sample, k=len(times))
    return [
        replace(row, at=on_grid(at), tenant=tenant) for row, (at, tenant) in zip(drawn, sorted(times), strict=True)
    ]


def _times(scene: Scene, rate: float, requests: int, seed: int) -> Iterator[tuple[float, str]]:
    """Instants and tenants. `rate` is that of all tenants while each keeps to its share."""
    others = NUM_TENANTS - 1 if scene.times_share else NUM_TENANTS
    heavy_rate = scene.times_share * rate / NUM_TENANTS
    light_rate = rate * others / NUM_TENANTS
    duration = requests / (light_rate + heavy_rate)
    random, at = Random(f"{seed}:times"), 0.0
    while (at := at + random.expovariate(light_rate)) < duration:
        yield at, f"tenant-{random.randrange(others)}"
    random, on = Random(f"{seed}:{FLOODING}"), 0.0  # `on` counts only the time during which it comes
    while heavy_rate:
        on += random.expovariate(heavy_rate * PERIOD_SECONDS / ON_SECONDS)
        at = on // ON_SECONDS * PERIOD_SECONDS + on % ON_SECONDS
        if at >= duration:
            return
        yield at, FLOODING


@cache
def _capacity(lengths: str, data: Path) -> float:
    return capacity(Random("capacity").choices(_sample(lengths, data), k=CAPACITY_REQUESTS), MACHINE)


@cache
def _sample(lengths: str, data: Path) -> list[Row]:
    return _chat(data) if lengths == "chat" else _text(data)


def _chat(data: Path) -> list[Row]:
    with gzip.open(data / "traces" / "azure2023_conv_first_half.csv.gz", "rt") as file:
        return [
            Row(0.0, max(1, int(row["input_tokens"])), max(1, int(row["output_tokens"])))
            for row in csv.DictReader(file)
        ]


def _text(data: Path) -> list[Row]:
    """Answers longer than `MAX_ANSWER_TOKENS`, which are rare, count as so long."""
    classify = KeywordClassifier().classify
    rows = []
    for licence in ("cc_by_nc", "open"):
        with gzip.open(data / "text" / f"prompts_{licence}.jsonl.gz", "rt") as file:
            prompts = {(line["set"], line["prompt_id"]): line for line in map(json.loads, file)}
        with gzip.open(data / "text" / f"lengths_{licence}.csv.gz", "rt") as file:
            for row in csv.DictReader(file):
                if found := prompts.get((row["set"], row["prompt_id"])):
                    prompt = found["prompt"][:MAX_PROMPT_CHARS]
                    tokens = min(MAX_ANSWER_TOKENS, max(1, int(row["output_tokens"])))
                    rows.append(
                        Row(
                            0.0,
                            max(1, found["prompt_tokens"]),
                            tokens,
                            category=classify(prompt),
                            model=row["model"],
                            prompt=prompt,
                        )
                    )
    return rows


def _told(scene: Scene, runs: Sequence[dict[Case, Figures]]) -> Iterator[str]:
    """A table of the scene, and its targets."""
    cases = list(runs[0])
    baselines = [PAPER_SYSTEM] if scene == PAPER else [SJF, FIFO]
    figures = ("p50", "p99", "max", "light p99") if scene.times_share else ("p50", "p99", "max")
    yield f"\n{scene}, {len(runs)} seeds, end-to-end seconds: {', '.join(figures)}"
    for case in cases:
        means = "".join(f"{fmean(run[case][figure] for run in runs):8.1f}" for figure in figures)
        yield f"  {_label(case):28}{means}"
    for other in baselines:
        yield f"  change against {_label(other)}, %"
        for case in cases:
            changes = "".join(f"{_text_of(_change(runs, case, other, figure)):>20}" for figure in figures)
            yield f"  {_label(case):28}{changes if case != other else ''}"
    if scene == PAPER:
        yield from _paper_lines(runs)
    for target in TARGETS.get(scene, ()):
        case = next(case for case in cases if case.policy == target.policy and case.variant == "base")
        change = _change(runs, case, target.baseline, target.figure)
        verdict = (
            "met" if change.mean <= target.most else f"missed by {100 * (change.mean - target.most):.1f} points"
        )
        yield (
            f"  {target.policy} against {_label(target.baseline)}, {target.figure}: {_text_of(change)} %, "
            f"target {100 * target.most:+.0f} %: {verdict}"
        )


def _paper_lines(runs: Sequence[dict[Case, Figures]]) -> Iterator[str]:
    for case in runs[0]:
        premium, standard, batch, makespan = (
            fmean(run[case][figure] for run in runs) for figure in ("premium", "standard", "batch", "makespan")
        )
        yield (
            f"  {_label(case):28} mean by tier: premium {premium:.0f}, standard {standard:.0f}, batch {batch:.0f}; "
            f"makespan {makespan:.0f}"
        )


def _change(runs: Sequence[dict[Case, Figures]], case: Case, other: Case, figure: str) -> Interval:
    values, baseline = ({seed: run[of][figure] for seed, run in enumerate(runs)} for of in (case, other))
    difference = paired_difference(values, baseline)
    if difference is None or difference.relative is None:
        raise ValueError(f"{figure}: nothing to compare")
    return difference.relative


def _text_of(change: Interval) -> str:
    if change.low is None or change.high is None:
        return f"{100 * change.mean:+.0f}"
    return f"{100 * change.mean:+.0f} ({100 * change.low:+.0f}..{100 * change.high:+.0f})"


def _label(case: Case) -> str:
    return f"{case.policy} {case.estimator}" + ("" if case.variant == "base" else f", {case.variant}")


def _named(run: dict[Case, Figures]) -> dict[str, Figures]:
    return {_label(case): figures for case, figures in run.items()}


if __name__ == "__main__":
    main()
