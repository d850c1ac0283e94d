from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.limit import Vitals
from driftsched.engines.vitals import read_metrics, read_slots

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen \\"{x}\\" 3"} 31.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 400.0
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.625 1700000000000
vllm:num_preemptions_total{engine="0",model_name="qwen"} 1.2e1
vllm:num_preemptions_created{engine="0",model_name="qwen"} 1.7e9
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m",tp_rank="0"} 7.0
sglang:num_running_reqs{model_name="m",tp_rank="1"} 7.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
sglang:num_retracted_reqs{model_name="m",tp_rank="0"} 0.0
"""
LLAMACPP = b"""llamacpp:requests_processing 3
llamacpp:requests_deferred 1
llamacpp:n_busy_slots_per_decode 2.5
"""


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (VLLM, Vitals(31, 4, 0.625, 12.0)),
        (SGLANG, Vitals(7, 2, 0.5, 0.0)),
        (LLAMACPP, Vitals(3, 1)),
        (VLLM.replace(b"\n", b"\r\n"), Vitals(31, 4, 0.625, 12.0)),
    ],
)
def test_vitals_are_read_from_what_each_kind_of_engine_exports(page: bytes, expected: Vitals) -> None:
    assert expected == read_metrics(page)


def test_engines_behind_one_page_add_up_and_the_fullest_memory_counts() -> None:
    page = b"".join(
        b'vllm:num_requests_running{engine="%d"} 3\nvllm:kv_cache_usage_perc{engine="%d"} 0.%d\n' % (n, n, n)
        for n in (2, 7, 4)
    )
    assert Vitals(running=9, kv_usage=0.7) == read_metrics(page)


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-1", b"many", b""])
def test_a_value_that_counts_nothing_is_left_out(value: bytes) -> None:
    page = b"vllm:num_requests_waiting " + value + b"\nvllm:num_requests_running 1\n"
    assert Vitals(running=1) == read_metrics(page)


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"python_gc_objects_collected_total 1\n", b"\xff\xfe\n"])
def test_a_page_without_any_of_them_says_nothing(page: bytes) -> None:
    assert read_metrics(page) is None


@given(st.binary(max_size=300) | st.lists(st.sampled_from(VLLM.splitlines()), max_size=9).map(b"{\n".join))
def test_no_page_is_too_odd_to_be_read(page: bytes) -> None:
    vitals = read_metrics(page)
    assert vitals is None or vitals.kv_usage is None or 0 <= vitals.kv_usage <= 1


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}], Vitals(running=1)),
        ([], None),
        ({"error": "slots are disabled"}, None),
        ([1, "x"], None),
        (None, None),
    ],
)
def test_slots_tell_how_many_are_at_work(document: Any, expected: Vitals | None) -> None:
    assert expected == read_slots(document)
