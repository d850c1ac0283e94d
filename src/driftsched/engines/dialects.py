"""What a server makes of OpenAI's fields: which it knows by an older name only, and which it refuses for nothing.

The rule is that fields reach the engine as they came. Two things are worse than an exception to it: a limit that is
silently lost, and a call that is refused for a field which asked nothing of the engine. What changes the answer is
never left out: there the engine's own refusal is the better answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from driftsched.core.protocols import EngineKind


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a call is put to one engine."""

    renames: Mapping[str, str] = field(default_factory=dict)
    """Fields that it knows by another name. A null is left out: it asks for nothing."""
    drops: frozenset[str] = frozenset()
    """Fields that it does not get."""
    drops_at: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    """Fields that it refuses even at a value that asks for nothing, and these values as JSON."""
    streams_logprobs_of_tools: bool = True
    """It takes `logprobs` beside `tools` in a stream."""

    def translate(self, fields: dict[str, msgspec.Raw]) -> None:
        """Put the fields of a call, undecoded, as the engine understands them, in place."""
        for name, known_as in self.renames.items():
            value = fields.pop(name, None)
            if value is not None and bytes(value) != b"null":
                fields[known_as] = value
        for name in self.drops:
            fields.pop(name, None)
        for name, values in self.drops_at.items():
            value = fields.get(name)
            if value is not None and bytes(value) in values:
                del fields[name]


PLAIN = Dialect()

_OLDER_LIMIT = {"max_completion_tokens": "max_tokens"}
_NEVER_NULL = (
    *("n", "temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens"),
    *("logprobs", "echo", "parallel_tool_calls"),
)

_BY_KIND: dict[EngineKind, Dialect] = {
    # Knows `max_tokens` only, and generates to the end of its context where it is given the other: 0.32.5 (August
    # 2026, ollama/ollama#7125). Fields that it does not know it ignores: openai.go decodes into a fixed structure.
    "ollama": Dialect(renames=_OLDER_LIMIT),
    # `max_completion_tokens` since February 2026 (ggml-org/llama.cpp#19831), ignored before; `max_tokens` is an
    # alias of the same still. Text completions are refused if `best_of` or `suffix` is there, whatever it holds,
    # and chats with tools and log-probabilities if they stream (server-common.cpp).
    "llama.cpp": Dialect(
        renames=_OLDER_LIMIT,
        drops_at={"best_of": frozenset({b"null", b"1"}), "suffix": frozenset({b"null", b'""'})},
        streams_logprobs_of_tools=False,
    ),
    # What OpenAI allows to be null must here be a number or a truth (protocol.py; sgl-project/sglang#6775). What it
    # does not know it ignores.
    "sglang": Dialect(
        drops_at=dict.fromkeys(_NEVER_NULL, frozenset({b"null"})),
    ),
    # vLLM knows both limits, takes nulls, and ignores what it does not know since 0.6.5 (vllm-project/vllm#10463).
}


def dialect_of(
    kind: EngineKind | None, drop_fields: Sequence[str] = (), rename_fields: Mapping[str, str] | None = None
) -> Dialect | None:
    """That of a kind of server, with what its operator says besides; None if nothing is to be done.

    The operator's word counts where both speak of a field: one that is renamed to itself stays as it is.
    """
    own = dict(rename_fields or {})
    of_kind = _BY_KIND.get(kind, PLAIN) if kind is not None else PLAIN
    renames = {old: new for old, new in {**of_kind.renames, **own}.items() if old != new}
    dialect = replace(
        of_kind,
        renames=renames,
        drops=of_kind.drops | frozenset(drop_fields),
        drops_at={name: values for name, values in of_kind.drops_at.items() if name not in own},
    )
    return None if dialect == PLAIN else dialect
