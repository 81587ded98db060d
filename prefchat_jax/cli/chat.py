"""`prefchat chat`: its flags, and what they start."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from prefchat_jax.chat.config import ChatSettings, PoolMode
from prefchat_jax.chat.memory import Memory
from prefchat_jax.chat.session import Chat
from prefchat_jax.cli import flags
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.cli.imported import imported_chat
from prefchat_jax.cli.piped import answer_lines
from prefchat_jax.errors import UserError
from prefchat_jax.training.config import BRANCH_WIDTHS, is_checkpoint
from prefchat_jax.training.run_directory import RunDirectory, read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFlags:
    """Talk to a run. Without a terminal, each line of standard input is answered."""

    weights: str
    """Run directory of `prefchat finetune`; or a .pth of the PyTorch reference, which
    is imported for this session."""
    meta: str | None = None
    """Metadata that finetune wrote: checks that it belongs to the run. Of a .pth: its
    labels, replies and features."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where the classifier runs; auto and cpu: here, without JAX."""
    llm_db: str | None = None
    """Database of replies instead of the run's own."""
    db_top_k: int = 160
    """Candidates by the words of questions; half as many by replies, and by vectors."""
    pool_mode: PoolMode = "all"
    """topk drops what words and vectors find in other buckets than --top_labels."""
    top_labels: int = 4
    """Buckets that pool their replies, and whose probability counts in the score."""
    max_candidates_per_bucket: int | None = None
    """Replies that a bucket pools [as the run was trained with]."""
    min_confidence: float | None = None
    """Abstain below it [measured by finetune]; 0 never abstains."""
    response_temperature: float = 0.0
    """0 gives the best reply; above it one of the best is drawn."""
    style_mode: str = "auto"
    """How replies look: auto reads it from the message; or the name of a style."""
    creativity: float = 0.2
    """In [0, 1]: moves weight to less obvious replies."""
    seed: int = 0
    """Of the draws with a temperature."""
    why: bool = False
    """Show bucket, confidence, time and the terms of the score."""
    explain: bool = False
    """Show for each message what was searched for and how ten answers scored."""
    json: bool = False
    """Print one JSON object a line of input; no line is a command."""
    memory_db: str | None = None
    """File that remembers what --user said, from session to session."""
    user: str | None = None
    """Whose turns --memory_db keeps; nobody sees those of another."""
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
        if not 0 <= self.creativity <= 1:
            raise UserError(f"--creativity {self.creativity:g}: must be in [0, 1].")
        if not self.response_temperature >= 0:
            raise UserError(
                f"--response_temperature {self.response_temperature:g}: must be at "
                "least 0."
            )
        flags.check_style(self.style_mode)
        if self.json and (self.why or self.explain):
            raise UserError("--json says all that --why and --explain do: drop those.")
        if (self.memory_db is None) != (self.user is None):
            raise UserError("--memory_db and --user: give both, or none.")


def main(argv: Sequence[str]) -> None:
    """Loads the run and answers until the input ends."""
    given = flags.parse(ChatFlags, "chat", argv, first="weights")
    settings = flags.checked(
        ChatSettings,
        pool_mode=given.pool_mode,
        top_labels=given.top_labels,
        db_top_k=given.db_top_k,
        max_candidates_per_bucket=given.max_candidates_per_bucket,
        min_confidence=given.min_confidence,
    )
    with contextlib.ExitStack() as opened:
        if is_checkpoint(given.weights):
            imported = imported_chat(
                given.weights, meta=given.meta, has_store=given.llm_db is not None
            )
            run = opened.enter_context(imported)
            given = dataclasses.replace(given, weights=run, meta=None)
        check_shape(given)
        chat = Chat.load(
            given.weights,
            database=given.llm_db,
            settings=settings,
            device=given.device,
        )
        opened.enter_context(chat)
        memory = None
        if given.memory_db is not None and given.user is not None:
            memory = opened.enter_context(Memory(given.memory_db, given.user))
        conversation = open_conversation(chat, given, memory)
        if sys.stdin.isatty() and not given.json:
            # Colours and line editing; programs that pipe lines wait for neither.
            from prefchat_jax.cli.terminal import talk

            talk(conversation)
        else:
            answer_lines(conversation, as_json=given.json)


def open_conversation(
    chat: Chat, given: ChatFlags, memory: Memory | None = None
) -> Conversation:
    """The conversation that the flags ask for."""
    return Conversation(
        chat,
        memory,
        style=given.style_mode,
        creativity=given.creativity,
        temperature=given.response_temperature,
        seed=given.seed,
        why=given.why,
        explain=given.explain,
    )


def check_shape(given: ChatFlags) -> None:
    """Raises `UserError` where flags or --meta disagree with the run."""
    config = RunDirectory.open(given.weights).config()
    widths = dict(enumerate(config["model"]["branch_widths"]))
    sizes = dict(enumerate(BRANCH_WIDTHS))
    expected = {
        "model_size": config["model"].get("head", sizes.get(len(widths))),
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
