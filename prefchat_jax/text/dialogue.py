"""Dialogues: turns, training examples, and how much each turn counts."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

ROLES = ("user", "assistant", "system", "tool")
# The same roles under the names that other tools give them.
ROLE_NAMES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "agent": "assistant",
    "developer": "system",
    "function": "tool",
}


class Turn(NamedTuple):
    """One message of a dialogue."""

    role: str
    content: str


Context = Sequence[Turn]


class Example(NamedTuple):
    """One training row: a context and the reply that was given.

    Attributes:
      context: turns, oldest first; the last one is the user's message.
      response: the reply, or `""` for a row that only carries a label.
      label: the bucket as written in the file (`str` or `int`), or None.
      intent: a readable name of the label, if the file has one.
      groups: rows that share one stay on one side of a split, as do rows whose
        user's message is the same.
      where: `file:line`, for messages about this row.
      source: the row's `source`, or its file.
      annotator: who labelled it, if the row says so.
    """

    context: tuple[Turn, ...]
    response: str
    label: str | int | None = None
    intent: str | None = None
    groups: tuple[str, ...] = ()
    where: str = ""
    source: str = ""
    annotator: str = ""

    @property
    def labeller(self) -> str:
        """Who is to be trusted for the label: a person, a data set, or a file."""
        return self.annotator or self.source

    @property
    def question(self) -> str:
        """The user's message that the response answers."""
        return self.context[-1].content


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnWeights:
    """How much the earlier turns of a context count beside the last one.

    The last turn weighs 1. A turn `k` steps before it weighs its role's weight
    times `decay**k`. At most `max_turns` earlier turns are read.
    """

    user: float = 0.5
    assistant: float = 0.3
    system: float = 0.2
    tool: float = 0.2
    decay: float = 0.7
    max_turns: int = 8


def weighted_turns(context: Context, weights: TurnWeights) -> list[tuple[str, float]]:
    """Pairs the text of each turn that counts with its weight, oldest first."""
    if not context:
        return []
    last = len(context) - 1
    first = max(0, last - weights.max_turns)
    history = [
        (turn.content, getattr(weights, turn.role) * weights.decay ** (last - i))
        for i, turn in enumerate(context[first:last], start=first)
    ]
    return [*history, (context[last].content, 1.0)]


def as_context(message: str, history: Sequence[Turn | tuple | dict] = ()) -> Context:
    """Builds a context from a new user message and the turns before it.

    Args:
      message: what the user just said.
      history: earlier turns, oldest first: `Turn`, `(role, content)`, or
        `{"role": ..., "content": ...}`.

    Raises:
      ValueError: a turn has an unknown role or another form.
    """
    return [*map(_as_turn, history), Turn("user", message)]


def _as_turn(turn: Turn | tuple | dict) -> Turn:
    try:
        made = (
            Turn(turn["role"], turn["content"])
            if isinstance(turn, dict)
            else Turn(*turn)
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"A turn needs a role and a content, got {turn!r}.") from error
    if made.role not in ROLES:
        raise ValueError(f"Unknown role {made.role!r}: use one of {', '.join(ROLES)}.")
    return made
