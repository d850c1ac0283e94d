"""Shadow mode: other policies beside the one that serves, on the same requests, as they come.

A listener hands on what happens; everything else is done from there, by whoever has time for it. The shadow's
clock lags behind the live one: it comes as far as the arrival of the oldest request whose length is not known yet,
so that no simulation ever needs a length that nobody knows. Every policy, the one that serves among them, is run by
the core's own scheduler in front of the engine model, with the estimate that each request was admitted with; what
is not the policy's doing, the error of the engine model included, is the same for all.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from driftsched.core.admission import Bounds
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
from driftsched.core.evidence import Evidence, EvidenceListener, PolicyTimes
from driftsched.core.model import Estimate, Request, Tier, Usage
from driftsched.core.protocols import Policy, Queue
from driftsched.core.scheduler import Scheduler
from driftsched.core.specs import parse_spec, spec_text
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import Hardware
from driftsched.sim.driver import Arrival, Simulation, run_now
from driftsched.sim.experiment import TraceDescriber
from driftsched.sim.pace import Pace
from driftsched.sim.window import Row, Window, times_of

_logger = logging.getLogger(__name__)

MAX_EVENTS = 20_000
"""Events that wait to be looked at: a second or more of any gateway."""
MAX_READY = 5_000
"""Requests whose length is known and that wait to be simulated. Once there are more, nothing is listened to until
they are: so what is simulated are whole stretches of time, however little time there is for it."""
MAX_OPEN_SECONDS = 900.0
"""A request that has not ended so long after its arrival is taken to have the length predicted for it, so that one
endless answer holds nobody up."""
MAX_BACKLOG = 20_000
"""Requests that a simulation may be behind: more wait than any gateway lets wait, so the engine model is wrong."""
WARM_UP = 200
"""Requests that are simulated and not counted after a gap, while queues build up again."""
MAX_KINDS = 200
"""Categories of which the last answer is remembered."""
REFIT = 100
"""Answers between two fits of the engine, once there are so many."""


@dataclass(slots=True, eq=False)
class _Account:
    """The payload of a request that is simulated: what the simulations are told, and what they tell."""

    estimate: Estimate
    """Made at admission."""
    counts: bool
    """Its times are among the figures, if it is answered in full."""
    measured: float = 0.0
    """End-to-end seconds; 0 unless it was answered in full."""
    simulated: dict[int, float] = field(default_factory=dict)
    """The same by place of the policy."""


@dataclass(slots=True, eq=False)
class _Past:
    """A request that came, and what became of it."""

    request: Request
    """Without text; its payload is the account."""
    account: _Account
    submitted_at: float
    tokens: int = 0
    """Length of its answer; 0 while it is not known."""


class _Recorded:
    """The estimator that says what was said at admission, and learns nothing."""

    def predict(self, request: Request) -> Estimate:
        return _account_of(request).estimate

    def revise(self, request: Request, estimate: Estimate) -> Estimate:  # noqa: ARG002
        return estimate

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """What it would learn was learnt where the request was served."""

    def bias(self, request: Request) -> float:  # noqa: ARG002
        return 1.0


@dataclass(frozen=True, slots=True)
class ShadowParts:
    """What the simulator is not to know: how policies and queues are made."""

    create_policy: Callable[[str], Policy]
    """From its text, as `core.specs` has it."""
    create_queue: Callable[[int], Queue]
    """With so many slots."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the gateway's scheduler is told beside its policy, and those of the simulations too: see `Scheduler`."""

    max_wait_seconds: Mapping[Tier, float] = field(default_factory=dict)
    max_inflight_tokens: float = inf
    rejects_unattainable: bool = False


