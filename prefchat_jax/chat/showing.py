"""How a stored text is shown: shortened, set out as steps, or framed.

Each function is pure and takes `(text, creativity, message)`. None changes a word
of the text.
"""

import hashlib
import itertools
import re

from prefchat_jax.text.sentences import Span, code_spans, sentence_spans


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


FRAME_FROM = 0.3  # Creativity from which `framed` puts a phrase in front.
_CONCISE_WORDS = 28
_FRAMES = (
    "Here is a thought:",
    "Here is one way to put it:",
    "Let me put it this way:",
    "One way to say it:",
)
_ITEM = re.compile(r"(?:[-*+•–]|\(?\d{1,2}[.)]|\(?[a-z]\)|#{1,6}|\||>)\s")
_MARKER = re.compile(r"(\d{1,2})[.)]\s")
_INLINE = re.compile(r"(?<!\S)(\d{1,2})[.)][ \t](?=\S)")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_ANNOUNCES = re.compile(
    r"[:：?？][\"')\]*_」”’]*$|\b(?:the following|as follows|below|like this)\W*$",
    re.IGNORECASE,
)
# A sentence that goes on with what the one before it began.
_GOES_ON = re.compile(
    r"(?:and\s+)?(?:then|next|after that|afterwards|finally|lastly|second(?:ly)?"
    r"|third(?:ly)?|fourth(?:ly)?|step \w+)\b",
    re.IGNORECASE,
)
_RANKS = {
    name: rank
    for rank, names in enumerate(
        (
            "first firstly",
            "second secondly",
            "third thirdly",
            "fourth fourthly",
            "fifth",
        ),
        start=1,
    )
    for name in names.split()
} | {"finally": 100, "lastly": 100, "last": 100}
_STEP = re.compile(r"step\s+(\d{1,2}|one|two|three|four|five)\b", re.IGNORECASE)
_COUNTED = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_OPENING = re.compile(
    r"(?:and\s+|please\s+|now\s+)?(\w+)(,|:)?(?:\s+(\w+))?", re.IGNORECASE
)
# What people are told to do, as the first word of a step.
_VERBS = _words(
    "add adjust allow apply attach boil bring browse build change charge check choose "
    "clean clear click close collect combine compare complete configure confirm "
    "connect copy cover create cut delete disable disconnect download drag drain "
    "drop enable enter exit fill find finish follow go hold insert install launch "
    "leave lift load locate lock log look make measure mix move navigate open paste "
    "pick place plug pour press pull push put reboot receive record reinstall release "
    "reload remove repeat replace reset restart return review rinse run save scan "
    "scroll search select send set show shut sign slide sort start stir stop submit "
    "switch tap tick toggle touch track transfer try turn type unlock unplug untick "
    "update upload use verify wait wash wipe write"
)
_SUBJECTS = _words("you we i it they he she the your make be if in on to from with")
# "Transfer fees are ...", "Check deposits take ...": no verb in front.
_STATES = re.compile(
    r"\w+\s+(?!(?:that|if|whether|what|which|how|when|where|your|the|this|it)\b)"
    r"(?:(?!(?:that|to|if|which|you|until)\b)\w+\s+){0,3}"
    r"(?:is|are|was|were|can|will|may|must|costs?|appl(?:y|ies)|takes?|ha(?:s|ve))\b",
    re.IGNORECASE,
)
_NOT_TO_FRAME = re.compile(
    r"(?:(?:i am|i'm|we are|we're)\s+(?:\w+\s+)?(?:sorry|afraid)|sorry|unfortunately"
    r"|apologies|hello|hi|hey|thanks?|you're welcome|you are welcome|welcome|good "
    r"(?:morning|afternoon|evening|night|bye)|goodbye|bye|yes|no|ok|okay|sure)\b",
    re.IGNORECASE,
)


def plain(text: str, creativity: float, message: str) -> str:
    """The text as it is stored."""
    return text


def shortened(text: str, creativity: float, message: str) -> str:
    """The sentences from the front that fit in about 28 words; at least the first.

    What is kept is never torn from what it needs: an announcement ("...:"), a
    question, an item of a list, a step and a block of code stay with what follows
    or belongs to them.
    """
    spans = sentence_spans(text)
    end, words = 0, 0.0
    for i, (a, b) in enumerate(spans):
        words += _length(text[a:b])
        if end and words > _CONCISE_WORDS:
            break
        if i + 1 == len(spans) or not _needs(text, spans[i], spans[i + 1]):
            end = b
    return text[spans[0][0] : end] if 0 < end < spans[-1][1] else text


def stepwise(text: str, creativity: float, message: str) -> str:
    """A text of steps as numbered lines; any other text as it is.

    Steps are sentences that say so ("first", "then", "step 2", "3."), or that all
    tell what to do ("Open ...", "Press ..."). They keep their order, unless
    ordinals in the text name another. A text of several lines, or with a block of
    code, keeps its layout.
    """
    if "\n" in text or "```" in text:
        return text
    if (items := _inline_items(text)) is not None:
        return "\n".join(items)
    sentences = [text[a:b] for a, b in sentence_spans(text)]
    found = _steps(sentences)
    if found is None:
        return text
    before, steps, after = found
    if (ordered := _ordered([*steps[:-1], [*steps[-1], *after]])) is not None:
        steps, after = ordered, []
    lines = [f"{i}. {' '.join(step)}" for i, step in enumerate(steps, 1)]
    return "\n".join([*before, *lines, *after])


