"""Our losses beside the official functions of TRL and Liger Kernel.

`pip install -e '.[dev,peers]'`, then `pytest -m slow tests/test_peers.py`.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prefchat_jax import losses

SMOOTHING, TAU, GAMMA, ALPHA = 0.1, 0.05, 0.5, 0.25
seeds = pytest.mark.parametrize("seed", range(3))
betas = pytest.mark.parametrize("beta", [0.1, 2.0])
sweep = lambda test: pytest.mark.slow(seeds(betas(test)))


def peer(module):
    """A module of a peer; without it the test is skipped."""
    reason = f"{module} is not installed: pip install -e '.[peers]'"
    return pytest.importorskip(module, reason=reason)


class Pairs(NamedTuple):
    """Two batches of responses, the chosen ones above the rejected ones."""

    tokens: Any  # [2B, T] log-probs under the policy, 0 in the padding.
    ref_tokens: Any  # [2B, T] under the reference.
    collisions: Any  # [2B, T] log sum_v pi(v)**2.
    where: Any  # [2B, T] true at a token.


def random_pairs(seed, dtype=np.float64, pairs=5, length=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, 2 * pairs)
    where = np.arange(length) < lengths[:, None]
    draw = lambda low, high: -rng.uniform(low, high, where.shape).astype(dtype) * where
    return Pairs(draw(0.5, 3.0), draw(0.5, 3.0), draw(0.05, 0.5), where)


def halves(rows):
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def logps(tokens, pairs, *, mean=False):
    """Chosen, rejected, and both under the reference; summed or averaged."""
    lengths = pairs.where.sum(-1) if mean else np.ones(len(pairs.where))
    ours = lambda rows: halves(jnp.sum(rows, -1) / lengths.astype(rows.dtype))
    return *ours(tokens), *ours(jnp.asarray(pairs.ref_tokens))


def by_torch(fn, *arrays):
    """Values and the gradients of their sum."""
    torch = peer("torch")
    default = torch.get_default_dtype()
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    try:  # TRL makes tensors of its hyper-parameters in the default dtype.
        torch.set_default_dtype(leaves[0].dtype)
        values = fn(*leaves)
        values.sum().backward()
    finally:
        torch.set_default_dtype(default)
    return values.detach().numpy(), [leaf.grad.numpy() for leaf in leaves]


def by_jax(fn, *arrays):
    with jax.enable_x64(np.asarray(arrays[0]).dtype == np.float64):
        arrays = [jnp.asarray(array) for array in arrays]
        sums = lambda *a: jnp.sum(fn(*a))
        grads = jax.grad(sums, argnums=tuple(range(len(arrays))))(*arrays)
        return np.asarray(fn(*arrays)), [np.asarray(grad) for grad in grads]


def assert_same(theirs, ours, *arrays, tolerance=1e-10):
    (values, grads), (our_values, our_grads) = (
        by_torch(theirs, *arrays),
        by_jax(ours, *arrays),
    )
    assert our_values.dtype == arrays[0].dtype
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(our_values, values)
    for our_grad, grad in zip(our_grads, grads, strict=True):
        close(our_grad, grad)


def trainer(**settings):
    """What the loss methods of a TRL trainer read of `self`."""
    same = lambda values: values
    accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)
    return SimpleNamespace(
        accelerator=accelerator,
        aux_loss_enabled=False,
        label_smoothing=SMOOTHING,
        **settings,
    )


def trl_dpo(tokens, pairs, **settings):
    """TRL's method on a model that answers with the given log-probs; a scalar."""
    torch = peer("torch")
    method = peer("trl.trainer.dpo_trainer").DPOTrainer._compute_loss
    where = torch.tensor(pairs.where)
    chosen, rejected = halves(torch.tensor(pairs.ref_tokens).sum(-1))
    prompt = torch.zeros((len(where), 1), dtype=torch.bool)
    mask = torch.cat([prompt, where], dim=1).long()
    outputs = SimpleNamespace(
        log_probs=tokens,
        log_sum_sq_probs=torch.tensor(pairs.collisions),
        entropy=torch.zeros_like(tokens),
        mean_logits=torch.zeros_like(tokens),
        is_top1=where,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    defaults = {
        "model": SimpleNamespace(training=False),
        "args": SimpleNamespace(discopop_tau=TAU),
        "precompute_ref_logps": True,
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 1.0 - ALPHA,
        "ld_alpha": None,
        "use_weighting": False,
        "_metrics": MagicMock(),
        "_total_train_tokens": 0,
    }
    self = trainer(**defaults | settings)
    return method(self, lambda **_: outputs, inputs, return_outputs=False)


def trl_cpo(chosen, rejected, *, beta, loss_type, alpha=0.0):
    method = peer("trl.experimental.cpo.cpo_trainer").CPOTrainer.cpo_loss
    self = trainer(beta=beta, loss_type=loss_type, simpo_gamma=GAMMA, alpha=alpha)
    self.label_smoothing = 0.0
    return method(self, chosen, rejected)[0]


def trl_orpo(chosen, rejected, *, beta, nll):
    cls = peer("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    self = trainer(beta=beta)
    self.odds_ratio_loss = partial(cls.odds_ratio_loss, self)
    forward = chosen, rejected, chosen, rejected, nll
    self.concatenated_forward = lambda model, batch: forward
    return cls.get_batch_loss_metrics(self, None, None)[0]


def liger(name, *logps, **settings):
    """A scalar: the mean loss of the batch."""
    module = peer(f"liger_kernel.chunked_loss.{name.lower()}_loss")
    function = getattr(module, f"LigerFusedLinear{name}Function")
    chosen, rejected, *ref = logps
    target = peer("torch").zeros(2 * chosen.numel())
    return function.preference_loss_fn(chosen, rejected, target, *ref, **settings)[0]


SUMMED = {
    "sigmoid": losses.dpo,
    "hinge": losses.hinge,
    "exo_pair": partial(losses.exo, label_smoothing=SMOOTHING),
    "nca_pair": losses.nca,
    "robust": partial(losses.rdpo, label_smoothing=SMOOTHING),
    "bco_pair": partial(losses.bco, shift=0.0),
    "sppo_hard": losses.sppo,
    "aot": partial(losses.aot, label_smoothing=SMOOTHING),
    "aot_unpaired": partial(losses.aot_unpaired, label_smoothing=SMOOTHING),
    "apo_zero": losses.apo_zero,
    "apo_down": losses.apo_down,
    "discopop": partial(losses.discopop, tau=TAU),
}
AVERAGED = {"ipo": losses.ipo, "sigmoid_norm": losses.normalized_dpo}
LIGER = SUMMED.keys() - {"aot", "aot_unpaired"}
DIVERGENCES = {
    "forward_kl": losses.forward_kl_scores,
    "js_divergence": losses.js_scores,
    "alpha_divergence": partial(losses.alpha_scores, alpha=ALPHA),
}


def alone(loss):
    """A loss without a reference: references of 0."""
    return lambda chosen, rejected, **settings: loss(
        chosen, rejected, jnp.zeros_like(chosen), jnp.zeros_like(chosen), **settings
    )


CPO = {
    "sigmoid": losses.cpo,
    "hinge": alone(losses.hinge),
    "ipo": alone(losses.ipo),
    "simpo": partial(losses.simpo, gamma=GAMMA),
}


@sweep
@pytest.mark.parametrize("loss_type", [*SUMMED, *AVERAGED])
def test_every_dpo_loss_is_that_of_trl(loss_type, beta, seed):
    pairs = random_pairs(seed)
    loss, mean = (SUMMED | AVERAGED)[loss_type], loss_type in AVERAGED
    assert_same(
        lambda tokens: trl_dpo(tokens, pairs, beta=beta, loss_types=[loss_type]),
        lambda tokens: jnp.mean(loss(*logps(tokens, pairs, mean=mean), beta=beta)),
        pairs.tokens,
    )


@sweep
@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_divergences_are_those_of_trl(name, beta, seed):
    # TRL's alpha divergence knows no float64.
    single = name == "alpha_divergence"
    pairs = random_pairs(seed, np.float32 if single else np.float64, length=3)

    def ours(tokens):
        chosen, rejected, ref_chosen, ref_rejected = logps(tokens, pairs)
        lead = DIVERGENCES[name](chosen - ref_chosen)
        return jnp.mean(
            losses.logistic(beta * (lead - DIVERGENCES[name](rejected - ref_rejected)))
        )

    theirs = partial(trl_dpo, pairs=pairs, beta=beta, f_divergence_type=name)
    assert_same(theirs, ours, pairs.tokens, tolerance=2e-5 if single else 1e-10)


def weighted_dpo(tokens, pairs, beta):
    means = logps(tokens, pairs, mean=True)[:2]
    collisions = logps(jnp.asarray(pairs.collisions), pairs, mean=True)[:2]
    weights = losses.wpo_weights(*means, *collisions)
    return jnp.mean(weights * losses.dpo(*logps(tokens, pairs), beta=beta))


@sweep
def test_wpo_weights_below_one_are_those_of_trl(beta, seed):
    pairs = random_pairs(seed)
    assert_same(
        partial(trl_dpo, pairs=pairs, beta=beta, use_weighting=True),
        partial(weighted_dpo, pairs=pairs, beta=beta),
        pairs.tokens,
    )


@pytest.mark.slow
def test_wpo_weights_stop_at_one_as_its_authors_have_it_and_trl_does_not():
    pairs = random_pairs(0)
    pairs = pairs._replace(collisions=pairs.tokens - pairs.where)
    assert_same(
        lambda t: trl_dpo(t, pairs, beta=0.1, use_weighting=True) / math.exp(2),
        partial(weighted_dpo, pairs=pairs, beta=0.1),
        pairs.tokens,
    )


@sweep
@pytest.mark.parametrize("loss_type", CPO)
def test_losses_without_a_reference_are_those_of_trl(loss_type, beta, seed):
    sides = halves(random_pairs(seed).tokens.mean(-1))
    theirs = partial(trl_cpo, beta=beta, loss_type=loss_type)
    assert_same(theirs, partial(CPO[loss_type], beta=beta), *sides)


@sweep
@pytest.mark.parametrize("alpha", [ALPHA, -0.5])
def test_alphapo_is_that_of_trl(alpha, beta, seed):
    sides = halves(random_pairs(seed).tokens.mean(-1))
    theirs = partial(trl_cpo, beta=beta, loss_type="simpo", alpha=alpha)
    ours = partial(losses.alphapo, alpha=alpha, beta=beta, gamma=GAMMA)
    assert_same(theirs, ours, *sides)


@sweep
def test_orpo_is_that_of_trl(beta, seed):
    # TRL computes the odds ratio in float32.
    sides = halves(random_pairs(seed, np.float32).tokens.mean(-1))
    assert_same(
        lambda c, r: trl_orpo(c, r, beta=beta, nll=-c.mean()),
        lambda c, r: jnp.mean(losses.orpo(c, r, beta=beta)),
        *sides,
        tolerance=2e-5,
    )


@sweep
@pytest.mark.parametrize("loss_type", sorted(LIGER))
def test_every_dpo_loss_of_liger(loss_type, beta, seed):
    pairs = random_pairs(seed)
    arrays = *halves(pairs.tokens.sum(-1)), *halves(pairs.ref_tokens.sum(-1))
    settings = {"loss_type": loss_type, "label_smoothing": SMOOTHING}
    assert_same(
        partial(liger, "DPO", beta=beta, discopop_tau=TAU, **settings),
        lambda *logps: jnp.mean(SUMMED[loss_type](*logps, beta=beta)),
        *arrays,
    )


@sweep
def test_losses_of_liger_without_a_reference(beta, seed):
    sides = halves(random_pairs(seed).tokens.mean(-1))
    mean = lambda loss, **settings: lambda c, r: jnp.mean(loss(c, r, **settings))
    odds = lambda c, r: jnp.mean(beta * losses.odds_ratio(c, r))
    simpo = mean(losses.simpo, beta=beta, gamma=GAMMA)
    assert_same(
        partial(liger, "CPO", beta=beta), mean(CPO["sigmoid"], beta=beta), *sides
    )
    assert_same(partial(liger, "SimPO", beta=beta, gamma=GAMMA), simpo, *sides)
    assert_same(partial(liger, "ORPO", beta=beta), odds, *sides)


@seeds
def test_the_softmax_group_is_the_ranking_softmax_of_optax(seed):
    scores = np.random.default_rng(seed).normal(0, 3, (4, 6)).astype(np.float32)
    labels = np.eye(1, 6, dtype=np.float32).repeat(4, 0)
    theirs = lambda s: optax.losses.ranking_softmax_loss(s, labels, reduce_fn=None)
    ours = lambda s: losses.softmax(s[:, :1] - s[:, 1:], losses.logistic)
    for got, wanted in zip(
        jax.tree.leaves(by_jax(ours, scores)),
        jax.tree.leaves(by_jax(theirs, scores)),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)
