"""Scan: the lines of a piece to rows that may be kept, with what is known of each.

A pure function of the lines and the settings: pieces are scanned in any order and by
any process, and nothing here knows of other rows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from prefchat_jax.building.describe import (
    ScanSettings,
    chat_row,
    describe,
    texts_of,
)
from prefchat_jax.building.filters import damage, exchange_of, objection, refuses
from prefchat_jax.building.fingerprints import exact_keys, text_of_context
from prefchat_jax.building.inputs import LONGEST_LINE, Piece, read_lines
from prefchat_jax.building.normal import normalize
from prefchat_jax.building.parts import Columns, Part, PartWriter
from prefchat_jax.building.personal import find_personal, mask_personal
from prefchat_jax.building.screen import objectionable, untidy
from prefchat_jax.building.tally import Tally
from prefchat_jax.datasets.preferences import PreferencePair, pair_row, pairs_of
from prefchat_jax.datasets.rows import (
    Unusable,
    decode_row,
    examples_of,
    is_preference,
)
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.hashing import byte_buffer

_BLOCK = 512  # Lines scanned at once: keeps the buffers inside the cache.
_PART = 2**25  # Bytes of lines after which a new part begins.

_tidy = functools.lru_cache(maxsize=4096)(normalize)  # Turns come back as history.
_encode = msgspec.json.Encoder().encode


def scan_piece(
    piece: Piece, folder: str, settings: ScanSettings, is_holdout: bool = False
) -> list[Part]:
    """Reads a piece and writes its parts.

    Args:
      piece: where the lines are.
      folder: where the parts go.
      settings: what to keep and what to note of it.
      is_holdout: the rows are only compared with, so none is filtered.

    Raises:
      UserError: the file cannot be read.
    """
    scanner = Scanner(settings, piece.source, is_holdout=is_holdout)
    numbered = enumerate(read_lines(piece), start=1)
    parts: list[Part] = []
    while not parts or not scanner.is_done:
        writer = PartWriter(f"{folder}/{piece.name}-{len(parts):04d}")
        tally = scanner.scan(numbered, writer)
        parts.append(writer.close(dataclasses.asdict(tally)))
    return parts


class Scanner:
    """Scans the lines of one file into parts.

    Args:
      settings: what to keep and what to note of it.
      source: of rows that name none.
      is_holdout: whether the filters are off.
    """

    def __init__(self, settings: ScanSettings, source: str, *, is_holdout: bool):
        self._settings = settings
        self._source = source
        self._filters = not is_holdout and "all" not in settings.skip_filters
        self._left = settings.max_rows
        self.is_done = False

    def scan(
        self, numbered: Iterator[tuple[int, bytes | None]], writer: PartWriter
    ) -> Tally:
        """Fills one part; `is_done` tells whether lines are left."""
        tally = Tally()
        while writer.size < _PART:
            block = list(itertools.islice(numbered, _BLOCK))
            self.is_done = not block or self._left == 0
            if self.is_done:
                break
            tally.lines += len(block)
            rows, pairs = self._read(block, tally)
            writer.add("rows", *self._rows(rows, tally))
            writer.add("pairs", *self._pairs(pairs, tally))
        return tally

    def _read(
        self, block: Iterable[tuple[int, bytes | None]], tally: Tally
    ) -> tuple[list[tuple[int, Example]], list[tuple[int, PreferencePair]]]:
        """Decodes lines; what holds no row is tallied."""
        rows: list[tuple[int, Example]] = []
        pairs: list[tuple[int, PreferencePair]] = []
        source = self._source
        for number, line in block:
            if self._left == 0:
                break
            if line == b"":
                continue
            before = len(rows) + len(pairs)
            try:
                if line is None:
                    raise Unusable(f"is longer than {LONGEST_LINE >> 20} MiB")
                row = decode_row(line)
                if is_preference(row):
                    pairs += [(number, pair) for pair in pairs_of(row, source)]
                else:
                    for example in examples_of(row, "", source):
                        rows.append((number, example))
            except Unusable as error:
                tally.fault(source, number, str(error), line or b"")
            if self._left is not None:
                self._left = max(0, self._left - (len(rows) + len(pairs) - before))
        return rows, pairs

    def _rows(
        self, rows: Sequence[tuple[int, Example]], tally: Tally
    ) -> tuple[list[bytes], Columns]:
        """Filters examples; lines and columns of those that may be kept."""
        settings = self._settings
        if not rows:
            return [], {}
        turns = settings.max_turns + 1
        examples = [
            row if len(row.context) <= turns else _cut(row, turns) for _, row in rows
        ]
        tally.count(row.source for row in examples)
        buffer, starts = byte_buffer(texts_of(examples))
        look = np.any(untidy(buffer, starts).reshape(-1, 2), axis=1)
        if self._filters:
            look |= objectionable(buffer, starts, settings.limits)
        kept: list[Example] = []
        changed = settings.personal_data == "mask"
        for (number, _), row, suspicious in zip(rows, examples, look, strict=True):
            if suspicious:
                normal = _normal(row)
                changed |= normal != row
                row = normal
            elif not self._may_go(row):
                kept.append(row)
                continue
            row, reason = self._judge(row)
            if reason:
                text = f"{row.question} | {row.response}"
                tally.drop(row.source, reason[0], number, reason[1], text)
            else:
                kept.append(row)
        if changed or len(kept) < len(rows):
            buffer, starts = byte_buffer(texts_of(kept))
        lines = map(chat_row, kept)
        return describe(lines, kept, buffer, starts, settings, tally)

    def _may_go(self, row: Example) -> bool:
        """Whether a row that has passed the screen must still be judged."""
        if not self._filters:
            return False
        return self._settings.personal_data != "keep" or refuses(row.response)

    def _judge(self, row: Example) -> tuple[Example, tuple[str, str] | None]:
        """The row, masked if that is wanted, and why it must go."""
        settings = self._settings
        if not self._filters:
            return row, None
        exchange = exchange_of(row)
        reason = objection(exchange, settings.limits, without=settings.skip_filters)
        if reason or settings.personal_data == "keep":
            return row, reason
        if settings.personal_data == "mask":
            turns = tuple(Turn(t.role, mask_personal(t.content)) for t in row.context)
            response = mask_personal(row.response)
            return row._replace(context=turns, response=response), None
        texts = (*(turn.content for turn in row.context), row.response)
        found = [item for text in texts for item in find_personal(text)]
        return row, ("personal_data", f"holds {found[0]!r}") if found else None

    def _pairs(
        self, pairs: Sequence[tuple[int, PreferencePair]], tally: Tally
    ) -> tuple[list[bytes], Columns]:
        """Checks preference pairs; lines and columns of those that may be kept."""
        kept: list[PreferencePair] = []
        tally.count(pair.source for _, pair in pairs)
        for number, pair in pairs:
            pair = pair._replace(
                context=tuple(Turn(t.role, _tidy(t.content)) for t in pair.context),
                chosen=_tidy(pair.chosen),
                rejected=_tidy(pair.rejected),
            )
            if reason := self._pair_objection(pair):
                text = f"{pair.chosen} | {pair.rejected}"
                tally.drop(pair.source, reason[0], number, reason[1], text)
            else:
                kept.append(self._masked(pair))
        if not kept:
            return [], {}
        sources = tally.sources
        keys = [_pair_keys(pair) for pair in kept]
        columns = {
            "preference_key": np.array([k for k, _ in keys], np.uint64).reshape(-1, 2),
            "comparison_key": np.array([k for _, k in keys], np.uint64).reshape(-1, 2),
            "preference_order": np.array([p.chosen < p.rejected for p in kept], bool),
            "preference_source": np.array(
                [sources.setdefault(pair.source, len(sources)) for pair in kept],
                np.uint32,
            ),
            "length_sign": np.array(
                [
                    (len(p.chosen) > len(p.rejected))
                    - (len(p.chosen) < len(p.rejected))
                    for p in kept
                ],
                np.int8,
            ),
        }
        if "context" in self._settings.views:
            contexts = [t for p in kept for t in (text_of_context(p.context), "")]
            keys = exact_keys(*byte_buffer(contexts), ("context",))["context_key"]
            columns["preference_context_key"] = keys
        return [_encode(pair_row(pair)) + b"\n" for pair in kept], columns

    def _pair_objection(self, pair: PreferencePair) -> tuple[str, str] | None:
        if pair.chosen.lower() == pair.rejected.lower():
            return "equal_pair", "chosen and rejected say the same"
        texts = [*(turn.content for turn in pair.context), pair.chosen, pair.rejected]
        if self._filters and "encoding" not in self._settings.skip_filters:
            for text in texts:
                if words := damage(text):
                    return "encoding", words
        if self._filters and self._settings.personal_data == "drop":
            for text in texts:
                if found := find_personal(text):
                    return "personal_data", f"holds {found[0]!r}"
        return None

    def _masked(self, pair: PreferencePair) -> PreferencePair:
        if not self._filters or self._settings.personal_data != "mask":
            return pair
        return pair._replace(
            context=tuple(Turn(t.role, mask_personal(t.content)) for t in pair.context),
            chosen=mask_personal(pair.chosen),
            rejected=mask_personal(pair.rejected),
        )


def _cut(row: Example, turns: int) -> Example:
    return row._replace(context=row.context[-turns:])


def _normal(row: Example) -> Example:
    context = tuple(Turn(turn.role, _tidy(turn.content)) for turn in row.context)
    return row._replace(context=context, response=normalize(row.response))


def _pair_keys(pair: PreferencePair) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of what was judged and how, and of what was judged alone."""
    context = text_of_context(pair.context)
    replies = [pair.chosen, pair.rejected]
    texts = [context, "\x1f".join([*replies, pair.annotator])]
    texts += [context, "\x1f".join(sorted(text.lower() for text in replies))]
    keys = exact_keys(*byte_buffer(texts), ("pair",))["pair_key"]
    return keys[0], keys[1]
