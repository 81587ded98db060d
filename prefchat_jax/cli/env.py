"""`prefchat env`: versions and devices, for a bug report."""

import importlib.metadata
import platform
import sqlite3
from collections.abc import Sequence

from prefchat_jax.cli.console import output
from prefchat_jax.errors import UserError

_PACKAGES = (
    "prefchat-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tyro",
    "rich",
    "msgspec",
    "bm25s",
)


def main(argv: Sequence[str]) -> None:
    """Prints one line for each version and device."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(f"`prefchat env` takes no {argv[0]!r}.")
    import jax

    lines = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            lines[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lines[name] = "not installed"
    lines["sqlite"] = sqlite3.sqlite_version
    lines["devices"] = ", ".join(str(device) for device in jax.devices())
    for name, value in lines.items():
        output().print(f"{name:<18}{value}", highlight=False, soft_wrap=True)
