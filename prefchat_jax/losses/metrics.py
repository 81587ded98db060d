"""Metrics of preference training, under the names that TRL uses."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def preference_metrics(
    chosen_rewards: ArrayLike, rejected_rewards: ArrayLike
) -> dict[str, jax.Array]:
    """Per-example rewards, margins, and whether the chosen response leads.

    Args:
      chosen_rewards: `[...]` rewards of the chosen responses.
      rejected_rewards: `[...]` rewards of the rejected responses.

    Returns:
      `[...]` arrays `rewards/chosen`, `rewards/rejected`, `rewards/margins`
      and `rewards/accuracies`.
    """
    chosen, rejected = jnp.asarray(chosen_rewards), jnp.asarray(rejected_rewards)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
    }
