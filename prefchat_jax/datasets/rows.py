"""Rows: one line of JSON to the examples that it holds, or why it holds none."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from prefchat_jax.text.dialogue import ROLE_NAMES, Example, Turn

USER_KEYS = ("user", "prompt", "input", "question", "instruction")
RESPONSE_KEYS = (
    "assistant",
    "response",
    "output",
    "answer",
    "completion",
    "target",
)
DIALOGUE_KEYS = ("messages", "conversation", "conversations", "chat")
PREFERENCE_KEYS = ("chosen", "rejected", "responses")

_DIALOGUE = frozenset(DIALOGUE_KEYS)
_PREFERENCE = frozenset(PREFERENCE_KEYS)
_LABELS = frozenset(("label", "intent"))
_GROUPS = frozenset(("group", "id", "parents"))
# Without these a row with a user and an assistant is a plain pair, as most are.
_OTHER = frozenset(
    (*DIALOGUE_KEYS, *PREFERENCE_KEYS, *_LABELS, *_GROUPS, "history", "annotator")
)
_NO_LABELS = {bool: "true or false", list: "a list", dict: "an object"}

Row = dict[str, Any]


class Unusable(ValueError):
    """Why a row holds nothing to learn from, in a few words."""


class Unreadable(Unusable):
    """Why a line is not a row at all."""


_decode = msgspec.json.Decoder().decode


def decode_row(line: bytes) -> Row:
    """Decodes one line.

    Raises:
      Unreadable: it is not one JSON object in UTF-8.
    """
    try:
        row = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"is not valid JSON ({_reason(line, error)})") from error
    if type(row) is not dict:
        array = " (an array: write one object a line)" if type(row) is list else ""
        raise Unreadable(f"is not a JSON object{array}")
    return row


def _reason(line: bytes, error: Exception) -> str:
    """What is wrong with a line, for who knows files better than decoders."""
    if b"\0" in line or line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16, as it seems: save the file as UTF-8"
    try:
        line.decode()
    except UnicodeDecodeError:
        return "not UTF-8: save the file as UTF-8"
    array = line in (b"[", b"[{") or line.startswith(b"[") and line.endswith(b",")
    return "an array: write one object a line" if array else str(error)


def is_preference(row: Row) -> bool:
    """Whether a row compares replies, so that it is no example of a reply."""
    return not _PREFERENCE.isdisjoint(row) and any(
        row.get(key) is not None for key in PREFERENCE_KEYS
    )


def examples_of(row: Row, where: str, source: str = "") -> list[Example]:
    """The examples of a row: a flat pair has one, a dialogue one a reply.

    Args:
      row: a decoded line.
      where: `file:line`.
      source: of a row that names none.

    Raises:
      Unusable: a side is missing or has another form.
    """
    if _OTHER.isdisjoint(row):
        user, response = text_of(row.get("user")), text_of(row.get("assistant"))
        if user and response:
            turn = Turn("user", user)
            named = text_of(row.get("source")) or source
            return [Example((turn,), response, where=where, source=named)]
    if is_preference(row):
        raise Unusable("compares replies: a preference row, not an example")
    if not _DIALOGUE.isdisjoint(row):
        for key in DIALOGUE_KEYS:
            if isinstance(row.get(key), list):
                return _dialogue_examples(row[key], row, where, source)
    user, response = _question(row), _first(row, RESPONSE_KEYS)
    label = intent = None
    if not _LABELS.isdisjoint(row):
        label, intent = _label(row), _intent(row)
    if not user:
        raise Unusable("no user text")
    if not response and label is None:
        raise Unusable("neither a reply nor a label")
    last = Turn("user", user)
    history = row.get("history")
    return [
        Example(
            (*turns_of(history), last) if history else (last,),
            response,
            label,
            intent,
            () if _GROUPS.isdisjoint(row) else _groups(row),
            where,
            text_of(row.get("source")) or source,
            text_of(row.get("annotator")),
        )
    ]


def turns_of(messages: Any) -> list[Turn]:
    """The turns of a list of `{"role", "content"}`; those without text are left out.

    Roles and keys may have the names of other tools: `human`, `gpt`, `from`, `value`.

    Raises:
      Unusable: it is no such list, or a role is unknown.
    """
    if not isinstance(messages, list):
        raise Unusable("turns are not a list")
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise Unusable(f"turn {number} is not an object with a role and a content")
        name = message.get("role", message.get("from"))
        role = ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise Unusable(f"turn {number} has the unknown role {str(name)[:20]!r}")
        content = message.get("content", message.get("text", message.get("value")))
        if text := text_of(content):
            turns.append(Turn(role, text))
    return turns


def text_of(value: Any) -> str:
    """Text of a string, a number, a list of texts, or `{"text"|"content": ...}`."""
    if type(value) is str:
        return value.strip()
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, dict):
        return text_of(value.get("text", value.get("content")))
    return ""


def _dialogue_examples(
    messages: list[Any], row: Row, where: str, source: str
) -> list[Example]:
    """One example for each assistant turn that follows a user turn.

    The label of a row belongs to its last reply.
    """
    turns = turns_of(messages)
    replies = [
        i
        for i in range(1, len(turns))
        if turns[i].role == "assistant" and turns[i - 1].role == "user"
    ]
    if not replies:
        raise Unusable("no reply after a user turn")
    # A dialogue splits as one, since its examples share turns.
    groups = _groups(row) or (_dialogue_name(turns),)
    source, annotator = (
        text_of(row.get("source")) or source,
        text_of(row.get("annotator")),
    )
    intent, label = _intent(row), _label(row)
    return [
        Example(
            tuple(turns[:i]),
            turns[i].content,
            label if i == replies[-1] else None,
            intent,
            groups,
            where,
            source,
            annotator,
        )
        for i in replies
    ]


def _dialogue_name(turns: Sequence[Turn]) -> str:
    """The same name for the same dialogue, wherever it stands."""
    text = "\x1f".join(turn.content for turn in turns)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _question(row: Row) -> str:
    """The user's text; of an `instruction` with an `input`, both."""
    if "instruction" in row and "input" in row:
        parts = text_of(row["instruction"]), text_of(row["input"])
        return "\n".join(filter(None, parts))
    return _first(row, USER_KEYS)


def _first(row: Row, keys: Sequence[str]) -> str:
    for key in keys:
        if key in row and (text := text_of(row[key])):
            return text
    return ""


def _label(row: Row) -> str | int | None:
    """The `label`, or else the `intent`: an integer or a string that is not empty.

    Raises:
      Unusable: it is a list, an object or a truth value: a label that would be lost.
    """
    for key in ("label", "intent"):
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, float) and value.is_integer():
            return int(value)  # As tables export integers beside gaps.
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        for kind, words in _NO_LABELS.items():
            if isinstance(value, kind):
                raise Unusable(f"the {key} is {words}: write text or a whole number")
    return None


def _intent(row: Row) -> str | None:
    value = row.get("intent")
    return value.strip() if isinstance(value, str) and value.strip() else None


def _groups(row: Row) -> tuple[str, ...]:
    """What a row stays together with: its `group`, its `id`, and its `parents`."""
    group, name, parents = row.get("group"), row.get("id"), row.get("parents")
    if isinstance(group, list):
        groups = list(map(str, group))
    else:
        groups = [] if group is None else [str(group)]
    if isinstance(name, str):
        groups.append(name)
    if isinstance(parents, list):
        groups.extend(map(str, parents))
    return tuple(groups)
