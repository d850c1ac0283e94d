import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from driftsched.core.errors import ConfigError
from driftsched.engines.presets import get_hardware
from driftsched.sim.experiment import Machine
from driftsched.sim.feedback import FEEDBACKS, Feedback
from driftsched.simulating import (
    Arms,
    Demand,
    Output,
    TraceOf,
    default_arms,
    parse_feedbacks,
    parse_options,
    run_simulate,
)

SMALL = (("requests", "200"),)


def simulate(
    demand: Demand,
    *,
    policies: tuple[str, ...] = ("fifo", "sjf"),
    estimators: tuple[str, ...] = ("static",),
    feedbacks: Sequence[Feedback] = ("reranked",),
    out: Path | None = None,
    **changes: object,
) -> None:
    arguments: dict[str, object] = {
        "num_seeds": 2,
        "hardware": "l4-qwen1.5-1.8b",
        "mode": "continuous",
        "slots": 8,
        "output": Output(json=out, quiet=True),
    }
    run_simulate(demand, Arms(policies, estimators, feedbacks), **(arguments | changes))  # type: ignore[arg-type]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "driftsched", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_same_seeds_give_the_same_bytes_however_many_processes(tmp_path: Path) -> None:
    for number, processes in enumerate((1, 1, 2)):
        simulate(Demand(options=SMALL, rho=0.9), out=tmp_path / f"{number}.json", processes=processes)
    first, *others = [(tmp_path / f"{number}.json").read_bytes() for number in range(3)]
    assert [first, first] == others


def test_every_policy_gets_the_same_requests_and_loses_none(tmp_path: Path) -> None:
    simulate(Demand(options=SMALL, rho=0.9), policies=("fifo", "sjf", "fair"), out=tmp_path / "s.json")
    runs = json.loads((tmp_path / "s.json").read_bytes())["runs"]
    assert {("fifo", 1), ("sjf", 1), ("fair", 1), ("fifo", 2), ("sjf", 2), ("fair", 2)} == {
        (run["policy"], run["seed"]) for run in runs
    }
    assert {200} == {run["requests"] for run in runs}
    assert {200} == {run["outcomes"]["finished"] for run in runs}


def test_limits_on_what_is_in_flight_are_compared_on_the_same_requests(tmp_path: Path) -> None:
    simulate(
        Demand(options=SMALL, rho=0.9),
        policies=("fifo",),
        limits=("4", "8", "adaptive:32"),
        out=tmp_path / "s.json",
    )
    runs = json.loads((tmp_path / "s.json").read_bytes())["runs"]
    seconds = {run["variant"]: run["e2e_seconds"]["p99"] for run in runs if run["seed"] == 1}
    assert ["in flight 4", "in flight 8", "adaptive from 32"] == list(seconds)
    assert seconds["in flight 4"] > seconds["in flight 8"]
    assert seconds["adaptive from 32"] < 1.1 * seconds["in flight 8"]
    assert {200} == {run["outcomes"]["finished"] for run in runs}


def test_a_limit_in_tokens_leaves_nobody_behind(tmp_path: Path) -> None:
    simulate(Demand(options=SMALL, rho=0.9), policies=("fair",), max_inflight_tokens=500, out=tmp_path / "s.json")
    runs = json.loads((tmp_path / "s.json").read_bytes())["runs"]
    assert {200} == {run["outcomes"]["finished"] for run in runs}


@pytest.mark.parametrize("limit", ["0", "-1", "many", "adaptive", "adaptive:", "fixed:3", ":3"])
def test_a_limit_that_makes_no_sense_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match="inflight"):
        simulate(Demand(options=SMALL), limits=(limit,))


def test_the_oracle_is_never_wrong(tmp_path: Path) -> None:
    simulate(Demand(options=SMALL, rho=0.9), estimators=("static", "oracle"), out=tmp_path / "s.json")
    runs = json.loads((tmp_path / "s.json").read_bytes())["runs"]
    assert {0.0} == {run["prediction"]["mae_tokens"] for run in runs if run["estimator"] == "oracle"}
    assert all(run["prediction"]["mae_tokens"] > 0 for run in runs if run["estimator"] == "static")


def test_feedback_is_compared_on_the_same_requests_and_the_oracle_needs_none(tmp_path: Path) -> None:
    simulate(
        Demand("drift", SMALL, rho=0.9),
        policies=("sjf",),
        estimators=("calibrated", "oracle"),
        feedbacks=FEEDBACKS,
        out=tmp_path / "s.json",
    )
    runs = [run for run in json.loads((tmp_path / "s.json").read_bytes())["runs"] if run["seed"] == 1]
    assert ["calibrated-off", "calibrated-frozen", "calibrated", "oracle"] == [run["estimator"] for run in runs]
    assert 4 == len({run["e2e_seconds"]["mean"] for run in runs})


def test_nothing_is_learnt_without_feedback(tmp_path: Path) -> None:
    for estimator, feedbacks in (("calibrated", ("off",)), ("static", ("off", "reranked"))):
        simulate(
            Demand(options=SMALL, rho=0.9),
            policies=("sjf",),
            estimators=(estimator,),
            feedbacks=feedbacks,  # type: ignore[arg-type]
            num_seeds=1,
            out=tmp_path / f"{estimator}.json",
        )
    (untaught,), (static, taught) = (
        json.loads((tmp_path / f"{name}.json").read_bytes())["runs"] for name in ("calibrated", "static")
    )
    assert static["e2e_seconds"] == taught["e2e_seconds"]
    assert untaught["prediction"]["bias"] != static["prediction"]["bias"]


