"""Lengths learnt where they are used: a hierarchy of means and medians, words on top, doubt kept honest. The default."""

from collections.abc import Iterator
from math import exp, inf, log, log2
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators.categories import base_tokens, input_factor
from driftsched.estimators.drift import Cusum
from driftsched.estimators.linear import Ridge, Words
from driftsched.estimators.nodes import Level, Window
from driftsched.estimators.pretrained import load
from driftsched.estimators.quantiles import LEVELS, TARGETS, Conformal, Profile
from driftsched.estimators.recent import Recent
from driftsched.estimators.text import NUM_DENSE, TABLE_BITS, Reading, read

Vector = npt.NDArray[np.float64]

MAX_LENGTH: Final = 10_000_000
"""A longer answer, in tokens, is an error of whoever counted it."""

STRENGTH: Final = 6.0
"""Observations that a node's parent counts for."""

EXPERTS: Final = ("model", "figures", "words", "session", "template", "tenant", "tenant_size", "size")
"""What is added, weighted, to the level of model, category and tenant; last, where there is one, `pretrained`."""

CANDIDATES: Final = ("blend", "level", "tenant", "tenant_size", "size", "sizes")
"""What the gate chooses among: the blend of all experts, and plain statistics that it must not lose to."""


class _Keys(NamedTuple):
    """What a request is remembered under."""

    tenant: tuple[str, str]
    own: tuple[str, str, str]
    tenant_size: tuple[str, str, int]
    size: tuple[str, int]
    session: tuple[str, str] | None
    template: tuple[str, str | int] | None
    prompt: tuple[str, int] | None


class _Basis(NamedTuple):
    """What an estimate keeps for the time when its request is revised or learnt."""

    reading: Reading
    keys: _Keys
    promised: tuple[float, float]
    """Logarithms of q80 and q90 as promised at admission, before `max_tokens` cut them."""


class _Tenant:
    """One tenant's answers from one model, in comparison with everybody's."""

    __slots__ = ("apart", "num_shared", "outlying")

    def __init__(self) -> None:
        self.apart = Level()  # from the level of model and category
        self.num_shared = 0  # of its answers that entered what tenants share
        self.outlying = False


class _Own:
    """One tenant's answers from one model in one category."""

    __slots__ = ("level", "spread", "window")

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.window = Window()


class _Session:
    """One conversation."""

    __slots__ = ("last_tokens", "level")

    def __init__(self) -> None:
        self.level = Level()
        self.last_tokens = 0


class _Kind:
    """One model's answers in one category."""

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.drift = Cusum()
        self.bias = 0.0  # logarithm
        self.since_drift = 1_000_000  # answers
        self.num_drifts = 0
        self.error = Level()  # absolute log error of the point
        self.covered = Level()  # share within q80


class _Family:
    """One model's answers: its level, its scatter, and which of the candidates has lately been best."""

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.num_shared = 0
        self.profile = Profile()
        self.conformal = Conformal(rate=0.03)
        self.offset = 0.0  # logarithm: median of what the blend leaves
        self.losses: Vector = np.zeros(len(CANDIDATES))
        self.num_learnt = 0


class _Forecast(NamedTuple):
    """All that is thought of one request. Lengths are logarithms."""

    of_kind: float
    """Level of model and category."""
    level: float
    """Of model, category and tenant."""
    experts: Vector
    """What each of `EXPERTS` would add to the level."""
    blend: float
    candidates: Vector
    point: float
    spread: float
    """Mean absolute deviation expected of the answer."""


_NO_TENANT = _Tenant()
_NO_OWN = _Own()
_NO_KIND = _Kind()
_NO_FAMILY = _Family()
_NO_WINDOW = Window()
_NO_LEVEL = Level()

_START_WEIGHTS: Final[Vector] = np.array([0.0, 0.8, 0.5, 0.5, 0.3, 0.1, 0.1, 0.1])
"""Of `EXPERTS`. A hint at what to expect, worth a few answers."""
_START_PRETRAINED: Final = 0.5

