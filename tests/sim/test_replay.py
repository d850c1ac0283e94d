from collections.abc import Sequence
from dataclasses import replace as changed
from math import nan
from typing import Any

import pytest
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.engines.presets import get_hardware
from driftsched.replaying import PARTS
from driftsched.sim.experiment import Case, Machine, capacity, run_case
from driftsched.sim.measures import spread
from driftsched.sim.replay import (
    BASE,
    FASTER,
    SLOWER,
    Arm,
    Block,
    Calibration,
    Figure,
    Past,
    Recommendation,
    calibrate,
    check_enough,
    cut_blocks,
    ratio_change,
    recommend,
    replay,
    run_blocks,
    scaled,
    text,
)
from driftsched.sim.statistics import Interval
from driftsched.sim.trace import Row
from driftsched.sim.workloads import generate, make_scenario

L4 = get_hardware("l4-qwen1.5-1.8b")
A100 = get_hardware("a100-llama3-8b")
LIVE = ("fifo", "static")
GOOD = Calibration("x", 1.0, Figure(2.0, 2.0), {"E2E P95": Figure(4.0, 4.1)}, 0.02)


def engine(scale: float = 1.0, slots: int = 8) -> Machine:
    return Machine(scaled(A100, scale), "continuous", slots)


def workload(machine: Machine, rho: float, requests: int) -> list[Row]:
    options = {"requests": str(requests)}
    rows = generate(make_scenario("poisson", options), 0, capacity=1.0)
    return generate(make_scenario("poisson", options | {"rho": str(rho)}), 1, capacity=capacity(rows, machine))


def lived_through(rows: Sequence[Row], machine: Machine, live: tuple[str, str] = LIVE) -> list[Past]:
    """What a journal would say had `machine` served `rows`."""
    made = run_case(rows, Case(*live, machine), 1, PARTS)
    columns = zip(rows, made.arrived_at, made.dispatched_at, made.first_token_at, made.finished_at, strict=True)
    return [Past(row, True, False, d - a, f - a, e - a) for row, a, d, f, e in columns]


def arm(policy: str, mean: float, reach: float = 0.01, variant: str = BASE, **fields: Any) -> Arm:
    change = Interval(mean, mean - reach, mean + reach, 10)
    seconds = spread([1.0, 2.0])
    return replace(Arm(policy, "static", variant, seconds, seconds, change, None, {}), **fields)


def everywhere(policy: str, *means: float, reach: float = 0.01) -> list[Arm]:
    return [arm(policy, mean, reach, variant) for variant, mean in zip((BASE, FASTER, SLOWER), means, strict=True)]


def advised(*arms: Arm, calibration: Calibration = GOOD) -> Recommendation:
    return recommend(LIVE, [replace(arm("fifo", 0.0), mean_change=None), *arms], calibration)


def test_the_engine_that_served_is_found_again_among_the_presets() -> None:
    machine = engine(0.6)
    past = lived_through(workload(machine, 0.85, 600), machine)
    calibration, found = calibrate(past, LIVE, [L4, A100], Machine(L4, "continuous", 8), PARTS)
    assert "a100-llama3-8b" == calibration.hardware
    assert pytest.approx(0.6, rel=0.03) == calibration.scale
    assert abs(calibration.fitted.error) < 0.01
    assert calibration.mean_check_error < 0.1
    assert pytest.approx(A100.floor_ms * calibration.scale) == found.hardware.floor_ms


def test_a_preset_without_room_for_the_requests_is_not_considered() -> None:
    tiny = changed(A100, name="tiny", kv_tokens=10)
    machine = engine()
    past = lived_through(workload(machine, 0.5, 100), machine)
    assert "a100-llama3-8b" == calibrate(past, LIVE, [tiny, A100], machine, PARTS)[0].hardware
    with pytest.raises(ConfigError, match="tiny holds 10"):
        calibrate(past, LIVE, [tiny], machine, PARTS)


