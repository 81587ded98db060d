"""Lines in, replies out: a chat in a pipe, or as another program's co-process.

Each line is read, answered and flushed before the next one is waited for. Nothing
here imports rich.
"""

import json
import os
import sys
from typing import TextIO

from prefchat_jax.chat.reply import Explanation, Reply, as_dict
from prefchat_jax.cli.commands import Quit, is_command, run_command
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.errors import UserError


def answer_lines(
    conversation: Conversation,
    *,
    as_json: bool = False,
    source: TextIO | None = None,
    target: TextIO | None = None,
) -> None:
    """Answers each line until the input ends or nobody reads the output.

    With JSON, each line is a message, also an empty one or one with a slash, and
    gives one line; what users of another program write must not be commands.
    Otherwise empty lines are skipped, and lines that name a command do what it
    says; what is wrong with one is told on standard error.

    Args:
      conversation: what answers.
      as_json: whether to print an object for each line.
      source: standard input by default.
      target: standard output by default.
    """
    source, target = source or sys.stdin, target or sys.stdout
    for stream in (source, target):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # No byte ends the conversation.
    try:
        while line := source.readline():
            text = line.strip()
            out = _json(conversation, text) if as_json else _plain(conversation, text)
            if out is not None:
                target.write(f"{out}\n")
                target.flush()
    except Quit:
        return
    except BrokenPipeError:
        _let_go(target)


def why_line(reply: Reply) -> str:
    """What a reply rests on, in one line."""
    return (
        f"  [{reply.bucket}] confidence {reply.confidence:.2f}, "
        f"{reply.milliseconds:.1f} ms, {reply.style}: {reply.why}"
    )


def _json(conversation: Conversation, text: str) -> str:
    return json.dumps(as_dict(conversation.say(text)))


def _plain(conversation: Conversation, text: str) -> str | None:
    if not text:
        return None
    if is_command(text):
        try:
            return _shown(run_command(conversation, text))
        except UserError as error:
            print(error, file=sys.stderr, flush=True)  # noqa: T201
            return None
    reply = conversation.say(text)
    lines = [reply.text]
    if conversation.why:
        lines.append(why_line(reply))
    if conversation.explain and (found := conversation.explanation()):
        lines.append(_shown(found))
    return "\n".join(lines)


def _shown(found: str | Explanation) -> str:
    if isinstance(found, str):
        return found
    from prefchat_jax.cli.explained import as_text

    return as_text(found)


def _let_go(target: TextIO) -> None:
    """Nobody reads: Python must not try again when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())
    except (OSError, ValueError):
        return
