"""`driftsched demo`: the whole loop over real HTTP, in a minute, with nothing to set up.

For each policy an engine and a gateway are started as processes of their own and driven by the same open-loop
workload. A third of the way through, the engine's habits change: short questions get long answers and reports get
short ones, as after a model swap. What the gateway knew about lengths is wrong from then on, until it learns.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from driftsched.bench import load
from driftsched.bench.load import Hit, Shot
from driftsched.bench.measures import mean_absolute_error, of, percentile
from driftsched.bench.processes import running
from driftsched.bench.prompts import draw_prompt
from driftsched.core.model import Tier


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the gateway."""

    policy: str
    estimator: str

    @property
    def feedback(self) -> str:
        return "off" if self.estimator == "static" else "on"


ARMS = (Arm("fifo", "static"), Arm("sjf", "static"), Arm("sjf", "adaptive"), Arm("fair", "adaptive"))


@dataclass(frozen=True, slots=True)
class Scene:
    """What the arms are driven with."""

    engine: tuple[str, ...]
    """Arguments of `driftsched` that start it."""
    max_inflight: int
    model: str
    rate: float
    """Requests per second, Poisson."""
    kinds: dict[str, float]
    """Share of each kind of request."""
    max_tokens: dict[str, int]
    drift_share: float
    """When the drift sets in, as a share of the run."""
    before: str | None = None
    """System message up to the drift, and from then on: how a real model is made to drift."""
    after: str | None = None
    note: str = ""


KINDS = {"short_qa": 0.40, "summary": 0.25, "technical": 0.20, "report": 0.15}
SIMULATED_SECONDS = 14.0
LOCAL_SECONDS = 40.0
"""How long each arm is driven: a CPU needs longer for answers enough to speak of."""
START_SECONDS = 300.0
"""A real model's weights are fetched on first use."""
SPEED = 12.0
"""Simulated seconds per second."""
DRIFT_SHARE = 1 / 3
SETTLED_SHARE = 2 / 3
"""From here on the correction has had time to converge: the last third of a run."""

TENANTS = {"acme": Tier.PREMIUM, "globex": Tier.STANDARD, "initech": Tier.BATCH}


def simulated_scene(seconds: float, seed: int) -> Scene:
    """An L4 that runs faster than the clock, so that a run of seconds holds enough requests to speak of."""
    at = f"at={seconds * DRIFT_SHARE * SPEED:.3f}s"
    drifts = (f"{at},factor=5,category=short_qa", f"{at},factor=0.4,category=report")
    options = ["--profile", "demo", "--slots", "16", "--speed", f"{SPEED:g}", "--seed", str(seed), "--port", "0"]
    for drift in drifts:
        options += ["--drift", drift]
    return Scene(
        engine=("mock", *options),
        max_inflight=16,
        model="simulated",
        rate=40.0,
        kinds=KINDS,
        max_tokens=dict.fromkeys(KINDS, 4096),
        drift_share=DRIFT_SHARE,
        note=f"Engine: a simulated L4 with Qwen1.5-1.8B, {SPEED:g} times faster, 16 slots.\n"
        "Drift:  from 1/3 of the run on, answers to short_qa x5, reports x0.4.",
    )


def local_scene() -> Scene:
    """A real model on the CPU, told to be brief at first and thorough later."""
    return Scene(
        engine=("local", "--slots", "4", "--port", "0"),
        max_inflight=4,
        model="smollm2-135m",
        rate=1.2,
        kinds=KINDS,
        max_tokens={"short_qa": 48, "summary": 64, "technical": 96, "report": 128},
        drift_share=DRIFT_SHARE,
        before="Answer in one short sentence.",
        after="Answer thoroughly and in detail.",
        note="Engine: SmolLM2-135M on this CPU, 4 slots.\n"
        "Drift:  told to be brief up to 1/3 of the run, thorough from then on.",
    )


