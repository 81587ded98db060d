"""Records: JSONL lines to examples or pairs, and a count of what was of no use."""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from prefchat_jax.datasets.preferences import PreferencePair, pairs_of
from prefchat_jax.datasets.rows import (
    Row,
    Unreadable,
    Unusable,
    decode_row,
    examples_of,
)
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example

OUT_OF_SCOPE = (-1, "-1", "oos", "out_of_scope")

_SHOWN = 5  # Places of unusable rows that a message names.


@dataclasses.dataclass
class Reading:
    """What reading found out about its files, besides their rows.

    Attributes:
      unusable: how many rows hold nothing of use.
      unusable_places: where the first of them are, `file:line`, and why.
      fingerprint: hash of the bytes that were read.
    """

    unusable: int = 0
    unusable_places: list[str] = dataclasses.field(default_factory=list)
    fingerprint: str = ""

    def notice(self) -> str | None:
        """One line about the rows that were left out, if any."""
        if not self.unusable:
            return None
        places = ", ".join(self.unusable_places)
        return (
            f"{self.unusable} row{'s' * (self.unusable != 1)} left out: {places}"
            f"{', ...' if self.unusable > _SHOWN else ''}"
        )


@dataclasses.dataclass
class Records(Reading):
    """Rows that say a reply or a label.

    Attributes:
      examples: usable rows with a bucket that can be learned.
      out_of_scope: rows labelled -1, "oos" or "out_of_scope": for evaluation.
    """

    examples: list[Example] = dataclasses.field(default_factory=list)
    out_of_scope: list[Example] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Comparisons(Reading):
    """Rows that compare replies.

    Attributes:
      pairs: of two replies that differ, the better one first.
    """

    pairs: list[PreferencePair] = dataclasses.field(default_factory=list)


def read_records(paths: Sequence[str | os.PathLike]) -> Records:
    """Reads JSONL files, plain or `.gz`.

    A line is a flat pair (`user|prompt|...` and `assistant|response|...`, both
    or only the first with a `label` or `intent`, and a `history` of earlier
    turns), or a dialogue under `messages|conversation|chat`, where each
    assistant turn after a user turn is one example with the turns before it as
    context.

    Raises:
      UserError: a file is missing, a line is not a JSON object, or nothing
        usable is left.
    """
    records = Records()

    def use(row: Row, where: str, path: str) -> None:
        for example in examples_of(row, where, path):
            outside = example.label in OUT_OF_SCOPE
            (records.out_of_scope if outside else records.examples).append(example)

    _read(paths, records, use)
    if not records.examples and not records.out_of_scope:
        like = '{"user": "...", "assistant": "..."}'
        raise UserError(_nothing_usable(paths, records, like))
    return records


def read_pairs(
    paths: Sequence[str | os.PathLike], *, skip_damaged: bool = False
) -> Comparisons:
    """Reads preference pairs of JSONL files, plain or `.gz`; see `pairs_of`.

    Args:
      paths: the files.
      skip_damaged: a line that is not a JSON object is unusable, and no error:
        where a crash may have left half of one.

    Raises:
      UserError: a file is missing, a line is damaged, or no pair is left.
    """
    found = Comparisons()

    def use(row: Row, where: str, path: str) -> None:
        pairs = pairs_of(row, path)
        if any(pair.chosen == pair.rejected for pair in pairs):
            raise Unusable("chosen equals rejected")
        found.pairs += pairs

    _read(paths, found, use, skip_damaged=skip_damaged)
    if not found.pairs:
        like = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
        raise UserError(_nothing_usable(paths, found, like))
    return found


def corpus_paths(data: str | None, manifest: str | None) -> list[str | pathlib.Path]:
    """The files that `--data` and `--data_manifest` name."""
    if not data and not manifest:
        raise UserError("--data is missing: give a JSONL corpus.")
    return [*([data] if data else []), *(read_manifest(manifest) if manifest else [])]


def read_manifest(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Reads a JSON manifest: a list of shard paths, relative to the manifest.

    A list under `shards`, `files` or `inputs` of an object will also do.

    Raises:
      UserError: the file is missing or has another form.
    """
    path = pathlib.Path(path)
    try:
        value = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if isinstance(value, dict):
        keys = [key for key in ("shards", "files", "inputs") if key in value]
        value = value[keys[0]] if keys else None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{path}: a manifest is a JSON list of file names.")
    return [path.parent / item for item in value]


def _read(
    paths: Sequence[str | os.PathLike],
    reading: Reading,
    use: Callable[[Row, str, str], None],
    *,
    skip_damaged: bool = False,
) -> None:
    """Uses each row with its place and its file, and counts those of no use."""
    digest = hashlib.sha256()
    for path in paths:
        for number, line in _lines(pathlib.Path(path)):
            digest.update(line)
            where = f"{path}:{number}"
            try:
                use(decode_row(line), where, str(path))
            except (Unusable, RecursionError, OverflowError) as error:
                if isinstance(error, Unreadable) and not skip_damaged:
                    raise UserError(
                        f"{where} {error}: mend or delete the line, or let `prefchat "
                        "build` leave it out."
                    ) from error
                reading.unusable += 1
                if len(reading.unusable_places) < _SHOWN:
                    reading.unusable_places.append(f"{where} ({error})")
    reading.fingerprint = digest.hexdigest()


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line := line.strip().removeprefix(b"\xef\xbb\xbf"):
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file: {error}.") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error


def _nothing_usable(
    paths: Sequence[str | os.PathLike], reading: Reading, like: str
) -> str:
    names = ", ".join(map(str, paths))
    if not reading.unusable:
        return f"{names}: no rows. Give one JSON object a line."
    return f"{names}: no usable row. {reading.notice()}. A line looks like {like}."
