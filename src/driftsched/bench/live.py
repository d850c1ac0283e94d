"""Blocks of load on live servers, recorded as simulated runs are: the same figures, tables and files come of both.

Instants are seconds on the clock of a block. A request arrives when it was meant to be sent, not when it was: what
the client itself lost is part of every figure, and told apart as send lag.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from math import isnan, nan
from time import monotonic

import msgspec

from driftsched.bench.load import Hit, Progress, fire
from driftsched.bench.plan import WARMUP, Block, shots_of
from driftsched.bench.telemetry import GpuSample, gpu_samples, gpu_summary
from driftsched.sim.measures import Group, Objective, Run, Spread, measure, spread
from driftsched.sim.recording import MAX_DEPTH_POINTS, UNFINISHED, Recording, runtime_class
from driftsched.sim.statistics import unaccounted
from driftsched.sim.trace import Row, segments

LIVE = "live"
"""The engine mode of live runs."""

MAX_LAG_SECONDS = 0.010
MAX_LAG_SHARE = 0.01
"""Of the median latency. A client later than either measures itself."""

_NOTHING = Spread(None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Sending:
    """How requests are put."""

    model: str
    api_key: str | None = field(default=None, repr=False)
    stream: bool = True
    impose_lengths: bool = False
    """Ask for exactly as many tokens as the trace says, by `ignore_eos`."""
    max_tokens: int | None = None
    """No request asks for more."""
    temperature: float | None = None
    """None: the server's own."""
    timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A row and what became of it."""

    row: Row
    offset: float
    """Of the instants in `hit`, on the clock of the block."""
    hit: Hit

    @property
    def arrived_at(self) -> float:
        return self.offset + self.hit.shot.at

    def at(self, instant: float | None) -> float:
        """On the clock of the block; nan for None."""
        return nan if instant is None else self.offset + instant

    @property
    def dispatched_at(self) -> float:
        """When the gateway says that it handed the request to the engine; nan from a server that says nothing."""
        hit = self.hit
        return nan if hit.sent_at is None or hit.queue_seconds is None else self.at(hit.sent_at + hit.queue_seconds)

    @property
    def outcome(self) -> str:
        hit = self.hit
        if hit.finished_at is None:
            return UNFINISHED
        if hit.error is None:
            return "finished"
        return "rejected" if hit.status == 429 else "failed"


@dataclass(slots=True)
class BlockResult:
    """A block, and what is known of it so far."""

    block: Block
    rows: Sequence[Row]
    stretches: list[tuple[float, list[Hit]]] = field(default_factory=list)
    gpu: list[GpuSample] = field(default_factory=list)
    complete: bool = False

    @property
    def sent(self) -> list[Sent]:
        """In order of arrival, the warm-up included; what was not sent before an interruption is not there."""
        hits = [(offset, hit) for offset, hits in self.stretches for hit in hits if hit.sent_at is not None]
        return [Sent(row, offset, hit) for row, (offset, hit) in zip(self.rows, hits, strict=False)]


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a block is."""

    block: Block
    total: int
    sent: int
    done: int
    errors: int


Serve = Callable[[Block], AbstractAsyncContextManager[str]]
"""Gives the URL of the server that a block is to load."""


async def run_blocks(
    blocks: Iterable[Block],
    rows_of: Callable[[int], Sequence[Row]],
    serve: Serve,
    sending: Sending,
    results: list[BlockResult],
    on_change: Callable[[Tally], None] = lambda _: None,
) -> None:
    """Drive one block after the other.

    `results` belongs to the caller and grows block by block, so that a cancelled run leaves what it has.
    """
    for block in blocks:
        result = BlockResult(block, rows_of(block.seed))
        results.append(result)
        async with serve(block) as url, gpu_samples() as result.gpu:
            await _drive(url, result, sending, on_change)
        result.complete = True


