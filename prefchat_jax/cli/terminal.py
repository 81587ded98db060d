"""The conversation in a terminal: editing, completion, colours."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

from rich.console import Console

from prefchat_jax.chat.reply import Explanation, Reply
from prefchat_jax.cli.commands import COMMANDS, Quit, complete, run_command
from prefchat_jax.cli.console import output
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.cli.explained import explanation_table
from prefchat_jax.cli.piped import why_line
from prefchat_jax.errors import UserError

_LINES = 1000  # Of the history file.


def talk(
    conversation: Conversation,
    console: Console | None = None,
    read: Callable[[str], str] = input,
) -> None:
    """Answers until Ctrl-D or /quit; Ctrl-C leaves the line that is being written.

    Args:
      conversation: what answers.
      console: where to; the terminal by default.
      read: reads a line after a prompt, raises `EOFError` and `KeyboardInterrupt`.
    """
    console = console or output()
    stored = len(conversation.chat)
    _print(console, f"{stored} stored answers. {' '.join(COMMANDS)}", style="dim")
    with _editing() as editing:
        prompt = _prompt(console, invisible=editing)
        while True:
            try:
                line = read(prompt).strip()
                if line:
                    answer(conversation, line, console)
            except KeyboardInterrupt:
                console.print()
            except EOFError:
                console.print()
                return
            except Quit:
                return


def answer(conversation: Conversation, line: str, console: Console) -> None:
    """Shows the reply to a message, or what a command says.

    What is wrong is one line, and the conversation goes on.
    """
    try:
        if line.startswith("/"):
            _show_result(run_command(conversation, line), console)
            return
        show(conversation.say(line), console, why=conversation.why)
        if conversation.explain and (found := conversation.explanation()):
            _show_result(found, console)
    except UserError as error:
        _print(console, " ".join(str(error).split()), style="red")


def show(reply: Reply, console: Console, *, why: bool) -> None:
    """Prints a reply, and on demand what it rests on."""
    _print(console, reply.text, style="yellow" if reply.abstained else "")
    if why:
        _print(console, why_line(reply), style="dim")


def history_file() -> pathlib.Path:
    """Where the lines of earlier sessions are, for the arrow keys."""
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state"
    return pathlib.Path(state) / "prefchat" / "history"


def _show_result(found: str | Explanation, console: Console) -> None:
    if isinstance(found, str):
        _print(console, found, style="cyan")
    else:
        console.print(explanation_table(found))


def _print(console: Console, text: str, *, style: str) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _prompt(console: Console, *, invisible: bool) -> str:
    """Bold; readline must know which letters take no room."""
    if not console.is_terminal or console.no_color or console.is_dumb_terminal:
        return "> "
    start, end = ("\001", "\002") if invisible else ("", "")
    return f"{start}\x1b[1m{end}> {start}\x1b[0m{end}"


@contextlib.contextmanager
def _editing() -> Iterator[bool]:
    """Line editing with the history file and completion, where readline exists."""
    try:
        import readline
    except ImportError:
        yield False
        return
    path = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_LINES)
    before = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer_delims(" ")
    readline.set_completer(_completer(readline))
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield True
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
        with contextlib.suppress(OSError):  # A read-only home loses the history.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            readline.write_history_file(path)


def _completer(readline: ModuleType) -> Callable[[str, int], str | None]:
    def completion(text: str, number: int) -> str | None:
        found = complete(readline.get_line_buffer()[: readline.get_endidx()].lstrip())
        return f"{found[number]} " if number < len(found) else None

    return completion
