import csv
import io
from math import nan
from pathlib import Path

import msgspec
import pytest

from driftsched.core.errors import ConfigError
from driftsched.engines.presets import get_hardware
from driftsched.sim.conditions import capture_conditions, capture_environment, coefficients
from driftsched.sim.measures import Attainment, Group, Prediction, Run, Spread, measure
from driftsched.sim.summary import (
    CSV_COLUMNS,
    SCHEMA,
    Arm,
    Document,
    SummaryRow,
    baseline_of,
    document,
    figures,
    labels,
    load_document,
    request_lines,
    summarize,
    to_csv,
    to_json,
    write_results,
)
from support.recordings import Served, queue_run, recording_of

SPREAD = ["mean", "p50", "p90", "p95", "p99", "max"]
GROUP = ["requests", "e2e_seconds", "queue_seconds"]


def runs_of(*policies: str, seeds: int = 3, requests: int = 250) -> list[Run]:
    return [
        measure(queue_run(policy, seed=seed, requests=requests))
        for policy in policies
        for seed in range(1, seeds + 1)
    ]


def document_of(runs: list[Run], **more: object) -> Document:
    given: dict[str, object] = {
        "scenario": {"name": "queue"},
        "trace_hash": "abc",
        "commit": "c0ffee",
        "environment": {},
    }
    return document(runs, **{**given, **more})  # type: ignore[arg-type]


def test_summary_json_has_the_keys_others_read() -> None:
    content = msgspec.json.decode(to_json(document_of(runs_of("fifo", "sjf"))))
    assert [
        "schema",
        "scenario",
        "commit",
        "trace_hash",
        "runs",
        "summary",
        "environment",
        "complete",
    ] == list(content)
    assert (SCHEMA, "c0ffee", "abc") == (content["schema"], content["commit"], content["trace_hash"])
    run = content["runs"][0]
    assert [
        "policy",
        "estimator",
        "engine_mode",
        "variant",
        "seed",
        "requests",
        "e2e_seconds",
        "queue_seconds",
        "ttft_seconds",
        "by_tier",
        "by_class",
        "by_tenant",
        "by_phase",
        "prediction",
        "makespan_seconds",
        "slot_utilisation",
        "service_gap_tokens",
        "light_tenant_p99_seconds",
        "outcomes",
        "max_queue_depth",
        "saturation",
        "slo",
    ] == list(run)
    for name in ("e2e_seconds", "queue_seconds", "ttft_seconds"):
        assert SPREAD == list(run[name])
    for name in ("by_tier", "by_class", "by_tenant", "by_phase"):
        for group in run[name].values():
            assert GROUP == list(group)
            assert SPREAD == list(group["e2e_seconds"])
    assert ["mae_tokens", "rmse_tokens", "kendall_tau", "bias", "compared", "truncated"] == list(run["prediction"])


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    written = document_of(runs_of("fifo", "sjf"), complete=False)
    write_results(tmp_path / "new" / "out", written, [])
    assert written == load_document(tmp_path / "new" / "out")
    assert written == load_document(tmp_path / "new" / "out" / "summary.json")


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recordings = [queue_run(policy, seed=seed) for policy in ("fifo", "sjf") for seed in (1, 2)]
        runs = [measure(recording) for recording in recordings]
        write_results(tmp_path / name, document(runs, scenario={}, trace_hash="x"), recordings)
    for file in ("summary.json", "summary.csv", "requests.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a summary written by driftsched"),
        (b"\xff\xfe", "not a summary written by driftsched"),
        (b"[]", "not a summary written by driftsched"),
        (b'{"schema": 99}', "has schema 99, this version reads schema 1"),
        (
            b'{"schema":1,"scenario":{},"commit":"","trace_hash":"","runs":[{"policy":5}],"summary":[]}',
            r"runs\[0\]\.policy",
        ),
    ],
)
def test_a_file_that_is_no_summary_is_refused_with_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"summary\.json: .*{said}"):
        load_document(tmp_path)


def test_a_missing_file_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give a results directory or its summary\.json"):
        load_document(tmp_path / "none")


def test_every_number_of_a_run_is_summarised_over_its_seeds() -> None:
    runs = runs_of("fifo", seeds=3)
    rows = {row.metric: row for row in summarize(runs)}
    assert {".".join(path) for path, value in figures(runs[0]) if value is not None} == set(rows)
    p95 = [run.e2e_seconds.p95 for run in runs]
    assert rows["e2e_seconds.p95"].mean == pytest.approx(sum(filter(None, p95)) / 3)
    assert 3 == rows["e2e_seconds.p95"].n
    premium = [run.by_tier["premium"].queue_seconds.mean for run in runs]
    assert rows["by_tier.premium.queue_seconds.mean"].mean == pytest.approx(sum(filter(None, premium)) / 3)
    assert rows["e2e_seconds.p95"].baseline is None


def test_a_figure_that_is_suppressed_for_one_seed_is_not_averaged_over_the_others() -> None:
    runs = [measure(queue_run(seed=1, requests=250)), measure(queue_run(seed=2, requests=150))]
    metrics = {row.metric for row in summarize(runs)}
    assert "e2e_seconds.p95" in metrics
    assert "e2e_seconds.p99" not in metrics


