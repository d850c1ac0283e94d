from itertools import pairwise

import pytest

from driftsched.core.model import Tier
from driftsched.sim.trace import Row, info, on_grid, segments, trace_hash


def row(at: float, tenant: str = "default", *, after_drain: bool = False) -> Row:
    return Row(at, 10, 20, tenant, after_drain=after_drain)


def test_the_hash_of_a_trace_never_changes() -> None:
    rows = [
        Row(0.0, 1, 2),
        Row(0.25, 3, 4, "acmé", Tier.BATCH, "report", "m", 4, "s", "stress", "text", after_drain=True),
    ]
    assert "f0febcef55faedef2e54dc91e4fa8aa83829777061b20ff3f014d553307b9b58" == trace_hash(rows)


@pytest.mark.parametrize(
    "changed",
    [
        Row(1.000001, 10, 20),
        Row(1.0, 11, 20),
        Row(1.0, 10, 21),
        Row(1.0, 10, 20, "other"),
        Row(1.0, 10, 20, tier=Tier.PREMIUM),
        Row(1.0, 10, 20, category="report"),
        Row(1.0, 10, 20, model="other"),
        Row(1.0, 10, 20, max_tokens=99),
        Row(1.0, 10, 20, session="s"),
        Row(1.0, 10, 20, phase="other"),
        Row(1.0, 10, 20, prompt="hello"),
        Row(1.0, 10, 20, after_drain=True),
    ],
)
def test_every_field_counts_in_the_hash(changed: Row) -> None:
    assert trace_hash([Row(1.0, 10, 20)]) != trace_hash([changed])


def test_the_order_of_rows_counts_in_the_hash() -> None:
    assert trace_hash([row(0, "a"), row(0, "b")]) != trace_hash([row(0, "b"), row(0, "a")])


def test_an_answer_as_long_as_its_limit_was_cut_off_there() -> None:
    assert "length" == Row(0.0, 1, 20, max_tokens=20).finish_reason
    assert "stop" == Row(0.0, 1, 19, max_tokens=20).finish_reason
    assert "stop" == Row(0.0, 1, 20).finish_reason


def test_times_on_the_grid_survive_counting_in_milliseconds() -> None:
    times = [on_grid(number * 0.1234567 + 86400) for number in range(10_000)]
    assert times == [on_grid(round(at * 1e6) / 1000 / 1000) for at in times]


def test_a_trace_without_drains_is_one_segment_as_it_is() -> None:
    rows = [row(3.0), row(4.0)]
    assert [rows] == segments(rows)


def test_a_segment_after_a_drain_keeps_its_gap_to_the_row_before() -> None:
    rows = [row(1.0), row(4.0), row(19.5, after_drain=True), row(20.0), row(30.0, after_drain=True)]

    parts = segments(rows)

    assert [[1.0, 4.0], [15.5, 16.0], [10.0]] == [[one.at for one in part] for part in parts]


def test_a_drain_before_the_first_row_waits_for_nothing() -> None:
    rows = [row(2.0, after_drain=True), row(3.0)]
    assert [rows] == segments(rows)


def test_info_tells_rate_burstiness_and_lengths() -> None:
    rows = [
        Row(float(at), tokens, 2 * tokens, "ab"[at % 2]) for at, tokens in zip(range(5), range(1, 6), strict=True)
    ]

    facts = info(rows)

    assert 5 == facts["requests"]
    assert 4.0 == facts["duration_seconds"]
    assert 1.0 == facts["rate"]
    assert 0.0 == facts["gap_cv"]
    assert {"mean": 3, "p50": 3, "p90": 5, "p99": 5, "max": 5} == facts["prompt_tokens"]
    assert {"mean": 6, "p50": 6, "p90": 10, "p99": 10, "max": 10} == facts["completion_tokens"]
    assert [("a", 3), ("b", 2)] == list(facts["tenants"].items())


def test_the_burstiness_is_that_of_the_gaps() -> None:
    gaps = [after - before for before, after in pairwise([0.0, 1.0, 4.0])]
    assert [1.0, 3.0] == gaps
    assert 0.5 == info([row(0.0), row(1.0), row(4.0)])["gap_cv"]


def test_requests_that_arrive_at_once_have_no_rate() -> None:
    facts = info([row(5.0), row(5.0)])
    assert (None, None) == (facts["rate"], facts["gap_cv"])


def test_an_empty_trace_has_no_info() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        info([])
