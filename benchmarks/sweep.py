"""Seconds of one run: of a sweep, of a warm process, and of a command of its own.

    python -m benchmarks.sweep --data banking77/train.jsonl --epochs 3

The same seeds and values of `pref_beta` in three ways, turn by turn: `prefchat sweep`
over all of them, `prefchat finetune` for some, and `finetune` in a process that has
compiled. Losses on the validation rows are compared first: they are equal to the last
digit where one run trains at a time. Commands are whole processes, start included.
"""

import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import PREFCHAT
from benchmarks.timing import DEMO, command, flags, show, start
from prefchat_jax.finetune import finetune
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.sweep_table import read_table


class Run(NamedTuple):
    """One of the runs."""

    seed: int
    pref_beta: float


class Done(NamedTuple):
    """Seconds of some runs, and the validation loss of each."""

    seconds: float
    losses: dict[Run, float]


def of_a_sweep(base: dict[str, Any], folder: str, runs: Sequence[Run]) -> Done:
    """All runs by one command; they are every beta with every seed."""
    betas = ",".join(str(beta) for beta in sorted({run.pref_beta for run in runs}))
    seeds = len({run.seed for run in runs})
    own = ["--seeds", str(seeds), "--grid", f"pref_beta={betas}"]
    seconds = _command("sweep", base, f"{folder}/sweep", own)
    losses = {
        Run(int(row["seed"]), float(row["pref_beta"])): float(row["eval_loss"])
        for row in read_table(pathlib.Path(folder, "sweep", "results.csv"))
    }
    return Done(seconds, losses)


def by_itself(base: dict[str, Any], folder: str, run: Run) -> Done:
    """One run by a command of its own."""
    output = f"{folder}/command-{run.seed}-{run.pref_beta}"
    own = [f"--{name}={value}" for name, value in run._asdict().items()]
    seconds = _command("finetune", base, output, [*own, "--data_seed", "0"])
    lines = pathlib.Path(output, "metrics.jsonl").read_text().splitlines()
    history = [row for row in map(json.loads, lines) if "eval_loss" in row]
    best = json.loads(pathlib.Path(output, "config.json").read_text())["best_epoch"]
    (loss,) = (row["eval_loss"] for row in history if row["epoch"] == best)
    return Done(seconds, {run: loss})


def in_a_warm_process(base: dict[str, Any], folder: str, run: Run) -> Done:
    """One run in this process."""
    output = f"{folder}/warm-{time.monotonic_ns()}"
    config = FinetuneConfig(**base, **run._asdict(), data_seed=0, output=output)
    begun = time.perf_counter()
    fit = finetune(config).fit
    seconds = time.perf_counter() - begun
    (loss,) = (
        row["eval_loss"] for row in fit.history if row["epoch"] == fit.best_epoch
    )
    return Done(seconds, {run: loss})


def _command(name: str, base: dict[str, Any], output: str, own: Sequence[str]) -> float:
    argv = [f"--{key}={value}" for key, value in base.items()]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", PREFCHAT, name, *argv, "--output", output, *own],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def measure(
    base: dict[str, Any], folder: str, runs: Sequence[Run], repeats: int
) -> list[dict]:
    """A row for each way.

    Raises:
      AssertionError: two ways differ.
    """
    swept = of_a_sweep(base, folder, runs)
    cold = in_a_warm_process(base, folder, runs[0])  # It is not yet.
    alone: dict[str, list[Done]] = {"a command": [], "a warm process": []}
    for run in runs[:repeats]:
        alone["a command"].append(by_itself(base, folder, run))
        alone["a warm process"].append(in_a_warm_process(base, folder, run))
    for done in (cold, *itertools.chain(*alone.values())):
        for run, loss in done.losses.items():
            np.testing.assert_allclose(loss, swept.losses[run], rtol=1e-4)
    seconds = {"one of a sweep": swept.seconds / len(runs)}
    for name, times in alone.items():
        seconds[name] = statistics.median(done.seconds for done in times)
    counts = {"one of a sweep": len(runs)}
    return [
        {
            "way": name,
            "runs": counts.get(name, repeats),
            "seconds": value,
            "ratio": value / seconds["one of a sweep"],
        }
        for name, value in seconds.items()
    ]


COLUMNS = {
    "way": ("way", ""),
    "runs": ("runs", ""),
    "seconds of one": ("seconds", ".2f"),
    "to the first": ("ratio", ".2f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=None, quick="two runs of one epoch")
    parser.add_argument("--data", default=DEMO, help="rows; those of the demo")
    parser.add_argument("--val", help="rows to validate on; a share of --data")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3, help="runs alone")
    args, limits = start(parser, argv)
    if args.quick:
        args.epochs, args.seeds, args.betas, args.repeats = 1, 2, [1.0], 1
    base = {"data": args.data, "epochs": args.epochs, "device": args.device}
    base |= {"val": args.val} if args.val else {}
    runs = [Run(seed, beta) for beta in args.betas for seed in range(args.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(base, folder, runs, args.repeats)
    show("seconds of a run", COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
