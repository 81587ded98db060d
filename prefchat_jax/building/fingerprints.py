"""Fingerprints: the columns by which rows are compared with one another."""

import hashlib
from collections.abc import Sequence

import numpy as np

from prefchat_jax.text.dialogue import Turn
from prefchat_jax.text.sketches import (
    TURN,
    Banding,
    Sketches,
    band_keys,
    minhash,
    sketch,
)


def text_of_context(context: Sequence[Turn]) -> str:
    """The turns of a context as one text."""
    if len(context) == 1:
        return context[0].content
    return TURN.decode().join([turn.content for turn in context])


def exact_keys(
    buffer: np.ndarray, starts: np.ndarray, views: Sequence[str]
) -> dict[str, np.ndarray]:
    """Hashes of lower-case texts: rows that say the same have the same.

    Args:
      buffer: bytes of context, reply, context, reply, ...
      starts: `[2 n]` where each begins.
      views: what is compared.

    Returns:
      uint64 `[n, 2]` named `pair_key` and `context_key`.
    """
    data, edges = buffer.tobytes(), [*starts.tolist(), len(buffer)]
    columns, blake2b = {}, hashlib.blake2b
    for view in views:
        ends = edges[2::2] if view == "pair" else edges[1::2]
        digests = [
            blake2b(data[start:end], digest_size=16).digest()
            for start, end in zip(edges[:-1:2], ends, strict=True)
        ]
        keys = np.frombuffer(b"".join(digests), np.uint64)
        columns[f"{view}_key"] = keys.reshape(-1, 2)
    return columns


def near_columns(
    buffer: np.ndarray, starts: np.ndarray, views: Sequence[str], banding: Banding
) -> dict[str, np.ndarray]:
    """Sketches of contexts and replies, and the bands of each view.

    A band of the view `pair` takes half of its values from the context and half
    from the reply, since both must be alike: with one set for both, a long reply
    would outvote two different questions.

    Returns:
      `context_values`, `context_counts`, `reply_values`, `reply_counts` (see
      `Sketches`), and uint64 `[n, bands]` named `pair_bands`, `context_bands`.
    """
    sketches = sketch(buffer, starts)
    sides = _sides(sketches)
    size = banding.bands * banding.rows
    context = minhash(sides["context"], size if "context" in views else size // 2)
    columns = {}
    if "context" in views:
        columns["context_bands"] = band_keys([context], banding)
    if "pair" in views:
        parts = [context[: size // 2], minhash(sides["reply"], size // 2)]
        columns["pair_bands"] = band_keys(parts, banding)
    for side, of_side in sides.items():
        columns[f"{side}_values"] = of_side.values
        columns[f"{side}_counts"] = of_side.counts.astype(np.uint32)
    return columns


def _sides(sketches: Sketches) -> dict[str, Sketches]:
    """The sketches of contexts (even texts) and of replies (odd ones)."""
    counts = sketches.counts
    is_reply = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    values = sketches.values
    return {
        "context": Sketches.of_counts(values[~is_reply], counts[::2]),
        "reply": Sketches.of_counts(values[is_reply], counts[1::2]),
    }
