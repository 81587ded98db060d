"""What do the branches of a head bring, and what do they learn if they start dead?

    python -m experiments.heads --data intents/banking77

Every size of head trains with the same seeds, and `large` with branches of other
widths. `dead` starts as the PyTorch system before this one did: the scale of a branch
and its down-projection are both 0, so that each takes the gradient of the other away.
Here scales start at 1 (`live`); both heads start as their base. Without weight decay,
as it moves what nothing else does: `moved` is the share of the parameters of branches,
routers and scales that are not as they started. Seconds are of an epoch, the median.
Differences are to `base`, paired by seed and row.

Found (172 s on 2 busy cores, 6 epochs): a dead head is its base to the last answer.
Not one of the 72,193 to 866,632 parameters that it has more than that moves, and an
epoch of the largest takes 1.5 s where the base takes 0.2. Live ones all move, and after
so few epochs bring +1.1 (`large`) to +1.9 points (xxlarge), all intervals but that of
64 units above 0. With `--epochs 2 --seeds 1` `large` is 5.8 points ahead of the base
[3.8, 7.8], and after the 30 that are usual (`experiments.intents`) a few tenths: what
live branches bring is a faster start.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.epochs import correct, epochs, read_corpus
from experiments.page import Experiment, Result, Settings, Table
from experiments.trials import interval, shown
from prefchat_jax.models.classifier import Params
from prefchat_jax.reporting import charts
from prefchat_jax.training.config import BRANCH_WIDTHS
from prefchat_jax.training.corpus import Corpus
from prefchat_jax.training.loop import Progress

BASE = "base"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare heads, live and dead."""

    data: str
    """A folder with train.jsonl and val.jsonl, or one file, a share of which judges."""
    sizes: tuple[str, ...] = tuple(BRANCH_WIDTHS)
    """Compare these, and base [all]."""
    widths: tuple[int, ...] = (64, 2048)
    """Also `large` with a branch of these widths."""
    epochs: int = 6
    """Epochs of a run."""
    seeds: int = 3
    """Runs of each."""


class Head(NamedTuple):
    """A head, and how its branches start."""

    name: str
    flags: dict[str, Any]
    dead: bool = False


def heads(config: Config) -> list[Head]:
    """All that are compared, the base first."""
    made = [Head(BASE, {"model_size": BASE})]
    for size in config.sizes:
        if size != BASE:
            flags = {"model_size": size}
            made += [Head(size, flags), Head(f"{size}, dead", flags, dead=True)]
    for width in config.widths:
        flags = {"model_size": "large", "expansion_dim": width}
        made.append(Head(f"large, {width} wide", flags))
    return made


def deaden(params: Params) -> Params:
    """The parameters with scales 0, as down-projections already are."""
    head = params["head"]
    return params | {"head": head | {"scales": jnp.zeros_like(head["scales"])}}


def added(params: Params) -> list[np.ndarray]:
    """What a head has beside its base: branches, routers and scales."""
    rest = {name: part for name, part in params["head"].items() if name != "base"}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(rest)]


class Trained(NamedTuple):
    """A run at its end.

    Attributes:
      correct: `[n]` whether each validation row is right.
      sizes: parameters of the classifier, and of what the head has beside its base.
      moved: how many of the latter are not as they started.
      seconds: of an epoch, the median.
    """

    correct: np.ndarray
    sizes: tuple[int, int]
    moved: int
    seconds: float


def train(corpus: Corpus, flags: dict[str, Any], *, dead: bool) -> Trained:
    """One run of a head."""
    start: Callable[[Params], Params] = deaden if dead else lambda params: params
    run = epochs(corpus, flags | {"weight_decay": 0.0}, start=start)
    first = next(run)
    before = added(first.state.params)
    size = sum(leaf.size for leaf in jax.tree.leaves(first.state.params))
    times, last = [time.perf_counter()], first
    for epoch in run:
        times.append(time.perf_counter())
        last = epoch
    after = added(last.state.params)
    moved = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    return Trained(
        correct(corpus, last.recipe, last.state.params),
        (size, sum(leaf.size for leaf in before)),
        moved,
        float(np.median(np.diff(times))),
    )


def run(config: Config, progress: Progress) -> Result:
    """A row for each head.

    Raises:
      UserError: a bad file, or a size that is none.
    """
    corpus = read_corpus(config.data, progress)
    rows, base = [], None
    for head in heads(config):
        progress.stage(head.name)
        flags = head.flags | {"epochs": config.epochs}
        runs = [
            train(corpus, flags | {"seed": seed}, dead=head.dead)
            for seed in range(config.seeds)
        ]
        right = np.stack([one.correct for one in runs]).astype(np.float64)
        base = right if base is None else base
        size, own = runs[0].sizes
        rows.append(
            {
                "head": head.name,
                "parameters": size,
                "accuracy": interval(right),
                "difference": interval(right - base),
                "added": own,
                "moved": float(np.mean([one.moved for one in runs])) / max(own, 1),
                "seconds": float(np.median([one.seconds for one in runs])),
            }
        )
    return {"rows": rows}


def tables(result: Result) -> list[Table]:
    """One line for each head."""
    columns = ["head", "parameters", "accuracy", "against base", "beside the base"]
    cells = [
        [
            row["head"],
            f"{row['parameters']:,}",
            shown(row["accuracy"]),
            "" if row["head"] == BASE else shown(row["difference"], signed=True),
            f"{row['added']:,}",
            f"{row['moved']:.1%}" if row["added"] else "",
            f"{row['seconds']:.2f}",
        ]
        for row in result["rows"]
    ]
    return [Table("Heads", [*columns, "moved", "s an epoch"], cells)]


def draw(result: Result):
    """What each head adds to the base, and the seconds of an epoch."""
    rows = [row for row in result["rows"] if row["head"] != BASE]
    names = [f"{row['head']} ({row['seconds']:.1f} s)" for row in rows]
    figure = charts.new_figure(height=0.28 * len(rows) + 1.0)
    points = 100 * np.array([row["difference"] for row in rows])
    axes = figure.subplots()
    charts.leaderboard(
        axes,
        names,
        *points.T,
        xlabel="accuracy against base, points",
        baseline=0.0,
    )
    axes.set_title("(seconds of an epoch)", loc="left", fontsize=9)
    return figure


EXPERIMENT = Experiment("heads", __doc__, Config, run, tables, draw)

if __name__ == "__main__":
    EXPERIMENT.main()
