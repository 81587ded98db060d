"""Styles: what a reply should look like; built in, or registered by the user.

A style is data and two pure functions: `signal` says how much a stored text suits
it, `show` how the text is shown. Texts are shortened, ordered or framed, and never
rewritten.

Creativity, in [0, 1], moves two things and nothing else. In the ranking, a text
unlike the others gains `creativity * weights.novelty` times its novelty, as a share
of its relevance: nothing at 0. In what is shown, the style `creative` puts a
phrase in front from 0.3 on. It changes neither which style is used nor how a reply
is drawn, and no other built-in style shows a text differently because of it.
"""

import dataclasses
import functools
import math
import re
import threading
from collections.abc import Callable, Sequence

import numpy as np

from prefchat_jax.chat import cues
from prefchat_jax.chat.measuring import brevity, colour, orderliness
from prefchat_jax.chat.showing import framed, plain, shortened, stepwise
from prefchat_jax.errors import UserError

__all__ = [
    "BUILT_IN",
    "STYLES",
    "Style",
    "StyleWeights",
    "get_style",
    "infer_style",
    "register_style",
    "signals",
    "style_names",
    "unregister_style",
]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# Texts that a signal is tried with when its style is registered.
_PROBES = ("", "Yes.", "First open the app, then press Save.", "Why? " * 500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleWeights:
    """Shares of its relevance that a candidate gains or loses, each in [0, 1].

    Attributes:
      style: gained by a text that suits the style fully (a signal of 1).
      novelty: gained at creativity 1 by a text unlike all others.
      repeat: lost by a text that equals a recent reply.
      diversity: lost within the returned list by a text that equals one above it
        (maximal marginal relevance).
    """

    style: float = 0.0
    novelty: float = 0.3
    repeat: float = 0.25
    diversity: float = 0.3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise UserError(f"style weight {field.name} {value}: use 0 to 1.")


def _no_signal(text: str) -> float:
    return 0.0


# How the built-in styles measure many texts at once, by name.
_MEASURES: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
    "creative": colour,
    "concise": brevity,
    "analyst": orderliness,
}


def _signal_of(name: str) -> Callable[[str], float]:
    return lambda text: float(_MEASURES[name]([text])[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """A style.

    Attributes:
      name: lower-case letters, digits, `_` and `-`; not `auto`.
      weights: what the style changes in the ranking.
      cues: a regular expression, searched in the message without regard to case;
        a match asks for this style when the style is `auto`.
      signal: how much a text suits the style, in [0, 1]; a pure function, since
        what it returns is kept.
      show: `(text, creativity, message)` to what is shown; a pure function.
    """

    name: str
    weights: StyleWeights = StyleWeights()
    cues: str | None = None
    signal: Callable[[str], float] = _no_signal
    show: Callable[[str, float, str], str] = plain


BUILT_IN: tuple[Style, ...] = (
    Style(name="balanced"),
    Style(
        name="creative",
        weights=StyleWeights(style=0.2, novelty=0.6, repeat=0.35, diversity=0.5),
        cues=cues.CREATIVE,
        signal=_signal_of("creative"),
        show=framed,
    ),
    Style(
        name="concise",
        weights=StyleWeights(style=0.3, novelty=0.1),
        cues=cues.CONCISE,
        signal=_signal_of("concise"),
        show=shortened,
    ),
    Style(
        name="analyst",
        weights=StyleWeights(style=0.2, novelty=0.1),
        cues=cues.ANALYST,
        signal=_signal_of("analyst"),
        show=stepwise,
    ),
)
STYLES = tuple(style.name for style in BUILT_IN)

# Replaced as a whole, under the lock, so that readers need none.
_registered: dict[str, tuple[Style, re.Pattern | None]] = {}
_lock = threading.Lock()


def style_names() -> tuple[str, ...]:
    """The names of all styles: those built in, then those registered."""
    return tuple(_registered)


def get_style(name: str) -> Style:
    """The style of a name.

    Raises:
      UserError: there is none; the error lists the names.
    """
    found = _registered.get(name)
    if found is None:
        raise UserError(f"style {name!r}: use {', '.join(('auto', *_registered))}.")
    return found[0]


def register_style(style: Style) -> None:
    """Adds a style; from then on `get_style` and `infer_style` know it.

    Cues of registered styles are searched before those built in, in the order of
    registration. Safe to call from several threads.

    Raises:
      UserError: the name is taken, reserved or malformed; the cues are no regular
        expression or match an empty message; the signal of a text is not in [0, 1].
    """
    name = style.name
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or name == "auto":
        raise UserError(
            f"style name {name!r}: use lower-case letters, digits, _ and -, not auto."
        )
    pattern = _compiled(style)
    for probe in _PROBES:
        _signal(style.signal, style.name, probe)
    global _registered
    with _lock:
        if name in _registered:
            raise UserError(f"style {name!r} is registered already: use another name.")
        _registered = {**_registered, name: (style, pattern)}


def unregister_style(name: str) -> None:
    """Removes a registered style.

    Raises:
      UserError: there is none of that name, or it is built in.
    """
    global _registered
    with _lock:
        if name in STYLES or name not in _registered:
            raise UserError(f"style {name!r}: only a registered style can be removed.")
        _registered = {k: v for k, v in _registered.items() if k != name}


def infer_style(message: str) -> str:
    """The name of the style that a message asks for, or `balanced`."""
    known = _registered
    read = cues.edges(message)
    asked = ("concise", "creative", "analyst") if cues.may_ask(read) else ()
    searched = [(known[name], message) for name in known if name not in STYLES]
    searched += [(known[name], read) for name in asked]
    for (style, pattern), text in searched:
        if pattern is not None and pattern.search(text):
            return style.name
    return "balanced"


def signals(texts: Sequence[str], style: Style | str) -> np.ndarray:
    """How much each text suits a style: float32 `[n]`, in [0, 1].

    Of a registered style the number of a text is kept: stored texts are read again
    for every message. Those of the built-in styles are stored with the texts.

    Raises:
      UserError: there is no such style, or its signal of a text is not in [0, 1].
    """
    style = get_style(style) if isinstance(style, str) else style
    if style in BUILT_IN:
        measure = _MEASURES.get(style.name)
        return measure(texts) if measure else np.zeros(len(texts), np.float32)
    values = (_signal(style.signal, style.name, text) for text in texts)
    return np.fromiter(values, np.float32, len(texts))


@functools.lru_cache(maxsize=200_000)
def _signal(signal: Callable[[str], float], name: str, text: str) -> float:
    value = signal(text)
    is_number = isinstance(value, int | float | np.number)
    if not (is_number and math.isfinite(value) and 0 <= value <= 1):
        raise UserError(
            f"style {name!r}: its signal of {text[:40]!r} is {value!r}; "
            "return a number in [0, 1]."
        )
    return float(value)


def _compiled(style: Style) -> re.Pattern | None:
    if style.cues is None:
        return None
    try:
        pattern = re.compile(style.cues, re.IGNORECASE)
    except (re.error, TypeError) as error:
        raise UserError(
            f"style {style.name!r}: cues {style.cues!r} are no regular expression "
            f"({error})."
        ) from None
    if pattern.search(""):
        raise UserError(
            f"style {style.name!r}: cues {style.cues!r} match every message."
        )
    return pattern


for _style in BUILT_IN:
    register_style(_style)
