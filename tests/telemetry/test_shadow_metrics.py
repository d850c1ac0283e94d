from prometheus_client import CollectorRegistry

from driftsched.telemetry.shadow import ShadowMetrics
from support.shadows import FOUND, Found


def samples(found: Found) -> dict[tuple[str, ...], float]:
    """(name, labels by name) -> value."""
    registry = CollectorRegistry()
    registry.register(ShadowMetrics(found))
    return {
        (
            sample.name.removeprefix("driftsched_shadow_"),
            *(v for _, v in sorted(sample.labels.items())),
        ): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_what_each_policy_would_have_given_is_exported_by_tier_and_quantile() -> None:
    told = samples(FOUND)
    assert 9.0 == told["e2e_seconds", "fifo", "0.5", "live", "all"]
    assert 61.0 == told["e2e_seconds", "slack:beta=2", "0.99", "shadow", "batch"]


def test_what_was_measured_and_how_far_the_model_is_off_are_exported() -> None:
    told = samples(FOUND)
    assert (10.0, 81.0) == (told["measured_seconds", "0.5", "all"], told["measured_seconds", "0.99", "batch"])
    assert (0.9, 1.1) == (told["model_ratio", "0.5"], told["model_ratio", "0.99"])
    assert (200, 80) == (told["window_requests", "all"], told["window_requests", "batch"])


def test_who_dominates_is_exported() -> None:
    assert 1 == samples(FOUND)["dominates", "slack:beta=2"]
    assert 0 == samples(Found(FOUND.evidence))["dominates", "slack:beta=2"]


def test_progress_is_exported_before_there_is_any_evidence() -> None:
    assert {("lag_seconds",): 2.5, ("simulated_total",): 700, ("dropped_total",): 30} == samples(Found())
