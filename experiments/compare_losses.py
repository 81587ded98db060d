"""Does a preference loss help the classifier, and which one?

    python -m experiments.compare_losses --data corpus.jsonl --seeds 3

Trains every objective with every group estimator, and cross-entropy alone, and
prints validation accuracy, macro-F1 and cross-entropy: mean and standard
deviation over seeds, and the difference to cross-entropy alone with its 95 %
bootstrap interval over rows. All runs of one seed share their split.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from prefchat_jax.cli.console import table
from prefchat_jax.evaluation import macro_f1, paired_bootstrap
from prefchat_jax.finetune import finetune
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig, ModelSize
from prefchat_jax.training.objective import GROUPS, LINKS
from prefchat_jax.training.steps import predict

CE_ALONE = "cross-entropy alone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to compare, and on what."""

    data: str
    seeds: int = 3
    epochs: int | None = None
    val_split: float = 0.1
    pref_weight: float = 0.2
    model_size: ModelSize = "large"


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """Settings of `finetune` by name; the first is the baseline."""
    named: dict[str, dict[str, Any]] = {CE_ALONE: {"pref_weight": 0.0}}
    for objective in LINKS:
        for estimator in GROUPS:
            named[f"{objective} / {estimator}"] = {
                "pref_objective": objective,
                "pref_group_estimator": estimator,
                "pref_weight": config.pref_weight,
            }
    return named


def run(config: Config) -> list[dict]:
    """Trains every variant with every seed; one row of figures for each variant."""
    correct: dict[str, list[np.ndarray]] = {}
    rows = []
    for name, changes in variants(config).items():
        figures = []
        for seed in range(config.seeds):
            with tempfile.TemporaryDirectory() as folder:
                settings = FinetuneConfig(
                    data=config.data,
                    output=folder,
                    seed=seed,
                    epochs=config.epochs,
                    val_split=config.val_split,
                    model_size=config.model_size,
                )
                result = finetune(dataclasses.replace(settings, **changes))
                model, params = load_model(result.run)
            val = result.corpus.val
            predicted = predict(model, params, val.ids, val.weights).argmax(axis=1)
            correct.setdefault(name, []).append(predicted == val.labels)
            best = result.fit.history[result.fit.best_epoch - 1]
            figures.append(
                (np.mean(predicted == val.labels), macro_f1(predicted, val.labels))
                + (best["eval_loss"], result.seconds)
            )
        mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0)
        # Each seed has its own validation rows: rows of all seeds are paired.
        ours, theirs = (np.concatenate(correct[n]) for n in (name, CE_ALONE))
        low, high = paired_bootstrap(ours, theirs)
        rows.append(
            {
                "variant": name,
                "accuracy": mean[0],
                "accuracy_std": spread[0],
                "difference": float(np.mean(ours) - np.mean(theirs)),
                "difference_low": low,
                "difference_high": high,
                "macro_f1": mean[1],
                "cross_entropy": mean[2],
                "cross_entropy_std": spread[2],
                "seconds": mean[3],
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--val_split", type=float, default=0.1)
    parser.add_argument("--json", action="store_true", help="print JSON lines instead")
    args = parser.parse_args(argv)
    config = Config(
        data=args.data, seeds=args.seeds, epochs=args.epochs, val_split=args.val_split
    )
    rows = run(config)
    if args.json:
        for row in rows:
            print(json.dumps({"config": dataclasses.asdict(config), **row}))
        return
    cells = [
        [
            row["variant"],
            f"{row['accuracy']:.4f} +- {row['accuracy_std']:.4f}",
            f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, "
            f"{row['difference_high']:+.4f}]",
            f"{row['macro_f1']:.4f}",
            f"{row['cross_entropy']:.4f} +- {row['cross_entropy_std']:.4f}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    columns = ["objective / group", "accuracy", "against CE alone, 95 %"]
    columns += ["macro-F1", "val CE", "seconds"]
    title = f"{config.data}: {config.seeds} seeds"
    Console().print(table(title, columns, cells))


if __name__ == "__main__":
    main()
