"""The page of an evaluation."""

import re
from xml.etree import ElementTree

import pytest

from driftsched import evaluating
from driftsched.evaluation.drift import Drift
from driftsched.evaluation.page import PLOTS, render
from driftsched.evaluation.rows import Row


@pytest.fixture(scope="module")
def page() -> str:
    pytest.importorskip("matplotlib")
    rows = [Row(10 + 7 * (number % 13), model="$a$<b>") for number in range(100)]
    document = evaluating.evaluate(
        rows, ["calibrated", "oracle"], warmup=20, drifts=[Drift(0.5, 2.0)], ablation=True, data="<data>.csv"
    )
    return render(document)


def test_the_page_needs_nothing_else(page: str) -> None:
    assert [] == re.findall(r"<script|<link|(?:src|href)=\"(?!#)", page)


def test_there_is_one_plot_of_each_kind_with_ids_of_its_own(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(PLOTS) == len(plots)
    for plot in plots:
        ElementTree.fromstring(plot)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def test_names_of_files_and_models_are_text(page: str) -> None:
    assert "<h1>Estimators on &lt;data&gt;.csv</h1>" in page
    assert "<data>" not in page


def test_the_figures_are_on_it_as_well(page: str) -> None:
    assert "calibrated (frozen)" in page
    assert "Drift 0.5:2; log MAE of what drifted." in page