def test_only_requests_that_finished_are_compared_but_all_load_the_engine() -> None:
    machine = engine()
    past = lived_through(workload(machine, 0.8, 400), machine)
    spoilt = [
        changed(one, finished=False, lower_bound=True, e2e_seconds=1e6) if n % 4 == 0 else one
        for n, one in enumerate(past)
    ]
    calibration, _ = calibrate(spoilt, LIVE, [A100], machine, PARTS)
    assert pytest.approx(1.0, rel=0.02) == calibration.scale
    assert calibration.mean_check_error < 0.05


def test_blocks_are_of_equal_time_between_one_before_and_one_after() -> None:
    rows = [Row(float(at), 1, 1) for at in range(121)]
    blocks = cut_blocks(rows, 10)
    assert Block(0, 10, 20, 30) == blocks[0]
    assert Block(90, 100, 110, 121) == blocks[-1]
    assert list(range(10, 110)) == [n for block in blocks for n in range(block.measured_from, block.measured_to)]


def test_a_block_without_requests_is_left_out() -> None:
    rows = [Row(float(at), 1, 1) for at in range(121) if not 40 <= at < 50]
    assert 9 == len(cut_blocks(rows, 10))


def test_a_block_meets_the_queue_that_its_warm_up_left() -> None:
    rows = [Row(0.0, 100, 400)] * 60 + [Row(0.001, 100, 50)] + [Row(0.002, 100, 400)] * 60
    whole = Block(0, 60, 61, 121)
    (fifo,), (sjf,) = (
        run_blocks(rows, [whole], PARTS, Case(policy, "oracle", engine())) for policy in ("fifo", "sjf")
    )
    (alone,) = run_blocks(rows, [Block(60, 60, 61, 61)], PARTS, Case("fifo", "oracle", engine()))
    assert 1 == len(fifo.e2e)
    assert 0 == alone.queue[0] < sjf.queue[0] < fifo.queue[0]


def test_a_ratio_counts_busy_blocks_by_their_requests() -> None:
    change = ratio_change([90.0, 2.0], [100.0, 1.0])
    assert change is not None
    assert pytest.approx(92 / 101 - 1) == change.mean
    assert (None, None) == (ratio_change([1.0], [1.0]), ratio_change([1.0, 1.0], [0.0, 0.0]))


def test_more_comparisons_widen_the_interval() -> None:
    values, base = [9.0, 8.0, 9.5, 9.0], [10.0, 10.0, 10.0, 10.0]
    one, five = ratio_change(values, base), ratio_change(values, base, 5)
    assert one is not None
    assert five is not None
    assert pytest.approx(3.182446 * 0.0629153 / 2, rel=1e-5) == one.half_width
    assert (one.half_width or nan) * 1.5 < (five.half_width or nan)


def test_what_is_surely_better_on_every_engine_is_recommended() -> None:
    advice = advised(*everywhere("sjf", -0.2, -0.1, -0.3), *everywhere("fair", -0.1, -0.1, -0.1))
    assert ("switch", "sjf") == (advice.verdict, advice.policy)


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (everywhere("sjf", -0.2, -0.1, -0.3, reach=0.25), "n.s."),
        (everywhere("sjf", -0.03, -0.03, -0.03), "-3.0 %"),
        (everywhere("sjf", 0.2, 0.2, 0.2), "+20.0 %"),
        (everywhere("sjf", -0.2, -0.1, 0.1), "no gain on an engine 20% slower"),
        ([arm("sjf", -0.2, tier_changes={"premium": Interval(0.3, 0.2, 0.4, 10)})], "mean E2E of premium"),
        ([arm("sjf", -0.2, p95_change=Interval(0.3, 0.2, 0.4, 10))], "E2E P95"),
    ],
)
def test_what_is_not_surely_and_harmlessly_better_is_not_recommended(arms: list[Arm], reason: str) -> None:
    advice = advised(*arms)
    assert ("stay", "fifo") == (advice.verdict, advice.policy)
    assert reason in advice.reasons[0]


