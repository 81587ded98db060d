"""Responses as training rows: what a reply says is what people ask it for."""

from collections.abc import Sequence

import numpy as np

from prefchat_jax.text.dialogue import Context, Example, Turn
from prefchat_jax.text.sentences import split_sentences

_SHORTEST = 3  # Words of a sentence that says enough.


def response_rows(
    examples: Sequence[Example], labels: np.ndarray, *, limit: int, seed: int
) -> tuple[list[Context], np.ndarray]:
    """Makes a row of every sentence of every distinct reply, labelled as the reply.

    Args:
      examples: training rows.
      labels: `[n]` their buckets.
      limit: the most rows to make; more are drawn at random.
      seed: of the draw.

    Returns:
      Contexts of one user turn, and their buckets.
    """
    bucket_of = {
        example.response: int(label)
        for example, label in zip(examples, labels, strict=True)
        if example.response
    }
    rows = [
        (sentence, bucket)
        for response, bucket in bucket_of.items()
        for sentence in split_sentences(response)
        if len(sentence.split()) >= _SHORTEST
    ]
    if len(rows) > limit:
        drawn = np.random.default_rng([seed, 0x5E]).permutation(len(rows))[:limit]
        rows = [rows[i] for i in sorted(drawn)]
    contexts: list[Context] = [(Turn("user", sentence),) for sentence, _ in rows]
    return contexts, np.array([bucket for _, bucket in rows], np.int32)
