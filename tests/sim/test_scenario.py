from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.scenario import Arrivals, Category, Crowd, Length, Phase, Scenario, TenantLaw, load_scenario
from driftsched.sim.trace import Row
from driftsched.sim.workloads import WORKLOADS, PaperAnswers, generate
from driftsched.sim.writers import write_trace

LUNCH = """\
name: lunch
model: llama
categories:
  chat: {weight: 3, prompt_tokens: {mean: 120, cv: 1}, completion_tokens: {mean: 220, cv: 0.6}, max_tokens: 1024}
  code: {prompt_tokens: {mean: 800}, completion_tokens: {mean: 400, cv: 0.8}}
tenants:
  acme: {share: 2, tier: premium}
  bee: {}
phases:
  - name: morning
    seconds: 600
    arrivals: {rate: 4, cv: 2}
  - name: rush
    requests: 500
    arrivals: {rate: 12, amplitude: 0.5, period_seconds: 60}
    weights: {code: 1}
    shares: {bee: 1}
    length_factors: {code: 1.5}
    floods: {bee: 3}
    model: llama-2
    after_drain: true
    pause_seconds: 10
"""


def load(folder: Path, text: str) -> Scenario:
    path = folder / "lunch.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path)


def test_a_scenario_says_in_yaml_what_it_says_in_python(tmp_path: Path) -> None:
    expected = Scenario(
        name="lunch",
        model="llama",
        categories={
            "chat": Category(Length(120, 1), Length(220, 0.6), 3, 1024),
            "code": Category(Length(800), Length(400, 0.8)),
        },
        tenants={"acme": TenantLaw(2, "premium"), "bee": TenantLaw()},
        phases=[
            Phase("morning", Arrivals(4, cv=2), seconds=600),
            Phase(
                "rush",
                Arrivals(12, amplitude=0.5, period_seconds=60),
                500,
                weights={"code": 1},
                shares={"bee": 1},
                length_factors={"code": 1.5},
                floods={"bee": 3},
                model="llama-2",
                after_drain=True,
                pause_seconds=10,
            ),
        ],
    )
    assert expected == load(tmp_path, LUNCH)


def test_every_phase_follows_its_own_laws(tmp_path: Path) -> None:
    rows = generate(load(tmp_path, LUNCH), seed=1)
    rush = [row for row in rows if row.phase == "rush"]

    assert {("acme", Tier.PREMIUM), ("bee", Tier.STANDARD)} == {(row.tenant, row.tier) for row in rows}
    assert {("code", "bee", "llama-2")} == {(row.category, row.tenant, row.model) for row in rush}
    assert [len(rows) - len(rush)] == [number for number, row in enumerate(rows) if row.after_drain]
    assert 1500 == pytest.approx(len(rush), rel=0.15)  # three times its share


def test_ready_made_scenarios_survive_yaml_and_json() -> None:
    for made in WORKLOADS.values():
        scenario = made()
        assert scenario == msgspec.convert(msgspec.to_builtins(scenario), Scenario)
        assert scenario == msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario)


def test_a_crowd_has_shares_and_tiers_by_law() -> None:
    scenario = Scenario(
        [Phase("p", Arrivals(1.0), 1)],
        lengths_from="trace",
        crowd=Crowd(4, 0.0, {"premium": 1.0, "batch": 1.0}),
    )
    assert {
        "tenant-0": TenantLaw(0.25, "premium"),
        "tenant-1": TenantLaw(0.25, "batch"),
        "tenant-2": TenantLaw(0.25, "premium"),
        "tenant-3": TenantLaw(0.25, "batch"),
    } == scenario.members()


def test_a_trace_of_lengths_is_looked_for_beside_the_scenario(tmp_path: Path) -> None:
    write_trace([Row(0.0, 11, 22)], tmp_path / "lengths.jsonl")
    text = "lengths_from: lengths.jsonl\nphases: [{name: p, requests: 3, arrivals: {rate: 1}}]\n"
    assert [(11, 22)] * 3 == [
        (row.prompt_tokens, row.completion_tokens) for row in generate(load(tmp_path, text), 1)
    ]


