"""Trials: the same rows, seeds and judge for every setting that is compared.

Runs train as those of `prefchat sweep` do. They are judged at their last epoch: the
best one would have been chosen by the very rows that judge it.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import (
    crossed_bootstrap,
    expected_calibration_error,
    macro_f1,
)
from prefchat_jax.finetune import Silent
from prefchat_jax.sweep import train_runs
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.sweep import Outcome

# Flags of `finetune` that differ from their defaults.
Setting = Mapping[str, Any]
# A mean, and its 95 % interval.
Mean = tuple[float, float, float]
# Makes the labels that a run trains on, of its setting, its seed and the right ones.
Plant = Callable[[str, int, np.ndarray], np.ndarray]


class Trial(NamedTuple):
    """What the runs of one setting came to, at their last epoch.

    Attributes:
      outcomes: of each seed.
      labels: `[n]` right buckets of the rows that judge.
    """

    outcomes: list[Outcome]
    labels: np.ndarray

    @property
    def diverged(self) -> int:
        """How many runs did not come through; they count as wrong everywhere."""
        return sum(bool(outcome.diverged) for outcome in self.outcomes)

    def predicted(self) -> np.ndarray:
        """Buckets of each row under each seed, `[seeds, n]`; -1 where one diverged."""
        return np.stack([self._predicted(outcome) for outcome in self.outcomes])

    def correct(self) -> np.ndarray:
        """Whether each row is right under each seed, bool `[seeds, n]`."""
        return self.predicted() == self.labels

    def figures(self) -> dict[str, Any]:
        """Accuracy with its interval, and what else is told of every setting."""
        through = [outcome for outcome in self.outcomes if not outcome.diverged]
        last = [outcome.history[-1] for outcome in through]
        mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
        return {
            "accuracy": interval(self.correct()),
            "macro_f1": mean([self._macro_f1(o) for o in self.outcomes]),
            "calibration": mean([self._calibration(o) for o in through]),
            "cross_entropy": mean([epoch["eval_loss"] for epoch in last]),
            "margin": mean(
                [e["rewards/margins"] for e in last if "rewards/margins" in e]
            ),
            "steps_per_second": mean([o.steps_per_second for o in self.outcomes]),
            "diverged": self.diverged,
        }

    def reliability(self) -> list[list[float]]:
        """How far RE-PO came to trust each source, by seed."""
        return [
            [v for k, v in o.history[-1].items() if k.startswith("reliability/")]
            for o in self.outcomes
            if not o.diverged
        ]

    def _predicted(self, outcome: Outcome) -> np.ndarray:
        if outcome.diverged:
            return np.full(len(self.labels), -1)
        return outcome.last.predicted

    def _macro_f1(self, outcome: Outcome) -> float:
        return macro_f1(self._predicted(outcome), self.labels)

    def _calibration(self, outcome: Outcome) -> float:
        predicted, confidence = outcome.last
        return expected_calibration_error(confidence, predicted == self.labels)


def run_trials(
    data: str,
    settings: Mapping[str, Setting],
    seeds: int,
    *,
    first: int = 0,
    plant: Plant | None = None,
    progress: Progress = Silent(),
) -> dict[str, Trial]:
    """Trains every setting with every seed, on one corpus with one split.

    Args:
      data: a folder with `train.jsonl` and `val.jsonl`, or one file, a share of
        which judges.
      settings: by name.
      seeds: how many.
      first: the lowest of them.
      plant: makes the labels that a run trains on; None leaves the right ones.
      progress: is told what happens.

    Raises:
      UserError: bad data or settings.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1.")
    pairs = [(name, seed) for name in settings for seed in range(first, first + seeds)]
    common = corpus_flags(data)
    configs = [
        run_config({**common, **settings[name], "seed": seed}) for name, seed in pairs
    ]

    def planted(number: int, labels: np.ndarray) -> np.ndarray:
        name, seed = pairs[number]
        return labels if plant is None else plant(name, seed, labels)

    corpus, outcomes = train_runs(configs, planted, progress)
    found: dict[str, list[Outcome]] = {name: [] for name in settings}
    for (name, _), outcome in zip(pairs, outcomes, strict=True):
        found[name].append(outcome)
    labels = np.asarray(corpus.val.labels)
    return {name: Trial(outcomes, labels) for name, outcomes in found.items()}


def run_config(flags: Setting) -> FinetuneConfig:
    """Settings of a run that writes nothing; runs of other seeds have its split.

    Raises:
      UserError: settings that do not go together.
    """
    common: dict[str, Any] = {"output": "-", "data_seed": 0, "scorer_epochs": 0}
    return FinetuneConfig(**(common | dict(flags)))


def corpus_flags(data: str, *, judged: bool = False) -> dict[str, str]:
    """Flags of `finetune` for a folder with train and val rows, or for one file.

    Args:
      data: the folder, or the file.
      judged: whether rows of their own must judge: no file will do.

    Raises:
      UserError: a folder that lacks one of them.
    """
    folder = pathlib.Path(data)
    if not folder.is_dir() and not judged:
        return {"data": data}
    files = {"data": folder / "train.jsonl", "val": folder / "val.jsonl"}
    for path in files.values():
        if not path.exists():
            raise UserError(
                f"{folder} has no {path.name}: a data set is a folder with train.jsonl "
                f"and val.jsonl{'' if judged else ', or one file'}."
            )
    return {flag: str(path) for flag, path in files.items()}


def interval(scores: np.ndarray) -> Mean:
    """The mean of `[seeds, n]` scores, and its 95 % interval over both."""
    scores = np.asarray(scores, np.float64)
    return float(scores.mean()), *crossed_bootstrap(scores)


def difference(trial: Trial, other: Trial) -> Mean:
    """How much more accurate a setting is than another: paired by seed and row."""
    return interval(trial.correct().astype(np.float64) - other.correct())


def shown(mean: Sequence[float], *, signed: bool = False) -> str:
    """A mean with its interval, as it stands in a table."""
    sign = "+" if signed else ""
    value, low, high = (f"{number:{sign}.4f}" for number in mean)
    return f"{value} [{low}, {high}]"
