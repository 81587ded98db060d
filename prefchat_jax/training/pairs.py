"""Training of the response scorer on pairs: which of two replies was preferred.

The policy of a context is the softmax of its scores over all replies of the batch; its
label is the chosen reply, its negative the rejected one, and its reference the scorer
as it was before. So every objective and noise model of `preference.py` that trains
buckets trains replies, too.

The towers train, and of the table of embeddings one number a feature: how much better
it makes a reply, whatever was asked. That is an update of rank one (as in LoRA,
https://arxiv.org/abs/2106.09685) along a direction that is learned, too, and that every
context moves in. A few thousand pairs say little of forty thousand features: a table
that trains whole learns them by heart.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig, encode
from prefchat_jax.text.features import Bags
from prefchat_jax.training.noise import as_labelled
from prefchat_jax.training.optimizers import OptimizerConfig, make_schedule
from prefchat_jax.training.preference import (
    Preference,
    init_preference_state,
    preference_losses,
)
from prefchat_jax.training.targets import PreferenceState, Targets

_TOWERS = ("context", "response")
_FAR = -1e9  # Logit of what is no candidate: softmax gives it 0.
_BLOCK = 512  # Pairs that are evaluated at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRecipe:
    """Everything that is fixed when the training on pairs compiles. Hashable.

    Attributes:
      model: the shape of the scorer.
      optimizer: its optimizer.
      preference: the preference loss of a pair.
      length_slope: what the logarithm of a reply's length adds to its reward while
        training, as in a bias product (https://arxiv.org/abs/1909.03683): what
        length explains, the scorer need not learn.
    """

    model: ScorerConfig
    optimizer: OptimizerConfig
    preference: Preference
    length_slope: float = 0.0


class PairRows(NamedTuple):
    """Contexts with two replies each, in NumPy or on the device.

    Attributes:
      contexts: bags `[n, features]` by embedding row of the scorer.
      responses: bags `[d, features]` of the distinct replies.
      chosen: int32 `[n]` the preferred reply of each context.
      rejected: int32 `[n]` the other one.
      sources: int32 `[n]` who judged.
      log_lengths: `[d]` logarithms of the replies' characters.
      ref_contexts: `[n, width]` vectors of the contexts, times the scale, by the
        frozen reference; None for objectives without one.
      ref_responses: `[d, width]` its vectors of the replies.
    """

    contexts: Bags
    responses: Bags
    chosen: Any
    rejected: Any
    sources: Any
    log_lengths: Any
    ref_contexts: Any = None
    ref_responses: Any = None


class PairState(NamedTuple):
    """What training changes; donated by every call.

    Attributes:
      trained: the towers, the `direction` `[width]` in which contexts move, and the
        worth `[vocabulary]` of each feature along it.
    """

    trained: Params
    opt_state: optax.OptState
    preference: PreferenceState
    step: jax.Array


@partial(jax.jit, static_argnames="recipe")
def init_pair_state(recipe: PairRecipe, params: Params) -> PairState:
    """Starts from a copy of the parts of `params` that train."""
    trained = jax.tree.map(jnp.copy, {name: params[name] for name in _TOWERS})
    vocabulary, width = params["table"].shape
    trained |= {"worth": jnp.zeros(vocabulary), "direction": jnp.zeros(width)}
    return PairState(
        trained,
        _optimizer(recipe).init(trained),
        init_preference_state(recipe.preference),
        jnp.zeros((), jnp.int32),
    )


@partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def run_pair_steps(
    recipe: PairRecipe,
    state: PairState,
    params: Params,
    rows: PairRows,
    batches: jax.Array,
    key: jax.Array,
) -> tuple[PairState, dict[str, jax.Array]]:
    """Runs the batches in order.

    Args:
      recipe: model, preference and optimizer.
      state: where to go on; donated.
      params: where the scorer started.
      rows: all training pairs.
      batches: int32 `[m, batch]` row numbers; -1 for an empty place.
      key: the key of the whole run; each batch folds its number in.

    Returns:
      The new state, and metrics `[m]` for every batch.
    """
    tx = _optimizer(recipe)

    def loss_fn(trained, preference, batch, key):
        logits, targets = _batch(recipe, merge(params, trained), rows, batch, key)
        judged, metrics = preference_losses(
            recipe.preference, key, logits, targets, preference
        )
        values = judged.values
        metrics["loss/pref"] = values
        used = batch >= 0
        metrics |= {"loss": values, "accuracy": metrics["rewards/accuracies"]}
        count = jnp.maximum(jnp.sum(used), 1)
        means = jax.tree.map(lambda m: jnp.sum(m, where=used) / count, metrics)
        # A short last batch counts for as much as it has rows.
        return jnp.sum(values, where=used) / len(batch), (means, judged.state)

    def step(state, batch):
        grads, (metrics, preference) = jax.grad(loss_fn, has_aux=True)(
            state.trained,
            state.preference,
            batch,
            jax.random.fold_in(key, state.step),
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return PairState(trained, opt_state, preference, state.step + 1), metrics

    return jax.lax.scan(step, state, batches)


@jax.jit
def merge(params: Params, trained: Params) -> Params:
    """The parameters of a scorer, of where it started and what `PairState` has."""
    towers = {name: trained[name] for name in _TOWERS}
    direction, down = trained["direction"], towers["context"]["down"]
    down = down | {"bias": down["bias"] + direction}
    towers["context"] = towers["context"] | {"down": down}
    table = params["table"] + trained["worth"][:, None] * direction
    return params | towers | {"table": table}


def evaluate_pairs(
    recipe: PairRecipe, params: Params, rows: PairRows
) -> dict[str, np.ndarray]:
    """Of each pair the loss as it is labelled, and the margin of the scores, `[n]`.

    The candidates are the two replies alone, without dropout; length adds nothing.
    """
    labelled = dataclasses.replace(recipe.preference, noise=as_labelled)
    recipe = dataclasses.replace(recipe, preference=labelled)
    count = len(rows.chosen)
    numbers = np.full(-(-count // _BLOCK) * _BLOCK if count > _BLOCK else count, -1)
    numbers[:count] = np.arange(count)
    blocks = [
        jax.device_get(_evaluate(recipe, params, rows, block.astype(np.int32)))
        for block in np.split(numbers, range(_BLOCK, len(numbers), _BLOCK))
    ]
    return {
        name: np.concatenate([block[name] for block in blocks])[:count]
        for name in blocks[0]
    }


def with_reference(recipe: PairRecipe, params: Params, rows: PairRows) -> PairRows:
    """The rows with the vectors of the frozen reference."""
    contexts = _vectors(recipe.model, params, "context", rows.contexts)
    return rows._replace(
        ref_contexts=contexts,
        ref_responses=_vectors(recipe.model, params, "response", rows.responses),
    )


def _optimizer(recipe: PairRecipe) -> optax.GradientTransformation:
    """NovoGrad (https://arxiv.org/abs/1905.11286): one scale for each array.

    Adam, with a scale for each number, moves a feature that one reply has as far as
    one that half of them have.
    """
    return optax.novograd(make_schedule(recipe.optimizer))


def _batch(recipe, params, rows, batch, key):
    """Logits `[batch, 2 batch]` of contexts with all replies, and their targets."""
    context_key, response_key = jax.random.split(key)
    chosen, rejected = rows.chosen[batch], rows.rejected[batch]
    candidates = jnp.concatenate([chosen, rejected])
    bags = lambda bags, numbers: (part[numbers] for part in bags)
    x = encode(
        recipe.model, params, "context", *bags(rows.contexts, batch), key=context_key
    )
    y = encode(
        recipe.model,
        params,
        "response",
        *bags(rows.responses, candidates),
        key=response_key,
    )
    labels = jnp.arange(len(batch))
    places = jnp.stack([labels, labels + len(batch)], axis=1)
    is_other = _is_other(batch, chosen, rejected, candidates, places)
    hide = lambda scores: jnp.where(is_other, _FAR, scores)
    logits = x @ y.T
    # Rewards are beta times the logits.
    known = recipe.length_slope / recipe.preference.beta
    logits = logits + known * rows.log_lengths[candidates]
    ref_logits = None
    if rows.ref_contexts is not None:
        ref_logits = hide(rows.ref_contexts[batch] @ rows.ref_responses[candidates].T)
    return hide(logits), Targets(
        labels, ref_logits, rows.sources[batch], batch >= 0, places[:, 1:]
    )


def _is_other(batch, chosen, rejected, candidates, places):
    """`[batch, 2 batch]` true for what is no candidate of a row.

    That is a reply of an empty place, and another copy of either of its own two.
    """
    own = jnp.zeros((len(batch), len(candidates)), bool)
    own = own.at[places[:, :1], places].set(True)
    same = (chosen[:, None] == candidates) | (rejected[:, None] == candidates)
    empty = jnp.tile(batch < 0, 2)
    return (same | empty[None, :]) & ~own


@partial(jax.jit, static_argnames="recipe")
def _evaluate(recipe, params, rows, numbers):
    sides = rows.chosen[numbers], rows.rejected[numbers]
    contexts = (part[numbers] for part in rows.contexts)
    x = encode(recipe.model, params, "context", *contexts)
    logits = jnp.stack(
        [
            jnp.sum(x * encode(recipe.model, params, "response", *bags), axis=-1)
            for bags in ([part[side] for part in rows.responses] for side in sides)
        ],
        axis=-1,
    )
    ref_logits = None
    if rows.ref_contexts is not None:
        ref = rows.ref_contexts[numbers]
        ref_logits = jnp.stack(
            [jnp.sum(ref * rows.ref_responses[side], axis=-1) for side in sides], -1
        )
    labels = jnp.zeros(len(numbers), jnp.int32)
    targets = Targets(
        labels, ref_logits, where=numbers >= 0, rejected=labels[:, None] + 1
    )
    state = init_preference_state(recipe.preference)
    judged, _ = preference_losses(
        recipe.preference, jax.random.key(0), logits, targets, state
    )
    return {"loss": judged.values, "margin": logits[:, 0] - logits[:, 1]}


@partial(jax.jit, static_argnames=("config", "tower"))
def _encode(config, params, tower, ids, weights):
    return encode(config, params, tower, ids, weights)


def _vectors(config, params, tower, bags):
    """Unit vectors `[n, width]` of bags, some at a time."""
    blocks = [
        np.asarray(_encode(config, params, tower, *(x[i : i + _BLOCK] for x in bags)))
        for i in range(0, len(bags.ids), _BLOCK)
    ]
    return np.concatenate(blocks)
