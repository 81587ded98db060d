"""The scorer's part of a run: its rows, its recipe, and where it starts."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from prefchat_jax.datasets.negatives import lexical_negatives
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig, init_scorer
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Context, Example, as_context
from prefchat_jax.text.features import Featurizer
from prefchat_jax.training.checkpoints import load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.preference import GROUPS
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.scorer import ScorerRecipe, ScorerRows, fit_scorer
from prefchat_jax.training.warm_start import PathReport, grow

_STEPS = 1500  # Steps after which a scorer of dialogues hardly improves.
_FEATURES = 96  # The heaviest features of a text that training reads.


class ScorerStart(NamedTuple):
    """Where the scorer of a run starts, or what it is if nothing is to be trained.

    Attributes:
      shape: the shape of the scorer.
      params: its parameters.
      rows: what to train on; None trains nothing.
      paths: what of the parameters is that of --weights.
    """

    shape: ScorerConfig
    params: Params
    rows: ScorerRows | None
    paths: tuple[PathReport, ...] = ()


def trains_scorer(config: FinetuneConfig, examples: Sequence[Example]) -> bool:
    """Whether a scorer is wanted, and there are two replies to tell apart."""
    replies = {example.response for example in examples if example.response}
    return config.scorer_epochs != 0 and len(replies) >= 2


def scorer_rows(
    config: FinetuneConfig,
    featurizer: Featurizer,
    examples: Sequence[Example],
) -> ScorerRows:
    """The answered examples as rows of the scorer.

    Args:
      config: the flags.
      featurizer: has rows of the scorer.
      examples: training rows.
    """
    answered = [example for example in examples if example.response]
    number: dict[str, int] = {}
    numbers = np.array(
        [number.setdefault(example.response, len(number)) for example in answered],
        np.int32,
    )
    responses = scorer_bags(featurizer, [as_context(text) for text in number])
    return ScorerRows(
        scorer_bags(featurizer, [example.context for example in answered]),
        responses,
        numbers,
        lexical_negatives(
            responses, numbers, count=config.scorer_hard_negatives, seed=config.seed
        ),
    )


def scorer_start(
    run: RunDirectory,
    config: FinetuneConfig,
    featurizer: Featurizer,
    rows: ScorerRows | None,
) -> ScorerStart | None:
    """Where the scorer starts: a saved step, the run of --weights, or at random.

    Returns None for a run without a scorer.

    Raises:
      UserError: the scorer of --weights has another shape.
    """
    if config.resume and (
        run.config().get("scorer") is None or run.last_step() is not None
    ):
        saved = load_scorer(run, run.last_step())
        return None if saved is None else ScorerStart(*saved, None)
    source = load_scorer(RunDirectory.open(config.weights)) if config.weights else None
    if source is None and rows is None:
        return None
    if source is None:
        shape = ScorerConfig(
            vocabulary=featurizer.num_scorer_rows, width=config.scorer_width or 128
        )
    else:
        width = config.scorer_width or source[0].width
        shape = dataclasses.replace(source[0], width=width)
    fresh = init_scorer(shape, jax.random.fold_in(jax.random.key(config.seed), 2))
    theirs = {} if source is None else {"scorer": source[1]}
    params, report = grow(theirs, {"scorer": fresh})
    return ScorerStart(shape, params["scorer"], rows, report.paths)


def train_scorer(
    config: FinetuneConfig, start: ScorerStart | None, progress: Progress
) -> Params | None:
    """The parameters of a run's scorer: trained, if there is what to train on.

    Raises:
      UserError: a loss is not finite.
    """
    if start is None:
        return None
    shape, params, rows, _ = start
    if rows is None:
        return params
    plan = EpochPlan(
        rows.numbers,
        batch_size=_batch_size(config, len(rows.numbers)),
        accumulate=1,
        balanced=False,
        seed=config.seed,
    )
    epochs = config.scorer_epochs
    if epochs is None:
        epochs = min(8, max(1, round(_STEPS / plan.optimizer_steps)))
    steps = max(epochs * plan.optimizer_steps, 1)
    recipe = ScorerRecipe(
        model=shape,
        optimizer=OptimizerConfig(
            num_steps=steps, warmup_steps=steps // 20, lr=config.scorer_lr
        ),
        group=GROUPS[config.scorer_group_estimator],
        compute_dtype=config.low_dtype(),
    )
    progress.stage("scorer")
    return fit_scorer(recipe, params, rows, plan, epochs=epochs, progress=progress)


def _batch_size(config: FinetuneConfig, rows: int) -> int:
    """As asked, or such that also a small corpus has 16 steps in an epoch."""
    if config.scorer_batch_size is not None:
        return min(config.scorer_batch_size, rows)
    return min(512, max(16, 1 << (rows // 16).bit_length() - 1)) if rows > 32 else rows


def scorer_bags(featurizer: Featurizer, contexts: Sequence[Context]) -> Bags:
    """Bags by embedding row of the scorer, as many features as it trains on."""
    return featurizer.scorer_trained(contexts, _FEATURES)
