"""Chat: load a run and reply."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import Catalogue, View
from prefchat_jax.chat.composing import Composer, Manner, Ranked
from prefchat_jax.chat.config import Calibration, ChatSettings
from prefchat_jax.chat.follow_up import learnt_history
from prefchat_jax.chat.ranking import Terms, evidence, total, weigh
from prefchat_jax.chat.reading import Asked, Message, Reader
from prefchat_jax.chat.reply import Explanation, Reply
from prefchat_jax.chat.search import RESPONSE_WORDS, Pool, Query, free_standing, search
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.chat.store import NO_BUCKET, ResponseStore
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import as_context
from prefchat_jax.text.words import WordIndex
from prefchat_jax.training.run_directory import RunDirectory

_EXPLAINED = 10  # Candidates of an explanation.


class Chat:
    """A trained run that answers. Make one with `Chat.load`.

    Any number of threads may ask it; another process may add and delete answers.

    Attributes:
      calibration: what the run measured on its validation rows.
      learnt_history: whether it learnt what to make of earlier turns; without,
        they count only where a message leans on them.
      names: of the buckets.
      store: the stored answers.
    """

    def __init__(
        self,
        inference: Inference,
        names: Sequence[str],
        store: SqliteStore,
        settings: ChatSettings,
        calibration: Calibration,
        history_share: float | None = None,
    ):
        self.calibration = calibration
        self.learnt_history = learnt_history(history_share)
        self.names = names
        self.store: ResponseStore = store
        self._inference = inference
        self._reader = Reader(inference, settings.top_labels)
        self._settings = settings
        bits = inference.featurizer.config.bits
        self._catalogue = Catalogue(store, bits)
        self._composer = Composer(store, names, bits)

    @classmethod
    def load(
        cls,
        run: str | os.PathLike,
        *,
        database: str | os.PathLike | None = None,
        settings: ChatSettings = ChatSettings(),
        device: str = "auto",
    ) -> "Chat":
        """Loads the best checkpoint of a run and its stored replies.

        Args:
          run: the run directory that `prefchat finetune` wrote.
          database: another database of replies, made with this run.
          settings: how to search and when to abstain.
          device: "gpu" or "tpu" computes bucket logits there; otherwise NumPy
            does and JAX is not imported.

        Raises:
          UserError: the run or the database cannot be read.
        """
        directory = RunDirectory.open(run)
        config = directory.config()
        inference = Inference.load(directory, device=device)
        path = pathlib.Path(database) if database else directory.store
        store = SqliteStore.open(
            path,
            fingerprint=inference.fingerprint,
            bits=inference.featurizer.config.bits,
        )
        names = directory.bucket_names()
        pooled = config["finetune"]["max_candidates_per_bucket"]
        if settings.max_candidates_per_bucket is None:
            settings = dataclasses.replace(settings, max_candidates_per_bucket=pooled)
        calibration, share = Calibration.read(config), config.get("history")
        return cls(inference, names, store, settings, calibration, share)

    def reply(
        self,
        message: str,
        *,
        history: Sequence[Message] = (),
        style: str = "auto",
        creativity: float = 0.2,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:
        """Answers one message.

        Args:
          message: what the user says.
          history: earlier turns, oldest first: `(role, content)`, `Turn`, or
            `{"role": ..., "content": ...}`. A run whose training rows had none
            reads them only where the message needs them (chat/follow_up.py).
          style: `auto` reads it from the message.
          creativity: in [0, 1]; moves weight to less obvious replies.
          temperature: 0 gives the best reply, above it one of the best is drawn.
          seed: of the draw.

        Raises:
          ValueError: an argument is out of range.
          TypeError: the message is no text, or a number no number.
        """
        return self.reply_batch(
            [message],
            histories=[history],
            style=style,
            creativity=creativity,
            temperature=temperature,
            seed=seed,
        )[0]

    def reply_batch(
        self,
        messages: Sequence[str],
        *,
        histories: Sequence[Sequence[Message]] | None = None,
        style: str = "auto",
        creativity: float = 0.2,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Reply]:
        """Answers many messages; their features and buckets are computed at once."""
        manner = Manner(style, creativity, temperature, seed)
        start = time.perf_counter()
        view = self._catalogue.view()
        asked = self._asked(messages, histories)
        queries = self._queries(asked)
        shared = (time.perf_counter() - start) / max(len(messages), 1)
        replies = []
        for one, query in zip(asked, queries, strict=True):
            start = time.perf_counter()
            _, reply = self._answer(view, query, one.message, manner)
            spent = 1e3 * (time.perf_counter() - start + shared)
            replies.append(dataclasses.replace(reply, milliseconds=spent))
        return replies

    def explain(
        self,
        message: str,
        *,
        history: Sequence[Message] = (),
        style: str = "auto",
        creativity: float = 0.2,
    ) -> Explanation:
        """The best reply to a message, and everything that led to it.

        Takes what `reply` takes, and raises what it raises.
        """
        start = time.perf_counter()
        manner = Manner(style, creativity)
        view = self._catalogue.view()
        (asked,) = self._asked([message], [history])
        (query,) = self._queries([asked])
        ranked, reply = self._answer(view, query, message, manner)
        spent = 1e3 * (time.perf_counter() - start)
        found = self._composer.candidates(ranked, ranked.best(_EXPLAINED))
        sure = [self.calibration.confidence(float(ranked.relevance[i])) for i in found]
        temperature = self.calibration.temperature
        probs = self._reader.probabilities(asked, temperature=temperature)
        return Explanation(
            dataclasses.replace(reply, milliseconds=spent),
            tuple(self._reader.searched(asked)),
            len(asked.history),
            self._composer.named(probs),
            tuple(found.values()),
            tuple(sure),
            self._threshold(),
            len(ranked.pool.ids),
        )

    def score_responses(
        self,
        messages: Sequence[str],
        responses: Sequence[str],
        *,
        histories: Sequence[Sequence[Message]] | None = None,
    ) -> np.ndarray:
        """Relevance of responses that need not be stored, to every message.

        They have no question and no bucket: only their own words, features and
        vectors count.

        Returns:
          float32 `[messages, responses]`.
        """
        rows = [
            total(weigh(found, self.calibration.weights))
            for found in self.response_terms(messages, responses, histories=histories)
        ]
        return np.array(rows, np.float32).reshape(len(messages), len(responses))

    def scorer_scores(
        self,
        messages: Sequence[str],
        responses: Sequence[str],
        *,
        histories: Sequence[Sequence[Message]] | None = None,
    ) -> np.ndarray:
        """What the response scorer alone says of one response to each message.

        Returns:
          float32 `[n]`: cosines, and the values of a tuned scorer.

        Raises:
          ValueError: the run has no response scorer.
        """
        return self._reader.scores(self._asked(messages, histories), responses)

    def response_terms(
        self,
        messages: Sequence[str],
        responses: Sequence[str],
        *,
        histories: Sequence[Sequence[Message]] | None = None,
    ) -> Iterator[Terms]:
        """The terms behind `score_responses` before they are weighted, by message."""
        view = self._catalogue.view()
        bags, vectors = self._reader.responses(responses)
        words = WordIndex.build(responses)
        stored = [segment.response_words for segment in view.segments]
        nothing = np.zeros(len(responses), np.float32)
        for query in self._queries(self._asked(messages, histories)):
            pool = free_standing(
                RESPONSE_WORDS * words.scores(query.words, among=stored),
                np.einsum("nf,nf->n", query.features[bags.ids], bags.weights),
                vectors @ query.vector if len(query.vector) else nothing,
            )
            found = evidence(pool, query, view.size + len(responses))
            yield found | {"bucket": nothing}

    def pools(
        self,
        messages: Sequence[str],
        *,
        histories: Sequence[Sequence[Message]] | None = None,
    ) -> Iterator[tuple[Pool, Terms]]:
        """The candidates of each message with the terms that weights would weigh."""
        view = self._catalogue.view()
        for query in self._queries(self._asked(messages, histories)):
            pool = search(view, query, self._settings)
            yield pool, evidence(pool, query, view.size)

    def add(self, question: str, answer: str) -> int:
        """Stores an answer, without training; it can be found at once.

        An answer that a bucket holds already joins that bucket.

        Returns:
          The id of the entry, once it is safe on disk.
        """
        if not question.strip() or not answer.strip():
            raise ValueError("A stored answer needs a question and an answer.")
        same = [entry.bucket for entry in self.store.find_response(answer)]
        known = [bucket for bucket in same if bucket != NO_BUCKET]
        bucket = max(known, key=known.count, default=NO_BUCKET)
        answers = as_answers(
            self._inference, [as_context(question)], [answer], [bucket]
        )
        return int(self.store.add(answers)[0])

    def close(self) -> None:
        """Closes the database; `with Chat.load(...) as chat:` does it too."""
        self.store.close()

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._catalogue.view().size

    def _asked(
        self,
        messages: Sequence[str],
        histories: Sequence[Sequence[Message]] | None,
    ) -> list[Asked]:
        if isinstance(messages, str):  # Each letter would be a message.
            raise TypeError("messages is one text: give a list of texts.")
        for message in messages:
            if not isinstance(message, str):
                raise TypeError(f"message {message!r}: must be text.")
        return self._reader.asked(messages, histories, learnt=self.learnt_history)

    def _queries(self, asked: Sequence[Asked]) -> list[Query]:
        temperature = self.calibration.temperature
        return self._reader.queries(asked, temperature=temperature)

    def _answer(
        self, view: View, query: Query, message: str, manner: Manner
    ) -> tuple[Ranked, Reply]:
        ranked = self._composer.rank(
            search(view, query, self._settings),
            query,
            view.size,
            self.calibration,
            manner.style_for(message),
            manner.creativity,
        )
        return ranked, self._composer.reply(
            ranked,
            query.buckets,
            message,
            manner,
            calibration=self.calibration,
            threshold=self._threshold(),
            stored=view.size,
        )

    def _threshold(self) -> float:
        given = self._settings.min_confidence
        return self.calibration.min_confidence if given is None else given
