"""Features: a batch of contexts to ids and weights, tf-idf with unit norm.

The ids are those of hashed n-grams, in `2**bits` (feature hashing: Weinberger et
al., https://arxiv.org/abs/0902.2206).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.text.dialogue import Context, Turn, TurnWeights, weighted_turns
from prefchat_jax.text.ngrams import hash_ngrams

HASH_VERSION = 1  # Raise it when the same text would get other ids.

_BLOCK = 512  # Contexts hashed at once: keeps the buffers inside the cache.


class Bags(NamedTuple):
    """Bags of hashed features, padded to a common length.

    Attributes:
      ids: int32 `[n, max_features]`; padding has id 0.
      weights: float32 `[n, max_features]`, largest first; padding weighs 0.
        A row has unit Euclidean norm before its lightest features are cut; it
        is all zero for an empty text.
    """

    ids: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What is hashed, and into how many ids.

    Words live in the upper half of the ids and character n-grams in the lower.
    Each half is normalised on its own, since a text has many more character
    n-grams than words; `word_share` is the words' part of the squared norm.
    An embedding is learned for what at least `min_count` training texts hold.
    """

    bits: int = 16
    char_ngrams: tuple[int, ...] = (3, 4)
    word_share: float = 0.5
    max_features: int = 192
    min_count: int = 2
    turns: TurnWeights = dataclasses.field(default_factory=TurnWeights)


