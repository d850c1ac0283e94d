"""What happened in one run, as columns: one place per request, in order of arrival.

A run of a million requests is recorded while it is simulated, so an event costs a few list operations and a request
about a hundred bytes. Figures are made of it afterwards, in `driftsched.sim.measures`.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum, inf, isnan, nan

from driftsched.core.events import (
    Admitted,
    Dispatched,
    Event,
    Evicted,
    Failed,
    Finished,
    Recalibrated,
    Rejected,
)
from driftsched.core.model import Request, Tier

MAX_DEPTH_POINTS = 2000
MAX_BIAS_POINTS = 500
"""Per model and category."""

SHORT_TOKENS = 128
MEDIUM_TOKENS = 512

UNFINISHED = "unfinished"
"""The outcome of a request that has none yet: only a run that was cut off holds any."""

_TIER_LABELS = tuple(tier.label for tier in Tier)


def runtime_class(total_tokens: float) -> str:
    """`short`, `medium` or `long`, by predicted tokens of prompt and completion together.

    The bounds are those of the DriftSched paper (arXiv:2606.02982): 128 and 512.
    """
    if total_tokens <= SHORT_TOKENS:
        return "short"
    return "medium" if total_tokens <= MEDIUM_TOKENS else "long"


@dataclass(frozen=True, slots=True)
class Recording:
    """One run. Columns are equally long; instants are seconds on the run's clock, nan if it did not come to it."""

    policy: str
    estimator: str
    engine_mode: str
    """`continuous` or `static`; of a live engine, whatever it calls itself."""
    variant: str
    """What sets this run apart from others of the same policy; `paper` if it is as published."""
    seed: int
    slots: int
    """Requests in flight at most, >= 1."""

    arrived_at: Sequence[float]
    dispatched_at: Sequence[float]
    first_token_at: Sequence[float]
    """Of what finished; nan for all else."""
    finished_at: Sequence[float]
    """When it left: finished, evicted or failed. nan if rejected."""
    tenant: Sequence[str]
    tenant_weight: Sequence[float]
    tier: Sequence[str]
    category: Sequence[str]
    runtime_class: Sequence[str]
    """`short`, `medium` or `long` as predicted at admission; empty if rejected."""
    phase: Sequence[str]
    """Part of the workload the request belongs to."""
    prompt_tokens: Sequence[int]
    """As the engine counted them; of a request that was not served, as estimated."""
    completion_tokens: Sequence[int]
    """Produced, whether or not the answer became complete."""
    predicted_tokens: Sequence[float]
    """Completion tokens expected at admission; nan if rejected."""
    outcome: Sequence[str]
    """`finished`, `rejected`, `evicted` or `failed`; `unfinished` in a run that was cut off."""
    finish_reason: Sequence[str]
    """`stop`, `length`, ... of what finished; else why it did not."""
    charge: Sequence[float]
    """What its flow paid, in the policy's weighted tokens."""

    queue_depth: Sequence[tuple[float, int]] = ()
    """Instant, and tickets that wait from then on: at most `MAX_DEPTH_POINTS`, spread over the run."""
    max_queue_depth: int = 0
    """Exact, unlike the largest of the samples."""
    bias: Sequence[tuple[float, str, float]] = ()
    """Instant, category and the correction feedback arrived at: at most `MAX_BIAS_POINTS` for each category."""
    stray_events: int = 0
    """Ends of requests that had ended before, or never began. 0, unless the scheduler lost count."""

    def __len__(self) -> int:
        """Requests submitted."""
        return len(self.arrived_at)

    @property
    def makespan_seconds(self) -> float:
        """From the first arrival until the last request left; 0 if none did."""
        last = max((at for at in self.finished_at if not isnan(at)), default=nan)
        return 0.0 if isnan(last) else last - self.arrived_at[0]

    @property
    def busy_slot_seconds(self) -> float:
        """Time that slots were held, added over all requests."""
        held = (end - start for start, end in zip(self.dispatched_at, self.finished_at, strict=True))
        return fsum(seconds for seconds in held if not isnan(seconds))


