"""A short piece of `benchmarks/chaos.py`: its books must be straight, and it must see when they are not."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "chaos.py"


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_chaos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.e2e
async def test_in_a_chaos_of_faults_every_request_has_one_outcome_and_nothing_leaks(
    chaos: ModuleType, tmp_path: Path
) -> None:
    report: dict[str, Any] = await chaos.play(5.0, 80.0, 1, tmp_path)
    assert [] == report["amiss"]
    assert report["clients"]["finished"] > 100
    assert report["clients"]["left"] > 20
    assert len(report["clients"]) > 4


ROWS = [(1, "finished", "stop"), (2, "failed", "garbage"), (3, "evicted", "expired"), (4, "evicted", "cancelled")]
SEEN = {1: "finished", 2: "garbage", 3: "queue_timeout", 4: "left", 5: "left"}
COUNTS = {"submitted": 4, "finished": 1, "failed": 1, "evicted": 2}


def amiss(chaos: ModuleType, seen: dict[int, str], rows: list[tuple[int, str, str]], **counts: int) -> list[str]:
    ledger = chaos.Ledger(outcomes=dict(seen), sent=len(seen))
    counted = {f"driftsched_requests_{name}_total": value for name, value in (COUNTS | counts).items()}
    found: list[str] = chaos.amiss_in_books(ledger, rows, Counter(counted))
    return found


def test_books_that_agree_are_in_order(chaos: ModuleType) -> None:
    assert [] == amiss(chaos, SEEN, ROWS)


@pytest.mark.parametrize(
    ("seen", "rows", "counts"),
    [
        ({1: "!lost"}, ROWS, {}),
        ({1: "!form"}, ROWS, {}),
        ({1: "garbage"}, ROWS, {}),
        ({6: "finished"}, ROWS, {}),
        ({}, [*ROWS, ROWS[0]], {"submitted": 5, "finished": 2}),
        ({}, [*ROWS, (9, "finished", "stop")], {"submitted": 5, "finished": 2}),
        ({}, ROWS, {"submitted": 5}),
        ({}, ROWS, {"finished": 2}),
    ],
)
def test_books_that_differ_are_found_out(
    chaos: ModuleType, seen: dict[int, str], rows: list[tuple[int, str, str]], counts: dict[str, int]
) -> None:
    assert [] != amiss(chaos, SEEN | seen, rows, **counts)


@pytest.mark.parametrize(
    ("body", "well_formed"),
    [
        (b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}', True),
        (b'{"error":{"message":"m","type":"t","param":null}}', False),
        (b'{"error":{"message":"","type":"t","param":null,"code":"c"}}', False),
        (b"Internal Server Error", False),
        (b"", False),
    ],
)
def test_a_failure_that_is_not_in_openais_form_is_found_out(
    chaos: ModuleType, body: bytes, well_formed: bool
) -> None:
    assert well_formed == (not chaos.outcome_of(500, None, False, body).startswith("!"))


def test_a_stream_that_is_cut_is_found_out(chaos: ModuleType) -> None:
    assert "finished" == chaos.outcome_of(200, None, True, b'data: {"a":1}\n\ndata: [DONE]\n\n')
    assert chaos.outcome_of(200, None, True, b'data: {"a":1}\n\n').startswith("!")
