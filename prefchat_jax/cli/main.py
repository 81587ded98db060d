"""`prefchat`: finds the command, runs it, and turns user errors into one line.

Nothing heavy is imported before a command needs it.
"""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from prefchat_jax import __version__
from prefchat_jax.errors import UserError

# Command: what it does. Each lives in the module of its name.
COMMANDS = {
    "demo": "train on the shipped corpus, show figures, open a chat",
    "build": "many JSONL corpora to one clean corpus and a report",
    "finetune": "train on your JSONL corpus and write a run directory",
    "sweep": "seeds and settings of finetune as one program, one table of figures",
    "chat": "talk to a run",
    "serve": "a run behind an HTTP interface that chat clients know",
    "feedback": "what users of a served run preferred, as preference pairs",
    "evaluate": "accuracy, replies, refusals and preferences on a JSONL file",
    "report": "curves and figures of runs and sweeps as one page",
    "import_torch": "a checkpoint of the PyTorch reference as a run",
    "index": "add stored replies to a run, without training",
    "export": "the parameters of a run as safetensors or npz",
    "losses": "the preference losses: name, equation, paper",
    "env": "versions and devices, for a bug report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = argv[0] if argv else "help"
        if not command.startswith("-"):  # As in flags, hyphens are underscores.
            command = command.replace("-", "_")
        code = _run(command, argv[1:])
        if sys.stdout:
            sys.stdout.flush()  # While an error can be told.
        return code
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:
            _drop_output()
            return 0
        where = error.filename or _full_output()
        return _fail(f"{where}{': ' * bool(where)}{error.strerror or error}.")
    except KeyboardInterrupt:
        return _fail("interrupted.", code=130)


def _run(command: str, argv: list[str]) -> int:
    if command in ("-h", "--help", "help"):
        print(_help())  # noqa: T201
        return 0
    if command == "--version":
        print(__version__)  # noqa: T201
        return 0
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}: use {', '.join(COMMANDS)}.")
    module = importlib.import_module(f"prefchat_jax.cli.{command}")
    return module.main(argv) or 0


def _full_output() -> str:
    """The name of standard output where nothing can be written to it."""
    try:
        print(flush=True)  # noqa: T201
    except OSError:
        _drop_output()
        return "standard output"
    return ""


def _drop_output() -> None:
    """Gives up what is unwritten: at the exit it would be tried, and told, again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int = 2) -> int:
    one_line = " ".join(message.split())
    print(f"prefchat: error: {one_line}", file=sys.stderr)  # noqa: T201
    return code


def _help() -> str:
    commands = "\n".join(f"  {name:<14}{text}" for name, text in COMMANDS.items())
    return (
        "usage: prefchat COMMAND [FLAGS]\n\n"
        "Train a small model that picks the right stored reply, and chat with it.\n\n"
        f"{commands}\n\n"
        "`prefchat COMMAND --help` lists the flags of a command."
    )
