"""The discrete-event driver: requests arrive, the engine model steps, the scheduler decides; time is a number.

It plays the gateway's part: it submits what arrives, gives free slots to whoever is next, reports first tokens,
answers that become longer than was promised, and ends, and lets expired requests go. What happened leaves as the
scheduler's own events.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

from driftsched.core.errors import RejectedError
from driftsched.core.model import Request, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and the truth about its answer that only the engine may know."""

    request: Request
    """`arrived_at` is when it is submitted, in seconds of virtual time."""
    completion_tokens: int
    """>= 1."""
    finish_reason: str = "stop"
    """`length` if the answer is cut off there."""


def simulate(arrivals: Iterable[Arrival], scheduler: Scheduler, engine: BatchModel) -> float:
    """Serve `arrivals`, sorted by time, until nothing waits or runs; returns the instant of the last event.

    An arrival that falls into an iteration is submitted at its own time, before the iteration's end is reported,
    and may join the next one. May be called again with later arrivals: scheduler and engine go on from where they
    are. Raises `ValueError` if the arrivals are not sorted or one exceeds the engine's context memory, and
    `StuckError` if requests wait that nothing will ever serve.
    """
    simulation = Simulation(scheduler, engine)
    for arrival in arrivals:
        simulation.arrive(arrival, arrival.request.arrived_at)
    return simulation.finish()


class StuckError(RuntimeError):
    """Requests wait, the engine is idle, and nobody will arrive: the queue has no slots."""


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends. Raises `RuntimeError` if it does: it would wait for ever."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended: in virtual time there is nothing to wait for")


class Simulation:
    """Scheduler and engine in virtual time, an arrival at a time."""

    def __init__(self, scheduler: Scheduler, engine: BatchModel) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._truth: dict[str, Arrival] = {}  # of what was admitted and has not ended
        self._step: Step | None = None  # iterations under way: they end after what arrives meanwhile
        self._now = 0.0
        self._may_expire = False

    @property
    def num_open(self) -> int:
        """Requests that were admitted and have not ended."""
        return len(self._truth)

    def arrive(self, arrival: Arrival, at: float) -> None:
        """Let time come to `at`, when the request is submitted. Raises `ValueError` if that is in the past."""
        if not at >= self._now:
            raise ValueError(f"arrivals must be sorted by time: one at {at} s follows one at {self._now} s")
        self.advance(at)
        self._now = at
        self._submit(arrival, at)
        self.dispatch(at)

    def finish(self) -> float:
        """Serve all that is left; returns the instant of the last event. Raises `StuckError`."""
        self.advance(inf)
        if self._truth:
            raise StuckError(f"{len(self._truth)} requests wait and no slot will ever be free")
        return self._now

    def advance(self, until: float) -> None:
        """Let the engine work up to `until`, and report every iteration that ends by then."""
        while True:
            if self._step is None:
                self._step = self._engine.advance(until)
            if self._step is None or self._step.ended_at > until:
                return
            step, self._step = self._step, None
            self._now = step.ended_at
            self._report(step)
            if step.finished:  # nothing else here frees a slot
                self.dispatch(step.ended_at)

    def _submit(self, arrival: Arrival, at: float) -> None:
        self._truth[arrival.request.id] = arrival
        self._may_expire |= arrival.request.expires_at < inf
        try:
            run_now(self._scheduler.submit(arrival.request, at))
        except RejectedError:
            del self._truth[arrival.request.id]  # told by an event; an open loop does not come again
        for shed in self._scheduler.take_shed():
            del self._truth[shed.id]

    def dispatch(self, now: float) -> None:
        """Let expired requests go, then give every free slot to whoever is next."""
        if self._may_expire:
            for expired in run_now(self._scheduler.expire(now)):
                del self._truth[expired.id]
        while ticket := run_now(self._scheduler.dispatch(now)):
            truth = self._truth[ticket.id]
            self._engine.add(ticket.id, max(1, ticket.request.prompt_tokens), truth.completion_tokens, now)
            milestone = self._scheduler.milestone(ticket)
            if milestone <= truth.completion_tokens:
                self._engine.watch(ticket.id, int(milestone))

    def _report(self, step: Step) -> None:
        for request_id in step.first_tokens:
            request = self._truth[request_id].request
            run_now(self._scheduler.progress(request_id, Usage(request.prompt_tokens, 1), step.ended_at))
        for request_id, tokens in step.milestones:
            request = self._truth[request_id].request
            run_now(self._scheduler.progress(request_id, Usage(request.prompt_tokens, tokens), step.ended_at))
        for request_id in step.finished:
            truth = self._truth.pop(request_id)
            usage = Usage(truth.request.prompt_tokens, truth.completion_tokens)
            run_now(self._scheduler.finish(request_id, usage, truth.finish_reason, step.ended_at))
