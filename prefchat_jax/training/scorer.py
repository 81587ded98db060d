"""Training of the response scorer: the right response against those of other rows.

A batch of contexts is scored against the responses of the whole batch and against
hard negatives; the lead of the right response over each wrong one is a margin, and
any group of `losses` over any link makes one loss of them. With `softmax` over
`logistic` and no hard negatives that is cross-entropy over the batch (InfoNCE,
https://arxiv.org/abs/1807.03748; for responses, https://arxiv.org/abs/1705.00652).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prefchat_jax import losses
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig, encode, pair_scores
from prefchat_jax.text.bags import Bags
from prefchat_jax.training.loop import Progress, check_finite, chunk_size
from prefchat_jax.training.optimizers import OptimizerConfig, make_optimizer


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["optimizer"],
    meta_fields=["model", "group", "link", "compute_dtype"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerRecipe:
    """What the training of a scorer does: a pytree of its hyper-parameters.

    Attributes:
      model: the shape of the scorer.
      optimizer: its optimizer.
      group: reduces the margins of one row to one loss.
      link: the loss of one margin.
      compute_dtype: of the matrix products, by name; None is float32.
    """

    model: ScorerConfig
    optimizer: OptimizerConfig
    group: losses.Group = losses.softmax
    link: losses.Link = losses.logistic
    compute_dtype: str | None = None


class ScorerRows(NamedTuple):
    """Contexts and their right responses, in NumPy or on the device.

    Attributes:
      contexts: bags `[n, features]` by embedding row of the scorer.
      responses: bags `[d, features]` of the distinct responses.
      numbers: int32 `[n]` the right response of each context.
      negatives: int32 `[n, H]` wrong responses; -1 for none.
    """

    contexts: Bags
    responses: Bags
    numbers: Any
    negatives: Any


class ScorerState(NamedTuple):
    """What training changes; donated by every call."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array


@jax.jit
def init_scorer_state(recipe: ScorerRecipe, params: Params) -> ScorerState:
    """Starts from a copy of `params`: the steps donate their state."""
    params = jax.tree.map(jnp.copy, params)
    opt_state = make_optimizer(recipe.optimizer).init(params)
    return ScorerState(params, opt_state, jnp.zeros((), jnp.int32))


def batch_losses(
    scores: jax.Array,
    numbers: jax.Array,
    candidates: jax.Array,
    *,
    group: losses.Group,
    link: losses.Link,
    where: jax.Array | None = None,
) -> jax.Array:
    """The loss of each row of a batch: the right response against wrong candidates.

    The right response, wherever it stands among the candidates, is no negative.
    The other direction, a response against the contexts of other rows, brings
    nothing on dialogues and is left out.

    Args:
      scores: `[batch, batch + extra]` of contexts with candidates; the first `batch`
        candidates are the right responses of the rows.
      numbers: `[batch]` numbers of the right responses.
      candidates: `[batch + extra]` numbers of the candidates; negative for none.
      group: reduces the margins of one row to one loss.
      link: the loss of one margin.
      where: `[batch]` true where a row counts; None is everywhere.

    Returns:
      `[batch]` losses; 0 where a row does not count.
    """
    margins = jnp.diagonal(scores)[:, None] - scores
    return group(margins, link, where=_wrong(numbers, candidates, where))


def in_batch_accuracy(
    scores: jax.Array,
    numbers: jax.Array,
    candidates: jax.Array,
    where: jax.Array | None = None,
) -> jax.Array:
    """`[batch]` 1 where no wrong candidate has a higher score. See `batch_losses`."""
    wrong = jnp.where(_wrong(numbers, candidates, where), scores, -jnp.inf)
    return (jnp.diagonal(scores) >= wrong.max(axis=1)).astype(jnp.float32)


def _wrong(numbers, candidates, where):
    """`[batch, candidates]` true where a candidate is a negative of a row."""
    wrong = (numbers[:, None] != candidates[None, :]) & (candidates >= 0)[None, :]
    if where is None:
        return wrong
    extra = jnp.ones(len(candidates) - len(numbers), bool)
    return wrong & where[:, None] & jnp.concatenate([where, extra])[None, :]


@partial(jax.jit, donate_argnames="state")
def run_scorer_steps(
    recipe: ScorerRecipe,
    state: ScorerState,
    rows: ScorerRows,
    batches: jax.Array,
    key: jax.Array,
) -> tuple[ScorerState, dict[str, jax.Array]]:
    """Runs the micro-batches in order.

    Args:
      recipe: model, group and optimizer.
      state: where to go on; donated.
      rows: all training rows.
      batches: int32 `[m, batch]` row numbers; -1 for an empty place.
      key: the key of the whole run; each micro-batch folds its number in.

    Returns:
      The new state, and metrics `[m]` for every micro-batch.
    """
    tx = make_optimizer(recipe.optimizer)

    def loss_fn(params, batch, key):
        context_key, response_key = jax.random.split(key)
        if recipe.model.valued:  # Which responses are good, preferences say.
            params = params | {"worth": jax.lax.stop_gradient(params["worth"])}
        used, numbers = batch >= 0, rows.numbers[batch]
        candidates = jnp.concatenate([numbers, rows.negatives[batch].ravel()])
        x = encode(
            recipe.model,
            params,
            "context",
            *(part[batch] for part in rows.contexts),
            key=context_key,
            dtype=recipe.compute_dtype,
        )
        y = encode(
            recipe.model,
            params,
            "response",
            *(part[candidates] for part in rows.responses),
            key=response_key,
            dtype=recipe.compute_dtype,
        )
        scores = pair_scores(params, x, y, dtype=recipe.compute_dtype)
        values = batch_losses(
            scores,
            numbers,
            candidates,
            group=recipe.group,
            link=recipe.link,
            where=used,
        )
        accuracy = in_batch_accuracy(scores, numbers, candidates, used)
        count = jnp.maximum(jnp.sum(used), 1)
        # A short last batch counts for as much as it has rows.
        loss = jnp.sum(values) / len(batch)
        metrics = {
            "loss": jnp.sum(values) / count,
            "accuracy": jnp.sum(accuracy, where=used) / count,
        }
        return loss, metrics

    def step(state, batch):
        step_key = jax.random.fold_in(key, state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, step_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ScorerState(params, opt_state, state.step + 1), metrics

    return jax.lax.scan(step, state, batches)


def fit_scorer(
    recipe: ScorerRecipe,
    params: Params,
    rows: ScorerRows,
    plan: EpochPlan,
    *,
    epochs: int,
    progress: Progress,
) -> Params:
    """Trains a scorer from `params` for some epochs, and returns its parameters.

    Raises:
      UserError: a loss is not finite.
    """
    rows = jax.device_put(rows)
    state = init_scorer_state(recipe, params)
    key = jax.random.key(plan.seed)
    done, total = 0, epochs * plan.micro_batches
    for epoch in range(1, epochs + 1):
        batches = plan.epoch(epoch).rows
        size = chunk_size(len(batches))
        for start in range(0, len(batches), size):
            chunk = batches[start : start + size]
            state, metrics = run_scorer_steps(recipe, state, rows, chunk, key)
            metrics = check_finite(jax.device_get(metrics), done, "lower --scorer_lr")
            done += len(chunk)
            means = {name: float(np.mean(values)) for name, values in metrics.items()}
            progress.chunk(done, total, means)
    return state.params
