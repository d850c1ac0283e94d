"""What was learnt, kept over a restart."""

import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import count
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from threading import Event as Signal
from typing import Any

import msgspec
import pytest

from driftsched.core.errors import ConfigError
from driftsched.telemetry.sqlite import connect_to
from driftsched.telemetry.state import StateKeeper, StateStore
from support.servers import until

NOW = 1_700_000_000.0


class Sum:
    """Learns numbers, and knows their sum."""

    def __init__(self, known: int = 0) -> None:
        self.known = known

    def snapshot(self) -> dict[str, object]:
        return {"version": 1, "known": self.known}

    def restore(self, state: Mapping[str, object]) -> None:
        self.known = self._read(state)

    def merge(self, state: Mapping[str, object]) -> None:
        self.known += self._read(state)

    def _read(self, state: Mapping[str, object]) -> int:
        known = state["known"]
        if state["version"] != 1 or not isinstance(known, int):
            raise ValueError("not of version 1")
        return known


@contextmanager
def store_at(path: Path, **options: Any) -> Iterator[StateStore]:
    store = StateStore(path, **options)
    try:
        yield store
    finally:
        store.close()


def save_at(path: Path, **states: Any) -> None:
    with store_at(path) as store:
        store.save(states)


def load_at(path: Path) -> dict[str, Any]:
    with store_at(path) as store:
        return store.load()


def state(known: Any, version: int = 1) -> dict[str, Any]:
    return {"version": version, "known": known}


@asynccontextmanager
async def keeper_at(path: Path, connect: Any = connect_to, **parts: Any) -> AsyncIterator[StateKeeper]:
    options = {name: parts.pop(name) for name in ("save_seconds", "disk_seconds") if name in parts}
    keeper = StateKeeper(StateStore(path, connect=connect), **options)
    for name, part in parts.items():
        keeper.keep(name, part)
    try:
        keeper.start()
        yield keeper
    finally:
        keeper.close()


