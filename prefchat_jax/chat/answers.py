"""Answers as a store keeps them: with features and vectors."""

from collections.abc import Iterable, Sequence

import numpy as np

from prefchat_jax.chat.store import Answers
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import Context
from prefchat_jax.text.packed import encode, sketch


def as_answers(
    inference: Inference,
    contexts: Sequence[Context],
    responses: Sequence[str],
    buckets: Iterable[int],
) -> Answers:
    """Featurises answered questions for one run.

    Args:
      inference: the run's.
      contexts: `n` dialogues, each ending with the question.
      responses: `n` answers.
      buckets: `n` bucket numbers, or `NO_BUCKET`.
    """
    featurizer = inference.featurizer
    bits = featurizer.config.bits
    # Replies repeat: each distinct one is featurised once.
    distinct = {text: i for i, text in enumerate(dict.fromkeys(responses))}
    bags = featurizer.texts(distinct)
    features = encode(sketch(bags), bits)
    vectors = np.zeros((len(distinct), 0), np.float16)
    if inference.scorer is not None:
        vectors = inference.encode_responses(bags).astype(np.float16)
    places = np.array([distinct[text] for text in responses], np.int64)
    return Answers(
        [context[-1].content for context in contexts],
        responses,
        np.fromiter(buckets, np.int32, len(responses)),
        encode(sketch(featurizer(contexts)), bits),
        [features[place] for place in places],
        vectors[places],
    )
