"""Follow-ups: whether a message needs what was said before it.

A classifier that never saw a conversation takes earlier turns for a part of the
question, and every "thanks" then finds the last answer once more. A run whose rows
had none therefore answers a message on its own, unless the message leans on what
came before. The rules are of English. Text in, values out; no state.
`python -m experiments.follow_ups` measures them.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Share of the training rows with earlier turns from which on a run has learnt
# what to make of them. With a seventh it has not: whatever came after a good turn,
# nonsense too, was answered as that was.
_LEARNT = 0.2
_SHORT = 6  # Words of a message that may refer to what came before,
_OPENED = 8  # or that may open as if it went on.
_TOPICS = 2  # Words of its own that such a message may have.

_OPENS = re.compile(
    r"(?:and|but|or|also|plus|then|so|what about|how about|what if|what else"
    r"|anything else|same for|the same for)\b"
)
_REFERS = _listed(
    "it its that this them they those these one ones he she him her then again "
    "other others another second third last former latter same both either neither "
    "else instead also"
)
_ASKS = _listed(
    "how why when where which what who whose one ones first second third last former "
    "latter other others another both either neither"
)
# "It" that stands for nothing: "is it possible to ...", "how long does it take to".
_EMPTY_IT = re.compile(
    r"\b(?:is|was|isn't|would|will) it (?:be )?(?:possible|okay|ok|safe|free to|normal"
    r"|true)\b|\bit(?:'s| is) (?:possible|impossible)\b|\bit (?:take|takes|cost|costs"
    r"|mean|means|work|works)\b.* (?:to|for|if|when|that)\b"
)
# Demonstratives before a word of their own name it: "this card", "that payment".
_NAMES_IT = re.compile(r"\b(?:this|that|these|those) (?!one\b|ones\b)(\w+)")
_EMPTY = _listed(
    "a about after ago all already also am an and another any anything are aren't as "
    "at be because been before being both but by can can't cannot come could couldn't "
    "did didn't do does doesn't doing don't done each either else ever every for from "
    "get gets getting give given go goes going gone got had happen happened happening "
    "happens has hasn't have haven't having he her here hers him his how how's i i'd "
    "i'll i'm i've if in instead into is isn't it it's its just keep last let like "
    "long longer make many may maybe me mean means might mine more most much must my "
    "need neither never next no nor not now of off often on once one ones only or "
    "other others our out over please possible really same say says second see shall "
    "she should so some something soon still such sure take taken takes tell than that "
    "that's the their them then there there's these they they're thing things third "
    "this those to too try up us usually want was wasn't way we well were what what's "
    "when where where's which while who whom whose why will with won't would wouldn't "
    "yet you you're your yours first former latter"
)
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")


def content_words(text: str) -> list[str]:
    """The distinct words of a text that say what it is about, in lower case."""
    return [word for word in dict.fromkeys(_words(text)) if word not in _EMPTY]


def leans(message: str) -> bool:
    """Whether a message can only be understood with what was said before it.

    That is a short message that opens as if it went on ("and ...?", "what about
    ...?"), that refers to something it does not name ("can I get it back?", "the
    second one"), or that has no word of its own ("how long?").
    """
    words = _words(message)
    if not words or len(words) > _OPENED:
        return False
    own, text = content_words(message), " ".join(words)
    if _OPENS.match(text):
        return len(own) <= _TOPICS
    if not own:  # "how long", and not "got it".
        return "?" in message or not _ASKS.isdisjoint(words)
    if len(words) > _SHORT or len(own) > _TOPICS:
        return False
    text = _NAMES_IT.sub(r"\1", _EMPTY_IT.sub("", text))
    return not _REFERS.isdisjoint(text.split())


def learnt_history(share: float | None) -> bool:
    """Whether a run learnt from rows with earlier turns.

    Args:
      share: of the training rows with more than one turn; None for a run that
        did not note it, which counts as one that had them.
    """
    return share is None or share >= _LEARNT


def counted(message: str, history: Sequence[T], *, learnt: bool) -> Sequence[T]:
    """The earlier turns that count beside a message: all of them, or none.

    Args:
      message: what the user says.
      history: turns, oldest first.
      learnt: what `learnt_history` says of the run.
    """
    return history if learnt or leans(message) else history[:0]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))
