"""What engines say of themselves, read leniently: other versions and other servers leave fields out or add some."""

import re
from math import isfinite
from typing import Any, Literal, NamedTuple

from driftsched.core.limit import Vitals

MAX_METRICS_BYTES = 4 * 1024 * 1024
"""Longest page of metrics read: one of vLLM with all its histograms has a tenth of it."""

Field = Literal["running", "waiting", "kv_usage", "preemptions"]


class _Sample(NamedTuple):
    field: Field
    value: float


# As vLLM 0.33, SGLang 0.5.23 and llama-server name them, and vLLM and llama-server before.
_FIELDS: dict[bytes, Field] = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "kv_usage",
    b"vllm:gpu_cache_usage_perc": "kv_usage",
    b"vllm:num_preemptions": "preemptions",
    b"sglang:num_running_reqs": "running",
    b"sglang:num_queue_reqs": "waiting",
    b"sglang:token_usage": "kv_usage",
    b"sglang:num_retracted_reqs": "preemptions",
    b"llamacpp:requests_processing": "running",
    b"llamacpp:requests_deferred": "waiting",
    b"llamacpp:kv_cache_usage_ratio": "kv_usage",
}
_LINE = re.compile(
    rb"^((?:vllm|sglang|llamacpp):\w+?)(?:_total)?(\{[^\n]*\})?[ \t]+([^\s]{1,40})", flags=re.MULTILINE
)
_OTHER_TENSOR_RANK = re.compile(rb'[{,]\s*tp_rank="(?!0")')


def read_metrics(page: bytes) -> Vitals | None:
    """The vitals on a page in Prometheus' text format; None if none is there. Never raises.

    Several engines behind one page (data parallel ranks) add up, and the fullest memory counts. Ranks of one engine
    that share the work (`tp_rank`) all tell the same: only the first is read.
    """
    samples = [sample for line in _LINE.finditer(page) if (sample := _sample(line))]
    if not samples:
        return None
    told: dict[Field, list[float]] = {}
    for field, value in samples:
        told.setdefault(field, []).append(value)
    return Vitals(
        running=_count(told.get("running")),
        waiting=_count(told.get("waiting")),
        kv_usage=min(1.0, max(told["kv_usage"])) if "kv_usage" in told else None,
        preemptions=sum(told["preemptions"]) if "preemptions" in told else None,
    )


def read_slots(document: Any) -> Vitals | None:
    """What llama-server's `/slots` tells: how many are at work. None if it is something else."""
    if not isinstance(document, list) or not document:
        return None
    working = [slot.get("is_processing") for slot in document if isinstance(slot, dict)]
    return Vitals(running=sum(1 for at_work in working if at_work is True)) if working else None


def _sample(line: re.Match[bytes]) -> _Sample | None:
    name, labels, text = line.groups()
    field = _FIELDS.get(name)
    if field is None or (labels and _OTHER_TENSOR_RANK.search(labels)):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return _Sample(field, value) if isfinite(value) and value >= 0 else None


def _count(values: list[float] | None) -> int | None:
    return None if values is None else round(sum(values))