def run_demo(*, local: bool, seconds: float | None, seed: int) -> None:
    """Run every arm and print what came out; progress goes to stderr."""
    seconds = seconds or (LOCAL_SECONDS if local else SIMULATED_SECONDS)
    scene = local_scene() if local else simulated_scene(seconds, seed)
    shots = workload(scene, seconds, seed)
    results = asyncio.run(_run(scene, shots))
    Console(highlight=False).print(render(scene, shots, seconds, seed, results), markup=True)


def workload(scene: Scene, seconds: float, seed: int) -> list[Shot]:
    """The same for every arm: who asks what at which instant."""
    random = Random(seed)
    shots: list[Shot] = []
    at = random.expovariate(scene.rate)
    while at < seconds:
        kind = random.choices(list(scene.kinds), list(scene.kinds.values()))[0]
        tenant = random.choice(list(TENANTS))
        system = scene.before if at < seconds * scene.drift_share else scene.after
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": draw_prompt(kind, random)})
        tier = TENANTS[tenant].label
        shots.append(Shot(at, tenant, tier, kind, tuple(messages), scene.max_tokens[kind], seed=len(shots)))
        at += random.expovariate(scene.rate)
    return shots


async def _run(scene: Scene, shots: list[Shot]) -> dict[Arm, list[Hit]]:
    results = {}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for number, arm in enumerate(ARMS, 1):
            title = f"{number}/{len(ARMS)} {arm.policy}, feedback {arm.feedback}"
            bar = bars.add_task(title, total=len(shots))
            if not console.is_terminal:
                console.print(f"{title} ...", highlight=False)

            def show(progress: load.Progress, bar: Any = bar, title: str = title) -> None:
                bars.update(bar, completed=progress.done, description=_describe(title, progress))

            async with _gateway(scene, arm) as url:
                results[arm] = await load.fire(url, shots, model=scene.model, on_change=show)
    return results


@asynccontextmanager
async def _gateway(scene: Scene, arm: Arm) -> AsyncIterator[str]:
    """A fresh engine and a fresh gateway in front of it."""
    async with running(*scene.engine, start_seconds=START_SECONDS) as engine_url:
        settings = {
            "engines": [{"url": engine_url, "max_inflight": scene.max_inflight}],
            "policy": {"name": arm.policy},
            "estimator": {"name": arm.estimator},
            "classifier": {"name": "keywords"},  # as the simulated engine tells its prompts apart
            "tenants": [{"id": name, "tier": tier.label} for name, tier in TENANTS.items()],
            "state": {"path": None},  # every policy starts knowing nothing
        }
        with tempfile.NamedTemporaryFile("w", prefix="driftsched-", suffix=".yaml") as file:
            yaml.safe_dump(settings, file)
            file.flush()
            async with running("serve", "--config", file.name, "--port", "0") as url:
                yield url


def _describe(title: str, progress: load.Progress) -> str:
    """What a run looks like while it goes on."""
    done = [hit for hit in progress.hits if hit.ok]
    waits = sorted(hit.queue_seconds for hit in done[-50:] if hit.queue_seconds is not None)
    median = f"{waits[len(waits) // 2]:5.2f}" if waits else "    -"
    return f"{title:26} {progress.sent - progress.done:3} open, last waits {median} s"


def render(scene: Scene, shots: list[Shot], seconds: float, seed: int, results: dict[Arm, list[Hit]]) -> str:
    """The tables and their reading, at most 80 columns wide."""
    failed = sum(not hit.ok for hits in results.values() for hit in hits)
    lines = [
        f"Load:   {len(shots)} requests in {seconds:g} s for each policy, open loop, seed {seed}; {failed} failed.",
        scene.note,
        "",
        *_main_table(results),
        "",
        *_tier_table(results),
        "",
        *_error_table(results, seconds),
        "",
        *_reading(results, seconds),
    ]
    return "\n".join(lines)


