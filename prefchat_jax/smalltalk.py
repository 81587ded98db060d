"""Small talk: ranking true replies of real dialogues, against BM25."""

import hashlib
import warnings

import numpy as np

from prefchat_jax.baselines import BM25
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation import Ranks, rank_metrics
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer, cosine

_HELD_OUT = 20  # One dialogue in twenty.
_CANDIDATES = 100
_ROWS = 1000

Pair = tuple[tuple[Turn, ...], str]


def compare_retrieval(seed: int = 0) -> dict[str, Ranks]:
    """1-of-100 accuracy and MRR on held-out dialogues of `chitchat-dataset`.

    Each held-out reply is ranked among itself and 99 others by its likeness to
    the context: the cosine of our hashed features with document frequencies
    from the training dialogues, and BM25 of the last message (with the whole
    context BM25 does worse).

    Raises:
      UserError: the extra `demo` is not installed.
    """
    train, held_out = _pairs()
    rng = np.random.default_rng(seed)
    rows = [held_out[i] for i in rng.permutation(len(held_out))[:_ROWS]]
    responses = [response for _, response in rows]
    others = np.stack(
        [
            rng.choice(np.delete(np.arange(len(rows)), i), _CANDIDATES - 1, False)
            for i in range(len(rows))
        ]
    )
    pools = np.concatenate([np.arange(len(rows))[:, None], others], axis=1)
    right = np.zeros(len(rows), np.int64)
    featurizer = Featurizer.fit([context for context, _ in train], FeatureConfig())
    queries = featurizer([context for context, _ in rows])
    ours = cosine(queries, featurizer.texts(responses), featurizer.config.bits)
    bm25 = BM25(responses).scores([context[-1].content for context, _ in rows])
    scores = {"BM25 (bm25s)": bm25, "hashed features": ours}
    return {
        name: rank_metrics(np.take_along_axis(matrix, pools, axis=1), right)
        for name, matrix in scores.items()
    }


def _pairs() -> tuple[list[Pair], list[Pair]]:
    """(context, reply) pairs of the training and of the held-out dialogues."""
    try:
        import chitchat_dataset
    except ImportError as error:
        raise UserError(
            "Small talk needs chitchat-dataset: pip install 'prefchat-jax[demo]'."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # It leaves its file open.
        dialogues = chitchat_dataset.Dataset()
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for name, dialogue in sorted(dialogues.items()):
        is_held_out = hashlib.blake2b(name.encode()).digest()[0] % _HELD_OUT == 0
        parts[is_held_out].extend(_dialogue_pairs(dialogue["messages"]))
    return parts


def _dialogue_pairs(messages: list) -> list[Pair]:
    texts = [" ".join(part["text"] for part in message).strip() for message in messages]
    texts = [text for text in texts if text]
    roles = ("user", "assistant")
    pairs = []
    for end in range(1, len(texts)):
        # The speaker before the reply is the user, whoever that is.
        context = tuple(
            Turn(roles[(end - 1 - i) % 2], text) for i, text in enumerate(texts[:end])
        )
        pairs.append((context, texts[end]))
    return pairs
