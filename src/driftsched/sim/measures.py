"""The figures of one run, each defined once.

They are defined in docs/results.md, and read from there by others: names and meanings change only with
`driftsched.sim.summary.SCHEMA`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from math import ceil, isnan, sqrt
from statistics import fmean

import msgspec

from driftsched.sim.recording import Recording
from driftsched.sim.statistics import Saturation, kendall_tau, saturation, wilson_interval

MIN_BEYOND = 2
"""A percentile is given only if at least so many values lie beyond it: of fewer it is chance."""

MAX_TENANTS = 20
"""Tenants told apart in the figures: those with the most requests."""

MAX_GAP_TENANTS = 8
"""Tenants between whom service is compared, pair by pair."""

PROMPT_WEIGHT = 1.0
COMPLETION_WEIGHT = 2.0
"""What a token of each kind counts as service, as in the virtual token counter (Sheng et al., OSDI 2024)."""


class Spread(msgspec.Struct, frozen=True):
    """How the values of many requests are spread. Percentiles are None where the values are too few for them."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


class Group(msgspec.Struct, frozen=True):
    """The finished requests of one tier, class, tenant or phase."""

    requests: int
    e2e_seconds: Spread
    queue_seconds: Spread


class Prediction(msgspec.Struct, frozen=True):
    """Predicted against actual completion tokens, of the answers that ended by themselves."""

    mae_tokens: float | None
    rmse_tokens: float | None
    kendall_tau: float | None
    bias: float | None
    """Mean of predicted minus actual, in tokens: above 0, lengths are overestimated."""
    compared: int
    truncated: int
    """Finished, but cut off at a limit: their true length is unknown, so they are left out."""


class Attainment(msgspec.Struct, frozen=True):
    """How many requests were served as an objective wants it."""

    requests: int
    """Submitted; whatever was not finished missed the objective."""
    attained: int
    share: float | None
    low: float
    high: float
    """Wilson interval of the share, 95 %."""
    goodput_per_second: float | None
    """Requests that attained it, per second of makespan."""


class Run(msgspec.Struct, frozen=True):
    """One element of `runs` in summary.json."""

    policy: str
    estimator: str
    engine_mode: str
    variant: str
    seed: int
    requests: int
    e2e_seconds: Spread
    queue_seconds: Spread
    ttft_seconds: Spread
    by_tier: dict[str, Group]
    by_class: dict[str, Group]
    by_tenant: dict[str, Group]
    by_phase: dict[str, Group]
    prediction: Prediction
    makespan_seconds: float
    slot_utilisation: float | None
    service_gap_tokens: float | None
    light_tenant_p99_seconds: float | None
    outcomes: dict[str, int]
    max_queue_depth: int
    saturation: Saturation
    slo: Attainment | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """What counts as well served: every bound that is given, in seconds."""

    ttft_seconds: float | None = None
    e2e_seconds: float | None = None


def measure(recording: Recording, objective: Objective | None = None) -> Run:
    """Every figure of a run."""
    cells = _cells(recording)
    makespan = recording.makespan_seconds
    tenants = [tenant for tenant, _ in Counter(recording.tenant).most_common(MAX_TENANTS)]
    return Run(
        policy=recording.policy,
        estimator=recording.estimator,
        engine_mode=recording.engine_mode,
        variant=recording.variant,
        seed=recording.seed,
        requests=len(recording),
        e2e_seconds=spread(_merged(cell.e2e for cell in cells)),
        queue_seconds=spread(_merged(cell.queue for cell in cells)),
        ttft_seconds=spread(sorted(ttft_seconds(recording))),
        by_tier=_groups(cells, lambda cell: cell.tier, ("premium", "standard", "batch")),
        by_class=_groups(cells, lambda cell: cell.runtime_class, ("short", "medium", "long")),
        by_tenant=_groups(cells, lambda cell: cell.tenant, tenants),
        by_phase=_groups(cells, lambda cell: cell.phase, list(dict.fromkeys(recording.phase))),
        prediction=prediction(recording),
        makespan_seconds=makespan,
        slot_utilisation=recording.busy_slot_seconds / (recording.slots * makespan) if makespan > 0 else None,
        service_gap_tokens=service_gap_tokens(recording),
        light_tenant_p99_seconds=_light_tenant_p99(cells, tenants),
        outcomes=_outcomes(recording),
        max_queue_depth=recording.max_queue_depth,
        saturation=saturation(recording),
        slo=attainment(recording, objective) if objective else None,
    )


def percentile(ordered: Sequence[float], fraction: float) -> float | None:
    """Nearest-rank percentile of values in ascending order; None if they are too few to carry it."""
    rank = ceil(len(ordered) * fraction)
    return ordered[rank - 1] if len(ordered) - rank >= MIN_BEYOND else None


