import pytest

from driftsched.sim.published import ERROR_CUTS, HEADLINES, POLICIES, TIMES, label_of

VALUES = {(figure.policy, figure.metric): figure.value for figure in TIMES}


def test_every_policy_has_the_same_thirteen_times() -> None:
    assert 65 == len(TIMES) == len(VALUES)
    metrics = {figure.metric for figure in TIMES}
    assert {(policy, metric) for policy in POLICIES for metric in metrics} == set(VALUES)


def test_every_policy_has_two_error_cuts() -> None:
    assert {(policy, f"{error}_cut_percent") for policy in POLICIES for error in ("mae", "rmse")} == {
        (figure.policy, figure.metric) for figure in ERROR_CUTS
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tier", ["premium", "standard", "batch"])
def test_latency_of_a_tier_is_its_wait_and_the_time_of_a_micro_batch(policy: str, tier: str) -> None:
    inference = (
        VALUES[policy, f"by_tier.{tier}.e2e_seconds.mean"] - VALUES[policy, f"by_tier.{tier}.queue_seconds.mean"]
    )
    assert 7.8 < inference < 10.4


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mean_wait_is_that_of_the_three_tiers(policy: str) -> None:
    tiers = [VALUES[policy, f"by_tier.{tier}.queue_seconds.mean"] for tier in ("premium", "standard", "batch")]
    assert sum(tiers) / 3 == pytest.approx(VALUES[policy, "queue_seconds.mean"], rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mean_wait_lies_between_those_of_the_classes(policy: str) -> None:
    classes = [VALUES[policy, f"by_class.{name}.queue_seconds.mean"] for name in ("short", "medium", "long")]
    assert min(classes) < VALUES[policy, "queue_seconds.mean"] < max(classes)


def test_the_headlines_follow_from_the_tables() -> None:
    for figure in HEADLINES:
        change = 100 * (VALUES[figure.policy, figure.metric] / VALUES["fifo", figure.metric] - 1)
        assert change == pytest.approx(figure.value, abs=0.1)


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("queue_seconds.mean", "queue"),
        ("e2e_seconds.p99", "e2e p99"),
        ("by_tier.premium.e2e_seconds.mean", "premium e2e"),
        ("by_class.long.queue_seconds.mean", "long queue"),
        ("mae_cut_percent", "MAE cut"),
    ],
)
def test_a_metric_is_called_by_what_tells_it_apart(metric: str, label: str) -> None:
    assert label == label_of(metric)
