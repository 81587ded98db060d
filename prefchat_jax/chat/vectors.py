"""An index of unit vectors: those nearest to another, without looking at them all.

Many vectors are sorted into cells around centres found by k-means, and only the
cells nearest to the query are compared, in full (an inverted file: Jégou, Douze &
Schmid, "Product Quantization for Nearest Neighbor Search", 2011). On vectors of
two trained scorers, 60,000 responses each, that finds more than .98 of the ten
nearest; a shortlist by as many principal components as take the same time finds
between .64 and .85.
"""

from typing import NamedTuple

import numpy as np

from prefchat_jax.text.words import top

_EXACT = 50_000  # Vectors up to which all are compared: about 1 ms.
_PROBED = 0.25  # Share of more vectors that is compared.
_SAMPLE = 20  # Vectors for each centre from which the centres are found,
_ROUNDS = 8  # in so many steps.
_BLOCK = 4_096  # Vectors that are compared with all centres at once.


class VectorIndex(NamedTuple):
    """`m` vectors in `k` cells; few have one cell.

    Attributes:
      vectors: float32 `[m, d]`, one cell after the other.
      rows: int32 `[m]` the number of each of them.
      places: int32 `[m]` where the vector of each number is.
      cells: int64 `[k + 1]` where each cell begins.
      centres: float32 `[k, d]`.
    """

    vectors: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    cells: np.ndarray
    centres: np.ndarray

    @classmethod
    def build(cls, vectors: np.ndarray) -> "VectorIndex":
        """Indexes vectors, float `[m, d]`, of unit length; d may be 0."""
        vectors = vectors.astype(np.float32)
        if len(vectors) <= _EXACT or not vectors.shape[1]:
            rows = np.arange(len(vectors), dtype=np.int32)
            cells = np.array([0, len(vectors)])
            return cls(vectors, rows, rows, cells, vectors[:1])
        centres = _centres(vectors)
        nearest = _assigned(vectors, centres)
        rows = np.argsort(nearest, kind="stable").astype(np.int32)
        places = np.empty_like(rows)
        places[rows] = np.arange(len(rows), dtype=np.int32)
        cells = np.searchsorted(nearest[rows], np.arange(len(centres) + 1))
        return cls(vectors[rows], rows, places, cells, centres)

    def nearest(
        self, vector: np.ndarray, limit: int, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """Numbers of the vectors with the largest inner products, best first.

        Args:
          vector: float32 `[d]` of unit length; another length finds nothing.
          limit: how many.
          allowed: bool `[m]` which may be found; None allows all.
        """
        if not self.fits(vector):
            return np.zeros(0, np.int64)
        spans = self._probed(vector)
        scores = np.concatenate([self.vectors[span] @ vector for span in spans])
        rows = np.concatenate([self.rows[span] for span in spans])
        scores += 2  # `top` takes positive scores: cosines are at least -1.
        if allowed is not None:
            scores *= allowed[rows]
        return rows[top(scores, limit)]

    def match(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Inner products of some vectors with another; 0 if that has another length."""
        if not self.fits(vector):
            return np.zeros(len(rows), np.float32)
        return self.vectors[self.places[rows]] @ vector

    def fits(self, vector: np.ndarray) -> bool:
        """Whether there is anything to compare a vector with."""
        return len(vector) > 0 and self.vectors.shape[1] == len(vector)

    def _probed(self, vector: np.ndarray) -> list[slice]:
        if len(self.cells) == 2:
            return [slice(None)]
        order = np.argsort(-(self.centres @ vector), kind="stable")
        sizes = np.cumsum((self.cells[1:] - self.cells[:-1])[order])
        order = order[: np.searchsorted(sizes, _PROBED * sizes[-1]) + 1]
        return list(map(slice, self.cells[order], self.cells[order + 1]))


def _centres(vectors: np.ndarray) -> np.ndarray:
    """Spherical k-means (Dhillon & Modha, 2001) of an even sample, `[k, d]`."""
    count = 4 * int(len(vectors) ** 0.5)
    sample = vectors[:: max(len(vectors) // (_SAMPLE * count), 1)]
    centres = sample[:: len(sample) // count][:count].copy()
    for _ in range(_ROUNDS):
        nearest = _assigned(sample, centres)
        order = np.argsort(nearest, kind="stable")
        used, first = np.unique(nearest[order], return_index=True)
        centres[used] = np.add.reduceat(sample[order], first, axis=0)
        centres /= np.linalg.norm(centres, axis=1, keepdims=True) + 1e-12
    return centres


def _assigned(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each vector, int64 `[n]`."""
    blocks = range(0, len(vectors), _BLOCK)
    found = [np.argmax(vectors[i : i + _BLOCK] @ centres.T, axis=1) for i in blocks]
    return np.concatenate(found)
