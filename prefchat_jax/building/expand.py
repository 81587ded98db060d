"""Expand: the kept rows of a part to a part of their variants."""

import dataclasses

import msgspec
import numpy as np

from prefchat_jax.building.augment import Chances, partners, variants
from prefchat_jax.building.code import is_code_like
from prefchat_jax.building.describe import ScanSettings, chat_row, describe, texts_of
from prefchat_jax.building.filters import exchange_of, objection
from prefchat_jax.building.parts import Column, Part, PartWriter
from prefchat_jax.building.tally import Tally
from prefchat_jax.datasets.rows import Row, examples_of
from prefchat_jax.text.hashing import byte_buffer

_BLOCK = 512  # Rows whose variants are made at once; partners are among them.


def expand_part(
    part: Part,
    first_row: int,
    state: Column,
    stem: str,
    settings: ScanSettings,
    chances: Chances,
    per_row: int,
    seed: int,
) -> Part:
    """Writes the variants of the rows of a part that are kept.

    Args:
      part: the rows.
      first_row: number of its first row among all.
      state: uint8 `[rows]`, 0 for rows that are kept.
      stem: path of the new part, without endings.
      settings: of the scan; the filters judge the variants, too.
      chances: shares of the kinds of variants.
      per_row: variants of each row, at most.
      seed: of the choices, with the row's own key.
    """
    writer, tally = PartWriter(stem), Tally()
    if not part.rows:
        return writer.close(dataclasses.asdict(tally))
    is_kept = state.open()[first_row : first_row + part.rows] == 0
    lines = [
        line for line, keep in zip(part.lines("rows"), is_kept, strict=True) if keep
    ]
    keys = part.columns()["pair_key"][is_kept, 0]
    for start in range(0, len(lines), _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = [msgspec.json.decode(line) for line in lines[block]]
        _expand_block(
            rows, keys[block], writer, tally, settings, chances, per_row, seed
        )
    return writer.close(dataclasses.asdict(tally))


def row_id(key: int) -> str:
    """The `id` of a row, by which its variants name it."""
    return f"{key:016x}"


def _expand_block(rows, keys, writer, tally, settings, chances, per_row, seed):
    examples = [examples_of(row, "")[0] for row in rows]
    is_code = [is_code_like(e.question, e.response) for e in examples]
    made, lines = [], []
    for number, other in enumerate(partners(examples, is_code)):
        rng = np.random.default_rng([seed, int(keys[number])])
        partner = None if other is None else examples[other]
        for variant in variants(
            examples[number], partner, per_row, chances, rng, is_code=is_code[number]
        ):
            exchange = exchange_of(variant.example)
            if "all" not in settings.skip_filters and objection(
                exchange, settings.limits, without=settings.skip_filters
            ):
                continue
            parents = [int(keys[number])]
            if variant.is_blend and other is not None:
                parents.append(int(keys[other]))
            made.append(variant.example)
            lines.append(_tagged(chat_row(variant.example), parents))
    buffer, starts = byte_buffer(texts_of(made))
    tally.count(example.source for example in made)
    exact = dataclasses.replace(settings, banding=None)
    writer.add(
        "rows", *describe(lines, [0] * len(made), made, buffer, starts, exact, tally)
    )


def _tagged(row: Row, parents: list[int]) -> Row:
    return row | {"augmented": True, "parents": [row_id(key) for key in parents]}
