"""A segment: stored answers as the arrays that a search and a ranking need.

Everything here is derived from a store and is never changed: what does not
depend on the question is computed once, when the segment is built.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.chat.mapped import open_arrays, write_arrays
from prefchat_jax.chat.store import Changes
from prefchat_jax.chat.styles import BUILT_IN, signals
from prefchat_jax.chat.vectors import VectorIndex
from prefchat_jax.text.packed import PackedBags
from prefchat_jax.text.words import WordIndex

_LAYOUT = "4"  # Raise it when a saved array would mean something else.


class Segment(NamedTuple):
    """`n` entries that give `m` responses, in the order of their buckets.

    A response that several buckets give counts as one for each of them.

    Attributes:
      ids: int64 `[n]` ids in the store, ascending.
      rows: int32 `[n]` the response of each entry, a row of what follows.
      buckets: int32 `[n]`.
      counts: int32 `[n]`.
      question_bags: features of the questions with their context.
      question_words: words of the questions.
      response_ids: int64 `[m]` ids in the store; once for each bucket.
      response_bags: features of the responses.
      response_words: words of the responses.
      response_buckets: int64 `[B + 1]` where the responses of each bucket begin,
        the most frequent first; before them are those without a bucket.
      best_entries: int32 `[m]` the most frequent entry of each response.
      signals: float32 `[m, styles]` how well each suits the built-in styles.
      vectors: of the responses.
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
    vectors: VectorIndex

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
            VectorIndex.build(_vectors(blobs)),
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

        Args:
          vector: float32 `[d]`.
          limit: how many.
          buckets: search only these, and what has no bucket; None searches all.
          alive: bool `[m]` which responses to search; None searches all.
        """
        allowed = alive
        if buckets is not None:
            allowed = np.zeros(len(self.response_ids), bool)
            for rows in map(self._of_bucket, (-1, *buckets)):
                allowed[rows] = True if alive is None else alive[rows]
        return self.vectors.nearest(vector, limit, allowed)

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

    def _of_bucket(self, bucket: int) -> np.ndarray:
        if bucket + 2 >= len(self.response_buckets):
            return np.zeros(0, np.int64)
        return np.arange(*self.response_buckets[bucket + 1 : bucket + 3])


_NESTED = {
    "question_bags": PackedBags,
    "question_words": WordIndex,
    "response_bags": PackedBags,
    "response_words": WordIndex,
    "vectors": VectorIndex,
}


def _flatten(segment: Segment) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in segment._asdict().items():
        if name in _NESTED:
            for part, array in value._asdict().items():
                yield f"{name}.{part}", np.asarray(array)
        else:
            yield name, value


def _unflatten(arrays: dict[str, np.ndarray]) -> Segment:
    parts: dict[str, Any] = {}
    for name in Segment._fields:
        if name in _NESTED:
            kind = _NESTED[name]
            parts[name] = kind._make(arrays[f"{name}.{f}"] for f in kind._fields)
        else:
            parts[name] = arrays[name]
    for name in ("question_words", "response_words"):  # Numbers come back as arrays.
        index = parts[name]
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
    """Response ids by bucket and by the count of their most frequent entry there.

    Returns:
      Ids and buckets, `[m]`, and for each entry the place of its response.
    """
    buckets = changes.buckets.astype(np.int64) + 1  # No bucket is -1.
    base = buckets.max(initial=0) + 1
    keys, rows = np.unique(changes.response_ids * base + buckets, return_inverse=True)
    best = most_frequent(rows, changes.counts, len(keys))
    order = np.lexsort((-changes.counts[best], keys % base))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    keys = keys[order]
    return keys // base, keys % base - 1, place[rows]


def _vectors(blobs: Sequence[bytes]) -> np.ndarray:
    """float16 `[m, d]`; d is 0 if the responses have none, or unlike ones."""
    if len({len(blob) for blob in blobs}) != 1:
        return np.zeros((len(blobs), 0), np.float16)
    flat = np.frombuffer(b"".join(blobs), "<f2")
    return flat.reshape(len(blobs), len(blobs[0]) // 2)
