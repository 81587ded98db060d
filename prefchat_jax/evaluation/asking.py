"""Asking: the replies of a chat to rows, as calibration and evaluation judge them."""

from collections.abc import Sequence

from prefchat_jax.chat.reply import Reply
from prefchat_jax.chat.session import Chat
from prefchat_jax.text.dialogue import Example


def ask(chat: Chat, rows: Sequence[Example]) -> list[Reply]:
    """The chat's best reply to each row, after the turns before it."""
    return chat.reply_batch(
        [row.question for row in rows],
        histories=[row.context[:-1] for row in rows],
        style="balanced",
        creativity=0.0,
    )
