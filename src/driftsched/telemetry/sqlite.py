"""What the SQLite files of this package have in common: how one is opened, told from others, and made."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from driftsched.core.errors import ConfigError

BUSY_SECONDS = 1.0

Connect = Callable[[Path], sqlite3.Connection]


class OtherVersionError(ConfigError):
    """The file was written by another version of driftsched."""


def connect_to(path: Path) -> sqlite3.Connection:
    """A connection that waits up to `BUSY_SECONDS` for another one's lock, each statement its own transaction."""
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def is_empty(connection: sqlite3.Connection) -> bool:
    """Nothing has been made in it yet."""
    return not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of file."""

    what: str
    """Its name in messages."""
    application_id: int
    """Stands in the header of the file, and tells this kind from any other SQLite database."""
    version: int
    statements: tuple[str, ...]
    """What makes its tables."""

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Raises `ConfigError` unless the database is empty or of this kind and version."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != self.application_id and (application or version or not is_empty(connection)):
            raise ConfigError(f"{self.what}: {path} is a database of something else: name another file")
        if application == self.application_id and version != self.version:
            raise OtherVersionError(
                f"{self.what}: {path} has schema version {version}, and this driftsched knows {self.version}: "
                "name another file, or use the driftsched that wrote it"
            )

    def prepare(self, connection: sqlite3.Connection, path: Path) -> None:
        """Make the tables in a new file. Raises `ConfigError` as `check` does."""
        self.check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # losing power may lose what came last, not the file
        if is_empty(connection):
            connection.execute("BEGIN IMMEDIATE")
            for statement in self.statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self.application_id}")
            connection.execute(f"PRAGMA user_version = {self.version}")
            connection.execute("COMMIT")
