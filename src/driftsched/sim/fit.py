"""The coefficients of an engine from a run that was recorded on it: `driftsched simulate --fit`.

Everything in a batch advances together, one token an iteration. So between its first and its last token a request
of n tokens saw n - 1 iterations, and their total time is a linear equation in the coefficients:

    base * iterations + kv * context tokens read + g * prompt tokens of others that did not fit under the floor

What the batch held meanwhile is known from the other requests of the run. A request that found the engine idle
gives an equation for its first token, which holds `api` too. The coefficients are the weighted least squares
solution; since features depend a little on how iterations spread over a span, and so on the coefficients, this is
repeated until it settles. Its intervals are a jackknife over ten stretches of the run, not over requests: those
that overlap share iterations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil, fsum, inf, nan, sqrt
from operator import mul
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import NamedTuple

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import Hardware
from driftsched.sim.statistics import CONFIDENCE, student_t_quantile

NAMES = ("base", "kv", "g", "api")
_API = 3
UNITS = ("ms", "ns/token", "us/token", "ms/request")
_SCALES = (1e-3, 1e-9, 1e-6, 1e-3)
"""Seconds in a unit."""

TRAINING_SHARE = 0.8
"""Of the run's requests, in order of time; the others check the fit."""
MIN_REQUESTS = 100
STRETCHES = 10
TELLS_NOTHING = 1.0
"""A coefficient is kept from the preset if its interval reaches farther than this share of it, or of the preset's.
At 1 that is: if it might as well be nothing."""

TOKEN_BUDGET = 2048
"""Tokens an iteration may process, as in the engine model and by default in vLLM."""
SAME_ITERATION_SECONDS = 1e-3
"""First tokens that came closer together than this are of one iteration."""

_MAX_PASSES = 20
_SETTLED = 1e-5
_REDUNDANT = 1e-7
"""A column of which less than this is left, once the others are taken away, says nothing of its own."""


class Served(msgspec.Struct, frozen=True, gc=False):
    """What is needed of a request that was served to its end; instants in seconds on the run's clock."""

    dispatched_at: float
    first_token_at: float
    finished_at: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One number of the engine, in `unit`."""

    name: str
    value: float
    unit: str
    half_width: float | None
    """Of its 95 % interval; None if it was kept from the preset, because the run does not tell it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """An engine fitted to a run, and how well it predicts what it was not fitted to."""

    hardware: Hardware
    coefficients: tuple[Coefficient, ...]
    fitted_on: int
    """Requests."""
    held_out: int
    """Requests: the last fifth of each run. The two errors below are of the time from dispatch to last token, with
    the run replayed on the fitted engine."""
    mean_error: float
    """Predicted mean / observed mean - 1."""
    typical_error: float
    """Median of |predicted / observed - 1|."""


