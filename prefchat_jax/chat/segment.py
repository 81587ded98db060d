"""A segment: stored answers as the arrays that a search and a ranking need.

Everything here is derived from a store and is never changed: what does not
depend on the question is computed once, when the segment is built.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
_LAYOUT = "2"  # Raise it when a saved array would mean something else.


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
      response_buckets: int64 `[B + 1]` where the responses of each bucket begin,
        the most frequent first; before them are those without a bucket.
      best_entries: int32 `[m]` the most frequent entry of each response.
      signals: float32 `[m, styles]` how well each suits the built-in styles.
      vectors: float16 `[m, d]` response vectors.
      leading: float32 `[m, k]` their principal components; of few responses, all
        that a vector has.
      components: float32 `[d, k]` maps a vector to them.
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
    def build(
        cls, changes: Changes, bits: int, beside: "Segment | None" = None
    ) -> "Segment":
        """Derives all arrays from the entries of a store.

        Args:
          changes: the entries.
          bits: log2 of the number of feature ids.
          beside: a larger segment that is searched together with this one; it says
            how long a usual text is.
        """
        order, bucket_of, rows = _by_bucket(changes)
        texts, features, blobs = [], [], []
        for response in order.tolist():
            text, feature, blob = changes.responses[response]
            texts.append(text)
            features.append(feature)
            blobs.append(blob)
        vectors = _vectors(blobs)
        components = _components(vectors)
        usual = beside.question_words.mean_length if beside else None
        usual_response = beside.response_words.mean_length if beside else None
        return cls(
            changes.ids,
            rows,
            changes.buckets,
            changes.counts,
            PackedBags.decode(changes.question_features, bits),
            WordIndex.build(changes.questions, usual),
            order,
            PackedBags.decode(features, bits),
            WordIndex.build(texts, usual_response),
            np.searchsorted(bucket_of, np.arange(-1, bucket_of.max(initial=-1) + 2)),
            most_frequent(rows, changes.counts, len(order)),
            np.stack([signals(texts, style.name) for style in BUILT_IN], axis=1),
            vectors,
            vectors.astype(np.float32) @ components,
            components,
        )

    def nearest(
        self,
        vector: np.ndarray,
        limit: int,
        *,
        buckets: np.ndarray | None = None,
        alive: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows of the responses with the largest inner products, best first.

        One matrix product over the leading components makes a shortlist, which
        is then compared in full.

        Args:
          vector: float32 `[d]`.
          limit: how many.
          buckets: search only these, and what has no bucket; None searches all.
          alive: bool `[m]` which responses to search; None searches all.
        """
        if not len(vector) or self.vectors.shape[1] != len(vector):
            return np.zeros(0, np.int64)
        rows = self._searched(buckets)
        leading = self.leading if rows is None else self.leading[rows]
        # `top` takes positive scores: cosines are at least -1.
        scores = leading @ (vector @ self.components) + 2
        if alive is not None:
            scores *= alive if rows is None else alive[rows]
        exact = leading.shape[1] == len(vector)
        best = top(scores, limit if exact else _SHORTLIST * limit)
        best = best if rows is None else rows[best]
        return best if exact else best[top(self.match(best, vector) + 2, limit)]

    def match(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Inner products of some response vectors with another."""
        return self.vectors[rows].astype(np.float32) @ vector

    def of_buckets(
        self, buckets: np.ndarray, limit: int, *, alive: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows of the most frequent responses of some buckets, at most `limit` each."""
        kept = [np.zeros(0, np.int64)]
        for rows in map(self._of_bucket, buckets):
            kept.append((rows if alive is None else rows[alive[rows]])[:limit])
        return np.concatenate(kept)

    def save(self, path: pathlib.Path, meta: Mapping[str, str]) -> None:
        """Writes all arrays to one file that `open` maps."""
        write_arrays(path, dict(_flatten(self)), {**meta, "layout": _LAYOUT})

    @classmethod
    def open(cls, path: pathlib.Path) -> "tuple[Segment, dict[str, str]] | None":
        """Maps a saved segment; None if there is none that can be read."""
        found = open_arrays(path)
        if found is None or found[1].get("layout") != _LAYOUT:
            return None
        try:
            return _unflatten(found[0]), found[1]
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
    parts: dict[str, Any] = {name: arrays[name] for name in plain}
    for name in _BAGS:
        columns = [arrays[f"{name}.{part}"] for part in PackedBags._fields]
        parts[name] = PackedBags._make(columns)
    for name in _WORDS:
        columns = [arrays[f"{name}.{part}"] for part in WordIndex._fields]
        index = WordIndex._make(columns)  # Numbers come back as arrays.
        parts[name] = index._replace(
            size=int(index.size), mean_length=float(index.mean_length)
        )
    return Segment(**parts)


def most_frequent(
    rows: np.ndarray, counts: np.ndarray, size: int, among: np.ndarray | None = None
) -> np.ndarray:
    """For each response the entry with the highest count, the first of them.

    Args:
      rows: `[n]` the response of each entry.
      counts: `[n]` of the entries.
      size: number of responses.
      among: `[k]` the entries that count, ascending; all if None. A response
        without one of them gets 0.

    Returns:
      int32 `[size]` entries.
    """
    places = np.arange(len(rows)) if among is None else among
    places = places[np.lexsort((-places, counts[places]))]
    best = np.zeros(size, np.int32)
    best[rows[places]] = places  # The last assignment wins.
    return best


def _by_bucket(changes: Changes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Response ids by the bucket and the count of their most frequent entry.

    Returns:
      Ids and buckets, `[m]`, and for each entry the place of its response.
    """
    ids, rows = np.unique(changes.response_ids, return_inverse=True)
    best = most_frequent(rows, changes.counts, len(ids))
    order = np.lexsort((-changes.counts[best], changes.buckets[best]))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return ids[order], changes.buckets[best][order], place[rows]


def _vectors(blobs: Sequence[bytes]) -> np.ndarray:
    """float16 `[m, d]`; d is 0 if the responses have none, or unlike ones."""
    if len({len(blob) for blob in blobs}) != 1:
        return np.zeros((len(blobs), 0), np.float16)
    flat = np.frombuffer(b"".join(blobs), "<f2")
    return flat.reshape(len(blobs), len(blobs[0]) // 2)


def _components(vectors: np.ndarray) -> np.ndarray:
    """float32 `[d, k]`: directions that hold most of the vectors; few need none."""
    if len(vectors) <= _EXACT or vectors.shape[1] <= _LEADING:
        return np.eye(vectors.shape[1], dtype=np.float32)
    sample = vectors[:: -(-len(vectors) // _SAMPLE)].astype(np.float32)
    _, components = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(components[:, : -_LEADING - 1 : -1], dtype=np.float32)
