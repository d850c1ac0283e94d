"""The promise that nobody waits longer than its tier's maximum, and the engine time that it takes to keep it.

A ticket is served next from its `overdue_at` on. Were that the end of its maximum wait, hundreds could be overdue
at once, and the last of them would wait for all the others. So each is given an instant of its own: time is divided
into stretches, in each of which the engines can do so much work, and a ticket books the latest work that is free
before its maximum ends. From then on it is served next. If nothing is free, the promise cannot be kept, and the
request must not be admitted. Whoever leaves gives its booking back.

Booking the latest that is free finds room whenever any order could serve all in time: it is how unit tasks with
deadlines are scheduled (Horowitz and Sahni, "Fundamentals of Computer Algorithms": job sequencing with deadlines).

Work is measured in predicted completion tokens, and so is the pace: tokens that had been predicted for what ended,
per second in which somebody waited. An idle pool does not tell what it could do, and a prediction that is off by a
factor is off on both sides.
"""

from collections.abc import Mapping
from math import floor, inf
from typing import NamedTuple

from driftsched.core.model import Request, Tier
from driftsched.core.throughput import Throughput

SHARE = 0.5
"""Of the pace, that may be booked. The rest is the policy's to spend: were all of it booked, a long line would be
served in order of arrival. It is also what the pace may fall by before a promise is broken."""
STRETCHES = 16
"""In the shortest maximum wait."""
MAX_STRETCHES = 512
"""In the longest: a full line is looked through backwards."""
GUARD = 1
"""Stretches before the end of a wait that are not booked: slots become free at uneven times."""
TURNOVERS = 1.0
"""Times that all in flight must have been replaced, while somebody waited, before the pace is believed."""

NOTHING_REFUSED = (-1, inf)

Pieces = tuple[tuple[int, float], ...]
"""(stretch, tokens)"""


class Promise(NamedTuple):
    """A place in time, to be booked."""

    overdue_at: float
    """From this instant on the ticket is to be served next; infinite if its tier has no maximum."""
    pieces: Pieces = ()


class Promises:
    """What has been promised to the tickets that wait. O(1) a ticket, O(`MAX_STRETCHES`) when all is booked."""

    def __init__(self, max_wait_seconds: Mapping[Tier, float], *, keeps: bool) -> None:
        """`max_wait_seconds`, by tier, > 0; a tier left out has none. Without `keeps` nothing is ever refused."""
        self._max_wait_seconds = dict(max_wait_seconds)
        finite = [seconds for seconds in max_wait_seconds.values() if seconds < inf]
        self._books = keeps and bool(finite)
        self._stretch_seconds = max(min(finite) / STRETCHES, max(finite) / MAX_STRETCHES) if finite else inf
        self._pace = Throughput()
        self._turnovers = 0.0
        self._booked: dict[int, float] = {}  # tokens by stretch, from `_first` on
        self._first = 0
        self._late = 0.0  # tokens booked before, and not served yet
        self._refused = NOTHING_REFUSED
        self._pieces: dict[str, Pieces] = {}  # of the tickets that wait, by id

    @property
    def tokens_per_second(self) -> float:
        """What may be booked; 0 while the pace is not known."""
        return SHARE * self._pace.tokens_per_second if self._turnovers >= TURNOVERS else 0.0

    def make(self, request: Request, tokens: float, now: float) -> Promise | None:
        """What can be promised to a request of so many predicted tokens; None if nothing can.

        Until the pace is known nothing is refused, and all are served next when `SHARE` of their time is over. Who
        finds nobody waiting need not book.
        """
        wait = self._max_wait_seconds.get(request.tier, inf)
        last = request.arrived_at + wait
        if not self._pieces or wait == inf:
            return Promise(last)
        self._advance(now)
        rate = self.tokens_per_second
        if rate > 0:
            return self._find(last, max(1.0, tokens), rate, now)
        overdue_at = request.arrived_at + SHARE * wait
        return Promise(overdue_at, ((floor(overdue_at / self._stretch_seconds), max(1.0, tokens)),))

    def enter(self, ticket_id: str, promise: Promise, now: float) -> None:
        """A ticket starts to wait with this promise, made just now."""
        if not self._books:
            return
        if not self._pieces:
            self._pace.observe(now, busy=False)
        self._pieces[ticket_id] = promise.pieces
        for stretch, tokens in promise.pieces:
            self._booked[stretch] = self._booked.get(stretch, 0.0) + tokens

    def leave(self, ticket_id: str) -> None:
        """The ticket waits no longer."""
        self._refused = NOTHING_REFUSED
        for stretch, tokens in self._pieces.pop(ticket_id, ()):
            if stretch < self._first:
                self._late -= tokens
            else:
                self._booked[stretch] -= tokens
        if not self._pieces:  # sums of floats do not cancel exactly
            self._booked.clear()
            self._late = 0.0

    def dispatched(self, now: float) -> None:
        """A ticket is about to leave for the engines."""
        if self._books:
            self._pace.observe(now, busy=True)

    def resumed(self, now: float) -> None:
        """Nothing could be dispatched until now."""
        self._pace.observe(now, busy=False)

    def ended(self, tokens: float, num_inflight: int, now: float) -> None:
        """One of `num_inflight` answers ended, for which so many tokens had been predicted."""
        if not self._books:
            return
        waited = bool(self._pieces)
        self._pace.observe(now, busy=waited, tokens=round(tokens) if waited else 0)
        if waited:
            self._turnovers += 1 / max(1, num_inflight)

    def _find(self, last: float, tokens: float, rate: float, now: float) -> Promise | None:
        """The latest bookings of `tokens` in stretches that end well before `last`."""
        width = self._stretch_seconds
        horizon = floor(last / width) - 1 - GUARD
        if horizon <= self._refused[0] and tokens >= self._refused[1]:
            return None  # nobody has left since: there is no need to look again
        refused = (horizon, tokens)
        full = rate * width
        start = (now + max(0.0, self._late) / rate) / width  # what is late is served first
        pieces = []
        for stretch in range(horizon, floor(start) - 1, -1):
            booked = max(0.0, self._booked.get(stretch, 0.0))
            room = full - booked if stretch >= start else full * (stretch + 1 - start) - booked
            if room <= 0:
                continue
            if room >= tokens:
                pieces.append((stretch, tokens))
                return Promise((stretch + 1 - (booked + tokens) / full) * width, tuple(pieces))
            pieces.append((stretch, room))
            tokens -= room
        self._refused = refused
        return None

    def _advance(self, now: float) -> None:
        """Once a stretch: what was booked in those that are over is late, and the rest is levelled."""
        first = floor(now / self._stretch_seconds)
        if first <= self._first:
            return
        self._first = first
        for stretch in [stretch for stretch in self._booked if stretch < first]:
            self._late += self._booked.pop(stretch)
        self._level(self.tokens_per_second * self._stretch_seconds)

    def _level(self, full: float) -> None:
        """Book earlier what is beyond `full` in a stretch, after bookings at another pace or at none.

        Tickets still give back what they booked where they booked it. So a stretch may come to hold less than
        nothing, which counts as nothing; once it is over, all sums are right again.
        """
        if full == 0 or not self._booked:
            return
        excess = 0.0
        for stretch in range(max(self._booked), self._first - 1, -1):
            booked = self._booked.get(stretch, 0.0) + excess
            excess = max(0.0, booked - full)
            self._booked[stretch] = booked - excess
        self._late += excess