def _main_table(results: dict[Arm, list[Hit]]) -> list[str]:
    lines = [
        "[bold]all requests         queue time, s         end-to-end, s      1st token  error[/]",
        "[bold]policy feedback    P50    P95    P99     P50    P95    P99     P50, s tokens[/]",
    ]
    for arm, hits in results.items():
        queue, e2e = of(hits, lambda hit: hit.queue_seconds), of(hits, lambda hit: hit.e2e_seconds)
        ttft = percentile(of(hits, lambda hit: hit.ttft_seconds), 0.5)
        figures = [percentile(queue, q) for q in (0.5, 0.95, 0.99)] + [
            percentile(e2e, q) for q in (0.5, 0.95, 0.99)
        ]
        row = f"{arm.policy:6} {arm.feedback:8}" + "".join(map(_seconds, figures[:3])) + " "
        row += "".join(map(_seconds, figures[3:])) + f"    {_seconds(ttft)}" + _tokens(mean_absolute_error(hits))
        lines.append(row)
    return lines


def _tier_table(results: dict[Arm, list[Hit]]) -> list[str]:
    lines = [
        "[bold]end-to-end by tier, s    premium          standard            batch[/]",
        "[bold]policy feedback       P50    P95        P50    P95        P50    P95[/]",
    ]
    for arm, hits in results.items():
        row = f"{arm.policy:6} {arm.feedback:8}"
        for tier in Tier:
            e2e = of((hit for hit in hits if hit.shot.tier == tier.label), lambda hit: hit.e2e_seconds)
            row += f"   {_seconds(percentile(e2e, 0.5))}{_seconds(percentile(e2e, 0.95))}  "
        lines.append(row.rstrip())
    return lines


def _error_table(results: dict[Arm, list[Hit]], seconds: float) -> list[str]:
    lines = ["[bold]prediction error, tokens   before the drift   just after   settled (last third)[/]"]
    for arm in (Arm("sjf", "static"), Arm("sjf", "adaptive")):
        before, after, settled = (mean_absolute_error(part) for part in _phases(results[arm], seconds))
        lines.append(f"feedback {arm.feedback:16}{_tokens(before)}{_tokens(after):>16}{_tokens(settled):>13}")
    return lines


def _phases(hits: list[Hit], seconds: float) -> tuple[list[Hit], list[Hit], list[Hit]]:
    """By arrival: up to the drift, while the correction converges, after that."""
    bounds = (0.0, seconds * DRIFT_SHARE, seconds * SETTLED_SHARE, float("inf"))
    first, second, third = ([hit for hit in hits if low <= hit.shot.at < high] for low, high in pairwise(bounds))
    return first, second, third


def _reading(results: dict[Arm, list[Hit]], seconds: float) -> list[str]:
    """What the figures say, whichever way they fell."""
    fifo, blind, taught, fair = (results[arm] for arm in ARMS)
    p50, p99 = (_change(_e2e(fifo, q), _e2e(taught, q)) for q in (0.5, 0.99))
    error = _change(*(mean_absolute_error(_phases(hits, seconds)[2]) for hits in (blind, taught)))
    tail = _change(*(_e2e(_since_drift(hits, seconds), 0.95) for hits in (blind, taught)))
    whole = _change(_e2e(fifo, 0.5), _e2e(fair, 0.5))
    premium = _change(*(_e2e([h for h in hits if h.shot.tier == "premium"], 0.95) for hits in (fifo, fair)))
    return [
        f"Short answers first: end-to-end P50 {p50}, P99 {p99} against fifo.",
        f"Feedback: settled error {error}; sjf's end-to-end P95 since the drift {tail}.",
        f"Default (fair): P50 {whole}, premium's P95 {premium} against fifo.",
    ]


def _since_drift(hits: list[Hit], seconds: float) -> list[Hit]:
    return [hit for hit in hits if hit.shot.at >= seconds * DRIFT_SHARE]


def _e2e(hits: list[Hit], fraction: float) -> float | None:
    return percentile(of(hits, lambda hit: hit.e2e_seconds), fraction)


def _change(before: float | None, after: float | None) -> str:
    return f"{after / before - 1:+.0%}" if before and after is not None else "n/a"


def _seconds(value: float | None) -> str:
    return f"{value:7.2f}" if value is not None else "      -"


def _tokens(value: float | None) -> str:
    return f"{value:7.0f}" if value is not None else "      -"
