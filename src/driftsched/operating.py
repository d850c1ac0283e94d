"""What operators see of a running gateway, wired together."""

import asyncio
import time

import msgspec

from driftsched import __version__
from driftsched.config import Settings
from driftsched.core.protocols import Accountable, Clock, Engine, Estimator
from driftsched.core.scheduler import Scheduler
from driftsched.engines.control import DispatchControl
from driftsched.engines.pool import EnginePool
from driftsched.gateway.admin import Admin
from driftsched.gateway.roster import Roster
from driftsched.telemetry.decisions import Decisions, document
from driftsched.telemetry.journal import Journal
from driftsched.telemetry.overview import Overview


def make_decisions(settings: Settings, journal: Journal | None) -> Decisions | None:
    """Records of decisions if anybody reads them: operators, or the journal, which takes each at its end."""
    policy = settings.policy.spec
    if settings.admin.keys_sha256:
        decisions = Decisions(policy, settings.admin.max_decisions)
    elif journal is not None:
        decisions = Decisions(policy, max_ended=1)
    else:
        return None
    if journal is not None:
        journal.consult(decisions)
    return decisions


def make_admin(
    settings: Settings,
    *,
    scheduler: Scheduler,
    estimator: Estimator,
    engine: Engine,
    control: DispatchControl | None,
    decisions: Decisions | None,
    journal: Journal | None,
    clock: Clock,
    roster: Roster | None = None,
) -> Admin | None:
    """None unless there is an admin key."""
    if decisions is None or not settings.admin.keys_sha256:
        return None
    overview = Overview(
        load=lambda: scheduler.load,
        decisions=decisions,
        engines=control.states if control else tuple,
        health=lambda: _health(engine),
        calibration=estimator.calibration if isinstance(estimator, Accountable) else tuple,
    )
    started_at = clock.now()

    async def state() -> dict[str, object]:
        now = clock.now()
        return {
            "object": "admin.state",
            "version": __version__,
            "uptime_seconds": round(now - started_at, 3),
            **_parts(settings),
            "policy": decisions.policy,
            **await overview.document(now),
            "journal": {"written": journal.written, "dropped": journal.dropped} if journal else None,
            "num_tasks": len(asyncio.all_tasks()),
        }

    def decision(request_id: str) -> dict[str, object] | None:
        record = decisions.find(request_id)
        return document(record, clock.now() - record.arrived_at, time.time()) if record else None

    return Admin(settings.admin.keys_sha256, state=state, decision=decision, roster=roster)


def _parts(settings: Settings) -> dict[str, object]:
    """What serves, and under which limits. No key is in it, nor the name of one."""
    parts = ("estimator", "token_counter", "classifier", "limits")
    return {part: msgspec.to_builtins(getattr(settings, part)) for part in parts}


async def _health(engine: Engine) -> dict[str, bool]:
    if isinstance(engine, EnginePool):
        return {each.name: engine.standing_of(each.name).circuit == "closed" for each in engine.engines}
    return {engine.name: (await engine.saturation()).healthy}
