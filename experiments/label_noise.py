"""Which loss learns from wrong labels, and does RE-PO find out whom to trust?

    python -m experiments.label_noise --data intents/banking77

A share of the training labels is made wrong: `symmetric`, to any other class, or
`class-dependent`, each class to the one after it, as annotators confuse intents.
The judge's labels are right. cDPO and rDPO are told the planted rate, RE-PO starts
from 0.1 and learns it, for each source of labels. In the second part rows come from
three annotators by turns, whose labels are right at the planted rates, and RE-PO is
asked how far it trusts each. No setting was chosen on the judge: q is the authors',
the weight of the preference loss is 1.

Found: not measured yet.
"""

import dataclasses
import json
import pathlib
import tempfile

import numpy as np

from experiments.page import Experiment, Result, Settings, Table
from experiments.trials import (
    Setting,
    Trial,
    corpus_flags,
    difference,
    run_trials,
    shown,
)
from prefchat_jax.datasets.records import read_records
from prefchat_jax.evaluation import charts
from prefchat_jax.training.loop import Progress

CE = "cross-entropy"
KINDS = ("symmetric", "class-dependent")
ANNOTATORS = {"careful": 0.95, "busy": 0.8, "careless": 0.6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare robust losses where training labels are wrong."""

    data: str
    """A folder with train.jsonl and val.jsonl, whose labels are right."""
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of wrong labels."""
    epochs: int | None = None
    """Epochs [as finetune]."""
    seeds: int = 3
    """Runs of each."""


def losses(rate: float) -> dict[str, Setting]:
    """Flags of `finetune` by name, for a planted rate of wrong labels."""
    told = min(max(rate, 1e-6), 0.49)
    alone = {"pref_weight": 0.0, "label_smoothing": 0.0}
    both = {"pref_weight": 1.0, "label_smoothing": 0.0}
    return {
        CE: alone,
        "label smoothing 0.1": alone | {"label_smoothing": 0.1},
        "GCE, q 0.7": alone | {"gce_q": 0.7},
        "sigmoid": both,
        "confidence weights": both | {"pref_noise": "confidence"},
        "cDPO": both | {"pref_noise": "smoothing", "pref_noise_rate": told},
        "rDPO": both | {"pref_noise": "robust", "pref_noise_rate": told},
        "RE-PO": both | {"pref_noise": "re_po"},
    }


def flip(
    labels: np.ndarray, rate: float | np.ndarray, kind: str, seed: int
) -> np.ndarray:
    """Labels of which a share is wrong.

    Args:
      labels: `[n]` right classes, 0 to C - 1.
      rate: share of wrong ones, one or `[n]`.
      kind: of `KINDS`.
      seed: of which and to what.
    """
    rng = np.random.default_rng([seed, 1])
    classes = int(labels.max()) + 1
    steps = rng.integers(1, classes, len(labels)) if kind == "symmetric" else 1
    wrong = rng.random(len(labels)) < rate
    return np.where(wrong, (labels + steps) % classes, labels).astype(labels.dtype)


def run(config: Config, progress: Progress) -> Result:
    """Accuracy of each loss at each rate, and whom RE-PO trusts.

    Raises:
      UserError: a bad file.
    """
    planted = {
        f"{kind}, {rate:g}, {name}": (kind, rate, name, dict(flags))
        for kind in KINDS
        for rate in config.rates
        for name, flags in losses(rate).items()
        if rate or kind == KINDS[0]  # Without noise there is one kind.
    }
    settings = {
        key: {"epochs": config.epochs, **flags} for key, (*_, flags) in planted.items()
    }

    def plant(key: str, seed: int, labels: np.ndarray) -> np.ndarray:
        kind, rate, *_ = planted[key]
        return flip(labels, rate, kind, seed)

    trials = run_trials(
        config.data, settings, config.seeds, plant=plant, progress=progress
    )
    rows = [
        {
            "noise": kind,
            "rate": rate,
            "loss": name,
            **trials[key].figures(),
            "difference": difference(trials[key], trials[f"{kind}, {rate:g}, {CE}"]),
        }
        for key, (kind, rate, name, _) in planted.items()
    ]
    return {"rows": rows, "sources": _sources(config, progress)}


def _sources(config: Config, progress: Progress) -> list[dict]:
    """How far RE-PO trusts each of three annotators, by seed."""
    flags = corpus_flags(config.data)
    rows = read_records([flags["data"]]).examples
    names = [list(ANNOTATORS)[i % len(ANNOTATORS)] for i in range(len(rows))]
    told = [
        {"user": row.question, "label": row.label, "annotator": name}
        for row, name in zip(rows, names, strict=True)
    ]
    wrong = 1 - np.array([ANNOTATORS[name] for name in names])
    settings = {
        name: {"epochs": config.epochs, **losses(0.0)[name]} for name in (CE, "RE-PO")
    }

    def plant(name: str, seed: int, labels: np.ndarray) -> np.ndarray:
        return flip(labels, wrong, "symmetric", seed)

    with tempfile.TemporaryDirectory() as folder:
        train, val = (
            pathlib.Path(folder, f"{part}.jsonl") for part in ("train", "val")
        )
        train.write_text("".join(json.dumps(row) + "\n" for row in told))
        val.write_bytes(pathlib.Path(flags["val"]).read_bytes())
        trials = run_trials(
            folder, settings, config.seeds, plant=plant, progress=progress
        )
    found = np.array(trials["RE-PO"].reliability())  # By name, in order.
    return [
        {
            "source": name,
            "planted": ANNOTATORS[name],
            "learned": [float(value) for value in found[:, place]],
        }
        for place, name in enumerate(sorted(ANNOTATORS))
    ] + [
        {"source": f"accuracy, {name}", "accuracy": trial.figures()["accuracy"]}
        for name, trial in trials.items()
    ]
