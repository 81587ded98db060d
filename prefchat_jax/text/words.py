"""An index of words: BM25 scores of many texts, as array arithmetic.

Every word has a list of the texts that hold it (Robertson & Zaragoza, "The
Probabilistic Relevance Framework", 2009). A query adds up the lists of its
rarer words and skips words that a large share of the texts hold: those cost
most of the time and tell almost nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.text.hashing import byte_buffer, word_hashes

_K1, _B = 1.5, 0.75
_COMMON = 0.1  # Share of the texts from which on a word is skipped, if it
_LONG = 10_000  # is in so many texts that its list takes time.
_ALWAYS = 2  # The rarest words of a query count, however common they are.
_WORDS = 64  # Words of a query that count, the rarest first.
_BLOCK = 1024  # Texts whose words are found at once: inside the cache.


class WordQuery(NamedTuple):
    """Words to search for.

    Attributes:
      words: uint64 `[k]` distinct hashes.
      weights: float32 `[k]` how much each counts.
    """

    words: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, turns: Sequence[tuple[str, float]]) -> "WordQuery":
        """The words of weighted texts, each with its heaviest weight."""
        heaviest: dict[int, float] = {}
        for text, weight in turns:
            for word in word_hashes(byte_buffer([text])[0])[1].tolist():
                heaviest[word] = max(weight, heaviest.get(word, 0.0))
        return cls(
            np.fromiter(heaviest, np.uint64, len(heaviest)),
            np.fromiter(heaviest.values(), np.float32, len(heaviest)),
        )


class WordIndex(NamedTuple):
    """Which texts hold each word, and how much that says.

    Attributes:
      words: uint64 `[words]` hashes, ascending.
      offsets: int64 `[words + 1]` where the list of each word begins.
      texts: int32 `[postings]` text numbers, ascending in each list.
      weights: float32 `[postings]` saturated term frequencies, without idf. Half
        the precision would save a quarter of a list and take 1.6 times as long.
      size: number of texts.
      mean_length: words of a text, on average.
    """

    words: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray
    weights: np.ndarray
    size: int
    mean_length: float

    @classmethod
    def build(
        cls, texts: Sequence[str], mean_length: float | None = None
    ) -> "WordIndex":
        """Indexes texts; numbers follow their order.

        Args:
          texts: what is indexed.
          mean_length: which length is usual; that of the texts if None.
        """
        words, owners = _words_of(texts)
        order = np.argsort(words, kind="stable")
        words, owners = words[order], owners[order]
        is_new = np.ones(len(words), bool)
        is_new[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
        first = np.flatnonzero(is_new)
        frequencies = np.diff(np.append(first, len(words))).astype(np.float32)
        words, owners = words[first], owners[first]
        lengths = np.bincount(owners, frequencies, len(texts)).astype(np.float32)
        if mean_length is None:
            mean_length = max(float(lengths.mean()), 1.0) if len(texts) else 1.0
        drag = _K1 * (1 - _B + _B * lengths / np.float32(mean_length))
        weights = frequencies * (_K1 + 1) / (frequencies + drag[owners])
        distinct, starts = np.unique(words, return_index=True)
        return cls(
            distinct,
            np.append(starts, len(words)).astype(np.int64),
            owners,
            weights.astype(np.float32),
            len(texts),
            mean_length,
        )

    def scores(
        self, query: "WordQuery", *, among: Sequence["WordIndex"] = ()
    ) -> np.ndarray:
        """BM25 scores of all texts for the words of a query.

        Args:
          query: the words.
          among: indexes of other texts that are searched beside this one: their
            texts count in the rarity of a word, so that scores compare.

        Returns:
          float32 `[size]`; 0 for a text that holds none of the words.
        """
        return self.sums(telling(query, (self, *among)))

    def sums(self, gains: "WordQuery") -> np.ndarray:
        """What the words of a text gain together, float32 `[size]`."""
        scores = np.zeros(self.size, np.float32)
        if not len(self.words):
            return scores
        places, found = self._places(gains.words)
        for place, gain in zip(places[found], gains.weights[found], strict=True):
            span = slice(self.offsets[place], self.offsets[place + 1])
            # Three times as fast as `scores[...] += ...`.
            np.add.at(scores, self.texts[span], gain * self.weights[span])
        return scores

    def counts(self, hashes: np.ndarray) -> np.ndarray:
        """How many texts hold each word, int64 `[k]`."""
        if not len(self.words):
            return np.zeros(len(hashes), np.int64)
        places, found = self._places(hashes)
        return np.where(found, self.offsets[places + 1] - self.offsets[places], 0)

    def _places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the list of each word is, and whether there is one."""
        places = np.minimum(np.searchsorted(self.words, hashes), len(self.words) - 1)
        return places, self.words[places] == hashes


def telling(query: WordQuery, indexes: Sequence[WordIndex]) -> WordQuery:
    """The words that are searched for in all of some indexes, rarest first.

    Their weights are multiplied by the inverse document frequency, of Lucene's
    formula. Words that a large share of the texts hold are left out.
    """
    counts = np.sum([index.counts(query.words) for index in indexes], axis=0)
    size = sum(index.size for index in indexes)
    rarest = np.argsort(counts, kind="stable")
    rarest = rarest[counts[rarest] > 0][:_WORDS]
    kept = counts[rarest] <= max(_COMMON * size, _LONG)
    kept[:_ALWAYS] = True
    kept = rarest[kept]
    idf = np.log(1 + (size - counts[kept] + 0.5) / (counts[kept] + 0.5))
    return WordQuery(query.words[kept], (query.weights[kept] * idf).astype(np.float32))


def top(scores: np.ndarray, limit: int) -> np.ndarray:
    """Places of the `limit` largest positive scores, largest first.

    Ties go to the first. The largest scores of `limit` blocks bound the answer
    from below, so that only what is above them is sorted.
    """
    limit = min(limit, len(scores))
    if limit <= 0:
        return np.zeros(0, np.int64)
    width = max(len(scores) // (4 * limit), 1)
    whole = len(scores) // width * width
    largest = scores[:whole].reshape(-1, width).max(axis=1)
    bound = np.partition(largest, len(largest) - limit)[len(largest) - limit]
    places = np.flatnonzero(scores >= bound if bound > 0 else scores > 0)
    return places[np.argsort(-scores[places], kind="stable")[:limit]]


def _words_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all words, and the number of the text that each is in."""
    words, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    for first in range(0, len(texts), _BLOCK):
        buffer, begins = byte_buffer(texts[first : first + _BLOCK])
        starts, hashes = word_hashes(buffer)
        number = np.searchsorted(begins, starts, side="right") - 1 + first
        words.append(hashes)
        owners.append(number.astype(np.int32))
    return np.concatenate(words), np.concatenate(owners)
