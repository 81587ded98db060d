"""Every elementwise loss with inputs and hyper-parameters, for tests of all of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from prefchat_jax import losses


class Case(NamedTuple):
    """A loss of `inputs` arrays `[...]`; gradients flow to the first `grads` ones."""

    fn: Callable
    inputs: int
    hyper: dict
    grads: int


def _case(fn, inputs, grads=None, **hyper):
    return Case(fn, inputs, hyper, inputs if grads is None else grads)


def _links_with(link, **hyper):
    return _case(link, 1, **hyper)


def _rpo(distance):
    return functools.partial(losses.rpo, distance=distance)


def _kto(logps, ref_logps, **settings):
    """Which responses are desirable goes with them, as a third input would."""
    is_desirable = jnp.asarray(ref_logps) > -1.0
    return losses.kto(logps, ref_logps, is_desirable, 0.3, **settings)


SEQUENCE = {
    "dpo": _case(losses.dpo, 4, beta=0.1),
    "cdpo": _case(losses.cdpo, 4, beta=0.1, label_smoothing=0.2),
    "rdpo": _case(losses.rdpo, 4, beta=0.1, label_smoothing=0.2),
    "hinge": _case(losses.hinge, 4, beta=0.3),
    "ipo": _case(losses.ipo, 4, beta=0.1),
    "normalized_dpo": _case(losses.normalized_dpo, 4, beta=2.0),
    "exo": _case(losses.exo, 4, beta=0.1, label_smoothing=1e-3),
    "discopop": _case(losses.discopop, 4, beta=0.1, tau=0.05),
    "odds_ratio": _case(losses.odds_ratio, 2),
    "orpo": _case(losses.orpo, 2, beta=0.1),
    "simpo": _case(losses.simpo, 2, beta=2.0, gamma=0.5),
    "repo_relu": _case(losses.repo_relu, 2, gamma=0.5),
    "cpo": _case(losses.cpo, 2, beta=0.1),
    "alphapo": _case(losses.alphapo, 2, alpha=0.25, beta=2.0, gamma=0.5),
    "nca": _case(losses.nca, 4, beta=0.1),
    "bco": _case(losses.bco, 4, beta=0.1, shift=0.2),
    "sppo": _case(losses.sppo, 4, beta=0.1),
    "apo_zero": _case(losses.apo_zero, 4, beta=0.1),
    "apo_down": _case(losses.apo_down, 4, beta=0.1),
    "kto": _case(
        _kto, 2, grads=1, beta=0.1, desirable_weight=1.0, undesirable_weight=0.5
    ),
    "rpo_sq": _case(_rpo(losses.rpo_sq), 6, beta=0.2, eta=1.0),
    "rpo_bwd_kl": _case(_rpo(losses.rpo_bwd_kl), 6, beta=0.2, eta=1.0),
    "rpo_fwd_kl": _case(_rpo(losses.rpo_fwd_kl), 6, beta=0.2, eta=1.0),
}

SCORES = {
    "forward_kl_scores": _case(losses.forward_kl_scores, 1),
    "js_scores": _case(losses.js_scores, 1),
    "alpha_scores": _case(losses.alpha_scores, 1, alpha=0.25),
    "log_odds": _case(losses.log_odds, 1),
}

LINKS = {
    "logistic": _links_with(losses.logistic),
    "target_logistic": _links_with(losses.target_logistic, gamma=0.5),
    "relu_margin": _links_with(losses.relu_margin, gamma=0.5),
    "squared": _links_with(losses.squared, target=0.5),
    "exo_pair": _links_with(losses.exo_pair, label_smoothing=1e-3),
    "log_ratio_modulated": _links_with(losses.log_ratio_modulated, tau=0.05),
    "preference_gce": _links_with(losses.preference_gce, q=0.7),
    "rpo_margin_sq": _links_with(
        functools.partial(losses.rpo_margin, distance=losses.rpo_sq), target=1.0
    ),
    "rpo_margin_bwd_kl": _links_with(
        functools.partial(losses.rpo_margin, distance=losses.rpo_bwd_kl), target=1.0
    ),
    "rpo_margin_fwd_kl": _links_with(
        functools.partial(losses.rpo_margin, distance=losses.rpo_fwd_kl), target=1.0
    ),
}

NOISE = {
    "smoothed": _case(losses.smoothed, 2, label_smoothing=0.1),
    "unbiased": _case(losses.unbiased, 2, label_smoothing=0.1),
    "reliability_nll": _case(losses.reliability_nll, 2, reliability=0.9),
    "reliability_loss": _case(losses.reliability_loss, 2, posterior=0.8),
    "reliability_posterior": _case(
        losses.reliability_posterior, 2, grads=0, reliability=0.9
    ),
    "wpo_weights": _case(losses.wpo_weights, 4, grads=0),
}

ELEMENTWISE = SEQUENCE | SCORES | LINKS | NOISE

GROUPS = {
    "pairwise_mean": losses.pairwise_mean,
    "expected_win": losses.expected_win,
    "softmax": losses.softmax,
    "softmax_mean": losses.softmax_mean,
    "hardest": losses.hardest,
    "mean_reward": losses.mean_reward,
}


def inputs(case, rng, shape=(6,), dtype=np.float32):
    """Random log-probs, margins or losses: negative, as log-probs are."""
    return [-rng.gamma(2.0, 0.7, shape).astype(dtype) for _ in range(case.inputs)]
