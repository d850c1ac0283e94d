"""The nouns. Everything else in the package is about these.

Instants (`*_at`) are seconds on the driver's clock; differences of instants are seconds. Token counts are the
engine's own tokens wherever the engine reported them. Every record is frozen: a change makes a new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from types import MappingProxyType
from typing import Literal

from driftsched.core.tracing import Span


class Tier(IntEnum):
    """What a tenant is entitled to; smaller is better, so tiers sort by urgency."""

    PREMIUM = 0
    STANDARD = 1
    BATCH = 2

    @property
    def label(self) -> str:
        """The lower-case name used in configuration, headers and metrics."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> "Tier":
        """The tier called `label` (case does not matter). Raises `ValueError` naming the choices."""
        try:
            return cls[label.upper()]
        except KeyError:
            raise ValueError(f"unknown tier {label!r}: use one of {', '.join(t.label for t in cls)}") from None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may ask for; each part is None where there is no such limit, else > 0."""

    account: str
    """Who has it: tenants of one account share it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion tokens: as predicted at admission, as used in the end."""
    max_inflight: int | None = None
    """Requests at the engines."""
    max_waiting: int | None = None
    """Requests in the gateway that have not come to the engines yet."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays for a request."""

    id: str
    tier: Tier = Tier.STANDARD
    weight: float = 1.0
    """Share of the engines relative to other tenants, > 0; read by the fair policies only."""
    quota: Quota | None = None
    """None: no limit of its own, as the rule is."""
    models: frozenset[str] | None = None
    """Those that it may use; None: all."""

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class Traits:
    """What the form of a call tells about its answer, before anybody reads the prompt.

    The digests stand for texts of the client's: equal texts have equal digests, and nothing can be read out of one.
    """

    template: str = ""
    """Digest of what calls of one program share: system prompt, start of the prompt without its numbers, tools."""
    session: str = ""
    """Digest of the conversation: equal for all its turns; empty if it is not known."""
    turn: int = 0
    """Answers given earlier in the conversation, >= 0."""
    previous_bytes: int = 0
    """UTF-8 length of the last answer of the conversation, where the call repeats it; 0 if there is none."""
    system_bytes: int = 0
    """UTF-8 length of the system prompt."""
    choices: int = 1
    """Answers asked for (`n`), >= 1."""
    tools: int = 0
    """Tools offered."""
    structured: bool = False
    """The answer must be JSON (`response_format`, or a guided decoding of the engine's own)."""
    stops: bool = False
    """The client set stop sequences."""


NO_TRAITS = Traits()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation asked for, as the scheduler sees it."""

    id: str
    """Unique among all requests alive; made by the driver, never taken from a client."""
    tenant: Tenant
    tier: Tier
    """The tier this request is served at: what was asked for, but never better than `tenant.tier`."""
    model: str
    arrived_at: float
    prompt: str = ""
    """Head of the text that tells what kind of request it is; bounded by the driver, may be empty."""
    prompt_bytes: int = 0
    """UTF-8 length of the whole prompt, all messages included."""
    prompt_tokens: int = 0
    """Length of the prompt: estimated at admission, by the describer."""
    category: str = ""
    """Kind of request as classified at admission; empty until described."""
    max_tokens: int | None = None
    """The client's own limit on completion tokens, if it set one (>= 1)."""
    traits: Traits = NO_TRAITS
    """What else the call tells; filled in by the driver."""
    expires_at: float = inf
    """If still waiting at this instant, the request is evicted."""
    urgency: int = 0
    """How soon an engine should take it among those it holds, smaller first; set at dispatch, where one asks."""
    target_seconds: float | None = None
    """From arrival to the end of the answer, > 0 and finite: what the client hopes for. A policy may believe it."""
    payload: object = None
    """What the engine needs to serve it. The core carries it and never looks inside."""
    payload_bytes: int = 0
    """Memory held by `payload`; counts against the queue's byte bound."""
    public_id: str = ""
    """What its client knows it by, printable ASCII; for logs, as it need not be unique. Empty: `id`."""
    span: Span | None = None
    """Its place in a trace; None if none is kept."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens really used, as on the OpenAI wire."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Estimate:
    """How many completion tokens a request is expected to produce.

    Order by `completion_tokens`. The quantiles carry the safety margin and are for admission, reservation and ETA
    only: a margin in a sort key makes whoever is given the larger margin wait longer.
    """

    completion_tokens: float
    """Point prediction, >= 0."""
    q50: float
    q80: float
    q90: float
    """Upper quantiles of the completion length, q50 <= q80 <= q90."""
    mean_tokens: float | None = None
    """Mean of the completion length, `max_tokens` respected, >= 0; None: not known apart from the point."""
    lengths: tuple[float, ...] = ()
    """Equally likely completion lengths, ascending: the predicted distribution. Empty: not known."""
    basis: object = field(default=None, compare=False, repr=False)
    """What the estimator will want to see again when it revises or learns. Nobody else looks inside."""

    @property
    def expected_tokens(self) -> float:
        """What sums should be made of: the mean, or the point prediction where no mean is known."""
        return self.completion_tokens if self.mean_tokens is None else self.mean_tokens

    def remaining_tokens(self, produced: int) -> float:
        """Mean number of tokens still to come from an answer that has `produced` tokens and goes on; >= 1.

        Beyond all that was predicted the rest is taken for a quarter of what has come: lengths have heavy tails.
        """
        longer = [length for length in self.lengths or (self.q50, self.q80, self.q90) if length > produced]
        rest = sum(longer) / len(longer) - produced if longer else produced / 4
        return max(1.0, rest)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What feedback has come to for one model and category."""

    model: str
    category: str
    bias: float
    """Factor by which drift corrects predictions beyond what their parts have learnt; 1 is none."""
    error: float
    """Mean absolute logarithm of actual / predicted, of the last 200 answers or so."""
    coverage: float
    """Share of them within the q80 promised at admission."""
    num_drifts: int
    answers_since_drift: int | None
    """None if there was none."""


