"""How well does it learn from 5, 10 or 30 examples a class, beside a linear SVM?

    python -m experiments.few_shot --data intents/{banking77,clinc150,hwu64}

Every seed draws its examples anew, those of a larger draw include those of a smaller,
and all systems learn from the same ones: cross-entropy alone, with the preference loss
that `finetune` adds by default, with IPO at the same weight, and the linear SVM of
`experiments.intents`. All of val judges; no setting was chosen on it. Intervals of
accuracy are over draws and rows, those of macro-F1 over draws. Needs the extra
`experiments` (scikit-learn).

Found on BANKING77, in 538 s on 2 busy cores: macro-F1 of cross-entropy 0.548, 0.708
and 0.855 with 5, 10 and 30 examples a class; of the SVM 0.590, 0.708 and 0.828, which
is 4.2 points [1.8, 6.6] more, as much, and 2.6 [1.5, 3.7] less. On HWU64, in 605 s:
0.563, 0.676 and 0.809, and the SVM 0.596, 0.695 and 0.815, 3.3 [0.1, 6.6], 1.9 [0.2,
3.5] and 0.5 [-0.5, 1.5] points more. Neither preference loss helps on either: they
change it by at most 0.6 points, and every interval holds 0.
"""

import dataclasses
import pathlib

import numpy as np

from experiments.draws import cells, columns, run_draws
from experiments.intents import svm_predictions
from experiments.page import Experiment, Result, Settings, Table
from experiments.trials import Setting
from prefchat_jax.errors import UserError
from prefchat_jax.reporting import charts
from prefchat_jax.training.loop import Progress

CE = "cross-entropy"
LOSSES: dict[str, Setting] = {
    CE: {"pref_weight": 0.0},
    "+ preference (sigmoid)": {},
    "+ preference (ipo)": {"pref_objective": "ipo"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Learn from few examples a class."""

    data: tuple[str, ...]
    """Folders with train.jsonl and val.jsonl."""
    shots: tuple[int, ...] = (5, 10, 30)
    """Examples of each class."""
    epochs: int | None = None
    """Epochs [as finetune]."""
    seeds: int = 5
    """Draws, and runs of each setting."""


def run(config: Config, progress: Progress) -> Result:
    """One row for each data set, number of examples and system.

    Raises:
      UserError: a bad file, or a class with too few rows.
    """
    if min(config.shots) < 1:
        raise UserError(f"--shots {min(config.shots)}: must be at least 1.")
    settings = {name: {"epochs": config.epochs, **LOSSES[name]} for name in LOSSES}
    rows = []
    for data in config.data:
        for shots in config.shots:
            scores = run_draws(
                data,
                lambda counts, seed, shots=shots: np.full(len(counts), shots),
                settings,
                config.seeds,
                others={"linear SVM": svm_predictions},
                progress=progress,
            )
            where = {"data": pathlib.Path(data).name, "shots": shots}
            rows += [
                {**where, "system": name, **found.figures(scores[CE])}
                for name, found in scores.items()
            ]
    return {"rows": rows}


def tables(result: Result) -> list[Table]:
    """What each system comes to, by data set and number of examples."""
    found: dict[tuple[str, int], list[list[str]]] = {}
    for row in result["rows"]:
        found.setdefault((row["data"], row["shots"]), []).append(cells(row, CE))
    return [
        Table(f"{data}, {shots} examples a class, val", columns(CE), rows)
        for (data, shots), rows in found.items()
    ]


def draw(result: Result):
    """Macro-F1 by number of examples."""
    sets = list(dict.fromkeys(row["data"] for row in result["rows"]))
    names = dict.fromkeys(row["system"] for row in result["rows"])
    figure = charts.new_figure(columns=len(sets))
    grid = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axes, data in zip(grid, sets, strict=True):
        curves = {}
        for name in names:
            points = [
                (row["shots"], *row["macro_f1"])
                for row in result["rows"]
                if row["data"] == data and row["system"] == name
            ]
            curves[name] = tuple(np.array(points).T)
        charts.lines(axes, curves, "examples a class", "macro-F1")
        axes.set_xticks(sorted({row["shots"] for row in result["rows"]}))
        axes.set_title(data, loc="left")
    return figure


EXPERIMENT = Experiment("few_shot", __doc__, Config, run, tables, draw)

if __name__ == "__main__":
    EXPERIMENT.main()
