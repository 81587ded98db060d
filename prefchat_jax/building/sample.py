"""Sample: which rows are drawn when there are more than the target."""

from collections.abc import Callable, Iterable

import numpy as np

from prefchat_jax.text.hashing import mix

_BITS = 16  # Bits of a draw that one pass over all rows settles.


def draws(keys: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """A number for each row; the rows with the smallest ones are the sample.

    A row's number is `-log(u) / weight` with `u` uniform, which samples without
    replacement by weight (Efraimidis & Spirakis, 2006,
    https://doi.org/10.1016/j.ipl.2005.11.003). `u` is a hash of the row's key and
    the seed: the order of the rows and the number of processes do not matter, and
    a row that is drawn stays drawn when others go.

    Args:
      keys: uint64 `[n]` hashes of the rows.
      weights: float `[n]` at least 0; a row of weight 0 comes last.
      seed: another one draws other rows.

    Returns:
      uint64 `[n]` in the order of the numbers, for `threshold`.
    """
    bits = mix(keys ^ mix(np.full(1, seed, np.uint64)))
    uniform = (bits.astype(np.float64) + 0.5) / 2**64
    with np.errstate(divide="ignore"):
        numbers = -np.log(uniform) / np.asarray(weights, np.float64)
    return numbers.view(np.uint64)  # Floats that are not negative sort as integers.


def threshold(blocks: Callable[[], Iterable[np.ndarray]], count: int) -> int:
    """The `count`-th smallest of many numbers that need not fit into memory.

    Args:
      blocks: gives the numbers, uint64, anew each time: four passes are made.
      count: from 1 to how many there are.
    """
    known, left = 0, count
    for shift in range(64 - _BITS, -1, -_BITS):
        counts = np.zeros(2**_BITS, np.int64)
        for block in blocks():
            if shift + _BITS < 64:
                block = block[block >> np.uint64(shift + _BITS) == known]
            digits = (block >> np.uint64(shift)) & np.uint64(2**_BITS - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
        reached = np.cumsum(counts)
        digit = int(np.searchsorted(reached, left))
        left -= int(reached[digit - 1]) if digit else 0
        known = known << _BITS | digit
    return known
