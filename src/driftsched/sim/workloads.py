"""Workloads from laws and a seed.

Every purpose - arrivals, categories, tenants, prompt lengths, answer lengths, wording - has its own random stream
in every phase, and each request takes the same number of draws from each. So changing one thing changes nothing
else: two scenarios that differ in their tenants have the same arrivals and lengths, and two that differ in rate the
same requests at other times.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import cos, exp, inf, log1p, pi, sin, sqrt
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import get_type_hints

import msgspec
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.engines.lengths import LENGTH_PROFILES
from driftsched.sim.prompts import label_prompt, word_prompt
from driftsched.sim.readers import read_trace
from driftsched.sim.scenario import Arrivals, Category, Crowd, Length, Phase, Scenario, TenantLaw, load_scenario
from driftsched.sim.shaping import Chooser
from driftsched.sim.trace import Row, on_grid

PROMPT_TOKENS_PER_WORD = 1.3
"""Of English under current vocabularies; turns the words of our prompts into tokens."""

_NORMAL = NormalDist()


def generate(scenario: Scenario, seed: int, *, capacity: float | None = None) -> list[Row]:
    """The trace of `scenario` under `seed`; at least one row.

    `capacity` is how many such requests a second the pool can serve; phases whose load is given as `rho` need it.
    Raises `ConfigError` if it is missing, if the trace of `lengths_from` cannot be read, and if nobody arrives.
    """
    rows: list[Row] = []
    start = 0.0
    for phase in scenario.phases:
        drains = phase.after_drain and bool(rows)
        start = (rows[-1].at if drains else start) + phase.pause_seconds
        made, start = _Drawing(scenario, phase, f"{seed}:{phase.name}", capacity).rows(start)
        if drains and made:
            made[0] = replace(made[0], after_drain=True)
        rows += made
    if not rows:
        raise ConfigError("phases: nobody arrives in so short a time: raise seconds, or the rate")
    return [_labelled(row, number) for number, row in enumerate(rows)] if scenario.prompts == "labelled" else rows


_Body = tuple[int, int, str, int | None, str]
"""Prompt tokens, completion tokens, category, max_tokens and prompt of a request."""


class _Drawing:
    """The requests of one phase."""

    def __init__(self, scenario: Scenario, phase: Phase, seed: str, capacity: float | None) -> None:
        self._scenario = scenario
        self._phase = phase
        self._seed = seed
        self._rate = _rate(phase.arrivals, capacity)
        members = scenario.members()
        self._tiers = {tenant: Tier.parse(law.tier) for tenant, law in members.items()}
        self._shares = phase.shares or {tenant: law.share for tenant, law in members.items()}
        self._sample = _read_sample(scenario.lengths_from) if scenario.lengths_from is not None else []
        self._weights = phase.weights or {name: law.weight for name, law in scenario.categories.items()}

    def rows(self, start: float) -> tuple[list[Row], float]:
        """The rows of a phase that begins at `start`, and the instant at which it ends."""
        phase = self._phase
        times = self._times("", phase.arrivals, self._rate, phase.requests, phase.seconds or inf)
        seconds = times[-1] if phase.seconds is None else phase.seconds
        rows = self._rows("", start, times, self._shares)
        for tenant, factor in phase.floods.items():
            extra = self._rate * (factor - 1) * self._shares.get(tenant, 0.0) / sum(self._shares.values())
            if extra > 0:
                of = f"flood:{tenant}:"
                poisson_arrivals = replace(phase.arrivals, rate=extra, rho=None, cv=1.0, spread=None)
                times = self._times(of, poisson_arrivals, extra, None, seconds)
                rows += self._rows(of, start, times, {tenant: 1.0})
        if phase.floods:
            rows.sort(key=lambda row: row.at)
        return rows, start + seconds

    def _times(self, of: str, arrivals: Arrivals, rate: float, count: int | None, seconds: float) -> list[float]:
        """Instants in [0, `seconds`), at most `count`."""
        draws = self._stream(f"{of}arrivals")
        times: list[float] = []
        work = 0.0  # the rate integrated over time, which passes 1 per request on average
        while count is None or len(times) < count:
            work += _gap(arrivals, draws)
            at = _when(arrivals, work / rate)
            if at >= seconds:
                break
            times.append(at)
        return times

    def _rows(self, of: str, start: float, times: Sequence[float], shares: Mapping[str, float]) -> list[Row]:
        model = self._phase.model or self._scenario.model
        phase = self._phase.name
        draws = self._stream(f"{of}tenants")
        chooser = Chooser(shares)
        bodies = self._resampled(of) if self._sample else self._composed(of)
        rows = []
        for at, (prompt_tokens, completion_tokens, category, max_tokens, prompt) in zip(
            times, bodies, strict=False
        ):
            tenant = chooser.choose(draws.random())
            rows.append(
                Row(
                    on_grid(start + at),
                    prompt_tokens,
                    completion_tokens,
                    tenant,
                    self._tiers[tenant],
                    category,
                    model,
                    max_tokens,
                    phase=phase,
                    prompt=prompt,
                )
            )
        return rows

    def _composed(self, of: str) -> Iterator[_Body]:
        """Requests by the laws of the categories, without end."""
        categories = self._stream(f"{of}categories")
        prompt_lengths = self._stream(f"{of}prompt lengths")
        completion_lengths = self._stream(f"{of}completion lengths")
        wordings = self._stream(f"{of}wordings")
        worded = self._scenario.prompts != "none"
        chooser = Chooser(self._weights)
        prompt = ""
        while True:
            name = chooser.choose(categories.random())
            law = self._scenario.categories[name]
            prompt_tokens = _lognormal(law.prompt_tokens, prompt_lengths.gauss())
            factor = self._phase.length_factors.get(name, 1.0)
            completion_tokens = _completion_tokens(law, completion_lengths.gauss(), factor)
            if worded:
                prompt = word_prompt(name, wordings.random(), wordings.random())
                prompt_tokens = _prompt_tokens(prompt)
            yield prompt_tokens, completion_tokens, name, law.max_tokens, prompt

    def _resampled(self, of: str) -> Iterator[_Body]:
        """Requests of the trace, drawn again, without end."""
        draws = self._stream(f"{of}sample")
        while True:
            source = self._sample[int(draws.random() * len(self._sample))]
            factor = self._phase.length_factors.get(source.category, 1.0)
            completion_tokens = max(1, round(source.completion_tokens * factor))
            if source.max_tokens is not None:
                completion_tokens = min(completion_tokens, source.max_tokens)
            yield source.prompt_tokens, completion_tokens, source.category, source.max_tokens, source.prompt

    def _stream(self, purpose: str) -> Random:
        return Random(f"{self._seed}:{purpose}")


def _rate(arrivals: Arrivals, capacity: float | None) -> float:
    if arrivals.rate is not None:
        return arrivals.rate
    if capacity is None or not 0 < capacity < inf:
        raise ConfigError(f"rho: needs the capacity of the pool, in requests a second, but that is {capacity}")
    return (arrivals.rho or 0.0) * capacity


def _gap(arrivals: Arrivals, draws: Random) -> float:
    """A gap between arrivals, of mean 1."""
    if arrivals.spread is not None:
        return 1 + arrivals.spread * (2 * draws.random() - 1)
    if arrivals.cv == 1:
        return draws.expovariate(1.0)
    return draws.gammavariate(arrivals.cv**-2, arrivals.cv**2)


def _when(arrivals: Arrivals, mean_time: float) -> float:
    """When a swinging rate has brought as many requests as its mean would have by `mean_time`.

    That is the t at which t + amplitude / w * (1 - cos(w t)) = mean_time, w being 2 pi / period, found by Newton's
    method within the bracket in which it must lie.
    """
    if not arrivals.amplitude:
        return mean_time
    w = 2 * pi / arrivals.period_seconds
    swing = arrivals.amplitude / w
    low, high = mean_time - 2 * swing, mean_time
    at = mean_time - swing
    for _ in range(60):
        excess = at + swing * (1 - cos(w * at)) - mean_time
        if abs(excess) < 1e-9:
            break
        low, high = (low, at) if excess > 0 else (at, high)
        at -= excess / (1 + arrivals.amplitude * sin(w * at))
        if not low < at < high:
            at = (low + high) / 2
    return max(0.0, at)


def _lognormal(law: Length, score: float, factor: float = 1.0) -> int:
    """Tokens at a standard normal `score`, >= 1."""
    variance = log1p(law.cv * law.cv)
    return max(1, round(factor * law.mean * exp(sqrt(variance) * score - variance / 2)))


def _completion_tokens(law: Category, score: float, factor: float) -> int:
    """Tokens of the answer, one law for all its parts: a higher score never gives a shorter answer."""
    if law.max_tokens is None:
        return _lognormal(law.completion_tokens, score, factor)
    if law.cap_share:
        level = _NORMAL.cdf(score) / (1 - law.cap_share) if law.cap_share < 1 else 1.0
        if level >= 1:
            return law.max_tokens
        score = _NORMAL.inv_cdf(max(level, 1e-300))
    return min(law.max_tokens, _lognormal(law.completion_tokens, score, factor))


def _prompt_tokens(prompt: str) -> int:
    return round(len(prompt.split()) * PROMPT_TOKENS_PER_WORD)


def _labelled(row: Row, number: int) -> Row:
    prompt = label_prompt(row.prompt, number, row.tenant, row.category)
    return replace(row, prompt=prompt, prompt_tokens=_prompt_tokens(prompt))


@lru_cache(maxsize=4)
def _read_sample(path: str) -> list[Row]:
    """Read once per process: every seed draws from it."""
    return read_trace(Path(path))


# Ready-made scenarios

DEFAULT_RHO = 0.8
"""Load of a ready-made scenario that is given neither a rate nor a load."""

CHAT = {
    name: Category(Length(prompt_mean, 1.0), Length(LENGTH_PROFILES["chat"].means[name], 0.6), weight, 4096)
    for name, prompt_mean, weight in (
        ("short_qa", 60, 40),
        ("summary", 900, 25),
        ("technical", 200, 25),
        ("report", 150, 10),
    )
}
"""Answers as in the length profile `chat`; prompts of plausible, invented length; the paper's calibration mix."""


