"""Report: `report.md` of a run, what a stranger should know of it.

No time and no machine stands in it: the same run has the same report.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefchat_jax.evaluation.branches import (
    Ablation,
    BranchFigures,
    measure_branches,
    weights_by_class,
)
from prefchat_jax.training.checkpoints import load_model, load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus
from prefchat_jax.training.loop import Fit, Metrics
from prefchat_jax.training.parts import count_parts
from prefchat_jax.training.run_directory import RunDirectory

_CLASSES = 10  # Buckets of the table by class.


def write_report(
    run: RunDirectory,
    flags: FinetuneConfig,
    fit: Fit,
    corpus: Corpus,
    refused: tuple[float, int] | None,
) -> None:
    """Measures the best checkpoint of a finished run and writes `report.md`.

    Args:
      run: the run directory.
      flags: that it was trained with.
      fit: how its training went.
      corpus: what it was trained on.
      refused: the share of answered validation rows that chat refuses, and how
        many of them were asked.
    """
    config = run.config()
    model, params = load_model(run)
    scorer = load_scorer(run)
    parts = count_parts(
        params,
        None if scorer is None else scorer[1],
        head_only=flags.head_only,
        scorer_trains=corpus.scored is not None,
    )
    rows = [[part.name, f"{part.trained:,}", f"{part.frozen:,}"] for part in parts]
    sections = [
        _head(run, config),
        _data(config, corpus),
        _validation(config, fit, refused),
        "## Parameters\n\n" + markdown(["part", "trained", "frozen"], rows),
    ]
    if model.branch_widths and len(corpus.val.labels):
        figures = measure_branches(model, params, corpus.val)
        labels = np.asarray(corpus.val.labels)
        sections.append(
            branch_section(figures, model.branch_widths, labels, run.bucket_names())
        )
    run.write_text("report.md", "\n\n".join(sections) + "\n")


def write_tuned_report(
    run: RunDirectory, source: RunDirectory, history: Sequence[Metrics], before: float
) -> None:
    """Writes `report.md` of a run whose scorer was tuned on preference pairs.

    Args:
      run: the tuned run.
      source: the run that it was made of, whose report follows.
      history: figures of each epoch.
      before: accuracy on the validation pairs before the first epoch.
    """
    told = run.config()["preferences"]
    best = history[told["best_epoch"] - 1]
    rows = [
        ["training pairs", f"{told['train_pairs']:,}"],
        ["validation pairs", f"{told['val_pairs']:,}"],
        ["best epoch", f"{told['best_epoch']} of {len(history)}"],
    ]
    if "eval_accuracy" in best:
        rows.append(["chosen reply preferred", f"{best['eval_accuracy']:.4f}"])
        rewards = f"{best['eval_reward_accuracy']:.4f}"
        rows.append(["the same by what tuning added", rewards])
        rows.append(["chosen reply preferred, before", f"{before:.4f}"])
    for name, value in told["reliability"].items():
        rows.append([f"reliability of {name}", f"{value:.3f}"])
    rows.append(["SHA-256 of the pairs", told["fingerprint"]])
    sections = [
        f"# {run.path.name}\n\nThe run {source.path.name}, whose response scorer was "
        "then tuned on preference pairs by prefchat-jax "
        f"{run.config()['version']}:\n\n```\n{_command(told['finetune'])}\n```",
        "## Preferences\n\n" + markdown(["", ""], rows),
    ]
    if (source.path / "report.md").exists():
        text = (source.path / "report.md").read_text(encoding="utf-8").rstrip()
        sections.append(re.sub(r"^#", "##", text, flags=re.MULTILINE))
    run.write_text("report.md", "\n\n".join(sections) + "\n")


def branch_section(
    figures: BranchFigures,
    widths: Sequence[int],
    labels: np.ndarray,
    names: Sequence[str],
) -> str:
    """What the branches do, in all and to the buckets that they treat unlike others.

    Args:
      figures: of `m` rows and `n` branches.
      widths: `n` hidden units.
      labels: `[m]` right buckets of the rows.
      names: of all buckets.
    """
    mean = figures.weights.mean(axis=0)
    none = [f"{figures.accuracy:.4f}", "", "", f"{figures.loss:.4f}"]
    rows = [["none", "", "", "", *none]]
    rows += [
        [
            f"branch {number}",
            f"{width:,}",
            f"{figures.scales[number - 1]:+.3f}",
            f"{mean[number - 1]:+.3f}",
            *_ablation(figures.without[number - 1]),
        ]
        for number, width in enumerate(widths, start=1)
    ]
    if len(widths) > 1:
        rows.append(["all branches", "", "", "", *_ablation(figures.base)])
    columns = [
        "switched off",
        "units",
        "scale of its stage",
        "mean weight",
        "accuracy",
        "change",
        "other bucket",
        "loss",
    ]
    text = (
        f"## What a branch does\n\nOn the {len(labels):,} validation rows, as trained "
        "and with a branch switched off. Its mean weight is what its output is "
        "multiplied by, router and scales together; the change of accuracy has its "
        "95 % paired interval; `other bucket` is the share of rows that are then "
        "taken for another one.\n\n" + markdown(columns, rows)
    )
    if len(widths) == 1:
        return (
            f"{text}\n\nA single branch has no router: it weighs the same everywhere."
        )
    shown = weights_by_class(figures.weights, labels)[:_CLASSES]
    rows = [
        [names[one.bucket], f"{one.rows:,}", *(f"{w:+.3f}" for w in one.weights)]
        for one in shown
    ]
    rows.append(["all", f"{len(labels):,}", *(f"{w:+.3f}" for w in mean)])
    columns = ["bucket", "rows", *(f"branch {i + 1}" for i in range(len(widths)))]
    return (
        f"{text}\n\nMean weights where they differ most from those over all rows:\n\n"
        + markdown(columns, rows)
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    line = lambda cells: "| " + " | ".join(map(_cell, cells)) + " |"
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join([line(columns), rule, *map(line, rows)])


def _ablation(found: Ablation) -> list[str]:
    change, low, high = found.change
    return [
        f"{found.accuracy:.4f}",
        f"{change:+.4f} [{low:+.4f}, {high:+.4f}]",
        f"{found.moved:.1%}",
        f"{found.loss:.4f}",
    ]


def _head(run: RunDirectory, config: dict[str, Any]) -> str:
    command = _command(config["finetune"])
    return (
        f"# {run.path.name}\n\nA bucket classifier and what it replies with, trained "
        f"by prefchat-jax {config['version']}:\n\n```\n{command}\n```"
    )


def _command(flags: dict[str, Any]) -> str:
    """The command, with the flags that differ from their defaults."""
    words = ["prefchat", "finetune"]
    for field in dataclasses.fields(FinetuneConfig):
        value = flags.get(field.name, field.default)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no_'}{field.name}")
        else:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def _data(config: dict[str, Any], corpus: Corpus) -> str:
    buckets = corpus.labelled.buckets
    examples = (*corpus.train_rows, *corpus.val_rows)
    replies = {row.response for row in examples if row.response}
    rows = [
        ["training rows", f"{config['train_rows']:,}"],
        ["validation rows", f"{config['val_rows']:,}"],
        [
            "buckets" + ", by clustering" * (not buckets.given),
            f"{len(buckets.labels):,}",
        ],
        ["different replies", f"{len(replies):,}"],
        ["rows with earlier turns", f"{config['history']:.1%}"],
        ["SHA-256 of the files", config["data_fingerprint"]],
    ]
    return "## Data\n\n" + markdown(["", ""], rows)


def _validation(
    config: dict[str, Any], fit: Fit, refused: tuple[float, int] | None
) -> str:
    best = fit.history[fit.best_epoch - 1]
    rows = [["best epoch", f"{fit.best_epoch} of {len(fit.history)}"]]
    if "eval_accuracy" in best:
        rows.append(["bucket accuracy", f"{best['eval_accuracy']:.4f}"])
        rows.append(["cross-entropy", f"{best['eval_loss']:.4f}"])
    if "temperature" in config:
        rows.append(["temperature", f"{config['temperature']:.3f}"])
    if refused is not None:
        share, asked = refused
        shown = f"{share:.1%} of {asked:,}"
        rows.append(["answered rows that chat refuses", shown])
    for name, value in config.get("weights", {}).items():
        rows.append([f"weight of {name} in the ranking", f"{value:.3f}"])
    for name, value in config.get("reliability", {}).items():
        rows.append([f"reliability of the labels of {name}", f"{value:.3f}"])
    return "## Validation\n\n" + markdown(["", ""], rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
