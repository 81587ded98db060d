"""Reading: what a message asks for, as a search takes it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.cues import strip_cues
from prefchat_jax.chat.follow_up import counted
from prefchat_jax.chat.ranking import fuse_buckets
from prefchat_jax.chat.refusal import is_refusal
from prefchat_jax.chat.search import Query
from prefchat_jax.inference import Inference, softmax
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Context, Turn, as_context, weighted_turns
from prefchat_jax.text.packed import dense, sketch
from prefchat_jax.text.words import WordQuery

_RECENT = 4  # Earlier replies that a new one should not repeat.

Message = Turn | tuple | dict


class Asked(NamedTuple):
    """A message, the turns before it, and the context that is searched with."""

    message: str
    history: tuple[Turn, ...]
    context: tuple[Turn, ...]


class Reader:
    """Reads messages by the models of one run."""

    def __init__(self, inference: Inference, top_labels: int):
        self._inference = inference
        self._featurizer = inference.featurizer
        self._bits = inference.featurizer.config.bits
        self._top_labels = top_labels

    def asked(
        self,
        messages: Sequence[str],
        histories: Sequence[Sequence[Message]] | None,
        *,
        learnt: bool,
    ) -> list[Asked]:
        """What counts of each message and of the turns before it.

        Args:
          messages: `n` messages.
          histories: the turns before each, oldest first; None is none.
          learnt: whether the run learnt what to make of earlier turns.

        Raises:
          ValueError: a turn has an unknown role or another form.
        """
        asked = []
        for message, history in zip(
            messages, histories or [()] * len(messages), strict=True
        ):
            *earlier, last = as_context(strip_cues(message), history)
            said = [turn for turn in earlier if not _refused(turn)]
            kept = counted(message, said, learnt=learnt)
            asked.append(Asked(message, tuple(earlier), (*kept, last)))
        return asked

    def queries(self, asked: Sequence[Asked], *, temperature: float) -> list[Query]:
        """What is searched for, `n` of them; features are computed at once.

        Args:
          asked: from `asked`.
          temperature: the bucket logits are divided by it.
        """
        contexts = [one.context for one in asked]
        bags = self._featurizer(contexts)
        probs = self._probabilities(bags, contexts, temperature)
        vectors = np.zeros((len(asked), 0), np.float32)
        if self._inference.scorer is not None:
            vectors = self._inference.encode_contexts(bags)
        turns = self._featurizer.config.turns
        return [
            Query(
                WordQuery.of(weighted_turns(one.context, turns)),
                dense(bags.ids[i], bags.weights[i], self._bits),
                vectors[i],
                fuse_buckets(probs[i], self._top_labels),
                self._featurizer.known(bags, i),
                self._recent(one.history),
            )
            for i, one in enumerate(asked)
        ]

    def probabilities(self, asked: Asked, *, temperature: float) -> np.ndarray:
        """Of all buckets, float32 `[C]`."""
        contexts = [asked.context]
        bags = self._featurizer(contexts)
        return self._probabilities(bags, contexts, temperature)[0]

    def searched(self, asked: Asked) -> list[tuple[str, float]]:
        """The texts that are searched for, and how much each counts."""
        return weighted_turns(asked.context, self._featurizer.config.turns)

    def responses(self, texts: Sequence[str]) -> tuple[Bags, np.ndarray]:
        """Sketches of responses, and their vectors, float32 `[n, d]`."""
        bags = self._featurizer.texts(texts)
        if self._inference.scorer is None:
            return sketch(bags), np.zeros((len(texts), 0), np.float32)
        return sketch(bags), self._inference.encode_responses(bags)

    def scores(self, asked: Sequence[Asked], responses: Sequence[str]) -> np.ndarray:
        """Of each message and the response of its place, by the response scorer.

        Returns:
          float32 `[n]`.

        Raises:
          ValueError: the run has no response scorer.
        """
        contexts = self._featurizer([one.context for one in asked])
        x = self._inference.encode_contexts(contexts)
        return np.einsum("nd,nd->n", x, self.responses(responses)[1])

    def _probabilities(
        self, bags: Bags, contexts: Sequence[Context], temperature: float
    ) -> np.ndarray:
        logits = self._inference.bucket_logits(bags, contexts)
        return softmax(logits / np.float32(temperature))

    def _recent(self, history: Context) -> np.ndarray:
        replies = [turn for turn in history if turn.role == "assistant"]
        shown = [turn.content for turn in replies if not _refused(turn)]
        bags = self._featurizer.texts(shown[-_RECENT:])
        rows = [dense(*row, self._bits) for row in zip(*bags, strict=True)]
        return np.array(rows, np.float32).reshape(len(rows), 2**self._bits)


def _refused(turn: Turn) -> bool:
    return turn.role == "assistant" and is_refusal(turn.content)
