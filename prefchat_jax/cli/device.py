"""Chooses the device before JAX starts."""

import os

from prefchat_jax.errors import UserError

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,rocm", "tpu": "tpu"}


def select_device(name: str) -> None:
    """Restricts JAX to one kind of device; `auto` leaves the choice to it.

    Raises:
      UserError: there is no such device here.
    """
    if name != "auto":
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[name]
    import jax

    if name != "auto":
        # JAX may have read the environment already, in a process that calls main.
        jax.config.update("jax_platforms", _PLATFORMS[name])
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(
            f"--device {name}: JAX finds none here; `prefchat env` lists what it "
            "finds, and the JAX installation guide tells how to add one."
        ) from error
