"""`driftsched replay`: what each policy would have given on requests that were really served.

An engine model is scaled until the policy that served, simulated, gives the median end-to-end time that was
measured; then every policy gets the same requests on it. The journal is one sample of the traffic, so it is cut
into blocks of time: each is simulated with the block before it as warm-up and the block after it as what keeps
coming, and policies are compared block by block.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from itertools import pairwise
from math import exp, log, sqrt
from statistics import fmean
from typing import Literal

import msgspec
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.engines.model import Mode
from driftsched.engines.presets import Hardware
from driftsched.sim.experiment import ORACLE, Case, Machine, Parts, check_fits, run_case
from driftsched.sim.measures import Spread, spread
from driftsched.sim.statistics import CONFIDENCE, Interval, student_t_quantile
from driftsched.sim.trace import Row, on_grid

SCHEMA = 1
SEED = 1
"""Nothing is drawn here; a run has a seed."""

MIN_BLOCKS = 10
MIN_ROWS_PER_BLOCK = 20
"""On average: of fewer requests a block says nothing."""
SELECTION_ROWS = 1_000
"""The latest so many requests choose the preset."""
CALIBRATION_ROWS = 5_000
"""The latest so many set its scale; what is left wrong is told of all of them."""
ROUGH_MATCH, MATCH = 0.03, 0.005
"""The scale is found when the medians differ by no more than this share: to choose a preset, and in the end."""
MAX_NARROWINGS = 12
MAX_DOUBLINGS = 12

WORTH = 0.05
"""A mean that changes by less is not worth a change of policy."""
UNMATCHED = 0.10
"""A median further off than this share: the model does not describe the engine."""
POOR_CHECKS = 0.50
"""The same for the mean error of the figures that were not fitted."""
SHORT_BLOCKS = 0.25
"""Mean E2E of what serves may differ by this share between the blocks and one run of all they hold."""
BAND = 0.2
"""How much faster and slower than calibrated the engine may be without the verdict changing."""

BASE, FASTER, SLOWER = "base", "faster", "slower"
Verdict = Literal["switch", "stay", "unclear"]


@dataclass(frozen=True, slots=True)
class Past:
    """A request that reached the engine, and how it fared."""

    row: Row
    """`completion_tokens` as far as they are known; see `lower_bound`."""
    finished: bool
    lower_bound: bool
    """The answer was cut off, at a limit or because its client left: nobody knows how long it would have been."""
    queue_seconds: float
    ttft_seconds: float | None
    e2e_seconds: float
    overdue: bool = False


class Figure(msgspec.Struct, frozen=True):
    """A figure as it was measured and as the calibrated model gives it."""

    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Relative; infinite of something measured as 0."""
        return self.simulated / self.measured - 1 if self.measured else float("inf")


class Calibration(msgspec.Struct, frozen=True):
    """How the engine model was fitted, and how far off it is."""

    hardware: str
    scale: float
    """Every time of the preset is multiplied by this."""
    fitted: Figure
    """E2E P50, seconds, over all requests."""
    checks: dict[str, Figure]
    """Not fitted: seconds."""
    mean_check_error: float
    """Of the checks, each relative to its measured value, or to a tenth of the median E2E if that is larger."""

    @property
    def trustworthy(self) -> bool:
        return abs(self.fitted.error) <= UNMATCHED and self.mean_check_error <= POOR_CHECKS


class Arm(msgspec.Struct, frozen=True):
    """What one policy with one estimator gives on one engine, and how it differs from what served."""

    policy: str
    estimator: str
    variant: str
    """`base`, or the engine a fifth `faster` or `slower`."""
    e2e_seconds: Spread
    queue_seconds: Spread
    mean_change: Interval | None
    """Of mean E2E, relative to what served: -0.1 is 10 % less. None of what served."""
    p95_change: Interval | None
    """Of the P95 of blocks; None if a block has too few requests for it."""
    tier_changes: dict[str, Interval]
    """Of mean E2E, by tier."""


class Recommendation(msgspec.Struct, frozen=True):
    verdict: Verdict
    policy: str
    """What to run: of `stay` and `unclear`, what runs now."""
    estimator: str
    reasons: list[str]


class Replay(msgspec.Struct, frozen=True):
    """The document: `replay.json`."""

    schema: int
    facts: dict[str, object]
    """Of the journal."""
    live: dict[str, str]
    engine: dict[str, object]
    calibration: Calibration
    blocks: int
    block_seconds: float
    block_error: float
    """Mean E2E of what serves in the blocks, relative to the same requests in one run of all, less 1: below 0 where
    backlogs last longer than a block and its warm-up."""
    arms: list[Arm]
    recommendation: Recommendation
    cautions: list[str]


