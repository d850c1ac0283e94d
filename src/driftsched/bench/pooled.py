"""What all blocks of one setup give together: percentiles that a single block has too few requests for."""

from collections.abc import Callable, Sequence
from statistics import fmean

import msgspec

from driftsched.bench.live import BlockResult, Sent
from driftsched.bench.plan import WARMUP
from driftsched.sim.measures import Spread, spread
from driftsched.sim.statistics import kendall_tau

Column = Callable[[Sent], float | None]


class Prediction(msgspec.Struct, frozen=True):
    """Predicted against actual completion tokens of every answer, whole or cut off at its limit.

    Cut-off ones count here, other than in `driftsched.sim.measures`: a limit is known to the gateway, and what the
    engine has to do ends there.
    """

    mae_tokens: float | None
    bias_tokens: float | None
    """Mean of predicted minus actual."""
    kendall_tau: float | None
    answers: int


class SetupFigures(msgspec.Struct, frozen=True):
    """All counted requests of all blocks of a setup; times of the answered ones, in seconds."""

    sent: int
    answered: int
    failed: int
    cut_off: int
    """Answers that ran into `max_tokens`."""
    e2e_seconds: Spread
    ttft_seconds: Spread
    queue_seconds: Spread
    by_tier: dict[str, Spread]
    """Of `e2e_seconds`, as the two below."""
    by_tenant: dict[str, Spread]
    by_kind: dict[str, Spread]
    prediction: Prediction
    tokens_per_second: float | None
    """Completion tokens of the counted requests, from the first intended instant of a block to its last answer."""


def setup_figures(results: Sequence[BlockResult]) -> SetupFigures:
    """Of the blocks of one setup."""
    sent = [each for result in results for each in counted(result)]
    answered = [each for each in sent if each.hit.ok]
    return SetupFigures(
        sent=len(sent),
        answered=len(answered),
        failed=sum(each.hit.error is not None for each in sent),
        cut_off=sum(each.hit.finish_reason == "length" for each in answered),
        e2e_seconds=_spread(answered, e2e),
        ttft_seconds=_spread(answered, ttft),
        queue_seconds=_spread(answered, queue),
        by_tier=_groups(answered, lambda each: each.row.tier.label),
        by_tenant=_groups(answered, lambda each: each.row.tenant),
        by_kind=_groups(answered, lambda each: each.row.category),
        prediction=_prediction(answered),
        tokens_per_second=_tokens_per_second(results),
    )


def counted(result: BlockResult) -> list[Sent]:
    """The requests of a block without its warm-up."""
    return [each for each in result.sent if each.row.phase != WARMUP]


def e2e(each: Sent) -> float | None:
    return each.hit.e2e_seconds


def ttft(each: Sent) -> float | None:
    return each.hit.ttft_seconds


def queue(each: Sent) -> float | None:
    """From the intended instant to the dispatch, as the gateway states it."""
    hit = each.hit
    if hit.queue_seconds is None or hit.send_lag_seconds is None:
        return None
    return hit.send_lag_seconds + hit.queue_seconds


def _spread(sent: Sequence[Sent], column: Column) -> Spread:
    return spread(sorted(value for each in sent if (value := column(each)) is not None))


def _groups(sent: Sequence[Sent], name_of: Callable[[Sent], str]) -> dict[str, Spread]:
    names = sorted({name_of(each) for each in sent})
    return {name: _spread([each for each in sent if name_of(each) == name], e2e) for name in names}


def _prediction(answered: Sequence[Sent]) -> Prediction:
    pairs = [
        (float(each.hit.predicted_tokens), each.hit.completion_tokens)
        for each in answered
        if each.hit.predicted_tokens is not None and each.hit.completion_tokens is not None
    ]
    errors = [predicted - actual for predicted, actual in pairs]
    return Prediction(
        mae_tokens=fmean(map(abs, errors)) if errors else None,
        bias_tokens=fmean(errors) if errors else None,
        kendall_tau=kendall_tau([p for p, _ in pairs], [a for _, a in pairs]) if errors else None,
        answers=len(pairs),
    )


def _tokens_per_second(results: Sequence[BlockResult]) -> float | None:
    tokens, seconds = 0, 0.0
    for result in results:
        sent = [each for each in counted(result) if each.hit.ok]
        if sent:
            tokens += sum(each.hit.completion_tokens or 0 for each in sent)
            seconds += max(each.at(each.hit.finished_at) for each in sent) - sent[0].arrived_at
    return tokens / seconds if seconds > 0 else None


def values_by_seed(
    results: Sequence[BlockResult], column: Column, only: Callable[[Sent], bool] = lambda _: True
) -> dict[int, list[float]]:
    """A column of the counted requests of one setup's blocks, by seed; what has no value is left out."""
    found: dict[int, list[float]] = {}
    for result in results:
        of_block = (column(each) for each in counted(result) if only(each))
        found[result.block.seed] = [value for value in of_block if value is not None]
    return found
