"""The request journal: one row in SQLite for every request that ended, and never a word of any prompt.

The event loop only appends to a queue in memory; one thread writes it out, a batch at a time. Whatever happens to
the file, serving goes on: rows that cannot be kept are counted, and the trouble is logged once.
"""

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from typing import Any

from driftsched.core.errors import ConfigError
from driftsched.core.events import Event, Evicted, Failed, Finished, FirstToken, PolicyChanged, Rejected
from driftsched.core.model import Estimate, Request, Ticket, Usage
from driftsched.telemetry.decisions import Decisions
from driftsched.telemetry.sqlite import Connect, Schema, connect_to, is_empty

_logger = logging.getLogger(__name__)

MAX_QUEUED = 20_000
"""Rows that wait in memory to be written, about 15 MB; of what comes beyond, the newest are dropped."""
BATCH_ROWS = 2_000
PRUNE_ROWS = 5_000
"""Deleted at once: more than is written at once, so that pruning keeps up, and few enough to be quick."""
CLOSE_SECONDS = 5.0
"""How long closing waits for a disk that does not answer."""

_COLUMNS_OF_1 = {
    "arrived_at": "REAL NOT NULL",
    "dispatched_seconds": "REAL",
    "first_token_seconds": "REAL",
    "ended_seconds": "REAL NOT NULL",
    "tenant": "TEXT NOT NULL",
    "tier": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "category": "TEXT NOT NULL",
    "prompt_tokens": "INTEGER NOT NULL",
    "completion_tokens": "INTEGER NOT NULL",
    "predicted_tokens": "REAL",
    "q50": "REAL",
    "q80": "REAL",
    "q90": "REAL",
    "max_tokens": "INTEGER",
    "outcome": "TEXT NOT NULL",
    "reason": "TEXT NOT NULL",
    "policy": "TEXT NOT NULL",
    "estimator": "TEXT NOT NULL",
    "overdue": "INTEGER NOT NULL",
}
_SINCE_2 = {
    "band": "INTEGER",
    "flow": "TEXT",
    "rank": "REAL",
    "charge": "REAL",
    "position": "INTEGER",
    "served_because": "TEXT",
    "overtook": "INTEGER",
    "overtaken": "INTEGER",
}
_COLUMNS = _COLUMNS_OF_1 | _SINCE_2
_SCHEMA = Schema(
    "journal",
    application_id=0x4453_4A4C,
    version=2,
    statements=(
        "CREATE TABLE requests (id INTEGER PRIMARY KEY, "
        + ", ".join(f"{n} {t}" for n, t in _COLUMNS.items())
        + ")",
        "CREATE INDEX requests_by_arrival ON requests (arrived_at)",
    ),
    migrations={1: tuple(f"ALTER TABLE requests ADD COLUMN {n} {t}" for n, t in _SINCE_2.items())},
)
_NO_PLACE = (None,) * len(_SINCE_2)
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a request that ended. Durations count from its arrival."""

    arrived_at: float
    """Wall clock, seconds since 1970 UTC."""
    dispatched_seconds: float | None
    """None if it never left the queue; so are the others for what did not come to pass."""
    first_token_seconds: float | None
    ended_seconds: float
    tenant: str
    tier: str
    """`premium`, `standard` or `batch`: what it was served at."""
    model: str
    category: str
    prompt_tokens: int
    """As the engine counted; estimated if it did not, 0 if rejected before anything was estimated."""
    completion_tokens: int
    """Produced, whether or not the answer became complete."""
    predicted_tokens: float | None
    """Completion tokens expected at admission; None, as the quantiles, if rejected."""
    q50: float | None
    q80: float | None
    q90: float | None
    max_tokens: int | None
    """The client's own limit."""
    outcome: str
    """`finished`, `rejected`, `evicted` or `failed`."""
    reason: str
    """The finish reason of what finished; else why it did not."""
    policy: str
    estimator: str
    overdue: bool
    """It was dispatched because it had waited its maximum."""
    band: int | None = None
    """Strict class it was placed in. None, as all that follow, if rejected or written by an older version."""
    flow: str | None = None
    rank: float | None = None
    """As it stood last."""
    charge: float | None = None
    """What its flow paid in the end, in weighted tokens."""
    position: int | None = None
    """Requests waiting at its admission, itself included."""
    served_because: str | None = None
    """A word of `driftsched.core.model.Why`; None if it was never dispatched."""
    overtook: int | None = None
    """Requests admitted before it that still waited when it was dispatched."""
    overtaken: int | None = None
    """Requests admitted after it that were dispatched while it waited."""


