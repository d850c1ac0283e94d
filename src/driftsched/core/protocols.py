"""The seams: what a policy, an estimator, a queue, an engine, a clock and a listener must be able to do."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from driftsched.core.events import Event
from driftsched.core.model import Calibration, Estimate, Load, Request, Ticket, Usage, Why


class Policy(Protocol):
    """Where a request stands and what serving it costs its flow.

    A policy names and prices; it never touches the queue. It answers with numbers and strings rather than with a
    comparison, because a number sorts alike in a heap and in a Redis sorted set.
    """

    def band(self, request: Request) -> int:
        """Strict class, 0 first. A small fixed set of values."""
        ...

    def flow(self, request: Request) -> str:
        """Who competes for service inside the band."""
        ...

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        """Place inside the flow, smallest first; finite.

        Asked at admission, and again when the estimate is revised while the request waits, with the `load` of its
        admission both times.
        """
        ...

    def charge(self, request: Request, usage: Usage) -> float:
        """Price of `usage` in weighted tokens, >= 0 and never falling as usage grows."""
        ...


@runtime_checkable
class Lenient(Protocol):
    """A policy that serves by rank across flows, as long as no waiting flow falls too far behind."""

    @property
    def lead(self) -> float:
        """Weighted tokens, finite, >= 0, that a flow may be ahead of the least served waiting one and be served."""
        ...


@runtime_checkable
class Triage(Protocol):
    """A policy whose bands depend on how busy the pool is."""

    def triage(self, request: Request, estimate: Estimate, load: Load) -> int:
        """Strict class, instead of `band`: asked once, at admission, and kept when the ticket is ranked again."""
        ...


class Describer(Protocol):
    """Fills in what a prompt tells about its request: category and prompt length."""

    def describe(self, request: Request) -> Request:
        """The request with `category` and `prompt_tokens` set. Pure; called after the admission bounds."""
        ...

    def learn(self, request: Request, usage: Usage) -> None:
        """What the engine counted for the prompt of a described request."""
        ...


class Estimator(Protocol):
    """Expected token usage at admission; learns from what was really used."""

    def predict(self, request: Request) -> Estimate:
        """Pure: the same state and request give the same estimate."""
        ...

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        """Predict a waiting request again, knowing more than when it got `estimate`. Pure, and cheap."""
        ...

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        """What the request used. `finished=False` says that it was cut short: its length is a lower bound.

        `estimate` is the last one made before its dispatch, where it is at hand. Returns the factor, > 0, by which
        lengths of this model and category have shifted, if this answer made that certain; else None, as does an
        estimator that does not look for shifts.
        """
        ...

    def bias(self, request: Request) -> float:
        """Factor by which feedback now corrects the uncorrected prediction for such a request; 1 is none.

        When an answer moves it, those of the same model and category that wait are revised.
        """
        ...


@runtime_checkable
class Outliving(Protocol):
    """An estimator that wants to know at once of an answer that becomes longer than was promised."""

    def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
        """The answer has `produced` tokens, more than the q90 of the estimate it was dispatched with, and goes on.

        Told at most once a request, and `learn` still follows at its end: what is taken in here must not count
        again there. Returns the factor of a shift that this made certain, as `learn` does.
        """
        ...


@runtime_checkable
class Accountable(Protocol):
    """An estimator that can say how right it has lately been."""

    def calibration(self) -> Iterable[Calibration]:
        """One for each model and category remembered, a bounded number; what was learnt from last at the end."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """Learns, and can hand on what it learnt: over a restart, or to a replica of itself.

    A state is plain data: a dictionary with a whole number under `version`, and otherwise strings, numbers, bytes,
    lists and dictionaries. It holds no text of any request, and its size is bounded.
    """

    def snapshot(self) -> dict[str, object]:
        """What has been learnt. Shares nothing that still changes, so that another thread may write it out."""
        ...

    def restore(self, state: Mapping[str, object]) -> None:
        """Know what the snapshot knew, instead of what is known now: predictions are then the same.

        Raises `ValueError`, and changes nothing, if the state is of another version or malformed.
        """
        ...

    def merge(self, state: Mapping[str, object]) -> None:
        """Add what another learnt, each weighed by how much that was; an empty state changes nothing.

        As far as there is room it does not matter who merges whom. Two states must have nothing in common: what is
        merged twice counts twice. Raises `ValueError`, and changes nothing, as `restore` does.
        """
        ...


class Queue(Protocol):
    """The waiting tickets, their order, and the slots in use. Every method is atomic."""

    async def push(self, ticket: Ticket) -> None:
        """Let the ticket wait. Raises `ValueError` if a ticket with its id is waiting or in flight."""
        ...

    async def pop(self, now: float) -> Ticket | None:
        """The next ticket, charged to its flow and holding a slot; None if nothing waits or no slot is free."""
        ...

    async def why(self, ticket_id: str) -> Why | None:
        """Why a ticket in flight was the next when it was popped; None if it is not in flight."""
        ...

    async def settle(self, ticket_id: str, charge: float, *, release: bool) -> bool:
        """Correct the charge of a ticket in flight to `charge`; with `release` also give its slot back.

        False, and nothing done, if the ticket is not in flight: somebody else settled it.
        """
        ...

    async def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        """Move a waiting ticket to a new place. False if it no longer waits."""
        ...

    async def move(self, ticket: Ticket) -> bool:
        """Move a waiting ticket to the band, flow, rank, charge and lead it has now. False if it does not wait."""
        ...

    async def restart_accounts(self) -> None:
        """Let every flow begin anew, as if nobody had been served; what is in flight is charged no more."""
        ...

    async def remove(self, ticket_id: str) -> bool:
        """Take a waiting ticket out, uncharged. False if it no longer waits."""
        ...

    async def reap(self, now: float) -> list[Ticket]:
        """Take out and return, uncharged, every waiting ticket whose request has expired."""
        ...

    async def resize(self, max_inflight: int) -> None:
        """Change the number of slots. Tickets above a smaller limit finish; none start until there is room."""
        ...


class Chunk(NamedTuple):
    """A piece of an answer as it left the engine."""

    data: bytes
    """Bytes for the client: whole server-sent events of a stream, or one whole answer, mostly a JSON document."""
    completion_tokens: int = 0
    """Tokens produced so far, this chunk included: counted from content until the engine states its own usage."""
    usage: Usage | None = None
    """The engine's own account, when this chunk carries it."""
    usage_only: bool = False
    """The chunk holds the usage and nothing else: hidden from a client that did not ask for it."""
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls`, ...: set on the chunk that ends a choice."""
    media_type: str = "application/json"
    """Of a whole answer; events say what they are."""
    begins_anew: bool = False
    """All that came before is void: another engine gives the answer from its beginning."""


EngineKind = Literal["llama.cpp", "vllm", "sglang", "ollama", "generic"]
"""The servers that are told apart."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """How full an engine is."""

    fraction: float
    """0 idle .. 1 full: dispatch stops at 1."""
    healthy: bool = True


class Engine(Protocol):
    """A model server that turns a request into a stream of chunks."""

    @property
    def name(self) -> str:
        """Short label for logs, headers and metrics."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer, piece by piece. Closing the generator stops the generation upstream.

        Raises `EngineError` (see `driftsched.core.errors`) before the first chunk if the engine refused or could
        not be reached, and after it if the answer broke off.
        """
        ...

    async def saturation(self) -> Saturation: ...

    async def close(self) -> None:
        """Give back what the engine holds: connections, tasks."""
        ...


@runtime_checkable
class Prioritising(Protocol):
    """An engine that passes on how urgent a request is."""

    @property
    def prioritises(self) -> bool:
        """`Request.urgency` must be set before `generate`."""
        ...


class Clock(Protocol):
    """Seconds that never run backwards."""

    def now(self) -> float: ...


Listener = Callable[[Event], None]
"""Told of everything that happens, in order. Must be quick; if it raises, the failure is logged and is its own."""