def test_drift_compares_kinds_of_feedback_and_all_else_policies() -> None:
    assert FEEDBACKS == default_arms(Demand("drift")).feedbacks
    assert (
        ("reranked",) == default_arms(Demand("gamma")).feedbacks == default_arms(Demand(trace=Path("x"))).feedbacks
    )
    assert "oracle" in default_arms(Demand("drift")).estimators


def test_an_unknown_kind_of_feedback_is_refused() -> None:
    assert ["frozen", "off"] == parse_feedbacks(["frozen", "off"])
    with pytest.raises(ConfigError, match="feedback: unknown 'loud': use one of off, frozen, reranked"):
        parse_feedbacks(["loud"])


def test_the_sensitivity_band_changes_one_coefficient_at_a_time(tmp_path: Path) -> None:
    simulate(Demand(options=SMALL, rho=0.8), policies=("fifo",), sensitivity=True, out=tmp_path / "s.json")
    runs = [run for run in json.loads((tmp_path / "s.json").read_bytes())["runs"] if run["seed"] == 1]
    p50 = {run["variant"]: run["e2e_seconds"]["p50"] for run in runs}
    assert {"base", "floor-20%", "floor+20%", "kv-20%", "kv+20%"} == set(p50)
    assert p50["floor-20%"] < p50["base"] < p50["floor+20%"]
    assert p50["kv-20%"] < p50["base"] < p50["kv+20%"]


def test_a_utilisation_means_the_same_rate_for_every_seed() -> None:
    machine = Machine(get_hardware("l4-qwen1.5-1.8b"), slots=8)
    source = TraceOf(Demand(options=(("requests", "4000"),), rho=0.5), machine)
    for seed in (1, 2):
        rows = source(seed)
        assert len(rows) / rows[-1].at == pytest.approx(0.5 * source.capacity(), rel=0.06)


def test_a_trace_is_stretched_to_the_utilisation_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{n},20,{n % 7 + 1}\n" for n in range(300)))
    machine = Machine(get_hardware("l4-qwen1.5-1.8b"), slots=8)
    source = TraceOf(Demand(trace=path, rho=0.7), machine)
    rows = source(1)
    assert (len(rows) - 1) / rows[-1].at == pytest.approx(0.7 * source.capacity(), rel=1e-3)
    assert [row.completion_tokens for row in rows] == [n % 7 + 1 for n in range(300)]


def test_a_request_that_the_engine_cannot_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,20,5\n1,900000,5\n")
    with pytest.raises(ConfigError, match="request 2 of the trace has 900005 tokens"):
        simulate(Demand(trace=path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": ("fifo", "lottery")}, "policies: unknown 'lottery'"),
        ({"policies": ()}, "policies: give at least one"),
        ({"policies": ("fifo", "fifo")}, "policies: one is given twice"),
        ({"estimators": ("crystal-ball",)}, "estimators: unknown 'crystal-ball'"),
        ({"hardware": "abacus"}, "abacus"),
    ],
)
def test_a_wrong_name_is_refused_before_any_work(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        simulate(Demand(options=SMALL, rho=0.9), **changes)  # type: ignore[arg-type]


def test_options_are_name_and_value() -> None:
    assert {"rate": "2", "cv": "3"} == parse_options(["rate=2", "cv=3"])
    for wrong in (["rate"], ["rate=1", "rate=2"]):
        with pytest.raises(ConfigError, match="write name=value"):
            parse_options(wrong)


def test_results_go_to_standard_output_and_progress_does_not() -> None:
    done = command("simulate", "--set", "requests=200", "--rho", "0.95", "--seeds", "2", "--policies", "fifo,sjf")
    assert 0 == done.returncode
    assert "E2E P95" in done.stdout
    assert "! rho above 0.9" in done.stdout
    assert "l4-qwen1.5-1.8b (extrapolated)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "2 of 2 done\n" in done.stderr
    assert "done" not in done.stdout


def test_a_mistake_is_one_line_and_exit_status_two() -> None:
    done = command("simulate", "--policies", "lottery")
    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("\n")
    assert "lottery" in done.stderr


def test_a_trace_can_be_made_described_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "burst.jsonl.gz"
    made = command("trace", "gen", "gamma", str(path), "--set", "rate=2", "--set", "requests=300")
    assert (0, "") == (made.returncode, made.stderr)
    described = command("trace", "info", str(path))
    assert described.stdout.startswith("requests              300")
    replayed = command("simulate", "--trace", str(path), "--policies", "fifo", "--seeds", "1", "--quiet")
    assert (0, "") == (replayed.returncode, replayed.stderr)
    assert "burst.jsonl.gz: 300 requests a seed" in replayed.stdout


@pytest.mark.skipif(find_spec("ray") is None, reason="needs `pip install 'driftsched[ray]'`")
def test_a_ray_cluster_gives_the_same_bytes_as_processes_here(tmp_path: Path) -> None:
    for executor in ("processes", "ray"):
        simulate(Demand(options=SMALL, rho=0.9), out=tmp_path / f"{executor}.json", executor=executor)
    assert (tmp_path / "processes.json").read_bytes() == (tmp_path / "ray.json").read_bytes()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_one_is_told_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'driftsched\[ray\]'"):
        simulate(Demand(options=SMALL, rho=0.9), executor="ray")


def test_where_results_go_does_not_change_them(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    same = ("simulate", "--set", "requests=100", "--rho", "0.8", "--seeds", "2", "--policies", "fifo")
    assert 0 == command(*same, "--json", str(first)).returncode
    assert 0 == command(*same, f"--json={second}", "--quiet", "--processes", "1").returncode
    assert first.read_bytes() == second.read_bytes()
    made = json.loads(first.read_bytes())["scenario"]["command"]
    assert "driftsched simulate --set requests=100 --rho 0.8 --seeds 2 --policies fifo" == made
