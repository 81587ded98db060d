"""Augment: variants of rows, for a corpus that is smaller than its target.

`mutate` words a question otherwise, `blend` joins two rows into one. What a reply
says stays as it was said: nothing is invented.
Every variant is tagged with the rows that it comes from. A row blends only with its
partner, so that the rows which must stay on one side of a split remain few.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.text.dialogue import Example, Turn

_TRIES = 4  # Variants that are drawn for each one that is wanted.
_SWAPS = 3  # Phrases of one text that are replaced at most.
_CALM = 0.6  # Of the creative share, for rows about code.


class Chances(NamedTuple):
    """Shares of variants in a creative frame, and of those made of two rows."""

    creative: float
    blend: float


class Variant(NamedTuple):
    """A new example, and whether it comes from its row's partner, too."""

    example: Example
    is_blend: bool


def variants(
    example: Example,
    partner: Example | None,
    count: int,
    chances: Chances,
    rng: np.random.Generator,
    *,
    is_code: bool,
) -> Iterator[Variant]:
    """Up to `count` distinct variants of an example.

    Args:
      example: the row.
      partner: the row that it may blend with, if there is one.
      count: how many are wanted.
      chances: shares of the kinds.
      rng: of the choices.
      is_code: a row about code gets fewer creative frames.
    """
    seen = {_said(example)}
    creative = chances.creative * (_CALM if is_code else 1)
    for _ in range(_TRIES * count):
        is_blend = partner is not None and rng.random() < chances.blend
        if is_blend:
            made = _blend(example, partner, rng)
        else:
            made = _mutate(example, creative, rng)
        if _said(made) not in seen:
            seen.add(_said(made))
            yield Variant(made, is_blend)
        if len(seen) > count:
            return


def partners(examples: Sequence[Example], is_code: Sequence[bool]) -> list[int | None]:
    """For each example the one that it may blend with: each has one, or none.

    Both say the same label, are both about code or both not, and have no history.
    """
    waiting: dict[tuple, int] = {}
    found: list[int | None] = [None] * len(examples)
    for number, (example, code) in enumerate(zip(examples, is_code, strict=True)):
        if len(example.context) > 1:
            continue
        kind = (str(example.label), bool(example.response), code)
        other = waiting.pop(kind, None)
        if other is None:
            waiting[kind] = number
        else:
            found[number], found[other] = other, number
    return found


def _mutate(example: Example, creative: float, rng: np.random.Generator) -> Example:
    question = _reword(example.question, _QUESTION_SWAPS, rng)
    if rng.random() < 0.45:
        question = f"{_pick(_OPENINGS, rng)} {_lower_first(question)}"
    if rng.random() < 0.4:
        question = f"{question.rstrip('.')}{_pick(_CLOSINGS, rng)}"
    if rng.random() < 0.3:
        question = question[:1].upper() + question[1:]
    if rng.random() < 0.3:
        question = question.lower()
    if rng.random() < creative:
        question = f"{_pick(_FRAMES, rng)} {_lower_first(question)}"
    return _said_anew(example, question, example.response)


def _blend(
    example: Example, partner: Example | None, rng: np.random.Generator
) -> Example:
    assert partner is not None
    first, second = example.question.rstrip(" ?."), _lower_first(partner.question)
    question = f"{first}{_pick(_JOINTS, rng)} {second}"
    response = example.response
    if partner.response != response:
        response = f"{response}{_pick(_REPLY_JOINTS, rng)}{partner.response}"
    return _said_anew(example, question, response)


def _said_anew(example: Example, question: str, response: str) -> Example:
    context = (*example.context[:-1], Turn("user", question))
    return example._replace(context=context, response=response)


def _reword(text: str, swaps: Sequence[tuple[re.Pattern, Sequence[str]]], rng) -> str:
    """Replaces a few phrases by others that mean the same."""
    for number in rng.permutation(len(swaps))[: 2 * _SWAPS]:
        pattern, others = swaps[number]
        if match := pattern.search(text):
            new = _like(match.group(), _pick(others, rng))
            text = f"{text[: match.start()]}{new}{text[match.end() :]}"
    return text


def _like(old: str, new: str) -> str:
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _lower_first(text: str) -> str:
    """Lower-cases the first letter of a word that is not a name or an "I"."""
    word = text.split(" ", 1)[0]
    is_plain = word[1:] == word[1:].lower() and word not in ("I", "I'm", "I've", "I'd")
    return text[:1].lower() + text[1:] if is_plain else text


def _said(example: Example) -> tuple[str, str]:
    return example.question.lower(), example.response.lower()


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _swaps(table: dict[str, Sequence[str]]) -> list[tuple[re.Pattern, Sequence[str]]]:
    return [
        (re.compile(rf"\b{re.escape(phrase)}\b", re.IGNORECASE), others)
        for phrase, others in table.items()
    ]


_QUESTION_SWAPS = _swaps(
    {
        "how do i": ("how can I", "how would I", "what do I do to"),
        "how can i": ("how do I", "is there a way to"),
        "what is": ("what's",),
        "where is": ("where's", "where do I find"),
        "i want to": ("I'd like to", "I would like to", "I need to"),
        "i need to": ("I have to", "I want to"),
        "can you": ("could you", "would you"),
        "can i": ("could I", "am I able to", "is it possible to"),
        "why is": ("how come", "what is the reason that"),
        "cannot": ("can't", "am not able to"),
        "does not": ("doesn't",),
        "is not": ("isn't",),
        "do not": ("don't",),
    }
)
_OPENINGS = (
    "Hi,",
    "Hello,",
    "Please,",
    "Quick question:",
    "One thing:",
    "Sorry,",
    "So,",
)
_CLOSINGS = (", please", ", thanks", ", if you can", ", thank you")
_FRAMES = (
    "As you would say it to a friend:",
    "In your own words:",
    "Imagine that I am new to this:",
    "Just curious:",
)
_JOINTS = (", and also", "; besides,", ". Also,", ", and then")
_REPLY_JOINTS = (" Also: ", " And: ", " Then: ")
