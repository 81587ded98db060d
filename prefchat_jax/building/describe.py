"""Describe: kept examples to lines of the corpus, and to columns that compare them."""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from prefchat_jax.building.code import is_code_like
from prefchat_jax.building.filters import Limits
from prefchat_jax.building.fingerprints import (
    TEXTS,
    exact_keys,
    near_columns,
    one_turn,
    sides_of,
)
from prefchat_jax.building.parts import Columns
from prefchat_jax.building.tally import Tally
from prefchat_jax.datasets.rows import Row
from prefchat_jax.text.dialogue import Example
from prefchat_jax.text.sketches import Banding

_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """What a part depends on, besides its lines.

    Attributes:
      limits: thresholds of the filters.
      skip_filters: names of filters that are off; `all` means every one.
      personal_data: `keep`, `mask` or `drop`.
      max_turns: earlier turns of a dialogue that a row keeps.
      max_rows: rows of a file that are read, or None.
      views: what duplicates share: `pair`, `context`, both, or neither.
      banding: of near-duplicates, or None without them.
      finds_code: whether rows about code are marked.
    """

    limits: Limits = Limits()
    skip_filters: tuple[str, ...] = ()
    personal_data: str = "keep"
    max_turns: int = 8
    max_rows: int | None = None
    views: tuple[str, ...] = ("pair",)
    banding: Banding | None = None
    finds_code: bool = False


def describe(
    rows: Iterable[Row],
    numbers: Sequence[int],
    examples: Sequence[Example],
    buffer: np.ndarray,
    starts: np.ndarray,
    settings: ScanSettings,
    tally: Tally,
) -> tuple[list[bytes], Columns]:
    """The lines of a part and its columns, one entry a line.

    Args:
      rows: what the lines say.
      numbers: where they stood in their file.
      examples: the same as examples.
      buffer: lower-case bytes of the examples' `texts_of`.
      starts: `[TEXTS * n]` where each text begins.
      settings: which columns are needed.
      tally: numbers the sources and the labels.
    """
    if not examples:
        return [], {}
    views = dict.fromkeys(("pair", *settings.views))  # The pair names the row.
    keys = [*views, *(("question",) if "context" in views else ())]
    columns = exact_keys(buffer, starts, keys)
    if settings.banding:
        columns |= near_columns(buffer, starts, settings.views, settings.banding)
    sources, labels = tally.sources, tally.labels
    source = [sources.setdefault(e.source, len(sources)) for e in examples]
    label = [
        -1 if e.label is None else labels.setdefault(str(e.label), len(labels))
        for e in examples
    ]
    columns |= {
        "source": np.array(source, np.uint32),
        "line": np.array(numbers, np.uint32),
        "has_history": np.diff(starts)[::TEXTS] > 1,
        "label": np.array(label, np.int32),
        "verdict": np.array([_verdict(e) for e in examples], np.uint64),
        "asked": np.array([len(e.context[-1].content) for e in examples], np.uint32),
        "replied": np.array([len(e.response) for e in examples], np.uint32),
    }
    if settings.finds_code:
        is_code = [is_code_like(e.question, e.response) for e in examples]
        columns["is_code"] = np.array(is_code, bool)
    return [_encode(row) + b"\n" for row in rows], columns


def texts_of(examples: Iterable[Example]) -> list[str]:
    """History, question, reply, verdict, history, ...

    The verdict is the label and who gave it, as written: signs and case count.
    """
    return [
        text
        for e in examples
        for text in (
            *sides_of(e.context, one_turn(e.response)),
            "" if e.label is None else _said_verdict(e).encode().hex(),
        )
    ]


def _said_verdict(example: Example) -> str:
    return f"{example.label}\x1f{example.annotator}"


def _verdict(example: Example) -> int:
    """A number for the label and who gave it; 0 without a label."""
    if example.label is None:
        return 0
    return zlib.crc32(_said_verdict(example).encode()) | 1 << 32


def chat_row(example: Example) -> Row:
    """An example as one JSON object of the corpus."""
    row: dict[str, Any] = {"user": example.question}
    if len(example.context) > 1:
        row["history"] = [
            {"role": turn.role, "content": turn.content}
            for turn in example.context[:-1]
        ]
    if example.response:
        row["assistant"] = example.response
    if example.label is not None:
        row["label"] = example.label
    if example.intent is not None and example.intent != example.label:
        row["intent"] = example.intent
    if example.groups:
        groups = example.groups
        row["group"] = groups[0] if len(groups) == 1 else list(groups)
    if example.annotator:
        row["annotator"] = example.annotator
    row["source"] = example.source
    return row
