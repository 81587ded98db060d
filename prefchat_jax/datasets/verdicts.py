"""Verdicts: who judged the same two replies more than once counts once."""

from collections.abc import Sequence
from typing import NamedTuple

from prefchat_jax.datasets.preferences import PreferencePair


class Verdicts(NamedTuple):
    """Pairs, and those that later ones took the place of.

    Attributes:
      pairs: in order; of the same annotator on the same two replies the last one.
      replaced: the others, in order.
    """

    pairs: list[PreferencePair]
    replaced: list[PreferencePair]


def last_verdicts(pairs: Sequence[PreferencePair]) -> Verdicts:
    """Keeps the last verdict of each annotator on each two replies to a context.

    Which of the two was preferred does not matter: a person who changes their mind
    meant the later one. Pairs without an annotator may be of different people, and
    all stay.
    """
    last: dict[tuple, int] = {}
    for number, pair in enumerate(pairs):
        replies = frozenset((pair.chosen, pair.rejected))
        who = pair.annotator or number
        last[who, pair.context, replies] = number
    kept = set(last.values())
    return Verdicts(
        [pair for number, pair in enumerate(pairs) if number in kept],
        [pair for number, pair in enumerate(pairs) if number not in kept],
    )