def test_arms_are_compared_with_the_baseline_seed_by_seed() -> None:
    rows = {(row.policy, row.metric): row for row in summarize(runs_of("fifo", "sjf", seeds=10), "fifo")}
    row = rows["sjf", "e2e_seconds.p50"]
    assert ("fifo", "static", "lower") == (row.baseline, row.baseline_estimator, row.verdict)
    assert row.difference is not None
    assert row.change is not None
    assert row.difference.mean == pytest.approx(row.mean - rows["fifo", "e2e_seconds.p50"].mean)
    assert -1 < row.change.mean < 0
    assert "higher" == rows["sjf", "e2e_seconds.p99"].verdict
    assert "n.s." == rows["sjf", "requests"].verdict


def test_two_runs_of_one_seed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two runs of .*fifo.* have the seed 1"):
        summarize(runs_of("fifo", seeds=1) * 2)


def test_the_baseline_is_of_the_same_scene_and_if_possible_of_the_same_estimator() -> None:
    fifo, sjf = Arm("fifo", "static", "continuous", "paper"), Arm("sjf", "static", "continuous", "paper")
    learnt, other = sjf._replace(estimator="calibrated"), sjf._replace(engine_mode="static")
    fifo_learnt = fifo._replace(estimator="calibrated")
    arms = [fifo, sjf, learnt, other]
    assert baseline_of(fifo, arms, "fifo") is None
    assert fifo == baseline_of(sjf, arms, "fifo")
    assert fifo == baseline_of(learnt, arms, "fifo")
    assert fifo_learnt == baseline_of(learnt, [*arms, fifo_learnt], "fifo")
    assert baseline_of(other, arms, "fifo") is None
    assert sjf == baseline_of(learnt, arms, "sjf")
    assert sjf == baseline_of(fifo, arms, "sjf")
    assert fifo == baseline_of(sjf, arms)


def test_labels_say_no_more_than_tells_arms_apart() -> None:
    fifo, sjf = Arm("fifo", "static", "continuous", "paper"), Arm("sjf", "static", "continuous", "paper")
    assert {fifo: "fifo", sjf: "sjf"} == labels([fifo, sjf])
    batched = sjf._replace(engine_mode="static")
    assert {sjf: "sjf continuous", batched: "sjf static"} == labels([sjf, batched])


@pytest.mark.parametrize("record", [Document, SummaryRow, Run, Spread, Group, Prediction, Attainment])
def test_every_key_is_documented(record: type[msgspec.Struct]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    assert [] == [name for name in record.__struct_fields__ if f"`{name}`" not in text]


def test_every_column_of_the_csv_and_of_the_requests_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    keys = msgspec.json.decode(next(request_lines(queue_run(requests=10)))).keys()
    assert [] == [name for name in (*CSV_COLUMNS, *keys) if f"`{name}`" not in text]


def test_the_csv_is_tidy_and_complete() -> None:
    runs = runs_of("fifo", seeds=2)
    rows = list(csv.DictReader(io.StringIO(to_csv(runs))))
    assert list(CSV_COLUMNS) == list(rows[0])
    assert sum(len(list(figures(run))) for run in runs) == len(rows)
    cells = {(r["seed"], r["group"], r["member"], r["measure"], r["stat"]): r["value"] for r in rows}
    assert len(rows) == len(cells)
    assert repr(runs[1].e2e_seconds.p95) == cells["2", "all", "", "e2e_seconds", "p95"]
    assert repr(runs[0].by_tier["batch"].queue_seconds.mean) == cells["1", "tier", "batch", "queue_seconds", "mean"]
    assert repr(runs[0].makespan_seconds) == cells["1", "all", "", "makespan_seconds", "value"]
    assert "" == cells["1", "tier", "batch", "e2e_seconds", "p99"]


def test_each_request_is_a_line_with_its_run() -> None:
    run = recording_of(
        [
            Served(0.5, 1.0, 2.0, tenant='a,\n"b"', first_token_at=1.5),
            Served(0.7, outcome="rejected", predicted_tokens=nan),
        ],
        policy="sjf",
        seed=9,
    )
    first, second = (msgspec.json.decode(line) for line in request_lines(run))
    assert ("sjf", 9, 0, 'a,\n"b"', 0.5, 1.5) == tuple(
        first[name] for name in ("policy", "seed", "request", "tenant", "arrived_at", "first_token_at")
    )
    assert ("rejected", None, None, 1) == tuple(
        second[name] for name in ("outcome", "dispatched_at", "predicted_tokens", "request")
    )
    assert all(line.count(b"\n") == 1 for line in request_lines(run))


def test_the_environment_does_not_change_from_run_to_run_and_names_the_versions() -> None:
    assert capture_environment() == capture_environment()
    assert {"driftsched", "python", "platform", "cpu", "cores"} == set(capture_environment())
    assert {"load_average", "governor"} == set(capture_conditions())


def test_every_coefficient_of_the_engine_is_listed_with_its_source() -> None:
    hardware = get_hardware("h100-llama3-8b")
    listed = {row["name"]: row for row in coefficients(hardware)}
    assert {"host", "floor", "g0", "g", "r", "kv", "api", "kv_tokens"} == set(listed)
    assert {"name": "floor", "value": 6.3, "unit": "ms", "source": "fitted"} == listed["floor"]
