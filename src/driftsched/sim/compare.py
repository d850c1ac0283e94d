"""`driftsched compare A B`: what changed between two experiments on the same traces, and whether that may be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, inf
from pathlib import Path

from driftsched.core.errors import ConfigError
from driftsched.sim.statistics import Difference, paired_difference
from driftsched.sim.summary import Arm, Document, Verdict, arm_of, figures, labels, load_document
from driftsched.sim.tables import change_text

EXIT_GATE_FAILED = 5

_SHOWN = (
    ("E2E P50, s", "e2e_seconds.p50"),
    ("E2E P95, s", "e2e_seconds.p95"),
    ("E2E P99, s", "e2e_seconds.p99"),
    ("queue mean, s", "queue_seconds.mean"),
    ("TTFT P50, s", "ttft_seconds.p50"),
    ("MAE, tokens", "prediction.mae_tokens"),
    ("makespan, s", "makespan_seconds"),
)

_GRAMMAR = re.compile(
    r"(?:(?P<policy>[^:<>]+):)?(?P<metric>[^:<>]+)(?P<side>[<>])(?P<sign>[+-]?)(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)"
)
_SHORTHAND = re.compile(r"(?P<stat>mean|p50|p90|p95|p99|max)_(?P<measure>e2e|queue|ttft)(?:_seconds)?")


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition under which B is not good enough."""

    text: str
    policy: str | None
    """None: every policy."""
    metric: str
    """As in `SummaryRow.metric`."""
    above: bool
    """Fails above the limit; else below it."""
    limit: float
    kind: str
    """`value`: B's own figure; `absolute`: its difference to A; `relative`: the same as a share of A's figure."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """One figure of an arm of A and of B, over the seeds they share."""

    metric: str
    a: float
    b: float
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        if not self.difference.significant:
            return "n.s."
        return "lower" if self.difference.absolute.mean < 0 else "higher"


def run_compare(
    a: Path, b: Path, *, fail_if: Sequence[str] = (), allow_different_traces: bool = False
) -> tuple[str, int]:
    """What to print, and the exit status: 0, or 5 if a gate failed.

    `a` and `b` are results directories or summary.json files. Raises `ConfigError` if one cannot be read, a gate
    makes no sense, or the two were not run on the same traces.
    """
    gates = [parse_gate(text) for text in fail_if]
    before, after = load_document(a), load_document(b)
    _require_same_traces(before, after, allow_different_traces)
    arms = paired_arms(before, after)
    lines = [f"A  {a}  {before.commit[:12]}".rstrip(), f"B  {b}  {after.commit[:12]}".rstrip()]
    if before.trace_hash != after.trace_hash:
        lines.append("Different traces: part of every difference is the traces'.")
    failures: list[str] = []
    names = labels([mine for mine, _ in arms])
    judged: set[str] = set()
    for mine, theirs in arms:
        pairings = pair(before, mine, after, theirs)
        lines += ["", *_table(names[mine], pairings)]
        for gate in gates:
            if gate.policy in (None, theirs.policy):
                if gate.metric in pairings:
                    judged.add(gate.text)
                failure = _judge(gate, pairings.get(gate.metric))
                failures += [f"{names[mine]}: {failure}"] if failure else []
    for gate in gates:
        if gate.text not in judged:
            raise ConfigError(_no_figure(gate, arms, before, after))
    verdicts = [f"FAILED {failure}" for failure in failures]
    if gates and not failures:
        verdicts = [f"passed {gate.text}" for gate in gates]
    return "\n".join([*lines, *([""] if verdicts else []), *verdicts]) + "\n", EXIT_GATE_FAILED if failures else 0


def parse_gate(text: str) -> Gate:
    """Read `[POLICY:]METRIC<SIGN>NUMBER`. Raises `ConfigError` saying what is wrong.

    `p99_e2e>+10%` fails if P99 of end-to-end time rose by more than 10 %, `p50_queue>+0.5` if the queue's median
    rose by more than half a second, `slot_utilisation<-5%` if utilisation fell by more than 5 %, `sjf:p99_e2e>30`
    if sjf's P99 in B is above 30 seconds. METRIC is `mean|p50|p90|p95|p99|max` `_` `e2e|queue|ttft`, or any metric
    of summary.json by its name.
    """
    match = _GRAMMAR.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ConfigError(
            f"--fail-if {text!r}: write [POLICY:]METRIC, then > or <, then a number: 'p99_e2e>+10%' for a change "
            "against A, 'p99_e2e>30' for B's own value in seconds"
        )
    if match["percent"] and not match["sign"]:
        raise ConfigError(
            f"--fail-if {text!r}: a change needs its sign: write +{match['number']}% or -{match['number']}%"
        )
    limit = float(match["sign"] + match["number"])
    return Gate(
        text=text,
        policy=match["policy"],
        metric=_metric(match["metric"]),
        above=match["side"] == ">",
        limit=limit / 100 if match["percent"] else limit,
        kind="relative" if match["percent"] else "absolute" if match["sign"] else "value",
    )


def paired_arms(before: Document, after: Document) -> list[tuple[Arm, Arm]]:
    """Arms that both have; if they have none in common but one each, those two. Raises `ConfigError` otherwise."""
    common = [arm for arm in before.arms if arm in after.arms]
    if common:
        return [(arm, arm) for arm in common]
    if len(before.arms) == len(after.arms) == 1:
        return [(before.arms[0], after.arms[0])]
    had = ["; ".join(" ".join(arm) for arm in document.arms) or "no runs" for document in (before, after)]
    raise ConfigError(
        f"A has {had[0]}, but B has {had[1]}: run the same policy, estimator, engine mode and variant in both"
    )


def pair(before: Document, mine: Arm, after: Document, theirs: Arm) -> dict[str, Pairing]:
    """Every figure that both arms have for every seed they share. Raises `ConfigError` if they share no seed."""
    a, b = _values(before, mine), _values(after, theirs)
    seeds = a.keys() & b.keys()
    if not seeds:
        raise ConfigError(
            f"{' '.join(mine)}: A has seeds {sorted(a)}, B has {sorted(b)}: run both with the same seeds"
        )
    pairings = {}
    for metric in a[min(seeds)]:
        ours = {seed: a[seed][metric] for seed in seeds if metric in a[seed]}
        others = {seed: b[seed][metric] for seed in seeds if metric in b[seed]}
        difference = paired_difference(others, ours)
        if difference is not None and len(ours) == len(others) == len(seeds):
            mean_a, mean_b = (sum(values[seed] for seed in sorted(seeds)) / len(seeds) for values in (ours, others))
            pairings[metric] = Pairing(metric, mean_a, mean_b, difference)
    return pairings


def _values(document: Document, arm: Arm) -> dict[int, dict[str, float]]:
    return {
        run.seed: {".".join(path): value for path, value in figures(run) if value is not None}
        for run in document.runs
        if arm_of(run) == arm
    }


def _require_same_traces(before: Document, after: Document, allowed: bool) -> None:
    if before.trace_hash != after.trace_hash and not allowed:
        raise ConfigError(
            f"A was run on trace {before.trace_hash[:12]!r}, B on {after.trace_hash[:12]!r}: run both with the "
            "same workload and seeds, or compare them all the same with --allow-different-traces"
        )


def _metric(name: str) -> str:
    match = _SHORTHAND.fullmatch(name)
    return f"{match['measure']}_seconds.{match['stat']}" if match else name


def _judge(gate: Gate, pairing: Pairing | None) -> str | None:
    """Why the gate fails; None if it holds. A change that may as well be chance counts as none."""
    if pairing is None:
        return None
    difference = pairing.difference
    if gate.kind == "value":
        found, told = pairing.b, f"is {pairing.b:.4g}"
    elif gate.kind == "absolute":
        found, told = difference.absolute.mean, f"changed by {difference.absolute.mean:+.4g}"
    elif difference.relative:
        found, told = difference.relative.mean, f"changed by {change_text(difference.relative, pairing.verdict)}"
    else:
        found, told = copysign(inf, difference.absolute.mean), f"went from {pairing.a:.4g} to {pairing.b:.4g}"
    if gate.kind != "value" and difference.absolute.n > 1 and not difference.significant:
        found = 0.0
    failed = found > gate.limit if gate.above else found < gate.limit
    return f"{gate.text}: {pairing.metric} {told}" if failed else None


def _no_figure(gate: Gate, arms: Sequence[tuple[Arm, Arm]], before: Document, after: Document) -> str:
    policies = list(dict.fromkeys(theirs.policy for _, theirs in arms))
    if gate.policy not in (None, *policies):
        return f"--fail-if {gate.text!r}: no policy {gate.policy!r} in both: use one of {', '.join(policies)}"
    known = pair(before, arms[0][0], after, arms[0][1])
    return (
        f"--fail-if {gate.text!r}: no figure {gate.metric!r} in both (percentiles are left out where requests are "
        f"too few): use one such as {', '.join(metric for _, metric in _SHOWN if metric in known)}"
    )


def _table(name: str, pairings: dict[str, Pairing]) -> list[str]:
    seeds = max((pairing.difference.absolute.n for pairing in pairings.values()), default=0)
    lines = [f"{name[:30]:30}{'A':>10}{'B':>11}   change over {seeds} paired seed{'s' if seeds != 1 else ''}"]
    for title, metric in _SHOWN:
        if metric in pairings:
            pairing = pairings[metric]
            change = change_text(pairing.difference.relative, pairing.verdict)
            lines.append(f"  {title:28}{pairing.a:10.4g}{pairing.b:11.4g}   {change}")
    return lines
