"""Chat: load a run and reply."""

import dataclasses
import numbers
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import Catalogue, View
from prefchat_jax.chat.cleanup import clean
from prefchat_jax.chat.config import Calibration, ChatSettings
from prefchat_jax.chat.follow_up import learnt_history, may_lean
from prefchat_jax.chat.ranking import (
    RELEVANCE,
    Terms,
    best_by_response,
    diversify,
    draw,
    evidence,
    taste,
    total,
    weigh,
)
from prefchat_jax.chat.reading import Asked, Message, Reader
from prefchat_jax.chat.reply import Candidate, Explanation, Reply
from prefchat_jax.chat.search import (
    RESPONSE_WORDS,
    Pool,
    Query,
    free_standing,
    search,
)
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.chat.store import NO_BUCKET, Entry, ResponseStore
from prefchat_jax.chat.styles import (
    BUILT_IN,
    Style,
    get_style,
    infer_style,
    signals,
)
from prefchat_jax.errors import UserError
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import as_context
from prefchat_jax.text.words import WordIndex
from prefchat_jax.training.run_directory import RunDirectory

_SHOWN = 5  # Candidates that a reply carries,
_DIVERSE = 16  # chosen among so many.
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
        self._bits = inference.featurizer.config.bits
        self._settings = settings
        self._catalogue = Catalogue(store, self._bits)

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
        manner = _Manner(style, creativity, temperature, seed)
        start = time.perf_counter()
        view = self._catalogue.view()
        asked = self._asked(messages, histories)
        queries = self._queries(asked)
        shared = (time.perf_counter() - start) / max(len(messages), 1)
        replies = []
        for one, query in zip(asked, queries, strict=True):
            start = time.perf_counter()
            reply, _, _ = self._best_answer(view, one, query, manner)
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
        manner = _Manner(style, creativity, 0.0, 0)
        view = self._catalogue.view()
        (asked,) = self._asked([message], [history])
        (query,) = self._queries([asked])
        reply, asked, query = self._best_answer(view, asked, query, manner)
        spent = 1e3 * (time.perf_counter() - start)
        pool = search(view, query, self._settings)
        shown = manner.style_for(message)
        terms = self._terms(view, pool, query, shown, creativity)
        scores, relevance = total(terms), total(terms, RELEVANCE)
        best = best_by_response(scores, pool.response_ids)[:_EXPLAINED]
        found = self._candidates(pool, terms, scores, best)
        temperature = self.calibration.temperature
        probs = self._reader.probabilities(asked, temperature=temperature)
        return Explanation(
            dataclasses.replace(reply, milliseconds=spent),
            tuple(self._reader.searched(asked)),
            len(asked.history),
            self._named(probs),
            tuple(found.values()),
            tuple(self.calibration.confidence(float(relevance[i])) for i in found),
            self._threshold(),
            len(pool.ids),
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
        same = self.store.find_response(answer)
        bucket = same[0].bucket if same else NO_BUCKET
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

    def _best_answer(
        self, view: View, asked: Asked, query: Query, manner: "_Manner"
    ) -> tuple[Reply, Asked, Query]:
        """The reply, and what it answers.

        Where a message alone would be refused and may lean on the turns before it,
        that is the message with them, if it is not refused then.
        """
        reply = self._answer(view, query, asked.message, manner)
        leant = asked.context != asked.whole and may_lean(asked.message)
        if not (reply.abstained and leant):
            return reply, asked, query
        again = asked._replace(context=asked.whole)
        (query_again,) = self._queries([again])
        other = self._answer(view, query_again, again.message, manner)
        if other.abstained:
            return reply, asked, query
        return other, again, query_again

    def _answer(
        self, view: View, query: Query, message: str, manner: "_Manner"
    ) -> Reply:
        style = manner.style_for(message)
        buckets = self._named(query.buckets)
        pool = search(view, query, self._settings)
        terms = self._terms(view, pool, query, style, manner.creativity)
        scores, relevance = total(terms), total(terms, RELEVANCE)
        shown = self._shown(pool, scores, style)
        found = self._candidates(pool, terms, scores, shown)
        if not found:
            return Reply(_NOTHING_STORED, None, 0.0, True, style.name, [], buckets)
        order, candidates = list(found), list(found.values())
        confident = [self.calibration.confidence(float(relevance[i])) for i in order]
        threshold = self._threshold()
        if confident[0] < threshold:
            text = _ABSTENTION.format(self._nearest_question(pool, candidates[0]))
            best = candidates[0].bucket, confident[0], True
            return Reply(text, *best, style.name, candidates, buckets)
        # A draw is among what would not have been refused.
        among = [i for i in range(len(order)) if confident[i] >= threshold]
        among.sort(key=lambda i: -candidates[i].score)
        best_scores = np.array([candidates[i].score for i in among])
        pick = among[
            draw(best_scores, temperature=manner.temperature, seed=manner.seed)
        ]
        chosen = candidates[pick]
        text = style.show(clean(chosen.response), manner.creativity, message)
        picked = chosen.bucket, confident[pick], False
        return Reply(text, *picked, style.name, candidates, buckets)

    def _terms(
        self, view: View, pool: Pool, query: Query, style: Style, creativity: float
    ) -> Terms:
        found = evidence(pool, query, view.size)
        terms = weigh(found, self.calibration.weights, query.known)
        return terms | taste(
            pool,
            total(terms),
            self._signal(pool, style),
            style.weights,
            creativity=creativity,
            bits=self._bits,
        )

    def _signal(self, pool: Pool, style: Style) -> np.ndarray:
        """How well the candidates suit a style; stored for the built-in ones."""
        if style in BUILT_IN:
            return pool.signals[:, BUILT_IN.index(style)]
        texts = {entry.id: entry.response for entry in self.store.get(pool.ids)}
        return signals([texts.get(int(i), "") for i in pool.ids], style)

    def _shown(self, pool: Pool, scores: np.ndarray, style: Style) -> list[int]:
        order = best_by_response(scores, pool.response_ids)[:_DIVERSE]
        return diversify(
            order,
            scores,
            pool.response_bags,
            limit=_SHOWN,
            weight=style.weights.diversity,
            bits=self._bits,
        ).tolist()

    def _candidates(
        self,
        pool: Pool,
        terms: Terms,
        scores: np.ndarray,
        order: Sequence[int] | np.ndarray,
    ) -> dict[int, Candidate]:
        """By place in the pool, in this order; without those that just went."""
        entries = {entry.id: entry for entry in self.store.get(pool.ids[order])}
        return {
            place: self._candidate(entries[int(pool.ids[place])], terms, scores, place)
            for place in map(int, order)
            if int(pool.ids[place]) in entries
        }

    def _candidate(
        self, entry: Entry, terms: Terms, scores: np.ndarray, place: int
    ) -> Candidate:
        return Candidate(
            response=entry.response,
            question=entry.question,
            bucket=None if entry.bucket == NO_BUCKET else self.names[entry.bucket],
            score=float(scores[place]),
            terms={name: float(term[place]) for name, term in terms.items()},
            id=entry.id,
        )

    def _nearest_question(self, pool: Pool, best: Candidate) -> str:
        nearest = self.store.get(pool.ids[[int(np.argmax(pool.question))]])
        return nearest[0].question if nearest else best.question

    def _named(self, buckets: np.ndarray) -> dict[str, float]:
        likely = np.argsort(-buckets, kind="stable")[: np.count_nonzero(buckets)]
        return {self.names[i]: float(buckets[i]) for i in likely}

    def _threshold(self) -> float:
        given = self._settings.min_confidence
        return self.calibration.min_confidence if given is None else given


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How to answer; checked."""

    style: str
    creativity: float
    temperature: float
    seed: int

    def __post_init__(self):
        if self.style != "auto":
            get_style(self.style)
        for name in ("creativity", "temperature"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name} {value!r}: must be a number.")
        if not 0 <= self.creativity <= 1:
            raise UserError(f"creativity {self.creativity:g}: must be in [0, 1].")
        if not self.temperature >= 0:
            raise UserError(f"temperature {self.temperature:g}: must be at least 0.")

    def style_for(self, message: str) -> Style:
        return get_style(infer_style(message) if self.style == "auto" else self.style)


_NOTHING_STORED = "I have no stored answers yet."
_ABSTENTION = (
    "I do not have a stored answer for that. The nearest question I know: {!r}"
)
