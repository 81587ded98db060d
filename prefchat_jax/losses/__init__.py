"""Preference losses as pure functions that compose.

An objective on bucket logits is margins, a group over a link, and weights:

>>> import jax, jax.numpy as jnp
>>> from prefchat_jax import losses
>>> logits = jnp.array([[2.0, 0.5, -1.0, 1.0]])
>>> labels = jnp.array([0])
>>> negatives = losses.mine_negatives(
...     jax.random.key(0), logits, labels, num_negatives=2, hard_ratio=1.0)
>>> margins = losses.bucket_margins(logits, labels, negatives, beta=2.0)
>>> losses.expected_win(margins, losses.logistic).round(4)
Array([0.087], dtype=float32)

Nothing here reduces over the batch, logs, or holds state.
"""

from prefchat_jax.losses.buckets import bucket_margins as bucket_margins
from prefchat_jax.losses.groups import Group as Group
from prefchat_jax.losses.groups import expected_win as expected_win
from prefchat_jax.losses.groups import pairwise_mean as pairwise_mean
from prefchat_jax.losses.links import Link as Link
from prefchat_jax.losses.links import logistic as logistic
from prefchat_jax.losses.links import relu_margin as relu_margin
from prefchat_jax.losses.metrics import preference_metrics as preference_metrics
from prefchat_jax.losses.negatives import mine_negatives as mine_negatives
from prefchat_jax.losses.noise import confidence_weights as confidence_weights
