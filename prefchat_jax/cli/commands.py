"""Commands of a conversation: lines that start with a slash.

Each is one row of `COMMANDS` and one function of a conversation and an argument,
which returns what to show. What is wrong with an argument is a `UserError`.
"""

import difflib
import time
from collections.abc import Callable
from typing import NamedTuple

from prefchat_jax.chat.memory import Remembered
from prefchat_jax.chat.reply import Explanation
from prefchat_jax.chat.styles import get_style, style_names
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.errors import UserError

_SHOWN = 20  # Turns that /memory lists.
_MOST = 10  # Candidates that /top can show.
_NEAR = 0.75  # Likeness of /top and /tpo; /etc and /exit have 0.67.

Shown = str | Explanation


class Quit(Exception):
    """The user wants to leave."""


class Command(NamedTuple):
    """What a command takes, what it does, and which words can follow it."""

    usage: str
    text: str
    run: Callable[[Conversation, str], Shown]
    words: Callable[[], tuple[str, ...]] = tuple


def is_command(line: str) -> bool:
    """Whether a line names a command, or misspells one.

    Other lines with a slash may be messages: `/etc is full`.
    """
    name = line.split(" ", 1)[0]
    return name in COMMANDS or _meant(name) is not None


def run_command(conversation: Conversation, line: str) -> Shown:
    """Does what a line asks for.

    Raises:
      UserError: no such command, or a wrong argument.
      Quit: the conversation ends.
    """
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        if meant := _meant(name):
            raise UserError(f"no command {name}, did you mean {meant}?")
        raise UserError(f"no command {name}: use {' '.join(COMMANDS)}.")
    return COMMANDS[name].run(conversation, argument.strip())


def complete(line: str) -> list[str]:
    """What the last word of a line can become: a command, or a word after one."""
    name, space, argument = line.partition(" ")
    if not space:
        return [command for command in COMMANDS if command.startswith(name)]
    if name not in COMMANDS or " " in argument:
        return []
    return [word for word in COMMANDS[name].words() if word.startswith(argument)]


def _meant(name: str) -> str | None:
    """The command that a word begins, or is nearly; None where it may be none."""
    if len(name) > 3 and (begun := complete(name)):
        return begun[0]
    lower = name.lower() if name.startswith("/") else ""
    return next(iter(difflib.get_close_matches(lower, COMMANDS, 1, _NEAR)), None)


def _help(conversation: Conversation, argument: str) -> str:
    _nothing("/help", argument)
    wide = max(len(command.usage) for command in COMMANDS.values())
    return "\n".join(f"{c.usage:<{wide}}  {c.text}" for c in COMMANDS.values())


def _style(conversation: Conversation, argument: str) -> str:
    if argument != "auto":
        try:
            get_style(argument)
        except UserError as error:
            raise UserError(f"/style: {error}") from None
    conversation.style = argument
    return f"style is {argument}"


def _creativity(conversation: Conversation, argument: str) -> str:
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"/creativity {argument}: give a number in [0, 1].")
    conversation.creativity = value
    return f"creativity is {value:g}"


def _top(conversation: Conversation, argument: str) -> str:
    count = int(argument) if argument.isdecimal() else 0
    if not 1 <= count <= _MOST:
        raise UserError(f"/top {argument}: give a number from 1 to {_MOST}.")
    candidates = _explained(conversation).candidates[:count]
    return "\n".join(
        f"{number:>2}  {found.score:.3f}  [{found.bucket or '-'}] "
        f"{' '.join(found.response.split())}"
        for number, found in enumerate(candidates, 1)
    )


def _why(conversation: Conversation, argument: str) -> str:
    conversation.why = _switched("/why", argument, conversation.why)
    return f"why is {'on' if conversation.why else 'off'}"


def _explain(conversation: Conversation, argument: str) -> Shown:
    if not argument:
        return _explained(conversation)
    conversation.explain = _switched("/explain", argument, conversation.explain)
    return f"explain is {'on' if conversation.explain else 'off'}"


def _memory(conversation: Conversation, argument: str) -> str:
    memory = conversation.memory
    if memory is None:
        raise UserError("/memory: start with --memory_db FILE --user NAME.")
    action, _, rest = argument.partition(" ")
    rest = rest.strip()
    if action == "":
        return _listed(memory.turns()[-_SHOWN:], f"nothing remembered of {memory.user}")
    if action == "search" and rest:
        return _listed(memory.search(rest, _SHOWN), "nothing found")
    if action == "forget" and (rest == "all" or rest.isdecimal()):
        return _forgotten(conversation, rest)
    raise UserError(f"/memory {argument}: use search TEXT, forget ID, or forget all.")


def _forgotten(conversation: Conversation, which: str) -> str:
    count = conversation.forget(None if which == "all" else int(which))
    if which != "all" and not count:
        raise UserError(f"/memory forget {which}: there is no such turn.")
    return f"forgot {count} {'turn' if count == 1 else 'turns'}"


def _clear(conversation: Conversation, argument: str) -> str:
    _nothing("/clear", argument)
    conversation.clear()
    return "a new conversation"


def _stats(conversation: Conversation, argument: str) -> str:
    _nothing("/stats", argument)
    figures = conversation.stats()
    wide = max(map(len, figures))
    return "\n".join(f"{name:<{wide}}  {value}" for name, value in figures.items())


def _quit(conversation: Conversation, argument: str) -> str:
    _nothing("/quit", argument)
    raise Quit


def _explained(conversation: Conversation) -> Explanation:
    found = conversation.explanation()
    if found is None:
        raise UserError("there is no message yet: ask something first.")
    return found


def _listed(turns: list[Remembered], otherwise: str) -> str:
    lines = [
        f"{one.id:>4}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(one.at))}  "
        f"{one.role:<9}  {' '.join(one.content.split())}"
        for one in turns
    ]
    return "\n".join(lines) or otherwise


def _switched(name: str, argument: str, present: bool) -> bool:
    if argument not in ("", "on", "off"):
        raise UserError(f"{name} {argument}: use on or off.")
    return not present if argument == "" else argument == "on"


def _nothing(name: str, argument: str) -> None:
    if argument:
        raise UserError(f"{name} {argument}: takes nothing.")


def _switches() -> tuple[str, ...]:
    return "on", "off"


def _styles() -> tuple[str, ...]:
    return "auto", *style_names()


def _actions() -> tuple[str, ...]:
    return "search", "forget"


COMMANDS = {
    "/help": Command("/help", "what there is to say", _help),
    "/style": Command("/style NAME", "how replies look, or auto", _style, _styles),
    "/creativity": Command(
        "/creativity X", "0 to 1: weight of less obvious replies", _creativity
    ),
    "/top": Command("/top N", "the N best answers to the last message", _top),
    "/why": Command("/why [on|off]", "a line of reasons", _why, _switches),
    "/explain": Command(
        "/explain [on|off]",
        "all about the last message, or each",
        _explain,
        _switches,
    ),
    "/memory": Command(
        "/memory [search TEXT | forget ID|all]", "what you said", _memory, _actions
    ),
    "/clear": Command("/clear", "a new conversation", _clear),
    "/stats": Command("/stats", "figures of this session", _stats),
    "/quit": Command("/quit", "or Ctrl-D", _quit),
    "/exit": Command("/exit", "as /quit", _quit),
}
