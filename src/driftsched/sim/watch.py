"""The adaptive limit in virtual time: the gateway's looks at its engine, taken at the engine model."""

from collections.abc import Iterable

from driftsched.core.limit import AdaptiveLimit, Look, Vitals
from driftsched.core.protocols import Queue
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.sim.driver import Arrival, Simulation, run_now

LOOK_SECONDS = 1.0


class Watched:
    """A scheduler, its queue and an engine that is looked at every second."""

    def __init__(self, scheduler: Scheduler, queue: Queue, engine: BatchModel, limit: AdaptiveLimit) -> None:
        """`queue` is the scheduler's, and is given as many slots as the limit says."""
        self._scheduler = scheduler
        self._queue = queue
        self._engine = engine
        self._limit = limit
        self._next_look_at = LOOK_SECONDS

    def simulate(self, arrivals: Iterable[Arrival]) -> float:
        """As `driftsched.sim.driver.simulate`, with looks."""
        simulation = Simulation(self._scheduler, self._engine)
        for arrival in arrivals:
            while self._next_look_at <= arrival.request.arrived_at:
                self._look(simulation)
            simulation.arrive(arrival, arrival.request.arrived_at)
        while simulation.num_open:
            self._look(simulation)
        return simulation.finish()

    def _look(self, simulation: Simulation) -> None:
        at = self._next_look_at
        simulation.advance(at)
        engine, load = self._engine, self._scheduler.load
        kv_usage = engine.kv_used / engine.kv_tokens
        vitals = Vitals(engine.num_running, engine.num_waiting, kv_usage, engine.num_preemptions)
        if self._limit.observe(Look(load.num_inflight, wanted=load.num_waiting > 0, vitals=vitals)):
            run_now(self._queue.resize(self._limit.limit))
            simulation.dispatch(at)
        self._next_look_at = at + LOOK_SECONDS
