"""The wire: what clients send, what they get, and how errors look.

Requests and answers have the form of OpenAI's chat completions. Fields that are
not named here are ignored, except in our own `prefchat`; those that are must have
their type.
"""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from prefchat_jax.chat.styles import style_names
from prefchat_jax.text.dialogue import ROLE_NAMES, Turn

T = TypeVar("T")
# What msgspec says, and where; a key that it quotes may hold anything.
_INVALID = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)


class ApiError(Exception):
    """What a request gets instead of an answer: a status and OpenAI's error body.

    Attributes:
      status: of HTTP.
      headers: beside those that every answer has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self._body = {
            "message": message,
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": param,
            "code": code,
        }

    def body(self) -> bytes:
        """The JSON of the error."""
        return msgspec.json.encode({"error": self._body})


# --- requests


class Part(Struct):
    """A part of a message; only text can be read."""

    type: str
    text: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    """What a stream carries beside the reply."""

    include_usage: bool | None = None


class Manner(Struct, forbid_unknown_fields=True):
    """The request's own extension: how to answer. Nobody else's fields are in it."""

    style: str | None = None
    creativity: Annotated[float, Meta(ge=0, le=1)] | None = None


class ChatRequest(Struct):
    """A request for a reply."""

    messages: list[Message]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: int | None = None
    n: int | None = None
    user: str | None = None
    prefchat: Manner | None = None


class FeedbackRequest(Struct, forbid_unknown_fields=True):
    """Which of two replies to a conversation is better, and whose judgement it is."""

    messages: list[Message]
    chosen: str
    rejected: str
    user: str | None = None


def decode(body: bytes, kind: type[T]) -> T:
    """Decodes a request.

    Raises:
      ApiError: 400; it is not JSON in UTF-8, or a field has the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            400, f"The body is not valid JSON: {error}.", code="invalid_json"
        ) from None


def turns_of(messages: list[Message]) -> list[Turn]:
    """The turns of a conversation, oldest first; the last one is the user's.

    Messages without text, such as those that only call tools, are left out.

    Raises:
      ApiError: 400; a role or a part is unknown, or the user is not last.
    """
    turns = []
    for number, message in enumerate(messages):
        role = ROLE_NAMES.get(message.role.lower())
        if role is None:
            raise ApiError(
                400,
                f"messages[{number}].role: {message.role[:40]!r} is unknown: use "
                "system, developer, user, assistant or tool.",
                param=f"messages[{number}].role",
                code="invalid_value",
            )
        if message.content is not None:
            turns.append(Turn(role, _text(message.content, number)))
    if not turns or turns[-1].role != "user":
        raise ApiError(
            400,
            "messages: the last one with a content must be the user's.",
            param="messages",
            code="invalid_value",
        )
    return turns


def check_style(name: str) -> str:
    """The name of a style, if there is one of that name; else `ApiError` 400."""
    known = ("auto", *style_names())
    if name not in known:
        raise ApiError(
            400,
            f"prefchat.style: {name[:40]!r} is unknown: use {', '.join(known)}.",
            param="prefchat.style",
            code="invalid_value",
        )
    return name


def _invalid(error: str) -> ApiError:
    """What msgspec says of a field, with its place in front."""
    found = _INVALID.fullmatch(error)
    assert found is not None  # It matches everything.
    message, place = found[1], (found[2] or "").lstrip(".")
    if unknown := re.search("unknown field `(.*)`", message, re.DOTALL):
        name, known = unknown[1][:40], ", ".join(Manner.__struct_fields__)
        return ApiError(
            400,
            f"{place}: {name!r} is unknown: use {known}.",
            param=f"{place}.{name}",
            code="unknown_parameter",
        )
    missing = re.search("missing required field `(.*)`", message)
    param = ".".join(filter(None, [place, missing[1] if missing else ""])) or None
    return ApiError(
        400,
        f"{param or 'The body'}: {message}.",
        param=param,
        code="missing_required_parameter" if missing else "invalid_type",
    )


def _text(content: str | list[Part], number: int) -> str:
    if isinstance(content, str):
        return content
    for place, part in enumerate(content):
        if part.type != "text" or part.text is None:
            where = f"messages[{number}].content[{place}]"
            raise ApiError(
                400,
                f"{where}: only parts of type text, with a text, can be read.",
                param=where,
                code="invalid_value",
            )
    return " ".join(part.text or "" for part in content)


def encode(value: Any) -> bytes:
    """JSON in UTF-8; NaN and infinities become null."""
    return msgspec.json.encode(value)
