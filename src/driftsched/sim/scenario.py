"""A workload described: phases x tenants x categories x arrivals. In YAML as in Python; docs/workloads.md explains.

What is unknown or makes no sense is refused with the path of the field.
"""

from math import inf
from pathlib import Path
from typing import Literal

import msgspec
import yaml
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.prompts import WORDINGS
from driftsched.sim.shaping import check_weights, spread_tiers, zipf_shares


class Length(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lognormal number of tokens."""

    mean: float
    """> 0."""
    cv: float = 0.0
    """Standard deviation divided by mean, >= 0."""


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of request."""

    prompt_tokens: Length
    completion_tokens: Length
    """Before `max_tokens` cuts."""
    weight: float = 1.0
    """Share of the requests, relative to the other categories."""
    max_tokens: int | None = None
    """The client's limit, >= 1: longer answers are cut off there."""
    cap_share: float = 0.0
    """Share of the answers, 0 .. 1, that run into `max_tokens` whatever the lognormal law says of the rest."""


class TenantLaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks."""

    share: float = 1.0
    """Share of the requests, relative to the other tenants."""
    tier: Literal["premium", "standard", "batch"] = "standard"


class Crowd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many tenants by a law: see `zipf_shares` and `spread_tiers`."""

    num_tenants: int = 8
    exponent: float = 1.0
    tiers: dict[Literal["premium", "standard", "batch"], float] = msgspec.field(
        default_factory=lambda: {"premium": 0.2, "standard": 0.5, "batch": 0.3}
    )


class Arrivals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A renewal process, whose rate may swing like day and night. A Poisson process unless told otherwise."""

    rate: float | None = None
    """Requests a second on average, > 0."""
    rho: float | None = None
    """Instead of `rate`: that multiple of what the pool can serve, > 0."""
    cv: float = 1.0
    """Burstiness: standard deviation of the gaps divided by their mean, > 0, of a Gamma law; 1 is Poisson."""
    spread: float | None = None
    """Instead of `cv`: gaps uniform in (1 - spread) .. (1 + spread) times their mean, 0 .. 1."""
    amplitude: float = 0.0
    """The rate at t seconds of the phase is multiplied by 1 + amplitude * sin(2 pi t / period); 0 <= .. < 1."""
    period_seconds: float = 86_400.0


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stretch of time under one law. Ends after `requests` or `seconds`: give one of them."""

    name: str
    arrivals: Arrivals
    requests: int | None = None
    seconds: float | None = None
    weights: dict[str, float] | None = None
    """Category -> weight in this phase; those left out have none. None: the categories' own."""
    shares: dict[str, float] | None = None
    """Tenant -> share in this phase; those left out have none. None: the tenants' own."""
    length_factors: dict[str, float] = {}
    """Category -> what the answers' lengths are multiplied by, > 0."""
    floods: dict[str, float] = {}
    """Tenant -> k >= 1: it sends k times its share. What is too much comes on top, as a Poisson process that swings
    as the others do."""
    model: str | None = None
    """None: the scenario's."""
    after_drain: bool = False
    """Begins when all requests before it have ended."""
    pause_seconds: float = 0.0
    """Begins so much later than it otherwise would."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole workload, but for the seed. Raises `ConfigError` if it makes no sense."""

    phases: list[Phase]
    name: str = "scenario"
    model: str = "model"
    categories: dict[str, Category] = {}
    """By name. Needed unless `lengths_from` is given."""
    lengths_from: str | None = None
    """Instead of `categories`: a trace file whose requests are drawn again, prompt and answer together."""
    tenants: dict[str, TenantLaw] = {}
    """By id. None: a `crowd`."""
    crowd: Crowd = Crowd()
    prompts: Literal["none", "plain", "labelled"] = "none"
    """Text for each request: none, only what a user would write, or with its category named in it."""

    def __post_init__(self) -> None:
        _check(self)

    def members(self) -> dict[str, TenantLaw]:
        """The tenants, named one by one."""
        if self.tenants:
            return self.tenants
        shares = zipf_shares(self.crowd.num_tenants, self.crowd.exponent)
        tiers = spread_tiers(list(shares), {Tier.parse(label): share for label, share in self.crowd.tiers.items()})
        return {
            tenant: TenantLaw(share, tiers[tenant].label)  # type: ignore[arg-type]
            for tenant, share in shares.items()
        }


def load_scenario(path: Path) -> Scenario:
    """The scenario of a YAML file; `lengths_from` is relative to it. Raises `ConfigError` naming file and field."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        scenario = msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").lstrip(".")
        raise ConfigError(f"{path}: {place}: {problem}" if place else f"{path}: {problem}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if scenario.lengths_from is None:
        return scenario
    return replace(scenario, lengths_from=str(path.parent / scenario.lengths_from))


def _check(scenario: Scenario) -> None:
    if bool(scenario.categories) == (scenario.lengths_from is not None):
        raise ConfigError("categories: give these or lengths_from, and not both")
    for name, category in scenario.categories.items():
        _check_category(f"categories.{name}", category)
    if scenario.categories:
        check_weights("categories", {name: law.weight for name, law in scenario.categories.items()})
    if scenario.lengths_from is not None and scenario.prompts != "none":
        raise ConfigError("prompts: a trace's lengths fit no prompt of ours: give categories, or no prompts")
    if scenario.prompts != "none":
        for name in scenario.categories:
            if name not in WORDINGS:
                raise ConfigError(f"categories.{name}: there are prompts only for {', '.join(WORDINGS)}")
    check_weights("tenants", {name: law.share for name, law in scenario.members().items()})
    if not scenario.phases:
        raise ConfigError("phases: give at least one")
    for number, phase in enumerate(scenario.phases):
        if phase.name in (other.name for other in scenario.phases[:number]):
            raise ConfigError(f"phases[{number}].name: {phase.name!r} comes twice: their draws would be the same")
        _check_phase(f"phases[{number}]", phase, scenario)


def _check_category(where: str, category: Category) -> None:
    for part in ("prompt_tokens", "completion_tokens"):
        law: Length = getattr(category, part)
        _check_range(f"{where}.{part}.mean", law.mean, above=0)
        _check_range(f"{where}.{part}.cv", law.cv, least=0)
    if category.max_tokens is not None:
        _check_range(f"{where}.max_tokens", category.max_tokens, least=1)
    elif category.cap_share:
        raise ConfigError(f"{where}.cap_share: needs max_tokens, which is the cap")
    _check_range(f"{where}.cap_share", category.cap_share, least=0, most=1)


def _check_phase(where: str, phase: Phase, scenario: Scenario) -> None:
    if (phase.requests is None) == (phase.seconds is None):
        raise ConfigError(f"{where}: give requests or seconds, and not both")
    if phase.requests is not None:
        _check_range(f"{where}.requests", phase.requests, least=1)
    if phase.seconds is not None:
        _check_range(f"{where}.seconds", phase.seconds, above=0)
    _check_range(f"{where}.pause_seconds", phase.pause_seconds, least=0)
    _check_arrivals(f"{where}.arrivals", phase.arrivals)
    if scenario.categories:
        _check_names(f"{where}.length_factors", phase.length_factors, scenario.categories)
        if phase.weights is not None:
            _check_names(f"{where}.weights", phase.weights, scenario.categories)
    elif phase.weights is not None:
        raise ConfigError(f"{where}.weights: the trace of lengths_from brings its own mix")
    for category, factor in phase.length_factors.items():
        _check_range(f"{where}.length_factors.{category}", factor, above=0)
    members = scenario.members()
    _check_names(f"{where}.floods", phase.floods, members)
    for tenant, factor in phase.floods.items():
        _check_range(f"{where}.floods.{tenant}", factor, least=1)
    for field, weights in (("weights", phase.weights), ("shares", phase.shares)):
        if weights is not None:
            check_weights(f"{where}.{field}", weights)
    if phase.shares is not None:
        _check_names(f"{where}.shares", phase.shares, members)


def _check_arrivals(where: str, arrivals: Arrivals) -> None:
    if (arrivals.rate is None) == (arrivals.rho is None):
        raise ConfigError(f"{where}: give rate or rho, and not both")
    if arrivals.rate is not None:
        _check_range(f"{where}.rate", arrivals.rate, above=0)
    if arrivals.rho is not None:
        _check_range(f"{where}.rho", arrivals.rho, above=0)
    _check_range(f"{where}.cv", arrivals.cv, above=0)
    if arrivals.spread is not None:
        _check_range(f"{where}.spread", arrivals.spread, least=0, most=1)
        if arrivals.cv != 1:
            raise ConfigError(f"{where}: give cv or spread, and not both")
    if not 0 <= arrivals.amplitude < 1:
        raise ConfigError(f"{where}.amplitude: must be at least 0 and below 1, not {arrivals.amplitude}")
    _check_range(f"{where}.period_seconds", arrivals.period_seconds, above=0)


def _check_names(where: str, given: dict[str, float], known: dict[str, Category] | dict[str, TenantLaw]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{where}.{name}: there is none of that name; there are {', '.join(known)}")


def _check_range(where: str, value: float, *, above: float = -inf, least: float = -inf, most: float = inf) -> None:
    if above < value < inf and least <= value <= most:
        return
    bound = f"above {above}" if above > -inf else f"{least} or more"
    upto = f" and at most {most}" if most < inf else ""
    raise ConfigError(f"{where}: must be a number {bound}{upto}, not {value}")
