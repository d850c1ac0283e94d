from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest

from driftsched.core.errors import ConfigError
from driftsched.engines.presets import Hardware, get_hardware
from driftsched.sim.experiment import Case, Machine, run_case
from driftsched.sim.fit import Fit, Served, fit, read_served, text
from driftsched.sim.recording import Recording
from driftsched.sim.shaping import rescale
from driftsched.sim.summary import request_lines
from driftsched.sim.trace import Row
from driftsched.simulating import PARTS, Arms, Demand, Output, run_simulate

A100 = get_hardware("a100-llama3-8b")
H100 = get_hardware("h100-llama3-8b")


def rows(rate: float, *, num_requests: int = 800, longest_prompt: int = 3000) -> list[Row]:
    """Prompts and answers of all lengths, at `rate` a second."""
    draws = Random(1)
    at = 0.0
    made = []
    for _ in range(num_requests):
        at += draws.expovariate(1.0)
        made.append(Row(round(at, 6), draws.randint(1, longest_prompt), draws.randint(1, 400)))
    return rescale(made, rate)


def recorded(hardware: Hardware, requests: Sequence[Row]) -> Recording:
    return run_case(requests, Case("fifo", "static", Machine(hardware)), 1, PARTS)


def write(path: Path, *recordings: Recording) -> Path:
    path.write_bytes(b"".join(line for recording in recordings for line in request_lines(recording)))
    return path


def fitted(path: Path, hardware: Hardware, requests: Sequence[Row], preset: Hardware) -> Fit:
    return fit(read_served(write(path / "requests.jsonl", recorded(hardware, requests))), preset)


def kept(found: Fit) -> set[str]:
    return {coefficient.name for coefficient in found.coefficients if coefficient.half_width is None}


BATCHES = [(1, 1, 500), (8, 8, 8000), (24, 24, 40_000)]
"""Tokens, sequences and context of iterations that only decode."""


@pytest.mark.parametrize("rate", [1.5, 4.0])
@pytest.mark.parametrize("preset", [A100, H100], ids=["from itself", "from one twice as fast"])
def test_the_step_time_of_a_known_engine_is_recovered(tmp_path: Path, preset: Hardware, rate: float) -> None:
    found = fitted(tmp_path, A100, rows(rate), preset).hardware
    for batch in BATCHES:
        assert found.step_seconds(*batch) == pytest.approx(A100.step_seconds(*batch), rel=0.05)
    long_prompt = (2000, 8, 8000)
    assert found.step_seconds(*long_prompt) == pytest.approx(A100.step_seconds(*long_prompt), rel=0.1)


def test_the_time_outside_the_batch_shows_when_requests_find_the_engine_idle(tmp_path: Path) -> None:
    found = fitted(tmp_path, replace(A100, api_ms=40.0), rows(0.05), A100)
    assert found.hardware.api_ms == pytest.approx(40.0, rel=0.05)
    assert found.hardware.kv_ns_per_token == pytest.approx(A100.kv_ns_per_token, rel=0.02)
    assert "api" not in kept(found)


def test_context_is_counted_as_it_grows(tmp_path: Path) -> None:
    """With prompts this short nearly all of it is what the request itself has generated."""
    found = fitted(tmp_path, A100, rows(0.05, longest_prompt=20), A100).hardware
    assert found.kv_ns_per_token == pytest.approx(A100.kv_ns_per_token, rel=0.05)


def test_the_intervals_hold_the_coefficients_that_are_told(tmp_path: Path) -> None:
    found = fitted(tmp_path, A100, rows(6.0), A100)
    true = {"base": A100.host_ms + A100.floor_ms, "kv": A100.kv_ns_per_token}
    for coefficient in found.coefficients:
        if coefficient.name in true:
            assert coefficient.half_width is not None
            assert abs(coefficient.value - true[coefficient.name]) <= coefficient.half_width
            assert coefficient.half_width < 0.2 * coefficient.value


def test_what_the_run_does_not_tell_is_kept_from_the_preset_and_said(tmp_path: Path) -> None:
    """Prompts under the knee cost nothing that could be seen."""
    found = fitted(tmp_path, A100, rows(3.0, longest_prompt=10), H100)
    assert kept(found) >= {"g", "api"}
    assert found.hardware.g_us_per_token == pytest.approx(H100.g_us_per_token)
    assert found.hardware.api_ms == pytest.approx(H100.api_ms)
    assert "kept: the run does not tell it" in text(found)


def test_a_fitted_engine_says_so_and_keeps_what_is_never_fitted(tmp_path: Path) -> None:
    found = fitted(tmp_path, A100, rows(3.0), H100).hardware
    assert ("h100-llama3-8b-fitted", "fitted") == (found.name, found.source)
    assert (H100.r_us_per_sequence, H100.kv_tokens) == (found.r_us_per_sequence, found.kv_tokens)


def test_requests_not_fitted_to_are_predicted(tmp_path: Path) -> None:
    found = fitted(tmp_path, A100, rows(3.0), H100)
    assert (640, 160) == (found.fitted_on, found.held_out)
    assert abs(found.mean_error) < 0.03
    assert found.typical_error < 0.05


def test_an_engine_that_changed_shows_in_the_error_of_what_was_held_out() -> None:
    run = served(recorded(A100, rows(1.0)))
    split = int(len(run) * 0.8)
    slower = [
        msgspec.structs.replace(r, finished_at=r.dispatched_at + 2 * (r.finished_at - r.dispatched_at))
        for r in run[split:]
    ]
    found = fit([[*run[:split], *slower]], A100)
    assert found.mean_error == pytest.approx(-0.5, abs=0.05)


