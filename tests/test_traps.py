"""Inputs at which float32 fails a peer: there our values and gradients are exact.

`python tests/test_traps.py` prints the table; rows of TRL and Liger need the extra
`peers`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import rich.table
from test_peers import (
    ALPHA,
    GAMMA,
    TAU,
    Pairs,
    by_jax,
    by_torch,
    liger,
    peer,
    trl_cpo,
    trl_dpo,
    trl_orpo,
)

from prefchat_jax import losses


class Truth(NamedTuple):
    """A function of one number: ours, and exactly, in float64, with its slope."""

    ours: Callable[[jax.Array], jax.Array]
    value: Callable[[float], float]
    slope: Callable[[float], float]


class Trap(NamedTuple):
    """A float32 input at which the value or the gradient of a peer is wrong."""

    name: str
    peer: str
    at: float
    theirs: Callable[[Any], Any]
    truth: Truth
    run: Callable[..., Any] = by_torch


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return math.exp(-softplus(-x))


def link(ours, shift=0.0):
    """-log sigmoid(x - shift), whatever it is called."""
    value = lambda x: softplus(shift - x)
    return Truth(ours, value, lambda x: -sigmoid(shift - x))


def torch_log_sigmoid(x):
    return peer("torch").nn.functional.logsigmoid(x)


def trl_log_odds(x):
    return x - peer("trl.experimental.orpo.orpo_trainer").log1mexp(x)


def trl_odds_ratio(x):
    return trl_orpo(-1 + 0 * x[None], x[None], beta=1.0, nll=0 * x)


def liger_odds_ratio(x):
    return liger("ORPO", -1 + 0 * x[None], x[None], beta=1.0)


def trl_discopop(x):
    blank = np.zeros((2, 1), np.float32)
    pairs = Pairs(blank, blank, blank, blank == 0)
    tokens = peer("torch").stack([x, 0 * x])[:, None]
    return trl_dpo(tokens, pairs, beta=1.0, loss_types=["discopop"])


def liger_discopop(x):
    ref = 0 * x[None].detach()
    return liger("DPO", x[None], ref, ref, ref, beta=1.0, loss_type="discopop")


def trl_alphapo(x):
    return trl_cpo(x, -1 + 0 * x, beta=1.0, loss_type="simpo", alpha=ALPHA)


def alphapo_margin(x):
    return (math.exp(ALPHA) - math.exp(-ALPHA * x)) / ALPHA - GAMMA


log_odds = Truth(
    losses.log_odds,
    lambda x: x - math.log(-math.expm1(x)),
    lambda x: -1 / math.expm1(x),
)
odds_lead = lambda x: log_odds.value(x) - log_odds.value(-1.0)
odds_ratio = Truth(
    partial(losses.odds_ratio, -1.0),
    lambda x: softplus(odds_lead(x)),
    lambda x: sigmoid(odds_lead(x)) * log_odds.slope(x),
)
alphapo = Truth(
    lambda x: losses.alphapo(x, -1.0, alpha=ALPHA, beta=1.0, gamma=GAMMA),
    lambda x: softplus(-alphapo_margin(x)),
    lambda x: -sigmoid(-alphapo_margin(x)) * math.exp(-ALPHA * x),
)
discopop = link(lambda x: losses.discopop(x, 0.0, 0.0, 0.0, beta=1.0, tau=TAU))
expected_win = link(lambda x: losses.expected_win(x[None], losses.logistic))
sdpo = link(lambda x: losses.softmax(x.repeat(3), losses.logistic), math.log(3))
lmpo = link(partial(losses.target_logistic, gamma=1.0), shift=1.0)
naive_log_odds = lambda x: x - jnp.log1p(-jnp.exp(x))
# "formula": the peer's equation in our words and its framework, since it is no
# package, pins another flax (EasyDeL 0.3.0) or is not released yet (tunix).
TRAPS = [
    Trap("log-odds", "TRL", -1e-8, trl_log_odds, log_odds),
    Trap("log-odds", "EasyDeL: formula", -1e-8, naive_log_odds, log_odds, by_jax),
    Trap("log-odds", "EasyDeL: formula", -1e-7, naive_log_odds, log_odds, by_jax),
    Trap(
        "log-odds",
        "tunix: formula",
        -1e-8,
        lambda x: naive_log_odds(jnp.minimum(x, -1e-7)),
        log_odds,
        by_jax,
    ),
    Trap("ORPO", "TRL", -1e-8, trl_odds_ratio, odds_ratio),
    Trap("ORPO", "Liger", -1e-8, liger_odds_ratio, odds_ratio),
    Trap("ORPO", "Liger", -1e-7, liger_odds_ratio, odds_ratio),
    Trap(
        "log sigmoid",
        "EasyDeL: formula",
        -88.0,
        lambda x: -jnp.log(jax.nn.sigmoid(x)),
        link(losses.logistic),
        by_jax,
    ),
    Trap(
        "expected win",
        "predecessor: formula",
        -20.0,
        lambda x: -x.sigmoid().clamp(min=1e-8).log(),
        expected_win,
    ),
    Trap("DiscoPOP", "TRL", -100.0, trl_discopop, discopop),
    Trap("DiscoPOP", "Liger", -100.0, liger_discopop, discopop),
    *(
        Trap(
            "S-DPO, 3 negatives",
            "authors: formula",
            at,
            lambda x: -torch_log_sigmoid(-(3 * (-x).exp()).log()),
            sdpo,
        )
        for at in (-100.0, 200.0)
    ),
    Trap(
        "LMPO",
        "authors: formula",
        -100.0,
        lambda x: -(1 / (1 + math.e * (-x).exp())).log(),
        lmpo,
    ),
    Trap("AlphaPO", "TRL", -110.0, trl_alphapo, alphapo),
]
traps = pytest.mark.parametrize(
    "trap", TRAPS, ids=[f"{t.name}-{t.peer}-{t.at}" for t in TRAPS]
)


def at(trap, run, fn):
    """Value and gradient of a function at the float32 input of a trap."""
    value, (grad,) = run(fn, np.float32(trap.at))
    return float(value), float(grad)


def truth(trap):
    x = float(np.float32(trap.at))
    return trap.truth.value(x), trap.truth.slope(x)


@traps
def test_ours_is_exact_where_float32_fails_a_peer(trap):
    ours = at(trap, by_jax, trap.truth.ours)
    np.testing.assert_allclose(ours, truth(trap), rtol=1e-6, atol=1e-30)


@pytest.mark.slow
@traps
def test_float32_fails_the_peer(trap):
    assert not np.allclose(at(trap, trap.run, trap.theirs), truth(trap), rtol=1e-4)


def failure_table():
    """Rows of trap, peer, input, then value and gradient: theirs, ours, exactly."""
    for trap in TRAPS:
        try:
            theirs = at(trap, trap.run, trap.theirs)
        except pytest.skip.Exception:
            theirs = "not installed", ""
        yield *trap[:3], *theirs, *at(trap, by_jax, trap.truth.ours), *truth(trap)


if __name__ == "__main__":
    columns = "trap peer input theirs gradient ours gradient exact gradient"
    table = rich.table.Table(*columns.split())
    for row in failure_table():
        table.add_row(*(x if isinstance(x, str) else f"{x:.6g}" for x in row))
    rich.console.Console(width=130).print(table)
