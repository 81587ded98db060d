"""Preference optimization for retrieval chat, in pure JAX.

>>> from prefchat_jax import Chat, losses
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefchat_jax import losses as losses
    from prefchat_jax.chat.config import ChatSettings as ChatSettings
    from prefchat_jax.chat.session import Chat as Chat
    from prefchat_jax.chat.session import Reply as Reply
    from prefchat_jax.errors import UserError as UserError
    from prefchat_jax.training.config import FinetuneConfig as FinetuneConfig

__version__ = "0.1.0"

# Imported on first use (PEP 562), so that `import prefchat_jax` costs nothing.
_LAZY = {
    "Chat": "prefchat_jax.chat.session",
    "ChatSettings": "prefchat_jax.chat.config",
    "FinetuneConfig": "prefchat_jax.training.config",
    "Reply": "prefchat_jax.chat.session",
    "UserError": "prefchat_jax.errors",
}

__all__ = ["Chat", "ChatSettings", "FinetuneConfig", "Reply", "UserError", "losses"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("prefchat_jax.losses")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
