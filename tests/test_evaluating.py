"""`driftsched evaluate`, from a file to its figures."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftsched import evaluating
from driftsched.cli import app
from driftsched.config import Settings
from driftsched.core.errors import ConfigError
from driftsched.estimators import DEFAULT_CLASSIFIER
from driftsched.evaluation.document import text
from driftsched.evaluation.drift import Drift
from driftsched.evaluation.rows import Row

ROWS = [
    Row(100 + 10 * (number % 7) if model == "slow" else 20 + number % 5, model=model, prompt_tokens=9)
    for number in range(60)
    for model in ("slow", "fast")
]


def test_the_results_have_the_documented_keys(tmp_path: Path) -> None:
    data, out = tmp_path / "data.csv", tmp_path / "scores.json"
    data.write_text("model,completion_tokens\n" + "".join(f"{row.model},{row.completion_tokens}\n" for row in ROWS))
    run = CliRunner().invoke(app, ["evaluate", str(data), "--warmup", "20", "--json", str(out), "--quiet"])
    assert (0, "") == (run.exit_code, run.stderr)
    document = json.loads(out.read_text())
    assert 100 == document["rows"]
    assert set(evaluating.default_estimators()) == set(document["estimators"])
    for found in document["estimators"].values():
        assert {
            "mae", "rmse", "log_mae", "kendall_tau", "pair_accuracy_2x", "pinball", "coverage",
            "predict_us", "learn_us",
        } <= set(found)  # fmt: skip
        assert {"q50", "q80", "q90"} == set(found["pinball"]) == set(found["coverage"])
    assert "MAE by model" in run.stdout


def test_the_oracle_makes_no_error_and_the_references_learn_what_there_is_to_learn() -> None:
    found = evaluating.evaluate(ROWS, ["oracle", "median", "category_mean", "static"], warmup=60)["estimators"]
    assert (0.0, 1.0, 1.0) == (
        found["oracle"]["mae"],
        found["oracle"]["kendall_tau"],
        found["oracle"]["coverage"]["q80"],
    )
    assert found["median"]["mae"] < 20 < found["static"]["mae"]
    assert found["category_mean"]["mae"] < 20
    assert 1.0 == found["median"]["pair_accuracy_2x"]


def test_answers_that_were_cut_are_counted_apart() -> None:
    rows = [
        Row(50, category="short_qa"),
        Row(50, category="short_qa", finish_reason="length"),
        Row(200, category="short_qa", finish_reason="cancelled"),
        Row(50, category="short_qa", max_tokens=50),
    ]
    found = evaluating.evaluate(rows, ["static"])
    assert 2 == found["cut_rows"]
    scores = found["estimators"]["static"]
    assert {"rows": 2, "below": 0.5, "mean_shortfall": 68.0} == scores["cut"]
    assert (2, 7.0) == (scores["known"]["rows"], scores["known"]["mae"])
    assert pytest.approx((14 + 14 + 136) / 4) == scores["mae"]


def test_the_table_shows_how_the_bias_moves() -> None:
    rows = [Row(64, category="short_qa") for _ in range(100)] + [Row(128, category="short_qa") for _ in range(100)]
    shown = text(evaluating.evaluate(rows, ["static", "oracle"]))
    lines = [line.split() for line in shown.splitlines()]
    assert ["bias", "over", "time", "1/5", "2/5", "3/5", "4/5", "5/5"] in lines
    assert ["static", "+0.000", "+0.000", "-0.347", "-0.693", "-0.693"] in lines


def test_an_estimator_can_be_given_options() -> None:
    found = evaluating.evaluate(ROWS, ["ema:alpha=0.5,feedback=false", "ema"])["estimators"]
    assert found["ema:alpha=0.5,feedback=false"]["mae"] != found["ema"]["mae"]


def test_frozen_estimators_have_learnt_the_warm_up_and_nothing_else() -> None:
    rows = [Row(50) for _ in range(100)] + [Row(500) for _ in range(300)]
    found = evaluating.evaluate(rows, ["median", "oracle"], warmup=100, ablation=True)["estimators"]
    assert ["median", "median (frozen)", "oracle"] == list(found)
    assert 450 == found["median (frozen)"]["mae"] > found["median"]["mae"]
    off = evaluating.evaluate(rows, ["median"], ablation=True)["estimators"]["median (frozen)"]
    static = evaluating.evaluate(rows, ["static"])["estimators"]["static"]
    assert static["mae"] == off["mae"]


def test_categories_are_told_as_the_gateway_tells_them_or_as_asked() -> None:
    rows = [Row(50, prompt="Name the capital of France."), Row(500, prompt="Write a long story about a fox.")] * 5
    by_rules = evaluating.evaluate(rows, ["static"])
    assert DEFAULT_CLASSIFIER == Settings().classifier.name == by_rules["classifier"]
    by_keywords = evaluating.evaluate(rows, ["static"], classifier="keywords")
    assert {"short_qa"} == set(by_keywords["estimators"]["static"]["by_category"])
    with pytest.raises(ConfigError, match="unknown classifier 'guess'"):
        evaluating.evaluate(rows, ["static"], classifier="guess")


def test_a_drift_is_followed_by_who_learns() -> None:
    rows = [Row(64 + number % 5, category="short_qa") for number in range(600)]
    document = evaluating.evaluate(rows, ["static", "calibrated"], warmup=100, drifts=[Drift(0.5, 2.0)])
    (static,), (calibrated,) = (document["estimators"][name]["drift"] for name in ("static", "calibrated"))
    assert (None, "0.5:2") == (static["recovered_after"], static["drift"])
    assert calibrated["after"] < 0.2 < calibrated["first"]
    assert document["drifts"] == ["0.5:2"]


def test_every_option_of_the_command_reaches_the_evaluation(tmp_path: Path) -> None:
    data, out = tmp_path / "data.csv", tmp_path / "scores.json"
    data.write_text("model,completion_tokens\n" + "a,50\nb,60\n" * 40)
    words = [
        "--estimator",
        "median",
        "--drift",
        "0.5:2:model=b",
        "--ablation",
        "--classifier",
        "keywords",
        "--quiet",
    ]
    words += ["--inflight", "4", "--seconds-per-token", "0.1", "--first-token-seconds", "1", "--warmup", "10"]
    run = CliRunner().invoke(app, ["evaluate", str(data), "--json", str(out), *words])
    assert 0 == run.exit_code
    document = json.loads(out.read_text())
    assert ["median", "median (frozen)"] == list(document["estimators"])
    assert {"first_token_seconds": 1.0, "seconds_per_token": 0.1, "inflight": 4.0} == document["pace"]
    assert ("keywords", ["0.5:2:model=b"], 10) == tuple(document[key] for key in ("classifier", "drifts", "warmup"))
    assert "Drift 0.5:2:model=b" in run.stdout


def test_a_page_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, page = tmp_path / "data.csv", tmp_path / "page.html"
    data.write_text("completion_tokens\n" + "5\n9\n" * 30)
    run = CliRunner().invoke(app, ["evaluate", str(data), "--estimator", "median", "--html", str(page)])
    assert (0, "median\n") == (run.exit_code, run.stderr)
    assert page.read_text().startswith("<!doctype html>")


def test_a_file_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    data, nowhere = tmp_path / "data.csv", tmp_path / "none" / "file"
    data.write_text("completion_tokens\n5\n")
    with pytest.raises(ConfigError, match=r"--json .*there is no directory"):
        evaluating.run_evaluate(data, json=nowhere)
    with pytest.raises(ConfigError, match=r"--html .*there is no directory"):
        evaluating.run_evaluate(data, html=nowhere)
    with pytest.raises(ConfigError, match="Is a directory"):
        evaluating.run_evaluate(data, ["median"], json=tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("estimators", "warmup", "problem"),
    [
        (["nobody"], 0, "unknown 'nobody': use one of"),
        (["median:alpha=1"], 0, "median has no options"),
        (["ema:alpha"], 0, "write name:option=value"),
        (["ema:beta=1"], 0, "has no option 'beta'"),
        (["ema", "ema"], 0, "given twice"),
        (["ema"], 120, "leaves none of the 120 rows"),
    ],
)
def test_what_cannot_be_evaluated_is_said_so(estimators: list[str], warmup: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        evaluating.evaluate(ROWS, estimators, warmup=warmup)
