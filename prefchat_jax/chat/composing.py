"""Composing: which of the ranked candidates is said, and how."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.cleanup import clean
from prefchat_jax.chat.config import Calibration
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
from prefchat_jax.chat.refusal import NOTHING_STORED, refusal
from prefchat_jax.chat.reply import Candidate, Reply
from prefchat_jax.chat.search import Pool, Query
from prefchat_jax.chat.store import NO_BUCKET, Entry, ResponseStore
from prefchat_jax.chat.styles import BUILT_IN, Style, get_style, infer_style, signals
from prefchat_jax.errors import UserError

_SHOWN = 5  # Candidates that a reply carries,
_DIVERSE = 16  # chosen among so many.


@dataclasses.dataclass(frozen=True)
class Manner:
    """How to answer; checked. See `Chat.reply`.

    Raises:
      UserError: there is no such style, or a number is out of range.
      TypeError: what should be a number is none.
    """

    style: str
    creativity: float
    temperature: float = 0.0
    seed: int = 0

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
        """The style, as the message asks for it if it is `auto`."""
        return get_style(infer_style(message) if self.style == "auto" else self.style)


class Ranked(NamedTuple):
    """The candidates of a message and what they score; `n` of them.

    Attributes:
      pool: the candidates.
      style: they are ranked for.
      terms: of the score, float32 `[n]` each.
      scores: float32 `[n]` their sum.
      relevance: float32 `[n]` the sum of those that say how well each fits.
    """

    pool: Pool
    style: Style
    terms: Terms
    scores: np.ndarray
    relevance: np.ndarray

    def best(self, limit: int) -> np.ndarray:
        """Places of the best candidates with distinct responses, best first."""
        return best_by_response(self.scores, self.pool.response_ids)[:limit]


class Composer:
    """Ranks candidates of one store and makes replies of them."""

    def __init__(self, store: ResponseStore, names: Sequence[str], bits: int):
        self._store = store
        self._names = names
        self._bits = bits

    def rank(
        self,
        pool: Pool,
        query: Query,
        stored: int,
        calibration: Calibration,
        style: Style,
        creativity: float,
    ) -> Ranked:
        """Scores the candidates.

        Args:
          pool: from `search`.
          query: what they were searched for.
          stored: number of stored entries.
          calibration: has the weights of the terms.
          style: to rank for.
          creativity: in [0, 1].
        """
        found = evidence(pool, query, stored)
        terms = weigh(found, calibration.weights, query.known)
        relevance = total(terms, RELEVANCE)
        terms |= taste(
            pool,
            relevance,
            self._signal(pool, style),
            style.weights,
            creativity=creativity,
            bits=self._bits,
        )
        return Ranked(pool, style, terms, total(terms), relevance)

    def reply(
        self,
        ranked: Ranked,
        buckets: np.ndarray,
        message: str,
        manner: Manner,
        *,
        calibration: Calibration,
        threshold: float,
        stored: int,
    ) -> Reply:
        """What is said.

        Args:
          ranked: the candidates.
          buckets: float32 `[C]` probabilities of those that count.
          message: what the user said.
          manner: how to answer.
          calibration: makes a confidence of a relevance.
          threshold: a reply of less confidence is refused.
          stored: number of stored entries.
        """
        style, named = ranked.style, self.named(buckets)
        found = self.candidates(ranked, self._shown(ranked))
        if not found:
            nothing = refusal("") if stored else NOTHING_STORED
            return Reply(nothing, None, 0.0, True, style.name, [], named)
        candidates = list(found.values())
        confident = [calibration.confidence(float(ranked.relevance[i])) for i in found]
        if confident[0] < threshold:
            text = refusal(self._nearest_question(ranked.pool, candidates[0]))
            best = candidates[0].bucket, confident[0], True
            return Reply(text, *best, style.name, candidates, named)
        # A draw is among what would not have been refused.
        among = [i for i, sure in enumerate(confident) if sure >= threshold]
        among.sort(key=lambda i: -candidates[i].score)
        scores = np.array([candidates[i].score for i in among])
        pick = among[draw(scores, temperature=manner.temperature, seed=manner.seed)]
        chosen = candidates[pick]
        text = style.show(clean(chosen.response), manner.creativity, message)
        picked = chosen.bucket, confident[pick], False
        return Reply(text, *picked, style.name, candidates, named)

    def candidates(
        self, ranked: Ranked, order: Sequence[int] | np.ndarray
    ) -> dict[int, Candidate]:
        """By place in the pool, in this order; without those that just went."""
        ids = ranked.pool.ids[order].tolist()
        entries = {entry.id: entry for entry in self._store.get(ids)}
        return {
            place: self._candidate(entries[number], ranked, place)
            for place, number in zip(map(int, order), ids, strict=True)
            if number in entries
        }

    def named(self, buckets: np.ndarray) -> dict[str, float]:
        """Probabilities above 0 by the names of the buckets, largest first."""
        likely = np.argsort(-buckets, kind="stable")[: np.count_nonzero(buckets)]
        return {self._names[i]: float(buckets[i]) for i in likely}

    def _candidate(self, entry: Entry, ranked: Ranked, place: int) -> Candidate:
        return Candidate(
            response=entry.response,
            question=entry.question,
            bucket=None if entry.bucket == NO_BUCKET else self._names[entry.bucket],
            score=float(ranked.scores[place]),
            terms={name: float(term[place]) for name, term in ranked.terms.items()},
            id=entry.id,
        )

    def _shown(self, ranked: Ranked) -> np.ndarray:
        return diversify(
            ranked.best(_DIVERSE),
            ranked.scores,
            ranked.pool.response_bags,
            limit=_SHOWN,
            weight=ranked.style.weights.diversity,
            bits=self._bits,
        )

    def _signal(self, pool: Pool, style: Style) -> np.ndarray:
        """How well the candidates suit a style; stored for the built-in ones."""
        if style in BUILT_IN:
            return pool.signals[:, BUILT_IN.index(style)]
        texts = {entry.id: entry.response for entry in self._store.get(pool.ids)}
        return signals([texts.get(int(i), "") for i in pool.ids], style)

    def _nearest_question(self, pool: Pool, best: Candidate) -> str:
        nearest = self._store.get(pool.ids[[int(np.argmax(pool.question))]])
        return nearest[0].question if nearest else best.question
