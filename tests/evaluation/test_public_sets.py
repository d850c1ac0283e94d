"""The sets of `benchmarks/estimation.py`, where the public data are at hand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from driftsched.evaluation.rows import Row

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "estimation.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_estimation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not module.DATA.is_dir():
        pytest.skip("the public data are not on this machine")
    return module


@pytest.fixture(scope="module")
def sets(benchmark: ModuleType) -> dict[str, list[Row]]:
    loaded: dict[str, list[Row]] = benchmark.load_sets()
    return loaded


def test_every_set_has_its_rows_and_times_that_never_run_backwards(sets: dict[str, list[Row]]) -> None:
    assert {"alpaca": 2976, "arena": 750, "all text": 4000, "hh": 2865, "azure": 9732} == {
        name: len(sets[name]) for name in ("alpaca", "arena", "all text", "hh", "azure")
    }
    for rows in sets.values():
        times = [row.arrived_at for row in rows]
        assert times == sorted(times, key=lambda at: at or 0.0)
        assert all(row.prompt_tokens > 0 or row.prompt for row in rows)


def test_a_swap_is_behind_one_name_at_half_of_the_stream(sets: dict[str, list[Row]]) -> None:
    rows = sets["concise to verbose"]
    half = len(rows) // 2
    assert {"model"} == {row.model for row in rows}
    assert {row.prompt for row in rows[:half]} == {row.prompt for row in rows[half:]}
    assert 2 * sum(row.completion_tokens for row in rows[:half]) < sum(row.completion_tokens for row in rows[half:])


def test_only_a_client_that_repeats_the_conversation_tells_its_turn(sets: dict[str, list[Row]]) -> None:
    assert {0} == {row.traits.turn for row in sets["hh"]}
    assert {0, 1, 2} < {row.traits.turn for row in sets["hh, told"]}
    seen: dict[str, int] = {}
    for row in sets["hh, told"]:
        assert row.traits.turn == seen.get(row.traits.session, 0)
        seen[row.traits.session] = row.traits.turn + 1


def test_sets_of_several_parts_are_averaged_to_one_line(benchmark: ModuleType, sets: dict[str, list[Row]]) -> None:
    parts = [name for name in sets if name.startswith(benchmark.ONE_AT_A_TIME)][:2]
    lines = [line for name in parts for line in benchmark.measure(name, sets[name][:60], ["median"])]
    (line,) = benchmark.averaged(lines)
    assert (benchmark.ONE_AT_A_TIME, 60) == (line.name, line.rows)
    assert pytest.approx(sum(part.found["mae"] for part in lines) / 2) == line.found["mae"]
    assert benchmark.ONE_AT_A_TIME in benchmark.text([line])
