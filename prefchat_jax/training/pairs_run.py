"""The tuning of a run's scorer on pairs: its rows, its recipe, its epochs."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from prefchat_jax.datasets.lengths import length_slope, log_ratio, matched
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig
from prefchat_jax.text.dialogue import Example, as_context
from prefchat_jax.text.features import Featurizer
from prefchat_jax.training import catalogue
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.loop import (
    Metrics,
    Progress,
    train_epoch,
    trust,
)
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.pairs import (
    PairRecipe,
    PairRows,
    init_pair_state,
    losses_as_labelled,
    run_pair_steps,
    score_pairs,
)
from prefchat_jax.training.preference import make_preference
from prefchat_jax.training.scorer_run import scorer_bags

_EPOCHS = 10
_BATCH = 64


class PairCorpus(NamedTuple):
    """Featurised pairs of a tuning.

    Attributes:
      train: pairs that train.
      val: pairs of other prompts, on which epochs are compared.
      sources: the names of who judged.
      unmatched: pairs that `--length_control matched` left out.
      slope: what `--length_control projected` found length to tell: the rise of a
        reply's log-odds with the logarithm of its length.
    """

    train: PairRows
    val: PairRows
    sources: list[str]
    unmatched: int = 0
    slope: float = 0.0


class PairFit(NamedTuple):
    """What tuning found.

    Attributes:
      params: of the scorer after the best epoch.
      history: the metrics of every epoch.
      best_epoch: the one whose rewards have the highest validation accuracy, from 1.
      start_accuracy: how often the chosen reply scored higher before, on validation
        pairs; NaN without any.
    """

    params: Params
    history: list[Metrics]
    best_epoch: int
    start_accuracy: float


def load_pairs(
    config: FinetuneConfig, featurizer: Featurizer, pairs: Sequence[PreferencePair]
) -> PairCorpus:
    """Splits pairs by prompt, and featurises them as the run does.

    Raises:
      UserError: no pair is left to train on.
    """
    examples = [Example(pair.context, pair.chosen) for pair in pairs]
    train, val = split_rows(
        examples,
        np.zeros(len(pairs), np.int64),
        fraction=config.val_split,
        mode="random",
        seed=config.seed,
    )
    kept, slope = train, 0.0
    lengths = _lengths([pairs[i] for i in train])
    if config.length_control == "matched":
        kept = train[matched(*lengths)]
        if not len(kept):
            raise UserError(
                f"--length_control matched: of {len(train)} pairs none has a partner "
                "that differs as much in length: give more, or use projected."
            )
    if config.length_control == "projected":
        slope = length_slope(log_ratio(*lengths))
    names, sources = np.unique([pair.labeller for pair in pairs], return_inverse=True)
    rows = pair_rows(featurizer, pairs, sources.astype(np.int32))
    return PairCorpus(
        take_rows(rows, kept),
        take_rows(rows, val),
        names.tolist(),
        len(train) - len(kept),
        slope,
    )


def pair_rows(
    featurizer: Featurizer, pairs: Sequence[PreferencePair], sources: np.ndarray
) -> PairRows:
    """Pairs as rows of the scorer.

    Args:
      featurizer: has rows of the scorer.
      pairs: `n` of them.
      sources: int32 `[n]` the number of who judged each.
    """
    number: dict[str, int] = {}
    replies = [
        [number.setdefault(text, len(number)) for text in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    return PairRows(
        scorer_bags(featurizer, [pair.context for pair in pairs]),
        scorer_bags(featurizer, [as_context(text) for text in number]),
        np.array(replies, np.int32),
        sources,
        np.log([len(text) for text in number]).astype(np.float32),
    )


def take_rows(rows: PairRows, numbers: np.ndarray) -> PairRows:
    """Some of the pairs; the replies stay as they are."""
    contexts = type(rows.contexts)(*(part[numbers] for part in rows.contexts))
    return rows._replace(
        contexts=contexts, replies=rows.replies[numbers], sources=rows.sources[numbers]
    )


def tune_scorer(
    config: FinetuneConfig,
    shape: ScorerConfig,
    params: Params,
    corpus: PairCorpus,
    progress: Progress,
) -> PairFit:
    """Tunes a scorer on pairs, with itself as the reference.

    Args:
      config: the flags.
      shape: the shape of the scorer.
      params: where it starts.
      corpus: the pairs.
      progress: is told how training goes.

    Raises:
      UserError: a loss is not finite.
    """
    plan = EpochPlan(
        corpus.train.sources,
        batch_size=_batch_size(config, len(corpus.train.replies)),
        accumulate=1,
        balanced=False,
        seed=config.seed,
    )
    epochs = config.epochs or _EPOCHS
    recipe = make_pair_recipe(config, shape, corpus, plan.optimizer_steps * epochs)
    train, val = corpus.train, corpus.val
    named = catalogue.OBJECTIVES.get(config.pref_objective, catalogue.USERS)
    if named.reference:
        train, val = (
            rows._replace(ref_scores=score_pairs(shape, params, rows))
            for rows in (train, val)
        )
    state = init_pair_state(recipe, params)
    train, val = jax.device_put((train, val))
    before = score_pairs(shape, params, val)
    start = _validate(recipe, before, before, val)
    key = jax.random.key(config.seed)
    run_chunk = lambda state, plan: run_pair_steps(
        recipe, state, params, train, plan.rows, key
    )
    on_chunk = lambda done, metrics: progress.chunk(
        done, epochs * plan.micro_batches, metrics
    )
    history: list[Metrics] = []
    best = params
    while not _is_over(history, epochs, config.early_stop_patience):
        epoch = len(history) + 1
        state, row = train_epoch(
            run_chunk, state, plan, epoch, on_chunk, "lower --scorer_lr"
        )
        tuned = params | state.trained
        row |= _validate(recipe, score_pairs(shape, tuned, val), before, val)
        row |= trust(recipe.preference, state.preference.reliability)
        history.append(row)
        progress.epoch(history[-1])
        if _best(history) == epoch:
            best = jax.device_get(tuned)
    start_accuracy = start.get("eval_accuracy", np.nan)
    return PairFit(best, history, _best(history), start_accuracy)


def make_pair_recipe(
    config: FinetuneConfig,
    shape: ScorerConfig,
    corpus: PairCorpus,
    steps: int,
) -> PairRecipe:
    """Turns flags, and what is known of the pairs, into what compiles."""
    return PairRecipe(
        model=shape,
        optimizer=OptimizerConfig(
            num_steps=steps, warmup_steps=steps // 20, lr=config.scorer_lr
        ),
        preference=make_preference(
            config.pref_objective,
            noise=config.noise(),
            beta=config.pref_beta,
            margin=config.pref_margin,
            noise_rate=config.pref_noise_rate or 0.1,
            num_sources=len(corpus.sources),
        ),
        weight=config.pref_weight,
        length_slope=corpus.slope,
        compute_dtype=config.low_dtype(),
    )


def _lengths(pairs: Sequence[PreferencePair]) -> tuple[np.ndarray, np.ndarray]:
    """Characters of the chosen and of the rejected replies."""
    sides = zip(
        *((len(pair.chosen), len(pair.rejected)) for pair in pairs), strict=True
    )
    chosen, rejected = map(np.array, sides)
    return chosen, rejected


def _batch_size(config: FinetuneConfig, rows: int) -> int:
    """As asked, or such that also few pairs have 16 steps in an epoch."""
    fitting = max(8, 1 << max(rows // 16, 1).bit_length() - 1)
    return min(config.batch_size or min(_BATCH, fitting), rows)


def _best(history: list[Metrics]) -> int:
    """The epoch that learned most of what the validation pairs prefer, from 1.

    That is the accuracy of the rewards, of what tuning added to the scores: the scores
    themselves are of little help, since the first stage may have learned by heart which
    of the two replies was given. Of equal ones it is the epoch with the lowest loss,
    which alone would choose the first ones: it soon rises with the size of the margins,
    while their signs still become better. Without validation pairs it is the last.
    """
    if "eval_reward_accuracy" not in history[-1]:
        return len(history)
    place = lambda i: (-history[i]["eval_reward_accuracy"], history[i]["eval_loss"])
    return 1 + min(range(len(history)), key=place)


def _is_over(history: list[Metrics], epochs: int, patience: int) -> bool:
    stale = len(history) - _best(history) if history else 0
    return len(history) >= epochs or stale >= patience > 0


def _validate(
    recipe: PairRecipe, scores: np.ndarray, before: np.ndarray, val: PairRows
) -> Metrics:
    """How scores `[n, 2]` order the validation pairs, and what tuning added to them."""
    if not len(val.replies):
        return {}
    margins = scores[:, 0] - scores[:, 1]
    rewards = margins - (before[:, 0] - before[:, 1])
    return {
        "eval_loss": float(losses_as_labelled(recipe.preference, scores, val).mean()),
        "eval_accuracy": _above_zero(margins),
        "eval_reward_accuracy": _above_zero(rewards),
        "eval_margin": float(margins.mean()),
    }


def _above_zero(margins: np.ndarray) -> float:
    """The share of margins above 0; a tie counts half."""
    return float((np.sign(margins) / 2 + 0.5).mean())
