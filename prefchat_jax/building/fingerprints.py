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

SIDES = ("history", "question", "reply")
TEXTS = 4  # Of a row: its sides, and the verdict on it.

_TURN = TURN.decode()
# The texts that each key covers, from the first to the one after the last.
_COVERED = {"pair": (0, TEXTS), "context": (0, 2), "question": (1, 2)}


def sides_of(context: Sequence[Turn], reply: str) -> tuple[str, str, str]:
    """What rows are compared by: earlier turns, the question, and the reply.

    A system prompt is no part of what was said: rows often share it, and a test
    file may lack it.
    """
    question = context[-1].content
    if len(context) == 1:
        return "", one_turn(question), reply
    earlier = [one_turn(t.content) for t in context[:-1] if t.role != "system"]
    return _TURN.join(earlier), one_turn(question), reply


def one_turn(text: str) -> str:
    """A text without the sign that parts turns; the screen suspects what it gets."""
    return text.replace(_TURN, "\x01") if _TURN in text else text


def exact_keys(
    buffer: np.ndarray, starts: np.ndarray, views: Sequence[str]
) -> dict[str, np.ndarray]:
    """Hashes of lower-case texts: rows that say the same have the same.

    Args:
      buffer: bytes of history, question, reply, verdict, history, ...
      starts: `[TEXTS * n]` where each begins.
      views: what is compared: `pair`, `context` or `question`.

    Returns:
      uint64 `[n, 2]` named `pair_key`, `context_key` and `question_key`.
    """
    data, edges = buffer.tobytes(), [*starts.tolist(), len(buffer)]
    columns, blake2b = {}, hashlib.blake2b
    for view in views:
        first, after = _COVERED[view]
        digests = [
            blake2b(data[start:end], digest_size=16).digest()
            for start, end in zip(
                edges[first:-1:TEXTS], edges[after::TEXTS], strict=False
            )
        ]
        keys = np.frombuffer(b"".join(digests), np.uint64)
        columns[f"{view}_key"] = keys.reshape(-1, 2)
    return columns


def near_columns(
    buffer: np.ndarray, starts: np.ndarray, views: Sequence[str], banding: Banding
) -> dict[str, np.ndarray]:
    """Sketches of all sides, and the bands of each view.

    A band of the view `pair` takes half of its values from the question and half
    from the reply, since every side must be alike: with one set for all, a long
    reply or history would outvote two different questions.

    Returns:
      `question_values`, `question_counts`, and so on for each side (see
      `Sketches`), and uint64 `[n, bands]` named `pair_bands`, `context_bands`.
    """
    sketches = sketch(buffer, starts)
    sides = _sides(sketches)
    size = banding.bands * banding.rows
    asked = minhash(sides["question"], size if "context" in views else size // 2)
    columns = {}
    if "context" in views:
        columns["context_bands"] = band_keys([asked], banding)
    if "pair" in views:
        parts = [asked[: size // 2], minhash(sides["reply"], size // 2)]
        columns["pair_bands"] = band_keys(parts, banding)
    for side, of_side in sides.items():
        columns[f"{side}_values"] = of_side.values
        columns[f"{side}_counts"] = of_side.counts.astype(np.uint32)
    return columns


def _sides(sketches: Sketches) -> dict[str, Sketches]:
    """The sketches of each side."""
    counts, sides = sketches.counts, {}
    side_of_value = np.repeat(np.arange(len(counts)) % TEXTS, counts)
    for number, side in enumerate(SIDES):
        values = sketches.values[side_of_value == number]
        sides[side] = Sketches.of_counts(values, counts[number::TEXTS])
    return sides
