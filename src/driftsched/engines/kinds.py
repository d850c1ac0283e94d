"""Which server an engine is, and how many requests it serves at once, from what it tells about itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driftsched.core.protocols import EngineKind


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an engine tells about itself."""

    models: tuple[str, ...]
    slots: int | None
    """Requests it serves at the same time; None if it does not say."""
    kind: EngineKind


Document = dict[str, Any]
"""A JSON object, empty if the server gave none."""


def recognise(
    models: Sequence[Document],
    *,
    props: Document,
    version: Document,
    server_info: Document,
    ollama: Document,
    kind: EngineKind | None = None,
) -> Discovery:
    """The engine behind these answers to `/v1/models`, `/props`, `/version`, `/server_info` and `/api/version`.

    `kind`: what the operator says it is; None: to be found out.
    """
    owners = [entry.get("owned_by") for entry in models]
    seats = _count(props.get("total_slots"))
    running = _sglang_slots(server_info)
    if kind is None:
        if "llamacpp" in owners or seats is not None:
            kind = "llama.cpp"
        elif "sglang" in owners or running is not None:
            kind = "sglang"
        elif "vllm" in owners or isinstance(version.get("version"), str):
            kind = "vllm"
        else:
            kind = "ollama" if isinstance(ollama.get("version"), str) else "generic"
    told = {"llama.cpp": seats, "sglang": running, "vllm": _vllm_slots(server_info)}
    return Discovery(tuple(entry["id"] for entry in models), told.get(kind), kind)


_EARLIER = {"vllm": -1, "sglang": 1}
"""Where `priority` is understood: the sign of a priority that is served before one of 0."""


def engine_priority(kind: EngineKind | None, urgency: int) -> int | None:
    """`Request.urgency`, which is smaller for what comes first, as the engine's `priority`.

    None for a server that does not know the field, or is not known itself. Sources: vLLM 0.33 (`--scheduling-policy
    priority`: lower is earlier), SGLang 0.5.23 (`--enable-priority-scheduling`: higher is earlier).
    """
    sign = _EARLIER.get(kind) if kind is not None else None
    return None if sign is None else -sign * urgency


def _sglang_slots(server_info: Document) -> int | None:
    """What was asked for at its start, else what it came to by itself: each of its ranks serves as many."""
    asked = _count(server_info.get("max_running_requests"))
    if asked is not None:
        return asked
    states = server_info.get("internal_states")
    ranks = [
        _count(state.get("effective_max_running_requests_per_dp"))
        for state in (states if isinstance(states, list) else [])
        if isinstance(state, dict)
    ]
    return sum(rank or 0 for rank in ranks) or None


def _vllm_slots(server_info: Document) -> int | None:
    """Told only by a server that was started with VLLM_SERVER_DEV_MODE=1."""
    config: Any = server_info.get("vllm_config")
    for name in ("scheduler_config", "max_num_seqs"):
        config = config.get(name) if isinstance(config, dict) else None
    return _count(config)


def _count(value: object) -> int | None:
    """`value` if it can be a number of slots."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
