"""Run page: HTML of finished runs, their curves and figures side by side. No JAX."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.evaluation import charts
from prefchat_jax.evaluation.runs import Told, differing, final_figures
from prefchat_jax.pages import folded, from_markdown, picture, safe, table


class _Panel(NamedTuple):
    """A chart by epoch: what it is called, its axis, and its metrics by name."""

    title: str
    ylabel: str
    metrics: dict[str, str]


_OF_ROWS = (
    _Panel(
        "loss",
        "loss, nats",
        {"training": "loss", "validation": "eval_loss"},
    ),
    _Panel(
        "accuracy",
        "share of rows that are right",
        {"training": "accuracy", "validation": "eval_accuracy"},
    ),
    _Panel("preference loss", "mean loss", {"training": "loss/pref"}),
    _Panel("preference margin", "gold over negatives", {"training": "rewards/margins"}),
)
_OF_PAIRS = (
    _Panel(
        "preference loss",
        "mean loss",
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
    rows = ([safe(name), *map(safe, cells)] for name, cells in _best(runs))
    return table(["", *_names(runs)], rows, figures=range(1, len(runs) + 1))


def _best(runs: Sequence[Told]) -> Iterable[tuple[str, list[str]]]:
    return final_figures(runs).items()


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


def _curves(runs: Sequence[Told], panels: Sequence[_Panel]) -> str:
    """One run has training and validation in one panel; several have one for each."""
    split = len(runs) > 1
    charted = []
    for panel in panels:
        kept = {
            side: metric
            for side, metric in panel.metrics.items()
            if any(metric in run.best for run in runs)
        }
        if split:
            charted += [
                (f"{side} {panel.title}", panel.ylabel, _by_run(runs, metric))
                for side, metric in kept.items()
            ]
        elif kept:
            curves = {side: _curve(runs[0], metric) for side, metric in kept.items()}
            charted.append((panel.title, panel.ylabel, curves))
    columns = 2
    lines = -(-len(charted) // columns)
    figure = charts.new_figure(columns, lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, ylabel, curves) in zip(grid, charted, strict=False):
        charts.lines(axes, curves, "epoch", ylabel)
        axes.set_title(title, loc="left", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(charted) :]:
        axes.remove()
    return picture(
        charts.svg(figure),
        "Figures of each epoch. Training figures are means over the epoch, with dropout"
        " and all terms of the loss; validation figures are those at its end.",
    )


def _by_run(runs: Sequence[Told], metric: str) -> "dict[str, charts.Curve]":
    return {run.name: _curve(run, metric) for run in runs if metric in run.best}


def _curve(run: Told, metric: str) -> "charts.Curve":
    x = [row["epoch"] for row in run.epochs]
    return x, [row.get(metric, np.nan) for row in run.epochs], None, None


def _calibration(runs: Sequence[Told]) -> Iterable[str]:
    """What confidence promised on the validation rows, and what it kept."""
    held = [run for run in runs if run.tuned is None and run.config.get("bins")]
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
    charts.lines(axes, curves, "confidence", "share of rows that are right")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
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
    charts.lines(figure.subplots(), curves, "epoch", "share of labels that are right")
    yield picture(charts.svg(figure), "What RE-PO thinks of each source, by epoch.")


def _names(runs: Sequence[Told]) -> list[str]:
    return [run.name for run in runs]
