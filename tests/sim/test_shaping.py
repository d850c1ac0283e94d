from math import inf

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.shaping import Chooser, assign, cut, repeat, rescale, spread_tiers, zipf_shares
from driftsched.sim.trace import Row, info

ROWS = [Row(number * 0.5, 10 + number, 20 + number) for number in range(1000)]


def lengths(rows: list[Row]) -> list[tuple[float, int, int]]:
    return [(row.at, row.prompt_tokens, row.completion_tokens) for row in rows]


def test_zipf_shares_fall_with_the_rank_and_sum_to_one() -> None:
    shares = list(zipf_shares(4).values())
    assert [1.0, 0.5, 1 / 3, 0.25] == pytest.approx([share / shares[0] for share in shares])
    assert 1.0 == pytest.approx(sum(shares))


def test_an_exponent_of_zero_makes_all_tenants_equal() -> None:
    assert [0.25] * 4 == list(zipf_shares(4, 0.0).values())


@pytest.mark.parametrize(("num_tenants", "exponent"), [(0, 1.0), (3, -1.0), (3, inf)])
def test_impossible_crowds_are_refused(num_tenants: int, exponent: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        zipf_shares(num_tenants, exponent)


def test_tiers_are_spread_in_proportion_over_any_first_tenants() -> None:
    names = [f"t{number}" for number in range(10)]
    tiers = spread_tiers(names, {Tier.PREMIUM: 0.2, Tier.STANDARD: 0.5, Tier.BATCH: 0.3})

    assert [2, 5, 3] == [list(tiers.values()).count(tier) for tier in Tier]
    assert [1, 3, 1] == [list(tiers.values())[:5].count(tier) for tier in Tier]


def test_assigning_tenants_leaves_arrivals_and_lengths() -> None:
    assert lengths(ROWS) == lengths(assign(ROWS, tenants=5, seed=3))


def test_assigned_tenants_have_about_their_shares() -> None:
    counts = info(assign(ROWS, tenants=2, exponent=1.0, seed=3))["tenants"]
    assert 667 == pytest.approx(counts["tenant-0"], abs=60)  # four standard deviations


def test_assigning_follows_the_seed() -> None:
    assert assign(ROWS, tenants=5, seed=3) == assign(ROWS, tenants=5, seed=3)
    assert assign(ROWS, tenants=5, seed=3) != assign(ROWS, tenants=5, seed=4)


def test_assigning_only_tiers_keeps_the_tenants_and_gives_each_one_tier() -> None:
    rows = [Row(0.0, 1, 1, name) for name in "abcabc"]

    tiered = assign(rows, tiers={Tier.PREMIUM: 1, Tier.BATCH: 2})

    assert list("abcabc") == [row.tenant for row in tiered]
    assert 3 == len({(row.tenant, row.tier) for row in tiered})
    assert [2, 0, 4] == [[row.tier for row in tiered].count(tier) for tier in Tier]


def test_tiers_do_not_change_who_asked() -> None:
    plain = assign(ROWS, tenants=5, seed=3)
    tiered = assign(ROWS, tenants=5, tiers={Tier.BATCH: 1}, seed=3)
    assert [row.tenant for row in plain] == [row.tenant for row in tiered]
    assert {Tier.BATCH} == {row.tier for row in tiered}


def test_rescaling_sets_the_rate_and_keeps_the_pattern() -> None:
    rows = [Row(at, 1, 1) for at in (0.0, 1.0, 4.0, 10.0)]

    faster = rescale(rows, 3.0)

    assert 3.0 == pytest.approx(info(faster)["rate"])
    assert [0.0, 0.1, 0.4, 1.0] == [row.at for row in faster]


@pytest.mark.parametrize("rate", [0.0, -1.0, inf, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate: must be a positive number"):
        rescale(ROWS, rate)


def test_a_trace_without_duration_cannot_be_rescaled() -> None:
    with pytest.raises(ConfigError, match="no duration"):
        rescale([Row(1.0, 1, 1), Row(1.0, 1, 1)], 2.0)


def test_repeating_goes_on_at_the_same_rate() -> None:
    rows = repeat([Row(0.0, 1, 1), Row(1.0, 2, 2)], 3)
    assert [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] == [row.at for row in rows]
    assert [1, 2, 1, 2, 1, 2] == [row.prompt_tokens for row in rows]


def test_one_row_cannot_be_repeated() -> None:
    with pytest.raises(ConfigError, match="two rows or more"):
        repeat(ROWS[:1], 2)
    with pytest.raises(ConfigError, match="at least 1"):
        repeat(ROWS, 0)


def test_a_cut_counts_time_from_its_start() -> None:
    rows = cut(ROWS, start=10.0, end=12.0)
    assert [0.0, 0.5, 1.0, 1.5] == [row.at for row in rows]
    assert 30 == rows[0].prompt_tokens
    assert [0.0, 0.5] == [row.at for row in cut(ROWS, start=10.0, max_requests=2)]


def test_an_empty_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request arrives"):
        cut(ROWS, start=1e6)


def test_a_chooser_gives_each_name_a_stretch_of_its_weight() -> None:
    chooser = Chooser({"a": 1.0, "none": 0.0, "b": 3.0})
    assert ["a", "a", "b", "b", "b"] == [chooser.choose(uniform) for uniform in (0.0, 0.24, 0.25, 0.5, 0.9999999)]
