"""Epochs: one run by hand, where an experiment changes its start or reads its state."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trials import corpus_flags, run_config
from prefchat_jax.finetune import Silent
from prefchat_jax.models.classifier import Params
from prefchat_jax.training.corpus import Corpus, load_corpus
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.recipe import make_plan, make_recipe
from prefchat_jax.training.start import initial_params, model_shape
from prefchat_jax.training.steps import (
    Recipe,
    TrainState,
    init_state,
    predict,
    run_steps,
)


class Epoch(NamedTuple):
    """A run after one of its epochs; 0 is its start.

    Attributes:
      number: how many are through.
      recipe: of the run.
      state: where it is; it is gone when the next epoch is asked for.
    """

    number: int
    recipe: Recipe
    state: TrainState


def read_corpus(data: str, progress: Progress) -> Corpus:
    """The corpus of runs by hand, as `run_trials` has it.

    Raises:
      UserError: bad data.
    """
    return load_corpus(run_config(corpus_flags(data)), progress)


def epochs(
    corpus: Corpus,
    flags: Mapping[str, Any],
    *,
    start: Callable[[Params], Params] = lambda params: params,
    model: Mapping[str, Any] | None = None,
) -> Iterator[Epoch]:
    """Trains as `finetune` does, without references, and stops after every epoch.

    Args:
      corpus: its rows.
      flags: of `finetune` that differ from their defaults.
      start: makes the parameters before step 1 of those that `finetune` draws.
      model: what differs of the model that `finetune` makes.
    """
    config = run_config({"data": "", **flags})
    shape = dataclasses.replace(model_shape(config, corpus, None), **(model or {}))
    recipe, loop = make_recipe(config, shape, corpus, Silent())
    plan = make_plan(config, corpus)
    rows = jax.tree.map(jnp.asarray, corpus.train)
    state = init_state(recipe, start(initial_params(config, shape, corpus, None)[0]))
    ramp_steps = np.float32(loop.ramp_epochs * plan.micro_batches)
    yield Epoch(0, recipe, state)
    for number in range(1, loop.epochs + 1):
        key = jax.random.key(loop.seed)
        state, _ = run_steps(recipe, state, rows, plan.epoch(number), key, ramp_steps)
        yield Epoch(number, recipe, jax.block_until_ready(state))


def correct(corpus: Corpus, recipe: Recipe, params: Params) -> np.ndarray:
    """Whether each validation row is right, bool `[n]`."""
    val = corpus.val
    logits = predict(recipe.model, params, val.ids, val.weights)
    return logits.argmax(axis=-1) == val.labels
