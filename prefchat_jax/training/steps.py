"""Compiled training: many micro-batches in one `lax.scan` dispatch."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prefchat_jax.datasets.sampling import Plan
from prefchat_jax.models.classifier import (
    BucketModel,
    Params,
    branch_mixture,
    bucket_logits,
)
from prefchat_jax.training.objective import Objective, example_losses
from prefchat_jax.training.optimizers import (
    OptimizerConfig,
    averaged_params,
    make_optimizer,
    make_schedule,
    trainable_in_head_only,
)
from prefchat_jax.training.preference import init_preference_state
from prefchat_jax.training.targets import PreferenceState, Targets

EVAL_BATCH = 256  # 1024 gather 50 MB, which no cache holds: a third of the speed.


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["objective", "optimizer"],
    meta_fields=["model", "compute_dtype"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run does with its rows: a pytree of its hyper-parameters.

    Recipes of one tree structure share one compiled program, and batched ones train
    under `vmap`. All that is no hyper-parameter, and which of those that may be None
    are, is structure.

    Attributes:
      model: the shape of the classifier.
      objective: its loss, in float32.
      optimizer: its optimizer; parameters, state and average are float32.
      compute_dtype: of the matrix products of a training step, by name; None is
        float32, as validation is.
    """

    model: BucketModel
    objective: Objective
    optimizer: OptimizerConfig
    compute_dtype: str | None = None


class Rows(NamedTuple):
    """Featurised rows, in NumPy or on the device.

    Attributes:
      ids: `[n, features]` embedding rows.
      weights: `[n, features]` their weights.
      labels: `[n]` buckets.
      sources: `[n]` numbers of who labelled them, or None.
      ref_logits: `[n, C]` logits of the reference policy, or None.
    """

    ids: Any
    weights: Any
    labels: Any
    sources: Any = None
    ref_logits: Any = None


class TrainState(NamedTuple):
    """All that a resumed run needs: arrays only, donated by every call."""

    params: Params
    opt_state: optax.OptState
    preference: PreferenceState
    micro_step: jax.Array


@jax.jit
def init_state(recipe: Recipe, params: Params) -> TrainState:
    """Starts from a copy of `params`: the steps donate their state."""
    params = jax.tree.map(jnp.copy, params)
    opt_state = make_optimizer(recipe.optimizer).init(params)
    preference = init_preference_state(recipe.objective.preference)
    return TrainState(params, opt_state, preference, jnp.zeros((), jnp.int32))


@partial(jax.jit, donate_argnames="state")
def run_steps(
    recipe: Recipe,
    state: TrainState,
    rows: Rows,
    plan: Plan,
    key: jax.Array,
    ramp_steps: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs the micro-batches of `plan` in order.

    Args:
      recipe: model, objective and optimizer.
      state: where to go on; donated.
      rows: all training rows.
      plan: the micro-batches.
      key: the key of the whole run; each micro-batch folds its number in.
      ramp_steps: micro-batches over which the preference weight warms up.

    Returns:
      The new state, and metrics `[m]` for every micro-batch.
    """
    tx = make_optimizer(recipe.optimizer)

    def loss_fn(params, preference, batch, where, window, key, ramp):
        dropout_key, negatives_key = jax.random.split(key)
        if recipe.optimizer.head_only:
            params = _stop_frozen(params)
        logits = bucket_logits(
            recipe.model,
            params,
            batch.ids,
            batch.weights,
            key=dropout_key,
            dtype=recipe.compute_dtype,
        )
        targets = Targets(batch.labels, batch.ref_logits, batch.sources, where)
        losses, metrics, preference = example_losses(
            recipe.objective, negatives_key, logits, targets, preference, ramp=ramp
        )
        # MultiSteps means over the window's micro-batches: with this scale the
        # window's gradient is the mean over its rows, also in a short window.
        scale = recipe.optimizer.accumulate / window
        loss = scale * jnp.sum(losses, where=where)
        count = jnp.maximum(jnp.sum(where), 1)
        metrics = {"loss": losses} | metrics
        means = jax.tree.map(lambda m: jnp.sum(m, where=where) / count, metrics)
        return loss, (means, preference)

    def step(state, micro_batch):
        numbers, window = micro_batch
        batch = jax.tree.map(lambda x: x[numbers], rows)
        ramp = jnp.minimum(1.0, (state.micro_step + 1) / jnp.maximum(ramp_steps, 1e-6))
        grads, (metrics, preference) = jax.grad(loss_fn, has_aux=True)(
            state.params,
            state.preference,
            batch,
            numbers >= 0,
            window,
            jax.random.fold_in(key, state.micro_step),
            ramp,
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        real_step = state.micro_step // recipe.optimizer.accumulate
        metrics["learning_rate"] = make_schedule(recipe.optimizer)(real_step)
        step_number = state.micro_step + 1
        return TrainState(params, opt_state, preference, step_number), metrics

    return jax.lax.scan(step, state, plan)


def eval_params(recipe: Recipe, state: TrainState, *, use_ema: bool) -> Params:
    """The parameters that are validated and saved: averaged, or as they are."""
    if not use_ema:
        return state.params
    return averaged_params(recipe.optimizer, state.opt_state)


def predict(
    config: BucketModel, params: Params, ids: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Logits `[n, C]` as NumPy, in batches of at most `EVAL_BATCH` rows."""
    if not len(ids):
        return np.zeros((0, config.num_buckets), np.float32)
    return _in_batches(partial(_logits, config, params), ids, weights)


def branch_weights(
    config: BucketModel, params: Params, ids: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """What the head multiplies each branch by, `[n, branches]`; `n` is not 0."""
    return _in_batches(partial(_mixture, config, params), ids, weights)


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy `loss`, unsmoothed, and `accuracy` of logits `[n, C]`.

    In NumPy: eager JAX would compile each of these small operations.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    gold = np.take_along_axis(log_probs, labels[:, None], axis=-1)
    accuracy = np.mean(logits.argmax(axis=-1) == labels)
    return {"loss": -float(gold.mean()), "accuracy": float(accuracy)}


def _in_batches(
    function: Callable[..., jax.Array], ids: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`function` of all rows as NumPy, a batch at a time."""
    parts = [function(*batch) for batch in eval_batches(ids, weights)]
    return np.concatenate(parts)[: len(ids)]


def eval_batches(
    ids: np.ndarray, weights: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bags `[n, features]` in batches, padded to a power of two: few shapes compile."""
    size = min(EVAL_BATCH, 1 << max(len(ids) - 1, 0).bit_length())
    starts = range(0, len(ids), size)

    def batch(x, start):
        rows = x[start : start + size]
        return np.pad(rows, ((0, size - len(rows)), (0, 0)))

    return [(batch(ids, start), batch(weights, start)) for start in starts]


@partial(jax.jit, static_argnames="config")
def _logits(config, params, ids, weights):
    return bucket_logits(config, params, ids, weights)


@partial(jax.jit, static_argnames="config")
def _mixture(config, params, ids, weights):
    return branch_mixture(config, params, ids, weights)


def _stop_frozen(params: Params) -> Params:
    return jax.tree.map(
        lambda x, trains: x if trains else jax.lax.stop_gradient(x),
        params,
        trainable_in_head_only(params),
    )
