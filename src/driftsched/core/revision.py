"""Waiting tickets, and which of them to predict again once feedback has moved what is predicted for their like.

Tickets are grouped by model and category, the one predicted longest ago first. When the correction of a group has
moved far enough, the group's revision goes up, and its tickets of an older revision are due. Each that is taken
gets the new revision and goes to the end, where whoever was admitted since stands as well: so the first of a group
tells whether any is due, nobody has to be looked for, and nothing is copied. Handing out a ticket is O(1).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log

from driftsched.core.model import Load, Request, Ticket

MAX_RERANKS = 16
"""Waiting tickets predicted and placed anew at each settlement, which frees one slot: so the line is gone through
sixteen times as fast as it is served."""

MIN_MOVE = log(1.1)
"""A correction that moved by less than a tenth is mostly noise, and moves few tickets past one another."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A waiting ticket, and what it takes to rank it again. Owned by the scheduler."""

    ticket: Ticket
    """As it stands now."""
    load: Load
    """What the policy saw at admission. Ranks of one flow stay comparable, and bounds on waiting hold, only if a
    ticket is always ranked under the same load."""
    revision: int
    """That of its group when it was last predicted."""


class _Group:
    """The waiting tickets of one model and category; their revisions never fall from first to last."""

    __slots__ = ("is_due", "moved", "revision", "tickets")

    def __init__(self) -> None:
        self.tickets: OrderedDict[str, Waiting] = OrderedDict()
        self.revision = 0
        self.moved = 0.0  # logarithm of what the correction is now to what it was when the revision went up
        self.is_due = False

    def take_due(self) -> Waiting | None:
        """The next ticket of an older revision, counted as revised; None if there is none."""
        waiting = next(iter(self.tickets.values()), None)
        if waiting is None or waiting.revision == self.revision:
            return None
        waiting.revision = self.revision
        self.tickets.move_to_end(waiting.ticket.id)
        return waiting


class Revisions:
    """Holds what waits, and hands out what is due, a few tickets at a time."""

    def __init__(self, max_reranks: int = MAX_RERANKS, min_move: float = MIN_MOVE) -> None:
        """`max_reranks`, >= 0: tickets handed out by one call; 0: none ever is.

        `min_move`: by how much the natural logarithm of a group's correction must move before its tickets are due.
        """
        self._max_reranks = max_reranks
        self._min_move = min_move
        self._groups: dict[tuple[str, str], _Group] = {}  # only of what waits: clients may make up model names
        self._due: deque[_Group] = deque()  # each at most once

    def enter(self, ticket: Ticket, load: Load) -> None:
        """The ticket starts to wait; it was predicted just now, and ranked under `load`."""
        request = ticket.request
        group = self._groups.get((request.model, request.category))
        if group is None:
            group = self._groups[request.model, request.category] = _Group()
        group.tickets[request.id] = Waiting(ticket, load, group.revision)

    def leave(self, ticket: Ticket) -> Ticket:
        """The ticket waits no longer. Returns it as it last stood; `ticket` itself if it was not held."""
        request = ticket.request
        group = self._groups.get((request.model, request.category))
        waiting = group.tickets.pop(request.id, None) if group else None
        if waiting is None:
            return ticket
        if group and not group.tickets:
            del self._groups[request.model, request.category]
        return waiting.ticket

    def holds(self, waiting: Waiting) -> bool:
        """It has not left."""
        request = waiting.ticket.request
        group = self._groups.get((request.model, request.category))
        return group is not None and group.tickets.get(request.id) is waiting

    def waiting(self) -> list[Waiting]:
        """All that waits, in order of admission. O(n log n)."""
        held = [waiting for group in self._groups.values() for waiting in group.tickets.values()]
        held.sort(key=lambda waiting: waiting.ticket.seq)
        return held

    def recalibrated(self, request: Request, before: float, after: float) -> None:
        """Feedback took the correction for requests like this one from `before` to `after`."""
        group = self._groups.get((request.model, request.category))
        if group is None or not self._max_reranks:
            return
        group.moved += _step(before, after)
        if abs(group.moved) < self._min_move:
            return
        group.moved = 0.0
        group.revision += 1
        if not group.is_due:
            group.is_due = True
            self._due.append(group)

    @property
    def any_due(self) -> bool:
        """`due` may have something to hand out."""
        return bool(self._due)

    def due(self) -> Iterator[Waiting]:
        """The next tickets to predict again, at most `max_reranks`. Groups take turns from call to call.

        Tickets may enter and leave while it is under way, and it may be given up at any point.
        """
        self._due.rotate(-1)
        num_left = self._max_reranks
        while self._due and num_left > 0:
            waiting = self._due[0].take_due()
            if waiting is None:
                self._due.popleft().is_due = False
            else:
                num_left -= 1
                yield waiting


def _step(before: float, after: float) -> float:
    """Logarithm of the ratio of two factors; 0 if one of them is none, as that of a broken plug-in may be.

    Steps of one kind are added up, whatever requests they are told of: that a correction may also differ between
    two requests of a kind does then not count as a move.
    """
    if before == after or not (0 < before < inf and 0 < after < inf):
        return 0.0
    return log(after) - log(before)
