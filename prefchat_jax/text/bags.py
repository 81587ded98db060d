"""Bags of weighted features, padded to one length, and what is done with them."""

from typing import NamedTuple

import numpy as np


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


def by_row(rows: np.ndarray, bags: Bags) -> Bags:
    """The bags with a row of a table for each id; what has row 0 weighs nothing."""
    ids = rows[bags.ids]
    return Bags(ids, np.where(ids > 0, bags.weights, np.float32(0)))


def cosine(query: Bags, keys: Bags, bits: int) -> np.ndarray:
    """Cosine similarities, float32 `[queries, keys]`, of unit-norm bags."""
    out = np.empty((len(query.ids), len(keys.ids)), np.float32)
    dense = np.zeros(2**bits, np.float32)
    for row, (ids, weights) in enumerate(zip(query.ids, query.weights, strict=True)):
        dense[:] = 0
        np.add.at(dense, ids, weights)
        out[row] = np.einsum("kl,kl->k", dense[keys.ids], keys.weights)
    return out
