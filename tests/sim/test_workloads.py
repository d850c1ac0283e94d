"""Generators against their formulas, and one change at a time."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import cos, log, pi, sqrt
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.engines.lengths import LENGTH_PROFILES
from driftsched.estimators.categories import BASE_TOKENS, CATEGORIES, KeywordClassifier
from driftsched.sim.prompts import TOPICS, WORDINGS
from driftsched.sim.scenario import Arrivals, Category, Crowd, Length, Phase, Scenario, TenantLaw
from driftsched.sim.trace import Row, segments, trace_hash
from driftsched.sim.workloads import (
    CHAT,
    PAPER_MAX_TOKENS,
    PAPER_STRESS_MIX,
    WORKLOADS,
    PaperAnswers,
    answer_words,
    diurnal,
    drift,
    flood,
    gamma,
    generate,
    make_scenario,
    mix_shift,
    model_swap,
    paper,
    poisson,
    verbosity_shift,
)
from driftsched.sim.writers import write_trace


def gaps(rows: list[Row]) -> list[float]:
    return [after.at - before.at for before, after in pairwise(rows)]


def steady(arrivals: Arrivals, requests: int = 20_000) -> Scenario:
    return Scenario([Phase("steady", arrivals, requests)], categories=CHAT)


def bodies(rows: list[Row]) -> list[tuple[int, int, str]]:
    return [(row.prompt_tokens, row.completion_tokens, row.category) for row in rows]


# Arrivals. Bounds are four standard errors, or nearly: s / (mean sqrt(n)) of a mean, and about
# cv sqrt(1/2 + cv^2) / sqrt(n) of a coefficient of variation.


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_mean_and_the_burstiness_asked_for(cv: float) -> None:
    found = gaps(generate(steady(Arrivals(rate=5.0, cv=cv)), seed=1))
    num = len(found)
    assert 0.2 == pytest.approx(fmean(found), rel=4 * cv / sqrt(num))
    assert cv == pytest.approx(pstdev(found) / fmean(found), rel=6 * sqrt(0.5 + cv * cv) / sqrt(num))


def test_a_poisson_process_has_as_much_variance_as_mean_in_any_window() -> None:
    rows = generate(steady(Arrivals(rate=5.0)), seed=2)
    counts = Counter(int(row.at // 4) for row in rows)
    windows = [counts[window] for window in range(int(rows[-1].at // 4))]
    assert 20 == pytest.approx(fmean(windows), rel=0.03)
    assert 20 == pytest.approx(pstdev(windows) ** 2, rel=0.18)


def test_uniform_gaps_stay_in_their_bounds() -> None:
    found = gaps(generate(steady(Arrivals(rate=10.0, spread=0.5)), seed=1))
    assert 0.05 == pytest.approx(min(found), abs=1e-4)
    assert 0.15 == pytest.approx(max(found), abs=1e-4)
    assert 0.1 == pytest.approx(fmean(found), rel=0.01)


def test_a_swinging_rate_integrates_to_the_arrivals_of_every_part_of_its_period() -> None:
    rate, amplitude, period = 50.0, 0.8, 100.0
    arrivals = Arrivals(rate=rate, amplitude=amplitude, period_seconds=period)
    rows = generate(Scenario([Phase("p", arrivals, seconds=1000.0)], categories=CHAT), seed=3)

    def expected(at: float) -> float:
        return rate * (at + amplitude * period / (2 * pi) * (1 - cos(2 * pi * at / period)))

    for part in range(10):
        start, end = part * 10.0, part * 10.0 + 10.0
        count = sum(start <= row.at % period < end for row in rows)
        mean = 10 * (expected(end) - expected(start))
        assert mean == pytest.approx(count, abs=4 * sqrt(mean))


def test_a_swing_of_nothing_changes_nothing() -> None:
    swinging = Arrivals(rate=5.0, amplitude=1e-12, period_seconds=60.0)
    still = generate(steady(Arrivals(rate=5.0), 500), seed=1)
    assert [row.at for row in still] == pytest.approx([row.at for row in generate(steady(swinging, 500), seed=1)])


def test_bursts_may_swing_too() -> None:
    rows = generate(steady(Arrivals(rate=5.0, cv=4.0, amplitude=0.9, period_seconds=7.0), 2000), seed=1)
    assert all(gap >= 0 for gap in gaps(rows))
    assert 2000 == len(rows)


def test_a_load_is_a_rate_once_the_capacity_is_known() -> None:
    by_load = generate(steady(Arrivals(rho=0.8), 100), seed=1, capacity=5.0)
    assert generate(steady(Arrivals(rate=4.0), 100), seed=1) == by_load


@pytest.mark.parametrize("capacity", [None, 0.0, -1.0, float("inf"), float("nan")])
def test_a_load_without_capacity_is_refused(capacity: float | None) -> None:
    with pytest.raises(ConfigError, match="rho: needs the capacity of the pool"):
        generate(steady(Arrivals(rho=0.8)), seed=1, capacity=capacity)


def test_a_phase_of_seconds_ends_in_time() -> None:
    scenario = Scenario(
        [
            Phase("one", Arrivals(rate=100.0), seconds=2.0),
            Phase("two", Arrivals(rate=100.0), seconds=3.0, pause_seconds=5.0),
        ],
        categories=CHAT,
    )
    rows = generate(scenario, seed=1)
    assert all(0 <= row.at < 2 for row in rows if row.phase == "one")
    assert all(7 <= row.at < 10 for row in rows if row.phase == "two")
    assert not any(row.after_drain for row in rows)


def test_nobody_is_an_error() -> None:
    scenario = Scenario([Phase("one", Arrivals(rate=1e-6), seconds=1.0)], categories=CHAT)
    with pytest.raises(ConfigError, match="nobody arrives"):
        generate(scenario, seed=1)


# Lengths, categories, tenants


def test_lengths_are_lognormal_with_the_mean_and_spread_asked_for() -> None:
    law = Category(Length(500.0, 1.0), Length(300.0, 0.5))
    rows = generate(Scenario([Phase("p", Arrivals(rate=1.0), 40_000)], categories={"only": law}), seed=1)
    prompts, completions = [row.prompt_tokens for row in rows], [row.completion_tokens for row in rows]

    assert 500 == pytest.approx(fmean(prompts), rel=0.02)
    assert 1.0 == pytest.approx(pstdev(prompts) / fmean(prompts), rel=0.05)
    assert 300 == pytest.approx(fmean(completions), rel=0.01)
    assert 0.5 == pytest.approx(pstdev(completions) / fmean(completions), rel=0.03)
    assert log(300) - log(1.25) / 2 == pytest.approx(fmean(map(log, completions)), abs=0.01)


def test_max_tokens_cuts_answers_off() -> None:
    law = Category(Length(50.0), Length(300.0, 0.5), max_tokens=300)
    rows = generate(Scenario([Phase("p", Arrivals(rate=1.0), 5000)], categories={"only": law}), seed=1)
    assert 300 == max(row.completion_tokens for row in rows)
    assert {row.completion_tokens == 300 for row in rows if row.finish_reason == "length"} == {True}
    assert 0.40 == pytest.approx(fmean(row.finish_reason == "length" for row in rows), abs=0.03)


@pytest.mark.parametrize("cap_share", [0.0, 0.3, 1.0])
def test_a_share_of_the_answers_runs_into_the_limit_and_the_rest_keeps_its_law(cap_share: float) -> None:
    law = Category(Length(50.0), Length(100.0, 0.3), max_tokens=1000, cap_share=cap_share)
    rows = generate(Scenario([Phase("p", Arrivals(rate=1.0), 10_000)], categories={"only": law}), seed=1)
    free = [row.completion_tokens for row in rows if row.finish_reason == "stop"]

    assert cap_share == pytest.approx(1 - len(free) / len(rows), abs=0.02)
    if free:
        assert 100 == pytest.approx(fmean(free), rel=0.02)
        assert 0.3 == pytest.approx(pstdev(free) / fmean(free), rel=0.05)


def test_categories_and_tenants_come_by_their_weights_and_independently() -> None:
    rows = generate(replace(poisson(rate=1.0, requests=20_000), crowd=Crowd(2, 1.0)), seed=1)
    categories = Counter(row.category for row in rows)
    pairs = Counter((row.category, row.tenant) for row in rows)
    for category, law in CHAT.items():
        assert law.weight / 100 == pytest.approx(categories[category] / len(rows), abs=0.015)
        for tenant, share in (("tenant-0", 2 / 3), ("tenant-1", 1 / 3)):
            assert share == pytest.approx(pairs[category, tenant] / categories[category], abs=0.045)


def test_a_tenant_has_one_tier() -> None:
    rows = generate(poisson(rate=1.0, requests=2000), seed=1)
    assert 8 == len({(row.tenant, row.tier) for row in rows})
    assert set(Tier) == {row.tier for row in rows}


def test_lengths_can_be_drawn_again_from_a_trace(tmp_path: Path) -> None:
    source = [Row(float(at), 100 + at, 200 + at, category="report", max_tokens=250 + at) for at in range(50)]
    write_trace(source, tmp_path / "source.jsonl")
    scenario = Scenario(
        [Phase("p", Arrivals(rate=1.0), 5000, length_factors={"report": 0.5})],
        lengths_from=str(tmp_path / "source.jsonl"),
    )

    rows = generate(scenario, seed=1)

    known = {(100 + at, round((200 + at) / 2), "report") for at in range(50)}
    assert known == set(bodies(rows))
    assert 124.5 == pytest.approx(fmean(row.prompt_tokens for row in rows), abs=0.8)
    longer = generate(replace(scenario, phases=[replace(scenario.phases[0], length_factors={"report": 9})]), seed=1)
    assert all(row.max_tokens == row.completion_tokens for row in longer)


# One stream per purpose


SCENARIO = poisson(rate=5.0, requests=500)
PHASE = SCENARIO.phases[0]


def test_the_same_seed_gives_the_same_trace() -> None:
    for name, made in WORKLOADS.items():
        scenario = made()
        one, two = (generate(scenario, seed=7, capacity=4.0) for _ in range(2))
        assert one == two, name
        assert one != generate(scenario, seed=8, capacity=4.0), name


def test_generated_traces_never_change() -> None:
    golden = {
        "paper": "3bc4c8715733",
        "poisson": "772e2e883e1f",
        "gamma": "c7e6e76dd676",
        "diurnal": "99ccd5f1759b",
        "flood": "ee2886752526",
        "drift": "b34ca2d82977",
        "verbosity-shift": "5645e0b276c6",
        "mix-shift": "6afaf1654df4",
        "model-swap": "219a3ce08cb2",
    }
    assert golden == {
        name: trace_hash(generate(made(requests=300), seed=1, capacity=4.0))[:12]
        for name, made in WORKLOADS.items()
    }


def test_other_tenants_have_the_same_arrivals_and_lengths() -> None:
    rows, others = (
        generate(scenario, seed=1) for scenario in (SCENARIO, replace(SCENARIO, tenants={"one": TenantLaw()}))
    )
    assert [row.at for row in rows] == [row.at for row in others]
    assert bodies(rows) == bodies(others)


def test_another_rate_brings_the_same_requests_at_other_times() -> None:
    faster = replace(SCENARIO, phases=[replace(PHASE, arrivals=Arrivals(rate=50.0))])
    rows, others = generate(SCENARIO, seed=1), generate(faster, seed=1)
    assert [row.at / 10 for row in rows] == pytest.approx([row.at for row in others], abs=1e-6)
    assert bodies(rows) == bodies(others)
    assert [row.tenant for row in rows] == [row.tenant for row in others]


def test_another_kind_of_arrivals_brings_the_same_requests() -> None:
    bursty = replace(SCENARIO, phases=[replace(PHASE, arrivals=Arrivals(rate=5.0, cv=3.0))])
    assert bodies(generate(SCENARIO, seed=1)) == bodies(generate(bursty, seed=1))


def test_another_mix_keeps_arrivals_tenants_and_prompts_of_who_stays_in_its_category() -> None:
    mixed = replace(SCENARIO, phases=[replace(PHASE, weights={"short_qa": 60.0, "summary": 40.0})])
    rows, others = generate(SCENARIO, seed=1), generate(mixed, seed=1)
    assert [(row.at, row.tenant) for row in rows] == [(row.at, row.tenant) for row in others]
    same = [(one, two) for one, two in zip(rows, others, strict=True) if one.category == two.category == "short_qa"]
    assert len(same) > 100
    assert bodies([one for one, _ in same]) == bodies([two for _, two in same])


def test_longer_requests_keep_everything_else() -> None:
    longer = replace(SCENARIO, phases=[replace(PHASE, requests=800)])
    assert generate(SCENARIO, seed=1) == generate(longer, seed=1)[:500]


def test_wording_changes_no_answer() -> None:
    worded = replace(SCENARIO, prompts="plain")
    rows, others = generate(SCENARIO, seed=1), generate(worded, seed=1)
    assert [row.completion_tokens for row in rows] == [row.completion_tokens for row in others]
    assert all(row.prompt for row in others)


def test_a_phase_does_not_depend_on_the_one_before() -> None:
    two = Scenario([Phase("first", Arrivals(rate=9.0), 77), PHASE], categories=CHAT)
    assert bodies(generate(SCENARIO, seed=1)) == bodies(generate(two, seed=1)[77:])


# Ready-made scenarios


@pytest.mark.parametrize("make", [poisson, gamma, diurnal, verbosity_shift, mix_shift, model_swap])
def test_ready_made_scenarios_have_the_requests_and_the_rate_asked_for(make: Callable[..., Scenario]) -> None:
    rows = generate(make(rate=5.0, requests=3000), seed=1)  # 600 s, which is one day of `diurnal`
    assert 3000 == len(rows)
    assert 600 == pytest.approx(rows[-1].at, rel=0.15)


def test_a_flood_comes_on_top_of_what_would_have_come_anyway() -> None:
    calm = generate(flood(rate=5.0, factor=1.0, requests=3000), seed=1)
    flooded = generate(flood(rate=5.0, factor=10.0, requests=3000), seed=1)

    assert not Counter(calm) - Counter(flooded)
    extra = list((Counter(flooded) - Counter(calm)).elements())
    assert {("tenant-0", "flood")} == {(row.tenant, row.phase) for row in extra}
    assert 9 * 1000 / 8 == pytest.approx(len(extra), rel=0.12)
    assert flooded == sorted(flooded, key=lambda row: row.at)


def test_a_bigger_flood_leaves_the_others_alone() -> None:
    small, large = (generate(flood(rate=5.0, factor=factor), seed=1) for factor in (2.0, 20.0))
    assert [row for row in small if row.tenant != "tenant-0"] == [row for row in large if row.tenant != "tenant-0"]


def test_a_drift_comes_with_a_surge_and_has_other_answers_from_the_middle_on() -> None:
    calm = generate(drift(rate=5.0, surge=1.0, length_factors={"summary": 1.0}), seed=1)
    drifted = generate(drift(rate=5.0, surge=10.0, length_factors={"summary": 2.0}), seed=1)

    assert calm[:1500] == drifted[:1500]
    assert 30 == pytest.approx(drifted[-1].at - calm[1499].at, rel=0.1)
    for one, two in zip(calm[1500:], drifted[1500:], strict=True):
        factor = 2.0 if one.category == "summary" else 1.0
        assert min(4096, factor * one.completion_tokens) == pytest.approx(two.completion_tokens, abs=1.5)


def test_a_surge_multiplies_a_load_as_well_as_a_rate() -> None:
    by_rate, by_rho = generate(drift(rate=4.0), seed=1), generate(drift(rho=0.8), seed=1, capacity=5.0)
    assert by_rate == by_rho
    assert generate(drift(), seed=1, capacity=5.0) == by_rho


def test_a_verbosity_shift_makes_one_category_longer_from_the_middle_on() -> None:
    calm = generate(verbosity_shift(rate=5.0, factor=1.0), seed=1)
    shifted = generate(verbosity_shift(rate=5.0, category="short_qa", factor=3.0), seed=1)

    assert calm[:1500] == shifted[:1500]
    for one, two in zip(calm[1500:], shifted[1500:], strict=True):
        factor = 3.0 if one.category == "short_qa" else 1.0
        assert min(4096, factor * one.completion_tokens) == pytest.approx(two.completion_tokens, abs=1.5)
        assert one.prompt_tokens == two.prompt_tokens


def test_a_mix_shift_changes_the_shares_from_the_middle_on() -> None:
    rows = generate(mix_shift(rate=5.0, requests=8000), seed=1)
    late = Counter(row.category for row in rows if row.phase == "after")
    early = Counter(row.category for row in rows if row.phase == "before")
    for category, weight in PAPER_STRESS_MIX.items():
        assert weight / 100 == pytest.approx(late[category] / 4000, abs=0.03)
        assert CHAT[category].weight / 100 == pytest.approx(early[category] / 4000, abs=0.03)


def test_a_model_swap_changes_the_name_and_every_category_in_its_own_way() -> None:
    rows = generate(model_swap(rate=5.0, requests=8000), seed=1)
    assert {("before", "model"), ("after", "model-2")} == {(row.phase, row.model) for row in rows}
    means = LENGTH_PROFILES["chat"].means
    for category, factor in {"short_qa": 2.0, "summary": 0.7, "technical": 1.5, "report": 0.6}.items():
        after = [row.completion_tokens for row in rows if row.phase == "after" and row.category == category]
        assert factor * means[category] == pytest.approx(fmean(after), rel=0.12)


# The paper's experiment


def test_the_paper_has_two_phases_with_its_mixes_and_gaps() -> None:
    rows = [row for seed in range(5) for row in generate(paper(), seed=seed)]
    assert {"calibration": 5000, "stress": 10_000} == Counter(row.phase for row in rows)
    for phase, shares in (("calibration", (40, 25, 25, 10)), ("stress", (10, 20, 40, 30))):
        categories = Counter(row.category for row in rows if row.phase == phase)
        for category, share in zip(CATEGORIES, shares, strict=True):
            assert share / 100 == pytest.approx(categories[category] / categories.total(), abs=0.025)


def test_the_stress_begins_fifteen_seconds_after_the_calibration_was_answered() -> None:
    calibration, stress = segments(generate(paper(), seed=1))

    assert (1000, 2000) == (len(calibration), len(stress))
    assert 15.005 <= stress[0].at <= 15.03
    assert all(0.05 - 1e-6 <= gap <= 0.15 + 1e-6 for gap in gaps(calibration))
    assert all(0.005 - 1e-6 <= gap <= 0.03 + 1e-6 for gap in gaps(stress))
    assert 0.0175 == pytest.approx(fmean(gaps(stress)), rel=0.02)


def test_the_papers_tiers_are_one_tenant_each_and_equally_frequent() -> None:
    rows = generate(paper(), seed=1)
    counts = Counter((row.tenant, row.tier) for row in rows)
    assert {(tier.label, tier) for tier in Tier} == set(counts)
    assert all(1000 == pytest.approx(count, abs=110) for count in counts.values())


def test_the_papers_limits_are_its_estimates_before_feedback() -> None:
    assert dict(BASE_TOKENS) == PAPER_MAX_TOKENS
    assert all(PAPER_MAX_TOKENS[row.category] == row.max_tokens for row in generate(paper(), seed=1))


@pytest.mark.parametrize(("requests", "calibration"), [(3000, 1000), (6000, 1000), (900, 300), (150, 100)])
def test_a_smaller_paper_has_a_shorter_calibration(requests: int, calibration: int) -> None:
    phases = Counter(row.phase for row in generate(paper(requests), seed=1))
    assert {"calibration": calibration, "stress": requests - calibration} == phases


def test_the_paper_needs_two_phases() -> None:
    with pytest.raises(ConfigError, match="at least 101, not 100"):
        paper(100)


def test_the_constants_of_the_papers_answers_rule_their_lengths() -> None:
    rows = generate(paper(answers=PaperAnswers(cap_share=0.7, short_mean=0.5, short_cv=0.2)), seed=1)
    early = [row.completion_tokens / PAPER_MAX_TOKENS[row.category] for row in rows if row.finish_reason == "stop"]
    assert 0.3 == pytest.approx(len(early) / len(rows), abs=0.035)
    assert 0.5 == pytest.approx(fmean(early), abs=0.02)


def test_answers_have_fewer_words_than_tokens() -> None:
    rows = generate(paper(), seed=1)
    law = PaperAnswers(words_per_token=0.8, words_cv=0.1)
    ratios = [
        words / row.completion_tokens
        for words, row in zip(answer_words(rows, 1, law), rows, strict=True)
        if row.completion_tokens > 200
    ]
    assert 0.8 == pytest.approx(fmean(ratios), rel=0.01)
    assert 0.08 == pytest.approx(pstdev(ratios), rel=0.1)
    assert answer_words(rows, 1, law) == answer_words(rows, 1, law) != answer_words(rows, 2, law)


# Prompts


def test_there_are_as_many_prompts_as_in_the_paper() -> None:
    assert 1180 == len(
        {wording.format(topic=topic) for ways in WORDINGS.values() for wording in ways for topic in TOPICS}
    )
    assert tuple(WORDINGS) == CATEGORIES


def test_a_label_gives_every_category_away() -> None:
    classify = KeywordClassifier().classify
    assert all(row.category == classify(row.prompt) for row in generate(paper(), seed=1))


def test_without_label_four_technical_prompts_of_five_look_like_short_questions() -> None:
    classify = KeywordClassifier().classify
    for category, wordings in WORDINGS.items():
        found = Counter(classify(wording.format(topic=topic)) for wording in wordings for topic in TOPICS)
        expected = {"technical": 59, "short_qa": 236} if category == "technical" else {category: 295}
        assert expected == found


def test_prompts_have_some_twenty_words() -> None:
    rows = generate(paper(), seed=1)
    words = [len(row.prompt.split()) for row in rows]
    assert 20 <= min(words) <= max(words) <= 32
    assert {round(1.3 * count) for count in words} == {row.prompt_tokens for row in rows}


def test_every_labelled_prompt_is_unique_as_in_the_paper() -> None:
    assert 3000 == len({row.prompt for row in generate(paper(), seed=1)})


def test_a_prompt_without_label_is_wording_and_topic_alone() -> None:
    known = {wording.format(topic=topic) for ways in WORDINGS.values() for wording in ways for topic in TOPICS}
    assert all(row.prompt in known for row in generate(paper(labelled=False), seed=1))


# By name


def test_a_scenario_is_made_by_name_with_options_as_text() -> None:
    assert gamma(rate=4.0, cv=3.0) == make_scenario("gamma", {"rate": "4", "cv": "3"})
    assert mix_shift(weights={"report": 1.0}) == make_scenario("mix-shift", {"weights": '{"report": 1}'})
    assert paper(answers=PaperAnswers(cap_share=0.5), labelled=False) == make_scenario(
        "paper", {"answers": '{"cap_share": 0.5}', "labelled": "false"}
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("waves", {}, "workload: unknown 'waves': use one of paper, poisson"),
        ("gamma", {"speed": "1"}, "workload gamma: unknown option 'speed': there are rate, rho, cv, requests"),
        ("gamma", {"cv": "high"}, "workload gamma: cv: Expected `float`, got `str`, not 'high'"),
        ("gamma", {"cv": "0"}, "phases[0].arrivals.cv: must be a number above 0, not 0.0"),
        ("mix-shift", {"weights": '{"report": '}, "workload mix-shift: weights: Input data was truncated"),
        ("flood", {"tenant": "nobody"}, "phases[1].floods.nobody: there is none of that name; there are tenant-0"),
        ("none.yaml", {}, "none.yaml: No such file or directory"),
        ("none.yaml", {"cv": "1"}, "workload none.yaml: takes no cv: set it in the file"),
    ],
)
def test_what_cannot_be_made_is_told(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_scenario(name, options)
    assert str(error.value).startswith(message)
