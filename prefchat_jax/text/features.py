"""Features: a batch of contexts to ids and weights, tf-idf with unit norm.

The ids are those of hashed n-grams, in `2**bits` (feature hashing: Weinberger et
al., https://arxiv.org/abs/0902.2206).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from prefchat_jax.text import tfidf
from prefchat_jax.text.bags import Bags, by_row
from prefchat_jax.text.dialogue import Context, TurnWeights, weighted_turns
from prefchat_jax.text.ngrams import key_type, ngram_keys
from prefchat_jax.text.packed import PackedBags, trim

HASH_VERSION = 1  # Raise it when the same text would get other ids.

_Item = TypeVar("_Item", str, Context)
_Weigh = Callable[[Sequence[_Item]], tuple[np.ndarray, np.ndarray]]
_BLOCK = tfidf.MAX_TEXTS  # Hashed at once: keeps the buffers inside the cache.


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

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= tfidf.MAX_BITS:
            raise ValueError(f"bits {self.bits}: must be in [1, {tfidf.MAX_BITS}].")


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
        return self._laid_out(contexts, self._block)

    def packed(self, contexts: Sequence[Context]) -> PackedBags:
        """All features without padding, ids ascending: rows of a sparse matrix.

        `scipy.sparse.csr_array((bags.weights, bags.ids, bags.offsets))` holds them.
        """
        bits = self.config.bits
        nothing = np.zeros(0, np.uint32), np.zeros(0, np.float32)
        parts = [PackedBags(np.zeros(1, np.int64), *nothing)]
        for block in _blocks(contexts):
            keys, weights = self._block(block)
            offsets = tfidf.bounds(keys, len(block), bits)
            ids = tfidf.ids_of(keys, bits).astype(np.uint32)
            parts.append(PackedBags(offsets, ids, weights))
        return PackedBags.concatenate(parts)

    def texts(self, texts: Iterable[str]) -> Bags:
        """Featurises single texts, such as responses, as contexts of one turn."""
        return self._laid_out(list(texts), self._texts)

    def classified(self, bags: Bags, contexts: Sequence[Context] = ()) -> Bags:
        """What the bucket classifier reads of contexts: their bags by embedding row.

        Args:
          bags: the contexts', as the featurizer gives them.
          contexts: themselves, for a classifier with features of its own.
        """
        return self.embedded(bags)

    def trained(self, contexts: Sequence[Context]) -> Bags:
        """What the classifier trains on; see `trim`."""
        blocks = (self.classified(self(block), block) for block in _blocks(contexts))
        return trim(blocks, self.config.max_features)

    def embedded(self, bags: Bags) -> Bags:
        """The bags by embedding row; what has no embedding weighs nothing."""
        return by_row(self.rows, bags)

    def scorer_embedded(self, bags: Bags) -> Bags:
        """`embedded` for the response scorer.

        Raises:
          ValueError: the featurizer was fitted without responses.
        """
        if self.scorer_rows is None:
            raise ValueError("This featurizer was fitted without responses.")
        return by_row(self.scorer_rows, bags)

    def scorer_trained(self, contexts: Sequence[Context], most: int) -> Bags:
        """What the scorer trains on, at most so many features; see `trim`."""
        blocks = (self.scorer_embedded(self(block)) for block in _blocks(contexts))
        return trim(blocks, most)

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

    def _laid_out(self, items: Sequence[_Item], weigh: _Weigh[_Item]) -> Bags:
        """Padded bags of texts or contexts, of which `weigh` reads a block."""
        shape = (len(items), self.config.max_features)
        bags = Bags(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        for number, block in enumerate(_blocks(items)):
            keys, weights = weigh(block)
            rows = slice(number * _BLOCK, number * _BLOCK + len(block))
            out = (part[rows] for part in bags)
            tfidf.heaviest_first(keys, weights, self.config.bits, *out)
        return bags

    def _block(self, contexts: Sequence[Context]) -> tuple[np.ndarray, np.ndarray]:
        """Ascending keys of the features of up to `_BLOCK` contexts, and weights."""
        if all(len(context) == 1 for context in contexts):
            return self._texts(_questions(contexts))
        return self._weighed(*_blended(contexts, self.config))

    def _texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same of single texts."""
        keys, counts = _counted(texts, self.config)
        return self._weighed(keys, tfidf.sublinear(counts))

    def _weighed(
        self, keys: np.ndarray, frequencies: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        weights = tfidf.weigh(
            keys, frequencies, self.idf, config.bits, config.word_share
        )
        return keys, weights.astype(np.float32)


def _blocks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[i : i + _BLOCK] for i in range(0, len(items), _BLOCK))


def _questions(contexts: Sequence[Context]) -> list[str]:
    return [context[-1].content for context in contexts]


def _document_counts(texts: Sequence[str], config: FeatureConfig) -> np.ndarray:
    """In how many of the texts each id occurs, int64 `[2**bits]`."""
    counts = np.zeros(2**config.bits, np.int64)
    for block in _blocks(texts):
        keys, _ = _counted(block, config)
        ids = tfidf.ids_of(keys, config.bits).astype(np.int64)
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


def _counted(
    texts: Sequence[str], config: FeatureConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ascending keys of n-grams, and how often each occurs."""
    keys, starts = tfidf.distinct(ngram_keys(texts, config.char_ngrams, config.bits))
    return keys, np.diff(starts)


def _blended(
    contexts: Sequence[Context], config: FeatureConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ascending keys of contexts, and frequencies summed over their turns."""
    weighted = [weighted_turns(context, config.turns) for context in contexts]
    turn_weights = np.array([w for turns in weighted for _, w in turns])
    docs = np.repeat(np.arange(len(contexts)), [len(turns) for turns in weighted])
    # The rows of a dialogue share turns: each distinct one is hashed once.
    number: dict[str, int] = {}
    turns = np.array(
        [number.setdefault(t, len(number)) for turns in weighted for t, _ in turns],
        np.int64,
    )
    keys, counts = _counted(list(number), config)
    bounds = tfidf.bounds(keys, len(number), config.bits)
    turn, places = _repeat_slices(bounds, turns)
    docs = docs.astype(key_type(len(contexts), config.bits)) << config.bits
    return tfidf.sum_by_key(
        docs[turn] | tfidf.ids_of(keys, config.bits)[places],
        tfidf.sublinear(counts)[places] * turn_weights[turn],
    )


def _repeat_slices(
    bounds: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The entries of each wanted slice, one slice after the other.

    Args:
      bounds: where each slice begins, and the end of the last.
      wanted: numbers of slices, in any order and as often as one likes.

    Returns:
      For each entry, its place in `wanted` and its place in the array.
    """
    lengths = np.diff(bounds)[wanted]
    place = np.repeat(np.arange(len(wanted)), lengths)
    first = np.cumsum(lengths) - lengths
    return place, np.arange(len(place)) + (bounds[wanted] - first)[place]