def spread(ordered: Sequence[float]) -> Spread:
    """Of values in ascending order."""
    return Spread(
        mean=fmean(ordered) if ordered else None,
        p50=percentile(ordered, 0.50),
        p90=percentile(ordered, 0.90),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        max=ordered[-1] if ordered else None,
    )


def e2e_seconds(recording: Recording) -> list[float]:
    """From arrival to the last token, of every finished request in order of arrival."""
    columns = zip(recording.arrived_at, recording.finished_at, recording.outcome, strict=True)
    return [finished - arrived for arrived, finished, outcome in columns if outcome == "finished"]


def queue_seconds(recording: Recording) -> list[float]:
    """From arrival to dispatch, of every finished request in order of arrival."""
    columns = zip(recording.arrived_at, recording.dispatched_at, recording.outcome, strict=True)
    return [dispatched - arrived for arrived, dispatched, outcome in columns if outcome == "finished"]


def ttft_seconds(recording: Recording) -> list[float]:
    """From arrival to the first token, of every finished request that had one, in order of arrival."""
    columns = zip(recording.arrived_at, recording.first_token_at, recording.outcome, strict=True)
    seconds = [first - arrived for arrived, first, outcome in columns if outcome == "finished"]
    return [value for value in seconds if not isnan(value)]


def compared_tokens(recording: Recording) -> tuple[list[float], list[int]]:
    """Predicted and actual completion tokens of every answer whose true length is known."""
    columns = zip(
        recording.predicted_tokens,
        recording.completion_tokens,
        recording.outcome,
        recording.finish_reason,
        strict=True,
    )
    known = [
        (predicted, actual)
        for predicted, actual, outcome, reason in columns
        if outcome == "finished" and reason != "length" and not isnan(predicted)
    ]
    return [predicted for predicted, _ in known], [actual for _, actual in known]


def prediction(recording: Recording) -> Prediction:
    """How good the predictions made at admission were."""
    predicted, actual = compared_tokens(recording)
    errors = [p - a for p, a in zip(predicted, actual, strict=True)]
    return Prediction(
        mae_tokens=fmean(map(abs, errors)) if errors else None,
        rmse_tokens=sqrt(fmean(error * error for error in errors)) if errors else None,
        kendall_tau=kendall_tau(predicted, actual),
        bias=fmean(errors) if errors else None,
        compared=len(errors),
        truncated=sum(
            outcome == "finished" and reason == "length"
            for outcome, reason in zip(recording.outcome, recording.finish_reason, strict=True)
        ),
    )


def service_gap_tokens(recording: Recording) -> float | None:
    """The largest advantage that one tenant had over another while both had requests waiting all the time.

    Service is prompt tokens plus twice the completion tokens, divided by the tenant's weight; a request counts as
    served, in full, when it is dispatched. Over every stretch of time in which requests of both tenants wait
    without a break, the gap is the difference of the service the two got; the largest one over all stretches and
    pairs is the figure that token fairness bounds (Sheng et al., OSDI 2024). Only the
    `MAX_GAP_TENANTS` tenants with the most requests are compared. 0 if no two ever waited together; None if there
    is only one tenant.
    """
    tenants = [tenant for tenant, _ in Counter(recording.tenant).most_common(MAX_GAP_TENANTS)]
    if len(tenants) < 2:
        return None
    numbers = {tenant: number for number, tenant in enumerate(tenants)}
    number_of = [numbers.get(tenant, -1) for tenant in recording.tenant]
    admitted = [
        place for place, outcome in enumerate(recording.outcome) if outcome != "rejected" and number_of[place] >= 0
    ]
    left_line_at = [
        left if isnan(dispatched) else dispatched  # nan: waits still
        for dispatched, left in zip(recording.dispatched_at, recording.finished_at, strict=True)
    ]
    leaving = [place for place in admitted if not isnan(left_line_at[place])]
    leaving.sort(key=left_line_at.__getitem__)
    gaps = _Gaps(len(tenants))
    arriving = iter(admitted)
    arrival = next(arriving, None)
    for at, places in groupby(leaving, key=left_line_at.__getitem__):
        while arrival is not None and recording.arrived_at[arrival] <= at:
            gaps.waiting[number_of[arrival]] += 1
            arrival = next(arriving, None)
        gaps.leave([(number_of[place], _service(recording, place)) for place in places])
    return gaps.largest


def _service(recording: Recording, place: int) -> float:
    """What a request got once it was dispatched, in weighted tokens; 0 if it never was."""
    if isnan(recording.dispatched_at[place]):
        return 0.0
    tokens = PROMPT_WEIGHT * recording.prompt_tokens[place] + COMPLETION_WEIGHT * recording.completion_tokens[place]
    return tokens / recording.tenant_weight[place]


