"""An evaluation on one page that needs nothing else. Plots are drawn by matplotlib (extra `report`)."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from driftsched.core.errors import ConfigError
from driftsched.evaluation.document import FROZEN, Document, text
from driftsched.evaluation.scores import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Found = Mapping[str, Mapping[str, Any]]
"""Scores by estimator."""

_TEXT = "#000001"
"""Stands for the colour of the page's text, which is dark or light."""
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9", "#8a8a8a", "#b22222")
_MARKERS = "os^Dvxp*"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "driftsched",
    "text.parse_math": False,  # a model may be called $a$
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#80808055",
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.4; }
figure { margin: 1.5rem 0; } svg { width: 100%; height: auto; } figcaption { opacity: 0.8; font-size: 14px; }
"""


def require_matplotlib() -> None:
    """Raises `ConfigError` saying what to install if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--html needs matplotlib: pip install 'driftsched[report]'") from None


def render(document: Document) -> str:
    """The page. Raises `ConfigError` if matplotlib is not installed."""
    require_matplotlib()
    title = f"Estimators on {document['data']}" if document["data"] else "Estimators"
    estimators: Found = document["estimators"]
    figures = [
        f"<figure>{_drawn(f'p{number}', name, plot, estimators)}<figcaption>{escape(caption)}</figcaption></figure>"
        for number, (name, caption, plot) in enumerate(PLOTS)
    ]
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *figures,
            "<h2>Figures</h2>",
            f"<pre>{escape(text(document))}</pre>",
            "</body></html>\n",
        )
    )


def _drawn(name: str, title: str, plot: Callable[[Found], "Figure"], estimators: Found) -> str:
    """A plot as an `<svg>` element whose ids begin with `name`."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        content = io.StringIO()
        plot(estimators).savefig(content, format="svg", transparent=True)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    head = f'<svg role="img" aria-label="{escape(title)}" {view[0] if view else ""}'
    return re.sub(r"^<svg[^>]*", lambda _: head, svg).replace(_TEXT, "currentColor").strip()


def _calibration(estimators: Found) -> "Figure":
    """Nominal against observed coverage, over all rows and by predicted length."""
    figure, (left, right) = _axes(2)
    levels = list(LEVELS.values())
    left.plot([0, 1], [0, 1], color=_TEXT, linewidth=0.8, linestyle=":")
    for name, found in estimators.items():
        left.plot(
            levels,
            [found["coverage"][level] for level in LEVELS],
            label=name,
            **_line(name, estimators, marked=True),
        )
        parts = found["reliability"]
        right.plot(
            [max(1.0, part["predicted"]) for part in parts],
            [part["coverage"]["q80"] for part in parts],
            **_line(name, estimators, marked=True),
        )
    right.axhline(0.8, color=_TEXT, linewidth=0.8, linestyle=":")
    right.set(xscale="log")
    _plain(right.xaxis)
    left.set(title="Coverage", xlabel="nominal", ylabel="observed", xlim=(0.4, 1), ylim=(0, 1.02))
    right.set(title="Coverage of q80 by prediction", xlabel="predicted, tokens", ylim=(0, 1.02))
    _legend(figure, left)
    return figure


def _reliability(estimators: Found) -> "Figure":
    """Mean length of the answers by predicted length."""
    figure, (axis,) = _axes(1)
    highest = max(part["actual"] for found in estimators.values() for part in found["reliability"])
    axis.plot([1, max(highest, 2)], [1, max(highest, 2)], color=_TEXT, linewidth=0.8, linestyle=":")
    for name, found in estimators.items():
        parts = found["reliability"]
        axis.plot(
            [max(1.0, part["predicted"]) for part in parts],
            [max(1.0, part["actual"]) for part in parts],
            label=name,
            **_line(name, estimators, marked=True),
        )
    axis.set(xscale="log", yscale="log", xlabel="mean predicted, tokens", ylabel="mean length, tokens")
    _plain(axis.xaxis)
    _plain(axis.yaxis)
    _legend(figure, axis)
    return figure


def _over_time(estimators: Found) -> "Figure":
    """Error, bias and coverage in stretches of equal length."""
    figure, axes = _axes(3)
    panels: Sequence[tuple[str, Callable[[Mapping[str, Any]], float]]] = (
        ("MAE, tokens", lambda block: float(block["mae"])),
        ("bias, log of predicted / length", lambda block: float(block["bias"])),
        ("coverage of q80", lambda block: float(block["coverage"]["q80"])),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        for name, found in estimators.items():
            rows, values = 0, []
            for block in found["over_time"]:
                values.append((rows + block["rows"] / 2, value(block)))
                rows += block["rows"]
            axis.plot(*zip(*values, strict=True), label=name, **_line(name, estimators))
        axis.set(title=title, xlabel="rows scored")
    axes[1].axhline(0, color=_TEXT, linewidth=0.8, linestyle=":")
    axes[2].axhline(0.8, color=_TEXT, linewidth=0.8, linestyle=":")
    _legend(figure, axes[0])
    return figure


PLOTS: Sequence[tuple[str, str, Callable[[Found], "Figure"]]] = (
    (
        "Calibration",
        "Left: share of answers that are no longer than q50, q80 and q90; on the dotted line they are what they "
        "claim. Right: the same for q80, the rows in ten parts by predicted length.",
        _calibration,
    ),
    (
        "Reliability",
        "The rows in ten parts by predicted length: what was predicted, and what came. Equal predictions are in "
        "one part. Logarithmic.",
        _reliability,
    ),
    (
        "Error over time",
        "The scored rows in 20 stretches, in order of arrival. Above 0 predictions are too long.",
        _over_time,
    ),
)


def _axes(number: int) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _plain(axis: "Axis") -> None:
    """Tokens on a logarithmic axis as plain numbers."""
    axis.set_major_formatter(lambda tokens, _: f"{tokens:g}")
    axis.set_minor_formatter(lambda *_: "")


def _line(name: str, estimators: Found, *, marked: bool = False) -> dict[str, Any]:
    """Colour, dashes and marker of an estimator, the same in all plots; frozen it is dashed."""
    base = [other for other in estimators if not other.endswith(FROZEN)]
    plain = name.removesuffix(FROZEN)
    number = base.index(plain) if plain in base else len(base)
    shape = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4} if marked else {}
    return {
        "color": _SERIES[number % len(_SERIES)],
        "linestyle": "-" if plain == name else (0, (4, 1.6)),
        "linewidth": 1.4,
        **shape,
    }


def _legend(figure: "Figure", axis: "Axes") -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5)
