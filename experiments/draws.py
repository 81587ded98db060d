"""Draws: small corpora out of a large one, judged by all rows that judge the large one.

A seed is one draw of rows and one run on them, the same rows for every setting. So an
interval is also of what another draw would come to.
"""

import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.trials import (
    Mean,
    Setting,
    corpus_flags,
    interval,
    run_trials,
    shown,
)
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import macro_f1, mean_interval
from prefchat_jax.training.loop import Progress

# Rows to draw of each class `[C]`, of how many there are and a seed.
Sizes = Callable[[np.ndarray, int], np.ndarray]
# Buckets or labels `[n]` that a system predicts, and the right ones.
Answers = tuple[np.ndarray, np.ndarray]
# Another system, which learns from a folder with train.jsonl and val.jsonl.
System = Callable[[pathlib.Path], Answers]


class Scores(NamedTuple):
    """How a system did, draw by draw.

    Attributes:
      correct: bool `[draws, n]` whether each row is right.
      macro_f1: `[draws]`.
    """

    correct: np.ndarray
    macro_f1: np.ndarray

    @classmethod
    def of(cls, answers: Sequence[Answers]) -> "Scores":
        """Of the answers of each draw."""
        return cls(
            np.stack([predicted == right for predicted, right in answers]),
            np.array([macro_f1(predicted, right) for predicted, right in answers]),
        )

    def figures(self, other: "Scores") -> dict[str, Mean]:
        """Means with their 95 % intervals, and paired differences to another system.

        Those of accuracy are over draws and rows, those of macro-F1 over draws.
        """
        return {
            "accuracy": interval(self.correct),
            "macro_f1": mean_interval(self.macro_f1),
            "accuracy_difference": interval(self.correct - 1.0 * other.correct),
            "macro_f1_difference": mean_interval(self.macro_f1 - other.macro_f1),
        }


def run_draws(
    data: str,
    sizes: Sizes,
    settings: Mapping[str, Setting],
    seeds: int,
    *,
    others: Mapping[str, System] | None = None,
    progress: Progress,
) -> dict[str, Scores]:
    """Trains every setting on each draw.

    Args:
      data: a folder with `train.jsonl` and `val.jsonl` of `user` and `label`.
      sizes: how many rows to draw of each class.
      settings: by name.
      seeds: how many draws, with seeds from 0.
      others: other systems, by name.
      progress: is told what happens.

    Raises:
      UserError: bad data or settings, or a class with too few rows.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1.")
    answers: dict[str, list[Answers]] = {}
    for seed, folder in _drawn(data, sizes, seeds):
        trials = run_trials(str(folder), settings, 1, first=seed, progress=progress)
        for name, trial in trials.items():
            answers.setdefault(name, []).append((trial.predicted()[0], trial.labels))
        for name, system in (others or {}).items():
            answers.setdefault(name, []).append(system(folder))
    return {name: Scores.of(found) for name, found in answers.items()}


def choose(classes: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Random rows of each class; those of a larger draw include those of a smaller.

    Args:
      classes: `[n]` of the rows, 0 to C - 1.
      sizes: `[C]` rows to draw, at most as many as there are.
      seed: of the draw.

    Returns:
      Numbers of rows, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    first = np.searchsorted(classes[order], np.arange(len(sizes)))
    ranks = np.arange(len(order)) - first[classes[order]]
    return np.sort(order[ranks < sizes[classes[order]]])


def _drawn(data: str, sizes: Sizes, seeds: int) -> Iterator[tuple[int, pathlib.Path]]:
    """Each seed, and a folder with the rows of its draw."""
    flags = corpus_flags(data)
    if "val" not in flags:
        raise UserError(f"{data} is no folder with train.jsonl and val.jsonl.")
    rows = read_records([flags["data"]]).examples
    names, classes = np.unique([str(row.label) for row in rows], return_inverse=True)
    counts = np.bincount(classes)
    for seed in range(seeds):
        wanted = sizes(counts, seed)
        if np.any(short := wanted > counts):
            place = int(np.argmax(short))
            raise UserError(
                f"{flags['data']}: class {names[place]} has {counts[place]} rows, and "
                f"{wanted[place]} are to be drawn: ask for fewer."
            )
        lines = [
            json.dumps({"user": rows[i].question, "label": rows[i].label}) + "\n"
            for i in choose(classes, wanted, seed)
        ]
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
            val = pathlib.Path(flags["val"]).read_bytes()
            (folder / "val.jsonl").write_bytes(val)
            yield seed, folder


def columns(baseline: str) -> list[str]:
    """What `cells` are of."""
    return [
        "system",
        "macro-F1",
        f"against {baseline}",
        "accuracy",
        f"against {baseline}",
    ]


def cells(row: Mapping[str, Any], baseline: str) -> list[str]:
    """A row of a table, of `system` and the figures of its scores."""
    found = [row["system"]]
    for name in ("macro_f1", "accuracy"):
        found.append(shown(row[name]))
        gap = shown(row[f"{name}_difference"], signed=True)
        found.append("" if row["system"] == baseline else gap)
    return found
