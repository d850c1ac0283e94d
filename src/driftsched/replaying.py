"""`driftsched replay`: the composition of the gateway's journal, the simulator, policies and estimators."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.core.specs import parse_spec
from driftsched.engines.model import Mode
from driftsched.engines.presets import HARDWARE, get_hardware
from driftsched.estimators import ESTIMATORS, create_estimator
from driftsched.policies import POLICIES
from driftsched.queues.memory import MemoryQueue
from driftsched.shadowing import policy_of
from driftsched.sim import replay
from driftsched.sim.experiment import ORACLE, Parts
from driftsched.sim.trace import Row, on_grid
from driftsched.sim.writers import write_trace
from driftsched.telemetry.journal import Entry, read_journal

PARTS = Parts(policy_of, create_estimator, MemoryQueue)


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of the journal to replay."""

    since: float = -inf
    """Seconds since 1970 UTC, as the next."""
    until: float = inf
    max_requests: int = 20_000
    """The latest so many."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of the journal as a trace, and what was left out."""

    past: list[replay.Past]
    live: tuple[str, str]
    facts: dict[str, object]


def run_replay(
    journal: Path,
    *,
    policies: Sequence[str] = (),
    estimators: Sequence[str] = (),
    hardware: str | None = None,
    mode: Mode = "continuous",
    slots: int | None = None,
    window: Window | None = None,
    num_blocks: int = replay.MIN_BLOCKS,
    out: Path | None = None,
    json: Path | None = None,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> replay.Replay:
    """Replay, print, write the files. Raises `ConfigError`.

    No `policies`: all there are. No `estimators`: the one that served. No `hardware`: the preset that fits best.
    No `slots`: as many as were ever in flight at once.
    """
    window = window or Window()
    chosen = select(read_journal(journal, since=window.since, until=window.until), window.max_requests)
    policies, estimators = policies or POLICIES.names(), estimators or [chosen.live[1]]
    policy_names = [parse_spec(policy)[0] for policy in (*policies, chosen.live[0])]
    _check_known("policies", policy_names, POLICIES.names())
    _check_known("estimators", [*estimators, chosen.live[1]], [*ESTIMATORS.names(), ORACLE])
    made = replay.replay(
        chosen.past,
        live=chosen.live,
        arms=[(policy, estimator) for estimator in estimators for policy in policies],
        hardware=[get_hardware(hardware)] if hardware else list(HARDWARE.values()),
        mode=mode,
        slots=slots or most_at_once(chosen.past),
        parts=PARTS,
        facts={"journal": journal.name, **chosen.facts},
        num_blocks=num_blocks,
        processes=processes,
        progress=progress,
    )
    shown = heading(chosen.facts) + replay.text(made)
    document = msgspec.json.format(msgspec.json.encode(made)) + b"\n"
    sys.stdout.write(shown)
    if json is not None:
        json.write_bytes(document)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_bytes(document)
        (out / "replay.txt").write_text(shown, encoding="utf-8")
        write_trace([one.row for one in chosen.past], out / "trace.jsonl")
    return made


def select(entries: Sequence[Entry], max_requests: int) -> Selection:
    """The latest requests that one policy and estimator served. Raises `ConfigError` if there are none.

    Left out is what never reached the engine or got nothing from it, and all before the policy or estimator last
    changed: there would be no single thing to calibrate on.
    """
    if not entries:
        raise ConfigError("journal: no rows in this stretch of time: widen --since and --until")
    live = entries[-1].policy, entries[-1].estimator
    first = next(
        (n for n in range(len(entries), 0, -1) if (entries[n - 1].policy, entries[n - 1].estimator) != live), 0
    )
    own = entries[first:]
    served = [entry for entry in own if _was_served(entry)][-max_requests:]
    if not any(entry.outcome == "finished" for entry in served):
        raise ConfigError("journal: no finished request in this stretch of time: widen --since and --until")
    begin = served[0].arrived_at
    unserved = Counter(f"{entry.outcome}: {entry.reason}" for entry in own if not _was_served(entry))
    facts: dict[str, object] = {
        "rows": len(entries),
        "replayed": len(served),
        "before_last_change": first,
        "unserved": dict(sorted(unserved.items())),
        "from": _date(begin),
        "to": _date(served[-1].arrived_at),
    }
    return Selection([past_of(entry, begin) for entry in served], live, facts)


def past_of(entry: Entry, begin: float) -> replay.Past:
    """The request of a row, on a trace that begins at `begin`."""
    cut_off = entry.outcome != "finished" or entry.reason == "length"
    tokens = entry.completion_tokens
    limit = entry.max_tokens
    row = Row(
        at=on_grid(entry.arrived_at - begin),
        prompt_tokens=max(1, entry.prompt_tokens),
        completion_tokens=tokens,
        tenant=entry.tenant,
        tier=Tier.parse(entry.tier),
        category=entry.category,
        model=entry.model,
        max_tokens=tokens if cut_off else limit and max(limit, tokens + 1),
    )
    return replay.Past(
        row,
        finished=entry.outcome == "finished",
        lower_bound=cut_off,
        queue_seconds=entry.dispatched_seconds or 0.0,
        ttft_seconds=entry.first_token_seconds,
        e2e_seconds=entry.ended_seconds,
        overdue=entry.overdue,
    )


def most_at_once(past: Sequence[replay.Past]) -> int:
    """The most requests that were ever in flight: the slots, if they were ever all in use."""
    changes = [(one.row.at + one.queue_seconds, 1) for one in past]
    changes += [(one.row.at + one.e2e_seconds, -1) for one in past]
    most = inflight = 0
    for _, change in sorted(changes):  # of one instant, ends first
        inflight += change
        most = max(most, inflight)
    return max(1, most)


def heading(facts: Mapping[str, object]) -> str:
    """What of the journal was used, and what was not."""
    lines = [f"journal of {facts['from']} to {facts['to']}: {facts['rows']} rows"]
    if facts["before_last_change"]:
        lines.append(f"! {facts['before_last_change']} rows before the last change of policy: see --until")
    unserved = facts["unserved"]
    if isinstance(unserved, dict) and unserved:
        told = ", ".join(f"{count} {name}" for name, count in unserved.items())
        lines.append(f"! never served, not replayed: {told}")
    return "\n".join(lines) + "\n"


def parse_instant(text: str, name: str) -> float:
    """Seconds since 1970 of an ISO date or time; without a zone it is UTC. Raises `ConfigError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no date or time: write 2026-01-31 or 2026-01-31T22:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _was_served(entry: Entry) -> bool:
    return entry.dispatched_seconds is not None and entry.completion_tokens > 0


def _date(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{kind}: unknown {name!r}: use one of {', '.join(known)}")