@dataclasses.dataclass(frozen=True)
class Featurizer:
    """Turns contexts into `Bags`. Training and chat share this one function.

    Attributes:
      config: what is hashed.
      idf: float32 `[2**bits]` inverse document frequencies.
      rows: int32 `[2**bits]` the embedding of each id, counted from 1; 0 for
        an id that is too rare to learn.
      scorer_rows: the same for the response scorer, which also reads responses;
        None where there is no scorer.
    """

    config: FeatureConfig
    idf: np.ndarray
    rows: np.ndarray
    scorer_rows: np.ndarray | None = None

    @classmethod
    def fit(
        cls,
        contexts: Sequence[Context],
        config: FeatureConfig,
        responses: Iterable[str] = (),
    ) -> "Featurizer":
        """Learns the document frequencies of the last turns of `contexts`.

        With `responses`, also the features that the last turns and the distinct
        responses together hold often enough to be learned by a scorer.
        """
        counts = _document_counts(_questions(contexts), config)
        idf = np.log((len(contexts) + 1) / (counts + 1)) + 1
        fitted = cls(config, idf.astype(np.float32), _numbered(counts, config))
        responses = list(responses)
        return fitted._with_scorer(counts, responses) if responses else fitted

    def with_scorer(
        self, contexts: Sequence[Context], responses: Iterable[str]
    ) -> "Featurizer":
        """The same featurizer with rows for a scorer of these texts; see `fit`."""
        counts = _document_counts(_questions(contexts), self.config)
        return self._with_scorer(counts, responses)

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any],
    ) -> "Featurizer":
        """Rebuilds the featurizer of a run.

        Args:
          settings: of the `FeatureConfig`, as config.json has them.
          arrays: those of the featurizer, by name.
          model: what config.json says of the classifier that reads them.
        """
        config = FeatureConfig(
            **dict(settings)
            | {
                "turns": TurnWeights(**settings["turns"]),
                "char_ngrams": tuple(settings["char_ngrams"]),
            }
        )
        # A run of an older version has no rows for a scorer, nor a scorer.
        return cls(config, arrays["idf"], arrays["rows"], arrays.get("scorer_rows"))

    @property
    def num_rows(self) -> int:
        """Embeddings to learn, rounded up so that similar corpora compile once."""
        return _table_size(self.rows)

    @property
    def num_scorer_rows(self) -> int:
        """Embeddings of the scorer, rounded up; 0 where there is no scorer."""
        return 0 if self.scorer_rows is None else _table_size(self.scorer_rows)

    def __call__(self, contexts: Sequence[Context]) -> Bags:
        """Featurises `contexts` (each a sequence of turns, oldest first)."""
        if not len(contexts):
            shape = (0, self.config.max_features)
            return Bags(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        blocks = [self._block(block) for block in _blocks(contexts)]
        return Bags(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def texts(self, texts: Iterable[str]) -> Bags:
        """Featurises single texts, such as responses or stored questions."""
        return self([(Turn("user", text),) for text in texts])

    def classified(self, bags: Bags, contexts: Sequence[Context] = ()) -> Bags:
        """What the bucket classifier reads of contexts: their bags by embedding row.

        Args:
          bags: the contexts', as the featurizer gives them.
          contexts: themselves, for a classifier with features of its own.
        """
        return self.embedded(bags)

    def trained(self, bags: Bags, contexts: Sequence[Context] = ()) -> Bags:
        """`classified` for training, without the lightest features of few rows."""
        return trim(self.classified(bags, contexts))

    def embedded(self, bags: Bags) -> Bags:
        """The bags by embedding row; what has no embedding weighs nothing."""
        return _by_row(self.rows, bags)

    def scorer_embedded(self, bags: Bags) -> Bags:
        """`embedded` for the response scorer.

        Raises:
          ValueError: the featurizer was fitted without responses.
        """
        if self.scorer_rows is None:
            raise ValueError("This featurizer was fitted without responses.")
        return _by_row(self.scorer_rows, bags)

    def known(self, bags: Bags, row: int) -> float:
        """The share of one bag's squared norm whose features have embeddings."""
        squares = bags.weights[row] ** 2
        total = float(squares.sum())
        return float(squares @ (self.rows[bags.ids[row]] > 0)) / total if total else 0.0

    def _with_scorer(
        self, counts: np.ndarray, responses: Iterable[str]
    ) -> "Featurizer":
        counts = counts + _document_counts(list(dict.fromkeys(responses)), self.config)
        return dataclasses.replace(self, scorer_rows=_numbered(counts, self.config))

    def _block(self, contexts: Sequence[Context]) -> Bags:
        weighted = [weighted_turns(c, self.config.turns) for c in contexts]
        turn_weights = np.array([w for turns in weighted for _, w in turns])
        docs = np.repeat(np.arange(len(contexts)), [len(turns) for turns in weighted])
        # The rows of a dialogue share turns: each distinct one is hashed once.
        number: dict[str, int] = {}
        turns = np.array(
            [number.setdefault(t, len(number)) for turns in weighted for t, _ in turns],
            np.int64,
        )
        text, ids, tf = _term_frequencies(list(number), self.config)
        turn, places = _repeat_slices(text, turns, len(number))
        doc, ids, tf = _sum_by_key(
            docs[turn], ids[places], tf[places] * turn_weights[turn], self.config
        )
        weights = tf * self.idf[ids]
        is_word = ids >> (self.config.bits - 1)
        half = 2 * doc + is_word
        norms = np.sqrt(np.bincount(half, weights * weights))
        shares = np.sqrt([1 - self.config.word_share, self.config.word_share])
        weights *= shares[is_word] / norms[half]
        return _pad(doc, ids, weights, len(contexts), self.config)


def trim(bags: Bags, quantile: float = 0.98) -> Bags:
    """Moves what weighs something to the left, and cuts what few rows need.

    The longest few rows lose their lightest features; training then gathers no
    more columns than the given share of the rows uses, rounded up to 16 so that
    similar corpora compile once.
    """
    unused = bags.weights == 0
    order = np.argsort(unused, axis=1, kind="stable")
    lengths = np.sum(~unused, axis=1)
    needed = int(np.quantile(lengths, quantile)) if len(lengths) else 1
    width = min(-(-max(needed, 1) // 16) * 16, bags.ids.shape[1])
    order = order[:, :width]
    take = lambda x: np.take_along_axis(x, order, axis=1)
    return Bags(take(bags.ids), take(bags.weights))


def cosine(query: Bags, keys: Bags, bits: int) -> np.ndarray:
    """Cosine similarities, float32 `[queries, keys]`, of unit-norm bags."""
    out = np.empty((len(query.ids), len(keys.ids)), np.float32)
    dense = np.zeros(2**bits, np.float32)
    for row, (ids, weights) in enumerate(zip(query.ids, query.weights, strict=True)):
        dense[:] = 0
        np.add.at(dense, ids, weights)
        out[row] = np.einsum("kl,kl->k", dense[keys.ids], keys.weights)
    return out


def _blocks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[i : i + _BLOCK] for i in range(0, len(items), _BLOCK))


def _questions(contexts: Sequence[Context]) -> list[str]:
    return [context[-1].content for context in contexts]


def _document_counts(texts: Sequence[str], config: FeatureConfig) -> np.ndarray:
    """In how many of the texts each id occurs, int64 `[2**bits]`."""
    counts = np.zeros(2**config.bits, np.int64)
    for block in _blocks(texts):
        _, ids, _ = _term_frequencies(block, config)
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def _numbered(counts: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Numbers the ids that occur often enough from 1; the others are 0."""
    learned = counts >= config.min_count
    return np.where(learned, np.cumsum(learned), 0).astype(np.int32)


def _table_size(rows: np.ndarray) -> int:
    used = int(rows.max()) + 1
    step = max(256, 1 << max(used.bit_length() - 4, 0))
    return -(-used // step) * step


def _by_row(rows: np.ndarray, bags: Bags) -> Bags:
    ids = rows[bags.ids]
    return Bags(ids, np.where(ids > 0, bags.weights, np.float32(0)))


def _term_frequencies(
    texts: Sequence[str], config: FeatureConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (text, id) pairs and their sublinear term frequencies."""
    text, ids = hash_ngrams(texts, config.char_ngrams, config.bits)
    text, ids, counts = _sum_by_key(text, ids, None, config)
    return text, ids, 1 + np.log(counts)


def _sum_by_key(
    rows: np.ndarray, ids: np.ndarray, values: np.ndarray | None, config: FeatureConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums `values` (or counts) over equal (row, id) pairs; sorted by row, id."""
    keys = (rows.astype(np.int64) << config.bits) | ids
    if values is None:
        unique, sums = np.unique(keys, return_counts=True)
    else:
        unique, inverse = np.unique(keys, return_inverse=True)
        sums = np.bincount(inverse, values)
    return unique >> config.bits, unique & (2**config.bits - 1), sums


def _repeat_slices(
    rows: np.ndarray, wanted: np.ndarray, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The entries of each wanted row, one row after the other.

    Args:
      rows: ascending row numbers of entries.
      wanted: row numbers, in any order and as often as one likes.
      num_rows: how many rows there are, with those without entries.

    Returns:
      For each entry, its place in `wanted` and its place in `rows`.
    """
    bounds = np.searchsorted(rows, np.arange(num_rows + 1))
    lengths = np.diff(bounds)[wanted]
    place = np.repeat(np.arange(len(wanted)), lengths)
    first = np.cumsum(lengths) - lengths
    return place, np.arange(len(place)) + (bounds[wanted] - first)[place]


def _pad(
    docs: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    num_docs: int,
    config: FeatureConfig,
) -> Bags:
    """Lays sorted triplets out as rows, heaviest features first, then by id."""
    shape = (num_docs, config.max_features)
    bags = Bags(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    order = _heaviest_first(docs, weights.astype(np.float32), num_docs)
    bounds = np.searchsorted(docs, np.arange(num_docs))
    column = np.arange(len(docs)) - bounds[docs]
    kept = np.flatnonzero(column < config.max_features)
    rows, columns, order = docs[kept], column[kept], order[kept]
    bags.ids[rows, columns] = ids[order]
    bags.weights[rows, columns] = weights[order]
    return bags


def _heaviest_first(docs: np.ndarray, weights: np.ndarray, num_docs: int) -> np.ndarray:
    """The places of all features by text, then by falling weight, then by place.

    A sort of integers that hold all three is several times faster than one that
    returns places, and than a short sort for each text. The bits of positive floats
    are in the order of the floats.
    """
    place_bits = len(docs).bit_length()
    free = 64 - num_docs.bit_length() - place_bits
    light = ~weights.view(np.uint32) >> np.uint32(max(32 - free, 0))
    keys = docs.astype(np.uint64) << np.uint64(min(free, 32))
    keys = (keys | light) << np.uint64(place_bits)
    keys |= np.arange(len(docs), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(2**place_bits - 1)).astype(np.int64)