_ADVANTAGE: Final[Vector] = np.array([0.95, 1.0, 1.0, 1.0, 1.0, 1.0])
"""Of `CANDIDATES`: the blend is left only for what is clearly better."""

_START_GATE: Final[Vector] = np.array([4.0, 1.0, 1.0, 1.0, 1.0, 1.0])


class Adaptive:
    """Predict from what model, category, tenant, session, prompt size and words have lately meant for the length.

    How, in logarithms of lengths:

    1. *Level.* Forgetting means along global, model, category, tenant; each drawn to the one before while it knows
       little.
    2. *Experts* add to the level: a ridge regression on some fifty figures of the call, hashed words, the
       conversation, the template and the exact prompt, medians of the tenant's last answers and of prompts of this
       size. Their weights are learnt.
    3. *Gate.* The blend of them all competes with the plain medians for the least absolute error in tokens, lately
       and for this model, so it cannot do worse than they for long.
    4. *Doubt.* Residuals, in units of the spread of this kind of request, have tracked quantiles; q80 and q90 are
       then corrected so that 80 and 90 % of answers stay within what was promised at admission.
    5. *Drift.* A detector watches the residuals of each model and category. Its alarm corrects their bias at once by
       the estimated shift, and lets them learn faster for a while.

    An answer that was cut short (by `max_tokens`, its client, a failure) is a lower bound: it counts as the median
    of the answers that are longer than it. A tenant whose answers are many times longer or shorter than everybody
    else's is learnt apart, so that nobody can move another's predictions by reporting absurd lengths.

    Why: keys beat text where they exist, text beats nothing, and either alone is ruined by drift. Trade-off: about
    0.1 ms to predict and as much to learn, and some hundred answers until the words are worth anything.

    Sources: shrinkage as in James and Stein (1961); adaptive conformal inference, Gibbs and Candes (2021); the
    redistribution of censored mass of Efron (1967); exponentially weighted forecasters, Cesa-Bianchi and Lugosi (2006).
    """

    def __init__(self, max_tenants: int = 100_000, pretrained: str = "") -> None:
        """`max_tenants`: pairs of model and tenant remembered, >= 1; about 700 bytes each.

        `pretrained`: file of a scorer that `driftsched train` made, one more expert; none if empty.
        """
        if max_tenants < 1:
            raise ValueError(f"max_tenants must be at least 1, but is {max_tenants}")
        few = max(1, min(max_tenants, 20_000))
        self._all = Level()
        self._families: Recent[tuple[str, bool], _Family] = Recent(_Family, 512)
        self._kinds: Recent[tuple[str, bool, str], _Kind] = Recent(_Kind, 1024)
        self._tenants: Recent[tuple[str, str], _Tenant] = Recent(_Tenant, max_tenants)
        self._own: Recent[tuple[str, str, str], _Own] = Recent(_Own, max_tenants)
        self._sessions: Recent[tuple[str, str], _Session] = Recent(_Session, few)
        self._templates: Recent[tuple[str, str | int], Level] = Recent(Level, few)
        self._prompts: Recent[tuple[str, int], Level] = Recent(Level, few)
        self._tenant_sizes: Recent[tuple[str, str, int], Window] = Recent(Window, few)
        self._sizes: Recent[tuple[str, int], Window] = Recent(Window, few)
        self._figures = Ridge(np.zeros(NUM_DENSE), penalty=10.0)
        self._words = Words(1 << TABLE_BITS, step=0.3)
        self._scorer = load(pretrained) if pretrained else None
        start = np.append(_START_WEIGHTS, _START_PRETRAINED) if self._scorer else _START_WEIGHTS
        self._blend = Ridge(start, penalty=5.0, memory=0.9995)

    def predict(self, request: Request) -> Estimate:
        """The point is the median; no figure exceeds `max_tokens`."""
        keys = _keys_of(request)
        session = self._sessions.read(keys.session) if keys.session else None
        reading = read(request, session.last_tokens if session else 0)
        if reading.prompt:
            who = request.tenant.id
            template = request.traits.template or reading.head
            keys = keys._replace(template=(who, template), prompt=(who, reading.prompt))
        return self._estimate(request, reading, keys)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        """Predict again from what was read of the prompt at admission."""
        if isinstance(estimate.basis, _Basis):
            return self._estimate(request, estimate.basis.reading, estimate.basis.keys)
        return self.predict(request)

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        """Counts that no engine can mean (negative, not a number, beyond `MAX_LENGTH`) teach nothing.

        Returns the factor by which lengths of this model and category shifted, if this answer gave the alarm.
        """
        if not 0 <= usage.completion_tokens <= MAX_LENGTH:
            return None
        basis = estimate.basis if estimate and isinstance(estimate.basis, _Basis) else None
        if basis is None:
            fresh = self.predict(request).basis
            assert isinstance(fresh, _Basis)  # noqa: S101 - our own prediction
            basis = fresh
        return self._learn(request, basis, log(max(usage.completion_tokens, 1)), finished)

    def bias(self, request: Request) -> float:
        kind = self._kinds.read((request.model, False, request.category))
        family = self._families.read((request.model, False))
        if kind is None or family is None:
            return 1.0
        start = _start(request)
        level = kind.level.value(family.level.value(self._all.value(start, 1.0), STRENGTH), STRENGTH)
        return exp(level + kind.bias - start)

    def _estimate(self, request: Request, reading: Reading, keys: _Keys) -> Estimate:
        forecast = self._forecast(request, reading, keys)
        family = self._families.read(_family_key(self._tenants.read(keys.tenant), request)) or _NO_FAMILY
        limit = inf if request.max_tokens is None else float(request.max_tokens)
        scattered = forecast.point + forecast.spread * family.profile.sorted()
        lengths = np.minimum(np.exp(np.minimum(scattered, _LOG_MAX)), limit).tolist()
        offsets = family.conformal.offsets
        high80 = (scattered[15] + scattered[16]) / 2 + forecast.spread * offsets[0]
        high90 = (scattered[17] + scattered[18]) / 2 + forecast.spread * offsets[1]
        point = (scattered[9] + scattered[10]) / 2
        q50 = min(exp(min(point, _LOG_MAX)), limit)
        q80 = max(q50, min(exp(min(high80, _LOG_MAX)), limit))
        q90 = max(q80, min(exp(min(high90, _LOG_MAX)), limit))
        return Estimate(
            q50,
            q50=q50,
            q80=q80,
            q90=q90,
            mean_tokens=sum(lengths) / len(lengths),
            lengths=tuple(lengths),
            basis=_Basis(reading, keys, (max(point, high80), max(point, high80, high90))),
        )

    def _forecast(self, request: Request, reading: Reading, keys: _Keys) -> _Forecast:
        tenant = self._tenants.read(keys.tenant) or _NO_TENANT
        family = self._families.read(_family_key(tenant, request)) or _NO_FAMILY
        kind = self._kinds.read((request.model, tenant.outlying, request.category)) or _NO_KIND
        of_model = family.level.value(self._all.value(_start(request), 1.0), STRENGTH)
        of_kind = kind.level.value(of_model, STRENGTH)
        own = self._own.read(keys.own) or _NO_OWN
        of_tenant = of_kind + tenant.apart.value(0.0, STRENGTH)
        level = own.level.value(of_tenant, STRENGTH)
        lately = own.window.median(of_tenant)
        lately_size = (self._tenant_sizes.read(keys.tenant_size) or _NO_WINDOW).median(lately)
        size = (self._sizes.read(keys.size) or _NO_WINDOW).median(lately_size)
        session = self._sessions.read(keys.session) if keys.session else None
        template = self._templates.read(keys.template) if keys.template else None
        prompt = self._prompts.read(keys.prompt) if keys.prompt else None
        of_template = template.value(0.0, 3.0) if template else 0.0
        of_prompt = prompt.value(0.0, 1.0) if prompt else 0.0
        experts = np.array(
            (
                of_model - level,
                _clip(self._figures.predict(reading.dense), 1.5),
                _clip(self._words.predict(reading.words), 1.2),
                session.level.value(0.0, 2.0) if session else 0.0,
                of_template + of_prompt,
                lately - level,
                lately_size - level,
                size - level,
            )
        )
        if self._scorer:
            experts = np.append(experts, _clip(self._scorer.score(reading.dense), 1.5))
        blend = level + self._blend.predict(experts) + kind.bias
        sizes = (lately_size + size) / 2
        candidates = np.array((blend + family.offset, level, lately, lately_size, size, sizes))
        spread = own.spread.value(kind.spread.value(family.spread.value(0.6, 5.0), 8.0), 8.0)
        point = float(_gate(family) @ candidates)
        return _Forecast(of_kind, level, experts, blend, candidates, point, max(spread, MIN_SPREAD))

    def _learn(self, request: Request, basis: _Basis, length: float, finished: bool) -> float | None:
        forecast = self._forecast(request, basis.reading, basis.keys)
        tenant = self._tenants.write(basis.keys.tenant)
        family = self._families.write(_family_key(tenant, request))
        kind = self._kinds.write((request.model, tenant.outlying, request.category))
        residual = _clip((length - forecast.point) / forecast.spread, 8.0)
        chances = _chances(family.profile, basis, length, residual, finished=finished)
        family.conformal.learn(chances)
        if not finished:
            beyond = forecast.point + forecast.spread * family.profile.expected_beyond(residual)
            # where nearly all is cut at one limit nothing else would keep the guess from growing
            length = min(beyond, max(forecast.point, length + MAX_BEYOND))
        family.profile.learn(residual, finished=finished)
        kind.error.observe(abs(length - forecast.point), 200)
        kind.covered.observe(1 - chances[0], 200)
        off = _clip(length - forecast.point, MAX_SURPRISE)
        is_majority = 2 * tenant.num_shared >= family.num_shared
        tenant.num_shared += 1
        family.num_shared += 1
        plausible = length if is_majority else forecast.point + off
        self._learn_shared(request, basis, forecast, family, kind, plausible)
        shift = self._watch(kind, forecast, length)
        own = self._own.write(basis.keys.own)
        for spread in (own.spread, kind.spread, family.spread):
            spread.observe(abs(off), 200)
        self._learn_own(basis, forecast, own, length)
        self._set_apart(tenant, family, length - forecast.of_kind)
        return shift

    def _learn_shared(
        self,
        request: Request,
        basis: _Basis,
        forecast: _Forecast,
        family: _Family,
        kind: _Kind,
        length: float,
    ) -> None:
        """What all tenants of a model, or all of the gateway, share."""
        family.num_learnt += 1
        misses = np.abs(np.exp(np.minimum(forecast.candidates, _LOG_MAX)) - exp(length))
        family.losses *= GATE_MEMORY
        family.losses += misses
        step = max(0.006, 0.15 / (family.num_learnt + 2))
        family.offset += step if length > forecast.candidates[0] else -step
        self._blend.learn(forecast.experts, _clip(length - forecast.blend, 2.0))
        figures, words = float(forecast.experts[1]), float(forecast.experts[2])
        self._figures.learn(basis.reading.dense, _clip(length - forecast.level - figures, 2.0))
        rest = length - forecast.level - figures - words
        self._words.learn(basis.reading.words, _clip(rest, 2.0))
        self._all.observe(length, 400)
        family.level.observe(length, 400)
        kind.level.observe(length, 150)
        self._sizes.write(basis.keys.size).observe(length)

    def _learn_own(self, basis: _Basis, forecast: _Forecast, own: _Own, length: float) -> None:
        """What belongs to the tenant alone."""
        own.level.observe(length, 50)
        own.window.observe(length)
        self._tenant_sizes.write(basis.keys.tenant_size).observe(length)
        rest = length - forecast.level - float(forecast.experts[1] + forecast.experts[2])
        if basis.keys.template and basis.keys.prompt:
            template = self._templates.write(basis.keys.template)
            of_template = template.value(0.0, 3.0)
            template.observe(rest, 60)
            self._prompts.write(basis.keys.prompt).observe(rest - of_template, 30)
        if basis.keys.session:
            session = self._sessions.write(basis.keys.session)
            session.level.observe(length - forecast.level - float(forecast.experts[1]), 6)
            session.last_tokens = round(exp(length))

    def _set_apart(self, tenant: _Tenant, family: _Family, apart: float) -> None:
        """Decide whether the tenant's next answers are learnt apart from those of others."""
        tenant.apart.observe(apart, 50)
        distance = abs(tenant.apart.value(0.0, 2.0))
        if tenant.outlying:
            tenant.outlying = distance > MAX_SURPRISE / 2
        elif 2 * tenant.num_shared < family.num_shared:
            tenant.outlying = distance > MAX_SURPRISE

    def _watch(self, kind: _Kind, forecast: _Forecast, length: float) -> float | None:
        """Follow the bias of model and category; the factor of the shift if this answer gave the alarm."""
        kind.since_drift += 1
        left = length - forecast.blend
        gain = max(0.01, 1 / (kind.since_drift + 6))
        kind.bias += gain * _clip(left, 1.5)
        shift = kind.drift.observe(_clip(left / forecast.spread, 3.0)) * forecast.spread
        if not shift:
            return None
        shift = _clip(shift, 2.0)
        kind.bias += shift
        kind.since_drift = 0
        kind.num_drifts += 1
        return exp(shift)