Why = Literal["overdue", "only_waiting", "best_band", "smallest_rank", "least_served", "lead"]
"""Why a ticket was taken from the line when it was; the first of these that holds:

- `overdue`: it had waited its maximum, and none was overdue for longer
- `only_waiting`: nobody else waited
- `best_band`: it was alone in its band, and all others waited in worse ones
- `smallest_rank`: no other flow of its band waited, and its rank was the smallest
- `least_served`: of several waiting flows its own had been served least, and its rank was the smallest of the flow
- `lead`: its flow was ahead of another, but by no more than its lead, and its rank was the smallest of the band
"""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request's place in line."""

    request: Request
    estimate: Estimate
    seq: int
    """Order of admission; breaks every tie, so that equal ranks are served in order of arrival."""
    band: int
    """Strict class: band 0 is served before band 1, whatever else is true."""
    flow: str
    """Who competes for service inside the band."""
    rank: float
    """Place inside the flow, smallest first."""
    charge: float
    """Expected price of serving it, in weighted tokens; the flow is charged this much at dispatch."""
    overdue_at: float = inf
    """From this instant on the ticket is served next, whatever the policy says."""
    lead: float = 0.0
    """Weighted tokens, >= 0, that its flow may be ahead of the least served waiting one while the ticket is still
    served by rank alone; 0: only the least served flow is served."""

    @property
    def id(self) -> str:
        return self.request.id


UNDIVIDED: Mapping[tuple[int, Tier], float] = MappingProxyType({})
"""One for all, because every waiting ticket keeps its `Load`."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the pool is, as a policy may see it when it ranks a request."""

    num_waiting: int
    num_inflight: int
    waiting_tokens: float
    """Predicted completion tokens of everything that waits."""
    tokens_per_second: float
    """Completion tokens the pool has lately produced per second while busy; 0 until something finished."""
    long_tokens: float = 0.0
    """Completion tokens that nine in ten predictions of late stay below; 0 until something was admitted."""
    middle_tokens: float = 0.0
    """Completion tokens that half of the predictions of late stay below; 0 until something was admitted."""
    usual_drain_seconds: float = 0.0
    """Mean `drain_seconds` that the requests admitted lately found; 0 until something finished."""
    waiting_by_band_and_tier: Mapping[tuple[int, Tier], float] = field(default_factory=lambda: UNDIVIDED)
    """`waiting_tokens` divided up; empty unless the policy triages."""

    @property
    def drain_seconds(self) -> float:
        """Time to serve all that waits at the measured rate; 0 while the rate is unknown."""
        return self.waiting_tokens / self.tokens_per_second if self.tokens_per_second > 0 else 0.0
