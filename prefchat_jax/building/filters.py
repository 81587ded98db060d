"""Filters: why an exchange is not worth keeping.

Each is a pure function of an exchange and the limits that returns a few words, or
None to keep it. `FILTERS` is the table of all of them, in the order in which they
are asked; the first that objects names the reason in the report.
"""

import dataclasses
import re
from collections.abc import Callable, Container
from typing import NamedTuple

from prefchat_jax.text.dialogue import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds of the filters; lengths in characters."""

    min_user_chars: int = 4
    max_user_chars: int = 8000
    min_assistant_chars: int = 12
    max_assistant_chars: int = 16000
    min_assistant_words: int = 3
    max_repeat_ratio: float = 0.78
    max_char_run: int = 7


class Exchange(NamedTuple):
    """A question and its reply, normalised; `said` is the reply in lower case."""

    asked: str
    reply: str
    said: str


WINDOW = 128  # Words over which repetition is measured.

Filter = Callable[[Exchange, Limits], str | None]


def exchange_of(example: Example) -> Exchange:
    """The last message of a context and its reply."""
    return Exchange(example.question, example.response, example.response.lower())


def objection(
    exchange: Exchange, limits: Limits, *, without: Container[str] = ()
) -> tuple[str, str] | None:
    """The name of the first filter that objects and its words, or None.

    A row without a reply, which only carries a label, is asked about its question.

    Args:
      exchange: normalised texts.
      limits: the thresholds.
      without: names of filters that are off.
    """
    for name, check in FILTERS.items() if exchange.reply else _QUESTION_ONLY:
        if name not in without and (words := check(exchange, limits)):
            return name, words
    return None


def refuses(reply: str) -> bool:
    """Whether a reply begins with a refusal."""
    return _REFUSAL.match(reply) is not None


def damage(text: str) -> str | None:
    """What is broken in a text: its encoding, or control characters in it."""
    if text.isascii():
        return None if text.isprintable() else _control(text)
    if "\ufffd" in text:
        return "a replacement character where a letter was lost"
    if match := _MOJIBAKE.search(text):
        return f"UTF-8 read as Latin-1: {match.group()!r}"
    return _control(text)


def _question_length(exchange: Exchange, limits: Limits) -> str | None:
    length = len(exchange.asked)
    if limits.min_user_chars <= length <= limits.max_user_chars:
        return None
    return f"a question of {length} characters"


def _reply_length(exchange: Exchange, limits: Limits) -> str | None:
    length = len(exchange.reply)
    if limits.min_assistant_chars <= length <= limits.max_assistant_chars:
        return None
    return f"a reply of {length} characters"


def _near_empty(exchange: Exchange, limits: Limits) -> str | None:
    least = limits.min_assistant_words
    if len(exchange.reply.split(None, least - 1)) >= least > 0:
        return None if exchange.reply.isascii() else _few_words(exchange.reply, least)
    return _few_words(exchange.reply, least)


def _few_words(text: str, least: int) -> str | None:
    words = len(_WORD.findall(text))
    return f"a reply of {words} words" if words < least else None


def _repetition(exchange: Exchange, limits: Limits) -> str | None:
    """One minus distinct words over all words, the mean over windows of the reply.

    Every long text repeats its common words, so a window has 128 words at most.
    """
    words = exchange.said.split()
    windows = [words[i : i + WINDOW] for i in range(0, len(words), WINDOW)]
    ratios = [1 - len(set(window)) / len(window) for window in windows]
    ratio = sum(ratios) / max(len(ratios), 1)
    return (
        f"repeats {ratio:.0%} of its words" if ratio > limits.max_repeat_ratio else None
    )


def _repeated_characters(exchange: Exchange, limits: Limits) -> str | None:
    text = exchange.reply
    if text.isascii() and not _has_run(text, limits.max_char_run + 1):
        return None
    for match in _RUN.finditer(text):
        if len(match.group()) > limits.max_char_run:
            return f"{match.group()[0]!r} {len(match.group())} times in a row"
    return None


def _has_run(text: str, length: int) -> bool:
    """Whether an ASCII text may hold a character `length` times in a row.

    Neighbouring bytes that are equal become zero bytes of one large integer: ten
    times as fast as a back-reference.
    """
    if length > len(text):
        return False
    number = int.from_bytes(text.encode(), "little")
    equal = number ^ (number >> 8)
    return b"\0" * (length - 1) in equal.to_bytes(len(text) + 1, "little")


def _refusal(exchange: Exchange, _: Limits) -> str | None:
    match = _REFUSAL.match(exchange.reply)
    return f"refuses: {match.group().strip()!r}" if match else None


def _boilerplate(exchange: Exchange, _: Limits) -> str | None:
    said = exchange.said
    for phrase in BOILERPLATE:
        if phrase in said:
            return f"boilerplate: {phrase!r}"
    return None


def _disclaimer(exchange: Exchange, _: Limits) -> str | None:
    said = exchange.said
    for phrase in DISCLAIMERS:
        if phrase in said:
            return f"speaks as a language model: {phrase!r}"
    return None


def _markup(exchange: Exchange, _: Limits) -> str | None:
    for text in (exchange.asked, exchange.reply):
        if "`" in text or not ("<" in text or "&" in text or "[" in text):
            continue
        if match := _MARKUP.search(text):
            return f"markup: {match.group()[:20]!r}"
    return None


def _encoding(exchange: Exchange, _: Limits) -> str | None:
    return damage(exchange.asked) or damage(exchange.reply)


def _echo(exchange: Exchange, _: Limits) -> str | None:
    asked, said = exchange.asked, exchange.said
    if abs(len(asked) - len(said)) > 3:
        return None
    return "answers with the question" if _bare(asked) == _bare(said) else None


def _bare(text: str) -> str:
    return text.lower().strip(" .!?")


def _control(text: str) -> str | None:
    match = _CONTROL.search(text)
    return f"control character U+{ord(match.group()):04X}" if match else None


# Each letter of a script without spaces is a word.
_WORD = re.compile(r"[\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff]|[^\W_][\w']*")
# Lines drawn with a sign are no noise.
_RUN = re.compile(r"([^\s=_*#~+.-])\1+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# First bytes of UTF-8 sequences and what Latin-1 or Windows-1252 make of the next.
_MOJIBAKE = re.compile(
    r"[\u00c3\u00c2][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192"
    r"\u02c6\u02dc\u2013-\u203a\u20ac\u2122]|\u00e2\u20ac|\u00ef\u00bb\u00bf"
)
_MARKUP = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|ul|ol|li|h[1-6]|table|tr|td|th|img|font"
    r"|script|style|html|body|blockquote|pre|code)(?:\s[^<>]{0,200})?/?>"
    r"|&(?:[a-z]{2,8}|#\d{2,5}|#x[0-9a-f]{2,4});"
    r"|\[/?(?:b|i|u|url|img|quote|code|color|size)(?:=[^\]]{0,100})?\]",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:(?:i'?m |i am |i )?(?:so |very |really )?(?:sorry|afraid|apologi[sz]e)[\s,.]*"
    r"(?:but |that )?)?(?:i |we |i'?m |i am )?(?:really |honestly |actually )?"
    r"(?:(?:do not|don['\u2019]?t) know|have no idea|not sure|no comment"
    r"|(?:can['\u2019]?t|cannot|can not|(?:am )?(?:unable|not able) to|won['\u2019]?t)"
    r" (?:help|assist|answer|comply|do that|provide))"
    # What follows tells a refusal from "I don't know how I lived without it".
    r"(?:$|\s*[.,;!?]|\s+(?:with |about |on |to )?(?:that|this|it|the answer|you|your"
    r"|any(?:thing|\s)|much|yet|sorry|what you mean|how to (?:help|answer)"
    r"|if i can|i (?:can|understand)|such|illegal|medical|legal)\b)",
    re.IGNORECASE,
)
BOILERPLATE = (
    "lorem ipsum",
    "all rights reserved",
    "click here to subscribe",
    "enable javascript",
    "[deleted]",
    "[removed]",
)
DISCLAIMERS = (
    "as an ai ",
    "as an ai,",
    "as a language model",
    "as a large language model",
    "i am an ai ",
    "i'm an ai ",
    "i am a language model",
    "i'm a language model",
    "my training data",
    "my knowledge cutoff",
)

FILTERS: dict[str, Filter] = {
    "question_length": _question_length,
    "encoding": _encoding,
    "reply_length": _reply_length,
    "near_empty": _near_empty,
    "echo": _echo,
    "refusal": _refusal,
    "disclaimer": _disclaimer,
    "boilerplate": _boilerplate,
    "markup": _markup,
    "repeated_characters": _repeated_characters,
    "repetition": _repetition,
}
_QUESTION_ONLY = tuple(FILTERS.items())[:2]
