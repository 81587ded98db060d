"""Batching: one thread owns the replies and answers who waits, together.

It never waits for more: while it answers, others queue, and those who ask in the
same manner are its next batch.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from prefchat_jax.chat.reply import Reply
from prefchat_jax.text.dialogue import Turn


class Manner(NamedTuple):
    """What the requests of one batch share; the arguments of `Chat.reply_batch`."""

    style: str
    creativity: float
    temperature: float
    seed: int


class Answers(Protocol):
    """What a batcher asks: a `Chat`."""

    def reply_batch(
        self,
        messages: Sequence[str],
        *,
        histories: Sequence[Sequence[Turn]] | None = None,
        style: str,
        creativity: float,
        temperature: float,
        seed: int,
    ) -> list[Reply]:
        """Answers many messages."""
        ...


class Overloaded(Exception):
    """As many requests as may wait are waiting."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    turns: Sequence[Turn]
    manner: Manner
    future: Future[Reply]


class Batcher:
    """Answers conversations in one thread of its own.

    Args:
      chat: what answers.
      max_batch: requests that are answered at once, at most.
      max_waiting: requests that may wait, at most.
      observe: called in that thread with the size of each batch.
    """

    def __init__(
        self,
        chat: Answers,
        *,
        max_batch: int = 32,
        max_waiting: int = 256,
        observe: Callable[[int], None] = lambda size: None,
    ):
        self._chat = chat
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="replies", daemon=True)
        self._thread.start()

    def submit(self, turns: Sequence[Turn], manner: Manner) -> Future[Reply]:
        """Asks for a reply to the last turn; never blocks.

        A future that is cancelled before its turn comes is never answered.

        Raises:
          Overloaded: too many are waiting.
        """
        future: Future[Reply] = Future()
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._forget_cancelled()
            if len(self._waiting) >= self._max_waiting or self._stopping:
                raise Overloaded
            self._waiting.append(_Waiting(turns, manner, future))
            self._changed.notify()
        return future

    @property
    def alive(self) -> bool:
        """Whether the thread still answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            wanted = [w for w in batch if w.future.set_running_or_notify_cancel()]
            if wanted:
                self._observe(len(wanted))
                self._answer(wanted)

    def _next_batch(self) -> list[_Waiting]:
        """The first who waits, and those who ask in its manner; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if not self._waiting:
                return []
            manner = self._waiting[0].manner
            batch: list[_Waiting] = []
            others: list[_Waiting] = []
            for one in self._waiting:
                alike = one.manner == manner and len(batch) < self._max_batch
                (batch if alike else others).append(one)
            self._waiting = collections.deque(others)
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            replies = self._chat.reply_batch(
                [one.turns[-1].content for one in batch],
                histories=[one.turns[:-1] for one in batch],
                **batch[0].manner._asdict(),
            )
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for one in batch:  # What fails for one need not fail for the others.
                self._answer([one])
            return
        for one, reply in zip(batch, replies, strict=True):
            one.future.set_result(reply)

    def _forget_cancelled(self) -> None:
        left = (one for one in self._waiting if not one.future.cancelled())
        self._waiting = collections.deque(left)
