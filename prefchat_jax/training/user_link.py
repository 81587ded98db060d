"""A user's own link, `module:function`, found and checked."""

import importlib
import os
import sys

import jax
import jax.numpy as jnp

from prefchat_jax import losses
from prefchat_jax.errors import UserError


def load_link(name: str) -> losses.Link:
    """Imports a link as `python -m` would, and checks that it is one.

    Raises:
      UserError: no such module or function, or it gives no loss for each margin.
    """
    module_name, _, function_name = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # As `python -m` does; the command does not.
    try:
        link = getattr(importlib.import_module(module_name), function_name)
        # Some groups take the link of one margin for all negatives.
        shapes = [
            jax.eval_shape(link, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
            for shape in ((2, 3), (2,))
        ]
    except Exception as error:  # Whatever a user's module raises.
        raise UserError(
            f"--pref_objective {name}: {type(error).__name__}: {error}. It must be a "
            "function of margins that can be imported from here."
        ) from error
    if shapes != [(2, 3), (2,)]:
        raise UserError(
            f"--pref_objective {name} maps margins (2, 3) to {shapes[0]}: it must give "
            "one loss for each margin, without a mean."
        )
    return link