class _Gaps:
    """Service of a few tenants, numbered, and how far each pair has drifted apart since both wait."""

    def __init__(self, num_tenants: int) -> None:
        self.largest = 0.0
        self.waiting = [0] * num_tenants
        self._service = [0.0] * num_tenants
        self._least: list[list[float | None]] = [[None] * num_tenants for _ in range(num_tenants)]
        # [a][b]: least lead of a over b since both wait; None while one of them does not

    def leave(self, requests: Sequence[tuple[int, float]]) -> None:
        """Take requests of these tenants out of the line, all at one instant, each with the service it gets."""
        tenants = {tenant for tenant, _ in requests}
        for tenant in tenants:
            self._begin(tenant)
        for tenant, service in requests:
            self.waiting[tenant] -= 1
            self._service[tenant] += service
        for tenant in tenants:
            if not self.waiting[tenant]:
                self._break_off(tenant)
        for tenant in tenants:
            if self.waiting[tenant]:
                self._compare(tenant)

    def _begin(self, tenant: int) -> None:
        """Only leaving changes service, so a pair may be begun as late as before one of it next leaves."""
        own = self._least[tenant]
        for other, waiting in enumerate(self.waiting):
            if waiting and own[other] is None:
                lead = self._service[tenant] - self._service[other]
                own[other], self._least[other][tenant] = lead, -lead

    def _break_off(self, tenant: int) -> None:
        for other in range(len(self.waiting)):
            self._least[tenant][other] = self._least[other][tenant] = None

    def _compare(self, tenant: int) -> None:
        for other, least in enumerate(self._least[tenant]):
            if least is not None:
                lead = self._service[tenant] - self._service[other]
                if lead - least > self.largest:
                    self.largest = lead - least
                behind = self._least[other][tenant]
                if behind is None or -lead < behind:
                    self._least[other][tenant] = -lead


def attainment(recording: Recording, objective: Objective) -> Attainment:
    """How many of all requests submitted were finished within the bounds."""
    ttft, e2e = objective.ttft_seconds, objective.e2e_seconds
    columns = zip(
        recording.arrived_at, recording.first_token_at, recording.finished_at, recording.outcome, strict=True
    )
    attained = sum(
        outcome == "finished"
        and (ttft is None or first - arrived <= ttft)
        and (e2e is None or end - arrived <= e2e)
        for arrived, first, end, outcome in columns
    )
    low, high = wilson_interval(attained, len(recording))
    makespan = recording.makespan_seconds
    return Attainment(
        requests=len(recording),
        attained=attained,
        share=attained / len(recording) if len(recording) else None,
        low=low,
        high=high,
        goodput_per_second=attained / makespan if makespan > 0 else None,
    )


@dataclass(slots=True)
class _Cell:
    """Finished requests that are alike in everything figures are grouped by; seconds in ascending order."""

    tier: str
    runtime_class: str
    tenant: str
    phase: str
    e2e: list[float]
    queue: list[float]


_Key = tuple[str, str, str, str]


def _cells(recording: Recording) -> list[_Cell]:
    e2e, queue = defaultdict[_Key, list[float]](list), defaultdict[_Key, list[float]](list)
    keys = zip(recording.tier, recording.runtime_class, recording.tenant, recording.phase, strict=True)
    columns = zip(
        keys, recording.outcome, recording.arrived_at, recording.dispatched_at, recording.finished_at, strict=True
    )
    for key, outcome, arrived, dispatched, finished in columns:
        if outcome == "finished":
            e2e[key].append(finished - arrived)
            queue[key].append(dispatched - arrived)
    return [_Cell(*key, e2e=sorted(e2e[key]), queue=sorted(queue[key])) for key in e2e]


def _merged(columns: Iterable[list[float]]) -> list[float]:
    """One ascending column of several: sorting takes ascending stretches as they are and only merges them."""
    return sorted(chain.from_iterable(columns))


def _groups(cells: Sequence[_Cell], key: Callable[[_Cell], str], order: Sequence[str]) -> dict[str, Group]:
    """By `key`, those in `order` only, in that order."""
    members = defaultdict[str, list[_Cell]](list)
    for cell in cells:
        members[key(cell)].append(cell)
    groups = {}
    for name in order:
        if name in members:
            e2e = _merged(cell.e2e for cell in members[name])
            queue = _merged(cell.queue for cell in members[name])
            groups[name] = Group(len(e2e), spread(e2e), spread(queue))
    return groups


def _light_tenant_p99(cells: Sequence[_Cell], tenants: Sequence[str]) -> float | None:
    """P99 of end-to-end seconds over all tenants but the one with the most requests; None if there is only one."""
    if len(tenants) < 2:
        return None
    return percentile(_merged(cell.e2e for cell in cells if cell.tenant != tenants[0]), 0.99)


def _outcomes(recording: Recording) -> dict[str, int]:
    counts = Counter(recording.outcome)
    return {name: counts[name] for name in ("finished", "rejected", "evicted", "failed", "unfinished")}