def read_only(path: Path) -> dict[str, Any]:
    """What the file holds, though it is another's."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute("SELECT name, state FROM states").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return {}
    return {name: msgspec.msgpack.decode(packed) for name, packed in rows}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    states = {"a": {"version": 1, "rows": [["é", 1, 0.1]], "table": b"\x00\xff"}, "b": {"version": 7}}
    save_at(tmp_path / "s.db", **states)
    assert states == load_at(tmp_path / "s.db")


def test_before_anything_was_saved_there_is_nothing(tmp_path: Path) -> None:
    assert {} == load_at(tmp_path / "s.db")
    (tmp_path / "s.db").touch()
    assert {} == load_at(tmp_path / "s.db")


def test_a_name_that_is_not_saved_keeps_what_it_has(tmp_path: Path) -> None:
    save_at(tmp_path / "s.db", a=state(1), b=state(2))
    save_at(tmp_path / "s.db", b=state(3))
    assert {"a": state(1), "b": state(3)} == load_at(tmp_path / "s.db")


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    clock = count(1)
    with store_at(tmp_path / "s.db", wall_clock=lambda: next(clock)) as store:
        for known in (5, 5, 5, 6):
            store.save({"a": state(known, version=3)})
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert [("a", 3, 2.0)] == connection.execute("SELECT name, version, saved_at FROM states").fetchall()


def test_files_and_new_directories_are_their_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "s.db"
    modes: set[int] = set()

    def connect(where: Path) -> sqlite3.Connection:
        connection = connect_to(where)

        def look(*_: object) -> int:
            modes.update(mode_of(file) for file in path.parent.iterdir())
            return 0

        connection.set_progress_handler(look, 1)
        return connection

    before = os.umask(0)
    try:
        with store_at(path, connect=connect) as store:
            store.save({"a": state(1)})
    finally:
        os.umask(before)
    assert {0o600} == modes
    assert [0o700] == [mode_of(path.parent)]


def truncated(path: Path) -> None:
    save_at(path, a=state("x" * 50_000))
    os.truncate(path, path.stat().st_size // 2)


def changed(*statements: str, packed: bytes = b"") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        save_at(path, a=state(1))
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement, [packed] if "?" in statement else [])

    return change


BAD: dict[str, Callable[[Path], object]] = {
    "a note": lambda path: path.write_text("bread, milk"),
    "a picture": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "cut short": truncated,
    "newer": changed("PRAGMA user_version = 2"),
    "without its table": changed("DROP TABLE states", "CREATE TABLE others (a)"),
    "with another table": changed("DROP TABLE states", "CREATE TABLE states (name, content)"),
    "no text for a name": changed("UPDATE states SET name = CAST(x'ff' AS TEXT)"),
    "not packed": changed("UPDATE states SET state = x'c1'"),
    "packed and cut short": changed("UPDATE states SET state = substr(state, 1, 5)"),
    "no dictionary": changed("UPDATE states SET state = x'93010203'"),
    "too deep": changed("UPDATE states SET state = ?", packed=b"\x81\xa1a" + b"\x91" * 100_000),
    "text": changed("UPDATE states SET state = 'text'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_holds_no_state_is_set_aside(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    for number in (1, 2):
        BAD[kind](path)
        content = path.read_bytes()
        assert {} == load_at(path)
        assert content == Path(f"{path}.bad-{number}").read_bytes()
        save_at(path, a=state(number))
        assert {"a": state(number)} == load_at(path)
        path.unlink()
    assert ["set aside"] * 2 == [line[line.index("set aside") :][:9] for line in lines(caplog)]


def test_what_is_set_aside_has_its_log_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(connect_to(tmp_path / "open.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE states (name, state)")
        for suffix in ("", "-wal"):  # as a kill would leave them
            shutil.copy(tmp_path / f"open.db{suffix}", f"{path}{suffix}")
    with store_at(path) as store:
        store.set_aside("of a test")
    with closing(sqlite3.connect(f"{path}.bad-1")) as connection:
        assert [] == connection.execute("SELECT * FROM states").fetchall()


def test_a_file_that_is_damaged_meanwhile_is_set_aside_when_it_is_saved_to(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with store_at(path) as store:
        store.save({"a": state(1)})
        path.write_bytes(b"rubbish" * 1000)
        store.save({"a": state(2)})
        assert {"a": state(2)} == store.load()
    assert b"rubbish" * 1000 == Path(f"{path}.bad-1").read_bytes()


@pytest.mark.parametrize("application", [0, 5])
def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path, application: int) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name)")
        connection.execute(f"PRAGMA application_id = {application}")
    content = path.read_bytes()
    with store_at(path) as store:
        with pytest.raises(ConfigError, match=r"s\.db is a database of something else"):
            store.load()
        with pytest.raises(ConfigError, match=r"s\.db is a database of something else"):
            store.save({"a": state(1)})
    assert content == path.read_bytes()


def test_a_file_belongs_to_one_gateway_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with store_at(path) as one, store_at(path) as other:
        one.save({"a": state(1)})
        for attempt in (other.load, lambda: other.save({"a": state(2)})):
            with pytest.raises(OSError, match="another gateway"):
                attempt()
        one.close()
        assert {"a": state(1)} == other.load()


def test_what_is_no_plain_data_is_left_out_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong: list[Any] = [
        {},
        {"version": "1"},
        {"version": 1 << 70},
        state(object()),
        state("\ud800"),
        state(1 << 70),
    ]
    with store_at(tmp_path / "s.db") as store:
        for known in (1, 2):
            store.save({"a": state(known), **{f"wrong-{i}": wrong_one for i, wrong_one in enumerate(wrong)}})
    assert {"a": state(2)} == load_at(tmp_path / "s.db")
    assert len(wrong) == len(lines(caplog))


def test_a_full_disk_leaves_what_was_saved_before(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    soft, hard = getrlimit(RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with store_at(path) as store:
            store.save({"a": state(1), "b": state(1)})
            setrlimit(RLIMIT_FSIZE, (20_000, hard))
            with pytest.raises((OSError, sqlite3.OperationalError)):
                store.save({"a": state(2), "b": state("x" * 100_000)})
            setrlimit(RLIMIT_FSIZE, (soft, hard))
            assert {"a": state(1), "b": state(1)} == store.load()
            store.save({"a": state(3), "b": state(3)})
            assert {"a": state(3), "b": state(3)} == store.load()
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


ENDLESS = """
import sys
from itertools import count
from pathlib import Path
from driftsched.telemetry.state import StateStore

store = StateStore(Path(sys.argv[1]))
for number in count():
    state = {"version": 1, "known": number, "bulk": b"x" * 300_000}
    store.save({"a": state, "b": state})
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_saving_leaves_all_of_one_save(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "s.db")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 20:
                process.kill()
    found = load_at(tmp_path / "s.db")
    assert found["a"] == found["b"]
    assert found["a"]["known"] >= 20


async def test_what_was_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    async with keeper_at(tmp_path / "s.db", one=(one := Sum()), other=(other := Sum())):
        one.known, other.known = 3, 4
    async with keeper_at(tmp_path / "s.db", one=(one := Sum()), other=(other := Sum())):
        assert (3, 4) == (one.known, other.known)


