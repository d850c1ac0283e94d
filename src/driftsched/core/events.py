"""One frozen record for every step of a request's way.

Metrics, logs, the journal, the simulator's recorder and the benchmark are all listeners of these, so each number
has one definition. A request leaves exactly one of `Rejected`, `Finished`, `Evicted`, `Failed`:

    submitted == finished + rejected + evicted + failed        once nothing waits and nothing is in flight
"""

from dataclasses import dataclass

from driftsched.core.model import Load, Request, Ticket, Usage, Why
from driftsched.core.waits import Eta


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request was predicted and given a place in line."""

    at: float
    ticket: Ticket
    position: int
    """Tickets waiting at that moment, itself included: its place if all were served in order of arrival."""
    load: Load | None = None
    """What it found, itself not included; None if nobody looked."""
    eta: Eta | None = None
    """When it will be dispatched, as forecast then; None while the engine's rate is unknown."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request was never queued and cost nothing."""

    at: float
    request: Request
    reason: str
    """`queue_full`, `queue_tokens_full`, `queue_bytes_full`, the same three of its tenant (`tenant_queue_full`,
    `tenant_tokens_full`, `tenant_bytes_full`) and of its tier (`tier_queue_full`, `tier_tokens_full`,
    `tier_bytes_full`), `max_wait_unattainable` (a maximum wait could not be kept), `deadline_unattainable` (it
    would expire before its turn), `requests_quota` or `tokens_quota` (its tenant has asked for so much this
    minute), `tenant_inflight_full` (for all the time that it may wait so many of its tenant's were in line or in
    flight that it could not join them) or `shutting_down`."""
    retry_after_seconds: float | None
    """When it is worth trying again; None if never."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The ticket was taken from the line and holds a slot."""

    at: float
    ticket: Ticket
    why: Why | None
    """None if the queue no longer knows: the ticket has left again."""

    @property
    def overdue(self) -> bool:
        """It was served because it had waited its maximum, not because it was its turn."""
        return self.why == "overdue"

    @property
    def queue_seconds(self) -> float:
        return self.at - self.ticket.request.arrived_at


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The engine produced the first content of the answer."""

    at: float
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete, and the flow has paid its actual price."""

    at: float
    ticket: Ticket
    usage: Usage
    finish_reason: str
    """As on the OpenAI wire; `length` means that the true length is unknown, only that it is at least this."""
    dispatched_at: float
    first_token_at: float | None
    """None if the engine produced no content."""
    charge: float
    """Actual price, in weighted tokens."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """The request was queued, and left before it was finished, by nobody's fault: it paid what it used."""

    at: float
    ticket: Ticket
    reason: str
    """`cancelled` (the client left), `expired` (it waited too long), `shed` (its place in a full queue was
    given to a request of better value) or `shutting_down`."""
    usage: Usage
    dispatched_at: float | None
    """None if it was still waiting."""
    charge: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine failed the request after it was dispatched: it paid what it used."""

    at: float
    ticket: Ticket
    error: str
    """The kind of failure: see `EngineError.kind`."""
    usage: Usage
    dispatched_at: float
    charge: float


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """Feedback changed the correction applied to requests like this one."""

    at: float
    model: str
    category: str
    bias_before: float
    bias_after: float


@dataclass(frozen=True, slots=True)
class DriftDetected:
    """Answers of this kind have become longer or shorter, and predictions for the kind were corrected at once."""

    at: float
    model: str
    category: str
    factor: float
    """By which the estimator takes lengths to have changed, > 0: above 1, they are longer."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """Waiting tickets of this kind took other places in line: feedback changed what is predicted for them."""

    at: float
    model: str
    category: str
    tickets: tuple[Ticket, ...]
    """As they stand now, at least one: at most `max_reranks` at each settlement."""

    @property
    def count(self) -> int:
        return len(self.tickets)


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy decides from here on; what waits is placed anew under it."""

    at: float
    before: str
    """The policy as a user writes it, such as `fair:slack=2`."""
    after: str
    why: str
    """A sentence for the log."""


Event = (
    Admitted
    | Rejected
    | Dispatched
    | FirstToken
    | Finished
    | Evicted
    | Failed
    | Recalibrated
    | DriftDetected
    | Reranked
    | PolicyChanged
)
