"""How many tokens a prompt has, before the engine says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Protocol

from driftsched.core.errors import ConfigError
from driftsched.core.model import Request, Usage
from driftsched.estimators.recent import Recent
from driftsched.estimators.state import add_counts, check_range, is_keepable, make_state, read_rows, share_of

START_BYTES_PER_TOKEN = 4.0
"""Usual for English under the vocabularies of current models."""

MIN_BYTES_PER_TOKEN = 0.25
MAX_BYTES_PER_TOKEN = 32.0
MAX_MODELS = 1024
STATE_VERSION = 1


class TokenCounter(Protocol):
    """Prompt tokens at admission; learns from what the engine counted."""

    def count(self, request: Request) -> int:
        """Tokens of the whole prompt, >= 0. Pure."""
        ...

    def learn(self, request: Request, usage: Usage) -> None:
        """What the engine counted for this prompt; 0 if it did not say."""
        ...


class WhitespaceCounter:
    """Count the words between white space.

    Why: the reference system's proxy. Trade-off: English has about 1.3 tokens a word, source code several, and
    Chinese has no spaces at all.

    Source: the split variant of DriftSched, arXiv 2606.02982.
    """

    def count(self, request: Request) -> int:
        return _whole(len(request.prompt.split()), request)

    def learn(self, request: Request, usage: Usage) -> None:
        """Learns nothing."""


@dataclass(slots=True)
class _Density:
    num_learnt: int = 0
    log_bytes_per_token: float = log(START_BYTES_PER_TOKEN)


class BytesCounter:
    """Divide the prompt's bytes by the bytes per token learnt from each model's own counts.

    Why: needs no vocabulary, costs a division, and follows the language mix of each model's users. Trade-off: all
    prompts of a model share one density. What its chat template adds to every message is learnt as part of that,
    so short prompts are counted a little low and long ones a little high.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        """`alpha`: weight of the newest count once about 1 / alpha are known; 0 < alpha <= 1."""
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be > 0 and <= 1, but is {alpha}")
        self._alpha = alpha
        self._densities: Recent[str, _Density] = Recent(_Density, MAX_MODELS)

    def count(self, request: Request) -> int:
        density = self._densities.read(request.model)
        bytes_per_token = exp(density.log_bytes_per_token) if density else START_BYTES_PER_TOKEN
        return round(request.prompt_bytes / bytes_per_token)

    def learn(self, request: Request, usage: Usage) -> None:
        """Follows the geometric mean. Counts outside 0.25 .. 32 bytes per token (images, errors) are left out."""
        fewest = request.prompt_bytes / MAX_BYTES_PER_TOKEN
        most = request.prompt_bytes / MIN_BYTES_PER_TOKEN
        if not 0 < fewest <= usage.prompt_tokens <= most:
            return
        density = self._densities.write(request.model)
        density.num_learnt += 1
        weight = max(self._alpha, 1 / (density.num_learnt + 1))  # the start value counts as one observation
        observed = log(request.prompt_bytes / usage.prompt_tokens)
        density.log_bytes_per_token += weight * (observed - density.log_bytes_per_token)

    def snapshot(self) -> dict[str, object]:
        rows = (
            (model, density.num_learnt, density.log_bytes_per_token)
            for model, density in self._densities.items()
            if is_keepable(model)
        )
        return make_state(STATE_VERSION, rows)

    def restore(self, state: Mapping[str, object]) -> None:
        self._densities.replace(_densities_of(state))

    def merge(self, state: Mapping[str, object]) -> None:
        """Geometric means, weighed by the counts learnt, of which about the last 1 / alpha count.

        Beyond `MAX_MODELS` what is known here stays, and what the other learnt longest ago is left out.
        """
        for model, other in reversed(_densities_of(state)):
            mine = self._densities.read(model)
            if mine is None:
                self._densities.add_oldest(model, other)
            else:
                share = share_of(other.num_learnt, mine.num_learnt, 1 / self._alpha)
                mine.num_learnt = add_counts(mine.num_learnt, other.num_learnt)
                mine.log_bytes_per_token += share * (other.log_bytes_per_token - mine.log_bytes_per_token)


def _densities_of(state: Mapping[str, object]) -> list[tuple[str, _Density]]:
    """Raises `ValueError`."""
    rows = read_rows(state, version=STATE_VERSION, kinds=(str, int, float), max_rows=MAX_MODELS)
    return [(model, _Density(num_learnt, _checked_density(density))) for model, num_learnt, density in rows]


def _checked_density(log_bytes_per_token: float) -> float:
    return check_range("density", log_bytes_per_token, log(MIN_BYTES_PER_TOKEN), log(MAX_BYTES_PER_TOKEN))


class TokenizerCounter:
    """Count with a Hugging Face tokenizer file, the same for every model.

    Why: exact for the text. Trade-off: takes some 0.25 us per byte of the prompt's head, on the way of every
    request; what a chat template adds is not counted. Needs `pip install driftsched[tokenizer]`.

    Source: the tokenizer variant of DriftSched, arXiv 2606.02982.
    """

    def __init__(self, path: str) -> None:
        """`path`: a `tokenizer.json`. Raises `ConfigError` if it cannot be read or the library is missing."""
        try:
            from tokenizers import Tokenizer  # an extra: whoever does not count so need not have it
        except ImportError as error:
            raise ConfigError("token counter 'tokenizer' needs: pip install driftsched[tokenizer]") from error
        try:
            self._tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(f"token counter 'tokenizer': path {path!r} is no tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, request: Request) -> int:
        encoding = self._tokenizer.encode(request.prompt, add_special_tokens=False)
        return _whole(len(encoding.ids), request)

    def learn(self, request: Request, usage: Usage) -> None:
        """Learns nothing."""


def _whole(head_tokens: int, request: Request) -> int:
    """Tokens of the whole prompt, of whose head `head_tokens` were counted: as dense as the head."""
    head_bytes = len(request.prompt.encode())
    if head_bytes == 0:
        return round(request.prompt_bytes / START_BYTES_PER_TOKEN)
    return round(head_tokens * max(1.0, request.prompt_bytes / head_bytes))
