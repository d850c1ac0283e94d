"""What docs/policies/index.md says of the policies beside one another."""

import re
from pathlib import Path

import pytest

from driftsched.core.model import Tier
from driftsched.policies import POLICIES as REGISTERED
from policies.comparison import POLICIES, Waits, main, waits_under

INDEX = Path(__file__).parents[2] / "docs" / "policies" / "index.md"


@pytest.fixture(scope="module")
def waits() -> dict[str, Waits]:
    return {policy: waits_under(policy) for policy in POLICIES}


def test_every_policy_is_compared() -> None:
    assert REGISTERED.names() == sorted(POLICIES)


def test_sjf_gittins_and_boost_have_the_lowest_medians_and_boost_and_sjf_the_longest_tails(
    waits: dict[str, Waits],
) -> None:
    by_median = sorted(POLICIES, key=lambda policy: waits[policy].median)
    by_tail = sorted(POLICIES, key=lambda policy: waits[policy].p99)
    assert {"sjf", "gittins", "boost"} == set(by_median[:3])
    assert ["sjf", "boost"] == by_tail[-2:]


def test_slack_has_nearly_the_tail_of_fifo_with_half_its_median(waits: dict[str, Waits]) -> None:
    assert waits["slack"].median < 0.6 * waits["fifo"].median
    assert waits["slack"].p99 < 1.03 * waits["fifo"].p99


def test_fifo_has_the_lightest_tail_and_treats_all_alike(waits: dict[str, Waits]) -> None:
    assert "fifo" == min(POLICIES, key=lambda policy: waits[policy].p99)
    means = [waits["fifo"].mean_of(tier) for tier in Tier]
    assert pytest.approx(min(means), rel=0.1) == max(means)


def test_fair_has_a_lower_median_than_fifo_and_a_lighter_tail_than_sjf_priority_and_aging(
    waits: dict[str, Waits],
) -> None:
    assert waits["fair"].median < 0.7 * waits["fifo"].median
    assert waits["fair"].p99 < 0.95 * min(waits[policy].p99 for policy in ("sjf", "priority", "aging"))


def test_priority_and_aging_let_premium_pass(waits: dict[str, Waits]) -> None:
    for policy in ("priority", "aging"):
        assert waits[policy].mean_of(Tier.PREMIUM) < 2
        assert waits[policy].mean_of(Tier.STANDARD) < waits[policy].mean_of(Tier.BATCH)


def test_the_table_in_the_documentation_is_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Within 2 %, or a second: logarithms and exponentials differ by a bit between platforms."""
    main()

    def figures(text: str) -> dict[str, list[float]]:
        rows = re.findall(r"^\| `(\w+)` \|((?: \d+ \|){7})$", text, flags=re.MULTILINE)
        return {policy: [float(figure) for figure in row.split("|") if figure.strip()] for policy, row in rows}

    computed = figures(capsys.readouterr().out)
    assert set(POLICIES) == set(computed)
    documented = figures(INDEX.read_text())
    for policy in POLICIES:
        assert pytest.approx(computed[policy], rel=0.02, abs=1.0) == documented[policy]
