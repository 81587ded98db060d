"""Run page: HTML of finished runs, their curves and figures side by side. No JAX."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.pages import folded, from_markdown, picture, safe, table
from prefchat_jax.reporting import charts
from prefchat_jax.reporting.runs import Told, differing, final_figures, judged_by


class _Panel(NamedTuple):
    """A chart by epoch: what it is called, its axis, and its metrics by name."""

    title: str
    ylabel: str
    metrics: dict[str, str]


_OF_ROWS = (
    _Panel(
        "cross-entropy",
        "mean, nats",
        {"training": "loss/ce", "validation": "eval_loss"},
    ),
    _Panel(
        "accuracy",
        "share of rows",
        {"training": "accuracy", "validation": "eval_accuracy"},
    ),
    _Panel("loss, all terms", "mean", {"training": "loss"}),
    _Panel("preference loss", "mean", {"training": "loss/pref"}),
    _Panel("margin of the gold bucket", "mean", {"training": "rewards/margins"}),
    _Panel("margins above 0", "share", {"training": "rewards/accuracies"}),
)
_OF_PAIRS = (
    _Panel(
        "preference loss",
        "mean",
        {"training": "loss/pref", "validation": "eval_loss"},
    ),
    _Panel(
        "pairs that rewards order",
        "share of pairs",
        {"training": "rewards/accuracies", "validation": "eval_reward_accuracy"},
    ),
)


def run_sections(runs: Sequence[Told]) -> Iterable[str]:
    """What a page says of runs: classifiers, then those tuned on preferences.

    Raises:
      UserError: matplotlib is missing.
    """
    classifiers = [run for run in runs if run.tuned is None]
    tuned = [run for run in runs if run.tuned is not None]
    for members, title, panels in (
        (classifiers, "Training", _OF_ROWS),
        (tuned, "Tuning on preferences", _OF_PAIRS),
    ):
        if members:
            yield f"<h2>{title}</h2>"
            yield _figures(members)
            yield from _differences(members)
            yield _curves(members, panels)
    yield from _calibration(runs)
    yield from _trust(runs)
    reports = [run for run in runs if run.report]
    if reports:
        yield "<h2>What each run says of itself</h2>"
    for run in reports:
        text = from_markdown(run.report)
        yield folded(run.name, text, is_open=len(runs) == 1)


def _figures(runs: Sequence[Told]) -> str:
    found = final_figures(runs).items()
    rows = ([safe(name), *map(safe, cells)] for name, cells in found)
    return table(["", *_names(runs)], rows, figures=range(1, len(runs) + 1))


def _differences(runs: Sequence[Told]) -> Iterable[str]:
    if len(runs) < 2:
        return
    yield "<h3>Settings that differ</h3>"
    found = differing(runs)
    if not found:
        yield "<p>None: the same flags, and the same data.</p>"
        return
    shown = lambda value: "by default" if value is None else value
    rows = ([safe(n), *(safe(shown(v)) for v in values)] for n, values in found.items())
    yield table(["", *_names(runs)], rows, figures=())
    if len({judged_by(run) for run in runs}) > 1:
        yield (
            "<p>Not all of them were judged by the same validation rows: their "
            "figures do not compare to the last digit.</p>"
        )


def _curves(runs: Sequence[Told], panels: Sequence[_Panel]) -> str:
    """One run has training and validation in one panel; several have one for each."""
    several = len(runs) > 1
    charted = list(_by_run(runs, panels) if several else _by_side(runs[0], panels))
    lines = -(-len(charted) // 2)
    figure = charts.new_figure(2, lines)
    grid = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes, chart in zip(grid, charted, strict=False):
        charts.lines(axes, chart.curves, "epoch", chart.ylabel, chart.looks)
        if chart.ylabel.startswith("share"):
            charts.end_shares(axes, "y")
        axes.set_title(chart.title, loc="left", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(charted) :]:
        axes.remove()
    kept = "The best epochs were" if several else f"Epoch {runs[0].best_epoch} was"
    return picture(
        charts.svg(figure),
        "By epoch. Training figures are means over it, with dropout and smoothed "
        f"labels; validation figures are those at its end. {kept} kept.",
    )


class _Chart(NamedTuple):
    """What a panel holds, and which look each curve has."""

    title: str
    ylabel: str
    curves: "dict[str, charts.Curve]"
    looks: list[int]


def _by_side(run: Told, panels: Sequence[_Panel]) -> Iterable[_Chart]:
    for panel in panels:
        curves = {
            side: _curve(run, metric)
            for side, metric in panel.metrics.items()
            if metric in run.best
        }
        if curves:
            title = panel.title if len(curves) > 1 else f"{[*curves][0]} {panel.title}"
            yield _Chart(title, panel.ylabel, curves, list(range(len(curves))))


def _by_run(runs: Sequence[Told], panels: Sequence[_Panel]) -> Iterable[_Chart]:
    for panel in panels:
        for side, metric in panel.metrics.items():
            have = [i for i, run in enumerate(runs) if metric in run.best]
            curves = {runs[i].name: _curve(runs[i], metric) for i in have}
            if curves:
                yield _Chart(f"{side} {panel.title}", panel.ylabel, curves, have)


def _curve(run: Told, metric: str) -> "charts.Curve":
    points = [(row["epoch"], row.get(metric)) for row in run.epochs]
    x, mean = np.array(points, np.float64).T  # What is missing is NaN: a gap.
    return x, mean, None, None


def _calibration(runs: Sequence[Told]) -> Iterable[str]:
    """What confidence promised on the validation rows, and what it kept."""
    kind = [run for run in runs if run.tuned is None]
    held = [run for run in kind if run.config.get("bins")]
    if not held:
        return
    yield "<h2>Calibration</h2>"
    figure = charts.new_figure(height=4.2)
    axes = figure.subplots()
    curves = {}
    for run in held:
        rows, confidence, accuracy = np.array(run.config["bins"], np.float64).T
        error = np.average(np.abs(accuracy - confidence), weights=rows)
        name = f"{run.name}: ECE {error:.3f}"
        curves[name] = (confidence, accuracy, None, None)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    looks = [kind.index(run) for run in held]
    charts.lines(axes, curves, "confidence", "share of rows that are right", looks)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    charts.end_shares(axes, "y")
    yield picture(
        charts.svg(figure),
        "Accuracy of the buckets by confidence, in bins that hold validation rows. On "
        "the dashed line confidence keeps what it promises. ECE is the mean gap to it, "
        "by rows; the temperature was fitted to the same rows.",
    )
    if len(held) == 1:
        yield f"<p>{safe(next(iter(curves)))}</p>"


def _trust(runs: Sequence[Told]) -> Iterable[str]:
    """How far RE-PO came to trust each source."""
    trusting = [run for run in runs if run.reliability]
    if not trusting:
        return
    yield "<h2>Reliability of the sources</h2>"
    sources = {name: None for run in trusting for name in run.reliability}
    shown = lambda run, source: (
        f"{run.reliability[source]:.3f}" if source in run.reliability else ""
    )
    rows = (
        [safe(source), *(shown(run, source) for run in trusting)] for source in sources
    )
    columns = ["source", *_names(trusting)]
    yield table(columns, rows, figures=range(1, len(columns)))
    figure = charts.new_figure()
    curves = {}
    for run in trusting:
        for number, source in enumerate(run.reliability):
            name = source if len(trusting) == 1 else f"{run.name}: {source}"
            curves[name] = _curve(run, f"reliability/{number}")
    axes = figure.subplots()
    charts.lines(axes, curves, "epoch", "share of labels that are right")
    charts.end_shares(axes, "y")
    yield picture(charts.svg(figure), "What RE-PO thinks of each source, by epoch.")


def _names(runs: Sequence[Told]) -> list[str]:
    return [run.name for run in runs]
