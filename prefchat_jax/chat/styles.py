"""Styles: what a reply should look like, and how a stored text is shown."""

import functools
import hashlib
import re

from prefchat_jax.text.sentences import split_sentences

STYLES = ("balanced", "creative", "concise", "analyst")

# What a message says about the style it wants; the first that matches decides.
_CUES = (
    (
        "concise",
        r"\b(brief(ly)?|short(ly)?|concise(ly)?|tl;?dr|one line|in a word|quick answer"
        r"|in short|summar\w+)\b",
    ),
    (
        "creative",
        r"\b(creative(ly)?|imagin\w+|story|brainstorm\w*|metaphors?|analog\w+|poem"
        r"|inspir\w+|playful\w*)\b",
    ),
    (
        "analyst",
        r"\b(step[- ]by[- ]step|steps|analy[sz]e|explain|compare|why|trade-?offs?"
        r"|in detail|debug|reason\w*|pros and cons)\b",
    ),
)
_STEPS = re.compile(
    r"\b(first|second|third|then|next|finally|because|therefore|since|so that|instead"
    r"|step)\b|(^|\s)\d[.)]",
    re.IGNORECASE,
)
_COLOUR = re.compile(
    r"\b(imagine|like|picture|think of|story|as if|perhaps|try|for example|such as"
    r"|wonder\w*|play\w*|explore\w*)\b|[!?:;]",
    re.IGNORECASE,
)
_BREVITY = re.compile(
    r"^\s*(briefly|in short|tl;?dr|in a word|in one line)\b[\s,:;-]*"
    r"|[\s,;-]*\b(briefly|in short|tl;?dr|in a word|in one line)\b[\s.!?]*$",
    re.IGNORECASE,
)
_MARKS = {"analyst": _STEPS, "creative": _COLOUR}
_CONCISE_WORDS = 28
_FRAMES = (
    "Here is a thought:",
    "One way to see it:",
    "Try this angle:",
    "Picture it like this:",
)


def infer_style(message: str) -> str:
    """The style that a message asks for, or `balanced`."""
    lowered = message.lower()
    matches = (style for style, cues in _CUES if re.search(cues, lowered))
    return next(matches, "balanced")


def strip_cues(message: str) -> str:
    """The message without a leading or trailing wish for brevity.

    Inside a sentence such a word may be what the message is about.
    """
    rest = _BREVITY.sub("", message).strip()
    return rest if re.search(r"\w", rest) else message


@functools.lru_cache(maxsize=200_000)  # Stored texts, read again for every message.
def style_signal(text: str, style: str) -> float:
    """How much a text suits a style, in [0, 1]."""
    if style == "concise":
        return 1 / (1 + len(text.split()) / 20)
    if style in _MARKS:
        return min(len(_MARKS[style].findall(text)) / 4, 1.0)
    return 0.0


def stylise(text: str, style: str, *, creativity: float, message: str) -> str:
    """Shows a stored text in a style: shortened, numbered or framed, not rewritten.

    A text of several lines was laid out by hand, and keeps its layout.

    `concise` keeps whole sentences from the front, `analyst` numbers sentences,
    and `creative` puts a short phrase in front from creativity 0.3 on (which one
    depends on the message alone).
    """
    laid_out = "\n" in text
    if style == "concise" and not laid_out:
        return _shorten(text)
    if style == "analyst" and not laid_out:
        return _number(text)
    if style == "creative" and creativity >= 0.3:
        digest = hashlib.blake2b(message.encode("utf-8", "replace"), digest_size=1)
        return f"{_FRAMES[digest.digest()[0] % len(_FRAMES)]} {text}"
    return text


def _shorten(text: str) -> str:
    kept, words = [], 0
    for sentence in split_sentences(text):
        words += len(sentence.split())
        if kept and words > _CONCISE_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)


def _number(text: str) -> str:
    sentences = split_sentences(text)
    if len(sentences) < 2 or re.match(r"\s*1[.)]", text):
        return text
    return " ".join(f"{i}) {sentence}" for i, sentence in enumerate(sentences, 1))


import dataclasses
import numpy as np
@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleWeights:
    style: float = 0.0
    novelty: float = 0.3
    repeat: float = 0.25
    diversity: float = 0.3
@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    name: str
    weights: StyleWeights = StyleWeights()
    def signal(self, t): return style_signal(t, self.name)
    def show(self, text, c, m): return stylise(text, self.name, creativity=c, message=m)
BUILT_IN = tuple(Style(name=n) for n in STYLES)
def signals(texts, style): return np.array([style_signal(t, style) for t in texts], np.float32)
def get_style(name): return {s.name: s for s in BUILT_IN}[name]
