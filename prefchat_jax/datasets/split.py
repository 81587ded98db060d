"""Split: validation rows that share no text with the training rows."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from prefchat_jax.text.dialogue import Example

SplitMode = Literal["stratified", "random"]


def split_rows(
    examples: Sequence[Example],
    labels: np.ndarray,
    *,
    fraction: float,
    mode: SplitMode,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws validation rows by whole groups.

    Rows of one group (`Example.groups`, or the user's text without case,
    punctuation and order of words) stay together, so that a copy of a training
    row never validates. `stratified` draws the fraction from every class, at
    least one group from a class that has two; `random` ignores classes.

    Args:
      examples: all rows.
      labels: `[n]` buckets.
      fraction: share of the rows to validate on, in [0, 1).
      mode: how to draw.
      seed: of the draw.

    Returns:
      Row numbers of the training part and of the validation part, ascending.
    """
    if fraction == 0:
        return np.arange(len(examples)), np.arange(0)
    groups = group_numbers(examples)
    rng = np.random.default_rng([seed, 0x5911])
    strata = labels if mode == "stratified" else np.zeros(len(labels), np.int64)
    is_val = np.zeros(groups.max() + 1, bool)
    # A group belongs to the stratum of its first row, also if labels disagree.
    stratum_of_group = np.zeros(len(is_val), np.int64)
    stratum_of_group[groups[::-1]] = strata[::-1]
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(stratum_of_group == stratum))
        if len(members) >= 2:
            count = round(fraction * len(members))
            is_val[members[: min(max(count, 1), len(members) - 1)]] = True
    return np.flatnonzero(~is_val[groups]), np.flatnonzero(is_val[groups])


def group_numbers(examples: Sequence[Example]) -> np.ndarray:
    """Numbers rows so that equal groups, or equal texts, have equal numbers.

    A row with explicit groups joins all rows of those groups and all rows of
    its text, so the numbers are connected components.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key):
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = []
    for example in examples:
        key = ("text", prompt_key(example))
        for group in example.groups:
            parent[root(key)] = root(("group", group))
        keys.append(key)
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(root(key), len(numbers)) for key in keys])


def prompt_key(example: Example) -> str:
    """The last message and the one before it, as sorted lower-case words.

    Rows of one key ask the same, and stay on one side of a split.
    """
    turns = " ".join(turn.content for turn in example.context[-2:])
    words = re.findall(r"\w+", turns.casefold())
    return " ".join(sorted(words)) or turns
