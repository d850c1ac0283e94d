import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from signal import SIG_IGN, SIGXFSZ, signal
from threading import Event as Signal
from typing import Any

import aiohttp
import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.events import (
    Admitted,
    Dispatched,
    Event,
    Evicted,
    Failed,
    Finished,
    FirstToken,
    PolicyChanged,
    Rejected,
)
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.telemetry.decisions import Decisions
from driftsched.telemetry.journal import Entry, Journal, read_journal
from driftsched.telemetry.sqlite import connect_to
from support.servers import chat, live_gateway, simulated, until

NOW = 1_700_000_000.0


def ticket(number: int = 0, *, overdue_at: float = 99.0, **fields: Any) -> Ticket:
    request = Request(
        f"r{number}",
        Tenant("acme"),
        Tier.BATCH,
        "m",
        arrived_at=10.0,
        prompt="a secret",
        prompt_tokens=5,
        category="summary",
        payload=b"a secret",
        **fields,
    )
    return Ticket(request, Estimate(100.0, 90.0, 150.0, 200.0), 0, 0, "f", 0.0, 1.0, overdue_at)


def finished(number: int = 0, **fields: Any) -> Finished:
    return Finished(14.0, ticket(number, **fields), Usage(7, 130), "stop", 12.0, 12.5, 1.0)


