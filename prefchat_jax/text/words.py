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
_LONG = 20_000  # is in so many texts that its list takes time.
_ALWAYS = 2  # The rarest words of a query count, however common they are.
_BLOCK = 20_000  # Texts whose words are found at once.


class WordIndex(NamedTuple):
    """Which texts hold each word, and how much that says.

    Attributes:
      words: uint64 `[words]` hashes, ascending.
      offsets: int64 `[words + 1]` where the list of each word begins.
      texts: int32 `[postings]` text numbers, ascending in each list.
      weights: float32 `[postings]` saturated term frequencies, without idf.
      size: number of texts.
    """

    words: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray
    weights: np.ndarray
    size: int

    @classmethod
    def build(cls, texts: Sequence[str]) -> "WordIndex":
        """Indexes texts; numbers follow their order."""
        words, owners = _words_of(texts)
        order = np.argsort(words, kind="stable")
        words, owners = words[order], owners[order]
        is_new = np.ones(len(words), bool)
        is_new[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
        first = np.flatnonzero(is_new)
        frequencies = np.diff(np.append(first, len(words))).astype(np.float32)
        words, owners = words[first], owners[first]
        lengths = np.bincount(owners, frequencies, len(texts)).astype(np.float32)
        length = lengths / max(lengths.mean(), 1) if len(texts) else lengths
        drag = _K1 * (1 - _B + _B * length)
        weights = frequencies * (_K1 + 1) / (frequencies + drag[owners])
        distinct, starts = np.unique(words, return_index=True)
        return cls(
            distinct,
            np.append(starts, len(words)).astype(np.int64),
            owners,
            weights.astype(np.float32),
            len(texts),
        )

    def scores(self, query: str, *, among: Sequence["WordIndex"] = ()) -> np.ndarray:
        """BM25 scores of all texts for the words of a query, each counted once.

        Args:
          query: free text.
          among: indexes of other texts that are searched beside this one: their
            texts count in the rarity of a word, so that scores compare.

        Returns:
          float32 `[size]`; 0 for a text that holds none of the words.
        """
        scores = np.zeros(self.size, np.float32)
        _, hashes = word_hashes(byte_buffer([query])[0])
        hashes = np.unique(hashes)
        if not len(hashes) or not self.size:
            return scores
        parts = (self, *among)
        size = sum(part.size for part in parts)
        counts = np.sum([part._counts(hashes) for part in parts], axis=0)
        rarest = np.argsort(counts, kind="stable")
        rarest = rarest[counts[rarest] > 0]
        kept = counts[rarest] <= max(_COMMON * size, _LONG)
        kept[:_ALWAYS] = True
        for word in rarest[kept]:
            idf = np.log(1 + (size - counts[word] + 0.5) / (counts[word] + 0.5))
            place = np.searchsorted(self.words, hashes[word])
            if place < len(self.words) and self.words[place] == hashes[word]:
                span = slice(self.offsets[place], self.offsets[place + 1])
                scores[self.texts[span]] += np.float32(idf) * self.weights[span]
        return scores

    def _counts(self, hashes: np.ndarray) -> np.ndarray:
        """How many texts hold each word."""
        if not len(self.words):
            return np.zeros(len(hashes), np.int64)
        places = np.minimum(np.searchsorted(self.words, hashes), len(self.words) - 1)
        counts = self.offsets[places + 1] - self.offsets[places]
        return np.where(self.words[places] == hashes, counts, 0)


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
    places = np.flatnonzero((scores >= bound) & (scores > 0))
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
