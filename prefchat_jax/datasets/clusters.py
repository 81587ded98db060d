"""Clusters: spherical k-means of hashed bags."""

import numpy as np

from prefchat_jax.text.bags import Bags

_DIMENSIONS = 256
_RESTARTS = 4
_ITERATIONS = 50


def spherical_kmeans(
    bags: Bags, num_clusters: int, *, bits: int, seed: int
) -> np.ndarray:
    """Clusters unit bags by cosine; no cluster is empty.

    The bags are projected at random to 256 dimensions, which keeps cosines
    (Johnson-Lindenstrauss). Centres start by k-means++ (Arthur & Vassilvitskii,
    2007); of four starts the one with the largest total cosine is kept
    (Dhillon & Modha, https://doi.org/10.1023/A:1007612920971). An emptied
    cluster restarts at the row that its centre fits worst.

    Args:
      bags: `[n, features]` bags.
      num_clusters: at most the number of distinct bags.
      bits: log2 of the number of feature ids.
      seed: of the projection and the starts.

    Returns:
      int32 `[n]` cluster numbers, numbered from the largest cluster down.
    """
    rng = np.random.default_rng([seed, 0xC1])
    points = _project(bags, bits, rng)
    best, best_score = np.zeros(len(points), np.int64), -np.inf
    for _ in range(_RESTARTS):
        assigned, score = _run(points, _plus_plus(points, num_clusters, rng))
        if score > best_score:
            best, best_score = assigned, score
    by_size = np.argsort(-np.bincount(best, minlength=num_clusters), kind="stable")
    return np.argsort(by_size)[best].astype(np.int32)


def _project(bags: Bags, bits: int, rng: np.random.Generator) -> np.ndarray:
    signs = rng.integers(0, 2, (2**bits, _DIMENSIONS), np.int8) * 2 - 1
    signs = signs.astype(np.float32)
    points = np.stack(
        [w @ signs[i] for i, w in zip(bags.ids, bags.weights, strict=True)]
    )
    return _unit(points)


def _plus_plus(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn with probability proportional to their distance to the nearest."""
    chosen = [int(rng.integers(len(points)))]
    nearest = points @ points[chosen[0]]
    while len(chosen) < k:
        distance = np.maximum(1 - nearest, 0).astype(np.float64)
        total = distance.sum()
        if total == 0:
            break
        chosen.append(int(rng.choice(len(points), p=distance / total)))
        nearest = np.maximum(nearest, points @ points[chosen[-1]])
    return points[chosen]


def _run(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    assigned = np.full(len(points), -1)
    for _ in range(_ITERATIONS):
        similarity = points @ centres.T
        updated = similarity.argmax(1)
        fit = similarity.max(1)
        for empty in np.setdiff1d(np.arange(len(centres)), updated):
            # Never take the only row of another cluster.
            movable = np.bincount(updated, minlength=len(centres))[updated] > 1
            worst = np.where(movable, fit, np.inf).argmin()
            updated[worst], fit[worst] = empty, 1.0
        if np.array_equal(updated, assigned):
            break
        assigned = updated
        sums = np.zeros_like(centres)
        np.add.at(sums, assigned, points)
        centres = _unit(sums)
    return assigned, float(fit.sum())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
