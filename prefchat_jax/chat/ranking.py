"""Ranking: what each candidate scores, term by term, as array arithmetic.

Relevance is a weighted mean of five numbers in [0, 1]: how well the words of the
message match the candidate, how much the question that it answered and its
response resemble the message, how well the response scorer likes it, and how
probable its bucket is. Style, novelty and repetition then raise or lower the
score by a share of that relevance, so that they decide between candidates that
fit about equally well and never promote one that does not fit.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from prefchat_jax.chat.config import RelevanceWeights
from prefchat_jax.chat.search import Pool, Query
from prefchat_jax.chat.store import NO_BUCKET
from prefchat_jax.chat.styles import StyleWeights
from prefchat_jax.text.packed import PackedBags

Terms = dict[str, np.ndarray]


RELEVANCE = tuple(field.name for field in dataclasses.fields(RelevanceWeights))
_COLDEST = 1e-6  # Temperature below which a draw is the best reply.


def fuse_buckets(probs: np.ndarray, top_labels: int) -> np.ndarray:
    """Keeps the probabilities `[C]` of the `top_labels` most probable buckets.

    They are not renormalised: an unsure classifier should count for little.
    """
    top = np.argsort(-probs, kind="stable")[:top_labels]
    fused = np.zeros_like(probs)
    fused[top] = probs[top]
    return fused


def evidence(pool: Pool, query: Query, stored: int) -> Terms:
    """The terms of relevance before they are weighted, float32 `[n]` in [0, 1].

    A classifier is as sure of a message of words that it never saw as of any
    other: what the two models say counts by the share of the message that they
    know. BM25 scores grow with the logarithm of the number of stored entries, and so
    does what they are compared with: a middling match is near one half in any
    store.

    Args:
      pool: the candidates.
      query: what the candidates are for.
      stored: number of stored entries.
    """
    words = pool.words / (pool.words + np.float32(1.25 * np.log(stored + 2)))
    scorer = np.float32(query.known) * np.clip(pool.scorer, 0, 1)
    text = words + pool.question + pool.response + scorer
    return {
        "words": words,
        "question": pool.question,
        "response": pool.response,
        "scorer": scorer,
        "bucket": _bucket_evidence(pool.buckets, query.known * query.buckets, text),
    }


def weigh(found: Terms, weights: RelevanceWeights, known: float = 1.0) -> Terms:
    """What each term adds to the relevance, a weighted mean in [0, 1].

    Args:
      found: from `evidence`.
      weights: of the terms.
      known: share of the message that the models know. Of the rest they say
        nothing, rather than that nothing fits: text alone decides there.
    """
    given = dataclasses.asdict(weights)
    unknown = (1 - known) * (weights.scorer + weights.bucket)
    total = (sum(given.values()) - unknown) or 1.0
    return {name: np.float32(given[name] / total) * found[name] for name in RELEVANCE}


def taste(
    pool: Pool,
    relevance: np.ndarray,
    signal: np.ndarray,
    weights: StyleWeights,
    *,
    creativity: float,
    bits: int,
) -> Terms:
    """What style, novelty and repetition add to the score of each candidate.

    Args:
      pool: the candidates.
      relevance: float32 `[n]`.
      signal: float32 `[n]` how well each candidate suits the style, in [0, 1].
      weights: of the style.
      creativity: in [0, 1]; how much less obvious replies gain.
      bits: log2 of the number of feature ids.
    """
    novelty = creativity * weights.novelty
    return {
        "style": relevance * np.float32(weights.style) * signal,
        "novelty": relevance * np.float32(novelty) * _novelty(pool.response_bags, bits),
        "repeat": -relevance * np.float32(weights.repeat) * pool.repeat,
    }


def total(terms: Terms, names: Sequence[str] | None = None) -> np.ndarray:
    """The sum of all terms, or of some."""
    return np.sum([terms[name] for name in names or terms], axis=0)


def best_by_response(scores: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
    """Places of the best candidate of each distinct response, best first."""
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(response_ids[order], return_index=True)
    return order[np.sort(first)]


def diversify(
    order: np.ndarray,
    scores: np.ndarray,
    bags: PackedBags,
    *,
    limit: int,
    weight: float,
    bits: int,
) -> np.ndarray:
    """The best candidate, and then those that score well and say something else.

    Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): the score of a
    candidate loses a share by how much its response is like one that is chosen.

    Args:
      order: places of the candidates, best first; few, all with distinct responses.
      scores: float32 `[n]` of all candidates.
      bags: features of all responses.
      limit: how many to choose.
      weight: the share that a copy loses; 0 leaves the order as it is.
      bits: log2 of the number of feature ids.
    """
    if weight == 0 or len(order) < 2:
        return order[:limit]
    bags, scores = bags.take(order), scores[order]
    nearest, chosen = np.zeros(len(order), np.float32), []
    while len(chosen) < min(limit, len(order)):
        gains = scores * (1 - weight * nearest)
        gains[chosen] = -np.inf
        chosen.append(int(np.argmax(gains)))
        likeness = bags.products(bags.dense(chosen[-1], bits))
        nearest = np.minimum(np.maximum(nearest, likeness), 1)
    return order[chosen]


def draw(scores: np.ndarray, *, temperature: float, seed: int, among: int = 4) -> int:
    """The first place, or one of the first few drawn by `score^(1/temperature)`.

    Powers of scores do not depend on their scale: a temperature of 0.1 gives a
    candidate at 90 % of the best score about 0.35 times its probability.

    Args:
      scores: positive scores in descending order.
      temperature: 0, or next to it, takes the best.
      seed: of the draw.
      among: how many of the best can be drawn.
    """
    if temperature < _COLDEST:
        return 0
    logits = np.log(np.maximum(scores[:among], 1e-9)) / temperature
    probs = np.exp(logits - logits.max())
    rng = np.random.default_rng([seed, 0xD4])
    return int(rng.choice(len(probs), p=probs / probs.sum()))


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
    known = bucket_scores[np.maximum(buckets, 0)]
    return np.where(buckets != NO_BUCKET, known, unknown).astype(np.float32)


def _novelty(responses: PackedBags, bits: int) -> np.ndarray:
    """How far each response is from the mean response of the pool, in [0, 1]."""
    return 1 - responses.products(responses.mean(2**bits))
