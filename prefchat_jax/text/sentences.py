"""Sentences: where one ends, in text that holds code, numbers and URLs.

Every pattern matches each character a bounded number of times, so that the time
is linear in the length of the text, whatever it holds.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator

Span = tuple[int, int]


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Never the end of a sentence, whatever follows.
_BEFORE_NAMES = _words(
    "dr mr mrs ms mx prof st mt gen sen rep gov capt sgt lt col maj rev hon "
    "messrs mme e.g eg i.e ie cf vs v viz approx ca resp incl excl"
)
# Not the end before a number: "No. 5", "p. 12", "Jan. 3".
_BEFORE_NUMBERS = _words(
    "no nos nr fig figs eq eqs p pp vol ch sec art par ex ver rel tel ext min max "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
# The end only where what follows opens like a sentence.
_PERHAPS_LAST = _words(
    "etc inc ltd co corp llc al jr sr dept est ave blvd rd a.m p.m am pm "
    "mon tue tues wed thu thur thurs fri sat sun ed eds hrs mins secs"
)
_AFTER_TIMES = _words(
    "est edt cst cdt mst mdt pst pdt et ct pt gmt utc bst cet cest monday tuesday "
    "wednesday thursday friday saturday sunday mon tue wed thu fri sat sun"
)
# Words that open a sentence and follow neither an initial nor "U.S.".
_OPENERS = _words(
    "the a an he she it we you i they this that these those if in on at as to for "
    "from but and or so then there here when where what who why how please our your "
    "my his her their its is are was were do does did can could will would no yes "
    "not all some most many after before while once use also however"
)
_SHORT = 1000  # Characters up to which the spans of a text are kept.
_DOTTED = re.compile(r"(?:[A-Za-z]{1,2}\.)+[A-Za-z]{1,3}")  # U.S, Ph.D
_CLOSERS = "\"')\\]}»”’"
_WIDE_CLOSERS = "」』】）》〉”’\"')"
_FACE = "[\U0001f300-\U0001faff\u2600-\u27bf\ufe0f\u200d]"
_ITEM = r"(?:[-*+•–]|\d{1,2}[.)]|#{1,6})[ \t]"
# What may end a sentence. No condition on what follows stands in the pattern: a
# run of stops is matched once and judged, not tried again from each of its stops.
_END = re.compile(
    rf"(?P<stop>[.!?…‽]+[{_CLOSERS}]*(?:\[\d{{1,3}}\])*)(?:[ \t]{{0,4}}{_FACE}+)*"
    rf"|(?P<wide>[。！？｡।؟۔]+)[{_WIDE_CLOSERS}]*"
    rf"|(?P<line>\n)(?=[ \t]*\n|[ \t]*{_ITEM})"
)
_MARK = re.compile("[.!?…‽。！？｡।؟۔\n]")  # What a match of `_END` begins with.
_OPENING = re.compile('["“«「『(（]')  # What a match of `_QUOTED` begins with.
_TICKS = re.compile(r"`+|\n")
# Short passages in quotes or brackets, which are not cut.
_QUOTED = re.compile(
    r"(?<![^\s(\[])\"(?=\S)[^\"\n]{1,200}\"(?!\w)"
    r"|“[^“”\n]{1,200}”|«[^«»\n]{1,200}»|「[^「」\n]{1,200}」|『[^『』\n]{1,200}』"
    r"|\([^()\n]{1,200}\)|（[^（）\n]{1,200}）"
)
_NEXT = re.compile(r"\s*[\"'(\[“‘«*_]{0,4}(\w*)")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without the white space around them."""
    return [text[a:b] for a, b in sentence_spans(text)]


def sentence_spans(text: str) -> list[Span]:
    """Where the sentences of a text begin and end.

    Between two spans, before the first and after the last there is nothing but
    white space. Code, URLs, numbers, abbreviations and short quotations stay
    whole; a blank line, and a line that opens a list item, begin a sentence.
    """
    return list(_kept_spans(text) if len(text) <= _SHORT else _spans(text))


def _spans(text: str) -> list[Span]:
    code = code_spans(text)
    quoted = _QUOTED.finditer(text) if _OPENING.search(text) else ()
    whole = _merged([*code, *(match.span() for match in quoted)])
    spans: list[Span] = []
    start = inside = 0
    for place in _ends(text, code):
        if isinstance(place, int):  # A block of code ends.
            end = place
        else:
            end = place.end() if place["line"] is None else place.start()
            while inside < len(whole) and whole[inside][1] <= place.start():
                inside += 1
            a, b = whole[inside] if inside < len(whole) else (len(text), 0)
            if a <= place.start() and (end < b or place["line"]):
                continue
            if end < start or not _is_end(text, start, place):
                continue
        if span := _trimmed(text, start, end):
            spans.append(span)
        start = max(start, end)
    return [*spans, rest] if (rest := _trimmed(text, start, len(text))) else spans


