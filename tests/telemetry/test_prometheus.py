import re
from collections.abc import Iterator
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from driftsched.core.events import (
    Admitted,
    Dispatched,
    DriftDetected,
    Event,
    Evicted,
    Failed,
    Finished,
    FirstToken,
    PolicyChanged,
    Recalibrated,
    Rejected,
    Reranked,
)
from driftsched.core.limit import EngineState, Standing, Vitals
from driftsched.core.model import Calibration, Estimate, Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.telemetry.counts import MAX_CATEGORIES, MAX_REASONS, SECONDS_BUCKETS
from driftsched.telemetry.prometheus import MAX_KIND_SERIES, PrometheusListener
from driftsched.telemetry.reloads import Reloads
from driftsched.telemetry.shadow import ShadowMetrics
from support.shadows import FOUND

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
BUCKETS = [*(str(float(bound)) for bound in SECONDS_BUCKETS), "+Inf"]
LOAD = Load(num_waiting=3, num_inflight=2, waiting_tokens=250.5, tokens_per_second=40.0)
DRIFTED = Calibration("m", "summary", bias=1.5, error=log(1.25), coverage=0.75, num_drifts=1, answers_since_drift=9)


def request(tier: Tier = Tier.STANDARD, category: str = "summary") -> Request:
    return Request("r", Tenant("t", tier), tier, "m", arrived_at=10.0, prompt_tokens=5, category=category)


def ticket(tier: Tier = Tier.STANDARD, category: str = "summary", predicted: float = 100.0) -> Ticket:
    estimate = Estimate(predicted, predicted, predicted, predicted)
    return Ticket(request(tier, category), estimate, seq=0, band=0, flow="t", rank=0.0, charge=1.0)


def finished(tokens: int = 130, reason: str = "stop", tier: Tier = Tier.STANDARD) -> Finished:
    return Finished(
        14.0,
        ticket(tier),
        Usage(7, tokens),
        reason,
        dispatched_at=12.0,
        first_token_at=12.5,
        charge=1.0,
    )


ALL_EVENTS: list[Event] = [
    Admitted(10.0, ticket(), position=1),
    Rejected(10.0, request(Tier.BATCH), "queue_full", 1.0),
    Dispatched(12.0, ticket(), why="overdue"),
    FirstToken(12.5, ticket()),
    finished(),
    Evicted(11.0, ticket(Tier.PREMIUM), "cancelled", Usage(5, 6), dispatched_at=10.5, charge=1.0),
    Failed(11.0, ticket(Tier.BATCH), "broken_stream", Usage(5, 8), dispatched_at=10.5, charge=1.0),
    Recalibrated(14.0, "m", "summary", 1.0, 1.25),
    DriftDetected(14.0, "m", "summary", 1.6),
    Reranked(14.0, "m", "summary", (ticket(),) * 3),
    PolicyChanged(14.0, "fair:slack=2", "fair:slack=4", "it is better"),
]


WATCHED = EngineState(
    "gpu-1",
    33,
    32,
    Vitals(31, 1, 0.75, 4),
    failed_scrapes=2,
    changes={"engine_queue": 3},
    standing=Standing(900.0, "open", 2, 7, 1),
)
SILENT = EngineState("gpu-2", 16, 5, None)


def listener_told_of(*events: Event) -> PrometheusListener:
    listener = PrometheusListener(policy="fair", estimator="calibrated", version="1.2.3", wall_clock=lambda: 1.75e9)
    listener.watch(lambda: LOAD, calibration=lambda: [DRIFTED])
    listener.watch_engines(lambda: [WATCHED, SILENT])
    listener.watch_away(lambda: 0.0)
    for event in events:
        listener(event)
    return listener


