"""Training of the response scorer on pairs: which of two replies was preferred.

The policy is the softmax of the scores of the two replies: cosine and value, as chat
reads them. The chosen reply is its label, the rejected one the negative, and the scorer
as it was before is the reference. So every objective and noise model of
`preference.py` that trains buckets trains replies, too. The loss with which the scorer
learned to find the chosen replies among others stays beside it: else what is preferred
anywhere would be found everywhere. (The log-odds of two replies differ as their scores
do: ORPO is the logistic loss here.)

The towers train, and the value of a reply: one number a feature, how much better it
makes a reply, whatever was asked. The table of embeddings stays: a few thousand pairs
say little of forty thousand features, and it would learn them by heart.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prefchat_jax import losses
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.scorer import ScorerConfig, encode, pair_scores
from prefchat_jax.text.bags import Bags
from prefchat_jax.training.noise import as_labelled
from prefchat_jax.training.optimizers import OptimizerConfig, make_schedule
from prefchat_jax.training.preference import (
    Preference,
    init_preference_state,
    preference_losses,
)
from prefchat_jax.training.scorer import batch_losses
from prefchat_jax.training.targets import PreferenceState, Targets

_TRAINED = ("context", "response", "worth")
_BLOCK = 512  # Pairs that are scored at once.


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["optimizer", "preference", "weight", "length_slope"],
    meta_fields=["model", "compute_dtype"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRecipe:
    """What the training on pairs does: a pytree of its hyper-parameters.

    Attributes:
      model: the shape of the scorer.
      optimizer: its schedule.
      preference: the preference loss of a pair.
      weight: of the preference loss, beside the loss of the scorer's own training.
      length_slope: what the logarithm of a reply's length adds to its reward while
        training, as in a bias product (https://arxiv.org/abs/1909.03683): what
        length explains, the scorer need not learn.
      compute_dtype: of the matrix products, by name; None is float32.
    """

    model: ScorerConfig
    optimizer: OptimizerConfig
    preference: Preference
    weight: float = 0.2
    length_slope: float = 0.0
    compute_dtype: str | None = None


class PairRows(NamedTuple):
    """Contexts with two replies each, in NumPy or on the device.

    Attributes:
      contexts: bags `[n, features]` by embedding row of the scorer.
      responses: bags `[d, features]` of the distinct replies.
      replies: int32 `[n, 2]` the chosen and the rejected reply of each context.
      sources: int32 `[n]` who judged.
      log_lengths: `[d]` logarithms of the replies' characters.
      ref_scores: `[n, 2]` scores of the frozen reference; None without one.
    """

    contexts: Bags
    responses: Bags
    replies: Any
    sources: Any
    log_lengths: Any
    ref_scores: Any = None


class PairState(NamedTuple):
    """What training changes; donated by every call.

    Attributes:
      trained: the towers, the `direction` `[width]` in which contexts move, and the
        `worth` `[vocabulary]` of each feature along it.
      opt_state: of the optimizer.
      preference: what preference losses remember.
      step: how many batches are through.
    """

    trained: Params
    opt_state: optax.OptState
    preference: PreferenceState
    step: jax.Array


@jax.jit
def init_pair_state(recipe: PairRecipe, params: Params) -> PairState:
    """The state before the first batch, of a scorer with values."""
    trained = jax.tree.map(jnp.copy, {name: params[name] for name in _TRAINED})
    return PairState(
        trained,
        _optimizer(recipe).init(trained),
        init_preference_state(recipe.preference),
        jnp.zeros((), jnp.int32),
    )


def pair_losses(
    recipe: PairRecipe,
    params: Params,
    rows: PairRows,
    batch: jax.Array,
    state: PreferenceState,
    *,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], PreferenceState]:
    """The loss of each pair of a batch, and its parts.

    Args:
      recipe: model and preference.
      params: of the scorer.
      rows: all pairs.
      batch: int32 `[batch]` row numbers; -1 for an empty place.
      state: what the batches before left.
      key: a random key turns feature dropout on (training).

    Returns:
      `[batch]` losses, `[batch]` metrics by name, and the new state.
    """
    used, numbers = batch >= 0, rows.replies[batch, 0]
    x, chosen, rejected = _vectors(
        recipe.model, params, rows, batch, key=key, dtype=recipe.compute_dtype
    )
    found = batch_losses(
        pair_scores(params, x, chosen, dtype=recipe.compute_dtype),
        numbers,
        numbers,
        group=losses.softmax,
        link=losses.logistic,
        where=used,
    )
    # Rewards are beta times the logits.
    known = recipe.length_slope / recipe.preference.beta
    scores = _two_scores(x, chosen, rejected)
    judged, metrics = preference_losses(
        recipe.preference,
        jax.random.key(0),
        scores + known * rows.log_lengths[rows.replies[batch]],
        _targets(rows, batch),
        state,
    )
    # Those scores are so many times the cosines that the preference loss is of.
    found = found * jnp.exp(-params["log_scale"])
    values = judged.trust * found + recipe.weight * judged.values
    metrics |= {
        "loss": values,
        "loss/found": found,
        "loss/pref": judged.values,
        "accuracy": (scores[:, 0] > scores[:, 1]).astype(jnp.float32),
    }
    return values, metrics, judged.state


@partial(jax.jit, donate_argnames="state")
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
        values, metrics, preference = pair_losses(
            recipe, params | trained, rows, batch, preference, key=key
        )
        used = batch >= 0
        count = jnp.maximum(jnp.sum(used), 1)
        means = jax.tree.map(lambda m: jnp.sum(m, where=used) / count, metrics)
        # A short last batch counts for as much as it has rows.
        return jnp.sum(values, where=used) / len(batch), (means, preference)

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


def score_pairs(model: ScorerConfig, params: Params, rows: PairRows) -> np.ndarray:
    """Scores `[n, 2]` of the chosen and the rejected replies, without dropout."""
    count = len(rows.replies)
    blocks = [
        _scores(model, params, rows, np.arange(i, min(i + _BLOCK, count)))
        for i in range(0, count, _BLOCK)
    ]
    return np.concatenate([np.zeros((0, 2), np.float32), *blocks])


@jax.jit
def losses_as_labelled(
    preference: Preference, scores: jax.Array, rows: PairRows
) -> jax.Array:
    """Preference losses `[n]` of scores `[n, 2]`, whatever the noise model thinks."""
    preference = dataclasses.replace(preference, noise=as_labelled)
    judged, _ = preference_losses(
        preference,
        jax.random.key(0),
        scores,
        _targets(rows, jnp.arange(len(scores))),
        init_preference_state(preference),
    )
    return judged.values


def _optimizer(recipe: PairRecipe) -> optax.GradientTransformation:
    """NovoGrad (https://arxiv.org/abs/1905.11286): one scale for each array.

    Adam, with a scale for each number, moves a feature that one reply has as far as
    one that half of them have.
    """
    return optax.novograd(make_schedule(recipe.optimizer))


def _targets(rows: PairRows, batch: jax.Array) -> Targets:
    """The first of two replies is right, the second one the only negative."""
    labels = jnp.zeros(len(batch), jnp.int32)
    reference = None if rows.ref_scores is None else rows.ref_scores[batch]
    return Targets(
        labels, reference, rows.sources[batch], batch >= 0, labels[:, None] + 1
    )


def _vectors(model, params, rows, batch, *, key=None, dtype=None):
    """Unit vectors `[batch, width]` of contexts, chosen and rejected replies."""
    keys = (None, None) if key is None else jax.random.split(key)

    def vectors(tower, bags, numbers, key):
        picked = (part[numbers] for part in bags)
        return encode(model, params, tower, *picked, key=key, dtype=dtype)

    x = vectors("context", rows.contexts, batch, keys[0])
    replies = rows.replies[batch].T.ravel()
    y = vectors("response", rows.responses, replies, keys[1])
    return x, y[: len(batch)], y[len(batch) :]


def _two_scores(x, chosen, rejected):
    return jnp.stack([jnp.sum(x * chosen, -1), jnp.sum(x * rejected, -1)], axis=-1)


@partial(jax.jit, static_argnames="model")
def _scores(model, params, rows, batch):
    return _two_scores(*_vectors(model, params, rows, batch))
