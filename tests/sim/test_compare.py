import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driftsched.core.errors import ConfigError
from driftsched.sim.compare import EXIT_GATE_FAILED, Gate, parse_gate, run_compare
from driftsched.sim.measures import measure
from driftsched.sim.summary import document, write_results
from support.recordings import queue_run

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_experiment(
        name: str, *policies: str, trace: str = "same", seeds: range = range(1, 6), shift: int = 0, **facts: Any
    ) -> Path:
        """`shift`: the traces are those of the seeds that much higher."""
        runs = [
            measure(replace(queue_run(policy, seed=seed + shift, **facts), seed=seed))
            for policy in policies
            for seed in seeds
        ]
        write_results(tmp_path / name, document(runs, scenario={}, trace_hash=trace, commit="", environment={}), [])
        return tmp_path / name

    return write_experiment


def test_an_experiment_compared_with_itself_passes_every_gate(write: Write) -> None:
    a = write("a", "fifo", "sjf")
    text, status = run_compare(a, a / "summary.json", fail_if=["p99_e2e>+0%", "mean_queue<-0.0"])
    assert 0 == status
    assert "same" in text
    assert text.endswith("passed p99_e2e>+0%\npassed mean_queue<-0.0\n")
    assert max(map(len, text.splitlines()[2:])) <= 80


def test_a_gate_fails_on_a_significant_change_beyond_its_limit(write: Write) -> None:
    a, b = write("a", "fifo", "sjf"), write("b", "fifo", "sjf", speed=0.9)
    text, status = run_compare(a, b, fail_if=["p99_e2e>+10%"])
    assert EXIT_GATE_FAILED == status
    assert "FAILED fifo: p99_e2e>+10%: e2e_seconds.p99 changed by +" in text
    assert 0 == run_compare(a, b, fail_if=["p99_e2e>+900%"])[1]
    assert 0 == run_compare(a, b, fail_if=["p99_e2e<-10%"])[1]


def test_a_change_that_may_be_chance_counts_as_none(write: Write) -> None:
    a, b = write("a", "fifo", trace="one"), write("b", "fifo", trace="two", shift=50)
    text, status = run_compare(a, b, fail_if=["p95_e2e>+0.01%", "p95_e2e<-0.01%"], allow_different_traces=True)
    assert re.search(r"E2E P95, s.* [+-]\d+% n\.s\.", text)
    assert 0 == status
    must_improve = run_compare(a, a, fail_if=["p50_e2e>-10%"])
    assert EXIT_GATE_FAILED == must_improve[1]


def test_a_gate_may_bound_the_value_itself_for_one_policy(write: Write) -> None:
    a = write("a", "fifo", "sjf")
    assert EXIT_GATE_FAILED == run_compare(a, a, fail_if=["fifo:p50_e2e>2"])[1]
    assert 0 == run_compare(a, a, fail_if=["sjf:p50_e2e>2"])[1]
    assert EXIT_GATE_FAILED == run_compare(a, a, fail_if=["slot_utilisation<1.01"])[1]


def test_an_absolute_change_is_in_the_unit_of_the_figure(write: Write) -> None:
    a, b = write("a", "fifo", rate=2.0), write("b", "fifo", rate=2.0, speed=0.5)
    text, status = run_compare(a, b, fail_if=["mean_e2e>+0.5"])
    assert EXIT_GATE_FAILED == status
    assert "mean_e2e>+0.5: e2e_seconds.mean changed by +1." in text
    assert 0 == run_compare(a, b, fail_if=["mean_e2e>+3"])[1]


def test_any_rise_from_nothing_is_beyond_every_share_of_it(write: Write) -> None:
    a, b = write("a", "fifo", rate=0.3), write("b", "fifo", rate=0.3, speed=0.02)
    text, status = run_compare(a, b, fail_if=["mean_queue>+999999%"])
    assert EXIT_GATE_FAILED == status
    assert "queue_seconds.mean went from 0 to" in text


def test_different_traces_are_refused_unless_asked_for(write: Write) -> None:
    a, b = write("a", "fifo", trace="one"), write("b", "fifo", trace="two")
    with pytest.raises(ConfigError, match=r"trace 'one', B on 'two'.*--allow-different-traces"):
        run_compare(a, b)
    text, status = run_compare(a, b, allow_different_traces=True)
    assert 0 == status
    assert "Different traces" in text


def test_two_single_arms_are_compared_even_if_they_differ(write: Write) -> None:
    text, _ = run_compare(write("a", "fifo"), write("b", "sjf"))
    assert "E2E P50, s" in text
    with pytest.raises(ConfigError, match=r"A has fifo static continuous plain; sjf .* but B has aging"):
        run_compare(write("c", "fifo", "sjf"), write("d", "aging", "fair"))


def test_runs_without_a_common_seed_are_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"A has seeds \[1, 2\], B has \[3, 4\]"):
        run_compare(write("a", "fifo", seeds=range(1, 3)), write("b", "fifo", seeds=range(3, 5)))


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("p99_e2e>+10%", (None, "e2e_seconds.p99", True, 0.10, "relative")),
        ("p50_queue_seconds > +5%", (None, "queue_seconds.p50", True, 0.05, "relative")),
        ("sjf:mean_ttft<-0.25", ("sjf", "ttft_seconds.mean", False, -0.25, "absolute")),
        ("by_tier.premium.e2e_seconds.p95>30", (None, "by_tier.premium.e2e_seconds.p95", True, 30.0, "value")),
    ],
)
def test_gates_are_read_as_documented(text: str, gate: tuple[str | None, str, bool, float, str]) -> None:
    policy, metric, above, limit, kind = gate
    assert Gate(text, policy, metric, above, limit, kind) == parse_gate(text)


@pytest.mark.parametrize(
    "text", ["", "p99_e2e", "p99_e2e>", "p99_e2e>ten", ">10%", "p99_e2e=+1%", "p99_e2e>+1%%", "a:b:c>1"]
)
def test_a_gate_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write \[POLICY:\]METRIC"):
        parse_gate(text)


def test_a_share_without_a_sign_is_ambiguous() -> None:
    with pytest.raises(ConfigError, match=r"write \+10% or -10%"):
        parse_gate("p99_e2e>10%")


def test_a_gate_on_an_unknown_figure_or_policy_names_those_there_are(write: Write) -> None:
    a = write("a", "fifo")
    with pytest.raises(ConfigError, match=r"no figure 'p99_joy' in both .* e2e_seconds\.p50"):
        run_compare(a, a, fail_if=["p99_joy>+1%"])
    with pytest.raises(ConfigError, match="no policy 'sjf' in both: use one of fifo"):
        run_compare(a, a, fail_if=["sjf:p99_e2e>+1%"])
