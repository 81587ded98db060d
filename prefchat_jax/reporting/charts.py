"""Charts: the one look of all pictures. They read in grey, and to the colour-blind.

Whatever is told apart by colour also is by marker and line. Nothing in a file depends
on the time: the same figures give the same bytes.
"""

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    # x, mean, and the ends of an interval, each `[n]`; None where there is none.
    Curve = tuple[ArrayLike, ArrayLike, ArrayLike | None, ArrayLike | None]

PANEL = (4.8, 3.2)  # Inches of one panel.
# Okabe and Ito's, without yellow, which is too pale for lines:
# https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
_LEGEND_INSIDE = 5  # Longer legends stand beside the panel.
_MARKED = 24  # Points of a curve that have a marker.


def new_figure(columns: int = 1, rows: int = 1, *, height: float = PANEL[1]) -> Any:
    """An empty figure with room for `rows` times `columns` panels.

    `figure.subplots(rows, columns)` makes the panels.

    Args:
      columns: panels side by side.
      rows: panels above each other.
      height: inches of one of them.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "charts need matplotlib: pip install 'prefchat-jax[report]'."
        ) from error
    return Figure(figsize=(PANEL[0] * columns, height * rows), layout="constrained")


def look(number: int) -> dict[str, Any]:
    """Colour, marker and line of the curve with this number: 56 differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
    }


def lines(
    axes: "Axes",
    curves: "Mapping[str, Curve]",
    xlabel: str,
    ylabel: str,
    looks: Sequence[int] | None = None,
) -> None:
    """Curves with bands, and a legend where there are several.

    Args:
      axes: the panel.
      curves: by name, `(x, mean, low, high)`: `[n]` each, the ends of the interval or
        None and None. Points that are not finite leave a gap.
      xlabel: what x is, with its unit.
      ylabel: what the mean is, with its unit.
      looks: the number of each curve's look, where panels must agree on who is who
        and not all have all [in order].
    """
    handles = []
    numbers = range(len(curves)) if looks is None else looks
    for number, curve in zip(numbers, curves.values(), strict=True):
        (x, mean, low, high), style = curve, look(number)
        every = max(1, -(-np.size(x) // _MARKED))
        line = axes.plot(
            x, mean, **style, markevery=every, markersize=4.5, linewidth=1.4
        )
        handles += line
        if low is not None and high is not None:
            fill, edge = ((style["color"], alpha) for alpha in (0.12, 0.5))
            band = {"facecolor": fill, "edgecolor": edge, "linewidth": 0.6}
            axes.fill_between(x, low, high, linestyle=style["linestyle"], **band)
    label_axes(axes, xlabel, ylabel)
    legend(axes, handles, list(curves))


def powers(
    axes: "Axes",
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
) -> None:
    """Points on logarithmic axes, and the power of x that fits each curve best.

    Args:
      axes: the panel.
      curves: by name, `(x, y)`: `[n]` each, above 0; the legend adds the exponent.
      xlabel: what x is, with its unit.
      ylabel: what y is, with its unit.
    """
    axes.set(xscale="log", yscale="log")
    handles, names = [], []
    for number, (name, (x, y)) in enumerate(curves.items()):
        style = look(number) | {"markersize": 4.5, "linewidth": 1.4}
        power = exponent(x, y)
        handles += axes.plot(x, y, **style | {"linestyle": "none"})
        level = np.exp(np.mean(np.log(y) - power * np.log(x)))
        fitted = level * np.asarray(x, np.float64) ** power
        axes.plot(x, fitted, **style | {"marker": "none"})
        names.append(f"{name}: exponent {power:.2f}")
    label_axes(axes, xlabel, ylabel)
    axes.legend(handles, names, fontsize=8, framealpha=0.85)


def exponent(x: ArrayLike, y: ArrayLike) -> float:
    """The slope of the line that fits the logarithms best; 1 is proportional."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def leaderboard(
    axes: "Axes",
    names: Sequence[str],
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    xlabel: str,
    baseline: float | None = None,
) -> None:
    """Dots with intervals, one line for each of `n` names, the first on top.

    Args:
      axes: the panel; its figure wants about 0.25 inches for each name.
      names: `n` of them.
      mean: `[n]`.
      low: `[n]` lower ends of the intervals; NaN where there is none.
      high: `[n]` upper ends.
      xlabel: what the figure is, with its unit.
      baseline: where a dashed line stands.
    """
    mean, low, high = (np.asarray(part, np.float64) for part in (mean, low, high))
    places = np.arange(len(names))
    if baseline is not None:
        axes.axvline(baseline, color="0.4", linestyle="--", linewidth=1)
    axes.hlines(places, low, high, color=COLORS[0], linewidth=1.6)
    axes.plot(mean, places, "o", color=COLORS[0], markersize=6)
    axes.set_yticks(places, [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    label_axes(axes, xlabel, "")


def label_axes(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Names both axes, draws a pale grid, and leaves out the box."""
    axes.set(xlabel=plain(xlabel), ylabel=plain(ylabel))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def end_shares(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Lets an axis of shares reach neither below 0 nor above 1; call it last.

    Margins and intervals go further; what lies on an end is drawn whole.
    """
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    axes.set(**{f"{which}lim": (max(low, 0.0), min(high, 1.0))})
    for line in axes.lines:
        line.set_clip_on(False)


def legend(axes: "Axes", handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names curves, where there are several: inside, or below the panels if many.

    Below them names stand once, also where other panels show the same ones.
    """
    if len(names) < 2:
        return
    shown, longest = [plain(name) for name in names], max(map(len, names))
    if len(names) <= _LEGEND_INSIDE and longest <= 32:
        axes.legend(handles, shown, fontsize=8, framealpha=0.85)
        return
    figure: Any = axes.figure
    for other in figure.legends:
        if [text.get_text() for text in other.get_texts()] == shown:
            return
    width, height = figure.get_size_inches()
    columns = max(1, min(len(names), int(width / (0.6 + 0.075 * longest))))
    figure.set_figheight(height + 0.18 * -(-len(names) // columns))
    figure.legend(
        handles,
        shown,
        fontsize=8,
        frameon=False,
        ncols=columns,
        loc="outside lower left",
    )


def plain(text: str) -> str:
    """The text as it is: without what matplotlib would read as mathematics."""
    line = " ".join(text.split()).replace("$", r"\$")
    return f"\u2009{line}" if line.startswith("_") else line  # Else no legend has it.


def save(figure: "Figure", path: str | os.PathLike, *, dpi: int = 110) -> None:
    """Writes a picture, of the format that the ending names, all or nothing."""
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(ending)
    with _same_bytes(), write_aside(path) as aside:
        figure.savefig(aside, format=ending, dpi=dpi, metadata=undated)


def svg(figure: "Figure") -> str:
    """The figure as an `<svg>` element for a page, with its text as text."""
    file = io.StringIO()
    hidden = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _same_bytes():
        figure.savefig(file, format="svg", metadata=hidden)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Ids of groups are the same in each figure of a page, and nothing refers to them;
    # those that something refers to are made this figure's own.
    own = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}", text).strip()


@contextlib.contextmanager
def _same_bytes() -> Iterator[None]:
    import matplotlib

    settings = {"svg.hashsalt": "prefchat", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Text of a script that the font lacks is drawn as boxes: nothing to tell.
        warnings.filterwarnings("ignore", message="Glyph")
        yield
