"""Ranking: what each candidate scores, term by term, as array arithmetic.

Relevance is a weighted mean of three numbers in [0, 1]: how much the question
that a candidate answered resembles the message, how much its response does, and
how probable its bucket is. Style, novelty and repetition then raise or lower
the score by a share of that relevance, so that they decide between candidates
that fit about equally well and never promote one that does not fit.
"""

import dataclasses

import numpy as np

from prefchat_jax.chat.store import NO_BUCKET, Entries
from prefchat_jax.chat.styles import style_signals
from prefchat_jax.text.features import Bags, cosine

Terms = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingWeights:
    """Weights of one style; the first three sum to one."""

    question: float = 0.35
    response: float = 0.05
    bucket: float = 0.6
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
    """Keeps the `top_labels` most probable buckets of `[C]`, renormalised."""
    top = np.argsort(-probs, kind="stable")[:top_labels]
    fused = np.zeros_like(probs)
    fused[top] = probs[top] / probs[top].sum()
    return fused


def score_terms(
    entries: Entries,
    query: Bags,
    bucket_scores: np.ndarray,
    recent: Bags,
    *,
    bits: int,
    style: str,
    creativity: float,
) -> Terms:
    """What each term adds to the score of each candidate.

    Args:
      entries: the candidates, `n` of them.
      query: features of the message with its context, one bag.
      bucket_scores: `[C]` from `fuse_buckets`.
      recent: features of the recent replies as they were shown.
      bits: log2 of the number of feature ids.
      style: one of `STYLES`.
      creativity: in [0, 1]; how much less obvious replies gain.

    Returns:
      float32 `[n]` by term; their sum is the score.
    """
    weights = STYLE_WEIGHTS[style]
    question = cosine(query, entries.question_bags, bits)[0]
    # An entry without a bucket has only its question to show.
    known = entries.buckets != NO_BUCKET
    bucket = np.where(known, bucket_scores[entries.buckets], question)
    terms = {
        "question": weights.question * question,
        "response": weights.response * cosine(query, entries.response_bags, bits)[0],
        "bucket": weights.bucket * bucket,
    }
    relevance = sum(terms.values())
    shown = cosine(recent, entries.response_bags, bits)
    terms["style"] = relevance * weights.style * style_signals(entries.responses)[style]
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


def _novelty(responses: Bags, bits: int) -> np.ndarray:
    """How far each response is from the mean response of the pool, in [0, 1]."""
    mean = np.bincount(
        responses.ids.ravel(), responses.weights.ravel(), minlength=2**bits
    )
    mean /= max(np.linalg.norm(mean), 1e-12)
    return 1 - np.einsum("nf,nf->n", mean[responses.ids], responses.weights)
