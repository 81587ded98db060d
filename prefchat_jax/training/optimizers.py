"""The optimizer: warm-up cosine AdamW, clipped, accumulated, averaged.

Tables of embeddings are most of the parameters, and a step goes through all of them:
they have a cheaper rule, `scale_by_row_rms`.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prefchat_jax.models.classifier import Params

Labels = Any
Number = jax.Array | float


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["lr", "weight_decay", "clip_norm", "ema_decay"],
    meta_fields=["num_steps", "warmup_steps", "schedule", "accumulate", "head_only"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Hyper-parameters of `make_optimizer`, a pytree; steps are optimizer steps.

    `num_steps` includes the warm-up. None clips nothing, and keeps no average.
    `head_only` trains the head and the final norm and freezes all else.
    """

    num_steps: int
    warmup_steps: int
    lr: Number
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Number = 0.0
    clip_norm: Number | None = None
    accumulate: int = 1
    ema_decay: Number | None = None
    head_only: bool = False


class RowRmsState(NamedTuple):
    """Steps so far, and the mean square `[..., 1]` of each row's gradients."""

    count: jax.Array
    nu: Any


class ParamsEmaState(NamedTuple):
    """The state of `optax.ema`, fed with parameters."""

    ema: Any


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate by optimizer step; the first step already moves."""
    start = 1.0 / max(config.warmup_steps, 1)
    if config.schedule == "cosine":
        share = optax.warmup_cosine_decay_schedule(
            start, 1.0, config.warmup_steps, config.num_steps
        )
    else:
        share = optax.warmup_constant_schedule(start, 1.0, config.warmup_steps)
    return lambda step: config.lr * share(step)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the whole chain; accumulation wraps it, so EMA counts real steps."""
    parts: list[optax.GradientTransformation] = [
        optax.partition(
            {"table": scale_by_row_rms(), "other": optax.scale_by_adam()},
            partial(jax.tree.map_with_path, _rule),
        ),
        optax.add_decayed_weights(
            config.weight_decay, partial(jax.tree.map_with_path, _decays)
        ),
        optax.scale_by_learning_rate(make_schedule(config)),
    ]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.head_only:
        trained = optax.chain(*parts)
        frozen = optax.set_to_zero()
        parts = [
            optax.partition({True: trained, False: frozen}, trainable_in_head_only)
        ]
    if config.ema_decay is not None:
        parts.append(average_params(config.ema_decay))
    tx = optax.chain(*parts)
    if config.accumulate > 1:
        tx = optax.MultiSteps(tx, config.accumulate).gradient_transformation()
    return tx


def scale_by_row_rms(
    *, decay: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam without momentum, and with one second moment for each row of a table.

    A feature that few texts have is in few batches. Momentum would go on moving its
    row for ten steps after each, as far as this does at once. State and step take less
    than half of Adam's memory and time. One second moment a row is what the row-wise
    Adagrad of recommender systems has (https://arxiv.org/abs/2508.03854 builds on it).

    Args:
      decay: of the second moments, as Adam's; their bias is corrected.
      eps: added to their root.

    Returns:
      A transformation of gradients `[..., width]`.
    """

    def init(params: optax.Params) -> optax.OptState:
        zero = lambda table: jnp.zeros_like(table[..., :1])
        return RowRmsState(jnp.zeros((), jnp.int32), jax.tree.map(zero, params))

    def update(updates, state, params=None):
        del params
        square = lambda rows: jnp.mean(jnp.square(rows), axis=-1, keepdims=True)
        count = state.count + 1
        nu = optax.tree.update_moment(
            jax.tree.map(square, updates), state.nu, decay, order=1
        )
        scale = lambda rows, nu: rows / (jnp.sqrt(nu) + eps)
        corrected = optax.tree.bias_correction(nu, decay, count)
        return jax.tree.map(scale, updates, corrected), RowRmsState(count, nu)

    return optax.GradientTransformation(init, update)


def average_params(decay: Number) -> optax.GradientTransformation:
    """Feeds the updated parameters to `optax.ema`; chain it last."""
    ema = optax.ema(decay, debias=True)

    def init(params: optax.Params) -> optax.OptState:
        return ParamsEmaState(ema.init(params))

    def update(updates, state, params=None):
        assert params is not None
        _, averaged = ema.update(optax.apply_updates(params, updates), state.ema)
        return updates, ParamsEmaState(averaged)

    return optax.GradientTransformation(init, update)


def averaged_params(config: OptimizerConfig, opt_state: optax.OptState) -> Params:
    """Reads the bias-corrected average out of an optimizer state.

    Before the first step there is nothing to average, and the result is NaN.
    """
    is_ema = lambda node: isinstance(node, ParamsEmaState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_ema)
    (state,) = (node.ema for node in nodes if is_ema(node))
    return optax.tree.bias_correction(state.ema, config.ema_decay, state.count)


def trainable_in_head_only(params: Params) -> Labels:
    """True for the head and the final norm, by parameter path."""
    return jax.tree.map_with_path(
        lambda path, _: path[0].key == "head" or path[1].key == "norm", params
    )


def _rule(path: tuple, _: jax.Array) -> str:
    return "table" if path[-1].key == "table" else "other"


def _decays(path: tuple, _: jax.Array) -> bool:
    """Weight decay is for kernels: not for biases, norms, scales, or the table."""
    return path[-1].key == "kernel"
