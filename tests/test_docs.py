"""Documentation that would go out of date unnoticed."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driftsched.core.registry import Registry
from driftsched.estimators import CLASSIFIERS, ESTIMATORS
from driftsched.policies import POLICIES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
REGISTRIES: dict[str, Registry[Any]] = {"policies": POLICIES, "estimators": ESTIMATORS}
PARTS = [(folder, name) for folder, registry in REGISTRIES.items() for name in registry.names()]


def options_of(folder: str, name: str) -> Iterator[tuple[str, object]]:
    """Each keyword of the constructor, with its default."""
    for option, parameter in inspect.signature(type(REGISTRIES[folder].create(name))).parameters.items():
        yield option, parameter.default


@pytest.mark.parametrize(("folder", "name"), PARTS)
def test_every_policy_and_estimator_has_a_page_that_names_its_options_and_their_defaults(
    folder: str, name: str
) -> None:
    page = (ROOT / "docs" / folder / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for option, default in options_of(folder, name):
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert re.search(rf"^\| `{option}` \| {re.escape(shown)} \|", page, flags=re.MULTILINE), option


@pytest.mark.parametrize(("folder", "name"), PARTS)
def test_every_policy_and_estimator_is_in_its_index_and_in_the_changelog(folder: str, name: str) -> None:
    assert f"[`{name}`]({name}.md)" in (ROOT / "docs" / folder / "index.md").read_text()
    assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("folder", ["policies", "estimators"])
def test_there_is_no_page_of_a_policy_or_estimator_that_does_not_exist(folder: str) -> None:
    pages = {path.stem for path in (ROOT / "docs" / folder).glob("*.md")} - {"index"}
    assert set(REGISTRIES[folder].names()) == pages


@pytest.mark.parametrize("name", CLASSIFIERS.names())
def test_every_classifier_and_its_options_are_documented_and_in_the_changelog(name: str) -> None:
    page = (ROOT / "docs" / "classification.md").read_text()
    assert f"\n## {name}\n" in page
    for option in inspect.signature(type(CLASSIFIERS.create(name))).parameters:
        assert f"\n| `{option}` |" in page
    assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", ["benchmarks/README.md", "CONTRIBUTING.md"])
def test_every_benchmark_is_listed(page: str) -> None:
    text = (ROOT / page).read_text()
    assert [] == [script.name for script in (ROOT / "benchmarks").glob("*.py") if f"{script.name}`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)\s#]*)(#[^)\s]*)?\)", page.read_text())
    broken = []
    for target, anchor in targets:
        path = page.parent / target if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor[1:] not in anchors_of(path)):
            broken.append(target + anchor)
    assert [] == broken


def anchors_of(page: Path) -> set[str]:
    """The names by which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