async def _drive(url: str, result: BlockResult, sending: Sending, on_change: Callable[[Tally], None]) -> None:
    """Send the rows of a block, those after a drain only once all before them have ended."""
    block, total = result.block, len(result.rows)
    began = monotonic()
    before = Tally(block, total, 0, 0, 0)
    for number, rows in enumerate(segments(result.rows)):
        shots = shots_of(
            rows,
            block.seed + number * 1_000_003,  # another stream of words for each part
            impose_lengths=sending.impose_lengths,
            max_tokens=sending.max_tokens,
        )
        offset = monotonic() - began

        def tell(progress: Progress, before: Tally = before, offset: float = offset) -> None:
            if not progress.sent:
                result.stretches.append((offset, progress.hits))
            sent, done = before.sent + progress.sent, before.done + progress.done
            on_change(Tally(block, total, sent, done, before.errors + progress.errors))

        hits = await fire(
            url,
            shots,
            model=sending.model,
            api_key=sending.api_key,
            stream=sending.stream,
            ignore_eos=sending.impose_lengths,
            temperature=sending.temperature,
            timeout_seconds=sending.timeout_seconds,
            on_change=tell,
        )
        errors = before.errors + sum(hit.error is not None for hit in hits)
        before = Tally(block, total, before.sent + len(hits), before.done + len(hits), errors)


def recording_of(sent: Sequence[Sent], block: Block, *, slots: int) -> Recording:
    """The requests of `block`, or some of them, as columns.

    Queue times are there if the server states them, as our gateway does.
    """
    hits = [each.hit for each in sent]
    predicted = [nan if hit.predicted_tokens is None else float(hit.predicted_tokens) for hit in hits]
    prompts = [hit.prompt_tokens or each.row.prompt_tokens for each, hit in zip(sent, hits, strict=True)]
    depth, deepest = _queue_depth(sent)
    return Recording(
        **block.setup._asdict(),
        engine_mode=LIVE,
        seed=block.seed,
        slots=slots,
        arrived_at=[each.arrived_at for each in sent],
        dispatched_at=[each.dispatched_at for each in sent],
        first_token_at=[each.at(each.hit.first_token_at) for each in sent],
        finished_at=[nan if each.outcome == "rejected" else each.at(each.hit.finished_at) for each in sent],
        tenant=[each.row.tenant for each in sent],
        tenant_weight=[1.0] * len(sent),
        tier=[each.row.tier.label for each in sent],
        category=[each.row.category for each in sent],
        runtime_class=[
            "" if isnan(tokens) else runtime_class(prompt + tokens)
            for prompt, tokens in zip(prompts, predicted, strict=True)
        ],
        phase=[each.row.phase for each in sent],
        prompt_tokens=prompts,
        completion_tokens=[hit.completion_tokens or 0 for hit in hits],
        predicted_tokens=predicted,
        outcome=[each.outcome for each in sent],
        finish_reason=[hit.error or hit.finish_reason or "" for hit in hits],
        charge=[0.0] * len(sent),
        queue_depth=depth,
        max_queue_depth=deepest,
    )