@dataclass(frozen=True, slots=True)
class Block:
    """Places in the trace: warm-up is `start:measured_from`, what comes after is `measured_to:end`."""

    start: int
    measured_from: int
    measured_to: int
    end: int


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Of the measured requests of one block, in order of arrival."""

    e2e: list[float]
    queue: list[float]
    tiers: list[str]


def replay(
    past: Sequence[Past],
    *,
    live: tuple[str, str],
    arms: Sequence[tuple[str, str]],
    hardware: Sequence[Hardware],
    mode: Mode,
    slots: int,
    parts: Parts,
    facts: Mapping[str, object],
    num_blocks: int = MIN_BLOCKS,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Replay:
    """Replay `past`, in order of arrival, under each of `arms`: pairs of policy and estimator, as `live` is.

    Of several `hardware` presets the one that describes the past best is used. Raises `ConfigError` for too few
    requests or blocks, or requests that no preset has room for.
    """
    check_enough(len(past), num_blocks)
    arms = list(dict.fromkeys([live, *arms]))
    calibration, machine = calibrate(past, live, hardware, Machine(hardware[0], mode, slots), parts)
    rows = [one.row for one in past]
    blocks = cut_blocks(rows, num_blocks)
    machines = {
        BASE: machine,
        FASTER: changed(machine, hardware=scaled(machine.hardware, 1 - BAND)),
        SLOWER: changed(machine, hardware=scaled(machine.hardware, 1 + BAND)),
    }
    cases = [Case(*arm, machines[variant], variant) for variant in machines for arm in arms]
    times: dict[str, dict[tuple[str, str], list[BlockTimes]]] = {variant: {} for variant in machines}
    run = partial(run_blocks, rows, blocks, parts)
    for done, (case, result) in enumerate(zip(cases, _mapped(run, cases, processes), strict=True), 1):
        times[case.variant][case.policy, case.estimator] = result
        progress(done, len(cases))
    comparisons = max(1, len(arms) - 1)
    compared = [
        _arm(arm, variant, results, times[variant][live] if arm != live else None, comparisons)
        for variant in machines
        for arm, results in times[variant].items()
    ]
    short_by = _block_error(rows, blocks, parts, times[BASE][live], Case(*live, machine))
    block_seconds = (rows[-1].at - rows[0].at) / (num_blocks + 2)
    return Replay(
        schema=SCHEMA,
        facts=dict(facts),
        live={"policy": live[0], "estimator": live[1]},
        engine={"hardware": machine.hardware.name, "mode": mode, "slots": slots},
        calibration=calibration,
        blocks=len(blocks),
        block_seconds=block_seconds,
        block_error=short_by,
        arms=compared,
        recommendation=recommend(live, compared, calibration, short_by),
        cautions=[*_cautions(past, compared[0], block_seconds, times[BASE])],
    )


def check_enough(num_rows: int, num_blocks: int) -> None:
    """Raises `ConfigError` for fewer blocks or requests than an interval needs."""
    if num_blocks < MIN_BLOCKS:
        raise ConfigError(f"blocks: must be at least {MIN_BLOCKS}, not {num_blocks}")
    needed = (num_blocks + 2) * MIN_ROWS_PER_BLOCK
    if num_rows < needed:
        raise ConfigError(
            f"journal: {num_rows} requests were served under the policy that ran last, but {num_blocks} blocks "
            f"need {needed}: let it run longer"
        )


def calibrate(
    past: Sequence[Past], live: tuple[str, str], presets: Sequence[Hardware], machine: Machine, parts: Parts
) -> tuple[Calibration, Machine]:
    """The preset, with its scale, that gives what was measured under `live`; and `machine` with it.

    Raises `ConfigError` if no preset has room for the requests.
    """
    fitting = [hardware for hardware in presets if _fits(past, changed(machine, hardware=hardware))]
    if not fitting:
        check_fits([one.row for one in past], changed(machine, hardware=presets[-1]))
    hardware = fitting[0]
    if len(fitting) > 1:
        sample = past[-SELECTION_ROWS:]
        trials = [_scaled_to(sample, live, changed(machine, hardware=h), parts, ROUGH_MATCH)[0] for h in fitting]
        errors = [mean_check_error(*_figures(sample, live, trial, parts)) for trial in trials]
        hardware = fitting[errors.index(min(errors))]
    made, scale = _scaled_to(past[-CALIBRATION_ROWS:], live, changed(machine, hardware=hardware), parts, MATCH)
    fitted, checks = _figures(past, live, made, parts)
    return Calibration(hardware.name, scale, fitted, checks, mean_check_error(fitted, checks)), made


def mean_check_error(fitted: Figure, checks: Mapping[str, Figure]) -> float:
    """Of figures that may be close to 0, such as waiting times: then in terms of a tenth of the median E2E."""
    least = fitted.measured / 10
    return fmean(abs(f.simulated - f.measured) / max(f.measured, least) for f in checks.values())


def scaled(hardware: Hardware, scale: float) -> Hardware:
    """The same machine with every time multiplied by `scale`."""
    return changed(
        hardware,
        name=f"{hardware.name.partition(' x ')[0]} x {scale:.3g}",
        host_ms=hardware.host_ms * scale,
        floor_ms=hardware.floor_ms * scale,
        g0_ms=hardware.g0_ms * scale,
        g_us_per_token=hardware.g_us_per_token * scale,
        r_us_per_sequence=hardware.r_us_per_sequence * scale,
        kv_ns_per_token=hardware.kv_ns_per_token * scale,
        api_ms=hardware.api_ms * scale,
        source="fitted",
    )


def cut_blocks(rows: Sequence[Row], num_blocks: int) -> list[Block]:
    """`num_blocks` stretches of equal time, with one more before them and one after; those with requests."""
    begin, length = rows[0].at, (rows[-1].at - rows[0].at) / (num_blocks + 2)
    instants = [row.at for row in rows]
    edges = [bisect_left(instants, begin + length * number) for number in range(num_blocks + 2)] + [len(rows)]
    blocks = [Block(*edges[first : first + 4]) for first in range(num_blocks)]
    return [block for block in blocks if block.measured_from < block.measured_to]


def run_blocks(rows: Sequence[Row], blocks: Sequence[Block], parts: Parts, case: Case) -> list[BlockTimes]:
    """Each block on its own, on an idle engine and with an estimator that knows nothing before its warm-up."""
    results = []
    for block in blocks:
        begin = rows[block.start].at
        part = [replace(row, at=on_grid(row.at - begin)) for row in rows[block.start : block.end]]
        recording = run_case(part, case, SEED, parts)
        places = range(block.measured_from - block.start, block.measured_to - block.start)
        arrived, ended = recording.arrived_at, recording.finished_at
        results.append(
            BlockTimes(
                e2e=[ended[place] - arrived[place] for place in places],
                queue=[recording.dispatched_at[place] - arrived[place] for place in places],
                tiers=[recording.tier[place] for place in places],
            )
        )
    return results


def ratio_change(values: Sequence[float], baseline: Sequence[float], comparisons: int = 1) -> Interval | None:
    """By which share the total of `values` exceeds that of `baseline`, from pairs of block totals.

    The estimator of a ratio, whose spread is that of `value - ratio * base` over the pairs (Cochran, Sampling
    Techniques, 1977, section 6.3): busy blocks count by their requests. The confidence holds for `comparisons`
    intervals together (Bonferroni). None if there are no two pairs, or the baseline is 0.
    """
    total = sum(baseline)
    pairs = list(zip(values, baseline, strict=True))
    if len(pairs) < 2 or not total > 0:
        return None
    ratio = sum(values) / total
    residuals = sum((value - ratio * base) ** 2 for value, base in pairs) / (len(pairs) - 1)
    half_width = _quantile(len(pairs), comparisons) * sqrt(residuals / len(pairs)) / (total / len(pairs))
    return Interval(ratio - 1, ratio - 1 - half_width, ratio - 1 + half_width, len(pairs))


def recommend(
    live: tuple[str, str], arms: Sequence[Arm], calibration: Calibration, block_error: float = 0.0
) -> Recommendation:
    """Switch only to what lowers the mean, surely and by enough, whatever the engine; and harms nobody much."""
    if not calibration.trustworthy:
        why = (
            f"the model of the engine is too far off: E2E P50 {calibration.fitted.error:+.0%}, other figures "
            f"{calibration.mean_check_error:.0%} on average"
        )
        return Recommendation("unclear", *live, [why])
    if abs(block_error) > SHORT_BLOCKS:
        why = (
            f"backlogs last longer than a block: mean E2E in blocks is {block_error:+.0%} off that of one run of "
            "all; replay a longer stretch of time"
        )
        return Recommendation("unclear", *live, [why])
    base = [arm for arm in arms if arm.variant == BASE and (arm.policy, arm.estimator) != live]
    objections = {
        (arm.policy, arm.estimator): list(_objections(arm, arms)) for arm in base if arm.estimator != ORACLE
    }
    better = [arm for arm in base if objections.get((arm.policy, arm.estimator)) == []]
    if better:
        best = min(better, key=_mean_change)
        reason = f"mean E2E {_percents(best.mean_change)}, also on an engine {BAND:.0%} faster or slower"
        return Recommendation("switch", best.policy, best.estimator, [reason])
    reasons = [f"{policy}/{estimator}: {'; '.join(why)}" for (policy, estimator), why in objections.items()]
    return Recommendation("stay", *live, reasons or ["nothing else was tried"])


def text(document: Replay) -> str:
    """For a terminal, 80 columns wide."""
    calibration, advice = document.calibration, document.recommendation
    engine = document.engine
    lines = [
        f"{document.facts.get('replayed')} requests, served by {document.live['policy']} with "
        f"{document.live['estimator']}",
        f"engine: {engine['hardware']}, {engine['slots']} slots, {engine['mode']} batching",
        "",
        _line("calibration", ["measured, s", "simulated, s", "error"]),
        _line("E2E P50 (fitted)", _figure_cells(calibration.fitted)),
        *(_line(name, _figure_cells(figure)) for name, figure in calibration.checks.items()),
    ]
    for variant, title in (
        (BASE, _blocks_title(document)),
        (FASTER, f"engine {BAND:.0%} faster"),
        (SLOWER, f"engine {BAND:.0%} slower"),
    ):
        lines += ["", _line(title, []), _line("seconds", ["E2E mean", "P50", "P95", "queue", "mean change"])]
        for arm in document.arms:
            if arm.variant == variant:
                lines.append(_line(f"{arm.policy}/{arm.estimator}", _arm_cells(arm)))
    lines += ["", _verdict_line(advice), *(f"- {reason}" for reason in advice.reasons)]
    lines += [f"! {caution}" for caution in document.cautions]
    return "\n".join(wrapped for line in lines for wrapped in _wrap(line)) + "\n"


def _blocks_title(document: Replay) -> str:
    blocks = f"{document.blocks} blocks of {document.block_seconds:.3g} s"
    return f"as calibrated: {blocks}; mean E2E {document.block_error:+.1%} off one run"


def _verdict_line(advice: Recommendation) -> str:
    if advice.verdict == "switch":
        return f"Recommended: --policy {advice.policy} --estimator {advice.estimator}"
    if advice.verdict == "stay":
        return f"No difference worth switching for: stay with {advice.policy} and {advice.estimator}."
    return f"No recommendation; {advice.policy} and {advice.estimator} run now."


def _objections(arm: Arm, arms: Sequence[Arm]) -> Iterator[str]:
    """Why not to switch to it."""
    change = arm.mean_change
    if change is None or change.high is None or change.high >= 0 or change.mean > -WORTH:
        yield f"mean E2E {_percents(change)}"
        return
    for other in arms:
        if (other.policy, other.estimator) == (arm.policy, arm.estimator) and _mean_change(other) >= 0:
            yield f"no gain on an engine {BAND:.0%} {other.variant}"
    harmed = {"E2E P95": arm.p95_change} | {f"mean E2E of {tier}": c for tier, c in arm.tier_changes.items()}
    for what, harm in harmed.items():
        if harm is not None and harm.low is not None and harm.low > 0 and harm.mean > WORTH:
            yield f"mean E2E {change.mean:+.0%}, but {what} {_percents(harm)}"


def _block_error(
    rows: Sequence[Row], blocks: Sequence[Block], parts: Parts, results: Sequence[BlockTimes], live: Case
) -> float:
    whole = Block(0, blocks[0].measured_from, blocks[-1].measured_to, blocks[-1].end)
    (alone,) = run_blocks(rows, [whole], parts, live)
    return sum(sum(result.e2e) for result in results) / sum(alone.e2e) - 1


def _arm(
    arm: tuple[str, str],
    variant: str,
    results: Sequence[BlockTimes],
    live: Sequence[BlockTimes] | None,
    comparisons: int,
) -> Arm:
    mean_change, p95_change = None, None
    tier_changes = {}
    if live is not None:
        mean_change = ratio_change([sum(r.e2e) for r in results], [sum(r.e2e) for r in live], comparisons)
        p95_change = _p95_change(results, live, comparisons)
        for tier in sorted({tier for result in results for tier in result.tiers}):
            change = ratio_change(_totals(results, tier), _totals(live, tier), comparisons)
            if change is not None:
                tier_changes[tier] = change
    return Arm(
        policy=arm[0],
        estimator=arm[1],
        variant=variant,
        e2e_seconds=spread(sorted(seconds for result in results for seconds in result.e2e)),
        queue_seconds=spread(sorted(seconds for result in results for seconds in result.queue)),
        mean_change=mean_change,
        p95_change=p95_change,
        tier_changes=tier_changes,
    )


def _totals(results: Iterable[BlockTimes], tier: str) -> list[float]:
    return [sum(e2e for e2e, own in zip(r.e2e, r.tiers, strict=True) if own == tier) for r in results]


def _p95_change(results: Sequence[BlockTimes], live: Sequence[BlockTimes], comparisons: int) -> Interval | None:
    own, base = ([spread(sorted(result.e2e)).p95 for result in side] for side in (results, live))
    pairs = [(a, b) for a, b in zip(own, base, strict=True) if a is not None and b is not None]
    if len(pairs) < len(results):
        return None
    return ratio_change([a for a, _ in pairs], [b for _, b in pairs], comparisons)


def _figures(
    past: Sequence[Past], live: tuple[str, str], machine: Machine, parts: Parts
) -> tuple[Figure, dict[str, Figure]]:
    """E2E P50, and the figures that check it, over the requests that really finished."""
    simulated = _simulated(past, live, machine, parts)
    ttft = [(one.ttft_seconds, s.ttft_seconds) for one, s in simulated if one.ttft_seconds is not None]
    e2e = _both([(one.e2e_seconds, s.e2e_seconds) for one, s in simulated])
    queue = _both([(one.queue_seconds, s.queue_seconds) for one, s in simulated])
    checks = {
        "E2E mean": Figure(*(fmean(side) for side in e2e)),
        "E2E P95": Figure(*(_rank(side, 0.95) for side in e2e)),
        "queue mean": Figure(*(fmean(side) for side in queue)),
    }
    if ttft:
        checks["TTFT P50"] = Figure(*(_rank(side, 0.5) for side in _both(ttft)))
    return Figure(*(_rank(side, 0.5) for side in e2e)), checks


def _scaled_to(
    past: Sequence[Past], live: tuple[str, str], machine: Machine, parts: Parts, match: float
) -> tuple[Machine, float]:
    """`machine`, and its scale, at which E2E P50 is what was measured: more time a step, more time a request."""

    def at(scale: float) -> Machine:
        return changed(machine, hardware=scaled(machine.hardware, scale))

    def error(scale: float) -> float:
        simulated = _simulated(past, live, at(scale), parts)
        measured, modelled = _both([(one.e2e_seconds, times.e2e_seconds) for one, times in simulated])
        return log(_rank(modelled, 0.5) / max(_rank(measured, 0.5), 1e-6))

    low = high = exp(-error(1.0))  # where requests do not wait, time is in proportion
    low_error = high_error = error(low)
    for _ in range(MAX_DOUBLINGS):
        if low_error > 0:
            low, high, high_error = low / 2, low, low_error
            low_error = error(low)
        elif high_error < 0:
            low, high, low_error = high, high * 2, high_error
            high_error = error(high)
    for _ in range(MAX_NARROWINGS):
        scale, off = (low, low_error) if abs(low_error) < abs(high_error) else (high, high_error)
        if abs(off) <= match:
            break
        share = min(max(low_error / (low_error - high_error), 0.1), 0.9) if low_error < high_error else 0.5
        middle = low * (high / low) ** share
        off = error(middle)
        if off > 0:
            high, high_error = middle, off
        else:
            low, low_error = middle, off
    return at(scale), scale


@dataclass(frozen=True, slots=True)
class _Times:
    queue_seconds: float
    ttft_seconds: float
    e2e_seconds: float


def _simulated(
    past: Sequence[Past], live: tuple[str, str], machine: Machine, parts: Parts
) -> list[tuple[Past, _Times]]:
    """Each request that really finished, beside its times in a simulation of all."""
    begin = past[0].row.at
    rows = [replace(one.row, at=on_grid(one.row.at - begin)) for one in past]
    made = run_case(rows, Case(*live, machine), SEED, parts)
    columns = zip(past, made.arrived_at, made.dispatched_at, made.first_token_at, made.finished_at, strict=True)
    return [
        (one, _Times(dispatched - arrived, first - arrived, ended - arrived))
        for one, arrived, dispatched, first, ended in columns
        if one.finished
    ]


def _fits(past: Sequence[Past], machine: Machine) -> bool:
    try:
        check_fits((one.row for one in past), machine)
    except ConfigError:
        return False
    return True


def _both(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Both columns, each in ascending order."""
    return sorted(first for first, _ in pairs), sorted(second for _, second in pairs)


