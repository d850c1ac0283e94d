"""Which of several engines a request is given: the one with the least predicted work, or the one that knows it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Literal, Protocol, TypeVar

from driftsched.core.model import Request

Affinity = Literal["none", "session", "prefix"]
"""What requests have in common that should meet at one engine: nothing, their conversation, or their template."""

SPILL = 0.25
"""Share of its slots by which the engine that a request belongs to may be fuller than the emptiest one."""

AFTERMATH = 0.25
"""Of an answer that is longer than was predicted, so much of what has come is thought to be still to come, as in
`Estimate.remaining_tokens`."""


@dataclass(slots=True)
class Work:
    """What an engine has been given and has not finished, in predicted completion tokens.

    Per slot, not per second: a rate measured on an engine with little to do is small, because its batch is, so that
    an engine which is given little would look slow, and be given less.
    """

    num_inflight: int = 0
    tokens: float = 0.0
    """Still to come."""

    def begin(self, expected: float) -> "Job":
        """`expected`: completion tokens; what is no number of them counts as one."""
        expected = expected if 0.0 <= expected < inf else 1.0
        self.num_inflight += 1
        self.tokens += expected
        return Job(self, expected, expected)


@dataclass(slots=True)
class Job:
    """One request's part of it."""

    work: Work
    expected: float
    left: float

    def progress(self, produced: int) -> None:
        """The answer has so many tokens."""
        left = max(self.expected - produced, AFTERMATH * produced if produced > self.expected else 0.0)
        self.work.tokens += left - self.left
        self.left = left

    def end(self) -> None:
        work = self.work
        work.num_inflight -= 1
        work.tokens = work.tokens - self.left if work.num_inflight else 0.0  # no sum of errors survives a pause


class Candidate(Protocol):
    """An engine that may be chosen."""

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> int: ...
    @property
    def work(self) -> Work: ...


C = TypeVar("C", bound=Candidate)


def least_work(candidates: Iterable[C]) -> C:
    """One with a free slot, if there is any, and of these the one with the least work for each of its slots."""
    return min(candidates, key=_load)


def preferred(candidates: Sequence[C], key: str) -> C:
    """The engine that requests with this key meet at, unless it is too full compared with the others.

    Rendezvous hashing (Thaler and Ravishankar, 1998): when an engine comes or goes, only the requests that
    belong to it move. One that is full, or fuller than the emptiest by more than `SPILL`, is passed over for the
    next.
    """
    emptiest = min(_occupancy(each) for each in candidates)
    fit = [each for each in candidates if (share := _occupancy(each)) < 1.0 and share - emptiest <= SPILL]
    return max(fit, key=lambda each: _score(key, each.name)) if fit else least_work(candidates)


def affinity_key(affinity: Affinity, request: Request) -> str:
    """What `preferred` is to go by; empty for nothing."""
    if affinity == "session":
        return request.traits.session
    return request.traits.template if affinity == "prefix" else ""


def _load(each: Candidate) -> tuple[bool, float, float]:
    work = each.work
    return work.num_inflight >= each.slots, work.tokens / each.slots, work.num_inflight / each.slots


def _occupancy(each: Candidate) -> float:
    return each.work.num_inflight / each.slots


def _score(key: str, name: str) -> bytes:
    return blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