class _Arm:
    """One policy in virtual time."""

    def __init__(
        self,
        policy: Policy,
        queue: Queue,
        engine: BatchModel,
        terms: Terms,
        on_finished: Callable[[Request, float], None],
    ) -> None:
        def listen(event: Event) -> None:
            if isinstance(event, Finished):
                request = event.ticket.request
                on_finished(request, event.at - request.arrived_at)

        self._queue = queue
        self._engine = engine
        scheduler = Scheduler(
            policy=policy,
            estimator=_Recorded(),
            describer=TraceDescriber(),
            queue=queue,
            bounds=_UNBOUNDED,
            max_wait_seconds=terms.max_wait_seconds,
            max_inflight_tokens=terms.max_inflight_tokens,
            rejects_unattainable=terms.rejects_unattainable,
            max_reranks=0,
            listeners=(listen,),
        )
        self.simulation = Simulation(scheduler, engine)

    def retime(self, hardware: Hardware) -> None:
        self._engine.retime(hardware)

    def resize(self, slots: int) -> None:
        run_now(self._queue.resize(slots))
        self._engine.resize(slots)


class Shadow:
    """Policies beside the live one. Call it as a listener; call `steps`, never two at once, to let it work.

    The listener's part is to put an event into a deque. All else belongs to whoever runs `steps`, which may be
    another thread; what it tells (`evidence`, `lag_seconds`, `num_dropped`) is replaced and never changed.
    """

    def __init__(
        self,
        live: str,
        policies: Sequence[str],
        *,
        slots: Callable[[], int],
        parts: ShadowParts,
        terms: Terms | None = None,
        listeners: Sequence[EvidenceListener] = (),
    ) -> None:
        """`live` and `policies` as `core.specs` writes them; one that is `live` as well is simulated once.

        `slots`: requests that may be in flight now, >= 1. Raises `ConfigError` for a policy that cannot be made.
        """
        self.live = live
        self.evidence: Evidence | None = None
        """Of the last window that was told; None until there was one."""
        self.lag_seconds = 0.0
        """From the shadow's clock to the last event heard of."""
        self.num_simulated = 0
        self._policies = tuple(dict.fromkeys((live, *policies)))
        self._slots = slots
        self._parts = parts
        self._terms = terms or Terms()
        self._listeners = tuple(listeners)
        self._events: deque[Event] = deque()
        self._deaf = False  # nothing is listened to until all that was heard is simulated
        self._num_missed = 0  # admissions meanwhile: counted by the listener alone
        self._num_forgotten = 0  # requests that were heard of, and not simulated
        self._next_live = live
        self._pace = Pace()
        self._fit_at = 0  # answers learnt from
        self._open: dict[str, _Past] = {}
        self._pasts: deque[_Past] = deque()  # in order of admission, those with a length among them
        self._recent: dict[str, _Past] = {}  # by category, the one answered last
        self._num_ready = 0  # of them, those with a length
        self._heard_at = 0.0
        self._warm_up = 0
        self._window = Window()
        self._hardware: Hardware | None = None
        self._num_slots = 0
        self._arms: list[_Arm] = []
        for policy in self._policies:
            parts.create_policy(policy)  # now, while somebody is there to be told that it does not exist

    def __call__(self, event: Event) -> None:
        if self._deaf or len(self._events) >= MAX_EVENTS:
            self._deaf = True
            self._num_missed += isinstance(event, Admitted)
            if isinstance(event, PolicyChanged):
                self._take(event)
        else:
            self._events.append(event)

    @property
    def num_dropped(self) -> int:
        """Requests that were not simulated, because there was no time for it."""
        return self._num_missed + self._num_forgotten

    def follow(self, live: str) -> None:
        """The gateway serves under another policy from now on; a `PolicyChanged` that is heard says so as well."""
        self._next_live = spec_text(*parse_spec(live))

    def close(self) -> None:
        """Listen to nothing any more, and let go of what was heard."""
        self._deaf = True
        self._events.clear()

    def steps(self) -> Iterator[None]:
        """Do what there is to do now, in pieces of about a millisecond at most."""
        if self._next_live != self.live:
            self._change_live(self._next_live)
        while self._events:
            yield from self._hear()
            self._fit()
            yield from self._simulate()
        if self._window.telling:
            yield from self._tell()
        if self._deaf:
            self._listen_again()

    def _hear(self) -> Iterator[None]:
        while self._events:
            self._take(self._events.popleft())
            yield
        self._deaf |= self._num_ready > MAX_READY

    def _listen_again(self) -> None:
        """What was heard is simulated; of what was not, and of all that has not ended, nothing is known."""
        self._num_forgotten += len(self._pasts)
        self._events.clear()
        self._open.clear()
        self._pasts.clear()
        self._num_ready = 0
        self._pace.begin_again()
        self._begin_again()
        self._deaf = False

    def _change_live(self, live: str) -> None:
        self.live = live
        self._window = Window()  # what was measured before is another policy's
        if live not in self._policies:
            self._policies = (*self._policies, live)
            self._begin_again()

    def _take(self, event: Event) -> None:
        match event:
            case Admitted():
                self._admitted(event)
            case Dispatched():
                self._pace.dispatched(event.ticket.id, event.at)
            case FirstToken():
                self._pace.first_token(event.ticket.id, event.ticket.request.prompt_tokens, event.at)
            case Finished():
                self._pace.ended(event.ticket.id, event.usage.completion_tokens, event.at, finished=True)
                past = self._ended(event.ticket.id, event.usage)
                if past is not None:
                    self._remember(past)
                    past.account.measured = event.at - past.request.arrived_at
            case Evicted() | Failed():
                self._pace.ended(event.ticket.id, event.usage.completion_tokens, event.at, finished=False)
                past = self._ended(event.ticket.id, event.usage)
                if past is not None and event.dispatched_at is None:
                    past.tokens = _predicted(past)
                    past.request = replace(past.request, expires_at=event.at)
            case Rejected():
                self._rejected(event)
            case PolicyChanged():
                self.follow(event.after)
            case _:
                return
        self._heard_at = max(self._heard_at, event.at)

    def _admitted(self, event: Admitted) -> None:
        ticket = event.ticket
        self._warm_up = max(0, self._warm_up - 1)
        account = _Account(replace(ticket.estimate, basis=None), counts=not self._warm_up)
        past = _Past(_stripped(ticket.request, account), account, event.at)
        self._open[ticket.id] = past
        self._pasts.append(past)

    def _rejected(self, event: Rejected) -> None:
        """It comes in the simulations as well, where there may be room, and is as long as the last of its kind.

        Else nothing would keep the simulated lines as long as whoever is turned away keeps the live one.
        """
        like = self._recent.get(event.request.category)
        if like is None or event.reason not in _LINE_TOO_LONG:
            return
        account = _Account(like.account.estimate, counts=False)
        self._pasts.append(_Past(_stripped(event.request, account), account, event.at, like.tokens))
        self._num_ready += 1

    def _remember(self, past: _Past) -> None:
        if len(self._recent) < MAX_KINDS or past.request.category in self._recent:
            self._recent[past.request.category] = past

    def _ended(self, request_id: str, usage: Usage) -> _Past | None:
        """What it produced is taken for its length. None if it was not heard of, or given up."""
        past = self._open.pop(request_id, None)
        if past is None or past.tokens:
            return None
        past.tokens = max(1, usage.completion_tokens)
        if usage.prompt_tokens:
            past.request = replace(past.request, prompt_tokens=usage.prompt_tokens)
        self._num_ready += 1
        return past

    def _fit(self) -> None:
        """Learn what the engine is like, and how much it is given; the simulations follow."""
        if self._pace.num_answers >= self._fit_at and (fitted := self._pace.hardware()):
            self._fit_at = self._pace.num_answers + min(self._pace.num_answers, REFIT)
            self._hardware = fitted
            for arm in self._arms:
                arm.retime(fitted)
        slots = max(1, self._slots())
        if slots != self._num_slots:
            self._num_slots = slots
            for arm in self._arms:
                arm.resize(slots)

    def _simulate(self) -> Iterator[None]:
        """Let every policy serve what is known by now, until there is something new to hear."""
        if self._hardware is None:
            return
        if not self._arms:
            self._arms = [self._arm(place, policy) for place, policy in enumerate(self._policies)]
        while (self._deaf or not self._events) and (past := self._next()):
            arrival = Arrival(past.request, past.tokens)
            for arm in self._arms:
                arm.simulation.arrive(arrival, past.submitted_at)
                yield
            self.num_simulated += 1
            if any(arm.simulation.num_open > MAX_BACKLOG for arm in self._arms):
                _logger.warning("shadow: the engine model is too slow by far: begun again")
                self._begin_again()
                return
        horizon = self._pasts[0].submitted_at if self._pasts else self._heard_at  # nobody arrives before it
        for arm in self._arms:
            arm.simulation.advance(horizon)
            yield
        self.lag_seconds = self._heard_at - horizon

    def _next(self) -> _Past | None:
        """The next request in order of admission, if its length is known or may be supposed."""
        if not self._pasts:
            return None
        past = self._pasts[0]
        if not past.tokens:
            if past.submitted_at > self._heard_at - MAX_OPEN_SECONDS:
                return None
            past.tokens = _predicted(past)
        else:
            self._num_ready -= 1
        return self._pasts.popleft()

    def _begin_again(self) -> None:
        """Simulate what comes from here on as if nothing had been before."""
        self._arms = []
        self._warm_up = WARM_UP

    def _arm(self, place: int, policy: str) -> _Arm:
        assert self._hardware is not None  # noqa: S101 - nothing is simulated before

        def on_finished(request: Request, seconds: float) -> None:
            account = _account_of(request)
            account.simulated[place] = seconds
            if account.counts and account.measured and len(account.simulated) == len(self._policies):
                simulated = tuple(account.simulated[n] for n in range(len(self._policies)))
                self._window.add(Row(request.arrived_at, request.tier, account.measured, simulated))

        return _Arm(
            self._parts.create_policy(policy),
            self._parts.create_queue(self._num_slots),
            BatchModel(
                self._hardware, max_num_seqs=self._num_slots, max_num_batched_tokens=max(2048, self._num_slots)
            ),
            self._terms,
            on_finished,
        )

    def _tell(self) -> Iterator[None]:
        rows = list(self._window.rows)
        self._window.told()
        columns: list[tuple[str, Callable[[Row], float]]] = [(self.live, _measured)]
        columns += [(policy, _simulated(place)) for place, policy in enumerate(self._policies)]
        made: list[PolicyTimes] = []
        for policy, seconds in columns:
            for times in times_of(policy, rows, seconds):
                yield
                if times is not None:
                    made.append(times)
        measured, *simulated = made
        live = next(one for one in simulated if one.policy == self.live)
        self.evidence = Evidence(
            started_at=min(row.arrived_at for row in rows),
            ended_at=max(row.arrived_at for row in rows),
            live=live,
            shadows=tuple(one for one in simulated if one is not live),
            measured=measured,
        )
        for listener in self._listeners:
            try:
                listener(self.evidence)
            except Exception:  # its failure is its own
                _logger.exception("listener %r failed on evidence", listener)


_UNBOUNDED = Bounds(max_waiting=1 << 60, max_waiting_per_tenant=1 << 60, max_waiting_bytes=1 << 60)


_LINE_TOO_LONG = frozenset(("max_wait_unattainable", "deadline_unattainable"))
"""Reasons to reject a request that has been described, and would be let in were the line shorter."""


def _stripped(request: Request, account: _Account) -> Request:
    return replace(request, prompt="", prompt_bytes=0, payload=account, payload_bytes=0, expires_at=inf)


def _measured(row: Row) -> float:
    return row.measured


def _simulated(place: int) -> Callable[[Row], float]:
    """Under the policy at `place`."""
    return lambda row: row.simulated[place]


def _account_of(request: Request) -> _Account:
    assert isinstance(request.payload, _Account)  # noqa: S101 - put there before it is simulated
    return request.payload


def _predicted(past: _Past) -> int:
    limit = past.request.max_tokens or inf
    return max(1, round(min(past.account.estimate.expected_tokens, limit)))