PHASES = "phases: [{name: p, requests: 3, arrivals: {rate: 1}}]"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("name: lunch", "nme: lunch", "Object contains unknown field `nme`"),
        ("share: 2", "shares: 2", "tenants[...]: Object contains unknown field `shares`"),
        ("tier: premium", "tier: gold", "tenants[...].tier: Invalid enum value 'gold'"),
        ("rate: 4,", "rate: fast,", "phases[0].arrivals.rate: Expected `float | null`, got `str`"),
        ("rate: 4,", "", "phases[0].arrivals: give rate or rho, and not both"),
        ("rate: 4,", "rate: 4, rho: 1,", "phases[0].arrivals: give rate or rho, and not both"),
        ("rate: 4,", "rate: 0,", "phases[0].arrivals.rate: must be a number above 0, not 0"),
        ("rate: 4,", "rho: -1,", "phases[0].arrivals.rho: must be a number above 0, not -1"),
        ("rate: 4,", "rate: .nan,", "phases[0].arrivals.rate: must be a number above 0, not nan"),
        ("rate: 4,", "rate: .inf,", "phases[0].arrivals.rate: must be a number above 0, not inf"),
        ("cv: 2}", "cv: 0}", "phases[0].arrivals.cv: must be a number above 0, not 0"),
        ("cv: 2}", "cv: 2, spread: 1}", "phases[0].arrivals: give cv or spread, and not both"),
        ("cv: 2}", "spread: 1.5}", "phases[0].arrivals.spread: must be a number 0 or more and at most 1, not 1.5"),
        ("amplitude: 0.5", "amplitude: 1", "phases[1].arrivals.amplitude: must be at least 0 and below 1, not 1"),
        ("period_seconds: 60", "period_seconds: 0", "phases[1].arrivals.period_seconds: must be a number above 0"),
        ("seconds: 600", "seconds: 600\n    requests: 5", "phases[0]: give requests or seconds, and not both"),
        ("    seconds: 600\n", "", "phases[0]: give requests or seconds, and not both"),
        ("seconds: 600", "seconds: 0", "phases[0].seconds: must be a number above 0, not 0"),
        ("requests: 500", "requests: 0", "phases[1].requests: must be a number 1 or more, not 0"),
        ("requests: 500", "requests: 2.5", "phases[1].requests: Expected `int | null`, got `float`"),
        ("pause_seconds: 10", "pause_seconds: -1", "phases[1].pause_seconds: must be a number 0 or more, not -1"),
        ("name: rush", "name: morning", "phases[1].name: 'morning' comes twice"),
        (
            "weights: {code",
            "weights: {poem",
            "phases[1].weights.poem: there is none of that name; there are chat, code",
        ),
        ("weights: {code: 1", "weights: {code: 0", "phases[1].weights: give at least one weight above 0"),
        ("shares: {bee", "shares: {fly", "phases[1].shares.fly: there is none of that name; there are acme, bee"),
        ("shares: {bee: 1", "shares: {bee: -1", "phases[1].shares.bee: must be a number of 0 or more, not -1"),
        ("floods: {bee: 3", "floods: {fly: 3", "phases[1].floods.fly: there is none of that name"),
        ("floods: {bee: 3", "floods: {bee: 0.5", "phases[1].floods.bee: must be a number 1 or more, not 0.5"),
        (
            "factors: {code: 1.5",
            "factors: {code: 0",
            "phases[1].length_factors.code: must be a number above 0, not 0",
        ),
        ("factors: {code", "factors: {poem", "phases[1].length_factors.poem: there is none of that name"),
        ("{mean: 120", "{mean: 0", "categories.chat.prompt_tokens.mean: must be a number above 0, not 0"),
        ("cv: 0.6", "cv: -0.6", "categories.chat.completion_tokens.cv: must be a number 0 or more, not -0.6"),
        ("max_tokens: 1024", "max_tokens: 0", "categories.chat.max_tokens: must be a number 1 or more, not 0"),
        ("max_tokens: 1024", "cap_share: 0.5", "categories.chat.cap_share: needs max_tokens, which is the cap"),
        (
            "max_tokens: 1024",
            "max_tokens: 9, cap_share: 2",
            "categories.chat.cap_share: must be a number 0 or more",
        ),
        ("weight: 3", "weight: -3", "categories.chat: must be a number of 0 or more, not -3"),
        ("share: 2", "share: -2", "tenants.acme: must be a number of 0 or more, not -2"),
        ("name: lunch", "lengths_from: x", "categories: give these or lengths_from, and not both"),
        ("name: lunch", "name: {", "not valid YAML: while parsing"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_path(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in LUNCH
    with pytest.raises(ConfigError) as error:
        load(tmp_path, LUNCH.replace(before, after, 1))
    assert (
        f"{tmp_path / 'lunch.yaml'}: {message}" == str(error.value)[: len(str(tmp_path / "lunch.yaml: ") + message)]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected `object`, got `null`"),
        ("- a", "Expected `object`, got `array`"),
        (PHASES, "categories: give these or lengths_from, and not both"),
        ("lengths_from: x\nphases: []", "phases: give at least one"),
        (f"lengths_from: x\nprompts: plain\n{PHASES}", "prompts: a trace's lengths fit no prompt of ours"),
        (f"lengths_from: x\ncrowd: {{num_tenants: 0}}\n{PHASES}", "tenants: must be at least 1, not 0"),
        (f"lengths_from: x\ncrowd: {{tiers: {{batch: 0}}}}\n{PHASES}", "tiers: give at least one weight above 0"),
        (
            "lengths_from: x\nphases: [{name: p, requests: 3, arrivals: {rate: 1}, weights: {a: 1}}]",
            "phases[0].weights: the trace of lengths_from brings its own mix",
        ),
    ],
)
def test_a_scenario_that_lacks_something_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'lunch.yaml'}: {message}")


def test_prompts_need_wordings_for_every_category() -> None:
    with pytest.raises(ConfigError, match=r"categories\.poem: there are prompts only for short_qa, summary"):
        Scenario(
            [Phase("p", Arrivals(1.0), 1)],
            categories={"poem": Category(Length(1), Length(1))},
            prompts="plain",
        )


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_scenario(tmp_path / "none.yaml")


# The documentation


PAGE = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()


def test_the_example_of_the_documentation_is_a_scenario(tmp_path: Path) -> None:
    example = PAGE.partition("```yaml\n")[2].partition("```")[0]
    rows = generate(load(tmp_path, example), seed=1, capacity=5.0)
    assert {"morning", "rush"} == {row.phase for row in rows}


@pytest.mark.parametrize("struct", [Scenario, Category, Length, TenantLaw, Crowd, Phase, Arrivals, PaperAnswers])
def test_every_field_of_a_scenario_is_documented(struct: type[msgspec.Struct]) -> None:
    assert [] == [name for name in struct.__struct_fields__ if f"`{name}`" not in PAGE]


def test_every_ready_made_workload_and_its_options_are_documented() -> None:
    lines = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
    common = {"return", "rate", "rho", "requests"}
    for name, made in WORKLOADS.items():
        assert [] == [
            option for option in get_type_hints(made) if f"`{option}`" not in lines[name] and option not in common
        ]