def read_served(path: Path) -> list[list[Served]]:
    """The runs of a requests.jsonl, requests that were not served left out.

    Needed are `dispatched_at`, `first_token_at`, `finished_at`, `prompt_tokens` and `completion_tokens`. Requests
    belong to one run if they agree in `policy`, `estimator` and `seed`, where given. Raises `ConfigError` naming
    the line for anything else, for a static engine, and for runs of more than one (`variant`).
    """
    runs: dict[tuple[str, str, int], list[Served]] = {}
    engine: str | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    entry = _entry(line, f"{path}:{number}")
                    engine = entry.variant if engine is None else engine
                    if entry.variant != engine:
                        raise ConfigError(
                            f"{path}:{number}: variant {entry.variant!r} follows {engine!r}: "
                            "keep the lines of one engine"
                        )
                    if entry.outcome == "finished":
                        run = runs.setdefault((entry.policy, entry.estimator, entry.seed), [])
                        run.append(_served(entry, f"{path}:{number}"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give a requests.jsonl") from None
    if not runs:
        raise ConfigError(f"{path}: holds no finished request to learn from")
    return list(runs.values())


class _Entry(msgspec.Struct, gc=False):
    """A line of requests.jsonl; other fields are of no interest here."""

    prompt_tokens: int
    completion_tokens: int
    dispatched_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    outcome: str = "finished"
    engine_mode: str = "continuous"
    variant: str = ""
    policy: str = ""
    estimator: str = ""
    seed: int = 0


_decoder = msgspec.json.Decoder(_Entry)


def _entry(line: bytes, place: str) -> _Entry:
    try:
        entry = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: not a line of a requests.jsonl: {error}") from None
    if entry.engine_mode != "continuous":
        raise ConfigError(
            f"{place}: engine_mode is {entry.engine_mode!r}: only a run with 'continuous' batching shows when each "
            "token came"
        )
    return entry


def _served(entry: _Entry, place: str) -> Served:
    instants = {name: getattr(entry, name) for name in ("dispatched_at", "first_token_at", "finished_at")}
    for name, value in instants.items():
        if value is None:
            raise ConfigError(f"{place}: {name} is missing, but the request finished")
    if not 0 <= instants["dispatched_at"] <= instants["first_token_at"] <= instants["finished_at"]:
        raise ConfigError(
            f"{place}: dispatched_at, first_token_at and finished_at must follow one another, but are "
            f"{', '.join(str(value) for value in instants.values())}"
        )
    for name in ("prompt_tokens", "completion_tokens"):
        if getattr(entry, name) < 1:
            raise ConfigError(f"{place}: {name} must be at least 1, not {getattr(entry, name)}")
    return Served(**instants, prompt_tokens=entry.prompt_tokens, completion_tokens=entry.completion_tokens)


def fit(runs: Sequence[Sequence[Served]], preset: Hardware) -> Fit:
    """The engine that served `runs`, with what they do not tell kept from `preset`.

    The preset's `r`, `host` and `kv_tokens` are always kept; so is its knee, the tokens per iteration up to which
    the floor hides the arithmetic. Raises `ConfigError` if the runs are too short to tell even the time of an
    iteration.
    """
    runs = [sorted(run, key=lambda request: request.first_token_at) for run in runs]
    num_requests = sum(len(run) for run in runs)
    if num_requests < MIN_REQUESTS:
        raise ConfigError(
            f"{num_requests} finished requests are too few to fit an engine: record {MIN_REQUESTS} or more"
        )
    start = _values(preset)
    values = start
    for _ in range(_MAX_PASSES):
        hardware = _with(preset, values)
        estimate = _solve([row for run in runs for row in _rows(run, hardware)], start)
        settled = all(
            abs(new - old) <= _SETTLED * abs(new) for new, old in zip(estimate.values, values, strict=True)
        )
        values = estimate.values
        if settled:
            break
    hardware = _with(preset, values)
    observed, predicted = _held_out(runs, hardware)
    return Fit(
        hardware=hardware,
        coefficients=tuple(
            Coefficient(name, value / scale, unit, None if half_width is None else half_width / scale)
            for name, value, scale, unit, half_width in zip(
                NAMES, values, _SCALES, UNITS, estimate.half_widths, strict=True
            )
        ),
        fitted_on=num_requests - len(observed),
        held_out=len(observed),
        mean_error=fmean(predicted) / fmean(observed) - 1,
        typical_error=median(abs(p / o - 1) for p, o in zip(predicted, observed, strict=True)),
    )


def _num_training(run: Sequence[Served]) -> int:
    return int(len(run) * TRAINING_SHARE)


def _values(hardware: Hardware) -> tuple[float, ...]:
    """Base, kv, g and api, in seconds."""
    units = (
        hardware.host_ms + hardware.floor_ms,
        hardware.kv_ns_per_token,
        hardware.g_us_per_token,
        hardware.api_ms,
    )
    return tuple(value * scale for value, scale in zip(units, _SCALES, strict=True))


def _knee(hardware: Hardware) -> float:
    """Tokens in an iteration from which on its arithmetic takes longer than reading the weights."""
    return (hardware.floor_ms - hardware.g0_ms) * 1e3 / hardware.g_us_per_token if hardware.g_us_per_token else inf


def _with(preset: Hardware, values: Sequence[float]) -> Hardware:
    """The preset with base, kv, g and api changed."""
    base_ms, kv, g, api_ms = (value / scale for value, scale in zip(values, _SCALES, strict=True))
    host_ms = min(preset.host_ms, base_ms)
    floor_ms = base_ms - host_ms
    knee = _knee(preset)
    return replace(
        preset,
        name=f"{preset.name}-fitted",
        host_ms=host_ms,
        floor_ms=floor_ms,
        g0_ms=floor_ms - g * 1e-3 * knee if g and knee < inf else floor_ms,
        g_us_per_token=g,
        kv_ns_per_token=kv,
        api_ms=api_ms,
        source="fitted",
        note=f"fitted to a recorded run; what it did not tell is that of {preset.name}",
    )


class _Row(NamedTuple):
    """An equation: `features` . (base, kv, g, api) = `seconds`, both divided by the root of the iterations."""

    features: tuple[float, float, float, float]
    seconds: float


def _rows(run: Sequence[Served], hardware: Hardware) -> Iterator[_Row]:
    """What the requests to be fitted to say about the engine; `hardware` is a guess of it.

    `run` is sorted by first token. Those held out are in the batch all the same.
    """
    timeline = _Timeline(run, hardware)
    idle = _found_idle(run)
    per_sequence = hardware.r_us_per_sequence * 1e-6
    for place, request in enumerate(run[: _num_training(run)]):
        group = timeline.group[place]
        if place in idle:
            iterations = ceil(request.prompt_tokens / TOKEN_BUDGET)
            seconds = request.first_token_at - request.dispatched_at - per_sequence * iterations
            yield _Row((iterations, 0.0, timeline.excess[group], 1.0), seconds)
        iterations = request.completion_tokens - 1
        began, ended = timeline.began[place], timeline.ended[place]
        if iterations and ended.iterations > began.iterations:
            scale = iterations / (ended.iterations - began.iterations)
            context = scale * (ended.context - began.context)
            sequences = scale * (ended.sequences - began.sequences)
            excess = timeline.excess_before[timeline.last_group[place] + 1] - timeline.excess_before[group + 1]
            seconds = request.finished_at - request.first_token_at - per_sequence * sequences
            weight = 1 / sqrt(iterations)
            yield _Row((iterations * weight, context * weight, excess * weight, 0.0), seconds * weight)


def _found_idle(run: Sequence[Served]) -> set[int]:
    """Places of the requests that had the engine to themselves until their first token."""
    order = sorted(range(len(run)), key=lambda place: run[place].dispatched_at)
    alone = set()
    busy_until = -inf
    for number, place in enumerate(order):
        request = run[place]
        following = run[order[number + 1]].dispatched_at if number + 1 < len(order) else inf
        if busy_until <= request.dispatched_at and request.first_token_at < following:
            alone.add(place)
        busy_until = max(busy_until, request.finished_at)
    return alone


class _Totals(NamedTuple):
    """Of the run so far, at some instant."""

    iterations: float
    context: float
    """Tokens read, added over iterations."""
    sequences: float
    """Added over iterations."""


class _Timeline:
    """What the engine's batch held over a run, iteration by iteration as far as times tell.

    Between two events - a first token, a last token - the batch is the same. How many iterations fell in between is
    time divided by the time of one, by the guess.
    """

    def __init__(self, run: Sequence[Served], hardware: Hardware) -> None:
        self.group: list[int] = []
        """Of each request: the number of the iteration that completed its prompt, among such iterations."""
        self.last_group: list[int] = []
        """Of each request: the last such iteration by its end."""
        self.excess: list[float] = []
        """Of each such iteration: prompt tokens above the knee."""
        self.began: list[_Totals] = []
        self.ended: list[_Totals] = [_Totals(0.0, 0.0, 0.0)] * len(run)
        self._hardware = hardware
        self._knee = _knee(hardware)
        self._prompts: list[int] = []  # tokens still to be computed for each such iteration to complete
        self._ready_at: list[float] = []  # when the first of them could be
        opened_at = -inf
        for request in run:
            if request.first_token_at - opened_at > SAME_ITERATION_SECONDS:
                opened_at = request.first_token_at
                self._prompts.append(0)
                self._ready_at.append(request.dispatched_at + hardware.api_ms * 1e-3)
            self._prompts[-1] += request.prompt_tokens
            self.group.append(len(self._prompts) - 1)
        self.last_group = [0] * len(run)
        self._sweep(run)
        self.excess_before = [0.0, *accumulate(self.excess)]

    def _sweep(self, run: Sequence[Served]) -> None:
        hardware = self._hardware
        g = hardware.g_us_per_token * 1e-6
        events = sorted(
            [(request.first_token_at, 0, place) for place, request in enumerate(run)]
            + [(request.finished_at, 1, place) for place, request in enumerate(run)]
        )
        iterations = context = sequences = 0.0
        decoding = 0
        held = 0.0  # context of those decoding is held + decoding * iterations
        now = 0.0
        for at, kind, place in events:
            opens = kind == 0 and self.group[place] == len(self.excess)
            if opens:
                self.excess.append(self._prefill(at, decoding, held + decoding * iterations))
            if decoding:
                seconds = max(0.0, at - now - (g * self.excess[-1] if opens else 0.0))
                tokens = held + decoding * iterations
                count = seconds / hardware.step_seconds(decoding, decoding, int(tokens))
                tokens += decoding * count / 2
                count = seconds / hardware.step_seconds(decoding, decoding, int(tokens))
                iterations += count
                context += count * tokens
                sequences += count * decoding
            now = at
            totals = _Totals(iterations, context, sequences)
            if kind == 0:
                self.began.append(totals)
                decoding += 1
                held += run[place].prompt_tokens + 1 - iterations
            else:
                self.ended[place] = totals
                self.last_group[place] = len(self.excess) - 1
                decoding -= 1
                held -= run[place].prompt_tokens + 1 - self.began[place].iterations

    def _prefill(self, ended_at: float, decoding: int, context: float) -> float:
        """Tokens above the knee of the next iteration that completes prompts, and of those spent on them before.

        What these prompts leave of its budget goes to the next in line, if it was there when it began.
        """
        group = len(self.excess)
        room = max(1, TOKEN_BUDGET - decoding)
        full, rest = divmod(self._prompts[group] - 1, room)
        rest += 1
        began_at = ended_at - self._hardware.step_seconds(decoding + rest, decoding, int(context))
        if group + 1 < len(self._prompts) and self._ready_at[group + 1] <= began_at:
            ahead = min(room - rest, self._prompts[group + 1] - 1)
            self._prompts[group + 1] -= ahead
            rest += ahead
        return full * max(0.0, TOKEN_BUDGET - self._knee) + max(0.0, rest + decoding - self._knee)


class _Estimate(NamedTuple):
    values: tuple[float, ...]
    half_widths: tuple[float | None, ...]
    """None of what was kept."""


def _solve(rows: Sequence[_Row], preset: Sequence[float]) -> _Estimate:
    """Least squares, giving up one by one the coefficients that the rows do not tell.

    Raises `ConfigError` if not even the base can be told.
    """
    told = [index for index in range(len(NAMES)) if sum(row.features[index] > 0 for row in rows) >= STRETCHES]
    stretches = _stretches(rows)
    within_batch = _stretches([row for row in rows if not row.features[_API]])
    while 0 in told:
        try:
            values, half_widths = _jackknife(stretches if _API in told else within_batch, told, preset)
        except _RedundantError as error:
            told.remove(error.index)
            continue
        doubts = {
            index: inf if values[index] < 0 else half_widths[index] / max(values[index], preset[index])
            for index in told
        }
        if max(doubts.values()) <= TELLS_NOTHING:
            return _Estimate(values, tuple(half_widths.get(index) for index in range(len(NAMES))))
        told.remove(max(told[1:] or told, key=lambda index: doubts[index]))
    raise ConfigError("the run does not tell the time of an iteration: record a longer one")


_Moments = list[list[float]]
"""What least squares needs of some rows: the sums of products of features with features, and with the seconds in a
last column. Of several sets of rows together it is the sum. Features are in the unit of their coefficient, which
makes them of a size."""


def _stretches(rows: Sequence[_Row]) -> list[_Moments]:
    """Of `STRETCHES` equal parts of the rows, in order."""
    bounds = [len(rows) * number // STRETCHES for number in range(STRETCHES + 1)]
    return [_moments(rows[start:end]) for start, end in pairwise(bounds)]


def _moments(rows: Sequence[_Row]) -> _Moments:
    columns = [[row.features[index] * scale for row in rows] for index, scale in enumerate(_SCALES)]
    columns.append([row.seconds for row in rows])
    return [[fsum(map(mul, one, other)) for other in columns] for one in columns[:-1]]


def _jackknife(
    stretches: Sequence[_Moments], told: Sequence[int], preset: Sequence[float]
) -> tuple[tuple[float, ...], dict[int, float]]:
    """All coefficients in seconds, and by index the half-widths of those `told`."""
    values = _least_squares(stretches, told, preset)
    without = [
        _least_squares([*stretches[:number], *stretches[number + 1 :]], told, preset)
        for number in range(len(stretches))
    ]
    count = len(stretches)
    quantile = student_t_quantile((1 + CONFIDENCE) / 2, count - 1)
    spreads = {index: pstdev([estimate[index] for estimate in without]) for index in told}
    return values, {index: quantile * sqrt(count - 1) * spread for index, spread in spreads.items()}


class _RedundantError(Exception):
    """A column is a combination of those before it: its coefficient cannot be told from theirs."""

    def __init__(self, index: int) -> None:
        super().__init__(NAMES[index])
        self.index = index


def _least_squares(
    stretches: Sequence[_Moments], told: Sequence[int], preset: Sequence[float]
) -> tuple[float, ...]:
    """All coefficients in seconds, those not `told` as in the preset. Raises `_RedundantError`."""
    total = [[fsum(cells) for cells in zip(*lines, strict=True)] for lines in zip(*stretches, strict=True)]
    values = [value / scale for value, scale in zip(preset, _SCALES, strict=True)]
    kept = [index for index in range(len(NAMES)) if index not in told]
    system = [
        [*(total[i][j] for j in told), total[i][-1] - fsum(total[i][j] * values[j] for j in kept)] for i in told
    ]
    for k, index in enumerate(told):  # Gauss, without pivoting: the matrix is positive definite
        if system[k][k] <= _REDUNDANT * total[index][index]:
            raise _RedundantError(index)
        for line in system[k + 1 :]:
            factor = line[k] / system[k][k]
            line[k:] = [cell - factor * above for cell, above in zip(line[k:], system[k][k:], strict=True)]
    for k in reversed(range(len(told))):
        known = fsum(system[k][j] * values[told[j]] for j in range(k + 1, len(told)))
        values[told[k]] = (system[k][-1] - known) / system[k][k]
    return tuple(value * scale for value, scale in zip(values, _SCALES, strict=True))


def _held_out(runs: Sequence[Sequence[Served]], hardware: Hardware) -> tuple[list[float], list[float]]:
    """Seconds from dispatch to last token of the requests not fitted to: observed, and predicted by a replay."""
    observed, predicted = [], []
    for run in runs:
        finished_at = _replay(run, hardware)
        for place in range(_num_training(run), len(run)):
            observed.append(run[place].finished_at - run[place].dispatched_at)
            predicted.append(finished_at[place] - run[place].dispatched_at)
    return observed, predicted


def _replay(run: Sequence[Served], hardware: Hardware) -> list[float]:
    """When each request ends if they are dispatched as they were; as many at once as there are."""
    engine = BatchModel(hardware, max_num_seqs=TOKEN_BUDGET, max_num_batched_tokens=TOKEN_BUDGET)
    finished_at = [nan] * len(run)

    def work(until: float) -> None:
        while step := engine.advance(until):
            for name in step.finished:
                finished_at[int(name)] = step.ended_at

    for place in sorted(range(len(run)), key=lambda place: run[place].dispatched_at):
        request = run[place]
        work(request.dispatched_at)
        try:
            engine.add(str(place), request.prompt_tokens, request.completion_tokens, request.dispatched_at)
        except ValueError as error:
            raise ConfigError(f"a recorded request does not fit {hardware.name}: {error}") from None
    work(inf)
    return finished_at


def text(fit: Fit) -> str:
    """The fit in lines of at most 80 columns."""
    lines = [f"{fit.hardware.name}: fitted on {fit.fitted_on} requests"]
    for coefficient in fit.coefficients:
        value = f"  {coefficient.name:5}{coefficient.value:12.4g}"
        if coefficient.half_width is None:
            lines.append(f"{value} {coefficient.unit}, kept: the run does not tell it")
        else:
            lines.append(f"{value} +/- {coefficient.half_width:.2g} {coefficient.unit}")
    lines.append(
        f"  {fit.held_out} requests held out, dispatch to last token: mean {fit.mean_error:+.1%}, "
        f"typically {fit.typical_error:.1%} off"
    )
    return "\n".join(lines) + "\n"
