"""How many requests an engine should hold: about what fills its batch, and follows what it says of itself.

Too few leave seats of the batch empty; too many wait inside the engine, where nobody can order them any more. The
two are not alike: a limit a tenth below the batch loses that much of the engine for good, and under load the line
grows without end, while one a tenth above fixes the order of a few requests a little early. So the limit goes down
only on evidence that lasts, and what nobody has said is no evidence.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log
from statistics import median
from typing import Literal

Reason = Literal["engine_queue", "memory_full", "slow_first_tokens", "room"]
"""Why a limit changed."""

PATIENCE = 3
"""Looks in a row that must agree."""
HOLD = 30
"""Looks after a fall before the limit may rise again."""
SLACK = 16
"""One request in so many, and always one, may wait inside the engine, so that a seat that falls free is taken at
once; and as many may be put off between two looks, because a memory that is never full is not used."""
FULL = 0.95
"""Share of the engine's memory for context from which on it counts as full."""
CUT = 0.9
"""What is left of the limit when first tokens are late."""
SLOW = 5.0
"""Times as long as usual that first tokens must take before the engine is thought to have a queue."""
GUESS = 8
"""Late first tokens alone never bring the limit below one in so many of what it started with."""
PROMPT = 2.0
"""Below so many times as long it is thought to have none."""
MAX_LIMIT = 1024
"""The limit of an engine never told to hold more."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What an engine says of itself; None: it does not say."""

    running: int | None = None
    """Requests in its batch."""
    waiting: int | None = None
    """Requests in its own queue."""
    kv_usage: float | None = None
    """Share of its memory for context in use, 0 .. 1."""
    preemptions: float | None = None
    """How often it has put a request off for want of that memory, since it was started."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of an engine and of those who want to be served by it, at one moment."""

    inflight: int
    """Requests it was given and has not finished."""
    wanted: bool
    """Something waits to be dispatched."""
    vitals: Vitals | None = None
    """None: it could not be asked, or says nothing."""
    slowness: float | None = None
    """Times as long as usual that its first tokens have lately taken; None: not known."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How its pool sees an engine."""

    outstanding_tokens: float
    """Completion tokens that are predicted to come of what it is answering."""
    circuit: str
    """`closed`, `open` (it is left alone) or `half_open` (one request or check may find out whether it is well)."""
    num_opened: int
    """Times it was left alone."""
    num_retries: int
    """Requests sent to another engine after this one had failed them."""
    num_unretried: int
    """Requests that would have been, had there been more left of the retry budget."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine, as metrics tell of it."""

    name: str
    limit: int
    inflight: int
    vitals: Vitals | None
    """As of the last look; None if it could not be asked then."""
    failed_scrapes: int = 0
    changes: Mapping[Reason, int] = field(default_factory=dict)
    """Times that the limit was changed."""
    standing: Standing | None = None


