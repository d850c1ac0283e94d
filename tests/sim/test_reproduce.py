import json
from pathlib import Path

import pytest

from driftsched.core.errors import ConfigError
from driftsched.sim.published import TIMES
from driftsched.sim.reproduce import (
    Reproduction,
    Results,
    beside_batch_seconds,
    beside_times,
    num_within,
    reproduce,
    run_all,
    text,
    write_reproduction,
)
from driftsched.sim.trials import LOADS, VARIANTS, Trial, Variant, run_trial, trace_of
from golden.regenerate_reproduction import PARTS, PATH, SEED, figures

PAPER = VARIANTS[0]
FIFO = Variant("paper", "As published, one policy.", ("fifo",))


@pytest.fixture(scope="module")
def paper() -> Results:
    """The paper's experiment on ten seeds."""
    return run_all(range(1, 11), 1, PARTS, variants=[PAPER])


@pytest.fixture(scope="module")
def one_seed() -> Reproduction:
    """All variants on one seed."""
    return reproduce([SEED], 1, PARTS)


def change(reproduction: Reproduction, variant: str, policy: str, metric: str) -> float:
    """Relative."""
    (row,) = [
        row for row in reproduction.changes if (row.variant, row.policy, row.metric) == (variant, policy, metric)
    ]
    return row.change.mean


def after(reproduction: Reproduction, variant: str, policy: str, metric: str) -> float:
    (row,) = [
        row for row in reproduction.changes if (row.variant, row.policy, row.metric) == (variant, policy, metric)
    ]
    return row.after.mean


def load_change(reproduction: Reproduction, rho: float, estimator: str, metric: str) -> float:
    (row,) = [row for row in reproduction.loads if (row.rho, row.estimator, row.metric) == (rho, estimator, metric)]
    return row.change.mean


def test_every_time_of_tables_iii_to_vi_is_within_ten_percent_of_the_published(paper: Results) -> None:
    far = {(row.policy, row.metric): row.ratio for row in beside_times(paper) if abs(row.ratio - 1) > 0.1}
    assert {} == far


def test_times_are_off_to_both_sides(paper: Results) -> None:
    mean_ratio = sum(row.ratio for row in beside_times(paper)) / len(TIMES)
    assert mean_ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("metric", "published"), [("e2e_seconds.p50", -42.1), ("e2e_seconds.p99", -16.5)])
def test_sjf_gains_over_fifo_what_the_paper_says(paper: Results, metric: str, published: float) -> None:
    sjf, fifo = paper.values("paper", "sjf", metric), paper.values("paper", "fifo", metric)
    gains = [100 * (sjf[seed] / fifo[seed] - 1) for seed in paper.seeds]
    assert sum(gains) / len(gains) == pytest.approx(published, abs=2.5)


def test_the_engine_preset_gives_the_published_batch_time_without_a_fit(paper: Results) -> None:
    batch = beside_batch_seconds(paper)
    assert batch.p50 == pytest.approx(batch.published_p50, rel=0.03)
    assert batch.p99 == pytest.approx(batch.published_p99, rel=0.04)


def test_feedback_cuts_the_error_as_published(one_seed: Reproduction) -> None:
    for row in one_seed.published:
        if row.table == "VII":
            assert row.ours.mean == pytest.approx(row.published, abs=4)


def test_no_figure_has_moved(one_seed: Reproduction) -> None:
    assert json.loads(PATH.read_text()) == pytest.approx(figures(one_seed), rel=1e-6, abs=1e-6)


def test_the_tail_gain_of_sjf_is_gone_under_continuous_batching(paper: Results, one_seed: Reproduction) -> None:
    def static(policy: str) -> float:
        return paper.values("paper", policy, "e2e_seconds.p99")[SEED]

    assert static("sjf") < 0.9 * static("fifo")
    assert after(one_seed, "continuous", "sjf", "e2e_seconds.p99") > after(
        one_seed, "continuous", "fifo", "e2e_seconds.p99"
    )
    assert change(one_seed, "continuous", "fifo", "makespan_seconds") < -0.25


def test_premium_waits_longest_under_sjf_because_of_the_margin_in_the_key(
    paper: Results, one_seed: Reproduction
) -> None:
    tiers = ("premium", "standard", "batch")
    waits = [paper.values("paper", "sjf", f"by_tier.{tier}.queue_seconds.mean")[SEED] for tier in tiers]
    assert sorted(waits, reverse=True) == waits
    without = [after(one_seed, "no-margin", "sjf", f"by_tier.{tier}.queue_seconds.mean") for tier in tiers]
    assert max(without) < 1.1 * min(without)


