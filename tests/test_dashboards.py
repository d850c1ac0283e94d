"""The dashboard and the alert rules in examples/ name metrics that exist, with labels that these have.

What exists is taken from docs/metrics.md, which tests/telemetry/test_prometheus.py holds against the registry.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.promql import names_in

ROOT = Path(__file__).parent.parent
DASHBOARD = json.loads((ROOT / "examples" / "grafana" / "driftsched.json").read_text())
ALERTS = yaml.safe_load((ROOT / "examples" / "prometheus" / "alerts.yaml").read_text())
OF_SCRAPING = {"job", "instance", "pool"}
"""Labels that every series may have: those of Prometheus, and that of several pools."""
ROW = re.compile(r"^\| `(driftsched_\w+)` \| (\w+) \|[^|]*\|([^|]*)\|", re.MULTILINE)


def exported() -> dict[str, set[str]]:
    """Labels by name of each series, as Prometheus stores it."""
    series: dict[str, set[str]] = {}
    for name, kind, labels in ROW.findall((ROOT / "docs" / "metrics.md").read_text()):
        own = set(re.findall(r"`(\w+)`", labels)) | OF_SCRAPING
        if kind in ("histogram", "summary"):
            series |= {f"{name}_sum": own, f"{name}_count": own}
        if kind == "histogram":
            series[f"{name}_bucket"] = own | {"le"}
        if kind not in ("histogram", "summary"):
            series[name] = own
    return series


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and what it says."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]


def labels_of(metrics: Iterable[str]) -> set[str]:
    """Labels that any of them has."""
    known = exported()
    return set().union(*(known.get(metric, set()) for metric in metrics))


def problems(expression: str) -> list[str]:
    known, named = exported(), names_in(expression)
    found = [f"no metric {metric}" for metric in named.metrics if metric not in known]
    for metric, labels in named.metrics.items():
        found += [f"{metric} has no {label}" for label in labels - known.get(metric, labels)]
    return found + [f"nothing has {label}" for label in named.grouped - labels_of(named.metrics)]


@pytest.mark.parametrize(
    ("where", "expression"), list(expressions()), ids=lambda said: said if len(said) < 60 else ""
)
def test_every_metric_and_label_that_is_asked_for_exists(where: str, expression: str) -> None:
    assert [] == problems(expression), where
    assert names_in(expression).metrics


@pytest.mark.parametrize(
    "wrong",
    [
        "driftsched_waiting_request",
        'rate(driftsched_requests_finished_total{teir="batch"}[5m])',
        "sum by (tenant) (rate(driftsched_requests_finished_total[5m]))",
        "driftsched_queue_seconds",
        "histogram_quantile(0.9, sum by (le) (rate(driftsched_tenant_queue_seconds_bucket[5m])))",
    ],
)
def test_what_does_not_exist_is_noticed(wrong: str) -> None:
    assert problems(wrong)


@pytest.mark.parametrize("wrong", ["sum(up", "raet(up[5m])", "sum by (a) up)", "up ; up", '{a="b}'])
def test_what_cannot_be_read_is_noticed(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        names_in(wrong)


def test_an_expression_names_its_metrics_and_labels() -> None:
    named = names_in('sum by (a, b) (rate(x{c="d", e=~"$f"}[$__rate_interval])) / on (g) group_left (h) y > 0.5')
    assert {"x": {"c", "e"}, "y": set()} == named.metrics
    assert {"a", "b", "g", "h"} == named.grouped


def labels_told(text: str) -> set[str]:
    return set(re.findall(r"\$labels\.(\w+)", text))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_it_means_in_labels_that_it_has(rule: dict[str, Any]) -> None:
    named = names_in(rule["expr"])
    left = (
        named.grouped if "by (" in rule["expr"] else set().union(*(exported()[metric] for metric in named.metrics))
    )
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert labels_told(rule["annotations"]["summary"]) <= left


def test_no_two_alerts_and_no_two_panels_have_one_name_or_number() -> None:
    for names in ([rule["alert"] for rule in RULES], [panel["id"] for panel in DASHBOARD["panels"]]):
        assert len(names) == len(set(names))


def test_panels_lie_inside_the_page_and_not_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_legend_names_labels_that_its_series_have() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = names_in(target["expr"])
            left = named.grouped or labels_of(named.metrics)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, panel["title"]


@pytest.mark.parametrize("topic", ["shadow_", "policy_changes", "engine_limit", "tenant_", "journal_", "drift"])
def test_the_dashboard_shows_each_part_of_the_gateway(topic: str) -> None:
    shown = {
        metric for panel in PANELS for target in panel["targets"] for metric in names_in(target["expr"]).metrics
    }
    assert [metric for metric in shown if metric.startswith(f"driftsched_{topic}") or topic in metric]