@contextmanager
def journal_at(path: Path, **options: Any) -> Iterator[Journal]:
    journal = Journal(
        path,
        **{
            "policy": "sjf",
            "estimator": "ema",
            "wall_clock": lambda: NOW,
            "flush_seconds": 0.005,
            "max_days": 1e6,
            **options,
        },
    )
    try:
        yield journal
    finally:
        journal.close()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_finished_request_leaves_all_its_lengths_and_times(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(FirstToken(12.5, ticket()))
        journal(finished(max_tokens=400, overdue_at=12.0))
    expected = Entry(
        arrived_at=NOW - 4.0,
        dispatched_seconds=2.0,
        first_token_seconds=2.5,
        ended_seconds=4.0,
        tenant="acme",
        tier="batch",
        model="m",
        category="summary",
        prompt_tokens=7,
        completion_tokens=130,
        predicted_tokens=100.0,
        q50=90.0,
        q80=150.0,
        q90=200.0,
        max_tokens=400,
        outcome="finished",
        reason="stop",
        policy="sjf",
        estimator="ema",
        overdue=True,
        band=0,
        flow="f",
        rank=0.0,
        charge=1.0,
    )
    assert [expected] == read_journal(tmp_path / "j.db")


def test_how_a_request_was_placed_and_passed_is_in_its_row(tmp_path: Path) -> None:
    decisions = Decisions("sjf", max_ended=1)
    with journal_at(tmp_path / "j.db") as journal:
        journal.consult(decisions)
        events: list[Event] = [
            *(Admitted(10.0, ticket(number), position=number + 1) for number in range(3)),
            Dispatched(11.0, ticket(1), why="least_served"),
            finished(1),
            Evicted(15.0, ticket(2), "cancelled", Usage(), None, 0.0),
            Dispatched(16.0, ticket(0), why="overdue"),
            finished(0),
        ]
        for event in events:
            decisions(event)
            journal(event)
    rows = sorted(read_journal(tmp_path / "j.db"), key=lambda row: row.position or 0)
    assert [(1, "overdue", 0, 1), (2, "least_served", 1, 0), (3, None, None, 0)] == [
        (row.position, row.served_because, row.overtook, row.overtaken) for row in rows
    ]


VERSION_1 = """
    CREATE TABLE requests (id INTEGER PRIMARY KEY, arrived_at REAL NOT NULL, dispatched_seconds REAL,
        first_token_seconds REAL, ended_seconds REAL NOT NULL, tenant TEXT NOT NULL, tier TEXT NOT NULL,
        model TEXT NOT NULL, category TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, predicted_tokens REAL, q50 REAL, q80 REAL, q90 REAL, max_tokens INTEGER,
        outcome TEXT NOT NULL, reason TEXT NOT NULL, policy TEXT NOT NULL, estimator TEXT NOT NULL,
        overdue INTEGER NOT NULL);
    CREATE INDEX requests_by_arrival ON requests (arrived_at);
    INSERT INTO requests VALUES (1, 1699990000.0, 2.0, 2.5, 4.0, 'acme', 'batch', 'm', 'summary', 7, 130, 100.0,
        90.0, 150.0, 200.0, NULL, 'finished', 'stop', 'sjf', 'ema', 1);
    PRAGMA application_id = 1146309196;
    PRAGMA user_version = 1;
"""


@pytest.fixture
def old_journal(tmp_path: Path) -> Path:
    """A file as the first version of the journal wrote it."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    return path


def test_a_file_of_version_1_can_be_read_as_it_is(old_journal: Path) -> None:
    (row,) = read_journal(old_journal)
    assert ("acme", 130, True, None, None) == (
        row.tenant,
        row.completion_tokens,
        row.overdue,
        row.flow,
        row.served_because,
    )
    with closing(sqlite3.connect(old_journal)) as connection:
        assert (1,) == connection.execute("PRAGMA user_version").fetchone()


def test_a_file_of_version_1_is_brought_up_to_date_and_keeps_its_rows(old_journal: Path) -> None:
    with journal_at(old_journal) as journal:
        journal(finished())
    assert [(None, True), ("f", False)] == [(row.flow, row.overdue) for row in read_journal(old_journal)]
    with closing(sqlite3.connect(old_journal)) as connection:
        assert (2,) == connection.execute("PRAGMA user_version").fetchone()


def test_a_file_is_brought_up_to_date_as_a_whole_or_not_at_all(
    old_journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(old_journal)) as connection:
        connection.execute("ALTER TABLE requests ADD COLUMN overtaken INTEGER")  # so that the last step must fail
    with journal_at(old_journal) as journal:
        journal(finished())
    assert (0, 1) == (journal.written, journal.dropped)
    assert any("duplicate column" in line for line in complaints(caplog))
    with closing(sqlite3.connect(old_journal)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
    assert ["overdue", "overtaken"] == columns[-2:]


def test_every_way_out_leaves_one_row(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(Dispatched(12.0, ticket(), why="smallest_rank"))
        journal(Rejected(10.0, ticket(1).request, "queue_full", None))
        journal(Evicted(11.0, ticket(2), "expired", Usage(), None, 0.0))
        journal(FirstToken(11.0, ticket(3)))
        journal(Evicted(12.0, ticket(3), "cancelled", Usage(5, 6), 10.5, 1.0))
        journal(Failed(13.0, ticket(4), "broken_stream", Usage(5, 8), 10.5, 1.0))
        journal(finished(5))
    rows = sorted(read_journal(tmp_path / "j.db"), key=lambda entry: entry.ended_seconds)
    assert [
        ("rejected", "queue_full", None, None, 0.0, None, 0),
        ("evicted", "expired", None, None, 1.0, 100.0, 0),
        ("evicted", "cancelled", 0.5, 1.0, 2.0, 100.0, 6),
        ("failed", "broken_stream", 0.5, None, 3.0, 100.0, 8),
        ("finished", "stop", 2.0, None, 4.0, 100.0, 130),
    ] == [
        (
            row.outcome,
            row.reason,
            row.dispatched_seconds,
            row.first_token_seconds,
            row.ended_seconds,
            row.predicted_tokens,
            row.completion_tokens,
        )
        for row in rows
    ]
    assert {False} == {row.overdue for row in rows}


def test_a_row_tells_the_policy_in_force_when_the_request_ended(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(finished(0))
        journal(PolicyChanged(14.0, "sjf", "fair:slack=2", "it is better"))
        journal(finished(1))
    rows = read_journal(tmp_path / "j.db")
    assert [("sjf", "ema"), ("fair:slack=2", "ema")] == [(row.policy, row.estimator) for row in rows]


def test_no_text_of_a_request_reaches_the_disk(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(finished())
    assert b"acme" in (tmp_path / "j.db").read_bytes()
    assert not [path for path in tmp_path.iterdir() if b"a secret" in path.read_bytes()]


def test_rows_are_read_by_time_of_arrival(tmp_path: Path) -> None:
    times = iter([NOW + 30, NOW + 10, NOW + 20])
    with journal_at(tmp_path / "j.db", wall_clock=lambda: next(times, NOW)) as journal:
        for number in range(3):
            journal(finished(number))
    arrivals = [entry.arrived_at for entry in read_journal(tmp_path / "j.db", since=NOW + 6, until=NOW + 26)]
    assert [NOW + 6, NOW + 16] == arrivals


def test_a_second_run_continues_the_file(tmp_path: Path) -> None:
    for number in range(2):
        with journal_at(tmp_path / "j.db") as journal:
            journal(finished(number))
    assert 2 == len(read_journal(tmp_path / "j.db"))


def test_more_rows_than_fit_a_batch_are_written_in_several(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db", flush_seconds=3600) as journal:
        for number in range(5000):
            journal(finished(number, max_tokens=number + 1))
    assert list(range(1, 5001)) == [entry.max_tokens for entry in read_journal(tmp_path / "j.db")]


async def test_rows_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(finished())
        await until(lambda: journal.written == 1)
        assert 1 == len(read_journal(tmp_path / "j.db"))


async def test_the_oldest_rows_beyond_a_number_are_deleted(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db", max_rows=10) as journal:
        for number in range(25):
            journal(finished(number, max_tokens=number + 1))
    assert list(range(16, 26)) == [entry.max_tokens for entry in read_journal(tmp_path / "j.db")]


def test_rows_older_than_so_many_days_are_deleted(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db", wall_clock=lambda: NOW - 2 * 86_400) as journal:
        journal(finished(0))
    with journal_at(tmp_path / "j.db", max_days=1) as journal:
        journal(finished(1))
    assert [NOW - 4] == [entry.arrived_at for entry in read_journal(tmp_path / "j.db")]


async def test_the_rows_stay_below_so_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with journal_at(path, max_bytes=100_000) as journal:
        for round_ in range(40):
            for number in range(200):
                journal(finished(number))
            await until(lambda expected=200 * (round_ + 1): journal.written == expected)  # type: ignore[misc]
    kept = len(read_journal(path))
    assert 300 < kept < 2500
    assert path.stat().st_size < 300_000


def test_rows_beyond_the_queue_are_dropped_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with journal_at(tmp_path / "j.db", max_queued=3, flush_seconds=3600) as journal:
        for number in range(10):
            journal(finished(number))
        assert 7 == journal.dropped
    assert 3 == len(read_journal(tmp_path / "j.db"))
    assert 1 == len(complaints(caplog))


async def test_a_slow_disk_holds_up_nobody_and_loses_nothing_that_fits(tmp_path: Path) -> None:
    answer = Signal()
    asked = Signal()

    def connect(path: Path) -> sqlite3.Connection:
        asked.set()
        answer.wait(10)
        return connect_to(path)

    with journal_at(tmp_path / "j.db", connect=connect) as journal:
        journal(finished(0))
        await until(asked.is_set)
        journal(finished(1))  # returns although the thread hangs
        assert 0 == journal.written
        answer.set()
    assert (2, 0) == (journal.written, journal.dropped)


async def test_a_directory_that_appears_later_is_used_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later" / "j.db"
    with journal_at(path) as journal:
        journal(finished(0))
        await until(lambda: complaints(caplog))
        path.parent.mkdir()
        await until(lambda: journal.written == 1)
    assert 1 == len(read_journal(path))
    assert 1 == len(complaints(caplog))


async def test_a_corrupt_file_is_told_once_and_can_be_moved_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(b"no database at all, " * 500)
    attempts = 0

    def connect(where: Path) -> sqlite3.Connection:
        nonlocal attempts
        attempts += 1
        return connect_to(where)

    with journal_at(path, connect=connect) as journal:
        journal(finished(0))
        await until(lambda: attempts > 3)
        assert 1 == len(complaints(caplog))
        path.unlink()
        await until(lambda: journal.written == 1)
    assert 0 == journal.dropped


async def test_a_locked_file_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j.db"
    with journal_at(path) as journal:
        journal(finished(0))
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        journal_at(path, connect=lambda where: sqlite3.connect(where, timeout=0, isolation_level=None)) as journal,
    ):
        other.execute("BEGIN IMMEDIATE")
        journal(finished(1))
        await until(lambda: complaints(caplog))
        other.execute("ROLLBACK")
        await until(lambda: journal.written == 1)
    assert 2 == len(read_journal(path))


async def test_a_full_disk_loses_only_what_does_not_fit_and_heals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j.db"
    soft, hard = getrlimit(RLIMIT_FSIZE)
    handler = signal(SIGXFSZ, SIG_IGN)
    try:
        with journal_at(path) as journal:
            journal(finished(0))
            await until(lambda: journal.written == 1)
            setrlimit(RLIMIT_FSIZE, (8192, hard))
            for number in range(1, 1000):
                journal(finished(number))
            await until(lambda: complaints(caplog))
            setrlimit(RLIMIT_FSIZE, (soft, hard))
            await until(lambda: journal.written == 1000)
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))
        signal(SIGXFSZ, handler)
    assert 1000 == len(read_journal(path))
    assert 1 == len(complaints(caplog))


def test_rows_that_never_could_be_written_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with journal_at(tmp_path / "nowhere" / "j.db") as journal:
        journal(finished(0))
        journal(finished(1))
    assert (0, 2) == (journal.written, journal.dropped)
    assert any("2 rows could not be written" in line for line in complaints(caplog))


def test_a_value_that_does_not_fit_costs_only_its_own_row(tmp_path: Path) -> None:
    with journal_at(tmp_path / "j.db") as journal:
        journal(finished(0, max_tokens=1 << 80))
        journal(finished(1))
    assert (1, 1) == (journal.written, journal.dropped)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("PRAGMA user_version = 99", "schema version 99.*knows 2"),
        ("PRAGMA application_id = 5", "something else"),
    ],
)
def test_a_file_of_another_version_or_kind_is_refused(tmp_path: Path, statement: str, complaint: str) -> None:
    path = tmp_path / "j.db"
    with journal_at(path) as journal:
        journal(finished())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    with pytest.raises(ConfigError, match=complaint):
        Journal(path, policy="sjf", estimator="ema")
    with pytest.raises(ConfigError, match=complaint):
        read_journal(path)


def test_a_journal_that_is_not_there_or_no_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"j\.db: no such file"):
        read_journal(tmp_path / "j.db")
    (tmp_path / "j.db").write_text("no database" * 100)
    with pytest.raises(ConfigError, match=r"j\.db: file is not a database"):
        read_journal(tmp_path / "j.db")


async def test_a_live_gateway_writes_what_it_served(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with journal_at(path) as journal:
        async with live_gateway(simulated(), journal=journal) as house, aiohttp.ClientSession() as session:

            async def ask(number: int) -> None:
                body = chat(f"Summarize chapter {number}.", max_tokens=20)
                async with session.post(f"{house.url}/v1/chat/completions", json=body) as response:
                    assert 200 == response.status

            await asyncio.gather(*(ask(number) for number in range(12)))
            ends = house.of(Finished)
            async with session.get(f"{house.url}/metrics") as response:
                assert "driftsched_journal_dropped_total 0.0" in await response.text()
    rows = read_journal(path)
    assert sorted(end.usage.completion_tokens for end in ends) == sorted(row.completion_tokens for row in rows)
    assert {("finished", 20, True)} == {
        (row.outcome, row.max_tokens, 0 <= (row.dispatched_seconds or -1) <= row.ended_seconds) for row in rows
    }


async def test_a_gateway_serves_although_its_journal_cannot_be_written(tmp_path: Path) -> None:
    with journal_at(tmp_path / "nowhere" / "j.db", max_queued=1, flush_seconds=3600) as journal:
        async with live_gateway(simulated(), journal=journal) as house, aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.post(f"{house.url}/v1/chat/completions", json=chat(max_tokens=3)) as response:
                    assert 200 == response.status
            async with session.get(f"{house.url}/metrics") as response:
                assert "driftsched_journal_dropped_total 2.0" in await response.text()
