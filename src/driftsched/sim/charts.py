"""Plots of an experiment as SVG to be put into a page: its text, its colours, its fonts.

Drawn by matplotlib (extra `report`). Colours are drawn as placeholders and then named by CSS variables, so that one
drawing serves light, dark and paper: `--s0` to `--s7` for series, `--grid` for rules, the current colour for text.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

from driftsched.core.errors import ConfigError
from driftsched.sim.measures import compared_tokens, e2e_seconds, queue_seconds
from driftsched.sim.recording import Recording
from driftsched.sim.summary import Arm, Document, SummaryRow, arm_of, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLOURS = 8
MAX_CURVE_POINTS = 300
MAX_MEMBERS = 8
"""Tenants drawn side by side."""
LEAST_SECONDS = 1e-3
"""Left end of a logarithmic axis of time; what is less is drawn there."""

_TEXT = "#000001"
_GRID = "#000002"
_SERIES = [f"#0000a{number}" for number in range(NUM_COLOURS)]
_CSS = {_TEXT: "currentColor", _GRID: "var(--grid)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(_SERIES)
}
_DASHES: list[Any] = ["-", (0, (5, 1.6)), (0, (5, 1.5, 1.2, 1.5)), (0, (1.4, 1.4))]
_MARKERS = ["o", "s", "^", "D"]
_HEADLINE = (
    ("E2E P50", "e2e_seconds.p50"),
    ("E2E P95", "e2e_seconds.p95"),
    ("E2E P99", "e2e_seconds.p99"),
    ("mean queue time", "queue_seconds.mean"),
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "driftsched",
    "text.parse_math": False,  # a tenant may be called $a$
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _TEXT,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "lines.linewidth": 1.6,
    "axes.prop_cycle": f"cycler('color', ['{_TEXT}'])",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Arms that are drawn together: those of one engine mode and variant."""

    document: Document
    arms: Sequence[Arm]
    recordings: Sequence[Recording]
    """One for each arm that has one, of the same seed."""

    @property
    def names(self) -> dict[Arm, str]:
        return labels(self.arms)

    def colour(self, arm: Arm) -> int:
        """Number of the CSS colour of an arm, the same in all plots: a colour for each policy."""
        return list(dict.fromkeys(a.policy for a in self.arms)).index(arm.policy) % NUM_COLOURS

    def line(self, arm: Arm) -> dict[str, Any]:
        """Colour by policy; dashes by estimator, or if there is only one, by policy for whoever sees no colours."""
        estimators = self._estimators()
        number = estimators.index(arm.estimator) if len(estimators) > 1 else self.colour(arm)
        return {"color": _SERIES[self.colour(arm)], "linestyle": _DASHES[number % len(_DASHES)]}

    def mark(self, arm: Arm) -> dict[str, Any]:
        """Colour by policy, shape by estimator."""
        number = self._estimators().index(arm.estimator)
        return {"color": _SERIES[self.colour(arm)], "marker": _MARKERS[number % len(_MARKERS)]}

    def bar(self, arm: Arm) -> dict[str, Any]:
        """Colour by policy, paler from estimator to estimator."""
        number = self._estimators().index(arm.estimator)
        return {"color": _SERIES[self.colour(arm)], "alpha": max(0.3, 1 - 0.4 * number)}

    def _estimators(self) -> list[str]:
        return list(dict.fromkeys(arm.estimator for arm in self.arms))

    def rows(self, metric: str) -> dict[Arm, SummaryRow]:
        """The figure of every arm that has it."""
        found = {arm: self.document.row(arm, metric) for arm in self.arms}
        return {arm: row for arm, row in found.items() if row is not None}


def require_matplotlib() -> None:
    """Raises `ConfigError` saying what to install if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("report.html needs matplotlib: pip install 'driftsched[report]'") from None


def draw(name: str, title: str, plot: Callable[[Scene], "Figure | None"], scene: Scene) -> str | None:
    """One plot as an `<svg>` element whose ids begin with `name`; None if the scene has nothing to show in it."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # characters DejaVu lacks: the reader's font draws them
        figure = plot(scene)
        if figure is None:
            return None
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True)
    return _inlined(content.getvalue(), name, title)


