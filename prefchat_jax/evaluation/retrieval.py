"""One of 100: does the true reply rank first among those of other contexts?

Answered rows whose response has at least three words, each response once, are
shuffled and cut into blocks of 100. Each context of a block ranks the block's
100 responses. The contexts are real and so are the distractors, nothing stored
helps, and a system is a function of contexts and responses.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from prefchat_jax.baselines import BM25, TfIdf
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import bootstrap_interval
from prefchat_jax.evaluation.ranks import Ranks, rank_rows
from prefchat_jax.text.dialogue import Context, Example, Turn

CANDIDATES = 100
_SHORTEST = 3  # Words: "yes please" answers half of all questions.
_SEED = 1234

Block = Sequence[Example]


class Scorer(Protocol):
    """How well each response fits each context, `[contexts, responses]`."""

    def __call__(
        self, contexts: Sequence[Context], responses: Sequence[str]
    ) -> np.ndarray:
        """Scores one block."""
        ...


class ScoresResponses(Protocol):
    """A chat that scores responses that are not stored."""

    def score_responses(
        self,
        messages: Sequence[str],
        responses: Sequence[str],
        *,
        histories: Sequence[Sequence[Turn]] | None = None,
    ) -> np.ndarray:
        """Relevance `[messages, responses]`."""
        ...


class Retrieval(NamedTuple):
    """One-of-100 of a system, by row.

    Attributes:
      system: its name.
      rows: by-row arrays, see `Ranks`.
    """

    system: str
    rows: Ranks

    def means(self) -> dict[str, list[float]]:
        """Mean, and lower and upper end of its 95 % interval, by figure."""
        return {
            name: [float(np.mean(values)), *bootstrap_interval(values, draws=2000)]
            for name, values in self.rows._asdict().items()
        }


def blocks(examples: Sequence[Example]) -> list[Block]:
    """The blocks of the protocol; the rows that do not fill one are left out.

    Raises:
      UserError: there are too few distinct responses for a block.
    """
    distinct: dict[str, Example] = {}
    for example in examples:
        if len(example.response.split()) >= _SHORTEST:
            distinct.setdefault(example.response, example)
    if len(distinct) < CANDIDATES:
        raise UserError(
            f"one of {CANDIDATES} needs {CANDIDATES} different responses of "
            f"{_SHORTEST} words or more, the rows have {len(distinct)}: give more rows."
        )
    rows = list(distinct.values())
    order = np.random.default_rng(_SEED).permutation(len(rows))
    whole = order[: len(rows) // CANDIDATES * CANDIDATES].reshape(-1, CANDIDATES)
    return [[rows[i] for i in block] for block in whole]


def one_of_100(made: Sequence[Block], scorer: Scorer) -> Ranks:
    """Ranks of the true responses, arrays `[100 * len(made)]`.

    Args:
      made: from `blocks`.
      scorer: scores a block's contexts against its responses.
    """
    parts = [
        rank_rows(
            scorer([row.context for row in block], [row.response for row in block]),
            np.arange(len(block)),
        )
        for block in made
    ]
    return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def chat_scorer(chat: ScoresResponses) -> Scorer:
    """A run as a system."""
    return lambda contexts, responses: chat.score_responses(
        [context[-1].content for context in contexts],
        responses,
        histories=[context[:-1] for context in contexts],
    )


def last_message(context: Context) -> str:
    """The query that forgets what was said before."""
    return context[-1].content


def whole_context(context: Context) -> str:
    """The query of all turns."""
    return " ".join(turn.content for turn in context)


QUERIES = {"last message": last_message, "whole context": whole_context}


def bm25_systems(made: Sequence[Block], train: Sequence[Example]) -> list[Retrieval]:
    """BM25 of both queries, with the statistics of the block, and of training.

    Those of training are of all training responses and of those to be ranked.

    Raises:
      UserError: bm25s is not installed.
    """
    scorers = {"the block": lambda queries, texts: BM25(texts).scores(queries)}
    if train:
        ranked = [row.response for block in made for row in block]
        texts = _distinct([*(row.response for row in train), *ranked])
        place = {text: number for number, text in enumerate(texts)}
        index = BM25(texts)
        scorers["training"] = lambda queries, texts: index.scores(
            queries, [place[text] for text in texts]
        )
    return [
        Retrieval(
            f"BM25, {query}, statistics of {source}",
            one_of_100(
                made,
                lambda contexts, responses, scores=scores, text=text: scores(
                    list(map(text, contexts)), responses
                ),
            ),
        )
        for source, scores in scorers.items()
        for query, text in QUERIES.items()
    ]


def tfidf_systems(made: Sequence[Block], train: Sequence[Example]) -> list[Retrieval]:
    """TF-IDF cosine of both queries, fitted on the training texts.

    Those are the messages and the responses, or the ranked responses if there
    are no training rows.

    Raises:
      UserError: scikit-learn is not installed.
    """
    texts = [text for row in train for text in (row.question, row.response)]
    index = TfIdf(_distinct(texts) or [row.response for block in made for row in block])
    found = []
    for query, text in QUERIES.items():
        scorer = lambda contexts, responses, text=text: index.scores(
            list(map(text, contexts)), responses
        )
        found.append(Retrieval(f"TF-IDF, {query}", one_of_100(made, scorer)))
    return found


def best(systems: Sequence[Retrieval]) -> Retrieval:
    """The system with the highest recall at 1; the first of equals."""
    return max(systems, key=lambda system: float(np.mean(system.rows.recall_at_1)))


def _distinct(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
