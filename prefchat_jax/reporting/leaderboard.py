"""Leaderboard: the runs of sweeps by setting, and what each came to. No JAX."""

from collections.abc import Sequence
from typing import NamedTuple

from prefchat_jax.training.sweep_config import RUN_FIELDS
from prefchat_jax.training.sweep_table import Row

# The figures of a setting, and what they are called.
SHOWN = {
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro-F1",
    "eval_loss": "val loss",
    "rewards/margins": "margin",
}
# What may tell settings apart: all but the seed, and, where those are the same, the
# data, and the sweep that a row was read from.
_TELLING = (*(name for name in RUN_FIELDS if name != "seed"), "fingerprint", "sweep")
# What another setting may bring with it.
_BROUGHT = {"label_smoothing", "pref_beta", "pref_margin", "warmup_steps"}


class Setting(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      values: of what varies between settings.
      rows: of its runs.
    """

    values: tuple[str, ...]
    rows: list[Row]

    @property
    def diverged(self) -> list[Row]:
        """The runs that broke down."""
        return [row for row in self.rows if row["diverged"]]

    def figures(self, name: str) -> list[float]:
        """A figure of each run that came through and has it."""
        through = (row for row in self.rows if not row["diverged"])
        return [float(row[name]) for row in through if row[name]]


def varying(rows: Sequence[Row]) -> list[str]:
    """The settings that tell rows apart, without those that follow from others.

    An objective brings its own `pref_beta`, and a number of epochs its own
    `warmup_steps`: only where they vary by themselves, too, do they count.
    """
    names: list[str] = []
    told: list[tuple[str, ...]] = [()] * len(rows)
    chosen_first = lambda name: (name not in RUN_FIELDS, name in _BROUGHT)
    for name in sorted(_TELLING, key=chosen_first):
        finer: list[tuple[str, ...]] = [
            (*before, row.get(name, "")) for before, row in zip(told, rows, strict=True)
        ]
        if len(set(finer)) > len(set(told)):
            names.append(name)
            told = finer
    return sorted(names, key=_TELLING.index)


def settings(rows: Sequence[Row], names: Sequence[str]) -> list[Setting]:
    """The settings that rows are of, the one with the best mean accuracy first.

    Args:
      rows: of runs, as in results.csv.
      names: what varies.
    """
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(n, "") for n in names), []).append(row)
    made = [Setting(values, members) for values, members in found.items()]
    return sorted(made, key=_mean_accuracy, reverse=True)


def _mean_accuracy(setting: Setting) -> float:
    """Below all others where no run came through."""
    values = setting.figures("eval_accuracy")
    return sum(values) / len(values) if values else -1.0
