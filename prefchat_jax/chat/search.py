"""Search: the stored answers that are worth ranking, by words, vector and bucket."""

import functools
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.catalogue import Part, View
from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.store import NO_BUCKET
from prefchat_jax.text.packed import PackedBags
from prefchat_jax.text.words import WordQuery, telling, top

# A match in the response tells more than one in the question: few questions
# are asked twice in the same words.
RESPONSE_WORDS = 2.0


class Query(NamedTuple):
    """What is looked for.

    Attributes:
      words: to search for.
      features: float32 `[2**bits]` of the message with its context.
      vector: float32 `[d]` from the response scorer; d is 0 without one.
      buckets: float32 `[C]` probabilities; 0 for a bucket that does not count.
      known: the share of the message, in [0, 1], that training has seen: how far
        the classifier and the scorer can be asked about it.
      recent: float32 `[k, 2**bits]` features of the last replies.
    """

    words: WordQuery
    features: np.ndarray
    vector: np.ndarray
    buckets: np.ndarray
    known: float
    recent: np.ndarray


class Pool(NamedTuple):
    """Candidates and how they relate to a query; `n` of them.

    Attributes:
      ids: int64 `[n]` entries in the store.
      response_ids: int64 `[n]`; several entries may give one response.
      buckets: int32 `[n]`.
      words: float32 `[n]` BM25 scores.
      question: float32 `[n]` cosine of the query and the stored question.
      response: float32 `[n]` cosine of the query and the response.
      scorer: float32 `[n]` of the response scorer, cosine and value; 0 without one.
      repeat: float32 `[n]` the largest cosine of the response and a recent reply.
      signals: float32 `[n, styles]` how well each suits the built-in styles.
      response_bags: features of the responses.
    """

    ids: np.ndarray
    response_ids: np.ndarray
    buckets: np.ndarray
    words: np.ndarray
    question: np.ndarray
    response: np.ndarray
    scorer: np.ndarray
    repeat: np.ndarray
    signals: np.ndarray
    response_bags: PackedBags


def search(view: View, query: Query, settings: ChatSettings) -> Pool:
    """Collects candidates from all segments of a view.

    Those are the entries with the best words, the best entries of the responses
    with the best words and with the nearest vectors, and the most frequent
    responses of the probable buckets.
    """
    if not view.parts:
        return free_standing(*[np.zeros(0, np.float32)] * 3)
    questions = telling(query.words, [s.question_words for s in view.segments])
    responses = telling(query.words, [s.response_words for s in view.segments])
    pools = [
        _search_part(part, query, questions, responses, settings) for part in view.parts
    ]
    if len(pools) == 1:
        return pools[0]
    bags = PackedBags.concatenate([pool.response_bags for pool in pools])
    columns = [np.concatenate(c) for c in zip(*(p[:-1] for p in pools), strict=True)]
    return Pool._make([*columns, bags])


def free_standing(words: np.ndarray, response: np.ndarray, scorer: np.ndarray) -> Pool:
    """A pool of `n` responses that answered no stored question.

    Args:
      words: float32 `[n]` BM25 scores.
      response: float32 `[n]` cosines of the query and the responses.
      scorer: float32 `[n]` of the response scorer.
    """
    count = len(words)
    nothing, ids = np.zeros(count, np.float32), np.arange(count)
    nobody = np.full(count, NO_BUCKET, np.int32)
    none = PackedBags(np.zeros(count + 1, np.int64), nothing[:0], nothing[:0])
    given = words, nothing, response, scorer, nothing
    return Pool(ids, ids, nobody, *given, np.zeros((count, 0), np.float32), none)


def _search_part(
    part: Part,
    query: Query,
    question_words: WordQuery,
    response_words: WordQuery,
    settings: ChatSettings,
) -> Pool:
    segment, limit = part.segment, settings.db_top_k
    in_questions = segment.question_words.sums(question_words)
    in_responses = segment.response_words.sums(response_words)
    if part.alive is not None:
        in_questions *= part.alive
        in_responses *= part.responses
    likely = np.flatnonzero(query.buckets)
    routed = likely if settings.pool_mode == "topk" else None
    pooled = settings.max_candidates_per_bucket or 64
    there = part.responses
    responses = np.concatenate(
        [
            top(in_responses, limit // 2),
            segment.nearest(query.vector, limit // 2, buckets=routed, alive=there),
            segment.of_buckets(likely, pooled, alive=there),
        ]
    )
    entries = np.union1d(top(in_questions, limit), part.best_entries[responses])
    if routed is not None:
        entries = entries[np.isin(segment.buckets[entries], [-1, *likely])]
    rows = segment.rows[entries]
    bags = segment.response_bags.take(rows)
    return Pool(
        segment.ids[entries],
        segment.response_ids[rows],
        segment.buckets[entries],
        in_questions[entries] + RESPONSE_WORDS * in_responses[rows],
        segment.question_bags.take(entries).products(query.features),
        bags.products(query.features),
        segment.vectors.match(rows, query.vector),
        _repeat(bags, query.recent),
        segment.signals[rows],
        bags,
    )


def _repeat(bags: PackedBags, recent: np.ndarray) -> np.ndarray:
    nothing = np.zeros(len(bags.offsets) - 1, np.float32)
    return functools.reduce(np.maximum, map(bags.products, recent), nothing)
