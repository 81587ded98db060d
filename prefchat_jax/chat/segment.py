"""A segment: stored answers as the arrays that a search and a ranking need.

Everything here is derived from a store and is never changed: what does not
depend on the question is computed once, when the segment is built.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.mapped import open_arrays, write_arrays
from prefchat_jax.chat.store import Changes
from prefchat_jax.chat.styles import BUILT_IN, signals
from prefchat_jax.text.packed import PackedBags
from prefchat_jax.text.words import WordIndex, top

_EXACT = 20_000  # Responses up to which every component of a vector is compared.
_LEADING = 32  # Components that are compared with all of more responses.
_SHORTLIST = 8  # Times the limit: what is compared exactly after that.
_SAMPLE = 50_000  # Vectors from which the components are found.


class Segment(NamedTuple):
    """`n` entries that give `m` responses; responses are ordered by bucket.

    Attributes:
      ids: int64 `[n]` ids in the store, ascending.
      rows: int32 `[n]` the response of each entry, a row of what follows.
      buckets: int32 `[n]`.
      counts: int32 `[n]`.
      question_bags: features of the questions with their context.
      question_words: words of the questions.
      response_ids: int64 `[m]` ids in the store.
      response_bags: features of the responses.
      response_words: words of the responses.
      response_buckets: int64 `[B + 1]` where the responses of each bucket begin;
        the first are those without one.
      best_entries: int32 `[m]` the most frequent entry of each response.
      signals: float32 `[m, styles]` how well each suits the built-in styles.
      vectors: float16 `[m, d]` response vectors in their principal components.
      leading: float32 `[m, k]` the first components.
      components: float32 `[d, d]` maps a vector to its components.
    """

    ids: np.ndarray
    rows: np.ndarray
    buckets: np.ndarray
    counts: np.ndarray
    question_bags: PackedBags
    question_words: WordIndex
    response_ids: np.ndarray
    response_bags: PackedBags
    response_words: WordIndex
    response_buckets: np.ndarray
    best_entries: np.ndarray
    signals: np.ndarray
    vectors: np.ndarray
    leading: np.ndarray
    components: np.ndarray

    @classmethod
    def build(cls, changes: Changes, bits: int) -> "Segment":
        """Derives all arrays from the entries of a store."""
        order, bucket_of = _by_bucket(changes)
        place = {response: row for row, response in enumerate(order.tolist())}
        rows = [place[response] for response in changes.response_ids.tolist()]
        rows = np.array(rows, np.int32)
        texts, features, blobs = [], [], []
        for response in order.tolist():
            text, feature, blob = changes.responses[response]
            texts.append(text)
            features.append(feature)
            blobs.append(blob)
        vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs) or 1, -1)
        vectors = vectors[: len(blobs)].astype(np.float32)
        components = _principal_components(vectors)
        vectors = vectors @ components
        kept = vectors.shape[1] if len(vectors) <= _EXACT else _LEADING
        return cls(
            changes.ids,
            rows,
            changes.buckets,
            changes.counts,
            PackedBags.decode(changes.question_features, bits),
            WordIndex.build(changes.questions),
            order,
            PackedBags.decode(features, bits),
            WordIndex.build(texts),
            np.searchsorted(bucket_of, np.arange(-1, bucket_of.max(initial=-1) + 2)),
            _most_frequent(rows, changes.counts, len(order)),
            np.stack([signals(texts, style.name) for style in BUILT_IN], axis=1),
            vectors.astype(np.float16),
            np.ascontiguousarray(vectors[:, :kept]),
            components,
        )

    def nearest(
        self, vector: np.ndarray, limit: int, buckets: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows of the responses with the largest inner products, best first.

        One matrix product over the leading components makes a shortlist, which
        is then compared in full.

        Args:
          vector: float32 `[d]`.
          limit: how many.
          buckets: search only these, and what has no bucket; None searches all.
        """
        if not len(vector) or not self.vectors.shape[1]:
            return np.zeros(0, np.int64)
        vector = vector @ self.components
        rows = self._searched(buckets)
        leading = self.leading if rows is None else self.leading[rows]
        products = leading @ vector[: leading.shape[1]]
        exact = leading.shape[1] == len(vector)
        # `top` takes positive scores: cosines are at least -1.
        best = top(products + 2, limit if exact else _SHORTLIST * limit)
        best = best if rows is None else rows[best]
        return best if exact else best[top(self.match(best, vector) + 2, limit)]

    def match(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Inner products of some response vectors with one in components."""
        return self.vectors[rows].astype(np.float32) @ vector

    def of_buckets(self, buckets: np.ndarray, limit: int) -> np.ndarray:
        """Rows of the most frequent responses of some buckets, at most `limit` each."""
        kept = []
        for rows in map(self._of_bucket, buckets):
            counts = self.counts[self.best_entries[rows]]
            kept.append(rows[np.argsort(-counts, kind="stable")[:limit]])
        return np.concatenate([np.zeros(0, np.int64), *kept])

    def save(self, path: pathlib.Path, meta: Mapping[str, str]) -> None:
        """Writes all arrays to one file that `open` maps."""
        write_arrays(path, dict(_flatten(self)), meta)

    @classmethod
    def open(cls, path: pathlib.Path) -> "tuple[Segment, dict[str, str]] | None":
        """Maps a saved segment; None if there is none that can be read."""
        found = open_arrays(path)
        if found is None:
            return None
        arrays, meta = found
        try:
            return _unflatten(arrays), meta
        except KeyError:
            return None

    def _searched(self, buckets: np.ndarray | None) -> np.ndarray | None:
        if buckets is None:
            return None
        return np.concatenate([self._of_bucket(b) for b in (-1, *buckets)])

    def _of_bucket(self, bucket: int) -> np.ndarray:
        if bucket + 2 >= len(self.response_buckets):
            return np.zeros(0, np.int64)
        return np.arange(*self.response_buckets[bucket + 1 : bucket + 3])


_BAGS = ("question_bags", "response_bags")
_WORDS = ("question_words", "response_words")


def _flatten(segment: Segment):
    for name, value in segment._asdict().items():
        if name in (*_BAGS, *_WORDS):
            for part, array in value._asdict().items():
                yield f"{name}.{part}", np.asarray(array)
        else:
            yield name, value


def _unflatten(arrays: dict[str, np.ndarray]) -> Segment:
    plain = [name for name in Segment._fields if name not in (*_BAGS, *_WORDS)]
    parts = {name: arrays[name] for name in plain}
    for name in _BAGS:
        columns = [arrays[f"{name}.{part}"] for part in PackedBags._fields]
        parts[name] = PackedBags(*columns)
    for name in _WORDS:
        columns = [arrays[f"{name}.{part}"] for part in WordIndex._fields]
        parts[name] = WordIndex(*columns[:-1], int(columns[-1]))
    return Segment(**parts)


def _by_bucket(changes: Changes) -> tuple[np.ndarray, np.ndarray]:
    """Response ids ordered by the bucket of their most frequent entry."""
    ids, rows = np.unique(changes.response_ids, return_inverse=True)
    best = _most_frequent(rows, changes.counts, len(ids))
    buckets = changes.buckets[best]
    order = np.argsort(buckets, kind="stable")
    return ids[order], buckets[order]


def _most_frequent(rows: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """For each response the entry with the highest count, the first of them."""
    order = np.lexsort((-np.arange(len(rows)), counts))
    best = np.zeros(size, np.int32)
    best[rows[order]] = order  # The last assignment wins.
    return best


def _principal_components(vectors: np.ndarray) -> np.ndarray:
    """An orthogonal `[d, d]` whose first columns hold most of the vectors."""
    step = -(-len(vectors) // _SAMPLE) or 1
    sample = vectors[::step]
    _, components = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(components[:, ::-1], dtype=np.float32)
