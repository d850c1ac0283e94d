import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from driftsched.bench.processes import running
from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.replaying import heading, most_at_once, parse_instant, past_of, run_replay, select
from driftsched.sim.readers import read_trace
from driftsched.telemetry.journal import Entry
from support.servers import chat

BEGIN = 1_769_896_800.0
ENTRY = Entry(
    arrived_at=BEGIN,
    dispatched_seconds=0.5,
    first_token_seconds=1.0,
    ended_seconds=3.0,
    tenant="acme",
    tier="premium",
    model="m",
    category="summary",
    prompt_tokens=30,
    completion_tokens=100,
    predicted_tokens=90.0,
    q50=80.0,
    q80=90.0,
    q90=100.0,
    max_tokens=400,
    outcome="finished",
    reason="stop",
    policy="fifo",
    estimator="static",
    overdue=True,
)


def entry(at: float = 0.0, **fields: Any) -> Entry:
    return replace(ENTRY, arrived_at=BEGIN + at, **fields)


def test_a_row_becomes_a_request_of_a_trace_and_its_times() -> None:
    past = past_of(entry(2.5), BEGIN)
    row = past.row
    assert (2.5, 30, 100, "acme", Tier.PREMIUM, "summary", "m", 400, "stop") == (
        row.at,
        row.prompt_tokens,
        row.completion_tokens,
        row.tenant,
        row.tier,
        row.category,
        row.model,
        row.max_tokens,
        row.finish_reason,
    )
    assert (True, False, 0.5, 1.0, 3.0, True) == (
        past.finished,
        past.lower_bound,
        past.queue_seconds,
        past.ttft_seconds,
        past.e2e_seconds,
        past.overdue,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": "length", "max_tokens": None},
        {"reason": "length"},
        {"outcome": "evicted", "reason": "cancelled"},
        {"outcome": "failed", "reason": "broken_stream"},
    ],
)
def test_an_answer_that_was_cut_off_is_a_lower_bound(fields: dict[str, Any]) -> None:
    past = past_of(entry(**fields), BEGIN)
    assert ("length", 100, True) == (past.row.finish_reason, past.row.completion_tokens, past.lower_bound)


def test_an_answer_that_ended_by_itself_at_its_limit_is_no_lower_bound() -> None:
    assert "stop" == past_of(entry(max_tokens=100), BEGIN).row.finish_reason


def test_what_was_never_served_is_left_out_and_told() -> None:
    unserved = {"dispatched_seconds": None, "first_token_seconds": None, "completion_tokens": 0}
    chosen = select(
        [
            entry(0, outcome="rejected", reason="queue_full", **unserved),
            entry(1),
            entry(2, outcome="evicted", reason="expired", **unserved),
            entry(3, outcome="evicted", reason="cancelled"),
        ],
        max_requests=10,
    )
    assert [0.0, 2.0] == [one.row.at for one in chosen.past]
    assert {"rejected: queue_full": 1, "evicted: expired": 1} == chosen.facts["unserved"]
    assert "1 evicted: expired, 1 rejected: queue_full" in heading(chosen.facts)


def test_only_what_came_since_the_policy_changed_is_replayed() -> None:
    chosen = select([entry(0), entry(1), entry(2, policy="sjf"), entry(3, policy="sjf")], max_requests=10)
    assert ("sjf", "static") == chosen.live
    assert (2, 2) == (len(chosen.past), chosen.facts["before_last_change"])
    assert "2 rows before the last change" in heading(chosen.facts)


def test_the_latest_requests_are_kept() -> None:
    chosen = select([entry(at, prompt_tokens=1 + at) for at in range(5)], max_requests=2)
    assert [(0.0, 4), (1.0, 5)] == [(one.row.at, one.row.prompt_tokens) for one in chosen.past]


@pytest.mark.parametrize("entries", [[], [entry(outcome="failed", reason="timeout")]])
def test_a_stretch_without_a_finished_request_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ConfigError, match="widen --since and --until"):
        select(entries, max_requests=10)


def test_slots_are_the_most_that_were_in_flight_at_once() -> None:
    def most(*arrivals: float) -> int:
        """Each is in flight from 0.5 to 3 seconds after its arrival."""
        return most_at_once([past_of(entry(at), BEGIN) for at in arrivals])

    assert [1, 2, 3] == [most(0.0, 2.5, 7.0), most(0.0, 2.4, 7.0), most(0.0, 1.0, 2.0)]


def test_an_instant_is_utc_unless_it_says_otherwise() -> None:
    assert BEGIN == parse_instant("2026-01-31T22:00", "since") == parse_instant("2026-01-31T23:00+01:00", "since")
    with pytest.raises(ConfigError, match="since: 'yesterday'"):
        parse_instant("yesterday", "since")


def test_a_journal_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.db"):
        run_replay(tmp_path / "nowhere.db")


async def load(url: str, requests: int, clients: int) -> None:
    """Each client asks as soon as it is answered: more clients than slots, so that some always wait."""
    numbers = iter(range(requests))

    async with aiohttp.ClientSession() as session:

        async def client(tenant: str) -> None:
            for number in numbers:
                body = chat(f"Write a report on topic {number}.", max_tokens=10 + number * 7 % 70, user=tenant)
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    assert 200 == response.status
                    await response.read()

        await asyncio.gather(*(client(f"tenant-{number % 3}") for number in range(clients)))


@pytest.mark.e2e
async def test_a_journal_of_a_real_gateway_is_replayed_by_the_command(tmp_path: Path) -> None:
    journal, out = tmp_path / "journal.db", tmp_path / "out"
    async with (
        running("mock", "--port", "0", "--slots", "4", "--speed", "5") as engine,
        running(
            *("serve", "--engine", engine, "--port", "0", "--max-inflight", "4", "--policy", "fifo"),
            *("--journal", str(journal), "--no-state"),
        ) as url,
    ):
        await load(url, requests=260, clients=8)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "driftsched", "replay", str(journal), "--policies", "fifo,sjf", "--quiet"),
        *("--hardware", "l4-qwen1.5-1.8b", "--out", str(out), "--processes", "1"),
        stdout=PIPE,
        stderr=PIPE,
    )
    said, complaint = await process.communicate()
    assert (0, b"") == (process.returncode, complaint)
    made = json.loads((out / "replay.json").read_bytes())
    assert said.decode() == (out / "replay.txt").read_text()
    assert (260, 4, {"policy": "fifo", "estimator": "adaptive"}) == (
        made["facts"]["replayed"],
        made["engine"]["slots"],
        made["live"],
    )
    fitted = made["calibration"]["fitted"]
    assert abs(fitted["simulated"] / fitted["measured"] - 1) < 0.1
    assert 0.15 < made["calibration"]["scale"] < 0.6  # the engine runs at five times its speed, and HTTP takes time
    assert 260 == len(read_trace(out / "trace.jsonl"))
    assert made["recommendation"]["verdict"] in {"switch", "stay", "unclear"}
    assert {"tenant-0", "tenant-1", "tenant-2"} == {row.tenant for row in read_trace(out / "trace.jsonl")}