_LOG_MAX: Final = log(MAX_LENGTH)
MIN_SPREAD: Final = 0.02
MAX_SURPRISE: Final = log(6)
"""Beyond this factor a tenant's answers are learnt apart, unless most of a model's answers are its own."""
MAX_BEYOND: Final = log(2)
"""A lower bound raises predictions to twice itself at most."""
GATE_MEMORY: Final = 0.99
GATE_SHARPNESS: Final = 40.0
"""A candidate whose error is 5 % larger than the best's has a seventh of its weight."""


def _keys_of(request: Request) -> _Keys:
    size = log2(1 + max(0, request.prompt_tokens))
    tenant, model, traits = request.tenant.id, request.model, request.traits
    session = (tenant, traits.session) if traits.session else None
    return _Keys(
        (model, tenant),
        (model, tenant, request.category),
        (model, tenant, int(size * 2)),
        (model, int(size * 10)),
        session,
        None,
        None,
    )


def _family_key(tenant: _Tenant | None, request: Request) -> tuple[str, bool]:
    return request.model, tenant is not None and tenant.outlying


def _start(request: Request) -> float:
    """What is expected before anything is learnt."""
    return log(base_tokens(request.category) * input_factor(request.prompt_tokens))


def _gate(family: _Family) -> Vector:
    """Weight of each candidate, by its recent loss; they add up to 1."""
    losses = family.losses * _ADVANTAGE
    least = max(float(losses.min()), 1e-9)
    trust = family.num_learnt / (family.num_learnt + 10)
    weights = _START_GATE * np.exp(-GATE_SHARPNESS * trust * (losses / least - 1))
    return weights / weights.sum()


def _chances(
    profile: Profile, basis: _Basis, length: float, residual: float, *, finished: bool
) -> tuple[float, ...]:
    """Of each promised quantile, the chance that the answer is longer; 0 or 1 unless it was cut short before."""
    longer = tuple(float(length > promised) for promised in basis.promised)
    if finished:
        return longer
    left = max(1 - float((profile.values <= residual).mean()), 0.05)
    return tuple(max(known, min(1.0, (1 - target) / left)) for known, target in zip(longer, TARGETS, strict=True))


def _clip(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
