"""Chat: load a run and reply."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from prefchat_jax.chat.cleanup import clean
from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.ranking import (
    RELEVANCE,
    Terms,
    best_by_response,
    draw,
    fuse_buckets,
    lexical_scores,
    score_terms,
)
from prefchat_jax.chat.store import NO_BUCKET, Entries, ResponseStore
from prefchat_jax.chat.styles import STYLES, infer_style, strip_cues, stylise
from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import ModelConfig, Params
from prefchat_jax.text.dialogue import Context, Turn, as_context
from prefchat_jax.text.features import Bags, Featurizer
from prefchat_jax.training.checkpoints import fingerprint, load_model
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import predict

_SHOWN = 5  # Candidates that a reply carries.
_RECENT = 4  # Earlier replies that a new one should not repeat.


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A stored answer that was considered.

    Attributes:
      response: the stored text.
      question: the stored question that it answered.
      bucket: its label, or None if it was added without training.
      score: the sum of `terms`.
      terms: what each term of the ranking added.
    """

    response: str
    question: str
    bucket: str | None
    score: float
    terms: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the chat says, and why.

    Attributes:
      text: what to show: stored text in the chosen style, or the abstention.
      bucket: the label of the chosen candidate; None if it has none.
      confidence: the relevance of what is answered, in [0, 1].
      abstained: whether even the best candidate was below the threshold.
      style: the style that was used.
      candidates: the best stored answers, best first.
      milliseconds: from the message to the reply.
    """

    text: str
    bucket: str | None
    confidence: float
    abstained: bool
    style: str
    candidates: list[Candidate]
    milliseconds: float

    @property
    def why(self) -> str:
        """One line: the terms behind the choice, and the nearest question."""
        if not self.candidates:
            return "nothing is stored"
        best = self.candidates[0]
        parts = [f"{k} {v:+.2f}" for k, v in best.terms.items() if abs(v) >= 0.005]
        return f"{' '.join(parts)}; nearest stored question: {best.question!r}"


class Chat:
    """A trained run that answers. Make one with `Chat.load`."""

    def __init__(
        self,
        featurizer: Featurizer,
        model: ModelConfig,
        params: Params,
        names: Sequence[str],
        store: ResponseStore,
        settings: ChatSettings,
        *,
        bucket_weight: float,
    ):
        self._featurizer = featurizer
        self._model = model
        self._params = params
        self._names = names
        self._store = store
        self._settings = settings
        self.bucket_weight = bucket_weight
        self._pool = store.pool(settings.max_candidates_per_bucket or 64)
        self._places = {int(i): place for place, i in enumerate(self._pool.ids)}

    @classmethod
    def load(
        cls,
        run: str | os.PathLike,
        *,
        database: str | os.PathLike | None = None,
        settings: ChatSettings = ChatSettings(),
    ) -> "Chat":
        """Loads the best checkpoint of a run and its stored replies.

        Args:
          run: the run directory that `prefchat finetune` wrote.
          database: another database of replies, made with this run.
          settings: how to search and when to abstain.

        Raises:
          UserError: the run or the database cannot be read.
        """
        directory = RunDirectory.open(run)
        config = directory.config()
        model, params = load_model(directory)
        featurizer = directory.featurizer()
        store = ResponseStore.open(
            pathlib.Path(database) if database else directory.store,
            fingerprint=fingerprint(params, featurizer),
            max_features=featurizer.config.max_features,
        )
        measured = {
            "max_candidates_per_bucket": config["finetune"][
                "max_candidates_per_bucket"
            ],
            "min_confidence": config["min_confidence"],
        }
        unset = {k: v for k, v in measured.items() if getattr(settings, k) is None}
        names = [str(bucket["name"]) for bucket in directory.read_json("labels.json")]
        return cls(
            featurizer,
            model,
            params,
            names,
            store,
            dataclasses.replace(settings, **unset),
            bucket_weight=config["bucket_weight"],
        )

    def reply(
        self,
        message: str,
        *,
        history: Sequence[Turn | tuple | dict] = (),
        style: str = "auto",
        creativity: float = 0.2,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:
        """Answers one message.

        Args:
          message: what the user says.
          history: earlier turns, oldest first: `(role, content)`, `Turn`, or
            `{"role": ..., "content": ...}`.
          style: `auto` reads it from the message.
          creativity: in [0, 1]; moves weight to less obvious replies.
          temperature: 0 gives the best reply, above it one of the best is drawn.
          seed: of the draw.

        Raises:
          ValueError: an argument is out of range.
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
        histories: Sequence[Sequence[Turn | tuple | dict]] | None = None,
        style: str = "auto",
        creativity: float = 0.2,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Reply]:
        """Answers many messages; their features and buckets are computed at once."""
        _check_arguments(style, creativity, temperature)
        start = time.perf_counter()
        contexts = [
            as_context(strip_cues(message), history)
            for message, history in zip(
                messages, histories or [()] * len(messages), strict=True
            )
        ]
        bags = self._featurizer(contexts)
        logits = predict(self._model, self._params, *self._featurizer.embedded(bags))
        probs = _softmax(logits)
        shared = (time.perf_counter() - start) / max(len(messages), 1)
        replies = []
        for i, context in enumerate(contexts):
            start = time.perf_counter()
            query = Bags(bags.ids[i : i + 1], bags.weights[i : i + 1])
            chosen = infer_style(messages[i]) if style == "auto" else style
            reply = self._choose(
                context, query, probs[i], chosen, creativity, temperature, seed
            )
            spent = 1e3 * (time.perf_counter() - start + shared)
            replies.append(dataclasses.replace(reply, milliseconds=spent))
        return replies

    def add(self, question: str, answer: str) -> None:
        """Stores an answer, without training; it can be found at once.

        An answer that a bucket holds already joins that bucket.
        """
        if not question.strip() or not answer.strip():
            raise ValueError("A stored answer needs a question and an answer.")
        same = [
            b
            for b, r in zip(self._pool.buckets, self._pool.responses, strict=True)
            if r == answer
        ]
        bags = self._featurizer.texts([question, answer])
        one = lambda i: Bags(bags.ids[i : i + 1], bags.weights[i : i + 1])
        bucket = same[0] if same else NO_BUCKET
        self._store.add([question], [answer], [bucket], one(0), one(1))

    def close(self) -> None:
        """Closes the database; `with Chat.load(...) as chat:` does it too."""
        self._store.close()

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store)

    def _choose(
        self,
        context: Context,
        query: Bags,
        probs: np.ndarray,
        style: str,
        creativity: float,
        temperature: float,
        seed: int,
    ) -> Reply:
        bucket_scores = fuse_buckets(probs, self._settings.top_labels)
        said = " ".join(turn.content for turn in context[-3:] if turn.role == "user")
        found = self._store.search(said, self._settings.db_top_k)
        entries = self._candidates(found, bucket_scores)
        if not len(entries.ids):
            return Reply(_NOTHING_STORED, None, 0.0, True, style, [], 0.0)
        terms = score_terms(
            entries,
            query,
            lexical_scores(entries, found, len(self._store)),
            bucket_scores,
            self._recent(context),
            bits=self._featurizer.config.bits,
            bucket_weight=self.bucket_weight,
            style=style,
            creativity=creativity,
        )
        scores = np.sum(list(terms.values()), axis=0)
        order = best_by_response(scores, entries.responses)
        relevance = np.sum([terms[name] for name in RELEVANCE], axis=0)
        threshold = self._settings.min_confidence or 0.0
        candidates = [
            self._candidate(entries, terms, scores, place) for place in order[:_SHOWN]
        ]
        best = float(relevance[order[0]])
        if best < threshold:
            text = _ABSTENTION.format(candidates[0].question)
            bucket = candidates[0].bucket
            return Reply(text, bucket, best, True, style, candidates, 0.0)
        # A draw is among what would not have been refused.
        answerable = order[:_SHOWN][relevance[order[:_SHOWN]] >= threshold]
        pick = draw(scores[answerable], temperature=temperature, seed=seed)
        chosen = self._candidate(entries, terms, scores, answerable[pick])
        text = stylise(
            clean(chosen.response),
            style,
            creativity=creativity,
            message=context[-1].content,
        )
        confidence = float(relevance[answerable[pick]])
        return Reply(text, chosen.bucket, confidence, False, style, candidates, 0.0)

    def _candidates(
        self, found: dict[int, float], bucket_scores: np.ndarray
    ) -> Entries:
        """The pooled entries and those that the text search adds."""
        missing = [i for i in found if i not in self._places]
        entries = self._pool
        if missing:
            entries = Entries.concatenate([entries, self._store.get(missing)])
        if self._settings.pool_mode == "topk":
            known = entries.buckets != NO_BUCKET
            entries = entries.select(~known | (bucket_scores[entries.buckets] > 0))
        return entries

    def _candidate(
        self, entries: Entries, terms: Terms, scores: np.ndarray, place: int
    ) -> Candidate:
        number = entries.buckets[place]
        return Candidate(
            response=entries.responses[place],
            question=entries.questions[place],
            bucket=None if number == NO_BUCKET else self._names[number],
            score=float(scores[place]),
            terms={name: float(term[place]) for name, term in terms.items()},
        )

    def _recent(self, context: Context) -> Bags:
        shown = [turn.content for turn in context if turn.role == "assistant"]
        return self._featurizer.texts(shown[-_RECENT:])


def _check_arguments(style: str, creativity: float, temperature: float) -> None:
    if style not in ("auto", *STYLES):
        raise UserError(f"style {style!r}: use auto, {', '.join(STYLES)}.")
    if not 0 <= creativity <= 1:
        raise UserError(f"creativity {creativity:g}: must be in [0, 1].")
    if not temperature >= 0:
        raise UserError(f"temperature {temperature:g}: must be at least 0.")


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


_NOTHING_STORED = "I have no stored answers yet."
_ABSTENTION = (
    "I do not have a stored answer for that. The nearest question I know: {!r}"
)