def _rank(ordered: Sequence[float], fraction: float) -> float:
    """Nearest-rank percentile, of however few: both sides have the same requests."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def _quantile(num_pairs: int, comparisons: int) -> float:
    return student_t_quantile(1 - (1 - CONFIDENCE) / (2 * comparisons), num_pairs - 1)


def _cautions(
    past: Sequence[Past],
    live: Arm,
    block_seconds: float,
    times: Mapping[tuple[str, str], Sequence[BlockTimes]],
) -> Iterator[str]:
    overdue = sum(one.overdue for one in past) / len(past)
    if overdue > 0.01:
        yield f"{overdue:.0%} were dispatched at their maximum wait, which is not simulated: compare with care"
    cut_off = sum(one.lower_bound for one in past)
    if cut_off:
        yield f"{cut_off} answers were cut off at a limit or a hang-up: replayed as long as they came"
    e2e, queue = live.e2e_seconds.mean, live.queue_seconds.mean
    if e2e and queue is not None and queue < 0.05 * e2e:
        yield "hardly any time was spent waiting: where nothing waits, no order is better than another"
    p95 = live.e2e_seconds.p95 or live.e2e_seconds.max
    if p95 and block_seconds < 3 * p95:
        yield f"a block lasts {block_seconds:.3g} s, its warm-up too: little beside an E2E P95 of {p95:.3g} s"
    base, *others = times.values()
    if any(_related(other, base) for other in others):
        yield "differences of neighbouring blocks are alike: the intervals are too narrow; journal for longer"


def _related(results: Sequence[BlockTimes], live: Sequence[BlockTimes]) -> bool:
    """The lag-1 autocorrelation of the differences is more than two standard errors above 0."""
    differences = [sum(a.e2e) - sum(b.e2e) for a, b in zip(results, live, strict=True)]
    mean = fmean(differences)
    centred = [difference - mean for difference in differences]
    spread_ = sum(value * value for value in centred)
    return spread_ > 0 and sum(a * b for a, b in pairwise(centred)) / spread_ > 2 / sqrt(len(centred))


def _mean_change(arm: Arm) -> float:
    return 0.0 if arm.mean_change is None else arm.mean_change.mean


def _percents(change: Interval | None) -> str:
    """`-12 % (-15..-9)`."""
    if change is None or change.low is None or change.high is None:
        return "not comparable"
    text = f"{100 * change.mean:+.1f} % ({100 * change.low:+.1f}..{100 * change.high:+.1f})"
    return f"{text} n.s." if change.spans_zero else text


def _figure_cells(figure: Figure) -> list[str]:
    error = f"{figure.error:+.1%}" if figure.measured else "-"
    return [f"{figure.measured:.3g}", f"{figure.simulated:.3g}", error]


def _arm_cells(arm: Arm) -> list[str]:
    e2e = arm.e2e_seconds
    values = (e2e.mean, e2e.p50, e2e.p95, arm.queue_seconds.mean)
    change = arm.mean_change
    if change is None or change.high is None:
        said = "(served)"
    else:
        said = f"{change.mean:+.1%}{' n.s.' if change.spans_zero else f' ±{100 * (change.high - change.mean):.1f}'}"
    return ["-" if value is None else f"{value:.3g}" for value in values] + [said]


def _line(label: str, cells: Sequence[str]) -> str:
    widths = (9, 9, 9, 9, 18) if len(cells) == 5 else (15,) * len(cells)
    return (label.ljust(22) + "".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))).rstrip()


def _wrap(line: str, width: int = 80) -> Iterator[str]:
    while len(line) > width:
        at = line.rfind(" ", 0, width + 1)
        if at <= 2:
            break
        yield line[:at]
        line = "  " + line[at + 1 :]
    yield line


def _mapped(
    run: Callable[[Case], list[BlockTimes]], cases: Sequence[Case], processes: int
) -> Iterator[list[BlockTimes]]:
    if processes == 1:
        yield from map(run, cases)
    else:
        with ProcessPoolExecutor(min(processes, len(cases))) as pool:
            yield from pool.map(run, cases)
