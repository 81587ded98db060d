"""Errors: every mistake of a run as a row, and the pairs that it confuses most."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prefchat_jax.chat.session import Reply
from prefchat_jax.evaluation.run import BucketJudgement, Judgement, ReplyJudgement
from prefchat_jax.files import write_aside
from prefchat_jax.text.dialogue import Example

OUTSIDE = "(out of scope)"
REFUSED = "(refused)"


class Confusion(NamedTuple):
    """What was mistaken for what, and how often.

    Attributes:
      kind: `bucket`, or `reply` where the run or the rows have no labels.
      expected: what was right; `OUTSIDE` of an out-of-scope row.
      given: what came instead; `REFUSED` if nothing did.
      count: rows.
    """

    kind: str
    expected: str
    given: str
    count: int


def mistakes(judged: Judgement) -> list[dict[str, Any]]:
    """The mistakes, in the order of the rows: one object for each wrong answer.

    Returns:
      Objects with `where` (`file:line`), `kind` (`bucket` or `reply`), `message`,
      `history`, `expected`, `given`, `confidence`; of a reply also `abstained`
      and the `rank` of the right response among the candidates that the chat
      shows, from 1, or None. `expected` is None for a row out of scope, and
      `given` for one that was refused.
    """
    found = []
    if judged.buckets:
        found += _bucket_mistakes(judged.buckets, judged.records.out_of_scope)
    if judged.replies:
        found += _reply_mistakes(judged.replies, judged.records.out_of_scope)
    rows = [*judged.records.examples, *judged.records.out_of_scope]
    order = {id(row): place for place, row in enumerate(rows)}
    found.sort(key=lambda pair: order[id(pair[0])])
    return [mistake for _, mistake in found]


def confusions(wrong: Sequence[dict[str, Any]], limit: int = 10) -> list[Confusion]:
    """The pairs that are confused most often, of buckets if there are any.

    Args:
      wrong: from `mistakes`.
      limit: how many pairs at most; ties in alphabetical order.
    """
    kinds = {mistake["kind"] for mistake in wrong}
    kind = "bucket" if "bucket" in kinds else "reply"
    pairs = Counter(
        (
            OUTSIDE if mistake["expected"] is None else str(mistake["expected"]),
            REFUSED if mistake["given"] is None else str(mistake["given"]),
        )
        for mistake in wrong
        if mistake["kind"] == kind
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(kind, *pair, count) for pair, count in ordered[:limit]]


def write_mistakes(path: str | os.PathLike, wrong: Sequence[dict[str, Any]]) -> None:
    """Writes one JSON object a line, all or nothing; an empty file if all is right."""
    with write_aside(path) as aside:
        aside.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in wrong))


Found = tuple[Example, dict[str, Any]]


def _bucket_mistakes(
    judged: BucketJudgement, outside: Sequence[Example]
) -> list[Found]:
    confidence = judged.confidence(judged.temperature)
    given = judged.logits.argmax(axis=1)
    found = [
        (
            judged.examples[i],
            _row(judged.examples[i], "bucket")
            | {
                "expected": judged.names[judged.numbers[i]],
                "given": judged.names[given[i]],
                "confidence": float(confidence[i]),
            },
        )
        for i in np.flatnonzero(~judged.is_right)
    ]
    if judged.threshold is None:
        return found  # No threshold, no claim to know what is out of scope.
    asked = zip(outside, judged.outside, judged.outside_confidence, strict=True)
    return found + [
        (
            example,
            _row(example, "bucket")
            | {
                "expected": None,
                "given": judged.names[int(logits.argmax())],
                "confidence": float(confidence),
            },
        )
        for example, logits, confidence in asked
        if confidence >= judged.threshold
    ]


def _reply_mistakes(judged: ReplyJudgement, outside: Sequence[Example]) -> list[Found]:
    right = judged.ranks_first & ~judged.abstained
    asked = zip(judged.examples, judged.replies, right, strict=True)
    wrong: list[tuple[Example, Reply, str | None]] = [
        (example, reply, example.response)
        for example, reply, is_right in asked
        if not is_right
    ]
    wrong += [
        (example, reply, None)
        for example, reply in zip(outside, judged.outside, strict=True)
        if not reply.abstained
    ]
    found = []
    for example, reply, expected in wrong:
        responses = [candidate.response for candidate in reply.candidates]
        row = _row(example, "reply") | {
            "expected": expected,
            "given": None if reply.abstained else responses[0],
            "confidence": reply.confidence,
            "abstained": reply.abstained,
            "rank": responses.index(expected) + 1 if expected in responses else None,
        }
        found.append((example, row))
    return found


def _row(example: Example, kind: str) -> dict[str, Any]:
    return {
        "where": example.where,
        "kind": kind,
        "message": example.question,
        "history": [turn._asdict() for turn in example.context[:-1]],
    }
