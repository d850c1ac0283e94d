"""What was learnt as plain data, read and pooled."""

import math
from typing import Any

import pytest

from driftsched.core.model import Usage
from driftsched.estimators.calibrated import MAX_KEYS, Calibrated, Calibration
from driftsched.estimators.ema import Ema
from driftsched.estimators.state import (
    MAX_COUNT,
    MAX_NAME_CHARS,
    add_counts,
    is_keepable,
    make_state,
    read_rows,
    share_of,
)
from driftsched.estimators.tokens import BytesCounter
from support.prompts import request_of


def read(state: dict[str, Any]) -> list[Any]:
    return read_rows(state, version=3, kinds=(str, int, float), max_rows=2)


def test_rows_are_read_as_they_were_written() -> None:
    rows = [["a", 0, -1.5], ["b", MAX_COUNT, 2.5]]
    assert rows == read(make_state(3, map(tuple, rows)))


@pytest.mark.parametrize(
    "row",
    [
        ["a", 1],
        ["a", 1, 1.0, 1.0],
        ["a", 1, 1],
        ["a", True, 1.0],
        [None, 1, 1.0],
        [b"a", 1, 1.0],
        ["a", 1, math.nan],
        ["a", 1, -math.inf],
        ["a", -1, 1.0],
        ["a", MAX_COUNT + 1, 1.0],
        ["n" * (MAX_NAME_CHARS + 1), 1, 1.0],
        "abc",
        None,
    ],
    ids=lambda row: repr(row)[:30],
)
def test_a_row_with_anything_else_in_it_is_refused(row: Any) -> None:
    with pytest.raises(ValueError, match="rows"):
        read({"version": 3, "rows": [["z", 1, 1.0], row]})


@pytest.mark.parametrize(
    "rows", [None, {}, "ab", [["a", 1, 1.0], ["a", 2, 2.0]], [["a", 1, 1.0], ["b", 1, 1.0], ["c", 1, 1.0]]]
)
def test_no_list_too_many_rows_and_a_key_twice_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows"):
        read({"version": 3, "rows": rows})


def test_names_are_kept_if_they_are_short_text() -> None:
    assert [True, True, False, False] == [
        is_keepable(name) for name in ("", "é" * MAX_NAME_CHARS, "n" * (MAX_NAME_CHARS + 1), "a\udfff")
    ]


@pytest.mark.parametrize(
    ("theirs", "mine", "share"), [(0, 0, 0), (0, 5, 0), (5, 0, 1), (5, 15, 0.25), (5, 10**9, 0.2), (10**9, 99, 0.5)]
)
def test_who_learnt_more_counts_for_more_up_to_what_is_remembered(theirs: int, mine: int, share: float) -> None:
    assert pytest.approx(share) == share_of(theirs, mine, memory=20)


def test_a_sum_of_counts_can_still_be_written() -> None:
    assert [5, MAX_COUNT] == [add_counts(2, 3), add_counts(MAX_COUNT, MAX_COUNT)]


def test_pooled_quantiles_and_spread_are_means_weighed_by_answers() -> None:
    mine = Calibration(6, 0.4, [1.0, 2.0, 3.0])
    mine.absorb(Calibration(2, 0.8, [2.0, 2.0, 7.0]), memory=30)
    assert 8 == mine.num_learnt
    assert pytest.approx([0.5, 1.25, 2.0, 4.0]) == [mine.spread, *mine.quantiles]


@pytest.mark.parametrize("part", [Calibrated, Ema, BytesCounter])
def test_three_replicas_weigh_alike_in_whichever_order_they_are_merged(part: Any) -> None:
    states = []
    for factor in (0.5, 1.0, 2.0):
        replica, used = part(alpha=0.01), Usage(round(1000 * factor), round(250 * factor))
        options = {} if part is BytesCounter else {"finished": True}
        for _ in range(20):
            replica.learn(request_of(prompt_bytes=4000), used, **options)
        states.append(replica.snapshot())
    pooled = []
    for order in ((0, 1, 2), (2, 1, 0)):
        merged = part(alpha=0.01)
        for number in order:
            merged.merge(states[number])
        pooled.append(
            [figure for row in merged.snapshot()["rows"] for figure in row if not isinstance(figure, str)]
        )
    assert pytest.approx(pooled[0]) == pooled[1]
    assert 60 == pooled[0][0]


def test_where_there_is_no_room_what_the_other_learnt_longest_ago_is_left_out() -> None:
    mine, other = Calibrated(), Calibrated()
    for number in range(MAX_KEYS - 2):
        mine.learn(request_of(model=f"mine-{number}"), Usage(1, 900), finished=True)
    for number in range(4):
        other.learn(request_of(model=f"other-{number}"), Usage(1, 900), finished=True)
    mine.merge(other.snapshot())
    assert [True, True, False, False, True] == [
        mine.bias(request_of(model=model)) == 1.0 for model in ("other-0", "other-1", "other-2", "other-3", "none")
    ]
    assert all(mine.bias(request_of(model=f"mine-{number}")) != 1.0 for number in range(MAX_KEYS - 2))


def test_without_feedback_nothing_is_taken_over() -> None:
    taught, fixed = Ema(), Ema(feedback=False)
    taught.learn(request_of(), Usage(1, 700), finished=True)
    fixed.restore(taught.snapshot())
    fixed.merge(taught.snapshot())
    assert 1.0 == fixed.bias(request_of())