def test_feedback_moves_the_latency_of_no_policy_but_sjf(one_seed: Reproduction) -> None:
    for policy in ("fifo", "priority", "weighted", "aging"):
        for metric in ("e2e_seconds.p50", "e2e_seconds.p99"):
            assert 0 == change(one_seed, "no-feedback", policy, metric)
    assert 0 != change(one_seed, "no-feedback", "sjf", "e2e_seconds.p50")


def test_counted_in_tokens_there_is_nothing_to_learn(one_seed: Reproduction) -> None:
    for metric in ("e2e_seconds.p50", "e2e_seconds.p99"):
        assert after(one_seed, "no-feedback", "sjf", metric) == after(one_seed, "tokens", "sjf", metric)


def test_without_the_label_the_classifier_sends_technical_requests_to_the_wrong_place(
    one_seed: Reproduction,
) -> None:
    assert change(one_seed, "no-label", "fifo", "prediction.mae_tokens") > 0.8
    assert change(one_seed, "no-label", "sjf", "e2e_seconds.p50") > 0.2


def test_ordering_does_nothing_for_a_pool_half_idle_and_much_for_the_median_of_an_overloaded_one(
    one_seed: Reproduction,
) -> None:
    for estimator in ("ema", "oracle"):
        assert load_change(one_seed, 0.5, estimator, "e2e_seconds.p50") == pytest.approx(0, abs=0.01)
        assert load_change(one_seed, 1.2, estimator, "e2e_seconds.p50") < -0.5
        assert load_change(one_seed, 1.2, estimator, "e2e_seconds.p99") > 1


def test_the_report_fits_eighty_columns(one_seed: Reproduction) -> None:
    assert [] == [line for line in text(one_seed).splitlines() if len(line) > 80 or line != line.rstrip()]


def test_the_report_counts_the_figures_within_bounds(one_seed: Reproduction) -> None:
    assert f"Of the 65 times in tables III to VI, {num_within(one_seed.published, 0.1)} are within 10 %" in text(
        one_seed
    )


def test_results_are_written_as_summary_and_comparison(one_seed: Reproduction, tmp_path: Path) -> None:
    write_reproduction(tmp_path / "out", one_seed)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    comparison = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert sum(len(variant.policies) for variant in (*VARIANTS, *LOADS)) == len(summary["runs"])
    assert {"paper"} <= {run["variant"] for run in summary["runs"]}
    assert len(one_seed.published) == len(comparison["published"])
    assert text(one_seed) == (tmp_path / "out" / "reproduction.txt").read_text()


def test_every_request_of_every_run_is_accounted_for(paper: Results) -> None:
    for run in paper.runs:
        assert {"finished": 3000, "rejected": 0, "evicted": 0, "failed": 0, "unfinished": 0} == run.outcomes


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    apart, together = (run_all([1, 2], processes, PARTS, variants=[FIFO]) for processes in (2, 1))
    assert together.runs == apart.runs


def test_the_same_trial_gives_the_same_figures() -> None:
    trial = Trial(FIFO, "fifo", 3)
    assert run_trial(trial, PARTS) == run_trial(trial, PARTS)


def test_progress_is_told_of_every_run() -> None:
    told: list[tuple[int, int]] = []
    run_all([1, 2], 1, PARTS, variants=[FIFO], progress=lambda done, total: told.append((done, total)))
    assert [(1, 2), (2, 2)] == told


def test_an_open_loop_asks_the_requests_of_the_second_phase_at_the_rate_wanted() -> None:
    stress = [row for row in trace_of(1) if row.phase == "stress"]
    slow, fast = trace_of(1, 0.5), trace_of(1, 1.0)
    assert [row.category for row in stress] == [row.category for row in fast]
    assert 2 * fast[-1].at == pytest.approx(slow[-1].at, abs=1e-3)


@pytest.mark.parametrize(("seeds", "processes"), [([], 1), ([1, 1], 1), ([1], 0)])
def test_seeds_and_processes_that_make_no_sense_are_refused(seeds: list[int], processes: int) -> None:
    with pytest.raises(ConfigError, match=r"^(seeds|processes): "):
        run_all(seeds, processes, PARTS, variants=[FIFO])
