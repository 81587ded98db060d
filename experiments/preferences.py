"""What do preference pairs teach the response scorer, and what do wrong ones?

    python -m experiments.preferences --data hh_helpful.jsonl
    python -m experiments.preferences --data hh_helpful.jsonl --objectives dpo \
        --flips 0 0.1 0.2 0.3 0.4

Five folds by prompt. The first stage trains a scorer on the other folds' prompts and
chosen replies, as `prefchat finetune --data` does; each variant then tunes it on their
pairs, as `prefchat finetune --preferences` does, and is judged on the fold. `rewards`
is how often what tuning added to the scores is larger for the chosen reply, the
implicit reward whose accuracy TRL prints, with its 95 % interval, on all pairs and on
pairs matched in length; `length corr.` the rank correlation of its margins with the
differences in length; `scores` how often the chosen reply scores higher, first stage
and all; and `first of 100` how often it is the first among the replies of others. With
`--flips` a share of the labels of every training fold is wrong, before the first stage:
half of the pairs are judged by `careful`, who is always right, half by `careless`, who
is wrong twice as often as the share says; RE-PO tells how far it trusts each.

On a busy machine of 2 cores eight minutes for three objectives on 1,848 pairs. Found:

  HH-RLHF helpful     rewards               on matched pairs      length  score  first
  first stage                                                             0.551  0.261
  dpo                 0.600 [0.576, 0.622]  0.579 [0.553, 0.604]  +0.22   0.568  0.260
  simpo               0.599 [0.576, 0.620]  0.579 [0.552, 0.603]  +0.20   0.562  0.264
  chosen alone        0.536 [0.514, 0.560]  0.555 [0.531, 0.580]  -0.09   0.549  0.269
  dpo, weight 10      0.606 [0.581, 0.627]  0.587 [0.560, 0.612]  +0.19   0.564  0.263
  dpo, matched        0.554 [0.532, 0.577]  0.553 [0.526, 0.579]  +0.01   0.558  0.260
  dpo, projected      0.586 [0.561, 0.608]  0.584 [0.558, 0.608]  +0.06   0.562  0.260
  HH-RLHF harmless
  first stage                                                             0.476  0.158
  dpo                 0.589 [0.567, 0.611]  0.560 [0.536, 0.584]  -0.28   0.496  0.125
  ipo                 0.585 [0.564, 0.609]  0.560 [0.535, 0.585]  -0.24   0.485  0.142
  simpo               0.587 [0.564, 0.608]  0.552 [0.529, 0.578]  -0.29   0.493  0.131
  chosen alone        0.513 [0.490, 0.536]  0.508 [0.484, 0.533]  -0.06   0.476  0.160
  dpo, matched        0.560 [0.536, 0.581]  0.550 [0.526, 0.576]  -0.09   0.485  0.142
  dpo, projected      0.573 [0.552, 0.595]  0.557 [0.533, 0.582]  -0.12   0.488  0.133
  QA-Feedback
  first stage                                                             0.485  0.408
  dpo                 0.526 [0.508, 0.545]  0.521 [0.502, 0.541]  +0.07   0.487  0.383
  chosen alone        0.496 [0.476, 0.514]  0.497 [0.477, 0.516]  -0.01   0.483  0.410
  dpo, matched        0.523 [0.504, 0.542]  0.519 [0.500, 0.539]  -0.00   0.492  0.395

The longer reply is chosen in 0.596, 0.439 and 0.512. So the pairs teach what the chosen
replies alone do not, also where length tells nothing, on all three sets. Of the other
objectives IPO (0.604), EXO (0.602), hinge (0.600), ORPO (0.595) and RPO (0.580) do as
well on the helpful pairs; RePO (0.533) learns nothing, since the first stage, which has
no reference there, already leads by its margin on the pairs that train. Part of what is
learned is length, up on the helpful and down on the harmless pairs; both
controls take that out. The scores follow less: what the first stage knows of topics
outweighs what replies are worth, and should, for a chat that must find a reply first.
A larger `--scorer_lr` moves that balance. What trains, and how fast, was chosen on
folds of the helpful pairs.

With wrong labels on the helpful pairs the rewards order (95 % intervals: +- 0.023):

  wrong  DPO    cDPO   rDPO   RE-PO  careful and careless as RE-PO sees them, and are
  0      0.600  0.600  0.601  0.603  0.76, 0.76  1, 1
  0.2    0.572  0.572  0.583  0.563  0.58, 0.58  1, 0.6
  0.4    0.546  0.534  0.538  0.533  0.50, 0.50  1, 0.2

No model of the noise helps, and nothing tells the annotators apart: rewards that are
right in 0.6 of the clean pairs have no grounds to. Where preferences can be learned
(`tests/test_pairs.py`), RE-PO does.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.errors import one_line_errors
from prefchat_jax.cli.console import table
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.datasets.records import read_pairs
from prefchat_jax.datasets.split import group_numbers
from prefchat_jax.evaluation.preferences import measure_preferences
from prefchat_jax.evaluation.retrieval import blocks, one_of_100
from prefchat_jax.finetune import Silent
from prefchat_jax.inference import Inference
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig, init_scorer, with_values
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.pairs import score_pairs
from prefchat_jax.training.pairs_run import load_pairs, pair_rows, tune_scorer
from prefchat_jax.training.scorer_run import ScorerStart, scorer_rows, train_scorer

FOLDS = 5
START = "first stage"
OBJECTIVES = ("dpo", "ipo", "simpo", "orpo", "hinge", "repo_relu", "rpo", "exo")
NOISE = {"DPO": "none", "cDPO": "smoothing", "rDPO": "robust", "RE-PO": "re_po"}


class Fold(NamedTuple):
    """One fold: what trains, what judges, and the scorer of the first stage."""

    train: list[PreferencePair]
    test: list[PreferencePair]
    numbers: np.ndarray
    featurizer: Featurizer
    shape: ScorerConfig
    params: Params


def variants(objectives: Sequence[str], flip: float | None) -> dict[str, dict]:
    """Settings of a tuning by name."""
    if flip is not None:
        return {
            name: {"pref_objective": "dpo", "pref_noise": noise}
            | ({"pref_noise_rate": flip} if noise != "none" and flip else {})
            for name, noise in NOISE.items()
        }
    named: dict[str, dict] = {name: {"pref_objective": name} for name in objectives}
    first = {"pref_objective": objectives[0]}
    named["chosen replies alone"] = first | {"pref_weight": 0.0}
    named[f"{objectives[0]}, weight 10"] = first | {"pref_weight": 10.0}
    for control in ("matched", "projected"):
        named[f"{objectives[0]}, {control}"] = first | {"length_control": control}
    return named


def flipped(pairs: list[PreferencePair], rate: float) -> list[PreferencePair]:
    """The pairs with wrong labels, by annotators of whom one is careless."""
    rng = np.random.default_rng(0)
    careless, wrong = rng.random(len(pairs)) < 0.5, rng.random(len(pairs)) < 2 * rate
    return [
        pair._replace(
            annotator="careless" if by else "careful",
            chosen=pair.rejected if by and bad else pair.chosen,
            rejected=pair.chosen if by and bad else pair.rejected,
        )
        for pair, by, bad in zip(pairs, careless, wrong, strict=True)
    ]


def make_folds(pairs: list[PreferencePair], flip: float | None) -> Iterator[Fold]:
    """The folds, with prompts on one side each."""
    groups = group_numbers([Example(pair.context, pair.chosen) for pair in pairs])
    order = np.random.default_rng(0).permutation(groups.max() + 1)
    fold = order[groups] % FOLDS
    noisy = pairs if flip is None else flipped(pairs, flip)
    for number in range(FOLDS):
        train = [noisy[i] for i in np.flatnonzero(fold != number)]
        test = np.flatnonzero(fold == number)
        first = first_stage(train)
        yield Fold(train, [pairs[i] for i in test], test, *first)


def first_stage(
    pairs: list[PreferencePair],
) -> tuple[Featurizer, ScorerConfig, Params]:
    """A scorer of the chosen replies, trained with the default flags."""
    config = FinetuneConfig(data="", output="")
    rows = [Example(pair.context, pair.chosen) for pair in pairs]
    contexts = [row.context for row in rows]
    featurizer = Featurizer.fit(
        contexts, FeatureConfig(), [row.response for row in rows]
    )
    shape = ScorerConfig(vocabulary=featurizer.num_scorer_rows, width=128)
    fresh = init_scorer(shape, jax.random.fold_in(jax.random.key(config.seed), 2))
    scored = scorer_rows(config, featurizer, rows)
    params = train_scorer(config, ScorerStart(shape, fresh, scored), Silent())
    return featurizer, *with_values(shape, params)


def tune(fold: Fold, settings: dict[str, Any]) -> tuple[Params, dict[str, float]]:
    """The tuned scorer, and how far each annotator is trusted."""
    config = FinetuneConfig(weights="RUN", preferences="PAIRS", output="", **settings)
    corpus = load_pairs(config, fold.featurizer, fold.train)
    fit = tune_scorer(config, fold.shape, fold.params, corpus, Silent())
    best = fit.history[fit.best_epoch - 1]
    trust = {
        name: best[f"reliability/{i}"]
        for i, name in enumerate(corpus.sources)
        if f"reliability/{i}" in best
    }
    return fit.params, trust


def scorers(
    pairs: list[PreferencePair], named: dict[str, dict | None], flip: float | None
) -> Iterator[tuple[Fold, str, Params, dict[str, float]]]:
    """Every fold with the scorer of every variant, and whom that trusts.

    Args:
      pairs: all of them.
      named: settings of a tuning by name; None is before tuning.
      flip: share of labels that are wrong in training; None leaves annotators, too.
    """
    for fold in make_folds(pairs, flip):
        for name, settings in named.items():
            params, trusted = fold.params, {}
            if settings is not None:
                params, trusted = tune(fold, settings)
            yield fold, name, params, trusted


def first_of_100(fold: Fold, params: Params) -> np.ndarray:
    """1 where the chosen reply is the first of 100, by row of the fold."""
    made = blocks([Example(pair.context, pair.chosen) for pair in fold.test])
    inference = Inference.of(fold.featurizer, {}, params)

    def scorer(contexts, responses):
        replies = fold.featurizer([(Turn("assistant", text),) for text in responses])
        asked = inference.encode_contexts(fold.featurizer(contexts))
        return asked @ inference.encode_responses(replies).T

    return one_of_100(made, scorer).recall_at_1


def margins(fold: Fold, params: Params) -> np.ndarray:
    """Score of the chosen minus that of the rejected reply, by pair of the fold."""
    rows = pair_rows(fold.featurizer, fold.test, np.zeros(len(fold.test), np.int32))
    scores = score_pairs(fold.shape, params, rows)
    return scores[:, 0] - scores[:, 1]


def run(
    data: str, objectives: Sequence[str], flip: float | None = None
) -> list[dict[str, Any]]:
    """The figures of every variant, a row each; the first is before tuning."""
    pairs = read_pairs([data]).pairs
    named: dict[str, dict | None] = {START: None} | variants(objectives, flip)
    found = {name: np.zeros(len(pairs)) for name in named}
    before = found[START]  # Filled first, of each fold.
    first = {name: [] for name in named}
    trust: dict[str, list[dict[str, float]]] = {name: [] for name in named}
    for fold, name, params, trusted in scorers(pairs, named, flip):
        trust[name].append(trusted)
        found[name][fold.numbers] = margins(fold, params)
        first[name].append(first_of_100(fold, params))
    sides = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    rows = []
    for name in named:
        means = {
            who: float(np.mean([one[who] for one in trust[name]]))
            for who in trust[name][0]
        }
        row = {"variant": name, "flip": flip, "reliability": means}
        row["first_of_100"] = float(np.mean(np.concatenate(first[name])))
        row["rewards"] = measure_preferences(found[name] - before, *sides)
        rows.append(row | measure_preferences(found[name], *sides))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def shown(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the table."""
    interval = lambda row, name: (
        f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    )
    return [
        [
            row["variant"],
            "" if row["flip"] is None else f"{row['flip']:g}",
            *(
                ["", "", ""]
                if row["variant"] == START
                else [
                    interval(row["rewards"], "accuracy"),
                    interval(row["rewards"], "matched_accuracy"),
                    f"{row['rewards']['length_correlation']:+.2f}",
                ]
            ),
            interval(row, "accuracy"),
            f"{row['first_of_100']:.3f}",
            ", ".join(f"{k} {v:.2f}" for k, v in row["reliability"].items()),
        ]
        for row in rows
    ]


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--flips", nargs="+", type=float, default=[None])
    args = parser.parse_args(argv)
    rows = [row for flip in args.flips for row in run(args.data, args.objectives, flip)]
    columns = ["variant", "wrong labels", "rewards", "on matched pairs", "length corr."]
    columns += ["scores", "first of 100", "trusted"]
    title = (
        f"{pathlib.Path(args.data).name}, {rows[0]['pairs']:,} pairs, "
        f"{rows[0]['matched_pairs']:,} matched; the longer reply is right in "
        f"{rows[0]['longer']:.3f}, the shorter in {rows[0]['shorter']:.3f}"
    )
    Console(width=150).print(table(title, columns, shown(rows)))


if __name__ == "__main__":
    main()