def samples(*events: Event) -> dict[str, float]:
    """`name{labels}` -> value, of what is exported after `events`."""
    text = listener_told_of(*events).export().decode()
    return {
        sample.name + str(dict(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metric: str, *events: Event, **labels: str) -> float:
    return samples(*events)[metric + str(dict(sorted(labels.items())))]


@pytest.mark.parametrize(
    ("metric", "labels", "expected"),
    [
        ("driftsched_requests_submitted_total", {"tier": "standard"}, 1),
        ("driftsched_requests_submitted_total", {"tier": "batch"}, 1),
        ("driftsched_requests_rejected_total", {"tier": "batch", "reason": "queue_full"}, 1),
        ("driftsched_requests_finished_total", {"tier": "standard"}, 1),
        ("driftsched_requests_evicted_total", {"tier": "premium", "reason": "cancelled"}, 1),
        ("driftsched_requests_failed_total", {"tier": "batch", "error": "broken_stream"}, 1),
        ("driftsched_overdue_dispatches_total", {"tier": "standard"}, 1),
        ("driftsched_prompt_tokens_total", {"tier": "standard"}, 7),
        ("driftsched_completion_tokens_total", {"tier": "standard"}, 130),
        ("driftsched_completion_tokens_total", {"tier": "premium"}, 6),
        ("driftsched_completion_tokens_total", {"tier": "batch"}, 8),
        ("driftsched_queue_seconds_sum", {"tier": "standard"}, 2.0),
        ("driftsched_ttft_seconds_sum", {"tier": "standard"}, 2.5),
        ("driftsched_e2e_seconds_sum", {"tier": "standard"}, 4.0),
        ("driftsched_prediction_error_tokens_sum", {"category": "summary"}, 30),
        ("driftsched_prediction_bias_ratio", {"model": "m", "category": "summary"}, 1.25),
        ("driftsched_drifts_detected_total", {"model": "m", "category": "summary"}, 1),
        ("driftsched_last_drift_ratio", {"model": "m", "category": "summary"}, 1.6),
        ("driftsched_last_drift_timestamp_seconds", {"model": "m", "category": "summary"}, 1.75e9),
        ("driftsched_drift_correction_ratio", {"model": "m", "category": "summary"}, 1.5),
        ("driftsched_prediction_error_ratio", {"model": "m", "category": "summary"}, 1.25),
        ("driftsched_prediction_coverage_ratio", {"model": "m", "category": "summary"}, 0.75),
        ("driftsched_waiting_requests", {}, 3),
        ("driftsched_inflight_requests", {}, 2),
        ("driftsched_waiting_tokens", {}, 250.5),
        ("driftsched_throughput_tokens_per_second", {}, 40),
        ("driftsched_info", {"version": "1.2.3", "policy": "fair:slack=4", "estimator": "calibrated"}, 1),
        ("driftsched_policy_changes_total", {}, 1),
    ],
)
def test_each_number_follows_its_definition(metric: str, labels: dict[str, str], expected: float) -> None:
    assert expected == value(metric, *ALL_EVENTS, **labels)


def test_an_answer_cut_at_its_limit_says_nothing_about_the_error() -> None:
    exported = samples(finished(reason="length"))
    assert not [name for name in exported if name.startswith("driftsched_prediction_error_tokens")]


def test_series_by_tier_exist_before_their_first_event() -> None:
    for tier in Tier:
        assert 0 == value("driftsched_requests_finished_total", tier=tier.label)
        assert 0 == value("driftsched_queue_seconds_count", tier=tier.label)


def test_gauges_are_read_when_they_are_asked_for() -> None:
    loads = [LOAD, Load(0, 0, 0.0, 0.0)]
    listener = PrometheusListener(policy="fair", estimator="calibrated", version="1")
    listener.watch(lambda: loads[0])
    assert b"driftsched_waiting_requests 3.0" in listener.export()
    del loads[0]
    assert b"driftsched_waiting_requests 0.0" in listener.export()


def test_made_up_model_names_do_not_add_series_for_ever() -> None:
    flood = [Recalibrated(0.0, f"model-{n}", "summary", 1.0, 2.0) for n in range(2 * MAX_KIND_SERIES)]
    known_again = Recalibrated(0.0, "model-0", "summary", 2.0, 3.0)
    exported = samples(*flood, known_again)
    series = [name for name in exported if name.startswith("driftsched_prediction_bias_ratio")]
    assert MAX_KIND_SERIES == len(series)
    assert 3.0 == value(
        "driftsched_prediction_bias_ratio", *flood, known_again, model="model-0", category="summary"
    )


@pytest.mark.parametrize("metric", ["drifts_detected_total", "last_drift_ratio", "last_drift_timestamp_seconds"])
def test_drifts_are_exported_of_the_kinds_whose_bias_is(metric: str) -> None:
    known = [Recalibrated(0.0, f"model-{n}", "summary", 1.0, 2.0) for n in range(MAX_KIND_SERIES)]
    flood = [DriftDetected(0.0, f"model-{n}", "summary", 2.0) for n in range(2 * MAX_KIND_SERIES)]
    series = [name for name in samples(*known, *flood) if name.startswith(f"driftsched_{metric}")]
    assert [f"driftsched_{metric}{{'category': 'summary', 'model': 'model-{n}'}}" for n in range(200)] == series


def test_every_drift_of_a_kind_counts_and_the_last_one_is_shown() -> None:
    events = [DriftDetected(14.0, "m", "summary", 1.6), DriftDetected(15.0, "m", "summary", 0.5)]
    kind = {"model": "m", "category": "summary"}
    assert 2 == value("driftsched_drifts_detected_total", *events, **kind)
    assert 0.5 == value("driftsched_last_drift_ratio", *events, **kind)


def test_a_kind_that_never_drifted_has_no_last_drift() -> None:
    assert not [name for name in samples(finished()) if name.startswith("driftsched_last_drift")]


def test_of_many_kinds_those_that_were_learnt_from_last_are_exported() -> None:
    rows = [replace(DRIFTED, model=f"model-{n}") for n in range(2 * MAX_KIND_SERIES)]
    listener = PrometheusListener(policy="fair", estimator="adaptive", version="1")
    listener.watch(lambda: LOAD, calibration=lambda: rows)
    exported = re.findall(rb'coverage_ratio{category="summary",model="model-(\d+)"}', listener.export())
    assert list(range(MAX_KIND_SERIES, 2 * MAX_KIND_SERIES)) == sorted(map(int, exported))


def test_an_estimator_that_cannot_account_for_itself_takes_no_other_metric_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Iterator[Calibration]:
        yield DRIFTED
        raise ZeroDivisionError

    listener = PrometheusListener(policy="fair", estimator="adaptive", version="1")
    listener.watch(lambda: LOAD, calibration=broken)
    assert b"driftsched_waiting_requests 3.0" in listener.export()
    assert "ZeroDivisionError" in caplog.text


def test_every_waiting_request_that_was_placed_anew_counts() -> None:
    events = Reranked(14.0, "m", "summary", (ticket(),) * 3), Reranked(15.0, "n", "report", (ticket(),) * 16)
    assert 19.0 == value("driftsched_reranked_tickets_total", *events)


def test_a_model_name_of_any_characters_is_exported() -> None:
    name = 'a"b\\c\nd}{ é'
    assert 2.0 == value(
        "driftsched_prediction_bias_ratio", Recalibrated(0.0, name, "c", 1.0, 2.0), model=name, category="c"
    )


def test_reasons_of_any_plug_in_add_no_series_for_ever() -> None:
    flood = [
        Failed(11.0, ticket(), f"error-{n}", Usage(), dispatched_at=10.5, charge=1.0)
        for n in range(2 * MAX_REASONS)
    ]
    series = {n: v for n, v in samples(*flood).items() if n.startswith("driftsched_requests_failed")}
    assert MAX_REASONS + 1 == len(series)
    assert 2 * MAX_REASONS == sum(series.values())
    assert MAX_REASONS == value("driftsched_requests_failed_total", *flood, tier="standard", error="other")


def test_categories_of_any_classifier_add_no_series_for_ever() -> None:
    flood = [replace(finished(), ticket=ticket(category=f"kind-{n}")) for n in range(2 * MAX_CATEGORIES)]
    series = {n: v for n, v in samples(*flood).items() if n.startswith("driftsched_prediction_error_tokens_count")}
    assert MAX_CATEGORIES + 1 == len(series)
    assert 2 * MAX_CATEGORIES == sum(series.values())


@pytest.mark.parametrize(("seconds", "bucket"), [(1.0, "1.0"), (1.01, "2.0"), (500.0, "500.0"), (501.0, "+Inf")])
def test_a_time_falls_into_the_smallest_bucket_that_holds_it(seconds: float, bucket: str) -> None:
    exported = samples(FirstToken(10.0 + seconds, ticket()))
    name = "driftsched_ttft_seconds_bucket{{'le': '{}', 'tier': 'standard'}}"
    holding = [le for le in BUCKETS if exported[name.format(le)] == 1]
    assert BUCKETS[BUCKETS.index(bucket) :] == holding


def test_without_a_number_of_tenants_no_tenant_is_a_label() -> None:
    listener = PrometheusListener(policy="fair", estimator="x", version="1", max_tenants=0)
    for event in ALL_EVENTS:
        listener(event)
    assert b"tenant" not in listener.export()


def test_two_listeners_live_in_one_process() -> None:
    one, other = listener_told_of(finished()), listener_told_of()
    assert one.export() != other.export()


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    table_row = re.compile(r"^\| `(driftsched_\w+)` \| (\w+) \|[^|]*\|([^|]*)\|", re.MULTILINE)
    rows = table_row.findall(DOCUMENT.read_text(encoding="utf-8"))
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exported = {}
    registry = listener_told_of(*ALL_EVENTS).registry
    registry.register(ShadowMetrics(FOUND))
    registry.register(Reloads())
    for family in registry.collect():
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        exported[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    assert len(rows) == len(documented)
    assert exported == documented


def test_engines_tell_of_themselves_and_of_one_that_does_not_there_is_its_limit_alone() -> None:
    exported = {name: value for name, value in samples().items() if name.startswith("driftsched_engine_")}
    assert {
        "driftsched_engine_limit_requests{'engine': 'gpu-1'}": 33,
        "driftsched_engine_limit_requests{'engine': 'gpu-2'}": 16,
        "driftsched_engine_inflight_requests{'engine': 'gpu-1'}": 32,
        "driftsched_engine_inflight_requests{'engine': 'gpu-2'}": 5,
        "driftsched_engine_running_requests{'engine': 'gpu-1'}": 31,
        "driftsched_engine_waiting_requests{'engine': 'gpu-1'}": 1,
        "driftsched_engine_kv_usage_ratio{'engine': 'gpu-1'}": 0.75,
        "driftsched_engine_outstanding_tokens{'engine': 'gpu-1'}": 900,
        "driftsched_engine_left_alone{'engine': 'gpu-1'}": 1,
        "driftsched_engine_outages_total{'engine': 'gpu-1'}": 2,
        "driftsched_engine_retries_total{'engine': 'gpu-1'}": 7,
        "driftsched_engine_retries_refused_total{'engine': 'gpu-1'}": 1,
        "driftsched_engine_failed_scrapes_total{'engine': 'gpu-1'}": 2,
        "driftsched_engine_failed_scrapes_total{'engine': 'gpu-2'}": 0,
        "driftsched_engine_limit_changes_total{'engine': 'gpu-1', 'reason': 'engine_queue'}": 3,
    } == exported


def test_the_policy_in_force_is_told_and_how_often_it_changed() -> None:
    changes = PolicyChanged(1.0, "fair", "fair:slack=2", "x"), PolicyChanged(2.0, "fair:slack=2", "fifo", "y")
    registry = listener_told_of(*changes).registry
    told = [s for family in registry.collect() for s in family.samples]
    assert ["fifo"] == [sample.labels["policy"] for sample in told if sample.name == "driftsched_info"]
    assert [2.0] == [sample.value for sample in told if sample.name == "driftsched_policy_changes_total"]
