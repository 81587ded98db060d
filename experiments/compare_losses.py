"""Which preference loss helps the classifier, beside cross-entropy alone?

    python -m experiments.compare_losses --data intents/banking77 intents/hwu64
    python -m experiments.compare_losses --data corpus.jsonl --groups --noises re_po

Every objective, at its default beta and margin and at the weight that `finetune` has,
trains on each data set with the same seeds, split and order of rows as cross-entropy
alone. `--groups` and `--noises` add every group and noise model with the first
objective. Intervals are of 95 %, over seeds and rows; differences are paired.

Found with 8 seeds (60 minutes on 2 cores that five other programs shared; a fourth set
was cut off, and the figures of these three kept): on clean labels no preference loss is
more accurate than cross-entropy alone, nor less. On BANKING77, CLINC150 and HWU64
differences are between -0.13 and +0.17 points, and all 39 intervals hold 0. What
differs is confidence: IPO, whose margins are held at 5, has a calibration error of 0.09
to 0.14 where cross-entropy has 0.02, and RPO's square 0.03. Without `--weights` the
reference is uniform, and `dpo` is `sigmoid`.
"""

import dataclasses
import pathlib

import numpy as np

from experiments.page import Experiment, Result, Settings, Table
from experiments.trials import (
    Setting,
    Trial,
    difference,
    run_trials,
    shown,
)
from prefchat_jax.errors import UserError
from prefchat_jax.reporting import charts
from prefchat_jax.training.catalogue import GROUPS, NOISE, OBJECTIVES
from prefchat_jax.training.loop import Progress

CE_ALONE = "cross-entropy alone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare preference losses on one or more data sets."""

    data: tuple[str, ...]
    """Folders with train.jsonl and val.jsonl, or files, a share of which judges."""
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Compare these [all]."""
    groups: tuple[str, ...] = ()
    """Also these groups of negatives, with the first objective."""
    noises: tuple[str, ...] = ()
    """Also these noise models, with the first objective."""
    weights: str | None = None
    """A run to start from, all of which trains: the reference policy."""
    pref_weight: float = 0.2
    """Weight of the preference loss."""
    epochs: int | None = None
    """Epochs [as finetune]."""
    seeds: int = 8
    """Runs of each."""

    def __post_init__(self):
        for flag, names in (("groups", GROUPS), ("noises", NOISE)):
            for name in getattr(self, flag):
                if name not in names:
                    raise UserError(f"--{flag} {name}: use some of {' '.join(names)}.")


def settings(config: Config) -> dict[str, Setting]:
    """Flags of `finetune` by name; the first is the baseline."""
    first, on = config.objectives[0], {"pref_weight": config.pref_weight}
    named: dict[str, dict] = {CE_ALONE: {"pref_weight": 0.0}}
    named |= {name: on | {"pref_objective": name} for name in config.objectives}
    for flag, names in (
        ("pref_group_estimator", config.groups),
        ("pref_noise", config.noises),
    ):
        for name in names:
            named[f"{first}, {name}"] = on | {"pref_objective": first, flag: name}
    common = {
        "epochs": config.epochs,
        "weights": config.weights,
        "train_all": config.weights is not None,
    }
    return {name: common | flags for name, flags in named.items()}


def run(config: Config, progress: Progress) -> Result:
    """One row for each data set and setting.

    Raises:
      UserError: a bad file, or settings that do not go together.
    """
    rows = []
    for data in config.data:
        trials = run_trials(data, settings(config), config.seeds, progress=progress)
        rows += _rows(pathlib.Path(data).stem, trials)
    return {"rows": rows}


def _rows(data: str, trials: dict[str, Trial]) -> list[dict]:
    return [
        {
            "data": data,
            "objective": name,
            **trial.figures(),
            "difference": difference(trial, trials[CE_ALONE]),
        }
        for name, trial in trials.items()
    ]


def tables(result: Result) -> list[Table]:
    """A leaderboard for each data set, the most accurate first."""
    columns = ["objective", "accuracy", "against CE alone", "macro-F1"]
    columns += ["calibration error", "val CE", "margin", "steps/s", "diverged"]
    made = []
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["data"] == data]
        rows.sort(key=lambda row: -row["accuracy"][0])
        made.append(Table(f"{data}, val", columns, [_cells(row) for row in rows]))
    return made


def _cells(row: dict) -> list[str]:
    alone = row["objective"] == CE_ALONE
    return [
        row["objective"],
        shown(row["accuracy"]),
        "" if alone else shown(row["difference"], signed=True),
        f"{row['macro_f1']:.4f}",
        f"{row['calibration']:.4f}",
        f"{row['cross_entropy']:.4f}",
        "" if alone else f"{row['margin']:.2f}",
        f"{row['steps_per_second']:.0f}",
        str(row["diverged"]),
    ]


def draw(result: Result):
    """What each objective adds to cross-entropy alone, in points."""
    sets = list(dict.fromkeys(row["data"] for row in result["rows"]))
    shown = [row for row in result["rows"] if row["objective"] != CE_ALONE]
    height = 0.25 * len(shown) / len(sets) + 0.9
    figure = charts.new_figure(columns=len(sets), height=height)
    grid = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, data in zip(grid, sets, strict=True):
        rows = [row for row in shown if row["data"] == data]
        rows.sort(key=lambda row: -row["difference"][0])
        points = 100 * np.array([row["difference"] for row in rows])
        charts.leaderboard(
            axes,
            [row["objective"] for row in rows],
            *points.T,
            xlabel="accuracy against CE alone, points",
            baseline=0.0,
        )
        axes.set_title(data, loc="left")
    return figure


EXPERIMENT = Experiment("compare_losses", __doc__, Config, run, tables, draw)

if __name__ == "__main__":
    EXPERIMENT.main()
