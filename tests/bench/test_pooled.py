import pytest

from driftsched.bench.live import BlockResult
from driftsched.bench.load import Hit
from driftsched.bench.plan import Block, Setup, shots_of, with_warmup
from driftsched.bench.pooled import e2e, queue, setup_figures, ttft, values_by_seed
from driftsched.sim.trace import Row


def block(seed: int, e2e_seconds: list[float], *, tokens: int = 20, warmup: int = 0) -> BlockResult:
    """A request a second; odd ones are of tenant `b` and cut off at their limit."""
    rows = [Row(float(n), 10, 5, tenant="ab"[n % 2], max_tokens=tokens) for n in range(len(e2e_seconds))]
    rows = with_warmup(rows, warmup)
    hits = [
        Hit(
            shot,
            shot.at + 0.1,
            shot.at + seconds / 2,
            shot.at + seconds,
            status=200,
            queue_seconds=0.2,
            predicted_tokens=tokens + n,
            completion_tokens=tokens,
            finish_reason="length" if n % 2 else "stop",
        )
        for n, (shot, seconds) in enumerate(zip(shots_of(rows, seed), e2e_seconds, strict=True))
    ]
    return BlockResult(Block(Setup("sjf", "ema"), seed), rows, [(0.0, hits)], complete=True)


def test_all_blocks_are_one_sample() -> None:
    figures = setup_figures([block(1, [1.0, 2.0, 3.0]), block(2, [4.0, 5.0, 6.0, 7.0])])
    assert (7, 7, 0) == (figures.sent, figures.answered, figures.failed)
    assert (4.0, 4.0, 7.0) == (figures.e2e_seconds.mean, figures.e2e_seconds.p50, figures.e2e_seconds.max)
    assert figures.ttft_seconds.p50 == pytest.approx(2.0)
    assert figures.queue_seconds.mean == pytest.approx(0.3)  # what the client lost is part of it
    assert {"a": 1 + 3 + 4 + 6, "b": 2 + 5 + 7} == pytest.approx(
        {"a": 4 * (figures.by_tenant["a"].mean or 0), "b": 3 * (figures.by_tenant["b"].mean or 0)}
    )
    assert (["standard"], ["short_qa"]) == (list(figures.by_tier), list(figures.by_kind))


def test_predictions_are_judged_on_cut_off_answers_as_well() -> None:
    figures = setup_figures([block(1, [1.0] * 4)])
    assert (2, 4) == (figures.cut_off, figures.prediction.answers)
    assert (1.5, 1.5) == (figures.prediction.mae_tokens, figures.prediction.bias_tokens)
    assert figures.prediction.kendall_tau is None  # all answers are of one length


def test_a_warm_up_counts_in_nothing() -> None:
    result = block(1, [99.0, 1.0, 1.0], warmup=1)
    assert 2 == setup_figures([result]).sent
    assert {1: [1.0, 1.0]} == values_by_seed([result], e2e)


def test_a_failure_is_counted_and_has_no_times() -> None:
    result = block(1, [1.0, 2.0])
    result.sent[0].hit.error = "http_429"
    figures = setup_figures([result])
    assert (2, 1, 1, 2.0) == (figures.sent, figures.answered, figures.failed, figures.e2e_seconds.mean)
    assert {1: [2.0]} == values_by_seed([result], e2e)


def test_tokens_a_second_are_those_of_the_time_that_blocks_took() -> None:
    assert setup_figures([block(1, [1.0, 3.0]), block(2, [1.0, 5.0])]).tokens_per_second == pytest.approx(80 / 10)


def test_values_may_be_those_of_some_requests_only() -> None:
    result = block(7, [1.0, 2.0, 3.0])
    assert {7: [2.0]} == values_by_seed([result], e2e, lambda each: each.row.tenant == "b")
    assert {7: [0.5, 1.0, 1.5]} == values_by_seed([result], ttft)
    result.sent[0].hit.queue_seconds = None
    assert 2 == len(values_by_seed([result], queue)[7])
