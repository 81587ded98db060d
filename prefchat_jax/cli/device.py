"""Chooses the device before JAX starts."""

import os

from prefchat_jax.errors import UserError


def select_device(name: str) -> None:
    """Restricts JAX to the CPU, or checks that it has found an accelerator.

    `auto`, and an accelerator that is there, leave the choice to JAX, which
    takes the accelerator first.

    Raises:
      UserError: there is no such device here.
    """
    if name == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if name == "cpu":
        # JAX has read the environment already, in a process that calls main.
        jax.config.update("jax_platforms", "cpu")
    if name in ("gpu", "tpu"):
        try:
            jax.devices(name)
        except RuntimeError as error:
            raise UserError(
                f"--device {name}: JAX finds none here; `prefchat env` lists what it "
                "finds, and the JAX installation guide tells how to add one."
            ) from error
