"""Sweep page: HTML of sweeps, leaderboard and figures by setting. No JAX."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefchat_jax.evaluation.metrics import mean_interval
from prefchat_jax.pages import picture, safe, table
from prefchat_jax.reporting import charts
from prefchat_jax.reporting.leaderboard import SHOWN, Setting, settings, varying
from prefchat_jax.training.sweep_table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RANKED = 40  # Settings that the picture of the leaderboard shows,
_LINES = 4  # that a panel by one setting tells apart,
_PANELS = 12  # and such panels.
_TICKS = 8  # Values of an axis that are all named.
_FAR = 8  # From this ratio of its ends on an axis is logarithmic.
# Names, also where they look like numbers.
_NAMES = {"data", "data_manifest", "val", "weights", "fingerprint", "sweep"}


def sweep_sections(rows: Sequence[Row]) -> Iterable[str]:
    """What a page says of the runs of sweeps.

    Raises:
      UserError: matplotlib is missing.
    """
    names = varying(rows)
    ranked = settings(rows, names)
    yield "<h2>Leaderboard</h2>"
    yield (
        f"<p>{len(rows):,} runs of {len(ranked):,} settings, the most accurate first: "
        "means over seeds, +- half of their 95 % intervals by Student's t. Those say "
        "what other seeds would come to; the chance of the validation rows is not in "
        "them.</p>"
    )
    yield _table(ranked, names)
    through = [one for one in ranked if one.figures("eval_accuracy")]
    if through:
        yield _leaderboard(through[:_RANKED], names, len(through))
    for name in (name for name in names if name not in _NAMES):
        yield from _by_axis(through, names, name)
    yield from _diverged(ranked, names)


def interval_text(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds; the mean alone of one, nothing of none."""
    if not values:
        return ""
    mean, low, _ = mean_interval(values)
    digits = 4 if abs(mean) < 10 else 2
    text = f"{mean:.{digits}f}"
    return text if math.isnan(low) else f"{text} +- {mean - low:.{digits}f}"


def _table(ranked: Sequence[Setting], names: Sequence[str]) -> str:
    rows = (
        [
            *map(safe, one.values),
            *(interval_text(one.figures(figure)) for figure in SHOWN),
            f"{len(one.rows):,}",
            f"{len(one.diverged):,}",
        ]
        for one in ranked
    )
    columns = [*names, *SHOWN.values(), "runs", "diverged"]
    return table(columns, rows, figures=range(len(names), len(columns)))


def _leaderboard(ranked: Sequence[Setting], names: Sequence[str], total: int) -> str:
    figure = charts.new_figure(2, height=0.9 + 0.24 * len(ranked))
    found = [mean_interval(one.figures("eval_accuracy")) for one in ranked]
    labels = [_label(one.values, names) for one in ranked]
    mean, low, high = np.array(found).T
    axes = figure.subplots()
    charts.leaderboard(axes, labels, mean, low, high, "validation accuracy")
    charts.end_shares(axes, "x")
    which = f"The best {len(ranked)} of {total}" if len(ranked) < total else "All"
    return picture(
        charts.svg(figure),
        f"{which} settings: mean validation accuracy and its 95 % interval over seeds.",
    )


def _by_axis(
    ranked: Sequence[Setting], names: Sequence[str], name: str
) -> Iterable[str]:
    """Accuracy by one numeric setting, a line for each setting of the others.

    Many lines have a panel for each value of the first one that varies besides.
    """
    place = names.index(name)
    others = [*names[:place], *names[place + 1 :]]
    lines: dict[tuple[str, ...], list[tuple[float, Setting]]] = {}
    for one in ranked:  # The best first: so are lines and panels.
        x = _number(one.values[place])
        if x is not None:
            rest = (*one.values[:place], *one.values[place + 1 :])
            lines.setdefault(rest, []).append((x, one))
    lines = {rest: points for rest, points in lines.items() if len(points) > 1}
    if not lines:
        return
    split = int(len(lines) > _LINES)
    panels: dict[str, dict[str, charts.Curve]] = {}
    for rest, points in lines.items():
        panel = panels.setdefault(_label(rest[:split], others[:split]), {})
        if len(panel) < _LINES:
            panel[_label(rest[split:], others[split:])] = _curve(points)
    shown = dict(list(panels.items())[:_PANELS])
    curves = sum(map(len, shown.values()))
    left_out = f" {curves} of {len(lines)} lines, the best." * (curves < len(lines))
    yield f"<h3>Accuracy by {safe(name)}</h3>"
    yield picture(
        charts.svg(_drawn(shown, name)),
        f"Mean validation accuracy by {name}, 95 % intervals over seeds.{left_out}",
    )


def _curve(points: "list[tuple[float, Setting]]") -> "charts.Curve":
    """Mean accuracy and its interval, from left to right."""
    ordered = sorted(points, key=lambda point: point[0])
    found = [mean_interval(one.figures("eval_accuracy")) for _, one in ordered]
    mean, low, high = np.array(found).T
    return [x for x, _ in ordered], mean, low, high


def _drawn(panels: "dict[str, dict[str, charts.Curve]]", name: str) -> Any:
    """The figure; a line of one name looks the same in all panels."""
    columns = min(len(panels), 3)
    figure = charts.new_figure(columns, -(-len(panels) // columns))
    shape = (-(-len(panels) // columns), columns)
    grid = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    order = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        looks = [order.index(line) for line in curves]
        charts.lines(axes, curves, name, "validation accuracy", looks)
        _scale(axes, [x for x, *_ in curves.values()])
        if len(panels) > 1:
            axes.set_title(charts.plain(title), loc="left", fontsize=10)
    for axes in grid[: len(panels)]:
        charts.end_shares(axes, "y")
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _scale(axes: "Axes", places: Sequence[Any]) -> None:
    """Makes an axis logarithmic where it goes far, and names its values if few."""
    xs = np.unique(np.concatenate(places))
    if xs[0] > 0 and xs[-1] / xs[0] >= _FAR:
        axes.set_xscale("log")
        axes.minorticks_off()
        if len(xs) <= _TICKS:
            axes.set_xticks(xs, [f"{x:g}" for x in xs])


def _diverged(ranked: Sequence[Setting], names: Sequence[str]) -> Iterable[str]:
    broken = [(one, row) for one in ranked for row in one.diverged]
    if not broken:
        return
    yield "<h2>Runs that diverged</h2>"
    rows = (
        [*map(safe, one.values), safe(row["seed"]), safe(row["diverged"])]
        for one, row in broken
    )
    yield table([*names, "seed", "where"], rows, figures=())


def _label(values: Sequence[str], names: Sequence[str]) -> str:
    """A setting in few words: numbers need their names, words mostly do not."""
    pairs = zip(values, names, strict=True)
    parts = [
        value
        if _number(value) is None and value not in ("", "True", "False")
        else f"{name} {value or 'none'}"
        for value, name in pairs
    ]
    return ", ".join(parts) or "the one setting"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
