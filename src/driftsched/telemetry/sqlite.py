"""What the SQLite files of this package have in common: how one is opened, told from others, and made."""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    migrations: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By version: what makes a file of it one of the next. Files of these versions can be read as they are."""

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Raises `ConfigError` unless the database is empty, or of this kind and of a version that is known."""
        version = _version_of(connection)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != self.application_id and (application or version or not is_empty(connection)):
            raise ConfigError(f"{self.what}: {path} is a database of something else: name another file")
        if application == self.application_id and version not in (self.version, *self.migrations):
            raise OtherVersionError(
                f"{self.what}: {path} has schema version {version}, and this driftsched knows {self.version}: "
                "name another file, or use the driftsched that wrote it"
            )

    def prepare(self, connection: sqlite3.Connection, path: Path) -> None:
        """Make the tables in a new file, bring an older one up to date. Raises `ConfigError` as `check` does."""
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
        elif _version_of(connection) != self.version:
            self._migrate(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """All steps or none: whoever closes the connection after a failure rolls back."""
        connection.execute("BEGIN IMMEDIATE")
        for version in range(_version_of(connection), self.version):  # read again: another gateway may have done it
            for statement in self.migrations[version]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {self.version}")
        connection.execute("COMMIT")


def _version_of(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
