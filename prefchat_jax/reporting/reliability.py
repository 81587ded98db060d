"""Reliability diagram: what a run's confidence promises, and what it keeps."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import Bins, reliability_bins
from prefchat_jax.evaluation.run import Judgement
from prefchat_jax.reporting import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AFTER, _BEFORE, _REPLIES = map(charts.look, range(3))


def check_plot(path: str | os.PathLike) -> None:
    """Fails before the work if matplotlib is missing or cannot write such a file.

    Raises:
      UserError: one of both.
    """
    known = charts.new_figure().canvas.get_supported_filetypes()
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    if ending not in known:
        raise UserError(
            f"--plot {os.fspath(path)}: must end in one of {', '.join(sorted(known))}."
        )


def plot_reliability(path: str | os.PathLike, judged: Judgement, title: str) -> None:
    """Draws accuracy by confidence, and rows by confidence beneath it.

    One column for the buckets, before and after temperature scaling, and one
    for the replies, where the rows have them.

    Args:
      path: the picture; its ending names the format.
      judged: from `judge_run`, with in-scope rows.
      title: above the picture.

    Raises:
      UserError: matplotlib is missing, or there is nothing to draw.
    """
    columns = _columns(judged)
    if not columns:
        raise UserError("--plot: no in-scope row has a label or a reply to draw.")
    figure = charts.new_figure(len(columns), 2)
    grid = figure.subplots(
        2, len(columns), sharex=True, squeeze=False, height_ratios=(3, 1)
    )
    for (upper, lower), (name, curves) in zip(grid.T, columns.items(), strict=True):
        _draw_accuracy(upper, name, curves)
        _draw_counts(lower, curves)
    figure.suptitle(charts.plain(title), fontsize=11)
    charts.save(figure, path, dpi=160)


Curve = tuple[str, dict[str, Any], Bins]  # Its label, its look, its points.


def _columns(judged: Judgement) -> dict[str, list[Curve]]:
    columns: dict[str, list[Curve]] = {}
    buckets, replies = judged.buckets, judged.replies
    if buckets and buckets.examples:
        scaled = buckets.temperature
        columns["buckets"] = [
            (name, look, reliability_bins(buckets.confidence(t), buckets.is_right))
            for name, look, t in (
                ("before scaling", _BEFORE, 1.0),
                (f"at temperature {scaled:.2f}", _AFTER, scaled),
            )
        ]
    if replies and replies.examples:
        confidence = np.clip(replies.confidence, 0, 1)
        bins = reliability_bins(confidence, replies.ranks_first)
        columns["replies"] = [("best reply", _REPLIES, bins)]
    return columns


def _draw_accuracy(axes: "Axes", name: str, curves: list[Curve]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for label, look, bins in curves:
        held = bins.counts > 0
        points = bins.confidence[held], bins.accuracy[held]
        name_and_error = f"{label}: ECE {bins.error:.3f}"
        axes.plot(*points, **look, linewidth=1.2, markersize=4, label=name_and_error)
        # Large where there are many rows: the small ones are mostly chance.
        size = 14 + 110 * np.sqrt(bins.counts[held] / bins.counts.max())
        style = {"color": look["color"], "marker": look["marker"]}
        axes.scatter(*points, size, **style, edgecolor="white", zorder=3, clip_on=False)
    charts.label_axes(axes, "", "accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(name, loc="left")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.85)


def _draw_counts(axes: "Axes", curves: list[Curve]) -> None:
    for number, (_, look, bins) in enumerate(curves):
        width = (bins.edges[1] - bins.edges[0]) * 0.9 / len(curves)
        left = bins.edges[:-1] + (bins.edges[1] - bins.edges[0]) * 0.05
        place, color = left + number * width, look["color"]
        axes.bar(place, bins.counts, width, align="edge", color=color)
    # A few rows at low confidence matter as much as many at high confidence.
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    charts.label_axes(axes, "confidence", "rows (log scale)")
    axes.set_ylim(0, None)