# A reply is cleaned and then shown, and split for both.
_kept_spans = functools.lru_cache(maxsize=1024)(_spans)


def code_spans(text: str) -> list[Span]:
    """Where code stands: between runs of one to two backticks in a line, or fences.

    A fence that is not closed reaches to the end of the text.
    """
    if "`" not in text:
        return []
    runs = list(_TICKS.finditer(text))
    closes: list[int | None] = [None] * len(runs)
    later: dict[int, int] = {}  # By length, the next run; 3 stands for fences.
    for i in range(len(runs) - 1, -1, -1):
        if runs[i].group() == "\n":
            later = {length: j for length, j in later.items() if length == 3}
            continue
        length = min(len(runs[i].group()), 3)
        closes[i] = later.get(length)
        later[length] = i
    spans, i = [], 0
    while i < len(runs):
        close, ticks = closes[i], runs[i].group()
        if close is not None:
            spans.append((runs[i].start(), runs[close].end()))
            i = close
        elif len(ticks) >= 3:
            spans.append((runs[i].start(), len(text)))
            break
        i += 1
    return spans


def _ends(text: str, code: list[Span]) -> Iterable[int | re.Match]:
    """Where a sentence may end: matches of `_END`, and ends of blocks of code."""
    blocks = [b for a, b in code if "\n" in text[a:b]]
    if not blocks:
        return _stops(text)
    at = lambda place: place if isinstance(place, int) else place.start()
    return sorted(itertools.chain(blocks, _stops(text)), key=at)


def _stops(text: str) -> Iterator[re.Match]:
    """The matches of `_END`, by a faster search for their first characters."""
    end = 0
    for mark in _MARK.finditer(text):
        if mark.start() >= end and (match := _END.match(text, mark.start())):
            yield match
            end = match.end()


def _is_end(text: str, start: int, place: re.Match) -> bool:
    """Whether a sentence that began at `start` ends with this match."""
    end = place.end()
    if place["line"]:
        return True
    if place["wide"]:
        closed = end > place.end("wide")
        return not (closed and text[end : end + 1] in ("と", "っ"))
    if end == len(text):
        return True
    if not text[end].isspace():
        return False
    stop, following = place["stop"], _NEXT.match(text, end)
    assert following is not None  # It matches no character, too.
    word = following[1]
    small = word[:1].islower()
    if stop[-1] in "\"')”’»" and small:
        return False  # "Why?" she asked.
    spaced = text[max(start, place.start() - 2) : place.start()] == ". "  # ". . ."
    if stop.startswith(("..", "…")) or (spaced and stop == "."):
        return not small and text[following.end() : following.end() + 1] != "."
    if not stop.startswith("."):
        return True
    if text[following.end() : following.end() + 1] in (".", "…") and not word:
        return False  # ". . ."
    return _full_stop(text, start, place.start(), word)


def _full_stop(text: str, start: int, stop: int, following: str) -> bool:
    """Whether a single stop ends a sentence, by the words on both sides."""
    before = text[max(start, stop - 24) : stop]
    pieces = before.rsplit(maxsplit=1)
    if not pieces or before[-1:].isspace():
        return True
    word = pieces[-1].lstrip("(\"'[“‘«*_")
    lowered, opens = word.lower(), following.lower() in _OPENERS
    if len(before.strip()) <= 2 and re.fullmatch(r"\d{1,2}|[a-z]", word):
        return False  # "1. First ..."
    if lowered in _BEFORE_NAMES:
        return not following
    if lowered in _BEFORE_NUMBERS:
        return not following[:1].isdigit()
    if lowered in _PERHAPS_LAST:
        if lowered in ("a.m", "p.m", "am", "pm") and following.lower() in _AFTER_TIMES:
            return False
        return following[:1].isupper() or lowered in ("am", "ed", "sun", "sat", "wed")
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        return opens or not following[:1].isupper()  # J. K. Rowling
    if _DOTTED.fullmatch(word):
        return opens and following[:1].isupper()
    return True


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for a, b in sorted(spans):
        if merged and a < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return merged


def _trimmed(text: str, a: int, b: int) -> Span | None:
    """The span without white space at its ends; None if nothing is left."""
    piece = text[a:b].rstrip()
    rest = piece.lstrip()
    return (a + len(piece) - len(rest), a + len(piece)) if rest else None
