"""Lengths learnt where they are used: a hierarchy of means and medians, words on top, honest doubt. The default."""

from collections.abc import Iterator, Mapping
from math import exp, inf, log, log2, sqrt
from operator import mul
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from driftsched.core.model import Calibration, Estimate, Request, Usage
from driftsched.estimators.categories import base_tokens, input_factor
from driftsched.estimators.memory import KEPT, START_GATE, FamilyNode, KindNode, Memory, OwnNode, TenantNode
from driftsched.estimators.nodes import Level, Window
from driftsched.estimators.pretrained import load
from driftsched.estimators.quantiles import TARGETS, Profile
from driftsched.estimators.recent import Recent
from driftsched.estimators.text import Reading, read

Vector = npt.NDArray[np.float64]

MAX_LENGTH: Final = 10_000_000
"""A longer answer, in tokens, is an error of whoever counted it."""
LOG_MAX: Final = log(MAX_LENGTH)

STRENGTH: Final = 6.0
"""Observations that a node's parent counts for."""
PRIOR: Final = 0.5
"""How much of the difference between base lengths is believed of a category that has not been seen yet."""
DRIFT_MEMORY: Final = 300
"""Answers of a kind after which most of a shift is dropped for a tenant that has not been heard of since."""
RESOLUTION: Final = log(1.05)
"""Predictions for the order are told apart from 5 % on; finer differences are noise."""
MIN_SPREAD: Final = 0.02
"""Mean absolute deviation, of logarithms, below which nothing is believed."""
MAX_SURPRISE: Final = log(6)
"""Beyond this factor a tenant's answers are learnt apart, unless most of a model's answers are its own."""
MAX_AWAY: Final = log(1000)
"""No answer speaks more for learning its tenant apart than one that is off by this factor."""
USUAL_DISTANCES: Final = 2.0
"""A tenant is learnt apart beyond so many times the distance usual for its model, and beyond `MAX_SURPRISE`."""
STAY_APART: Final = 0.5
"""Share of that distance below which it comes back."""
MIN_PASSED: Final = 0.25
"""Share of answers that a lower bound must exceed to teach lengths: shorter ones say little, and often."""
MAX_SWING: Final = 4.0
"""No answer tells candidates of the gate further apart than so many times the mean error of the best."""
MAX_OUTLIVED: Final = 4_096
"""Answers in flight of which it is remembered that doubt and drift have heard of them."""
MAX_BEYOND: Final = log(2)
"""A lower bound raises predictions to twice itself at most."""
GATE_MEMORY: Final = 0.99
GATE_SHARPNESS: Final = 40.0
"""A candidate whose error is 5 % larger than the best's has a seventh of its weight."""
ADVANTAGE: Final = (0.95, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Of the gate's candidates: the blend is left only for what is clearly better."""


class Adaptive:
    """Predict from what model, category, tenant, session, prompt and its size have lately meant for the length.

    How, in logarithms of lengths:

    1. *Level.* Forgetting means along global, model, category and tenant, each drawn to the one before while it
       knows little.
    2. *Experts* add to the level: a ridge regression on some fifty figures of the call, hashed words, the
       conversation, template and exact prompt, medians of the tenant's last answers and of prompts of this size.
       How much each of them counts is learnt.
    3. *Gate.* The blend of them all competes with the plain medians for the least absolute error in tokens, lately
       and for this model, so that it cannot do worse than they for long.
    4. *Doubt.* Residuals, in units of the spread of this kind of request, have tracked quantiles; q80 and q90 are
       then corrected so that 80 and 90 % of the answers stay within what was promised at admission.
    5. *Drift.* A detector watches the residuals of each model and category. Its alarm corrects their bias at once
       by the estimated shift, and lets them learn faster for a while.

    An answer that was cut short (by `max_tokens`, its client, a failure) is a lower bound: it counts as the median
    of the answers that are longer than it, and for nothing if nearly all are. A tenant whose answers are many times
    longer or shorter than everybody else's, or by turns, is learnt apart, and of many answers in a row from one
    tenant only a few teach what others share: nobody can move another's predictions by reporting absurd lengths.

    Why: keys beat text where they exist, text beats nothing, and either alone is ruined by drift. Trade-off: about
    0.1 ms to predict and as much to learn, and some hundred answers until words are worth anything.

    Sources: shrinkage, James and Stein (1961); adaptive conformal inference, Gibbs and Candes (2021);
    redistribution of censored mass, Efron (1967); weighted experts, Cesa-Bianchi and Lugosi (2006).
    """

    def __init__(self, max_tenants: int = 64_000, pretrained: str = "") -> None:
        """`max_tenants`: pairs of model and tenant remembered, >= 1; about 1 kB each. The ones that came last.

        `pretrained`: file of a scorer that `driftsched train` made, one more expert; none if empty.
        """
        if max_tenants < 1:
            raise ValueError(f"max_tenants must be at least 1, but is {max_tenants}")
        self._max_tenants = max_tenants
        self._memory = Memory(max_tenants)
        self._scorer = load(pretrained) if pretrained else None
        self._outlived: Recent[str, bool] = Recent(lambda: True, MAX_OUTLIVED)

    def predict(self, request: Request) -> Estimate:
        """The point is the median; no figure exceeds `max_tokens`."""
        session = self._memory.sessions.read((request.tenant.id, request.traits.session))
        reading = read(request, session.last_tokens if session else 0.0)
        return self._estimate(request, reading, _keys_of(request, reading))

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        """Predict again from what was read of the prompt at admission."""
        basis = estimate.basis
        return (
            self._estimate(request, basis.reading, basis.keys)
            if isinstance(basis, _Basis)
            else self.predict(request)
        )

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        """Counts that no engine can mean (negative, not a number, beyond `MAX_LENGTH`) teach nothing.

        Returns the factor by which lengths of this model and category shifted, if this answer raised the alarm.
        """
        if not 0 <= usage.completion_tokens <= MAX_LENGTH:
            return None
        if estimate is None or not isinstance(estimate.basis, _Basis):
            estimate = self.predict(request)
        assert isinstance(estimate.basis, _Basis)  # noqa: S101 - it is one of our own
        return self._learn(request, estimate.basis, log(max(usage.completion_tokens, 1)), finished=finished)

    def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
        """Doubt and drift are told now and not again at the end; means and models learn at the end alone.

        Of a tenant's answers in a row only the first is told now, unless most of the model's answers are its own.

        To the detector it counts as the median of the answers that are longer: as the bound itself, the long would
        never weigh against the short, and it would hear less than without.
        """
        basis = estimate.basis
        if not isinstance(basis, _Basis) or not 0 < produced <= MAX_LENGTH:
            return None
        memory, keys = self._memory, basis.keys
        length = log(produced)
        forecast = self._forecast(request, basis.reading, keys)
        tenant = memory.tenants.write(keys.tenant)
        family = memory.families.write((request.model, tenant.outlying))
        kind = memory.kinds.write((request.model, tenant.outlying, request.category))
        is_most = 2 * tenant.num_learnt >= family.num_learnt
        if family.speaker == _speaker(keys) and not is_most:
            return None  # it is told at its end: what never ends must not be heard again and again
        family.hears(_speaker(keys))
        self._outlived.write(request.id)
        longer = [float(length > quantile) for quantile in basis.promised]
        kind.covered.observe(1 - longer[0], 200)
        family.conformal.learn(longer)
        if tenant.outlying:
            return None
        off = _stands_for(family, forecast, length) - forecast.point
        plausible = forecast.point + (off if is_most else _clip(off, MAX_SURPRISE))
        return _alarm(kind, forecast, plausible, who=family.speaker, is_most=is_most)

    def bias(self, request: Request) -> float:
        kind = self._memory.kinds.read((request.model, False, request.category))
        if kind is None:
            return 1.0
        start = _start(request)
        _, of_kind = self._levels(request, start, outlying=False)
        return exp(of_kind + kind.bias - start)

    def calibration(self) -> Iterator[Calibration]:
        """For each model and category seen lately; tenants that are learnt apart are left out."""
        for (model, outlying, category), kind in self._memory.kinds.items():
            if not outlying:
                yield Calibration(
                    model=model,
                    category=category,
                    bias=exp(kind.bias),
                    error=kind.error.value(0.0, 1e-9),
                    coverage=kind.covered.value(0.0, 1e-9),
                    num_drifts=kind.num_drifts,
                    answers_since_drift=kind.since_drift if kind.num_drifts else None,
                )

    def snapshot(self) -> dict[str, object]:
        """Names of models, tenants and categories, digests and numbers; no prompt can be read out of it."""
        return self._memory.pack()

    def restore(self, state: Mapping[str, object]) -> None:
        self._memory = self._unpacked(state)

    def merge(self, state: Mapping[str, object]) -> None:
        """Sums and evidence add up, as if all had been learnt here; of windows the last of both are kept."""
        self._memory.absorb(self._unpacked(state))

    def _unpacked(self, state: Mapping[str, object]) -> Memory:
        memory = Memory(self._max_tenants)
        memory.unpack(state)
        return memory

    def _estimate(self, request: Request, reading: Reading, keys: "_Keys") -> Estimate:
        forecast = self._forecast(request, reading, keys)
        limit = inf if request.max_tokens is None else float(request.max_tokens)

        def tokens(length: float) -> float:
            return min(exp(min(length, LOG_MAX)), limit)

        logs = forecast.point + forecast.spread * forecast.family.profile.ordered
        at = logs.tolist()
        offset80, offset90 = forecast.offsets
        log50 = (at[9] + at[10]) / 2
        log80 = max(log50, (at[15] + at[16]) / 2 + forecast.spread * offset80)
        log90 = max(log80, (at[17] + at[18]) / 2 + forecast.spread * offset90)
        lengths = tuple(np.minimum(np.exp(np.minimum(logs, LOG_MAX)), limit).tolist())
        median = tokens(log50)
        return Estimate(
            min(_rounded(log50), limit),
            q50=median,
            q80=tokens(log80),
            q90=tokens(log90),
            mean_tokens=sum(lengths) / len(lengths),
            lengths=lengths,
            basis=_Basis(reading, keys, _start(request), (log80, log90)),
        )

    def _levels(self, request: Request, start: float, *, outlying: bool) -> tuple[float, float]:
        """Levels of the model, and of model and category."""
        memory = self._memory
        everything = memory.everything.read(("",)) or _NO_LEVEL
        family = memory.families.read((request.model, outlying)) or _NO_FAMILY
        kind = memory.kinds.read((request.model, outlying, request.category)) or _NO_KIND
        of_model = family.level.value(everything.value(start, 1.0), STRENGTH)
        prior = of_model + PRIOR * (start - family.starts.value(start, 1.0))
        return of_model, kind.level.value(prior, STRENGTH)

    def _forecast(self, request: Request, reading: Reading, keys: "_Keys") -> "_Forecast":
        memory = self._memory
        tenant = memory.tenants.read(keys.tenant) or _NO_TENANT
        family = memory.families.read((request.model, tenant.outlying)) or _NO_FAMILY
        kind = memory.kinds.read((request.model, tenant.outlying, request.category)) or _NO_KIND
        own = memory.own.read(keys.own) or _NO_OWN
        session = memory.sessions.read(keys.session) if keys.session else None

        of_model, of_kind = self._levels(request, _start(request), outlying=tenant.outlying)
        of_tenant = of_kind + tenant.apart.value(0.0, STRENGTH)
        shift = _pending_shift(kind, own)  # of which these do not know yet
        level = own.level.value(of_tenant - shift, STRENGTH) + shift
        lately = own.window.median(of_tenant - shift)
        lately_size = (memory.tenant_sizes.read(keys.tenant_size) or _NO_WINDOW).median(lately)
        size = (memory.sizes.read((*keys.size, tenant.outlying)) or _NO_WINDOW).median(lately_size) + shift
        lately, lately_size = lately + shift, lately_size + shift
        template = (memory.templates.read(keys.template) or _NO_LEVEL).value(0.0, 3.0)
        prompt = (memory.prompts.read(keys.prompt) or _NO_LEVEL).value(0.0, 1.0)
        of_figures, of_words, of_experts = memory.models(outlying=tenant.outlying)
        figures = _clip(of_figures.predict(reading.dense), 1.5)
        words = _clip(of_words.predict(reading.words), 1.2)
        experts = np.array(
            (
                of_model - level,
                figures,
                words,
                session.level.value(0.0, 2.0) if session else 0.0,
                template + prompt,
                lately - level,
                lately_size - level,
                size - level,
                _clip(self._scorer.score(reading.dense), 1.5) - figures if self._scorer else 0.0,
            )
        )
        # at first level and experts learn the same from the same answers; what was trained before does not
        experts[:-1] *= memory.num_learnt / (memory.num_learnt + 10)
        blend = level + of_experts.predict(experts) + kind.bias
        candidates = (blend + family.offset, level, lately, lately_size, size, (lately_size + size) / 2)
        spread = own.spread.value(kind.spread.value(family.spread.value(0.6, 5.0), 8.0), 8.0)
        offsets = family.conformal.offsets
        if own.conformal:
            offsets = [shared + alone for shared, alone in zip(offsets, own.conformal.offsets, strict=True)]
        return _Forecast(
            family=family,
            offsets=offsets,
            of_kind=of_kind,
            level=level,
            experts=experts,
            figures=figures,
            words=words,
            blend=blend,
            candidates=candidates,
            point=_clip(sum(map(mul, family.gate, candidates)), LOG_MAX),
            spread=max(spread, MIN_SPREAD),
        )

    def _learn(self, request: Request, basis: "_Basis", length: float, *, finished: bool) -> float | None:
        memory, keys = self._memory, basis.keys
        is_told = self._outlived.pop(request.id) is not None
        tenant = memory.tenants.write(keys.tenant)
        away = self._set_apart(request, tenant, basis.start, length, finished=finished)
        forecast = self._forecast(request, basis.reading, keys)
        family = memory.families.write((request.model, tenant.outlying))
        kind = memory.kinds.write((request.model, tenant.outlying, request.category))
        own = memory.own.write(keys.own)
        own.heed(kind.num_drifts)
        residual = _clip((length - forecast.point) / forecast.spread, 8.0)

        is_most = 2 * tenant.num_learnt >= family.num_learnt
        is_heard = family.hears(_speaker(keys)) or is_most
        if not is_told:
            chances = _chances(family.profile, basis.promised, length, residual, finished=finished)
            kind.covered.observe(1 - chances[0], 200)
            own.promise(chances, is_heard=is_heard)
            if is_heard:
                family.conformal.learn(chances)
        if not finished:
            # many bounds that say nothing, each counted as its own guess, would carry the guess away
            if family.profile.share_below(residual) < MIN_PASSED:
                return None
            length = _stands_for(family, forecast, length)
        if is_heard:
            family.profile.learn(residual, finished=finished)
        off = length - forecast.point
        kind.error.observe(abs(off), 200)
        for spread in (own.spread, kind.spread, family.spread)[: 3 if is_heard else 1]:
            spread.observe(min(abs(off), MAX_SURPRISE), 200)

        memory.num_learnt += 1
        family.num_learnt += 1
        tenant.num_learnt += 1
        shift = None
        if is_heard:
            plausible = length if is_most else forecast.point + _clip(off, MAX_SURPRISE)
            family.distance.observe(away * away, 400)
            self._learn_shared(basis, forecast, family, kind, plausible, outlying=tenant.outlying)
            if not tenant.outlying:  # the others have little in common, so they do not drift together either
                _follow(kind, plausible - forecast.blend)
                if not is_told:
                    shift = _alarm(kind, forecast, plausible, who=family.speaker, is_most=is_most)
        self._learn_own(basis, forecast, own, length)
        tenant.apart.observe(length - forecast.of_kind, 50)
        return shift

    def _set_apart(
        self, request: Request, tenant: TenantNode, start: float, length: float, *, finished: bool
    ) -> float:
        """Decide whether the tenant's answers, with this one, are learnt apart; the logarithm of its distance.

        It is told by the distance from the model's usual lengths, not by its mean: else who reports the very
        short and the very long in turns would pass for usual.
        """
        family = self._memory.families.read((request.model, False)) or _NO_FAMILY
        _, usual_length = self._levels(request, start, outlying=False)
        away = length - usual_length
        away = _clip(away if finished else max(0.0, away), MAX_AWAY)
        tenant.distance.observe(away * away, 50)
        distance = sqrt(tenant.distance.value(0.5, 3.0))
        usual = max(MAX_SURPRISE, USUAL_DISTANCES * sqrt(family.distance.value(0.5, 10.0)))
        is_most = not tenant.outlying and 2 * (tenant.num_learnt + 1) >= family.num_learnt
        outlying = distance > (usual * STAY_APART if tenant.outlying else usual) and not is_most
        if outlying != tenant.outlying:
            tenant.outlying, tenant.num_learnt, tenant.apart = outlying, 0, Level()
        return away

    def _learn_shared(
        self,
        basis: "_Basis",
        forecast: "_Forecast",
        family: FamilyNode,
        kind: KindNode,
        length: float,
        *,
        outlying: bool,
    ) -> None:
        """What the tenants of a model, or of all models, share: those who are learnt apart among themselves."""
        memory = self._memory
        tokens = exp(length)
        _lose(family, [abs(exp(min(candidate, LOG_MAX)) - tokens) for candidate in forecast.candidates])
        family.gate = _gate(family)
        step = max(0.006, 0.15 / (family.num_learnt + 2))
        family.offset += step if length > forecast.candidates[0] else -step
        of_figures, of_words, of_experts = memory.models(outlying=outlying)
        of_experts.learn(forecast.experts, _clip(length - forecast.blend, 2.0))
        rest = length - forecast.level - forecast.figures
        of_figures.learn(basis.reading.dense, _clip(rest, 2.0))
        of_words.learn(basis.reading.words, _clip(rest - forecast.words, min(2.0, 2 * forecast.spread)))
        if not outlying:
            memory.everything.write(("",)).observe(length, 400)
        family.level.observe(length, 400)
        family.starts.observe(basis.start, 400)
        kind.level.observe(length, 150)
        memory.sizes.write((*basis.keys.size, outlying)).observe(length)

    def _learn_own(self, basis: "_Basis", forecast: "_Forecast", own: OwnNode, length: float) -> None:
        """What belongs to the tenant alone."""
        memory, keys = self._memory, basis.keys
        own.level.observe(length, 50)
        own.window.observe(length)
        memory.tenant_sizes.write(keys.tenant_size).observe(length)
        rest = length - forecast.level - forecast.figures
        if basis.reading.prompt:
            template = memory.templates.write(keys.template)
            of_template = template.value(0.0, 3.0)
            template.observe(rest - forecast.words, 60)
            memory.prompts.write(keys.prompt).observe(rest - forecast.words - of_template, 30)
        if keys.session:
            session = memory.sessions.write(keys.session)
            session.level.observe(rest, 6)
            session.last_tokens = exp(length)


class _Keys(NamedTuple):
    """What a request is remembered under."""

    tenant: tuple[str, str]
    own: tuple[str, str, str]
    tenant_size: tuple[str, str, int]
    size: tuple[str, int]
    session: tuple[str, str] | None
    template: tuple[str, str | int]
    prompt: tuple[str, int]


class _Basis(NamedTuple):
    """What an estimate keeps for the time when its request is revised or learnt."""

    reading: Reading
    keys: _Keys
    start: float
    """Logarithm of what is expected before anything is learnt."""
    promised: tuple[float, float]
    """Logarithms of q80 and q90 as promised, before `max_tokens` cut them."""


class _Forecast(NamedTuple):
    """All that is thought of one request. Lengths are logarithms."""

    family: FamilyNode
    offsets: list[float]
    """On q80 and q90, in spreads: what keeps their promise."""
    of_kind: float
    """Level of model and category."""
    level: float
    """The same, with the tenant."""
    experts: Vector
    """What each of `EXPERTS` would add to the level."""
    figures: float
    words: float
    """What these two models say by themselves."""
    blend: float
    candidates: tuple[float, ...]
    point: float
    spread: float
    """Mean absolute deviation expected of the answer."""


_NO_TENANT = TenantNode()
_NO_OWN = OwnNode()
_NO_KIND = KindNode()
_NO_FAMILY = FamilyNode()
_NO_WINDOW = Window()
_NO_LEVEL = Level()


def _keys_of(request: Request, reading: Reading) -> _Keys:
    size = log2(1 + min(max(0, request.prompt_tokens), MAX_LENGTH))
    tenant, model, traits = request.tenant.id, request.model, request.traits
    return _Keys(
        tenant=(model, tenant),
        own=(model, tenant, request.category),
        tenant_size=(model, tenant, int(size * 2)),
        size=(model, int(size * 10)),
        session=(tenant, traits.session) if traits.session else None,
        template=(tenant, traits.template or reading.head),
        prompt=(tenant, reading.prompt),
    )


def _start(request: Request) -> float:
    """What is expected before anything is learnt."""
    return log(base_tokens(request.category) * input_factor(request.prompt_tokens))


def _pending_shift(kind: KindNode, own: OwnNode) -> float:
    """The part of the last shift that what is known of a tenant has not taken up yet."""
    if not kind.num_drifts or not own.level.weight:
        return 0.0
    taken_up = own.since_drift / KEPT if own.num_drifts == kind.num_drifts else 0.0
    return kind.shift * max(0.0, 1 - taken_up) * exp(-kind.since_drift / DRIFT_MEMORY)


def _speaker(keys: _Keys) -> int:
    """Checksum of the tenant."""
    return crc32(keys.tenant[1].encode("utf-8", "replace"))


def _stands_for(family: FamilyNode, forecast: _Forecast, length: float) -> float:
    """The median of the answers longer than a lower bound, by what is known of their scatter."""
    residual = _clip((length - forecast.point) / forecast.spread, 8.0)
    beyond = forecast.point + forecast.spread * family.profile.expected_beyond(residual)
    # where nearly all is cut at one limit, nothing else would keep the guess from growing
    return min(beyond, max(forecast.point, length + MAX_BEYOND))


def _follow(kind: KindNode, left: float) -> None:
    """Move the bias of model and category towards what an answer that ended left of it."""
    kind.since_drift += 1
    gain = max(0.01, 1 / (kind.since_drift + 6))
    kind.bias = _clip(kind.bias + gain * _clip(left, 1.5), LOG_MAX)


def _alarm(kind: KindNode, forecast: _Forecast, length: float, *, who: int, is_most: bool) -> float | None:
    """Tell the detector of an answer; the factor of the shift, already corrected for, if it raised the alarm."""
    residual = _clip((length - forecast.blend) / forecast.spread, 100.0)
    shift = _clip(kind.drift.observe(residual, who, is_alone=is_most) * forecast.spread, 2.0)
    if not shift:
        return None
    kind.level.move(shift)
    kind.level.keep(30)
    taken_up = max(0, kind.since_drift - 1) / (4 * KEPT)  # of the last one
    kind.shift = shift + kind.shift * max(0.0, 1 - taken_up)
    kind.since_drift = 0
    kind.num_drifts += 1
    return exp(shift)


def _lose(family: FamilyNode, misses: list[float]) -> None:
    """Add up by how much each candidate missed an answer, in tokens."""
    swing = max(misses) - min(misses)
    usual = min(family.losses) / min(family.num_learnt, 1 / (1 - GATE_MEMORY))
    is_too_much = family.num_learnt > 20 and swing > MAX_SWING * usual
    scale = MAX_SWING * usual / swing if is_too_much else 1.0
    family.losses = [GATE_MEMORY * loss + scale * miss for loss, miss in zip(family.losses, misses, strict=True)]


def _gate(family: FamilyNode) -> list[float]:
    """Weight of each candidate, by its recent loss; they add up to 1."""
    losses = list(map(mul, family.losses, ADVANTAGE))
    least = max(min(losses), 1e-9)
    sharpness = GATE_SHARPNESS * family.num_learnt / (family.num_learnt + 10)
    weights = [
        start * exp(-min(sharpness * (loss / least - 1), 50.0))
        for start, loss in zip(START_GATE, losses, strict=True)
    ]
    total = sum(weights)
    return [weight / total for weight in weights]


def _chances(
    profile: Profile, promised: tuple[float, float], length: float, residual: float, *, finished: bool
) -> list[float]:
    """Of each promised quantile, the chance that the answer is longer: 0 or 1, but for one that was cut short."""
    longer = [float(length > quantile) for quantile in promised]
    if finished:
        return longer
    left = max(1 - profile.share_below(residual), 0.05)
    return [max(known, min(1.0, (1 - target) / left)) for known, target in zip(longer, TARGETS, strict=True)]


def _rounded(length: float) -> float:
    """Whole tokens, in steps of `RESOLUTION`: what differs by less is no reason to overtake."""
    return float(max(1, round(exp(round(min(length, LOG_MAX) / RESOLUTION) * RESOLUTION))))


def _clip(value: float, limit: float) -> float:
    return limit if value > limit else -limit if value < -limit else value