class Recorder:
    """A listener that records one run. It must hear the scheduler from the first request on."""

    def __init__(
        self,
        *,
        policy: str,
        estimator: str,
        engine_mode: str,
        variant: str,
        seed: int,
        slots: int,
        phases: Sequence[str] | None = None,
    ) -> None:
        """`phases`: the phase of each request, in the order in which they will be submitted; None: all `steady`."""
        self._facts = (policy, estimator, engine_mode, variant, seed, slots)
        self._phases = phases
        self._places: dict[str, int] = {}  # of the requests that have not left
        self._arrived_at = array("d")
        self._dispatched_at = array("d")
        self._first_token_at = array("d")
        self._finished_at = array("d")
        self._tenant: list[str] = []
        self._tenant_weight = array("d")
        self._tier: list[str] = []
        self._category: list[str] = []
        self._class: list[str] = []
        self._phase: list[str] = []
        self._prompt_tokens = array("q")
        self._completion_tokens = array("q")
        self._predicted_tokens = array("d")
        self._outcome: list[str] = []
        self._finish_reason: list[str] = []
        self._charge = array("d")
        self._depth = _Depth()
        self._bias: dict[tuple[str, str], _Thinned] = {}
        self._stray_events = 0
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Admitted: self._admitted,
            Rejected: self._rejected,
            Dispatched: self._dispatched,
            Finished: self._finished,
            Evicted: self._evicted,
            Failed: self._failed,
            Recalibrated: self._recalibrated,
        }

    def __call__(self, event: Event) -> None:
        handle = self._handlers.get(type(event))
        if handle is not None:
            handle(event)

    def recording(self) -> Recording:
        """What was recorded so far. Raises `ValueError` if the phases are not those of the requests submitted."""
        num_requests = len(self._arrived_at)
        if self._phases is not None and len(self._phases) != num_requests:
            raise ValueError(f"phases name {len(self._phases)} requests, but {num_requests} were submitted")
        return Recording(
            *self._facts,
            arrived_at=self._arrived_at,
            dispatched_at=self._dispatched_at,
            first_token_at=self._first_token_at,
            finished_at=self._finished_at,
            tenant=self._tenant,
            tenant_weight=self._tenant_weight,
            tier=self._tier,
            category=self._category,
            runtime_class=self._class,
            phase=self._phase,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            predicted_tokens=self._predicted_tokens,
            outcome=self._outcome,
            finish_reason=self._finish_reason,
            charge=self._charge,
            queue_depth=self._depth.points(),
            max_queue_depth=self._depth.largest,
            bias=self._bias_points(),
            stray_events=self._stray_events,
        )

    def _admitted(self, event: Admitted) -> None:
        ticket = event.ticket
        request = ticket.request
        predicted = ticket.estimate.completion_tokens
        self._places[request.id] = len(self._arrived_at)
        self._append(request, predicted, runtime_class(request.prompt_tokens + predicted), UNFINISHED, "")
        self._depth.change(event.at, 1)

    def _rejected(self, event: Rejected) -> None:
        self._append(event.request, nan, "", "rejected", event.reason)

    def _append(self, request: Request, predicted: float, size: str, outcome: str, reason: str) -> None:
        place = len(self._arrived_at)
        self._arrived_at.append(request.arrived_at)
        self._dispatched_at.append(nan)
        self._first_token_at.append(nan)
        self._finished_at.append(nan)
        self._tenant.append(request.tenant.id)
        self._tenant_weight.append(request.tenant.weight)
        self._tier.append(_TIER_LABELS[request.tier])
        self._category.append(request.category)
        self._class.append(size)
        self._phase.append(self._phases[place] if self._phases and place < len(self._phases) else "steady")
        self._prompt_tokens.append(request.prompt_tokens)
        self._completion_tokens.append(0)
        self._predicted_tokens.append(predicted)
        self._outcome.append(outcome)
        self._finish_reason.append(reason)
        self._charge.append(0.0)

    def _dispatched(self, event: Dispatched) -> None:
        self._dispatched_at[self._places[event.ticket.request.id]] = event.at
        self._depth.change(event.at, -1)

    def _finished(self, event: Finished) -> None:
        place = self._end(event, "finished", event.finish_reason)
        if place is not None and event.first_token_at is not None:
            self._first_token_at[place] = event.first_token_at

    def _evicted(self, event: Evicted) -> None:
        if event.dispatched_at is None:
            self._depth.change(event.at, -1)
        self._end(event, "evicted", event.reason)

    def _failed(self, event: Failed) -> None:
        self._end(event, "failed", event.error)

    def _end(self, event: Finished | Evicted | Failed, outcome: str, reason: str) -> int | None:
        """The place of the request that left; None, and nothing recorded, if it had left before."""
        place = self._places.pop(event.ticket.request.id, None)
        if place is None:
            self._stray_events += 1
            return None
        usage = event.usage
        self._finished_at[place] = event.at
        if usage.prompt_tokens:
            self._prompt_tokens[place] = usage.prompt_tokens
        self._completion_tokens[place] = usage.completion_tokens
        self._outcome[place] = outcome
        self._finish_reason[place] = reason
        self._charge[place] = event.charge
        return place

    def _recalibrated(self, event: Recalibrated) -> None:
        key = (event.model, event.category)
        samples = self._bias.get(key)
        if samples is None:
            samples = self._bias[key] = _Thinned(MAX_BIAS_POINTS)
        samples.add(event.at, event.bias_after)

    def _bias_points(self) -> list[tuple[float, str, float]]:
        """By time. A category is called by its model as well if there are several."""
        several = len({model for model, _ in self._bias}) > 1
        return sorted(
            (at, f"{model}/{category}" if several else category, bias)
            for (model, category), samples in self._bias.items()
            for at, bias in samples.points
        )


class _Thinned:
    """A few points of a long series, about evenly spread in time: half of them are let go whenever it is full."""

    def __init__(self, max_points: int) -> None:
        self.points: list[tuple[float, float]] = []
        self._max_points = max_points
        self._spacing = 0.0
        self._next_at = -inf

    def add(self, at: float, value: float) -> None:
        if at < self._next_at:
            return
        self.points.append((at, value))
        if len(self.points) == self._max_points:
            self._spacing = 2 * (at - self.points[0][0]) / self._max_points
            del self.points[1::2]
        self._next_at = at + self._spacing


class _Depth:
    """How many wait, over time. A depth counts from the last change of an instant on."""

    def __init__(self) -> None:
        self.largest = 0
        self._samples = _Thinned(MAX_DEPTH_POINTS - 1)  # and the last one
        self._depth = 0
        self._at: float | None = None

    def change(self, at: float, by: int) -> None:
        if at != self._at:
            if self._at is not None:
                self._samples.add(self._at, self._depth)
            self._at = at
        self._depth += by
        if self._depth > self.largest:
            self.largest = self._depth

    def points(self) -> list[tuple[float, int]]:
        points = [(at, int(depth)) for at, depth in self._samples.points]
        return points if self._at is None else [*points, (self._at, self._depth)]