class Journal:
    """A listener that keeps a row of every request that ends. Owns its thread and its connection; close it.

    `written` and `dropped` count rows since the start. Of a file that cannot be written to, rows are kept in memory
    and tried again every `flush_seconds`, until `max_queued` wait.
    """

    def __init__(
        self,
        path: Path,
        *,
        policy: str,
        estimator: str,
        max_rows: int = 1_000_000,
        max_bytes: int = 1 << 30,
        max_days: float = 30.0,
        max_queued: int = MAX_QUEUED,
        flush_seconds: float = 0.5,
        connect: Connect = connect_to,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_rows`, `max_bytes` (of data, without the log beside it) and `max_days`: the oldest rows go beyond.

        Raises `ConfigError` if the file is something else than a journal of this version. A file that cannot be
        opened now is no error: it may be there later.
        """
        self.written = 0
        self.dropped = 0
        self._path = path
        self._parts = (policy, estimator)
        self._decisions: Decisions | None = None
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._max_days = max_days
        self._max_queued = max_queued
        self._flush_seconds = flush_seconds
        self._connect = connect
        self._wall_clock = wall_clock
        self._first_tokens: dict[str, float] = {}  # of what has begun to answer and has not ended
        self._queue: deque[tuple[object, ...]] = deque()  # appended to by the loop, emptied by the thread
        self._batch: list[tuple[object, ...]] = []  # taken from the queue and not yet safe: the thread's own
        self._connection: sqlite3.Connection | None = None  # the thread's own
        self._in_trouble = False
        self._overflowed = False
        self._closing = Signal()
        self._check_version()
        self._thread = Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        match event:
            case FirstToken():
                self._first_tokens[event.ticket.id] = event.at
            case Finished():
                self._ended(event, "finished", event.finish_reason)
            case Evicted():
                self._ended(event, "evicted", event.reason)
            case Failed():
                self._ended(event, "failed", event.error)
            case Rejected():
                ending = ("rejected", event.reason, False)
                self._put(event.at, event.request, None, Usage(), (None, None), ending, _NO_PLACE)
            case PolicyChanged():
                self._parts = (event.after, self._parts[1])
            case _:
                pass

    def consult(self, decisions: Decisions) -> None:
        """Take from there how requests were placed and passed. They must be told of every event before this is."""
        self._decisions = decisions

    def close(self) -> None:
        """Write what waits, as far as the disk lets it within `CLOSE_SECONDS`, and give the file back."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            _logger.error("journal %s: the disk does not answer: %d rows are lost", self._path, len(self._queue))

    def _ended(self, event: Finished | Evicted | Failed, outcome: str, reason: str) -> None:
        ticket = event.ticket
        began, first = event.dispatched_at, self._first_tokens.pop(ticket.id, None)
        overdue = began is not None and ticket.overdue_at <= began
        ending, place = (outcome, reason, overdue), self._place_of(ticket, event.charge)
        self._put(event.at, ticket.request, ticket.estimate, event.usage, (began, first), ending, place)

    def _place_of(self, ticket: Ticket, charge: float) -> tuple[object, ...]:
        """What goes into the columns of `_SINCE_2`."""
        place = (ticket.band, ticket.flow, ticket.rank, charge)
        decision = self._decisions.ended(ticket.id) if self._decisions else None
        if decision is None:
            return (*place, None, None, None, None)
        overtook = None if decision.dispatched_at is None else decision.overtook
        return (*place, decision.position, decision.why, overtook, decision.overtaken)

    def _put(
        self,
        at: float,
        request: Request,
        estimate: Estimate | None,
        usage: Usage,
        instants: tuple[float | None, float | None],
        ending: tuple[str, str, bool],
        place: tuple[object, ...],
    ) -> None:
        if len(self._queue) >= self._max_queued:
            self.dropped += 1
            if not self._overflowed:
                self._overflowed = True
                _logger.error("journal %s: %d rows wait already: dropping others", self._path, self._max_queued)
            return
        arrived_at = request.arrived_at
        outcome, reason, overdue = ending
        # The wall clock is read now and counted back: a monotonic clock stands still while a machine is suspended.
        row = (
            self._wall_clock() - (at - arrived_at),
            *(None if instant is None else instant - arrived_at for instant in instants),
            at - arrived_at,
            request.tenant.id,
            request.tier.label,
            request.model,
            request.category,
            usage.prompt_tokens or request.prompt_tokens,
            usage.completion_tokens,
            *(_quantiles(estimate) if estimate else (None, None, None, None)),
            request.max_tokens,
            outcome,
            reason,
            *self._parts,
            overdue,
            *place,
        )
        self._queue.append(row)

    def _check_version(self) -> None:
        try:
            if self._path.exists():
                with closing(self._connect(self._path)) as connection:
                    _SCHEMA.check(connection, self._path)
        except (sqlite3.Error, OSError) as error:
            self._tell_trouble(error)

    def _work(self) -> None:
        while not self._closing.wait(self._flush_seconds):
            self._write_all()
        self._write_all()
        lost = len(self._batch) + len(self._queue)
        if lost:
            self.dropped += lost
            _logger.error("journal %s: %d rows could not be written and are lost", self._path, lost)
        self._disconnect()

    def _write_all(self) -> None:
        """Write what waits; of a failure nothing is lost, and the next call tries again with a new connection."""
        try:
            while self._batch or self._queue:
                self._write_batch(self._connected())
        except (sqlite3.Error, OSError, ConfigError) as error:
            self._tell_trouble(error)
            self._disconnect()

    def _write_batch(self, connection: sqlite3.Connection) -> None:
        while self._queue and len(self._batch) < BATCH_ROWS:
            self._batch.append(self._queue.popleft())
        connection.execute("BEGIN IMMEDIATE")
        unwritable = sum(not _insert(connection, row) for row in self._batch)
        self._prune(connection)
        connection.execute("COMMIT")
        self.written += len(self._batch) - unwritable
        self.dropped += unwritable
        self._batch.clear()
        self._overflowed = False
        if self._in_trouble:
            self._in_trouble = False
            _logger.info("journal %s: written to again", self._path)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete the oldest rows beyond a limit, `PRUNE_ROWS` at most. Ids have no gaps: only the oldest go."""
        first, last = connection.execute("SELECT min(id), max(id) FROM requests").fetchone()
        if first is None:
            return
        num_rows = last - first + 1
        oldest_allowed = self._wall_clock() - self._max_days * 86_400
        (too_old,) = connection.execute(
            "SELECT count(*) FROM requests WHERE id < ? AND arrived_at < ?", (first + PRUNE_ROWS, oldest_allowed)
        ).fetchone()
        excess = max(num_rows - self._max_rows, too_old)
        if _used_bytes(connection) > self._max_bytes:
            excess = max(excess, 1, num_rows // 10)
        if excess > 0:
            connection.execute("DELETE FROM requests WHERE id < ?", (first + min(excess, PRUNE_ROWS),))

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = self._connect(self._path)
            try:
                _SCHEMA.prepare(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()  # rolls back what was not committed
            except sqlite3.Error as error:
                self._tell_trouble(error)
            self._connection = None

    def _tell_trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            _logger.error("journal %s: %s: serving goes on, and it is tried again", self._path, error)


def read_journal(path: Path, *, since: float = -inf, until: float = inf) -> list[Entry]:
    """The rows that arrived from `since` on and before `until`, in seconds since 1970 UTC, in order of arrival.

    A gateway may be writing meanwhile. Raises `ConfigError` if the file cannot be read or is no such journal.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file: give the journal that `driftsched serve --journal` writes")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            _SCHEMA.check(connection, path)
            return [_entry(row) for row in _within(connection, since, until)]
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}") from None


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip(_COLUMNS, row, strict=True))
    return Entry(**values | {"overdue": bool(values["overdue"])})


def _within(connection: sqlite3.Connection, since: float, until: float) -> Iterator[tuple[Any, ...]]:
    if is_empty(connection):
        return iter(())  # nothing has been written yet
    known = {row[1] for row in connection.execute("PRAGMA table_info(requests)")}
    columns = ", ".join(name if name in known else "NULL" for name in _COLUMNS)
    return connection.execute(
        f"SELECT {columns} FROM requests WHERE arrived_at >= ? AND arrived_at < ? ORDER BY arrived_at, id",  # noqa: S608
        (since, until),
    )


def _insert(connection: sqlite3.Connection, row: tuple[object, ...]) -> bool:
    """False if SQLite has no room for one of the values, such as an integer of more than 64 bits."""
    try:
        connection.execute(_INSERT, row)
    except (OverflowError, UnicodeEncodeError, sqlite3.IntegrityError):
        return False
    return True


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _quantiles(estimate: Estimate) -> tuple[float, float, float, float]:
    return estimate.completion_tokens, estimate.q50, estimate.q80, estimate.q90
