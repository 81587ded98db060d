"""Hard negatives: wrong responses that share words with the right one."""

import numpy as np

from prefchat_jax.text.bags import Bags

POOL = 1024  # Random responses that the rows of one block choose from.
_BLOCK = 1024  # Rows that share a pool.
_SKETCH = 512  # Size of a sketch; the standard error of a cosine is 0.04.
_SAME = 0.9  # Above this cosine two responses say the same: no negative.


def lexical_negatives(
    responses: Bags, numbers: np.ndarray, *, count: int, seed: int
) -> np.ndarray:
    """Finds wrong responses that are lexically near the right one of each row.

    Each block of rows chooses from a random pool, so that time grows with the rows
    and not with rows times responses. Cosines are of count sketches, which add
    features up under random signs in a short vector (Weinberger et al.,
    https://arxiv.org/abs/0902.2206).

    Args:
      responses: bags `[d, features]` of the distinct responses.
      numbers: `[n]` the right response of each row.
      count: H, negatives of one row.
      seed: of the pools and the signs.

    Returns:
      int32 `[n, H]` numbers of distinct responses, the nearest first; -1 where the
      pool has no more that differ from the right one.
    """
    found = np.full((len(numbers), count), -1, np.int32)
    if not count:
        return found
    rng = np.random.default_rng([seed, 0x4E])
    vectors = _sketches(responses, rng)
    for start in range(0, len(numbers), _BLOCK):
        own = numbers[start : start + _BLOCK]
        size = min(POOL, len(vectors))
        pool = rng.choice(len(vectors), size, replace=False)
        near = vectors[own] @ vectors[pool].T
        near[(near > _SAME) | (own[:, None] == pool[None, :])] = -np.inf
        kept = min(count, size)
        best = np.argsort(-near, axis=1, kind="stable")[:, :kept]
        is_wrong = np.take_along_axis(near, best, axis=1) > -np.inf
        found[start : start + _BLOCK, :kept] = np.where(is_wrong, pool[best], -1)
    return found


def _sketches(bags: Bags, rng: np.random.Generator) -> np.ndarray:
    """Count sketches float32 `[n, _SKETCH]` of bags, with unit norm."""
    size = int(bags.ids.max(initial=0)) + 1
    places = rng.integers(0, _SKETCH, size)
    signs = rng.choice(np.array([-1, 1], np.float32), size)
    owners = np.arange(len(bags.ids))[:, None] * _SKETCH
    vectors = np.bincount(
        (owners + places[bags.ids]).ravel(),
        (signs[bags.ids] * bags.weights).ravel(),
        len(bags.ids) * _SKETCH,
    ).astype(np.float32)
    vectors = vectors.reshape(-1, _SKETCH)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)
