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


def trim(bags: Bags, quantile: float = 0.98) -> Bags:
    """Moves what weighs something to the left, and cuts what few rows need.

    The longest few rows lose their lightest features; training then gathers no
    more columns than the given share of the rows uses, rounded up to 16 so that
    similar corpora compile once.
    """
    unused = bags.weights == 0
    order = np.argsort(unused, axis=1, kind="stable")
    lengths = np.sum(~unused, axis=1)
    needed = int(np.quantile(lengths, quantile)) if len(lengths) else 1
    width = min(-(-max(needed, 1) // 16) * 16, bags.ids.shape[1])
    order = order[:, :width]
    take = lambda x: np.take_along_axis(x, order, axis=1)
    return Bags(take(bags.ids), take(bags.weights))


def cosine(query: Bags, keys: Bags, bits: int) -> np.ndarray:
    """Cosine similarities, float32 `[queries, keys]`, of unit-norm bags."""
    out = np.empty((len(query.ids), len(keys.ids)), np.float32)
    dense = np.zeros(2**bits, np.float32)
    for row, (ids, weights) in enumerate(zip(query.ids, query.weights, strict=True)):
        dense[:] = 0
        np.add.at(dense, ids, weights)
        out[row] = np.einsum("kl,kl->k", dense[keys.ids], keys.weights)
    return out