def poisson(rate: float | None = None, rho: float | None = None, *, requests: int = 3000) -> Scenario:
    """Independent users: `requests` at a constant `rate` a second, or load `rho` (`DEFAULT_RHO` without either)."""
    return _chat("poisson", [Phase("steady", _load(rate, rho), requests)])


def gamma(
    rate: float | None = None, rho: float | None = None, *, cv: float = 2.0, requests: int = 3000
) -> Scenario:
    """Bursts: the gaps between arrivals follow a Gamma law whose standard deviation is `cv` times its mean."""
    return _chat("gamma", [Phase("steady", replace(_load(rate, rho), cv=cv), requests)])


def diurnal(
    rate: float | None = None,
    rho: float | None = None,
    *,
    amplitude: float = 0.8,
    period_seconds: float = 600.0,
    requests: int = 3000,
) -> Scenario:
    """Day and night: a Poisson process of mean `rate` that swings by +- `amplitude` once every `period_seconds`."""
    arrivals = replace(_load(rate, rho), amplitude=amplitude, period_seconds=period_seconds)
    return _chat("diurnal", [Phase("steady", arrivals, requests)])


def flood(
    rate: float | None = None,
    rho: float | None = None,
    *,
    factor: float = 10.0,
    tenant: str = "tenant-0",
    requests: int = 3000,
) -> Scenario:
    """Eight tenants with equal shares; in the middle third, one sends `factor` times its share.

    What it sends too much comes on top of `requests`, and leaves these as they are.
    """
    third, arrivals = max(1, requests // 3), _load(rate, rho)
    phases = [
        Phase("before", arrivals, third),
        Phase("flood", arrivals, third, floods={tenant: factor}),
        Phase("after", arrivals, third),
    ]
    return _chat("flood", phases, Crowd(exponent=0.0))


DRIFT = "drift"


def drift(
    rate: float | None = None,
    rho: float | None = None,
    *,
    length_factors: Mapping[str, float] | None = None,
    surge: float = 16.0,
    requests: int = 3000,
) -> Scenario:
    """Drift that meets a backlog: half-way, jobs of a new kind come `surge` times as fast as requests came before.

    Their answers are other ones, so that most of the second half waits already when the first of it teach how long.
    """
    half, before = max(1, requests // 2), _load(rate, rho)
    if before.rho is None:
        after = replace(before, rate=surge * (before.rate or 0.0))
    else:
        after = replace(before, rho=surge * before.rho)
    factors = dict(length_factors or {"short_qa": 3.0, "report": 0.3})
    return _chat(DRIFT, [Phase("before", before, half), Phase("after", after, half, length_factors=factors)])


def verbosity_shift(
    rate: float | None = None,
    rho: float | None = None,
    *,
    category: str = "short_qa",
    factor: float = 3.0,
    requests: int = 3000,
) -> Scenario:
    """Drift of one kind: half-way, the answers of `category` become `factor` times as long."""
    return _drift("verbosity-shift", _load(rate, rho), requests, length_factors={category: factor})


def mix_shift(
    rate: float | None = None,
    rho: float | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    requests: int = 3000,
) -> Scenario:
    """Drift of demand: half-way, the categories come by other `weights`; by default those of the paper's stress."""
    return _drift("mix-shift", _load(rate, rho), requests, weights=dict(weights or PAPER_STRESS_MIX))


def model_swap(
    rate: float | None = None,
    rho: float | None = None,
    *,
    length_factors: Mapping[str, float] | None = None,
    model: str = "model-2",
    requests: int = 3000,
) -> Scenario:
    """Drift of the engine: half-way, `model` answers instead, in a way of its own for each category."""
    factors = length_factors or {"short_qa": 2.0, "summary": 0.7, "technical": 1.5, "report": 0.6}
    return _drift("model-swap", _load(rate, rho), requests, length_factors=dict(factors), model=model)


def _load(rate: float | None, rho: float | None) -> Arrivals:
    return Arrivals(rate, DEFAULT_RHO if rate is None and rho is None else rho)


def _drift(name: str, arrivals: Arrivals, requests: int, **change: object) -> Scenario:
    half = max(1, requests // 2)
    after = Phase("after", arrivals, half)
    return _chat(name, [Phase("before", arrivals, half), replace(after, **change)])


def _chat(name: str, phases: list[Phase], crowd: Crowd | None = None) -> Scenario:
    return Scenario(phases, name, categories=CHAT, crowd=crowd or Crowd())


# The experiment of the DriftSched paper (arXiv 2606.02982)

PAPER_MAX_TOKENS = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
PAPER_CALIBRATION_MIX = {"short_qa": 40.0, "summary": 25.0, "technical": 25.0, "report": 10.0}
PAPER_STRESS_MIX = {"short_qa": 10.0, "summary": 20.0, "technical": 40.0, "report": 30.0}
PAPER_CALIBRATION_GAP_SECONDS = (0.05, 0.15)
PAPER_STRESS_GAP_SECONDS = (0.005, 0.03)
PAPER_PAUSE_SECONDS = 15.0


class PaperAnswers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the answers in the paper's experiment are, which it does not print: assumed, to be calibrated."""

    cap_share: float = 0.9
    """Share of the answers that run into their limit: a small model without a chat template rambles."""
    short_mean: float = 0.6
    """Mean length of the others before the limit cuts, as a share of the limit."""
    short_cv: float = 0.4
    """Their standard deviation divided by their mean."""
    words_per_token: float = 0.81
    """Of the answers: what makes the paper's bias converge to about that."""
    words_cv: float = 0.08
    """Standard deviation of that ratio over answers, divided by its mean."""


def paper(requests: int = 3000, answers: PaperAnswers | None = None, *, labelled: bool = True) -> Scenario:
    """The paper's two phases: a calibration, and when all of it has been answered and 15 s are over, a stress.

    The calibration has 1000 of 3000 requests, of fewer a third but at least 100. Prompts carry their category as
    a label, as in the paper, unless `labelled` is false. Raises `ConfigError` for fewer than 101 requests.
    """
    law = answers or PaperAnswers()
    calibration = 1000 if requests >= 3000 else max(100, requests // 3)
    if requests <= calibration:
        raise ConfigError(f"requests: the paper's two phases need at least {calibration + 1}, not {requests}")
    any_prompt = Length(20 * PROMPT_TOKENS_PER_WORD)  # the text decides
    return Scenario(
        name="paper",
        categories={
            name: Category(
                any_prompt,
                Length(law.short_mean * limit, law.short_cv),
                max_tokens=limit,
                cap_share=law.cap_share,
            )
            for name, limit in PAPER_MAX_TOKENS.items()
        },
        tenants={tier: TenantLaw(tier=tier) for tier in ("premium", "standard", "batch")},
        phases=[
            Phase(
                "calibration", _uniform(PAPER_CALIBRATION_GAP_SECONDS), calibration, weights=PAPER_CALIBRATION_MIX
            ),
            Phase(
                "stress",
                _uniform(PAPER_STRESS_GAP_SECONDS),
                requests - calibration,
                weights=PAPER_STRESS_MIX,
                after_drain=True,
                pause_seconds=PAPER_PAUSE_SECONDS,
            ),
        ],
        prompts="labelled" if labelled else "plain",
    )


def answer_words(rows: Sequence[Row], seed: int, answers: PaperAnswers | None = None) -> list[int]:
    """Words in each answer, which is what the paper's first version counted instead of tokens; each >= 1."""
    law = answers or PaperAnswers()
    draws = Random(f"{seed}:words")
    return [
        max(1, round(row.completion_tokens * draws.gauss(law.words_per_token, law.words_per_token * law.words_cv)))
        for row in rows
    ]


def _uniform(gap_seconds: tuple[float, float]) -> Arrivals:
    low, high = gap_seconds
    return Arrivals(rate=2 / (low + high), spread=(high - low) / (high + low))


WORKLOADS: dict[str, Callable[..., Scenario]] = {
    "paper": paper,
    "poisson": poisson,
    "gamma": gamma,
    "diurnal": diurnal,
    "flood": flood,
    DRIFT: drift,
    "verbosity-shift": verbosity_shift,
    "mix-shift": mix_shift,
    "model-swap": model_swap,
}
"""Ready-made scenarios by name; keyword arguments are their options."""


def make_scenario(name: str, options: Mapping[str, object]) -> Scenario:
    """The ready-made scenario called `name`, or that of a YAML file.

    `options` are its keyword arguments; text is converted to what they want, mappings being JSON. Raises
    `ConfigError` for an unknown name or option, and for a value that does not fit.
    """
    made = WORKLOADS.get(name)
    if made is None:
        if not name.endswith((".yaml", ".yml")):
            raise ConfigError(f"workload: unknown {name!r}: use one of {', '.join(WORKLOADS)}, or a YAML file")
        if options:
            raise ConfigError(f"workload {name}: takes no {', '.join(options)}: set it in the file")
        return load_scenario(Path(name))
    hints = get_type_hints(made)
    del hints["return"]
    values: dict[str, object] = {}
    for option, value in options.items():
        if option not in hints:
            raise ConfigError(f"workload {name}: unknown option {option!r}: there are {', '.join(hints)}")
        try:
            raw = msgspec.json.decode(value) if isinstance(value, str) and value.startswith("{") else value
            values[option] = msgspec.convert(raw, hints[option], strict=False)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise ConfigError(f"workload {name}: {option}: {error}, not {value!r}") from None
    return made(**values)
