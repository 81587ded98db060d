"""Tuning: how much each term of relevance should count, from answered rows.

A conditional logit (McFadden, 1974): the probability that a response is right is
the softmax of the weighted terms of its best candidate. Weights stay near where
they start unless the rows say otherwise, so that few rows change little.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.config import RelevanceWeights
from prefchat_jax.chat.ranking import RELEVANCE, Terms
from prefchat_jax.chat.session import Chat
from prefchat_jax.text.dialogue import Example

_ROWS = 600  # Rows that are asked.
_BLOCK = 100  # Free-standing responses in one list.
_SHARPNESS = 20.0  # Of the softmax at first.
_SPREAD = 0.5  # Of the logarithms of the weights around those at first.


class Choice(NamedTuple):
    """One list of candidates.

    Attributes:
      terms: float32 `[n, terms]`, in the order of `RELEVANCE`.
      responses: int `[n]` the response that each candidate gives, from 0.
      right: the right response.
    """

    terms: np.ndarray
    responses: np.ndarray
    right: int


def choices(chat: Chat, rows: Sequence[Example]) -> list[Choice]:
    """Lists that hold a right response: the chat's own pools, or blocks of replies.

    Where a row's reply is stored, its list is the pool that the chat would rank.
    Else it is ranked among the replies of other such rows, which nobody asked for:
    those carry no question and no bucket.
    """
    rows = [row for row in rows if row.response]
    rows = rows[:: -(-len(rows) // _ROWS) or 1]  # Evenly: files are often sorted.
    found, missing = [], []
    for row, choice in zip(rows, _from_pools(chat, rows), strict=True):
        if choice is None:
            missing.append(row)
        else:
            found.append(choice)
    for start in range(0, len(missing), _BLOCK):
        block = missing[start : start + _BLOCK]
        if len(block) > 1:
            found.extend(_from_block(chat, block))
    return found


def tune_weights(
    lists: Sequence[Choice], start: RelevanceWeights = RelevanceWeights()
) -> RelevanceWeights:
    """The most probable weights; their sum is that of `start`.

    Args:
      lists: from `choices`.
      start: the weights that are kept where the lists do not tell.
    """
    if not lists:
        return start
    from scipy.optimize import minimize  # Comes with JAX; only tuning pays for it.

    first = np.array(dataclasses.astuple(start))
    usable = first > 0
    lists = [c._replace(terms=c.terms[:, usable].astype(np.float64)) for c in lists]
    origin = np.log(first[usable] * _SHARPNESS / first.sum())

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.exp(logs)
        shift = (logs - origin) / _SPREAD**2
        parts = [_surprise(choice, weights) for choice in lists]
        value = sum(part for part, _ in parts) + 0.5 * float((logs - origin) @ shift)
        return value, np.sum([g for _, g in parts], axis=0) * weights + shift

    bounds = [(low - 6, low + 4) for low in origin]
    best = minimize(loss, origin, jac=True, method="L-BFGS-B", bounds=bounds).x
    tuned = np.zeros(len(first))
    tuned[usable] = np.exp(best) * first.sum() / np.exp(best).sum()
    return RelevanceWeights(*tuned.round(4).tolist())


def _surprise(choice: Choice, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the log-probability of the right response, and its gradient."""
    scores = choice.terms @ weights
    order = np.argsort(scores, kind="stable")
    best = np.zeros(choice.responses.max() + 1, np.int64)
    best[choice.responses[order]] = order  # The last assignment wins.
    logits = scores[best] - scores.max()
    shares = np.exp(logits)
    normaliser = shares.sum()
    table = choice.terms[best]
    gradient = shares / normaliser @ table - table[choice.right]
    return float(np.log(normaliser) - logits[choice.right]), gradient


def _from_pools(chat: Chat, rows: Sequence[Example]) -> Iterator[Choice | None]:
    """The pool of each row; None where the right response is not in it."""
    pools = chat.pools(
        [row.question for row in rows], histories=[row.context[:-1] for row in rows]
    )
    for row, (pool, terms) in zip(rows, pools, strict=True):
        same = [entry.id for entry in chat.store.find_response(row.response)]
        places = np.flatnonzero(np.isin(pool.ids, same))
        _, responses = np.unique(pool.response_ids, return_inverse=True)
        yield (
            Choice(_columns(terms), responses, int(responses[places[0]]))
            if len(places)
            else None
        )


def _from_block(chat: Chat, rows: Sequence[Example]) -> Iterator[Choice]:
    responses = list(dict.fromkeys(row.response for row in rows))
    found = chat.response_terms(
        [row.question for row in rows],
        responses,
        histories=[row.context[:-1] for row in rows],
    )
    for row, terms in zip(rows, found, strict=True):
        right = responses.index(row.response)
        yield Choice(_columns(terms), np.arange(len(responses)), right)


def _columns(terms: Terms) -> np.ndarray:
    return np.stack([terms[name] for name in RELEVANCE], axis=1)
