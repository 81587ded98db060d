"""`prefchat chat`: a conversation in the terminal, or one reply a line."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from prefchat_jax.chat.config import ChatSettings, PoolMode, StyleMode
from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output
from prefchat_jax.cli.device import select_device
from prefchat_jax.errors import UserError
from prefchat_jax.training.run_directory import RunDirectory, read_json

if TYPE_CHECKING:
    from prefchat_jax.chat.session import Chat, Reply

_HELP = "/why on|off   /style NAME   /creativity X   /clear   /help   /quit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFlags:
    """Talk to a run. Without a terminal, each line of standard input is answered."""

    weights: str
    """Run directory of `prefchat finetune`."""
    meta: str | None = None
    """Metadata that finetune wrote: checks that it belongs to the run."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where the classifier runs."""
    llm_db: str | None = None
    """Database of replies instead of the run's own."""
    db_top_k: int = 160
    """Candidates that the text search of the database adds."""
    pool_mode: PoolMode = "all"
    """Candidates of all buckets, or of the --top_labels buckets only."""
    top_labels: int = 4
    """Buckets whose probability counts in the score."""
    max_candidates_per_bucket: int | None = None
    """Stored question-reply pairs that a bucket pools [as the run was trained with]."""
    min_confidence: float | None = None
    """Abstain below it [measured by finetune]; 0 never abstains."""
    response_temperature: float = 0.0
    """0 gives the best reply; above it one of the best is drawn."""
    style_mode: StyleMode = "auto"
    """How replies look; auto reads it from the message."""
    creativity: float = 0.2
    """In [0, 1]: moves weight to less obvious replies."""
    seed: int = 0
    """Of the draws with a temperature."""
    why: bool = False
    """Show bucket, confidence, time and the terms of the score."""
    model_size: Literal["base", "large", "xlarge", "xxlarge"] | None = None
    """Checked against the run."""
    expansion_dim: int | None = None
    """Checked against the run."""
    extra_expansion_dim: int | None = None
    """Checked against the run."""
    third_expansion_dim: int | None = None
    """Checked against the run."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed {self.seed}: must be in [0, 2147483647].")


def main(argv: Sequence[str]) -> None:
    """Loads the run and answers until the input ends."""
    given = flags.parse(ChatFlags, "chat", argv)
    settings = ChatSettings(
        pool_mode=given.pool_mode,
        top_labels=given.top_labels,
        db_top_k=given.db_top_k,
        max_candidates_per_bucket=given.max_candidates_per_bucket,
        min_confidence=given.min_confidence,
    )
    check_shape(given)
    select_device(given.device)
    from prefchat_jax.chat.session import Chat

    chat = Chat.load(given.weights, database=given.llm_db, settings=settings)
    talk(chat, given, output())


def check_shape(given: ChatFlags) -> None:
    """Raises `UserError` where flags or --meta disagree with the run."""
    config = RunDirectory.open(given.weights).config()
    trained = config["finetune"]
    widths = dict(enumerate(config["model"]["branch_widths"]))
    expected = {
        "model_size": trained["model_size"],
        "expansion_dim": widths.get(0),
        "extra_expansion_dim": widths.get(1),
        "third_expansion_dim": widths.get(2),
    }
    for name, value in expected.items():
        flag = getattr(given, name)
        if flag is not None and flag != value:
            has = "has none" if value is None else f"was trained with {value}"
            raise UserError(f"--{name} {flag}: the run {given.weights} {has}.")
    if given.meta:
        meta = read_json(given.meta)
        keys = ("data_fingerprint", "finetune", "model", "best_epoch")
        if not isinstance(meta, dict) or any(
            meta.get(key) != config.get(key) for key in keys
        ):
            raise UserError(
                f"--meta {given.meta} was written for another run than {given.weights}."
            )


def talk(chat: "Chat", given: ChatFlags, console: Console) -> None:
    """Answers lines until the end; lines that start with / are commands."""
    state = {"style": given.style_mode, "creativity": given.creativity}
    history: list[tuple[str, str]] = []
    why = given.why
    if sys.stdin.isatty():
        console.print(f"{len(chat)} stored answers. {_HELP}", highlight=False)
    while (message := _read_line(console)) is not None:
        command, _, argument = message.partition(" ")
        if not message:
            continue
        if command in ("/quit", "/exit"):
            return
        if command == "/why":
            why = argument != "off"
        elif command == "/clear":
            history.clear()
        elif command in ("/style", "/creativity"):
            _set(state, command[1:], argument, console)
        elif command.startswith("/"):
            console.print(_HELP, highlight=False)
        else:
            reply = _reply(chat, message, history, state, given, console)
            if reply:
                show(reply, console, why=why)
                history += [("user", message), ("assistant", reply.text)]


def show(reply: "Reply", console: Console, *, why: bool) -> None:
    """Prints a reply, and on demand what it rests on."""
    console.print(reply.text, highlight=False, markup=False, soft_wrap=True)
    if why:
        console.print(
            f"  [{reply.bucket}] confidence {reply.confidence:.2f}, "
            f"{reply.milliseconds:.1f} ms, {reply.style}: {reply.why}",
            style="dim",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _reply(chat, message, history, state, given, console) -> "Reply | None":
    try:
        return chat.reply(
            message,
            history=history,
            temperature=given.response_temperature,
            seed=given.seed + len(history),
            **state,
        )
    except UserError as error:
        if not sys.stdin.isatty():
            raise
        console.print(str(error), style="red", highlight=False)
        return None


def _set(state: dict, name: str, argument: str, console: Console) -> None:
    try:
        state[name] = float(argument) if name == "creativity" else argument
    except ValueError:
        console.print(f"/{name} needs a number", style="red")


def _read_line(console: Console) -> str | None:
    try:
        if sys.stdin.isatty():
            return console.input("[bold]> [/bold]").strip()
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        return None
    return line.strip() if line else None