def test_instants_that_are_off_by_milliseconds_do_not_matter_much() -> None:
    draws = Random(2)
    run = []
    for request in served(recorded(A100, rows(3.0))):
        first, last = (at + draws.uniform(0, 0.005) for at in (request.first_token_at, request.finished_at))
        run.append(msgspec.structs.replace(request, first_token_at=first, finished_at=max(first, last)))
    found = fit([run], A100).hardware
    for batch in BATCHES:
        assert found.step_seconds(*batch) == pytest.approx(A100.step_seconds(*batch), rel=0.06)


def test_several_runs_of_one_engine_are_fitted_together(tmp_path: Path) -> None:
    recordings = [recorded(A100, rows(rate, num_requests=100)) for rate in (1.0, 4.0)]
    lines = [line for recording in recordings[:1] for line in request_lines(recording)]
    lines += [line.replace(b'"fifo"', b'"sjf"') for line in request_lines(recordings[1])]
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"".join(lines))
    runs = read_served(path)
    assert [100, 100] == [len(run) for run in runs]
    assert fit(runs, A100).hardware.step_seconds(8, 8, 8000) == pytest.approx(
        A100.step_seconds(8, 8, 8000), rel=0.05
    )


def test_simulate_uses_the_fitted_engine_and_says_how_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_simulate(
        Demand(options=(("requests", "200"),), rho=0.5),
        Arms(("fifo",), ("static",)),
        num_seeds=1,
        hardware="h100-llama3-8b",
        mode="continuous",
        slots=8,
        recorded=write(tmp_path / "requests.jsonl", recorded(A100, rows(2.0, num_requests=200))),
        output=Output(json=tmp_path / "summary.json", quiet=True),
    )
    scenario = msgspec.json.decode((tmp_path / "summary.json").read_bytes())["scenario"]
    assert scenario["hardware"] == "h100-llama3-8b-fitted"
    assert [("base", "ms"), ("kv", "ns/token"), ("g", "us/token"), ("api", "ms/request")] == [
        (coefficient["name"], coefficient["unit"]) for coefficient in scenario["fit"]["coefficients"]
    ]
    printed = capsys.readouterr().out
    assert printed.startswith("h100-llama3-8b-fitted: fitted on 160 requests\n  base ")
    assert all(len(line) <= 80 for line in printed.splitlines())


def served(recording: Recording) -> list[Served]:
    columns = zip(
        recording.dispatched_at,
        recording.first_token_at,
        recording.finished_at,
        recording.prompt_tokens,
        recording.completion_tokens,
        strict=True,
    )
    return sorted((Served(*values) for values in columns), key=lambda request: request.first_token_at)


GOOD: dict[str, object] = {
    "variant": "base",
    "dispatched_at": 1.0,
    "first_token_at": 1.5,
    "finished_at": 2.0,
    "prompt_tokens": 5,
    "completion_tokens": 9,
}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"not json", "not a line of a requests.jsonl"),
        (b"[1, 2]", "not a line of a requests.jsonl"),
        (b"\xff\xfe", "not a line of a requests.jsonl"),
        (msgspec.json.encode(GOOD | {"prompt_tokens": "5"}), r"\$.prompt_tokens"),
        (msgspec.json.encode(GOOD | {"prompt_tokens": 0}), "prompt_tokens must be at least 1, not 0"),
        (msgspec.json.encode(GOOD | {"completion_tokens": -3}), "completion_tokens must be at least 1, not -3"),
        (msgspec.json.encode(GOOD | {"finished_at": None}), "finished_at is missing"),
        (msgspec.json.encode(GOOD | {"finished_at": 1.2}), "must follow one another, but are 1.0, 1.5, 1.2"),
        (msgspec.json.encode(GOOD | {"engine_mode": "static"}), "only a run with 'continuous' batching"),
        (
            msgspec.json.encode(GOOD | {"variant": "kv-20%"}),
            "'kv-20%' follows 'base': keep the lines of one engine",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(msgspec.json.encode(GOOD) + b"\n\n" + line + b"\n")
    with pytest.raises(ConfigError, match=said) as caught:
        read_served(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_requests_that_were_not_served_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    refused = GOOD | {"outcome": "rejected", "dispatched_at": None, "first_token_at": None, "completion_tokens": 0}
    path.write_bytes(msgspec.json.encode(refused) + b"\n" + msgspec.json.encode(GOOD) + b"\n")
    assert [[Served(1.0, 1.5, 2.0, 5, 9)]] == read_served(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", msgspec.json.encode(GOOD | {"outcome": "failed"})])
def test_a_file_without_a_finished_request_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no finished request"):
        read_served(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.jsonl: No such file or directory: give a requests.jsonl"):
        read_served(tmp_path / "nothing.jsonl")


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="99 finished requests are too few to fit an engine: record 100 or more"):
        fit([[Served(float(n), n + 0.1, n + 0.5, 5, 9) for n in range(99)]], A100)


def test_answers_of_one_token_tell_no_time_of_an_iteration() -> None:
    with pytest.raises(ConfigError, match="does not tell the time of an iteration"):
        fit([[Served(n, n + 0.1, n + 0.1, 5, 1) for n in range(200)]], A100)


def test_requests_all_alike_leave_it_to_the_preset_what_context_costs() -> None:
    """One at a time and of one length: base and kv cannot be told apart, but their sum can."""
    found = fit([served(recorded(A100, [Row(30.0 * n, 50, 200) for n in range(200)]))], A100)
    assert {"kv", "g"} <= kept(found)
    assert found.hardware.step_seconds(1, 1, 150) == pytest.approx(A100.step_seconds(1, 1, 150), rel=0.01)
