"""What was learnt, kept over a restart: the latest state of each component, in one SQLite file.

The event loop takes snapshots, one thread reads and writes. Whatever happens to the file, serving starts and goes
on: a file that cannot be used is set aside, never overwritten, and trouble with the disk is logged once.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import count
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from typing import Any

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.core.protocols import Stateful
from driftsched.telemetry.sqlite import Connect, OtherVersionError, Schema, connect_to, is_empty

_logger = logging.getLogger(__name__)

State = dict[str, Any]
_Packed = tuple[str, int, bytes]

DISK_SECONDS = 5.0

_SCHEMA = Schema(
    "state",
    application_id=0x4453_5354,
    version=1,
    statements=(
        "CREATE TABLE states "
        "(name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, state BLOB NOT NULL)",
    ),
)
_UPSERT = "INSERT OR REPLACE INTO states (name, version, saved_at, state) VALUES (?, ?, ?, ?)"
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
"""Kinds of failure that say that the file is not what it should be; others come from the disk and may pass."""


class StateStore:
    """The file. It is one process's own from the first `load` or `save` on; close it.

    Every method may block, and raises `OSError` or `sqlite3.Error` if the disk does not let it, or another process
    has the file; then nothing has changed. All but `close` raise `ConfigError` for a database of something else.
    """

    def __init__(
        self, path: Path, *, connect: Connect = connect_to, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Directories that are missing are made; they and the file are for their owner only."""
        self.path = path
        self._connect = connect
        self._wall_clock = wall_clock
        self._lock: int | None = None
        self._saved: list[_Packed] = []
        self._unwritable: set[str] = set()

    def load(self) -> dict[str, State]:
        """The state of each component by its name. What holds none that can be read is set aside."""
        self._own()
        if not self.path.exists():
            return {}
        try:
            with closing(self._connect(self.path)) as connection:
                _SCHEMA.check(connection, self.path)
                rows = (
                    [] if is_empty(connection) else connection.execute("SELECT name, state FROM states").fetchall()
                )
            return {str(name): msgspec.msgpack.decode(state, type=State) for name, state in rows}
        except (OtherVersionError, sqlite3.Error, ValueError, TypeError, RecursionError) as error:
            if not _is_damage(error):
                raise
            self.set_aside(str(error))
            return {}

    def save(self, states: Mapping[str, Mapping[str, object]]) -> None:
        """Write all of them or none; nothing if nothing has changed. Other names keep what they have."""
        self._own()
        packed = [row for name, state in states.items() if (row := self._pack(name, state))]
        if packed == self._saved:
            return
        try:
            self._write(packed)
        except (OtherVersionError, sqlite3.Error) as error:
            if not _is_damage(error):
                raise
            self.set_aside(str(error))
            self._write(packed)
        self._saved = packed

    def set_aside(self, why: str) -> None:
        """Rename the file, so that a new one can take its place."""
        self._own()
        self._saved = []
        aside = next(f"{self.path}.bad-{n}" for n in count(1) if not Path(f"{self.path}.bad-{n}").exists())
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        _logger.warning("state %s: %s: it is set aside as %s, and a new file begun", self.path, why, aside)

    def close(self) -> None:
        """Let another process have the file."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _own(self) -> None:
        """A second gateway would overwrite what the first one has learnt, and the other way round."""
        if self._lock is not None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OSError("another gateway keeps there what it learns: give this one a file of its own") from None
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def _pack(self, name: str, state: Mapping[str, object]) -> "_Packed | None":
        """None, told once, for what is no plain data with a version, such as a plug-in may give."""
        try:
            version = state["version"]
            if isinstance(version, int) and abs(version) < 1 << 63:
                return name, version, msgspec.msgpack.encode(state)
            problem: object = f"version: must be a whole number of at most 64 bits, not {version!r}"
        except Exception as error:
            problem = repr(error)
        if name not in self._unwritable:
            self._unwritable.add(name)
            _logger.error("state %s: %s is left out: %s", self.path, name, problem)
        return None

    def _write(self, packed: "list[_Packed]") -> None:
        now = self._wall_clock()
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # the log beside it follows suit
        with closing(self._connect(self.path)) as connection:
            _SCHEMA.prepare(connection, self.path)
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_UPSERT, [(name, version, now, state) for name, version, state in packed])
            connection.execute("COMMIT")


class StateKeeper:
    """Restores components when serving starts, and saves them every `save_seconds` and when it ends.

    Owns its store, a thread and a task. Of a kill, what was learnt in the last `save_seconds` is lost.
    """

    def __init__(
        self, store: StateStore, *, save_seconds: float = 60.0, disk_seconds: float = DISK_SECONDS
    ) -> None:
        """`disk_seconds`: how long starting and closing wait for a disk that does not answer."""
        self._store = store
        self._save_seconds = save_seconds
        self._disk_seconds = disk_seconds
        self._parts: dict[str, Stateful] = {}
        self._task: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._work, name="state", daemon=True)
        # What loop and thread hand each other; each is written by one of them and taken by the other.
        self._due = Signal()
        self._answered = Signal()
        self._closing = False
        self._unusable: ConfigError | None = None
        self._loaded: dict[str, State] | None = None
        self._refused: str | None = None
        self._latest: dict[str, dict[str, object]] | None = None
        # The thread's own.
        self._has_loaded = False
        self._in_trouble = False
        # The loop's own.
        self._broken: set[str] = set()

    def keep(self, name: str, part: object) -> None:
        """Keep what `part` learns under `name`, if it learns anything. Before `start`."""
        if isinstance(part, Stateful):
            self._parts[name] = part

    def start(self) -> None:
        """Restore, and save from here on; needs a running loop. Raises `ConfigError` for a file of something else.

        Blocks the loop while the file is read, `disk_seconds` at most: nothing is served yet.
        """
        self._thread.start()
        if not self._answered.wait(self._disk_seconds):
            _logger.warning("state %s: the disk does not answer: serving starts without it", self._store.path)
        if self._unusable is not None:
            raise self._unusable
        self._take_over(merge=False)
        self._due.set()  # what was refused is set aside now
        self._task = asyncio.create_task(self._save_from_time_to_time())

    def close(self) -> None:
        """Save what was learnt, as far as the disk lets it within `disk_seconds`, and give the file back."""
        if not self._thread.is_alive():
            return  # it was never started
        if self._task is not None:
            self._task.cancel()
            self._hand_over()
        self._closing = True
        self._due.set()
        self._thread.join(self._disk_seconds)
        if self._thread.is_alive():
            _logger.error("state %s: the disk does not answer: what was learnt last is lost", self._store.path)

    async def _save_from_time_to_time(self) -> None:
        while True:
            await asyncio.sleep(self._save_seconds)
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the thread what is to be saved; if it has not got to the last snapshot, it never will."""
        self._take_over(merge=True)
        self._latest = {name: state for name, part in self._parts.items() if (state := self._snapshot(name, part))}
        self._due.set()

    def _take_over(self, *, merge: bool) -> None:
        """Let the components have what was loaded. `merge`: they have learnt something meanwhile."""
        states = self._loaded
        if states is None:
            return
        self._loaded = None
        refused = []
        for name in self._parts.keys() & states.keys():
            part = self._parts[name]
            try:
                (part.merge if merge else part.restore)(states[name])
            except Exception as error:  # a plug-in may raise anything: serving must start all the same
                refused.append(f"{name}: {error}")
        if refused:
            self._refused = "; ".join(sorted(refused))

    def _snapshot(self, name: str, part: Stateful) -> dict[str, object] | None:
        """None, told once, if the part fails, as a plug-in may: the others are kept all the same."""
        try:
            return part.snapshot()
        except Exception:
            if name not in self._broken:
                self._broken.add(name)
                _logger.exception("state %s: %s cannot tell what it has learnt", self._store.path, name)
            return None

    def _work(self) -> None:
        try:
            self._load()
        except ConfigError as error:
            self._unusable = error
        except Exception as error:
            self._tell_trouble(error)
        self._answered.set()
        closing = False
        while not closing:
            self._due.wait()
            self._due.clear()
            closing = self._closing
            if self._has_loaded or not closing:
                self._load_or_save()
        self._store.close()

    def _load(self) -> None:
        self._loaded = self._store.load()
        self._has_loaded = True

    def _load_or_save(self) -> None:
        """What is in a file that has not been read yet is not overwritten, but merged at the next turn."""
        try:
            if not self._has_loaded:
                self._load()
            if self._loaded is not None:
                return  # the loop has not taken it yet
            if self._refused is not None:
                self._store.set_aside(self._refused)
                self._refused = None
            if (states := self._latest) is not None:
                self._latest = None
                self._store.save(states)
        except Exception as error:  # of the disk, or of a plug-in whose state is not plain data
            self._tell_trouble(error)
        else:
            self._tell_recovery()

    def _tell_trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            _logger.error("state %s: %s: serving goes on, and it is tried again", self._store.path, error)

    def _tell_recovery(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            _logger.info("state %s: written to again", self._store.path)


def _is_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE
    return True
