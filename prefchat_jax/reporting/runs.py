"""Runs: what finished run directories say of themselves, side by side. No JAX."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefchat_jax.errors import UserError
from prefchat_jax.training.metrics_log import Metrics, read_epochs
from prefchat_jax.training.run_directory import RunDirectory

# Flags that say where a run lies, and how it was watched: not what it is.
_ELSEWHERE = {
    "output",
    "meta",
    "resume",
    "report_to",
    "compile_cache",
    "profile",
    "device",
}


class Told(NamedTuple):
    """A finished run.

    Attributes:
      name: short, and no other run's.
      config: its config.json.
      epochs: figures of each epoch.
      report: its report.md; empty if it has none.
    """

    name: str
    config: dict[str, Any]
    epochs: list[Metrics]
    report: str

    @property
    def tuned(self) -> dict[str, Any] | None:
        """How it was tuned on preferences; None for a classifier."""
        return self.config.get("preferences")

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that it was trained with."""
        return (self.tuned or self.config)["finetune"]

    @property
    def best_epoch(self) -> int:
        """From 1."""
        return (self.tuned or self.config)["best_epoch"]

    @property
    def best(self) -> Metrics:
        """The figures of the epoch that was kept."""
        return self.epochs[self.best_epoch - 1]

    @property
    def reliability(self) -> dict[str, float]:
        """How far RE-PO trusts each source; empty without it."""
        return (self.tuned or self.config).get("reliability", {})


def read_run(path: str | os.PathLike, name: str) -> Told:
    """Reads a finished run.

    Raises:
      UserError: it is no run, not finished, damaged, or has no log of training.
    """
    run = RunDirectory.open(path)
    config = run.config()
    if config.get("best_epoch") is None:
        raise UserError(f"{path} is not finished: add --resume to its `finetune`.")
    if not run.metrics.exists():
        raise UserError(
            f"{path} has no metrics.jsonl, as runs that were imported: nothing is "
            "known of its training."
        )
    report = run.path / "report.md"
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    told = Told(name, config, read_epochs(run), text)
    try:
        found = told.best["epoch"]
    except (KeyError, IndexError, TypeError):
        found = None
    if found != told.best_epoch or told.best_epoch < 1:
        raise UserError(
            f"{run.metrics} does not tell of epoch {told.best_epoch}, the best one: "
            "train again."
        )
    return told


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The ends of paths, as long as they must be to differ."""
    parts = [pathlib.Path(os.path.realpath(path)).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(pathlib.Path(*each[-length:])) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def differing(runs: Sequence[Told]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, by flag.

    A flag that is newer than a run counts as None. Also the `data` that was read, by
    the start of its hash, where files of one name differ.
    """
    names = {name: None for run in runs for name in run.flags}
    found: dict[str, list[Any]] = {}
    for name in names:
        values = [run.flags.get(name) for run in runs]
        if name not in _ELSEWHERE and any(value != values[0] for value in values):
            found[name] = values
    hashes = list(map(_data_hash, runs))
    if len(set(hashes)) > 1:
        found["SHA-256 of the data"] = [value[:12] for value in hashes]
    return found


def judged_by(run: Told) -> tuple[Any, ...]:
    """What decides which validation rows a run had."""
    flags = run.flags
    seed = flags.get("data_seed")
    split = (flags["val_split"], flags["split_mode"], flags["num_buckets"])
    drawn = (*split, flags["seed"] if seed is None else seed)
    return _data_hash(run), *([flags["val"]] if flags.get("val") else drawn)


def _data_hash(run: Told) -> str:
    return (run.tuned or {}).get("fingerprint") or run.config["data_fingerprint"]


def final_figures(runs: Sequence[Told]) -> dict[str, list[str]]:
    """What runs of one kind came to in their best epochs, as text by name.

    A figure that a run does not have is empty, and one that no run has is left out.
    """
    tuned = runs[0].tuned is not None
    best = _OF_PAIRS if tuned else _OF_ROWS
    counts = ("train_pairs", "val_pairs") if tuned else ("train_rows", "val_rows")
    table: dict[str, list[str]] = {
        "best epoch": [f"{run.best_epoch} of {len(run.epochs)}" for run in runs]
    }
    for key, name in best.items():
        table[name] = [_shown(run.best.get(key)) for run in runs]
    for key, side in zip(counts, ("training", "validation"), strict=True):
        kept = [(run.tuned or run.config).get(key) for run in runs]
        what = key.partition("_")[2]
        table[f"{side} {what}"] = [_shown(value) for value in kept]
    for key, name in _CHOSEN.items():
        table[name] = [_shown(run.config.get(key)) for run in runs]
    rates = [max(row.get("examples_per_second", 0) for row in r.epochs) for r in runs]
    table["examples a second, fastest epoch"] = [f"{rate:,.0f}" for rate in rates]
    return {name: cells for name, cells in table.items() if any(cells)}


# Metrics of the best epoch, and what they are called.
_OF_ROWS = {
    "eval_accuracy": "validation accuracy",
    "eval_loss": "validation cross-entropy, nats",
    "accuracy": "training accuracy",
    "loss": "training loss, all terms",
    "loss/ce": "training cross-entropy, nats",
    "loss/pref": "training preference loss",
    "rewards/accuracies": "margins above 0, training",
    "rewards/margins": "margin, training",
}
_OF_PAIRS = {
    "eval_reward_accuracy": "pairs that rewards order, validation",
    "eval_accuracy": "pairs that scores order, validation",
    "eval_loss": "validation preference loss",
    "eval_margin": "validation margin",
    "loss": "training loss, all terms",
    "loss/pref": "training preference loss",
    "rewards/accuracies": "pairs that rewards order, training",
}
_CHOSEN = {"temperature": "temperature", "min_confidence": "refuses below confidence"}


def _shown(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
