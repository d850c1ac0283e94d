"""What an operator asks first: what runs, how busy it is, who waits, and how right the predictions are."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

from driftsched.core.limit import EngineState
from driftsched.core.model import Calibration, Load, Tier
from driftsched.telemetry.decisions import Decision, Decisions

MAX_TENANTS = 20
MAX_CALIBRATIONS = 200


@dataclass(slots=True)
class _Share:
    """What one tenant or one tier has here."""

    waiting: int = 0
    inflight: int = 0
    predicted_tokens: float = 0.0
    """Of what waits."""
    longest_wait_seconds: float = 0.0

    def add(self, decision: Decision, now: float) -> None:
        if decision.dispatched_at is not None:
            self.inflight += 1
            return
        self.waiting += 1
        self.predicted_tokens += decision.last.predicted_tokens if decision.last else decision.predicted_tokens
        self.longest_wait_seconds = max(self.longest_wait_seconds, now - decision.arrived_at)


class Overview:
    """The state of a gateway, gathered when somebody asks: O(n) in what waits and flies, and nothing a request."""

    def __init__(
        self,
        *,
        load: Callable[[], Load],
        decisions: Decisions,
        engines: Callable[[], Iterable[EngineState]],
        health: Callable[[], Awaitable[Mapping[str, bool]]],
        calibration: Callable[[], Iterable[Calibration]],
    ) -> None:
        """`engines`: those of which more is known; `health`: of all, by name."""
        self._load = load
        self._decisions = decisions
        self._engines = engines
        self._health = health
        self._calibration = calibration

    async def document(self, now: float) -> dict[str, object]:
        """`now`: the scheduler's clock."""
        tiers: dict[str, _Share] = {tier.label: _Share() for tier in Tier}
        tenants: defaultdict[str, _Share] = defaultdict(_Share)
        for decision in self._decisions.alive:
            tiers[decision.tier.label].add(decision, now)
            tenants[decision.tenant].add(decision, now)
        busiest = sorted(tenants.items(), key=lambda item: (-item[1].waiting, -item[1].inflight, item[0]))
        load = self._load()
        return {
            "load": {
                "num_waiting": load.num_waiting,
                "num_inflight": load.num_inflight,
                "waiting_tokens": load.waiting_tokens,
                "tokens_per_second": load.tokens_per_second,
                "drain_seconds": load.drain_seconds,
                "usual_drain_seconds": load.usual_drain_seconds,
            },
            "tiers": {label: asdict(share) for label, share in tiers.items()},
            "num_tenants": len(tenants),
            "tenants": [{"tenant": name, **asdict(share)} for name, share in busiest[:MAX_TENANTS]],
            "engines": await self._engine_rows(),
            "calibration": [asdict(row) for row in islice(self._calibration(), MAX_CALIBRATIONS)],
        }

    async def _engine_rows(self) -> list[dict[str, object]]:
        health = dict(await self._health())
        rows = {state.name: asdict(state) for state in self._engines()}
        return [{"name": name, "healthy": healthy, **rows.get(name, {})} for name, healthy in health.items()]
