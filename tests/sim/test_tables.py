from dataclasses import replace

import pytest

from driftsched.sim.measures import measure
from driftsched.sim.statistics import Interval, t_interval
from driftsched.sim.summary import Document, document
from driftsched.sim.tables import WIDTH, change_text, remarks, render, value_text
from support.recordings import Served, queue_run, recording_of


def document_of(*policies: str, seeds: int = 10, **facts: object) -> Document:
    runs = [
        measure(queue_run(policy, seed=seed, **facts))  # type: ignore[arg-type]
        for policy in policies
        for seed in range(1, seeds + 1)
    ]
    return document(runs, scenario={}, trace_hash="x", commit="", environment={})


@pytest.mark.parametrize("names", [("fifo", "sjf"), ("fifo", "a-policy-with-a-very-long-name-indeed")])
@pytest.mark.parametrize("speed", [1.0, 1e-4])
def test_tables_fit_eighty_columns(names: tuple[str, ...], speed: float) -> None:
    text = render(document_of(*names, speed=speed))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_every_figure_has_its_interval_and_every_difference_its_verdict() -> None:
    lines = render(document_of("fifo", "sjf")).splitlines()
    headline = next(line for line in lines if line.startswith("fifo"))
    assert 4 == headline.count("±")
    at = next(number for number, line in enumerate(lines) if line.startswith("against fifo"))
    assert lines[at].split()[2:] == ["E2E", "P50", "E2E", "P95", "E2E", "P99", "queue", "mean"]
    assert lines[at + 1].startswith("sjf")
    assert ".." in lines[at + 1]


def test_a_single_policy_is_compared_with_nothing() -> None:
    assert "against" not in render(document_of("fifo"))


def test_variants_and_engine_modes_have_tables_of_their_own() -> None:
    plain, other = document_of("fifo"), document_of("fifo", engine_mode="static", variant="paper")
    both = document([*plain.runs, *other.runs], scenario={}, trace_hash="x")
    text = render(both)
    assert "plain, continuous batching: mean over 10 seeds" in text
    assert "paper, static batching: mean over 10 seeds" in text
    assert "against" not in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([4.0, 5.0, 5.0], "4.67 ± 1.43"),
        ([0.5], "0.500"),
        ([630.0, 632.0], "631 ± 13"),
        ([31.0, 31.5], "31.2 ± 3.2"),
        ([250_000.0, 251_000.0], "250k ± 6k"),
        ([45_800.0, 45_900.0], "45.9k ± 0.6k"),
    ],
)
def test_a_value_has_three_digits_and_its_interval_as_many(values: list[float], text: str) -> None:
    assert text == value_text(t_interval(values))


def test_a_change_that_may_be_nothing_is_not_significant() -> None:
    assert "-48% -52..-44" == change_text(Interval(-0.48, -0.52, -0.44, 10), "lower")
    assert "x2.3 2.2..2.4" == change_text(Interval(1.34, 1.25, 1.43, 10), "higher")
    assert "-48% n.s." == change_text(Interval(-0.48, -1.2, 0.24, 3), "n.s.")
    assert "-48% (n=1)" == change_text(Interval(-0.48, None, None, 1), "n.s.")
    assert "x13" == change_text(Interval(12.0, 11.0, 13.0, 3), "higher")
    assert "+0% n.s." == change_text(Interval(-0.002, -0.005, 0.001, 3), "n.s.")
    assert "-0.3%" == change_text(Interval(-0.003, -0.005, -0.001, 3), "lower")
    assert "same" == change_text(Interval(0.0, 0.0, 0.0, 3), "n.s.")
    assert "-" == change_text(None, None)
    assert "-" == value_text(None)


def test_whoever_reads_is_told_what_the_figures_do_not_carry() -> None:
    said = " ".join(remarks(document_of("fifo", seeds=2, requests=100, rate=60.0)))
    assert "OVERLOADED: all 2 runs: times measure" in said
    assert "P99 needs 200" in said
    assert "Fewer than 5 seeds" in said
    assert [] == remarks(document_of("fifo", rate=2.0))


def test_requests_that_were_not_served_are_told() -> None:
    served = [Served(float(n), float(n), n + 0.5) for n in range(300)]
    lost = [
        Served(300.0, outcome="rejected"),
        Served(300.0, outcome="rejected"),
        Served(300.0, outcome="unfinished"),
    ]
    runs = [measure(recording_of([*served, *lost], seed=seed)) for seed in range(5)]
    said = remarks(document(runs, scenario={}, trace_hash="x", complete=False))
    assert [
        "fifo: 10 rejected: times are those of finished requests only.",
        "fifo: 5 requests never ended: these runs were cut off.",
        "Interrupted: only the runs that were done are shown.",
    ] == said


def test_an_experiment_without_runs_has_no_tables_and_no_errors() -> None:
    assert render(document([], scenario={}, trace_hash="x")).startswith("! Fewer than 5 seeds")


def test_what_came_after_a_change_has_tables_of_its_own_with_the_first_estimator_of_each_policy_compared() -> None:
    runs = [
        measure(replace(made, estimator=estimator, phase=["after" if p == "stress" else p for p in made.phase]))
        for seed in range(1, 11)
        for policy in ("fifo", "sjf")
        for estimator in ("static", "oracle")
        for made in [queue_run(policy, seed=seed)]
    ]
    lines = render(document(runs, scenario={}, trace_hash="x", commit="", environment={})).splitlines()
    at = lines.index(next(line for line in lines if line.startswith("s, phase after")))
    assert [["fifo", "static"], ["fifo", "oracle"], ["sjf", "static"], ["sjf", "oracle"]] == [
        line.split()[:2] for line in lines[at + 1 : at + 5]
    ]
    assert lines[at + 6].startswith("against the first")
    assert [["fifo", "oracle", *["same"] * 4], ["sjf", "oracle", *["same"] * 4]] == [
        line.split() for line in lines[at + 7 : at + 9]
    ]


def test_without_a_change_there_is_no_such_table() -> None:
    assert "phase after" not in render(document_of("fifo"))
