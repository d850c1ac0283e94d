"""`driftsched bench` as a command, against a simulated engine."""

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from driftsched.bench.plan import Setup
from driftsched.bench.processes import running
from driftsched.benching import LiveDemand, Target
from driftsched.cli_bench import parse_objective
from driftsched.core.errors import ConfigError
from driftsched.sim.measures import Objective

MOCK = ("mock", "--slots", "4", "--speed", "50", "--port", "0")


async def bench(*arguments: str, interrupt_after: str | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; `interrupt_after`: SIGINT once a line of stderr matches that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "driftsched", "bench", *arguments, stdout=PIPE, stderr=PIPE
    )
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(100):
        if interrupt_after is not None:
            async for line in process.stderr:
                said += line.decode()
                if re.search(interrupt_after, said):
                    process.send_signal(signal.SIGINT)
                    break
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), said + err.decode()


@pytest.mark.e2e
async def test_policies_are_compared_pair_by_pair_on_one_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    load = ("--rate", "60", "--requests", "60", "--warmup-requests", "5", "--seeds", "2", "--slo", "ttft=5,e2e=60")
    async with running(*MOCK) as url:
        status, out, err = await bench(
            "--engine", url, "--policies", "fifo,sjf+ema", *load, "--json", str(tmp_path / "summary.json")
        )
    assert 0 == status, err
    made = json.loads((tmp_path / "summary.json").read_bytes())
    assert [("fifo", 1), ("sjf", 1), ("fifo", 2), ("sjf", 2)] == [(r["policy"], r["seed"]) for r in made["runs"]]
    assert {("fifo", "adaptive"), ("sjf", "ema")} == {(r["policy"], r["estimator"]) for r in made["runs"]}
    assert {(60, 60)} == {(run["requests"], run["outcomes"]["finished"]) for run in made["runs"]}
    assert {"live"} == {run["engine_mode"] for run in made["runs"]}
    assert all(run["queue_seconds"]["mean"] >= 0 and run["slo"]["requests"] == 60 for run in made["runs"])
    assert [0, 1, 2, 3] == [block["position"] for block in made["scenario"]["blocks"]]
    assert {5} == {block["warmup_requests"] for block in made["scenario"]["blocks"]}
    assert made["complete"]
    assert "against fifo" in out
    assert "sent 240 = answered 240 + failed 0; and 20 of warm-up" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "block 4 of 4" in err
    assert not (tmp_path / "state").exists(), "a block knows what another one learnt"


@pytest.mark.e2e
async def test_a_server_is_loaded_as_it_is_and_its_answers_are_as_long_as_the_trace_says(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{n / 50},20,{n + 2}\n" for n in range(8)))
    async with running(*MOCK) as url:
        status, out, err = await bench(
            *("--url", f"{url}/v1", "--trace", str(trace), "--ignore-eos", "--seeds", "1", "--quiet"),
            *("--out", str(tmp_path / "out")),
        )
    assert (0, "") == (status, err)
    lines = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_bytes().splitlines()]
    assert list(range(2, 10)) == [line["completion_tokens"] for line in lines]
    assert {("length", None, 200)} == {(x["finish_reason"], x["dispatched_at"], x["http_status"]) for x in lines}
    assert all(line["send_lag_seconds"] >= 0 for line in lines)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"summary.json", "summary.csv", "blocks.csv", "requests.jsonl", "report.html"} == names
    assert "sent 8 = answered 8 + failed 0" in out


@pytest.mark.e2e
async def test_too_many_errors_are_told_by_the_exit_status() -> None:
    load = ("--rate", "200", "--requests", "20", "--seeds", "1", "--quiet", "--model", "nobody")
    async with running(*MOCK) as url:
        refused, out, _ = await bench("--url", url, *load)
        allowed, _, _ = await bench("--url", url, *load, "--max-error-rate", "1")
    assert (4, 0) == (refused, allowed)
    assert "! errors: http_404 20" in out


@pytest.mark.e2e
async def test_an_interrupted_run_reports_what_it_has(tmp_path: Path) -> None:
    load = ("--rate", "20", "--requests", "5000", "--seeds", "1", "--json", str(tmp_path / "summary.json"))
    async with running(*MOCK) as url:
        status, out, _ = await bench("--url", url, *load, interrupt_after=": [1-9][0-9]* of 5000 done")
    made = json.loads((tmp_path / "summary.json").read_bytes())
    assert (130, False) == (status, made["complete"])
    assert 0 < made["runs"][0]["outcomes"]["finished"] <= made["runs"][0]["requests"] < 5000
    assert "Interrupted" in out


async def test_a_server_that_cannot_be_reached_is_exit_status_three() -> None:
    status, out, err = await bench("--url", "http://127.0.0.1:9", "--rate", "1")
    assert (3, "", 1) == (status, out, err.count("\n"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "1"), "--url for a server"),
        (("--url", "http://h", "--engine", "http://h", "--rate", "1"), "--engine for one"),
        (("--url", "http://h", "--rho", "0.5"), "--rho and --capacity together"),
        (("--url", "http://h"), "--rate: give requests a second"),
        (("--url", "h:1", "--rate", "1"), "must begin with http"),
        (("--engine", "http://h", "--policies", "lottery", "--rate", "1"), "unknown 'lottery'"),
        (("--engine", "http://h", "--policies", "sjf+guess", "--rate", "1"), "unknown 'guess'"),
        (("--url", "http://h", "--key-env", "NO_SUCH_KEY", "--rate", "1"), "NO_SUCH_KEY is not set"),
    ],
)
async def test_a_mistake_is_one_line_and_exit_status_two(arguments: tuple[str, ...], said: str) -> None:
    status, out, err = await bench(*arguments)
    assert (2, "") == (status, out)
    assert said in err


def test_an_objective_names_its_bounds() -> None:
    assert Objective(1.0, 10.0) == parse_objective("ttft=1, e2e=10")
    assert Objective(None, 10.0) == parse_objective("e2e=10")
    assert parse_objective(None) is None
    for wrong in ("", "ttft", "p99=3", "ttft=0", "ttft=1,ttft=2", "e2e=soon"):
        with pytest.raises(ConfigError, match="write ttft=SECONDS"):
            parse_objective(wrong)


def test_a_demand_has_its_rate_its_requests_and_its_warm_up() -> None:
    rows = LiveDemand(rate=50.0, requests=400, warmup_requests=100).rows(1)
    assert 500 == len(rows)
    assert {"warmup": 100, "steady": 400} == {p: sum(r.phase == p for r in rows) for p in ("warmup", "steady")}
    assert len(rows) / rows[-1].at == pytest.approx(50.0, rel=0.15)
    assert rows == LiveDemand(rate=50.0, requests=400, warmup_requests=100).rows(1)


def test_a_trace_is_stretched_to_the_rate_after_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{n * n},20,5\n" for n in range(50)))
    rows = LiveDemand(trace=path, rate=4.0, requests=21).rows(1)
    assert 21 == len(rows)
    assert rows[-1].at == pytest.approx(20 / 4.0)
    with pytest.raises(ConfigError, match="--warmup-requests: must be fewer than the 50"):
        LiveDemand(trace=path, requests=None, warmup_requests=50).rows(1)


def test_a_policy_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="one is given twice"):
        Target("http://h", (Setup("fifo", "ema"), Setup("fifo", "ema"))).check()
    Target("http://h", (Setup("fifo", "ema"), Setup("fifo", "adaptive"))).check()
