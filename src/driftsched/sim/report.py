"""report.html: an experiment on one page that needs nothing else, to be read, kept and printed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftsched.sim import charts
from driftsched.sim.charts import Scene
from driftsched.sim.recording import Recording
from driftsched.sim.summary import Arm, Document, SummaryRow, arm_of
from driftsched.sim.tables import change_text, remarks, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEY_FIGURES = (
    ("E2E P50, s", "e2e_seconds.p50"),
    ("E2E P95, s", "e2e_seconds.p95"),
    ("E2E P99, s", "e2e_seconds.p99"),
    ("queue mean, s", "queue_seconds.mean"),
    ("TTFT P50, s", "ttft_seconds.p50"),
    ("makespan, s", "makespan_seconds"),
)
_OTHER_FIGURES = (
    ("slots in use", "slot_utilisation"),
    ("service gap, tokens", "service_gap_tokens"),
    ("light tenants P99, s", "light_tenant_p99_seconds"),
    ("MAE, tokens", "prediction.mae_tokens"),
    ("bias, tokens", "prediction.bias"),
    ("Kendall tau", "prediction.kendall_tau"),
)
_GROUP_COLUMNS = (
    ("E2E P50", "e2e_seconds.p50"),
    ("E2E P95", "e2e_seconds.p95"),
    ("mean queue time", "queue_seconds.mean"),
)


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the report."""

    name: str
    title: str
    caption: str
    draw: Callable[[Scene], "Figure | None"]
    narrow: bool = False


_OF_ONE_SEED = "Seed {seed} only."
_OVER_SEEDS = "Mean over the seeds with 95 % intervals."

PLOTS = (
    Plot(
        "forest",
        "Differences to the baseline",
        "Paired by seed, with 95 % intervals. A hollow mark is not significant: its interval spans zero. Left is "
        "shorter.",
        charts.forest,
    ),
    Plot("frontier", "Median against tail", f"{_OVER_SEEDS} Lower left is better.", charts.frontier, narrow=True),
    Plot(
        "latency",
        "Distribution of times",
        f"Share of finished requests served within a time; logarithmic. {_OF_ONE_SEED}",
        charts.latency_curves,
    ),
    Plot(
        "depth",
        "Queue depth",
        f"Requests waiting. Shaded: while the requests of a phase arrive. {_OF_ONE_SEED}",
        charts.queue_depth,
    ),
    Plot("tiers", "By tier", _OVER_SEEDS, charts.bars("tier", _GROUP_COLUMNS)),
    Plot(
        "classes",
        "By predicted length",
        f"Prompt and predicted completion together: short up to 128 tokens, medium up to 512. {_OVER_SEEDS}",
        charts.bars("class", _GROUP_COLUMNS),
    ),
    Plot(
        "tenants",
        "By tenant",
        f"Those with the most requests. {_OVER_SEEDS}",
        charts.bars("tenant", _GROUP_COLUMNS),
    ),
    Plot(
        "phases",
        "By phase",
        f"By the phase in which a request arrived. {_OVER_SEEDS}",
        charts.bars("phase", _GROUP_COLUMNS),
    ),
    Plot(
        "prediction",
        "Predicted against observed length",
        "Completion tokens, one panel for each estimator; the stronger the colour, the more of them (logarithmic). "
        "Truncated answers are left out, their true length is unknown. Dashed: a perfect prediction. "
        f"{_OF_ONE_SEED}",
        charts.prediction,
    ),
    Plot(
        "bias",
        "Correction by feedback",
        f"Factor that corrects the uncorrected prediction, by category; 1 is none. {_OF_ONE_SEED}",
        charts.bias,
    ),
)


def write_report(path: Path, document: Document, recordings: Sequence[Recording]) -> None:
    """Write report.html. `recordings` are of as many runs as there are; of each arm the first one is drawn.

    Raises `ConfigError` if matplotlib, the extra `report`, is not installed.
    """
    path.write_text(render_report(document, recordings), encoding="utf-8")


def render_report(document: Document, recordings: Sequence[Recording]) -> str:
    """The page; see `write_report`."""
    charts.require_matplotlib()
    title = _title(document)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_subtitle(document))}</p>',
        *_notes(document),
    ]
    for number, ((mode, variant), arms) in enumerate(document.scenes.items()):
        body += _section(Scene(document, arms, _first_of_each(recordings, arms)), number, mode, variant)
    body += _method(document)
    css = files("driftsched.sim").joinpath("report.css").read_text(encoding="utf-8")
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{css}</style></head>",
            "<body>",
            *body,
            "</body></html>\n",
        )
    )


def _title(document: Document) -> str:
    scenario = document.scenario
    name = scenario.get("name") or scenario.get("trace") or scenario.get("workload")
    return f"driftsched: {name}" if isinstance(name, str) else "driftsched: results"


def _subtitle(document: Document) -> str:
    counts = {run.requests for run in document.runs}
    requests = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}" if counts else "no"
    seeds = sorted({run.seed for run in document.runs})
    return f"{requests} requests a run, {len(document.runs)} runs, seeds {_ranges(seeds)}"