async def test_it_is_saved_from_time_to_time(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with keeper_at(path, part=(part := Sum()), save_seconds=0.002):
        for known in (1, 2, 3):
            part.known = known
            expected = {"part": state(known)}
            await until(lambda expected=expected: read_only(path) == expected)  # type: ignore[misc]


async def test_what_learns_nothing_is_not_kept(tmp_path: Path) -> None:
    async with keeper_at(tmp_path / "s.db", learner=Sum(1), nothing=object()):
        pass
    assert {"learner": state(1)} == load_at(tmp_path / "s.db")


async def test_a_state_that_is_refused_is_set_aside_and_the_others_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    save_at(path, good=state(1), newer=state(2, version=2), broken=state("x"))
    async with keeper_at(path, good=(good := Sum()), newer=(newer := Sum(9)), broken=Sum()):
        assert (1, 9) == (good.known, newer.known)
        await until(Path(f"{path}.bad-1").exists)
    assert {"good": state(1), "newer": state(9), "broken": state(0)} == load_at(path)
    assert state(2, version=2) == load_at(Path(f"{path}.bad-1"))["newer"]
    (line,) = lines(caplog)
    assert "broken: not of version 1; newer: not of version 1: it is set aside as" in line


async def test_a_database_of_something_else_keeps_serving_from_starting(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("CREATE TABLE customers (name)")
    with pytest.raises(ConfigError, match="something else"):
        async with keeper_at(tmp_path / "s.db", part=Sum()):
            pass
    with pytest.raises(ConfigError, match="something else"):
        load_at(tmp_path / "s.db")  # nobody holds it any more


async def test_a_file_that_cannot_be_read_at_first_is_merged_later_and_not_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, answers = tmp_path / "s.db", Signal()
    held: list[int] = []  # by the file, at every attempt

    def connect(where: Path) -> sqlite3.Connection:
        held.append(read_only(path)["part"]["known"])
        if not answers.is_set():
            raise PermissionError("not now")
        return connect_to(where)

    save_at(path, part=state(100))
    async with keeper_at(path, connect, part=(part := Sum()), save_seconds=0.002):
        part.known = 5
        await until(lambda: len(held) > 4)
        answers.set()
        await until(lambda: {"part": state(105)} == read_only(path))
        assert 105 == part.known
    assert {100} == {*held}
    assert 1 == len(lines(caplog))


async def test_a_disk_that_does_not_answer_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, answers = tmp_path / "s.db", Signal()

    def connect(where: Path) -> sqlite3.Connection:
        answers.wait(10)
        return connect_to(where)

    save_at(path, part=state(100))
    keeper = StateKeeper(StateStore(path, connect=connect), save_seconds=0.002, disk_seconds=0.01)
    keeper.keep("part", part := Sum(1))
    try:
        keeper.start()
        assert 1 == part.known
        assert "does not answer" in lines(caplog)[0]
        answers.set()
        await until(lambda: part.known == 101)
    finally:
        answers.set()
        keeper.close()


async def test_a_disk_that_never_answers_does_not_keep_the_gateway_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Signal()

    def connect(where: Path) -> sqlite3.Connection:
        answers.wait(10)
        return connect_to(where)

    save_at(tmp_path / "s.db", part=state(100))
    async with keeper_at(tmp_path / "s.db", connect, part=Sum(), disk_seconds=0.01):
        pass
    assert "what was learnt last is lost" in lines(caplog)[-1]
    answers.set()


async def test_a_place_that_can_be_written_to_later_is_used_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "folder"
    in_the_way.touch()
    path = in_the_way / "s.db"
    async with keeper_at(path, part=Sum(7), save_seconds=0.002):
        await until(lambda: lines(caplog))
        in_the_way.unlink()
        await until(path.exists)
    assert {"part": state(7)} == load_at(path)
    assert 1 == len(lines(caplog))


async def test_a_second_gateway_serves_without_the_file_until_the_first_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    first = StateKeeper(StateStore(path))
    first.keep("part", Sum(10))
    first.start()
    async with keeper_at(path, part=(part := Sum()), save_seconds=0.002):
        assert "another gateway" in lines(caplog)[0]
        part.known = 1
        first.close()
        await until(lambda: part.known == 11)
    assert {"part": state(11)} == load_at(path)


async def test_a_part_that_fails_spoils_nothing_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Sum):
        attempts = 0

        def snapshot(self) -> dict[str, object]:
            self.attempts += 1
            raise RuntimeError("no idea")

        def restore(self, state: Mapping[str, object]) -> None:
            raise RuntimeError("no idea")

    path = tmp_path / "s.db"
    save_at(path, broken=state(1), good=state(1))
    async with keeper_at(path, broken=(broken := Broken()), good=(good := Sum()), save_seconds=0.001):
        assert 1 == good.known
        good.known = 2
        await until(lambda: Path(f"{path}.bad-1").exists() and broken.attempts > 3)
    assert {"good": state(2)} == load_at(path)
    assert 1 == len([line for line in lines(caplog) if "cannot tell what it has learnt" in line])


def test_a_keeper_that_never_started_can_be_closed(tmp_path: Path) -> None:
    StateKeeper(StateStore(tmp_path / "s.db")).close()
    assert [] == list(tmp_path.iterdir())
