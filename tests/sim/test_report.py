import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from driftsched.engines.presets import get_hardware
from driftsched.sim.conditions import coefficients
from driftsched.sim.measures import measure
from driftsched.sim.recording import Recording
from driftsched.sim.report import PLOTS, render_report, write_report
from driftsched.sim.summary import Document, document
from support.recordings import Served, queue_run, recording_of

pytest.importorskip("matplotlib", reason="plots need the extra `report`")


class Page(HTMLParser):
    """What is in a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self._keep(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._keep(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def _keep(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.attributes += [(name, value or "") for name, value in attrs]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def experiment(
    policies: Sequence[str] = ("fifo", "sjf"), seeds: int = 3, **facts: Any
) -> tuple[Document, list[Recording]]:
    recordings = [queue_run(policy, seed=seed, **facts) for policy in policies for seed in range(1, seeds + 1)]
    return document_of(recordings), [recording for recording in recordings if recording.seed == 1]


def document_of(recordings: Sequence[Recording], **scenario: Any) -> Document:
    return document(
        [measure(recording) for recording in recordings],
        scenario={"workload": "queue", "command": "driftsched simulate --seeds 3", **scenario},
        trace_hash="abc",
        commit="c0ffee",
        environment={"cpu": "abacus"},
    )


@pytest.fixture(scope="module")
def text() -> str:
    return render_report(*experiment())


def test_the_page_needs_nothing_from_anywhere(text: str) -> None:
    page = Page(text)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "data", "action")
        if name.endswith("href"):
            assert value.startswith("#")
    links = [address for address in re.findall(r"https?://[^\s\"')]+", text) if "www.w3.org" not in address]
    assert [] == links
    assert "@import" not in text
    assert "<script" not in text


def test_ids_are_unique_and_every_reference_has_its_target(text: str) -> None:
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    targets = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r"href=\"#([^\"]+)\"", text)
    assert targets
    assert set(targets) <= set(page.ids)


def test_every_plot_is_drawn_and_is_well_formed(text: str) -> None:
    for plot in PLOTS:
        assert f"<b>{plot.title}.</b>" in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(PLOTS) == len(drawings)
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_colours_follow_the_readers_theme(text: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--s0)" in drawings
    assert "var(--s1)" in drawings
    assert [] == re.findall(r"#[0-9a-f]{6}\b", drawings)
    assert "prefers-color-scheme: dark" in text
    for name in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert f"{name}:" in text


def test_figures_intervals_differences_and_method_are_told(text: str) -> None:
    said = Page(text).text
    document, _ = experiment()
    row = next(row for row in document.summary if row.policy == "sjf" and row.metric == "e2e_seconds.p50")
    assert f"{row.mean:.2f} ± {row.interval.half_width:.2f}" in said
    assert row.change is not None
    assert f"{100 * row.change.mean:+.0f}%" in said
    for word in ("driftsched simulate --seeds 3", "c0ffee", "abacus", "Student t", "seeds 1-3", "Traces abc"):
        assert word in said


def test_every_coefficient_is_told_with_its_source() -> None:
    _, recordings = experiment(seeds=1)
    listed = coefficients(get_hardware("l4-qwen1.5-1.8b"))
    said = Page(render_report(document_of(recordings, coefficients=listed), [])).text
    assert "floor 13.6 ms extrapolated" in said
    assert "kv 830.0 ns/token extrapolated" in said


def test_the_same_experiment_gives_the_same_bytes(text: str, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", *experiment())
    assert text == (tmp_path / "report.html").read_text(encoding="utf-8")


def test_names_are_shown_as_they_are_and_do_nothing() -> None:
    hostile = ["<script>alert(1)</script>", "$\\frac{1$", "#0000a0", "租户", 'a"b&c']
    served = [
        Served(
            number * 0.1,
            number * 0.1,
            number * 0.1 + 1 + number % 3,
            tenant=hostile[number % 5],
            first_token_at=number,
        )
        for number in range(300)
    ]
    policies = ['<b onmouseover="x">', "$x^$"]
    recordings = [
        replace(recording_of(served, slots=10), policy=policy, seed=seed) for policy in policies for seed in (1, 2)
    ]
    text = render_report(document_of(recordings, workload="</title><script>", name="<i>"), recordings)
    page = Page(text)
    said = page.text
    assert "<script" not in text
    assert "onmouseover" not in {name for name, _ in page.attributes}
    for name in ("$\\frac{1$", "租户", "driftsched: <i>", *policies):
        assert name in said


def test_arms_of_another_mode_or_variant_have_a_section_of_their_own() -> None:
    _, plain = experiment(seeds=1)
    _, paper = experiment(seeds=1, engine_mode="static", variant="paper")
    text = render_report(document_of([*plain, *paper]), [*plain, *paper])
    assert "<h2>plain: continuous batching</h2>" in text
    assert "<h2>paper: static batching</h2>" in text
    assert len(set(Page(text).ids)) == len(Page(text).ids)


def test_a_report_shows_what_there_is() -> None:
    alone = Page(render_report(*experiment(["fifo"], seeds=1, requests=12))).text
    assert "Differences to the baseline" not in alone
    assert "Queue depth." in alone
    without_requests = Page(render_report(experiment()[0], [])).text
    assert "Queue depth." not in without_requests
    assert "Differences to the baseline." in without_requests
    assert "Method" in Page(render_report(document_of([]), [])).text
    nothing_done = recording_of([Served(1.0, outcome="rejected", predicted_tokens=float("nan"))])
    assert "1 rejected" in Page(render_report(document_of([nothing_done]), [nothing_done])).text


def test_without_matplotlib_the_reader_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from driftsched.core.errors import ConfigError\n"
        "from driftsched.sim.report import render_report\n"
        "try: render_report(None, [])\n"
        "except ConfigError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report.html needs matplotlib: pip install 'driftsched[report]'\n" == answer.stdout
