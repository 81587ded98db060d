"""Ranking: what each candidate scores, term by term, as array arithmetic.

Relevance is a weighted mean of four numbers in [0, 1]: how well the words of the
message match the candidate, how much the question that it answered resembles the
message, how much its response does, and how probable its bucket is. Style,
novelty and repetition then raise or lower the score by a share of that
relevance, so that they decide between candidates that fit about equally well
and never promote one that does not fit.
"""

import dataclasses

import numpy as np

from prefchat_jax.chat.store import NO_BUCKET, Entries
from prefchat_jax.chat.styles import style_signal
from prefchat_jax.text.features import Bags, cosine

Terms = dict[str, np.ndarray]

RELEVANCE = ("lexical", "question", "response", "bucket")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingWeights:
    """Weights of one style. The weight of the bucket is measured by each run."""

    lexical: float = 0.4
    question: float = 0.2
    response: float = 0.4
    style: float = 0.0
    novelty: float = 0.3  # At creativity 1.
    repeat: float = 0.25


STYLE_WEIGHTS = {
    "balanced": RankingWeights(),
    "creative": RankingWeights(style=0.2, novelty=0.6, repeat=0.35),
    "concise": RankingWeights(style=0.3, novelty=0.1),
    "analyst": RankingWeights(style=0.2, novelty=0.1),
}


def fuse_buckets(probs: np.ndarray, top_labels: int) -> np.ndarray:
    """Keeps the probabilities `[C]` of the `top_labels` most probable buckets.

    They are not renormalised: an unsure classifier should count for little.
    """
    top = np.argsort(-probs, kind="stable")[:top_labels]
    fused = np.zeros_like(probs)
    fused[top] = probs[top]
    return fused


def lexical_scores(
    entries: Entries, found: dict[int, float], stored: int
) -> np.ndarray:
    """BM25 scores of the entries, squeezed to [0, 1): `s / (s + c)`.

    Scores grow with the logarithm of the number of stored entries, and so does
    `c`: a middling match is near one half in any store.
    """
    scores = np.array([found.get(int(i), 0.0) for i in entries.ids], np.float32)
    return scores / (scores + 1.25 * np.log(stored + 2))


def score_terms(
    entries: Entries,
    query: Bags,
    lexical: np.ndarray,
    bucket_scores: np.ndarray,
    recent: Bags,
    *,
    bits: int,
    bucket_weight: float,
    style: str,
    creativity: float,
) -> Terms:
    """What each term adds to the score of each candidate.

    Args:
      entries: the candidates, `n` of them.
      query: features of the message with its context, one bag.
      lexical: `[n]` from `lexical_scores`.
      bucket_scores: `[C]` from `fuse_buckets`.
      recent: features of the recent replies as they were shown.
      bits: log2 of the number of feature ids.
      bucket_weight: weight of the bucket beside the other terms of relevance.
      style: one of `STYLES`.
      creativity: in [0, 1]; how much less obvious replies gain.

    Returns:
      float32 `[n]` by term; their sum is the score.
    """
    weights = STYLE_WEIGHTS[style]
    total = weights.lexical + weights.question + weights.response + bucket_weight
    question = cosine(query, entries.question_bags, bits)[0]
    response = cosine(query, entries.response_bags, bits)[0]
    terms = {
        "lexical": weights.lexical / total * lexical,
        "question": weights.question / total * question,
        "response": weights.response / total * response,
    }
    bucket = _bucket_evidence(entries.buckets, bucket_scores, _total(terms))
    terms["bucket"] = bucket_weight / total * bucket
    relevance = _total(terms)
    shown = cosine(recent, entries.response_bags, bits)
    signal = np.array([style_signal(text, style) for text in entries.responses])
    terms["style"] = relevance * weights.style * signal
    terms["novelty"] = (
        relevance * creativity * weights.novelty * _novelty(entries.response_bags, bits)
    )
    repeat = shown.max(axis=0, initial=0.0)
    terms["repeat"] = -relevance * weights.repeat * repeat
    return {name: term.astype(np.float32) for name, term in terms.items()}


def best_by_response(scores: np.ndarray, responses: list[str]) -> np.ndarray:
    """Places of the best candidate of each distinct response, best first."""
    seen: dict[str, int] = {}
    for place in np.argsort(-scores, kind="stable"):
        seen.setdefault(responses[place], int(place))
    return np.array(list(seen.values()), np.int64)


def draw(scores: np.ndarray, *, temperature: float, seed: int, among: int = 4) -> int:
    """The first place, or one of the first few drawn by `score^(1/temperature)`.

    Powers of scores do not depend on their scale: a temperature of 0.1 gives a
    candidate at 90 % of the best score about 0.35 times its probability.

    Args:
      scores: positive scores in descending order.
      temperature: 0 takes the best.
      seed: of the draw.
      among: how many of the best can be drawn.
    """
    if temperature == 0:
        return 0
    logits = np.log(np.maximum(scores[:among], 1e-9)) / temperature
    probs = np.exp(logits - logits.max())
    rng = np.random.default_rng([seed, 0xD4])
    return int(rng.choice(len(probs), p=probs / probs.sum()))


def _total(terms: Terms) -> np.ndarray:
    return np.sum(list(terms.values()), axis=0)


def _bucket_evidence(
    buckets: np.ndarray, bucket_scores: np.ndarray, text: np.ndarray
) -> np.ndarray:
    """The probability of each entry's bucket.

    The classifier cannot speak for an entry without a bucket: that gets the
    highest probability in proportion to how well its text matches beside the
    best match, so that it wins where its text does.
    """
    share = text / max(text.max(initial=0.0), 1e-9)
    unknown = bucket_scores.max(initial=0.0) * share
    return np.where(buckets != NO_BUCKET, bucket_scores[buckets], unknown)


def _novelty(responses: Bags, bits: int) -> np.ndarray:
    """How far each response is from the mean response of the pool, in [0, 1]."""
    mean = np.bincount(
        responses.ids.ravel(), responses.weights.ravel(), minlength=2**bits
    )
    mean /= max(np.linalg.norm(mean), 1e-12)
    return 1 - np.einsum("nf,nf->n", mean[responses.ids], responses.weights)