def _inlined(svg: str, name: str, title: str) -> str:
    """Only what a page needs, with ids that are unique in it and colours and fonts of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font: ((?:[\w-]+ )*[\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = re.sub("(?<=: )#0000(?:0[12]|a[0-7])", lambda match: _CSS[match[0]], svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    head = f'<svg role="img" aria-label="{title}" {view[0] if view else ""} style="stroke-linejoin: round"'
    return re.sub(r"^<svg[^>]*", head, svg).strip() + "\n"


def latency_curves(scene: Scene) -> "Figure | None":
    """Share of requests served within a time: end to end, and in the queue."""
    if not any(e2e_seconds(run) for run in scene.recordings):
        return None
    figure, axes = _axes(1, 2, height=3.3)
    panels = (("end-to-end time, s", e2e_seconds), ("queue time, s", queue_seconds))
    for axis, (title, seconds_of) in zip(axes, panels, strict=True):
        columns = {arm_of(run): sorted(seconds_of(run)) for run in scene.recordings}
        for arm, seconds in columns.items():
            if seconds:
                times, shares = _curve(seconds)
                axis.plot(times, shares, label=scene.names[arm], **scene.line(arm))
        _time_axis(axis, columns.values())
        axis.set(xlabel=title, ylim=(0, 1.01))
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes[0].set_ylabel("of all requests")
    _legend(figure, axes[0])
    return figure


def _curve(ordered: Sequence[float]) -> tuple[list[float], list[float]]:
    """A few points of the distribution, and all of the last hundredth."""
    n = len(ordered)
    step = max(1, n // MAX_CURVE_POINTS)
    ranks = sorted({*range(1, n + 1, step), *range(max(1, n - max(1, n // 100)), n + 1, max(1, step // 10)), n})
    return [max(ordered[rank - 1], LEAST_SECONDS) for rank in ranks], [rank / n for rank in ranks]


def _time_axis(axis: "Axes", columns: Iterable[Sequence[float]]) -> None:
    """Logarithmic, from where the first curve leaves the bottom."""
    low = min((column[len(column) // 20] for column in columns if column), default=LEAST_SECONDS)
    high = max((column[-1] for column in columns if column), default=1.0)
    low = max(low, LEAST_SECONDS, high / 1e4)
    axis.set_xscale("log")
    axis.set_xlim(low * 0.8, max(high * 1.1, low * 2))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axis.minorticks_off()


def queue_depth(scene: Scene) -> "Figure | None":
    """How many requests wait, over time."""
    drawn = [run for run in scene.recordings if len(run.queue_depth) > 1]
    if not drawn:
        return None
    figure, (axis,) = _axes(1, 1, height=2.9)
    _shade_phases(axis, drawn[0])
    for run in drawn:
        start = run.arrived_at[0]
        times = [at - start for at, _ in run.queue_depth]
        depths = [depth for _, depth in run.queue_depth]
        arm = arm_of(run)
        axis.step(times, depths, where="post", label=scene.names[arm], **scene.line(arm) | {"linewidth": 1.2})
    axis.set(xlabel="time since the first arrival, s", ylabel="requests waiting")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    _legend(figure, axis)
    return figure


def _shade_phases(axis: "Axes", run: Recording) -> None:
    """While requests of a phase arrive."""
    phases: dict[str, tuple[float, float]] = {}
    for at, phase in zip(run.arrived_at, run.phase, strict=True):
        first, _ = phases.get(phase, (at, at))
        phases[phase] = first, at
    if len(phases) < 2:
        return
    for number, (phase, (first, last)) in enumerate(phases.items()):
        begin = first - run.arrived_at[0]
        axis.axvspan(begin, last - run.arrived_at[0], facecolor=_TEXT, alpha=0.09 if number % 2 else 0.04, lw=0)
        axis.annotate(f" {phase}", (begin, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8, alpha=0.75)


def bars(dimension: str, columns: Sequence[tuple[str, str]]) -> Callable[[Scene], "Figure | None"]:
    """A plot of the members of `by_<dimension>`: a group of bars for each, with 95 % intervals over seeds.

    `columns` are a title and a figure of the group: a panel each.
    """

    def plot(scene: Scene) -> "Figure | None":
        members = _members(scene, dimension)
        if len(members) < 2:
            return None
        figure, axes = _axes(1, len(columns), height=3.1)
        width = 0.8 / len(scene.arms)
        for axis, (title, figure_name) in zip(axes, columns, strict=True):
            for number, arm in enumerate(scene.arms):
                rows = [scene.document.row(arm, f"by_{dimension}.{name}.{figure_name}") for name in members]
                places = [place + (number - (len(scene.arms) - 1) / 2) * width for place in range(len(members))]
                axis.bar(
                    places,
                    [row.mean if row else nan for row in rows],
                    width * 0.92,
                    yerr=[(row.interval.half_width or 0.0) if row else 0.0 for row in rows],
                    label=scene.names[arm],
                    **scene.bar(arm),
                    error_kw={"ecolor": _TEXT, "elinewidth": 0.9, "capsize": 1.5},
                )
            axis.set_title(title)
            axis.set_xticks(range(len(members)), [_shortened(name) for name in members])
            axis.grid(visible=False, axis="x")
            axis.tick_params(axis="x", length=0, rotation=30 if len(members) > 5 else 0)
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("seconds")
        _legend(figure, axes[0])
        return figure

    return plot


def _members(scene: Scene, dimension: str) -> list[str]:
    """Those that every arm has, in the order of the first run."""
    runs = [run for run in scene.document.runs if arm_of(run) in scene.arms]
    groups = [getattr(run, f"by_{dimension}") for run in runs]
    return [name for name in groups[0] if all(name in group for group in groups)][:MAX_MEMBERS] if groups else []


def _shortened(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def prediction(scene: Scene) -> "Figure | None":
    """Predicted against observed completion tokens, a panel for each estimator."""
    found: dict[str, tuple[list[float], list[int]]] = {}
    for run in scene.recordings:
        tokens = compared_tokens(run)
        if tokens[0]:
            found.setdefault(run.estimator, tokens)
    if not found:
        return None
    from matplotlib.colors import ListedColormap, to_rgba

    shades = ListedColormap([(*to_rgba(_SERIES[0])[:3], 0.12 + 0.88 * level / 15) for level in range(16)])
    figure, axes = _axes(1, len(found), height=3.4, share=True)
    low = max(1.0, min(min(min(p), min(a)) for p, a in found.values()))
    high = max(max(max(p), max(a)) for p, a in found.values()) * 1.2
    for axis, (estimator, (predicted, actual)) in zip(axes, found.items(), strict=True):
        axis.hexbin(
            [max(value, low) for value in predicted],
            [max(value, low) for value in actual],
            xscale="log",
            yscale="log",
            gridsize=(34 // max(1, len(found) - 1), 26),
            bins="log",
            cmap=shades,
            mincnt=1,
            linewidths=0.1,
            edgecolors="none",
        )
        axis.plot([low, high], [low, high], color=_TEXT, linewidth=0.8, linestyle=_DASHES[1])
        axis.set(xlim=(low * 0.8, high), ylim=(low * 0.8, high), xlabel="predicted tokens")
        axis.set_title(f"{estimator}: {len(actual)} answers")
        for part in (axis.xaxis, axis.yaxis):
            part.set_major_formatter(lambda tokens, _: f"{tokens:g}")
        axis.minorticks_off()
    axes[0].set_ylabel("observed tokens")
    return figure


def bias(scene: Scene) -> "Figure | None":
    """The correction that feedback has arrived at, over time, a panel for each arm with another estimator."""
    found: dict[str, Recording] = {}
    for run in scene.recordings:
        if run.bias:
            found.setdefault(run.estimator, run)
    if not found:
        return None
    figure, axes = _axes(1, len(found), height=2.9, share=True)
    names = sorted({name for run in found.values() for _, name, _ in run.bias})
    for axis, (estimator, run) in zip(axes, found.items(), strict=True):
        _shade_phases(axis, run)
        for number, name in enumerate(names[: len(_SERIES)]):
            points = [(at - run.arrived_at[0], value) for at, category, value in run.bias if category == name]
            style = {"color": _SERIES[number], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.3}
            axis.step([at for at, _ in points], [value for _, value in points], where="post", label=name, **style)
        axis.axhline(1.0, color=_TEXT, linewidth=0.8)
        axis.set(xlabel="time since the first arrival, s")
        axis.set_title(f"{run.policy}, {estimator}")
    axes[0].set_ylabel("correction factor")
    _legend(figure, axes[0])
    return figure


def frontier(scene: Scene) -> "Figure | None":
    """Median against tail: to the lower left is better."""
    p50, p99 = scene.rows("e2e_seconds.p50"), scene.rows("e2e_seconds.p99")
    arms = [arm for arm in scene.arms if arm in p50 and arm in p99]
    if len(arms) < 2:
        return None
    figure, (axis,) = _axes(1, 1, height=3.4, width=7.6)
    for arm in arms:
        axis.errorbar(
            p50[arm].mean,
            p99[arm].mean,
            xerr=p50[arm].interval.half_width or 0.0,
            yerr=p99[arm].interval.half_width or 0.0,
            linestyle="none",
            markersize=6,
            capsize=2,
            elinewidth=1.1,
            **scene.mark(arm),
            label=scene.names[arm],
        )
    axis.set(xlabel="E2E P50, s", ylabel="E2E P99, s")
    axis.margins(0.08)
    if min(p50[arm].mean for arm in arms) < max(p50[arm].mean for arm in arms) / 2:
        axis.set_xlim(left=0)
    if min(p99[arm].mean for arm in arms) < max(p99[arm].mean for arm in arms) / 2:
        axis.set_ylim(bottom=0)
    figure.legend(*_unbarred(axis), loc="outside right upper", fontsize=8.5)
    return figure


def _unbarred(axis: "Axes") -> tuple[list[Any], list[str]]:
    """Marks and names for a legend, without the bars of the intervals."""
    containers, names = axis.get_legend_handles_labels()
    marks: list[Any] = list(containers)
    return [mark[0] for mark in marks], names


def forest(scene: Scene) -> "Figure | None":
    """Paired differences to the baseline with their intervals; hollow where they may as well be nothing."""
    rows = {title: scene.rows(metric) for title, metric in _HEADLINE}
    arms = [arm for arm in scene.arms if any(arm in found and found[arm].change for found in rows.values())]
    if not arms:
        return None
    figure, axes = _axes(1, len(_HEADLINE), height=0.95 + 0.3 * len(arms))
    for axis, (title, found) in zip(axes, rows.items(), strict=True):
        for place, arm in enumerate(arms):
            row = found.get(arm)
            if row is None or row.change is None:
                continue
            mark = scene.mark(arm)
            axis.errorbar(
                100 * row.change.mean,
                place,
                xerr=100 * (row.change.half_width or 0.0),
                linestyle="none",
                markersize=5.5,
                capsize=2.5,
                markerfacecolor="none" if row.verdict == "n.s." else mark["color"],
                **mark,
            )
        axis.axvline(0, color=_TEXT, linewidth=0.9)
        axis.set_title(title)
        axis.set(ylim=(len(arms) - 0.5, -0.5))
        axis.margins(x=0.15)
        axis.set_yticks(range(len(arms)), [scene.names[arm] if axis is axes[0] else "" for arm in arms])
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_formatter(lambda percent, _: f"{percent:+g}" if percent else "0")
        axis.locator_params(axis="x", nbins=5)
    against = dict.fromkeys(row.baseline for found in rows.values() for row in found.values() if row.baseline)
    figure.supxlabel(f"change against {', '.join(map(str, against))}, %", fontsize=9)
    return figure


def _axes(
    num_rows: int, num_columns: int, *, height: float, width: float = 9.6, share: bool = False
) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=share, sharey=share)
    return figure, list(axes.flat)


def _legend(figure: "Figure", axis: "Axes") -> None:
    """Above the plot, in as few lines as fit; none where there is nothing to tell apart."""
    handles, names = axis.get_legend_handles_labels()
    if len(names) > 1:
        width = sum(len(name) * 0.066 + 0.5 for name in names)  # inches
        columns = max(1, min(len(names), int(len(names) * 9.2 / width)))
        figure.legend(handles, names, loc="outside upper left", ncols=columns, fontsize=8.5)
