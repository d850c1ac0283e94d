from statistics import mean, stdev

import pytest

from driftsched.core.errors import ConfigError
from driftsched.engines.lengths import LENGTH_PROFILES, Drift, LengthLaw, get_length_profile, parse_drift

MEANS = {"short_qa": 100.0, "report": 1000.0}


def test_lengths_have_the_mean_and_spread_asked_for() -> None:
    law = LengthLaw(MEANS, cv=0.5, seed=1)

    lengths = [law.draw("report", 0.0)[0] for _ in range(20_000)]

    assert pytest.approx(1000, rel=0.02) == mean(lengths)
    assert pytest.approx(500, rel=0.05) == stdev(lengths)


def test_without_spread_every_answer_has_the_mean_length() -> None:
    assert (100, "stop") == LengthLaw(MEANS, cv=0).draw("short_qa", 0.0)


def test_an_answer_is_never_empty() -> None:
    assert (1, "stop") == LengthLaw({"short_qa": 0.01}, cv=0).draw("short_qa", 0.0)


def test_a_longer_answer_is_cut_off_at_the_limit_and_says_so() -> None:
    law = LengthLaw(MEANS, cv=0)

    assert (99, "length") == law.draw("short_qa", 0.0, 99)
    assert (100, "stop") == law.draw("short_qa", 0.0, 100)


def test_ignoring_the_end_gives_exactly_the_limit() -> None:
    assert (5000, "length") == LengthLaw(MEANS, cv=0).draw("short_qa", 0.0, 5000, ignore_eos=True)


def test_ignoring_the_end_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="ignore_eos needs max_tokens"):
        LengthLaw(MEANS, cv=0).draw("short_qa", 0.0, ignore_eos=True)


def test_a_draw_with_a_key_does_not_depend_on_the_others() -> None:
    first, second = (LengthLaw(MEANS, cv=0.5, seed=1) for _ in range(2))
    second.draw("report", 0.0)
    second.draw("report", 0.0, key="other")

    assert first.draw("report", 0.0, key="a") == second.draw("report", 0.0, key="a")


def test_different_keys_and_seeds_give_different_lengths() -> None:
    draws = [
        LengthLaw(MEANS, cv=0.5, seed=seed).draw("report", 0.0, key=key)[0]
        for seed, key in ((1, "a"), (1, "b"), (2, "a"))
    ]

    assert 3 == len(set(draws))


def test_the_same_seed_gives_the_same_stream() -> None:
    first, second = (LengthLaw(MEANS, cv=0.5, seed=1) for _ in range(2))

    assert [first.draw("report", 0.0) for _ in range(5)] == [second.draw("report", 0.0) for _ in range(5)]


def test_drifts_in_force_multiply() -> None:
    law = LengthLaw(MEANS, cv=0, drifts=[Drift(10, 2.0), Drift(20, 1.5, "short_qa")])

    at = (0.0, 9.9, 10.0, 20.0)
    assert [100, 100, 200, 300] == [law.draw("short_qa", instant)[0] for instant in at]
    assert [1000, 1000, 2000, 2000] == [law.draw("report", instant)[0] for instant in at]


def test_a_category_without_a_mean_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'poem': there are short_qa, report"):
        LengthLaw(MEANS, cv=0).draw("poem", 0.0)
    with pytest.raises(ValueError, match="'poem': there are short_qa, report"):
        LengthLaw(MEANS, cv=0, drifts=[Drift(0, 2.0, "poem")])


@pytest.mark.parametrize(("means", "cv", "named"), [({"a": 0.0}, 0.1, "'a'"), ({"a": 1.0}, -0.1, "cv")])
def test_a_mean_or_spread_out_of_range_is_refused_by_name(means: dict[str, float], cv: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LengthLaw(means, cv)


def test_a_drift_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="factor of a drift must be positive"):
        LengthLaw(MEANS, cv=0, drifts=[Drift(0, 0.0)])


@pytest.mark.parametrize("name", LENGTH_PROFILES)
def test_every_profile_knows_the_four_categories(name: str) -> None:
    assert {"short_qa", "summary", "technical", "report"} == set(get_length_profile(name).means)


def test_the_papers_profile_is_81_percent_of_its_limits() -> None:
    profile = get_length_profile("paper")
    law = LengthLaw(profile.means, cv=0)

    lengths = [law.draw(category, 0.0)[0] for category in ("short_qa", "summary", "technical", "report")]
    assert [52, 207, 311, 415] == lengths


def test_an_unknown_profile_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown length profile 'poem': use one of paper, chat, demo"):
        get_length_profile("poem")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at=30s,factor=1.6", Drift(30.0, 1.6)),
        ("factor=0.5, at=2m, category=summary", Drift(120.0, 0.5, "summary")),
        ("at=500ms,factor=2", Drift(0.5, 2.0)),
        ("at=1h,factor=2", Drift(3600.0, 2.0)),
        ("at=12,factor=2", Drift(12.0, 2.0)),
    ],
)
def test_a_drift_is_read_from_text(text: str, expected: Drift) -> None:
    assert expected == parse_drift(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("at=30s", "factor is missing"),
        ("factor=2", "at is missing"),
        ("at=30s,factor=2,tenant=acme", "unknown key 'tenant'"),
        ("", "unknown key ''"),
        ("at=soon,factor=2", "at must be a time like 30s, 500ms, 2m or 1h, not 'soon'"),
        ("at=-1s,factor=2", "at must be"),
        ("at=inf,factor=2", "at must be"),
        ("at=1s,factor=0", "factor must be a number above 0, not '0'"),
        ("at=1s,factor=nan", "factor must be"),
        ("at=1s,factor=", "factor has no value"),
        ("at=1s,at=2s,factor=2", "at is given twice"),
    ],
)
def test_a_drift_that_makes_no_sense_is_refused_with_the_key(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_drift(text)