def _queue_depth(sent: Sequence[Sent]) -> tuple[list[tuple[float, int]], int]:
    """How many waited in the gateway, over time, and the most that ever did; nothing where nobody knows."""
    told = [each for each in sent if not isnan(each.dispatched_at)]
    changes = Counter[float]()
    for each in told:
        changes[each.at(each.hit.sent_at)] += 1
        changes[each.dispatched_at] -= 1
    points: list[tuple[float, int]] = []
    depth = 0
    for at in sorted(changes):
        depth += changes[at]
        points.append((at, depth))
    return points[:: 1 + len(points) // MAX_DEPTH_POINTS], max((depth for _, depth in points), default=0)


def measure_live(result: BlockResult, recording: Recording, objective: Objective | None) -> Run:
    """The figures of a block without its warm-up; the warm-up shows in `by_phase` alone.

    Where the server states no queue times, figures made of them are None.
    """
    counted = [each for each in result.sent if each.row.phase != WARMUP]
    run = measure(recording_of(counted, result.block, slots=recording.slots), objective)
    run = msgspec.structs.replace(run, by_phase=measure(recording).by_phase)
    return run if any(not isnan(at) for at in recording.dispatched_at) else _without_queue(run)


def _without_queue(run: Run) -> Run:
    def stripped(groups: dict[str, Group]) -> dict[str, Group]:
        return {name: msgspec.structs.replace(group, queue_seconds=_NOTHING) for name, group in groups.items()}

    return msgspec.structs.replace(
        run,
        queue_seconds=_NOTHING,
        by_tier=stripped(run.by_tier),
        by_class={},
        by_tenant=stripped(run.by_tenant),
        by_phase=stripped(run.by_phase),
        slot_utilisation=None,
        service_gap_tokens=None,
    )


class LiveFigures(msgspec.Struct, frozen=True):
    """What only a live block has: an element of `scenario.blocks` in summary.json. The warm-up is left out."""

    policy: str
    estimator: str
    variant: str
    seed: int
    position: int
    """When it was driven: 0 for the first block of the run."""
    complete: bool
    warmup_requests: int
    sent: int
    answered: int
    failed: int
    """Rejected, or ended by an error."""
    errors: dict[str, int]
    without_usage: int
    """Answered, but the server did not say how many tokens it made."""
    requested_rate: float | None
    """Requests a second, as intended."""
    sent_rate: float | None
    answered_rate: float | None
    """Answers a second from the first intended instant to the last answer."""
    tpot_seconds: Spread
    """Seconds per output token after the first."""
    send_lag_seconds: Spread
    client_late: bool
    """The client itself was so late that its figures are in doubt."""
    gpu: dict[str, float] = {}
    """See `driftsched.bench.telemetry.gpu_summary`."""


def live_figures(result: BlockResult, position: int) -> LiveFigures:
    """Of a block of which something was sent."""
    sent = [each for each in result.sent if each.row.phase != WARMUP]
    hits = [each.hit for each in sent]
    answered = [hit for hit in hits if hit.ok]
    errors = Counter(hit.error for hit in hits if hit.error is not None)
    lags = sorted(hit.send_lag_seconds for hit in hits if hit.send_lag_seconds is not None)
    last = max((each.at(each.hit.finished_at) for each in sent if each.hit.ok), default=nan)
    span = last - sent[0].arrived_at if sent else nan
    return LiveFigures(
        **result.block.setup._asdict(),
        seed=result.block.seed,
        position=position,
        complete=result.complete,
        warmup_requests=len(result.sent) - len(sent),
        sent=len(sent),
        answered=len(answered),
        failed=errors.total(),
        errors=dict(sorted(errors.items())),
        without_usage=sum(hit.completion_tokens is None for hit in answered),
        requested_rate=_rate([each.arrived_at for each in sent]),
        sent_rate=_rate([each.at(each.hit.sent_at) for each in sent]),
        answered_rate=len(answered) / span if span > 0 else None,
        tpot_seconds=spread(sorted(_known(hit.tpot_seconds for hit in answered))),
        send_lag_seconds=spread(lags),
        client_late=is_late(lags, sorted(_known(hit.e2e_seconds for hit in answered))),
        gpu=gpu_summary(result.gpu),
    )


def is_late(lags: Sequence[float], latencies: Sequence[float]) -> bool:
    """Whether the 99th of 100 lags, both columns ascending, is above 10 ms or 1 % of the median latency.

    Of fewer than 200 requests, which carry no such percentile, the second largest lag counts.
    """
    if len(lags) < 2:
        return False
    lag = spread(lags).p99
    lag = lags[-2] if lag is None else lag
    median = latencies[len(latencies) // 2] if latencies else nan
    return lag > MAX_LAG_SECONDS or lag > MAX_LAG_SHARE * median


def lost(result: BlockResult) -> str | None:
    """Why not every request that was sent was answered or failed, in words; None if each was."""
    sent = result.sent
    if result.complete and len(sent) != len(result.rows):
        return f"{len(result.rows)} requests were to be sent, but {len(sent)} were"
    return unaccounted(recording_of(sent, result.block, slots=1))


def request_extras(sent: Iterable[Sent]) -> Iterator[dict[str, float | int | None]]:
    """What requests.jsonl holds of a live request beyond a simulated one."""
    for each in sent:
        hit = each.hit
        yield {
            "send_lag_seconds": hit.send_lag_seconds,
            "tpot_seconds": hit.tpot_seconds,
            "http_status": hit.status,
        }


def _rate(instants: Sequence[float]) -> float | None:
    span = max(instants) - min(instants) if instants else 0.0
    return (len(instants) - 1) / span if span > 0 else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
