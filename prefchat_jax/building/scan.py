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
from prefchat_jax.building.fingerprints import TEXTS, exact_keys, sides_of
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

_BLOCK_BYTES = 2**22
_SHORT = 1000  # Characters of a text that is remembered.
_remembered = functools.lru_cache(maxsize=4096)(normalize)
_encode = msgspec.json.Encoder().encode


def scan_piece(piece: Piece, folder: str, settings: ScanSettings) -> list[Part]:
    """Reads a piece and writes its parts.

    Args:
      piece: where the lines are.
      folder: where the parts go.
      settings: what to keep and what to note of it.

    Raises:
      UserError: the file cannot be read.
    """
    scanner = Scanner(settings, piece.source, is_holdout=piece.is_holdout)
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
      is_holdout: the rows are only compared with, so none is dropped or capped.
    """

    def __init__(self, settings: ScanSettings, source: str, *, is_holdout: bool):
        self._settings = settings
        self._source = source
        self._is_holdout = is_holdout
        self._filters = not is_holdout and "all" not in settings.skip_filters
        self._drops_personal = not is_holdout and settings.personal_data == "drop"
        self._masks = settings.personal_data == "mask"
        self._left = None if is_holdout else settings.max_rows
        self.is_done = False

    def scan(
        self, numbered: Iterator[tuple[int, bytes | None]], writer: PartWriter
    ) -> Tally:
        """Fills one part; `is_done` tells whether lines are left."""
        tally = Tally()
        while writer.size < _PART:
            block = list(_block(numbered))
            self.is_done = not block or self._left == 0
            if self.is_done:
                break
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
            tally.lines += 1
            if line == b"":
                continue
            before = len(rows) + len(pairs)
            try:
                if line is None:
                    raise Unusable(f"is longer than {LONGEST_LINE >> 20} MiB")
                row = decode_row(line)
                if is_preference(row):
                    found = pairs_of(row, source)
                    if self._is_holdout:  # Only its context is compared with.
                        found = found[:1]
                        rows += [(number, Example(p.context, p.chosen)) for p in found]
                    else:
                        pairs += [(number, pair) for pair in found]
                else:
                    for example in examples_of(row, "", source):
                        rows.append((number, example))
            except Unusable as error:
                tally.fault(source, number, str(error), line or b"")
            except (RecursionError, OverflowError) as error:
                tally.fault(source, number, f"cannot be read ({error})", line or b"")
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
        texts = texts_of(examples)
        buffer, starts = byte_buffer(texts)
        # Lower case makes ASCII of some letters: ask the texts as they were.
        is_plain = np.fromiter(map(str.isascii, texts), bool, len(texts))
        look = np.any((untidy(buffer, starts) | ~is_plain).reshape(-1, TEXTS), axis=1)
        if self._filters:
            look |= objectionable(buffer, starts, settings.limits)
        kept: list[Example] = []
        numbers: list[int] = []
        changed = self._masks
        for (number, _), row, suspicious in zip(rows, examples, look, strict=True):
            if suspicious:
                normal = _normal(row)
                changed |= normal != row
                row = normal
            elif not self._may_go(row):
                kept.append(row)
                numbers.append(number)
                continue
            row, reason = self._judge(row)
            if reason:
                text = self._shown(f"{row.question} | {row.response}")
                tally.drop(row.source, reason[0], number, reason[1], text)
            else:
                kept.append(row)
                numbers.append(number)
        if changed or len(kept) < len(rows):
            buffer, starts = byte_buffer(texts_of(kept))
        lines = map(chat_row, kept)
        return describe(lines, numbers, kept, buffer, starts, settings, tally)

    def _may_go(self, row: Example) -> bool:
        """Whether a row that has passed the screen must still be judged."""
        if self._masks or self._drops_personal:
            return True
        return self._filters and refuses(row.response)

    def _judge(self, row: Example) -> tuple[Example, tuple[str, str] | None]:
        """The row, masked if that is wanted, and why it must go."""
        settings = self._settings
        if self._filters:
            exchange = exchange_of(row)
            skipped = settings.skip_filters
            if reason := objection(exchange, settings.limits, without=skipped):
                return row, reason
        texts = (*(turn.content for turn in row.context), row.response)
        if self._drops_personal and (found := _personal(texts)):
            return row, found
        if self._masks:
            turns = tuple(Turn(t.role, mask_personal(t.content)) for t in row.context)
            row = row._replace(context=turns, response=mask_personal(row.response))
        return row, None

    def _shown(self, text: str) -> str:
        """A text for the report, which shows no personal data that is not kept."""
        return text if self._settings.personal_data == "keep" else mask_personal(text)

    def _pairs(
        self, pairs: Sequence[tuple[int, PreferencePair]], tally: Tally
    ) -> tuple[list[bytes], Columns]:
        """Checks preference pairs; lines and columns of those that may be kept."""
        kept: list[PreferencePair] = []
        tally.count(pair.source for _, pair in pairs)
        for number, pair in pairs:
            pair = pair._replace(
                context=tuple(
                    Turn(t.role, _tidied(t.content))
                    for t in pair.context[-self._settings.max_turns - 1 :]
                ),
                chosen=normalize(pair.chosen),
                rejected=normalize(pair.rejected),
            )
            if reason := self._pair_objection(pair):
                text = self._shown(f"{pair.chosen} | {pair.rejected}")
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
            "preference_order": np.array(
                [p.chosen.lower() < p.rejected.lower() for p in kept], bool
            ),
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
            texts = [t for pair in kept for t in (*sides_of(pair.context, ""), "")]
            views = ("context", "question")
            for name, found in exact_keys(*byte_buffer(texts), views).items():
                columns[f"preference_{name}"] = found
        return [_encode(pair_row(pair)) + b"\n" for pair in kept], columns

    def _pair_objection(self, pair: PreferencePair) -> tuple[str, str] | None:
        if pair.chosen.lower() == pair.rejected.lower():
            return "equal_pair", "chosen and rejected say the same"
        texts = [*(turn.content for turn in pair.context), pair.chosen, pair.rejected]
        if self._filters and "encoding" not in self._settings.skip_filters:
            for text in texts:
                if words := damage(text):
                    return "encoding", words
        return _personal(texts) if self._drops_personal else None

    def _masked(self, pair: PreferencePair) -> PreferencePair:
        if not self._masks:
            return pair
        return pair._replace(
            context=tuple(Turn(t.role, mask_personal(t.content)) for t in pair.context),
            chosen=mask_personal(pair.chosen),
            rejected=mask_personal(pair.rejected),
        )


def _tidied(text: str) -> str:
    """`normalize` for turns, which come back as the history of later rows."""
    return _remembered(text) if len(text) <= _SHORT else normalize(text)


def _personal(texts: Iterable[str]) -> tuple[str, str] | None:
    for text in texts:
        if found := find_personal(text):
            kind = "an e-mail address" if "@" in found[0] else "a phone number"
            return "personal_data", f"holds {kind}"
    return None


def _block(
    numbered: Iterator[tuple[int, bytes | None]],
) -> Iterator[tuple[int, bytes | None]]:
    """The next lines, as many as make a block."""
    size = 0
    for number, line in itertools.islice(numbered, _BLOCK):
        yield number, line
        size += len(line or b"")
        if size > _BLOCK_BYTES:
            return


def _cut(row: Example, turns: int) -> Example:
    return row._replace(context=row.context[-turns:])


def _normal(row: Example) -> Example:
    context = tuple(Turn(turn.role, _tidied(turn.content)) for turn in row.context)
    return row._replace(context=context, response=normalize(row.response))


def _pair_keys(pair: PreferencePair) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of what was judged and how, and of what was judged alone."""
    replies = [pair.chosen, pair.rejected]
    judged = "\x1f".join([*replies, pair.annotator])
    compared = "\x1f".join(sorted(text.lower() for text in replies))
    context = pair.context
    texts = [*sides_of(context, judged), "", *sides_of(context, compared), ""]
    keys = exact_keys(*byte_buffer(texts), ("pair",))["pair_key"]
    return keys[0], keys[1]