def _ranges(numbers: Sequence[int]) -> str:
    """`1-10`, or each of them if they do not follow one another."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"


def _notes(document: Document) -> Iterable[str]:
    said = remarks(document)
    if said:
        yield '<div class="note">' + "".join(f"<p>{escape(sentence)}</p>" for sentence in said) + "</div>"


def _first_of_each(recordings: Sequence[Recording], arms: Sequence[Arm]) -> list[Recording]:
    found: dict[Arm, Recording] = {}
    for recording in recordings:
        found.setdefault(arm_of(recording), recording)
    return [found[arm] for arm in arms if arm in found]


def _section(scene: Scene, number: int, mode: str, variant: str) -> Iterable[str]:
    yield f"<h2>{escape(variant)}: {escape(mode)} batching</h2>"
    yield from _figures_table(scene, _KEY_FIGURES, saturation=True)
    yield '<p class="quiet">Mean over the seeds ± half the 95 % interval; below: change against the baseline.</p>'
    yield from _figures_table(scene, _OTHER_FIGURES, saturation=False)
    seed = ", ".join(sorted({str(recording.seed) for recording in scene.recordings}))
    for plot in PLOTS:
        svg = charts.draw(f"scene{number}-{plot.name}", plot.title, plot.draw, scene)
        if svg is not None:
            caption = escape(plot.caption.format(seed=seed))
            kind = ' class="narrow"' if plot.narrow else ""
            yield f"<figure{kind}>{svg}<figcaption><b>{escape(plot.title)}.</b> {caption}</figcaption></figure>"


def _figures_table(scene: Scene, columns: Sequence[tuple[str, str]], *, saturation: bool) -> Iterable[str]:
    names = scene.names
    heads = [title for title, _ in columns] + (["verdict"] if saturation else [])
    yield '<div class="scroll"><table class="wide"><thead><tr><th></th>'
    yield "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr></thead><tbody>"
    for arm in scene.arms:
        swatch = f'<span class="swatch" style="background:var(--s{scene.colour(arm)})"></span>'
        cells = [_cell(scene.document.row(arm, metric), metric) for _, metric in columns]
        if saturation:
            cells.append(f"<td>{_verdicts(scene.document, arm)}</td>")
        yield f"<tr><th>{swatch}{escape(names[arm])}</th>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _cell(row: SummaryRow | None, metric: str) -> str:
    if row is None:
        return "<td>-</td>"
    change = ""
    if row.change is not None:
        shorter_is_better = metric.rsplit(".")[0].endswith("_seconds")
        kind = {"lower": "good", "higher": "bad"}.get(row.verdict or "", "") if shorter_is_better else ""
        text = change_text(row.change, row.verdict).replace("..", " to ")
        change = f'<small class="{kind}">{escape(text)}</small>' if kind else f"<small>{escape(text)}</small>"
    return f"<td>{escape(value_text(row.interval))}{change}</td>"


def _verdicts(document: Document, arm: Arm) -> str:
    found = [run.saturation for run in document.runs if arm_of(run) == arm]
    counts = {verdict: found.count(verdict) for verdict in sorted(set(found))}
    if len(counts) == 1:
        return found[0].lower()
    return "<br>".join(f"{verdict.lower()} {count}" for verdict, count in counts.items())


def _method(document: Document) -> Iterable[str]:
    scenario = dict(document.scenario)
    command, coefficients = scenario.pop("command", None), scenario.pop("coefficients", None)
    yield "<h2>Method</h2>"
    if isinstance(command, str):
        yield f"<p>Made by</p><pre>{escape(command)}</pre>"
    yield f"<p>{_STATISTICS}</p>"
    yield "<h3>Scenario</h3>"
    yield from _facts(scenario)
    if isinstance(coefficients, list) and coefficients:
        yield "<h3>Coefficients of the engine model</h3>"
        yield '<table><thead><tr><th>name</th><th>value</th><th class="text">unit</th><th class="text">source</th>'
        yield "</tr></thead><tbody>"
        for row in coefficients:
            name, value, unit, source = (_plain(row.get(key)) for key in ("name", "value", "unit", "source"))
            cells = f'<td>{value}</td><td class="text">{unit}</td><td class="text">{source}</td>'
            yield f"<tr><th>{name}</th>{cells}</tr>"
        yield "</tbody></table>"
    yield "<h3>Environment</h3>"
    yield from _facts({"commit": document.commit or "installed package", **document.environment})
    yield f'<p class="quiet">Traces {escape(document.trace_hash)}. Schema {document.schema}.</p>'


_STATISTICS = (
    "Every arm was run on the same traces, one for each seed. Intervals are 95 % Student t intervals over seeds: "
    "the requests of one run queue behind one another and are no independent sample. Differences are paired by "
    "seed; &ldquo;n.s.&rdquo; says that the interval of a difference spans zero. Percentiles are nearest-rank, and "
    "left out where fewer than two values lie beyond them. Times count from arrival, of the requests that finished."
)


def _facts(facts: Mapping[str, Any]) -> Iterable[str]:
    yield "<table><tbody>"
    for name, value in facts.items():
        yield f'<tr><th>{escape(name)}</th><td class="text">{_plain(value)}</td></tr>'
    yield "</tbody></table>"


def _plain(value: object) -> str:
    """Escaped text of a scalar, a list or a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(name))} = {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        if all(isinstance(part, int) for part in value):
            return escape(_ranges(value))
        return ", ".join(map(_plain, value))
    return escape("" if value is None else str(value))