class AdaptiveLimit:
    """Down fast, by what stands in the engine's queue; up by one, while the limit is what binds.

    The queue that counts is the shortest seen in `PATIENCE` looks in a row: every request passes through the
    engine's queue on its way into the batch, but a queue that never empties is a limit set too high. Until the
    engine was first seen full the limit rises by an eighth at a time.
    """

    def __init__(self, start: int, *, floor: int = 1, ceiling: int = MAX_LIMIT) -> None:
        """Requests; 1 <= `floor` <= `ceiling`, and `start` is brought between them. Raises `ValueError`."""
        if not 1 <= floor <= ceiling:
            raise ValueError(f"floor must be between 1 and the ceiling ({ceiling}), not {floor}")
        self._floor = floor
        self._ceiling = ceiling
        self._waiting: deque[tuple[int, int]] = deque(maxlen=PATIENCE)  # in the engine's queue; of these, ours
        self._preemptions: float | None = None
        self._seen_full = False
        self._hold = 0
        self._start = self._limit = min(max(start, floor), ceiling)

    @property
    def limit(self) -> int:
        """Requests that the engine may hold, never outside of floor and ceiling."""
        return self._limit

    def told(self, slots: int) -> None:
        """The engine said how many requests it serves at once, >= 1: start there, and never go beyond."""
        self._ceiling = max(self._floor, min(self._ceiling, slots))
        self._start = self._limit = self._ceiling

    @property
    def _few(self) -> int:
        """Requests that do not count."""
        return max(1, self._limit // SLACK)

    def observe(self, look: Look) -> Reason | None:
        """Take in what is seen now, and move the limit if it says so. Why it moved; None if it did not.

        To be called at even intervals, about a second.
        """
        self._hold = max(0, self._hold - 1)
        before = self._limit
        reason = self._judge(look)
        if self._limit == before:
            return None
        if self._limit < before:
            self._hold = HOLD
            self._seen_full = True
            self._waiting.clear()  # what was seen under the old limit says nothing of the new one
        return reason

    def _judge(self, look: Look) -> Reason | None:
        vitals = look.vitals
        if vitals is None or vitals.waiting is None:
            self._waiting.clear()  # a row with a gap is none
        else:
            self._waiting.append((vitals.waiting, self._ours(look, vitals)))
        preempted = self._preempted(vitals)
        binding = look.wanted and look.inflight >= self._limit
        self._seen_full |= binding and bool(self._waiting) and self._waiting[-1][0] > 0
        if standing := self._standing():
            held = min(self._limit, look.inflight)
            self._move(max(self._limit // 2, held - standing))
            return "engine_queue"
        if preempted and vitals is not None and (vitals.kv_usage or 0.0) >= FULL:
            if look.inflight <= self._limit:  # else let those above it end first
                self._move(self._limit - self._few)
            return "memory_full"
        if not self._waiting and look.slowness is not None:
            return self._by_first_tokens(look.slowness, binding, look.inflight)
        if binding and self._has_room(vitals) and self._hold == 0 and not preempted:
            self._move(self._limit + (1 if self._seen_full else max(1, self._limit // 8)))
        return "room"

    def _ours(self, look: Look, vitals: Vitals) -> int:
        """How much of the engine's queue is there because the limit lets it."""
        waiting = vitals.waiting or 0
        excess = max(0, look.inflight - self._limit)  # dispatched under a higher limit: they will go
        held = waiting + (vitals.running or 0)
        share = min(1.0, look.inflight / held) if held else 1.0  # the engine may have other clients too
        return max(0, round(waiting * share) - excess)

    def _standing(self) -> int:
        """Ours that stand in the engine's queue beyond what may; 0 if these are few, or were not always there."""
        if len(self._waiting) < PATIENCE:
            return 0
        standing = min(ours for _, ours in self._waiting)
        return standing if standing > self._few else 0

    def _preempted(self, vitals: Vitals | None) -> bool:
        """Whether more requests than a few were put off since the last look that could tell."""
        now = vitals.preemptions if vitals else None
        if now is None:
            return False
        before, self._preemptions = self._preemptions, now
        return before is not None and now - before > self._few  # below 0: the engine was started anew

    def _by_first_tokens(self, slowness: float, binding: bool, inflight: int) -> Reason:
        """The engine says nothing of its queue: judge by how late its first tokens are, never above the start."""
        if slowness >= SLOW and inflight <= self._limit:  # else let those above it end first
            least = min(self._limit, self._start // GUESS)
            self._move(max(least, min(self._limit - 1, round(CUT * self._limit))))
            return "slow_first_tokens"
        if binding and slowness < PROMPT and self._hold == 0:
            self._move(min(self._limit + 1, max(self._start, self._limit)))
        return "room"

    def _has_room(self, vitals: Vitals | None) -> bool:
        if vitals is None or len(self._waiting) < PATIENCE:
            return False
        return not any(waiting for waiting, _ in self._waiting) and (vitals.kv_usage or 0.0) < FULL

    def _move(self, limit: int) -> None:
        self._limit = min(max(limit, self._floor), self._ceiling)


class Promptness:
    """How long first tokens take, against what is usual for prompts of the length.

    The time from dispatch to the first token has the engine's own queue in it, and the prompt: by doubling prompt
    lengths it keeps what is usual, which falls quickly and rises slowly, so that a time of crowding does not become
    the norm.
    """

    def __init__(self) -> None:
        self._usual: dict[int, float] = {}  # by bit length of the prompt: logarithm of seconds
        self._late: deque[float] = deque(maxlen=32)  # logarithms of times-as-long-as-usual

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """A first token came `seconds` > 0 after dispatch."""
        size = max(1, prompt_tokens).bit_length()
        value = log(max(seconds, 1e-4))
        usual = self._usual.setdefault(size, value)
        self._usual[size] = usual + (0.2 if value < usual else 0.002) * (value - usual)
        self._late.append(value - usual)

    def slowness(self) -> float | None:
        """Times as long as usual, the median of those seen since it was last asked; None if they are too few."""
        if len(self._late) < 8:
            return None
        typical = exp(median(self._late))
        self._late.clear()
        return typical
