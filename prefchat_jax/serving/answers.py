"""Answers: a reply as OpenAI's completion, whole or as a stream of chunks."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from prefchat_jax.chat.reply import Reply, as_dict
from prefchat_jax.serving.wire import encode
from prefchat_jax.text.dialogue import Turn

Json = dict[str, Any]


def completion(reply: Reply, turns: Sequence[Turn], model: str) -> Json:
    """The body of a whole answer."""
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    return {
        **_head("chat.completion", model),
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": usage(turns, reply),
        "prefchat": explained(reply),
    }


def stream(
    reply: Reply, turns: Sequence[Turn], model: str, *, include_usage: bool
) -> Iterator[bytes]:
    """Server-sent events: role, text, reasons, on request usage, and the end.

    A stored reply is there at once, so that its text is one chunk.
    """
    head = _head("chat.completion.chunk", model)
    if include_usage:
        head["usage"] = None
    steps: list[tuple[Json, str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": reply.text}, None),
        ({}, "stop"),
    ]
    for delta, finish in steps:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        extra = {"prefchat": explained(reply)} if finish else {}
        yield _event({**head, "choices": [choice], **extra})
    if include_usage:
        yield _event({**head, "choices": [], "usage": usage(turns, reply)})
    yield b"data: [DONE]\n\n"


def usage(turns: Sequence[Turn], reply: Reply) -> Json:
    """What was read and written, in words between white space: there are no tokens."""
    read = sum(len(turn.content.split()) for turn in turns)
    written = len(reply.text.split())
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def explained(reply: Reply) -> Json:
    """The reasons of a reply, which stand beside OpenAI's fields."""
    return {name: value for name, value in as_dict(reply).items() if name != "text"}


def listed(model: str, created: int) -> Json:
    """A model as `/v1/models` lists it."""
    return {"id": model, "object": "model", "created": created, "owned_by": "prefchat"}


def _head(kind: str, model: str) -> Json:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _event(value: Json) -> bytes:
    return b"data: " + encode(value) + b"\n\n"