def test_the_oracle_is_shown_but_never_recommended() -> None:
    oracle = [replace(one, estimator="oracle") for one in everywhere("sjf", -0.5, -0.5, -0.5)]
    assert "stay" == advised(*oracle).verdict


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("x", 1.0, Figure(2.0, 2.5), {"E2E P95": Figure(4.0, 4.0)}, 0.0),
        Calibration("x", 1.0, Figure(2.0, 2.0), {"E2E P95": Figure(4.0, 9.0)}, 1.25),
    ],
)
def test_nothing_is_recommended_on_a_model_that_is_far_off(calibration: Calibration) -> None:
    assert "unclear" == advised(*everywhere("sjf", -0.2, -0.2, -0.2), calibration=calibration).verdict


def test_nothing_is_recommended_where_backlogs_outlast_the_blocks() -> None:
    arms = [replace(arm("fifo", 0.0), mean_change=None), *everywhere("sjf", -0.2, -0.2, -0.2)]
    assert ["unclear", "switch"] == [recommend(LIVE, arms, GOOD, error).verdict for error in (-0.3, -0.2)]


def test_a_backlog_that_lasts_makes_blocks_look_better_than_the_whole() -> None:
    assert abs(replayed(rho=0.3).block_error) < 0.02
    assert replayed(rho=1.5).block_error < -0.25


def test_too_few_requests_or_blocks_are_refused() -> None:
    check_enough(240, 10)
    with pytest.raises(ConfigError, match=r"239 requests.*240"):
        check_enough(239, 10)
    with pytest.raises(ConfigError, match="blocks: must be at least 10, not 9"):
        check_enough(1000, 9)


def replayed(processes: int = 1, rho: float = 0.5, **marks: Any) -> Any:
    machine = engine()
    past = [changed(one, **marks) for one in lived_through(workload(machine, rho, 260), machine)]
    return replay(
        past,
        live=LIVE,
        arms=[("sjf", "static"), LIVE],
        hardware=[A100],
        mode="continuous",
        slots=8,
        parts=PARTS,
        facts={"replayed": len(past)},
        processes=processes,
    )


def test_where_nothing_waits_there_is_nothing_to_switch_for() -> None:
    made = replayed(rho=0.3)
    assert "stay" == made.recommendation.verdict
    assert any("hardly any time was spent waiting" in caution for caution in made.cautions)
    assert "No difference worth switching for" in text(made)


def test_every_policy_runs_once_on_each_engine_and_tables_fit_a_terminal() -> None:
    made = replayed(overdue=True, lower_bound=True)
    assert [(p, v) for v in (BASE, FASTER, SLOWER) for p in ("fifo", "sjf")] == [
        (one.policy, one.variant) for one in made.arms
    ]
    means = {one.variant: one.e2e_seconds.mean for one in made.arms if one.policy == "fifo"}
    assert means[FASTER] < means[BASE] < means[SLOWER]
    assert [None, None, None] == [one.mean_change for one in made.arms if one.policy == "fifo"]
    assert max(len(line) for line in text(made).splitlines()) <= 80
    assert any("100% were dispatched at their maximum wait" in caution for caution in made.cautions)
    assert any("260 answers were cut off" in caution for caution in made.cautions)


def test_the_result_does_not_depend_on_the_number_of_processes() -> None:
    assert replayed(1) == replayed(2)


def test_a_tier_keeps_its_own_account() -> None:
    machine = engine()
    rows = workload(machine, 0.9, 300)
    rows = [replace(row, tier=Tier.PREMIUM if n % 2 else Tier.BATCH) for n, row in enumerate(rows)]
    made = replay(
        lived_through(rows, machine),
        live=LIVE,
        arms=[("priority", "static")],
        hardware=[A100],
        mode="continuous",
        slots=8,
        parts=PARTS,
        facts={},
    )
    changes = next(one for one in made.arms if one.policy == "priority" and one.variant == SLOWER).tier_changes
    assert changes["premium"].mean < 0 < changes["batch"].mean