def framed(text: str, creativity: float, message: str) -> str:
    """A short phrase in front, from creativity 0.3 on; the message alone picks it.

    Code, lists, questions, greetings, apologies and texts of one or two words get
    none, nor does text that is not in Latin letters.
    """
    if creativity < FRAME_FROM or not _suits_a_frame(text):
        return text
    digest = hashlib.blake2b(message.encode("utf-8", "replace"), digest_size=1)
    return f"{_FRAMES[digest.digest()[0] % len(_FRAMES)]} {text.lstrip()}"


def _suits_a_frame(text: str) -> bool:
    start = text.lstrip()
    if start[:1] in ("`", "") or _ITEM.match(start) or _NOT_TO_FRAME.match(start):
        return False
    sentences = [text[a:b] for a, b in sentence_spans(text)]
    if any(s.rstrip("\"')]*_」”’").endswith(("?", "？")) for s in sentences):
        return False
    return len(re.findall(r"[A-Za-z]\w*", sentences[0])) >= 3


def _length(sentence: str) -> float:
    """Words, two letters of a script without spaces being one."""
    if sentence.isascii():
        return len(sentence.split())
    wide = len(_WIDE.findall(sentence))
    others = _WIDE.sub(" ", sentence).split()
    return sum(any(map(str.isalnum, word)) for word in others) + wide / 2


def _needs(text: str, this: Span, following: Span) -> bool:
    """Whether a sentence cannot be shown without the one that follows it."""
    sentence, after = text[this[0] : this[1]], text[following[0] : following[1]]
    if _ANNOUNCES.search(sentence[-40:]) or after.startswith("```"):
        return True
    return bool(_ITEM.match(sentence) and _ITEM.match(after) or _GOES_ON.match(after))


def _inline_items(text: str) -> list[str] | None:
    """The items "1. ... 2. ... 3. ..." of a line in the order of their numbers."""
    marks = list(_INLINE.finditer(_without_code(text)))
    numbers = [int(match[1]) for match in marks]
    if len(marks) < 2 or sorted(numbers) != list(range(1, len(marks) + 1)):
        return None
    opening = {a for a, _ in sentence_spans(text)}
    if numbers != sorted(numbers) and not all(m.start() in opening for m in marks):
        return None
    edges = [match.start() for match in marks] + [len(text)]
    items = [text[a:b].strip() for a, b in zip(edges, edges[1:], strict=False)]
    items = [item for _, item in sorted(zip(numbers, items, strict=True))]
    head = text[: edges[0]].strip()
    return [head, *items] if head else items


def _without_code(text: str) -> str:
    """The text with a backtick for each character of its code."""
    edges = [0, *(edge for span in code_spans(text) for edge in span), len(text)]
    pairs = itertools.pairwise(edges)
    return "".join(
        "`" * (b - a) if i % 2 else text[a:b] for i, (a, b) in enumerate(pairs)
    )


def _rank(sentence: str) -> int | None:
    """The place that a sentence names for itself; 0 for "then"; None if none."""
    if match := _STEP.match(sentence):
        return _COUNTED.get(match[1].lower()) or int(match[1])
    match = _OPENING.match(sentence)
    if match is None:
        return None
    word, mark, following = match[1].lower(), match[2], (match[3] or "").lower()
    if not (mark or following in _VERBS or following in _SUBJECTS):
        return None  # "First class", "last year", "next door".
    if word in ("then", "next", "afterwards") or sentence.lower().startswith(
        "after that"
    ):
        return 0
    return _RANKS.get(word)


def _steps(sentences: list[str]) -> tuple[list[str], list[list[str]], list[str]] | None:
    """What stands before the steps, the steps, and what stands after them."""
    ranks = [_rank(sentence) for sentence in sentences]
    told = [
        rank is not None or _tells(s) for rank, s in zip(ranks, sentences, strict=True)
    ]
    places = [i for i, is_step in enumerate(told) if is_step]
    if len(places) < 2:
        return None
    first, last = places[0], places[-1]
    if ranks[first] == 0:
        return None  # "Then ...": what it follows is not here.
    explicit = [rank for rank in ranks if rank]
    if len(set(explicit)) < len(explicit):
        return None  # Two lists, or none.
    marked = sum(rank is not None for rank in ranks)
    named = any(rank == 1 for rank in ranks) or marked >= 2
    dense = 3 * len(places) >= 2 * len(sentences) and all(told[first : last + 1])
    if not (dense or (named and 2 * len(places) >= len(sentences))):
        return None
    steps: list[list[str]] = []
    for i in range(first, last + 1):
        if told[i]:
            steps.append([sentences[i]])
        else:
            steps[-1].append(sentences[i])
    return sentences[:first], steps, sentences[last + 1 :]


def _tells(sentence: str) -> bool:
    """Whether a sentence opens with something to do."""
    match = _OPENING.match(sentence)
    if match is None or sentence.endswith("?"):
        return False
    if match[1].lower() not in _VERBS or match[2]:
        return False
    return not _STATES.match(sentence, match.start(1))


def _ordered(steps: list[list[str]]) -> list[list[str]] | None:
    """Steps by the ordinals they name, if that is another; "then" stays behind."""
    ranks = [_rank(step[0]) for step in steps]
    named = [rank for rank in ranks if rank]
    if 1 not in named or named == sorted(named):
        return None
    current, keys = 0, []
    for rank in ranks:
        current = rank or current
        keys.append(current)
    order = sorted(range(len(steps)), key=lambda i: keys[i])
    return [steps[i] for i in order]
