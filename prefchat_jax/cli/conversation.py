"""A conversation: what was said, and how it goes on; prints nothing."""

import dataclasses
from typing import NamedTuple

from prefchat_jax.chat.memory import Memory, recall, session_start
from prefchat_jax.chat.reply import Explanation, Reply
from prefchat_jax.chat.session import Chat
from prefchat_jax.text.dialogue import Turn


class Exchange(NamedTuple):
    """A message, the turns it was asked with, and the reply."""

    message: str
    history: list[Turn]
    reply: Reply

    def holds(self, turn: Turn) -> bool:
        """Whether a turn is part of it."""
        said = Turn("user", self.message), Turn("assistant", self.reply.text)
        return turn in (*self.history, *said)


@dataclasses.dataclass
class Conversation:
    """Talks to a chat, and remembers.

    Attributes:
      chat: answers.
      memory: of the user, or None.
      style: see `Chat.reply`, as are the next three.
      creativity: see `Chat.reply`.
      temperature: see `Chat.reply`.
      seed: of the first message; later ones count on.
      why: whether replies are shown with the reason.
      explain: whether they are shown with all candidates.
      history: the turns so far, oldest first; with a memory, those of the last
        hour to begin with.
      exchanges: those of this session.
    """

    chat: Chat
    memory: Memory | None = None
    style: str = "auto"
    creativity: float = 0.2
    temperature: float = 0.0
    seed: int = 0
    why: bool = False
    explain: bool = False
    history: list[Turn] = dataclasses.field(default_factory=list)
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if self.memory is not None:
            self.history = session_start(self.memory) + self.history

    def say(self, message: str) -> Reply:
        """Answers a message, which with its reply becomes part of the history.

        Raises:
          UserError: a setting is out of range, or a file cannot be used.
        """
        history = list(self.history)
        if self.memory is not None:
            history = recall(self.memory, message, history)
        reply = self.chat.reply(
            message,
            history=history,
            style=self.style,
            creativity=self.creativity,
            temperature=self.temperature,
            seed=self.seed + len(self.exchanges),
        )
        said = [Turn("user", message), Turn("assistant", reply.text)]
        if self.memory is not None:
            for turn in said:
                self.memory.remember(*turn)
        self.history += said
        self.exchanges.append(Exchange(message, history, reply))
        return reply

    def explanation(self) -> Explanation | None:
        """What led to the best reply to the last message; None before the first."""
        if not self.exchanges:
            return None
        last = self.exchanges[-1]
        return self.chat.explain(
            last.message,
            history=last.history,
            style=self.style,
            creativity=self.creativity,
        )

    def clear(self) -> None:
        """Goes on as if nothing had been said; a memory keeps what it holds."""
        self.history.clear()

    def forget(self, turn_id: int | None) -> int:
        """Removes a turn of the memory, or all, and what this session holds of it.

        Returns:
          How many turns the memory lost.

        Raises:
          UserError: the file cannot be used; the session has forgotten in any case.
        """
        if self.memory is None:
            return 0
        if turn_id is None:
            self.history.clear()
            self.exchanges.clear()
            return self.memory.forget()
        turns = self.memory.turns()
        for place, one in enumerate(turns):
            if one.id == turn_id:
                # The history ends as the memory does: so many equal turns follow.
                later = [other.turn for other in turns[place + 1 :]].count(one.turn)
                self._drop(one.turn, later)
        return self.memory.forget([turn_id])

    def _drop(self, turn: Turn, later: int) -> None:
        """Removes a turn, after which `later` equal ones stay, and what holds it."""
        places = [i for i, said in enumerate(self.history) if said == turn]
        if later < len(places):
            del self.history[places[-1 - later]]
        self.exchanges = [
            exchange for exchange in self.exchanges if not exchange.holds(turn)
        ]

    def stats(self) -> dict[str, str]:
        """Figures of this session by name."""
        replies = [exchange.reply for exchange in self.exchanges]
        times = sorted(reply.milliseconds for reply in replies)
        figures = {
            "stored answers": f"{len(self.chat)}",
            "messages": f"{len(replies)}",
            "refused": f"{sum(reply.abstained for reply in replies)}",
            "median time": f"{times[len(times) // 2]:.1f} ms" if times else "-",
            "turns in the history": f"{len(self.history)}",
            "style": self.style,
            "creativity": f"{self.creativity:g}",
        }
        if self.memory is not None:
            figures["turns remembered"] = f"{len(self.memory)}"
        return figures
