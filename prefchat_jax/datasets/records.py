"""Records: JSONL lines to examples, and a count of what could not be used."""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import ROLES, Example, Turn

USER_KEYS = ("user", "prompt", "input", "question", "instruction")
RESPONSE_KEYS = (
    "assistant",
    "response",
    "output",
    "answer",
    "completion",
    "target",
)
DIALOGUE_KEYS = ("messages", "conversation", "chat")
OUT_OF_SCOPE = (-1, "-1", "oos", "out_of_scope")

_SHOWN = 5  # Places of unusable rows that a message names.


@dataclasses.dataclass
class Records:
    """What was read.

    Attributes:
      examples: usable rows with a bucket that can be learned.
      out_of_scope: rows labelled -1, "oos" or "out_of_scope": for evaluation.
      unusable: how many rows lack a side.
      unusable_places: where the first of them are, `file:line`.
      fingerprint: hash of the bytes that were read.
    """

    examples: list[Example] = dataclasses.field(default_factory=list)
    out_of_scope: list[Example] = dataclasses.field(default_factory=list)
    unusable: int = 0
    unusable_places: list[str] = dataclasses.field(default_factory=list)
    fingerprint: str = ""

    def notice(self) -> str | None:
        """One line about the rows that were left out, if any."""
        if not self.unusable:
            return None
        places = ", ".join(self.unusable_places)
        return (
            f"{self.unusable} rows left out, without a user text or without both a "
            f"reply and a label: {places}{', ...' if self.unusable > _SHOWN else ''}"
        )


def read_records(paths: Sequence[str | os.PathLike]) -> Records:
    """Reads JSONL files, plain or `.gz`.

    A line is a flat pair (`user|prompt|...` and `assistant|response|...`, both
    or only the first with a `label` or `intent`), or a dialogue under
    `messages|conversation|chat`, where each assistant turn after a user turn
    is one example with the turns before it as context.

    Raises:
      UserError: a file is missing, a line is not a JSON object, or nothing
        usable is left.
    """
    records, digest = Records(), hashlib.sha256()
    for path in paths:
        for number, line in _lines(pathlib.Path(path)):
            digest.update(line)
            where = f"{path}:{number}"
            examples = list(_examples(_decode(line, where), where))
            for example in examples:
                outside = example.label in OUT_OF_SCOPE
                (records.out_of_scope if outside else records.examples).append(example)
            if not examples:
                records.unusable += 1
                if len(records.unusable_places) < _SHOWN:
                    records.unusable_places.append(where)
    records.fingerprint = digest.hexdigest()
    if not records.examples and not records.out_of_scope:
        raise UserError(_nothing_usable(paths, records))
    return records


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


def _decode(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where} is not valid JSON ({error}): mend or delete the line."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object: each line must be one.")
    return row


def _examples(row: dict[str, Any], where: str) -> Iterator[Example]:
    """The examples of one line: none if a side is missing."""
    for key in DIALOGUE_KEYS:
        if isinstance(row.get(key), list):
            yield from _dialogue_examples(row[key], row, where)
            return
    user, response = _first(row, USER_KEYS), _first(row, RESPONSE_KEYS)
    label = _label(row)
    if user and (response or label is not None):
        context = (Turn("user", user),)
        group, intent = row.get("group"), _intent(row)
        yield Example(
            context, response, label, intent, group, where, _source(row, where)
        )


def _dialogue_examples(
    messages: list[Any], row: dict[str, Any], where: str
) -> Iterator[Example]:
    """One example for each assistant turn that follows a user turn.

    The label of a row belongs to its last reply.
    """
    turns = [turn for message in messages if (turn := _turn(message))]
    replies = [
        i
        for i in range(1, len(turns))
        if turns[i].role == "assistant" and turns[i - 1].role == "user"
    ]
    # Dialogues split as one: their examples share turns.
    group = where if row.get("group") is None else row["group"]
    for i in replies:
        label = _label(row) if i == replies[-1] else None
        yield Example(
            tuple(turns[:i]),
            turns[i].content,
            label,
            _intent(row),
            group,
            where,
            _source(row, where),
        )


def _turn(message: Any) -> Turn | None:
    if not isinstance(message, dict):
        return None
    role = message.get("role", "")
    content = _text(message.get("content", message.get("text")))
    return Turn(role, content) if role in ROLES and content else None


def _first(row: dict[str, Any], keys: Sequence[str]) -> str:
    return next((text for key in keys if (text := _text(row.get(key)))), "")


def _text(value: Any) -> str:
    """Text of a string, a number, a list of texts, or `{"text"|"content": ...}`."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return _text(value.get("text", value.get("content")))
    return ""


def _label(row: dict[str, Any]) -> str | int | None:
    """The `label`, or else the `intent`: an integer or a string that is not empty."""
    for key in ("label", "intent"):
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, float) and value.is_integer():
            return int(value)  # As tables export integers beside gaps.
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _intent(row: dict[str, Any]) -> str | None:
    value = row.get("intent")
    return value.strip() if isinstance(value, str) and value.strip() else None


def _source(row: dict[str, Any], where: str) -> str:
    """Who is to be trusted for the label: a person, a data set, or a file."""
    named = _first(row, ("annotator", "source"))
    return named or where.rpartition(":")[0]


def _nothing_usable(paths: Sequence[str | os.PathLike], records: Records) -> str:
    names = ", ".join(map(str, paths))
    if not records.unusable:
        return f"{names}: no rows. Give one JSON object a line."
    return (
        f"{names}: no usable row. {records.notice()}. A line looks like "
        '{"user": "...", "assistant": "..."}.'
    )
