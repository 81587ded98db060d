"""Small talk: ranking true replies of real dialogues, against BM25."""

import hashlib
import warnings
from collections.abc import Sequence

from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.retrieval import (
    Block,
    Retrieval,
    best,
    blocks,
    bm25_systems,
    one_of_100,
)
from prefchat_jax.text.bags import cosine
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer

_HELD_OUT = 20  # One dialogue in twenty.
_BLOCKS = 20  # 2,000 contexts: a minute.


def compare_retrieval() -> list[Retrieval]:
    """One-of-100 on held-out dialogues of `chitchat-dataset`.

    BM25 with the query and the statistics that suit it best, and the cosine of
    our hashed features with document frequencies from the training dialogues.

    Raises:
      UserError: the extra `demo` is not installed.
    """
    train, held_out = _examples()
    made = blocks(held_out)[:_BLOCKS]
    return [best(bm25_systems(made, train)), _hashed_features(made, train)]


def _hashed_features(made: Sequence[Block], train: Sequence[Example]) -> Retrieval:
    config = FeatureConfig()
    featurizer = Featurizer.fit([row.context for row in train], config)
    scorer = lambda contexts, responses: cosine(
        featurizer(contexts), featurizer.texts(responses), config.bits
    )
    return Retrieval("hashed features", one_of_100(made, scorer))


def _examples() -> tuple[list[Example], list[Example]]:
    """The replies of the training and of the held-out dialogues."""
    try:
        import chitchat_dataset
    except ImportError as error:
        raise UserError(
            "Small talk needs chitchat-dataset: pip install 'prefchat-jax[demo]'."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # It leaves its file open.
        dialogues = chitchat_dataset.Dataset()
    parts: tuple[list[Example], list[Example]] = ([], [])
    for name, dialogue in sorted(dialogues.items()):
        is_held_out = hashlib.blake2b(name.encode()).digest()[0] % _HELD_OUT == 0
        parts[is_held_out].extend(_dialogue_examples(dialogue["messages"]))
    return parts


def _dialogue_examples(messages: list) -> list[Example]:
    texts = [" ".join(part["text"] for part in message).strip() for message in messages]
    texts = [text for text in texts if text]
    roles = ("user", "assistant")
    examples = []
    for end in range(1, len(texts)):
        # The speaker before the reply is the user, whoever that is.
        context = tuple(
            Turn(roles[(end - 1 - i) % 2], text) for i, text in enumerate(texts[:end])
        )
        examples.append(Example(context, texts[end]))
    return examples
