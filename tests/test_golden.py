"""Values and gradients against other implementations, in float64 and float32.

`golden/losses.json` holds the inputs, the losses and the gradients of their mean;
each entry here says how our functions compute it.
"""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefchat_jax import losses

DATA = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "losses.json").read_text()
)
GOLDEN = DATA["golden"]
PAIRS = {name: np.array(value) for name, value in DATA["inputs"]["pairs"].items()}
RESPONSES = {k: np.array(v) for k, v in DATA["inputs"]["kresponse"].items()}
BUCKETS = {k: np.array(v) for k, v in DATA["inputs"]["classification"].items()}
ANNOTATORS = {k: np.array(v) for k, v in DATA["inputs"]["annotators"].items()}
REWARDS = [
    np.array(DATA["inputs"]["rpo"][f"gt_{s}_reward"]) for s in ("chosen", "rejected")
]
LENGTHS = PAIRS["chosen_len"], PAIRS["rejected_len"]

SUMS = PAIRS["chosen_logps"], PAIRS["rejected_logps"]
REF_SUMS = PAIRS["ref_chosen_logps"], PAIRS["ref_rejected_logps"]
MEANS = PAIRS["chosen_avg_logps"], PAIRS["rejected_avg_logps"]
REF_MEANS = PAIRS["ref_chosen_avg_logps"], PAIRS["ref_rejected_avg_logps"]
LOGITS = BUCKETS["logits"], BUCKETS["labels"], BUCKETS["neg_idx"]


def sums(fn, *extra, **hyper):
    """A loss of summed log-probs and those of the reference."""
    return lambda w, r: fn(w, r, *REF_SUMS, *extra, **hyper), SUMS


def free(fn, inputs=SUMS, **hyper):
    """A loss without a reference policy."""
    return lambda w, r: fn(w, r, **hyper), inputs


def means(fn, **hyper):
    """A loss of length-averaged log-probs and those of the reference."""
    return lambda w, r: fn(w, r, *REF_MEANS, **hyper), MEANS


def scored(scores, beta):
    return sums(losses.f_dpo, scores=scores, beta=beta)


def margins(link, inputs, beta, shift=0.0):
    """A link of a reference-free margin, as the codes of SimPO and CPO compose it."""
    return lambda w, r: link(beta * (w - r) - shift), inputs


def swapping(noise, link, inputs, beta, shift=0.0, **hyper):
    """A noise model over a link of a reference-free margin."""

    def loss(w, r):
        m = beta * (w - r) - shift
        return noise(link(m), link(-m), **hyper)

    return loss, inputs


def weighted(weights):
    return lambda w, r: weights * losses.dpo(w, r, *REF_SUMS, beta=0.1), SUMS


def token_nll(w, r):
    """The mean over all tokens of the batch, once for each pair."""
    return jnp.full(6, -jnp.sum(w) / LENGTHS[0].sum()) + 0 * r


def mixture(w, r):
    """MPO: DPO, BCO and likelihood, weighted."""
    dpo = losses.dpo(w, r, *REF_SUMS, beta=0.1)
    bco = losses.bco(w, r, *REF_SUMS, beta=0.1, shift=0.0)
    return 0.8 * dpo + 0.2 * bco + token_nll(w, r)


LMPO = {"beta": 2.5, "gamma": 1.0, "margin_weight": 0.2, "power": 5, "decay": 0.9}


def lmpo(w, r, **options):
    return losses.lmpo(w, r, *LENGTHS, losses.init_lmpo(), **LMPO, **options)[0]


def lmpo_without_state(w, r):
    """An independent implementation: statistics of the batch, with an epsilon."""
    raw = losses.lmpo_margin(w, r, *LENGTHS, power=5)
    z = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-8)
    return losses.target_logistic(2.5 * (w - r) - 0.2 * z, gamma=1.0)


def kto(w, r):
    kl = jnp.maximum(jnp.mean(r - REF_SUMS[1]), 0.0)
    is_chosen = jnp.arange(12) < 6
    logps, refs = jnp.concatenate([w, r]), jnp.concatenate(REF_SUMS)
    hyper = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    return losses.kto(logps, refs, is_chosen, kl, **hyper)


def responses(distance):
    def loss(logps):
        refs, rewards = RESPONSES["ref_logps"], RESPONSES["rewards"]
        hyper = {"distance": distance, "beta": 0.2, "eta": 1.0}
        return losses.rpo_responses(logps, refs, rewards, **hyper)

    return loss, (RESPONSES["policy_logps"],)


def info_nca(logps):
    """Cross-entropy is the divergence plus the entropy of the target."""
    rewards = RESPONSES["rewards"] + np.array([0.01, 0.0, 0.0, 0.0])
    hyper = {"distance": losses.rpo_bwd_kl, "beta": 0.2, "eta": 1.0}
    kl = losses.rpo_responses(logps, RESPONSES["ref_logps"], rewards, **hyper)
    target = jax.nn.log_softmax(rewards)
    return kl - jnp.sum(jnp.exp(target) * target, axis=-1)


def one_of_four(logps):
    """S-DPO: the first response against the other three."""
    ratios = 0.2 * (logps - RESPONSES["ref_logps"])
    return losses.softmax(ratios[:, :1] - ratios[:, 1:], losses.logistic)


def ranking(logps):
    order = np.argsort(-RESPONSES["rewards"], axis=-1)
    scores = 0.2 * (logps - RESPONSES["ref_logps"])
    return losses.plackett_luce(jnp.take_along_axis(scores, order, axis=-1))


def grouped(group, beta, link=losses.logistic, ref=None):
    labels, negatives = LOGITS[1:]

    def loss(z):
        m = losses.bucket_margins(z, labels, negatives, beta=beta, ref_logits=ref)
        return group(m, link)

    return loss, LOGITS[:1]


def cross_entropy(z):
    """Cross-entropy is the softmax group over all other buckets."""
    others = np.array([[b for b in range(8) if b != y] for y in LOGITS[1]])
    m = losses.bucket_margins(z, LOGITS[1], others, beta=1.0)
    return losses.softmax(m, losses.logistic)


def bucket_orpo(beta):
    labels, negatives = LOGITS[1:]

    def loss(z):
        own = losses.bucket_log_odds(z, labels[:, None])
        lead = own - losses.bucket_log_odds(z, negatives)
        nll = losses.logistic(own[:, 0])  # -log p = -log sigmoid(log-odds).
        return nll + beta * losses.pairwise_mean(lead, losses.logistic)

    return loss, LOGITS[:1]


def of_labels(fn, **hyper):
    return lambda z: fn(z, LOGITS[1], **hyper), LOGITS[:1]


REPO_BASES = {
    "dpo": (SUMS, REF_SUMS, lambda d: losses.logistic(0.1 * d)),
    "ipo": (SUMS, REF_SUMS, partial(losses.squared, target=5.0)),
    "simpo": (MEANS, None, lambda d: losses.target_logistic(2 * d, gamma=0.5)),
    "cpo": (SUMS, None, lambda d: losses.logistic(0.1 * d)),
    "repo_relu": (MEANS, None, partial(losses.relu_margin, gamma=0.4)),
    "hinge": (SUMS, REF_SUMS, lambda d: losses.relu_margin(0.1 * d, gamma=1.0)),
}


def both_sides(base, w, r):
    """The base loss as labelled, and with the label the other way round."""
    _, refs, link = REPO_BASES[base]
    d = w - r - (refs[0] - refs[1] if refs else 0.0)
    own, swapped = link(d), link(-d)
    return (own - w, swapped - r) if base == "cpo" else (own, swapped)  # With NLL.


def re_po(base):
    def loss(w, r):
        reliability = ANNOTATORS["eta"][ANNOTATORS["annotator_id"]]
        sides = both_sides(base, w, r)
        posterior = losses.reliability_posterior(*sides, reliability=reliability)
        return losses.reliability_loss(*sides, posterior=posterior)

    return loss, REPO_BASES[base][0]


SOURCES = GOLDEN["class_re_po_symmetric_noise"]["params"]


def bucket_posterior(z):
    reliability = np.array(SOURCES["eta"])[SOURCES["source_id"]]
    log_odds = losses.bucket_log_odds(z, LOGITS[1][:, None])[:, 0]
    return losses.bucket_reliability_posterior(
        log_odds, reliability=reliability, num_buckets=8
    )


def bucket_re_po(z):
    log_odds = losses.bucket_log_odds(z, LOGITS[1][:, None])[:, 0]
    sides = losses.logistic(log_odds), losses.logistic(-log_odds)
    # -log p and -log(1 - p) are a loss and its swap: p is theirs.
    return losses.reliability_loss(*sides, posterior=bucket_posterior(z))


relu = lambda gamma: partial(losses.relu_margin, gamma=gamma)
orpo_nll = PAIRS["chosen_logps"].sum() / LENGTHS[0].sum()

ENTRIES = {
    "dpo_sigmoid": sums(losses.dpo, beta=0.1),
    "dpo_sigmoid_beta0.5": sums(losses.dpo, beta=0.5),
    "dpo_hinge": sums(losses.hinge, beta=0.1),
    "dpo_hinge_beta1": sums(losses.hinge, beta=1.0),
    "dpo_ipo": means(losses.ipo, beta=0.1),
    "dpo_exo_pair_eps1e-3": sums(losses.exo, beta=0.1, label_smoothing=1e-3),
    "dpo_exo_pair_eps0.1": sums(losses.exo, beta=0.1, label_smoothing=0.1),
    "dpo_nca_pair": sums(losses.nca, beta=0.1),
    "dpo_robust_eps0.1": sums(losses.rdpo, beta=0.1, label_smoothing=0.1),
    "dpo_robust_eps0.3": sums(losses.rdpo, beta=0.1, label_smoothing=0.3),
    "dpo_bco_pair": sums(losses.bco, beta=0.1, shift=0.0),
    "dpo_sppo_hard": sums(losses.sppo, beta=0.1),
    "dpo_aot": sums(losses.aot, beta=0.1, label_smoothing=0.0),
    "dpo_aot_eps0.1": sums(losses.aot, beta=0.1, label_smoothing=0.1),
    "dpo_aot_unpaired": sums(losses.aot_unpaired, beta=0.1, label_smoothing=0.0),
    "dpo_apo_zero": sums(losses.apo_zero, beta=0.1),
    "dpo_apo_down": sums(losses.apo_down, beta=0.1),
    "dpo_discopop_tau0.05": sums(losses.discopop, beta=0.1, tau=0.05),
    "dpo_sft": (token_nll, SUMS),
    "dpo_sigmoid_norm": means(losses.normalized_dpo, beta=0.1),
    "dpo_sigmoid_norm_beta2": means(losses.normalized_dpo, beta=2.0),
    "dpo_sigmoid_forward_kl": scored(losses.forward_kl_scores, 0.1),
    "dpo_sigmoid_js": scored(losses.js_scores, 0.1),
    "dpo_sigmoid_alpha_div0.5": scored(partial(losses.alpha_scores, alpha=0.5), 0.1),
    "dpo_sigmoid_wpo_trl": weighted(
        np.array(GOLDEN["wpo_official_beta0.1"]["weights_unclamped_trl"])
    ),
    "dpo_mpo_0.8sigmoid_0.2bco_1.0sft": (mixture, SUMS),
    "ref_dpo": sums(losses.dpo, beta=0.1),
    "ref_cdpo_eps0.1": sums(losses.cdpo, beta=0.1, label_smoothing=0.1),
    "ref_cdpo_eps0.3": sums(losses.cdpo, beta=0.1, label_smoothing=0.3),
    "ref_ipo_summed_logps": sums(losses.ipo, beta=0.1),
    "ref_dpo_reference_free": free(losses.cpo, beta=0.1),
    "orpo_or_term": free(losses.odds_ratio, MEANS),
    "orpo_total_lambda0.1_tokenmean_nll": free(
        losses.orpo, MEANS, beta=0.1, chosen_nll=np.full(6, -orpo_nll)
    ),
    "orpo_total_alpha1.0_seqmean_nll": free(losses.orpo, MEANS, beta=1.0),
    "orpo_or_term_SUMMED_logps_tunix_pypi017": free(losses.odds_ratio, SUMS),
    "simpo_default_b2_gbr0.25": free(losses.simpo, MEANS, beta=2.0, gamma=0.5),
    "simpo_llama3inst_b2.5_gbr0.55": free(losses.simpo, MEANS, beta=2.5, gamma=1.375),
    "simpo_v2_b10_gbr0.3": free(losses.simpo, MEANS, beta=10.0, gamma=3.0),
    "simpo_b2_gbr0.25_eps0.1": swapping(
        losses.smoothed, losses.logistic, MEANS, 2.0, 0.5, label_smoothing=0.1
    ),
    "simpo_hinge_b2_gbr0.25": margins(relu(1.0), MEANS, 2.0, 0.5),
    "cpo_trl_simpo_b2_gamma0.5": free(losses.simpo, MEANS, beta=2.0, gamma=0.5),
    "cpo_sigmoid_b0.1_noNLL": free(losses.cpo, beta=0.1),
    "cpo_sigmoid_b0.1_eps0.1": swapping(
        losses.smoothed, losses.logistic, SUMS, 0.1, label_smoothing=0.1
    ),
    "cpo_hinge_b0.1": margins(relu(1.0), SUMS, 0.1),
    "cpo_ipo_avg_b0.1": margins(partial(losses.squared, target=5.0), MEANS, 1.0),
    "alphapo_alpha0.25_b2_gamma0.5": free(
        losses.alphapo, MEANS, alpha=0.25, beta=2.0, gamma=0.5
    ),
    "repo_relu_gamma0.25": free(losses.repo_relu, MEANS, gamma=0.25),
    "repo_relu_gamma0.4": free(losses.repo_relu, MEANS, gamma=0.4),
    "repo_relu_gamma0.6": free(losses.repo_relu, MEANS, gamma=0.6),
    "lmpo_step1_official_history": (partial(lmpo, bias_correction=False), MEANS),
    "lmpo_batch_zscore_no_ema": (lmpo_without_state, MEANS),
    "rpo_nemo_ipo_beta0.2": sums(losses.ipo, beta=0.2),
    "rpoK_bwd_beta0.2_eta1.0": responses(losses.rpo_bwd_kl),
    "rpoK_fwd_beta0.2_eta1.0": responses(losses.rpo_fwd_kl),
    "rpoK_sqloo_beta0.2_eta1.0": responses(losses.rpo_sq),
    "nca_official_InfoNCA_beta0.2_T1.0": (info_nca, (RESPONSES["policy_logps"],)),
    "sdpo_official_beta0.2": (one_of_four, (RESPONSES["policy_logps"],)),
    "sdpo_as_cross_entropy": (one_of_four, (RESPONSES["policy_logps"],)),
    "plackett_luce_full_ranking_beta0.2": (ranking, (RESPONSES["policy_logps"],)),
    "group_softmax_sdpo_ref_beta1.0": grouped(
        losses.softmax, 1.0, ref=BUCKETS["ref_logits"]
    ),
    "class_cross_entropy_full": (cross_entropy, LOGITS[:1]),
    "class_dpo_beta0.5_logits_equals_logprobs": grouped(
        losses.pairwise_mean, 0.5, ref=BUCKETS["ref_logits"]
    ),
    "class_orpo_lambda0.1": bucket_orpo(0.1),
    "class_orpo_lambda1.0": bucket_orpo(1.0),
    "gce_q0.7": of_labels(losses.generalized_cross_entropy, q=0.7),
    "gce_q0.1": of_labels(losses.generalized_cross_entropy, q=0.1),
    "sce_a0.1_b1_A-4": of_labels(
        losses.symmetric_cross_entropy, alpha=0.1, beta=1.0, log_zero=-4.0
    ),
    "pref_gce_q0.7_dpo_beta0.1": sums(
        lambda *logps: losses.preference_gce(
            losses.reward_margins(*logps, beta=0.1), q=0.7
        )
    ),
    "wpo_official_beta0.1": weighted(
        np.array(GOLDEN["wpo_official_beta0.1"]["weights"])
    ),
    "kto_beta0.1_kl_from_rejected_mean": (kto, SUMS),
    "class_re_po_symmetric_noise": (bucket_re_po, LOGITS[:1]),
}
ENTRIES |= {
    f"rpo_{kind}_beta{beta}_eta{eta}": sums(
        losses.rpo, *REWARDS, distance=distance, beta=beta, eta=eta
    )
    for kind, distance in (
        ("sq", losses.rpo_sq),
        ("bwd_kl", losses.rpo_bwd_kl),
        ("fwd_kl", losses.rpo_fwd_kl),
    )
    for beta, eta in ((0.2, 1.0), (0.05, 0.5))
}
ENTRIES |= {
    f"group_{name}_beta{beta}": grouped(group, beta, link)
    for name, group, link in (
        ("pairwise_mean", losses.pairwise_mean, losses.logistic),
        ("epo_expected_win", losses.expected_win, losses.logistic),
        ("softmax_sdpo", losses.softmax, losses.logistic),
        ("infonce_mean_neg", losses.softmax_mean, losses.logistic),
        ("hardest", losses.hardest, losses.logistic),
        ("mean_reward", losses.mean_reward, losses.logistic),
    )
    for beta in (1.0, 2.0)
}
ENTRIES |= {
    # RePO has no beta: both are recorded alike.
    f"group_relu_mean_beta{beta}": grouped(losses.pairwise_mean, 1.0, relu(0.2))
    for beta in (1.0, 2.0)
}
ENTRIES |= {f"re_po_{base}": re_po(base) for base in REPO_BASES}

# Tested by name below: no loss, or no gradient.
BY_NAME = {
    "class_log_odds_extreme",
    "group_gradient_weights_beta1.0",
    "re_po_eta_operator_trace",
}


def test_every_entry_is_tested():
    assert set(GOLDEN) == set(ENTRIES) | BY_NAME


def _gradient(name, entry, got, argument):
    """The recorded gradient of one argument, wrt what our function takes."""
    key = list(entry["grad_of_mean_wrt"])[argument]
    wanted = np.reshape(entry["grad_of_mean_wrt"][key], got.shape)
    if key.endswith("_sum") and ENTRIES[name][1] is MEANS:
        return wanted * LENGTHS[argument]  # Recorded wrt sums, ours wrt means.
    return wanted


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ENTRIES)
def test_value_and_gradient(name, dtype):
    loss, inputs = ENTRIES[name]
    entry, is_double = GOLDEN[name], dtype == "float64"
    # The largest gradients are of order 1; a squared loss of 20 loses two digits.
    tolerance = (
        {"rtol": 1e-10, "atol": 1e-10} if is_double else {"rtol": 2e-5, "atol": 2e-6}
    )
    with jax.enable_x64(is_double):
        inputs = [jnp.asarray(value, dtype) for value in inputs]

        @jax.jit
        def losses_and_gradients(*inputs):
            values, pull_back = jax.vjp(loss, *inputs)
            return values, pull_back(jnp.full_like(values, 1 / values.size))

        values, gradients = losses_and_gradients(*inputs)
        assert values.dtype == dtype
        np.testing.assert_allclose(values.mean(), entry["loss_mean"], **tolerance)
        if "per_example" in entry:
            np.testing.assert_allclose(values, entry["per_example"], **tolerance)
        for argument, got in enumerate(gradients):
            wanted = _gradient(name, entry, got, argument)
            np.testing.assert_allclose(got, wanted, **tolerance)


# --- what else the entries record


@pytest.mark.parametrize("base", REPO_BASES)
def test_re_po_posteriors_updates_and_marginal_likelihood(base):
    entry, inputs = GOLDEN[f"re_po_{base}"], REPO_BASES[base][0]
    eta, annotators = ANNOTATORS["eta"], ANNOTATORS["annotator_id"]
    with jax.enable_x64(True):
        sides = both_sides(base, *map(jnp.asarray, inputs))
        reliability = eta[annotators]
        posterior = losses.reliability_posterior(*sides, reliability=reliability)
        np.testing.assert_allclose(posterior, entry["w_posterior"], rtol=1e-10)
        np.testing.assert_allclose(
            jax.nn.sigmoid(sides[1] - sides[0]), entry["p_clean"], rtol=1e-10
        )
        update = partial(
            losses.reliability_update, eta, posterior, annotators, low=0.0, high=1.0
        )
        np.testing.assert_allclose(
            update(rate=1.0), entry["eta_full_batch"], rtol=1e-10
        )
        np.testing.assert_allclose(update(rate=0.1), entry["eta_ema"], rtol=1e-10)
        nll = losses.reliability_nll(*sides, reliability=reliability)
        np.testing.assert_allclose(nll.mean(), entry["marginal_nll_mean"], rtol=1e-10)
        # Fisher's identity: the M-step's gradient is the likelihood's.
        marginal = lambda w, r: losses.reliability_nll(
            *both_sides(base, w, r), reliability=reliability
        )
        got = jax.grad(lambda w: marginal(w, jnp.asarray(inputs[1])).mean())(
            jnp.asarray(inputs[0])
        )
        wanted = next(iter(entry["grad_of_mean_wrt"].values()))
        np.testing.assert_allclose(got, wanted, atol=1e-12, rtol=1e-8)


def test_reliability_drifts_to_one_unless_it_is_clamped_or_has_a_prior():
    entry = GOLDEN["re_po_eta_operator_trace"]
    p = np.array(entry["params"]["p"])
    sides = -np.log(p), -np.log1p(-p)
    annotators = np.zeros(6, int)

    def iterate(steps, **bounds):
        eta = jnp.array([0.5])
        for _ in range(steps):
            posterior = losses.reliability_posterior(*sides, reliability=eta[0])
            eta = losses.reliability_update(
                eta, posterior, annotators, rate=1.0, **bounds
            )
        return float(eta[0])

    with jax.enable_x64(True):
        for steps, wanted in entry["trace"]:
            np.testing.assert_allclose(
                iterate(steps, low=0.0, high=1.0), wanted, rtol=1e-10
            )
        assert iterate(20, low=0.0, high=0.95) == 0.95
        assert iterate(20, low=0.0, high=1.0, prior_right=6, prior_wrong=2) < 0.9


def test_bucket_posteriors():
    entry = GOLDEN["class_re_po_symmetric_noise"]
    with jax.enable_x64(True):
        got = bucket_posterior(jnp.asarray(LOGITS[0]))
        np.testing.assert_allclose(got, entry["w_posterior"], rtol=1e-10)


def test_lmpo_keeps_its_statistics():
    entry = GOLDEN["lmpo_step1_official_history"]
    with jax.enable_x64(True):
        raw = losses.lmpo_margin(*MEANS, *LENGTHS, power=5)
        np.testing.assert_allclose(raw, entry["margin_raw"], rtol=1e-10)
        state = losses.init_lmpo()
        for _ in range(2):
            values, state = losses.lmpo(
                *MEANS, *LENGTHS, state, bias_correction=False, **LMPO
            )
        np.testing.assert_allclose(values, entry["per_example_step2"], rtol=1e-10)
        statistics = float(state.mean), float(state.std)
        np.testing.assert_allclose(statistics, entry["ema_after_step2"], rtol=1e-10)
        # Corrected, a batch that repeats has the statistics of that batch.
        wanted = GOLDEN["lmpo_batch_zscore_no_ema"]["per_example"]
        for corrected in (
            lmpo(*MEANS),
            losses.lmpo(*MEANS, *LENGTHS, state, **LMPO)[0],
        ):
            np.testing.assert_allclose(corrected, wanted, rtol=1e-6)


def test_wpo_weights():
    mean = lambda name, side: PAIRS[f"{side}_{name}"].sum(-1) / PAIRS[f"{side}_len"]
    sides = "chosen", "rejected"
    with jax.enable_x64(True):
        weights = losses.wpo_weights(
            *(mean("token_logps", side) for side in sides),
            *(mean("log_sum_sq_probs", side) for side in sides),
        )
    wanted = GOLDEN["wpo_official_beta0.1"]["weights"]
    np.testing.assert_allclose(weights, wanted, rtol=1e-10)


def test_share_of_pairs_that_repo_still_trains():
    for gamma in (0.25, 0.4, 0.6):
        values = losses.repo_relu(*MEANS, gamma=gamma)
        wanted = GOLDEN[f"repo_relu_gamma{gamma}"]["fraction_active"]
        np.testing.assert_allclose(jnp.mean(values > 0), wanted, rtol=1e-6)


def test_repo_is_the_limit_of_simpo():
    wanted = GOLDEN["repo_relu_gamma0.6"]["limit_check_simpo_over_beta"]
    with jax.enable_x64(True):
        for beta in (1, 10, 100, 1000):
            simpo = losses.simpo(*MEANS, beta=beta, gamma=0.6 * beta).mean() / beta
            np.testing.assert_allclose(simpo, wanted[str(beta)], rtol=1e-10)
        repo = losses.repo_relu(*MEANS, gamma=0.6).mean()
        np.testing.assert_allclose(simpo, repo, rtol=1e-3)


def test_groups_listen_to_the_recorded_negatives():
    entry = GOLDEN["group_gradient_weights_beta1.0"]
    with jax.enable_x64(True):
        margins = losses.bucket_margins(*LOGITS, beta=1.0)
        for name, group in (
            ("pairwise_mean", losses.pairwise_mean),
            ("epo_expected_win", losses.expected_win),
            ("softmax_sdpo", losses.softmax),
        ):
            weights = -jax.grad(lambda m, g=group: g(m, losses.logistic).sum())(margins)
            np.testing.assert_allclose(weights, entry[name], rtol=1e-10)


def test_log_odds_of_extreme_buckets():
    entry = GOLDEN["class_log_odds_extreme"]
    logits, labels, negatives = (
        np.array(entry["params"][name]) for name in ("logits", "labels", "neg")
    )
    for is_double, rtol in ((True, 1e-12), (False, 1e-5)):
        with jax.enable_x64(is_double):
            own = losses.bucket_log_odds(logits, labels[:, None])
            other = losses.bucket_log_odds(logits, negatives)
            np.testing.assert_allclose(own[:, 0], entry["log_odds_label"], rtol=rtol)
            np.testing.assert_allclose(other[:, 0], entry["log_odds_neg"], rtol=rtol)
            if is_double:
                wanted = entry["neg_log_sigmoid_of_diff"]
                cost = losses.logistic(own - other)[:, 0]
                np.testing.assert_allclose(cost, wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("neg_log_sigmoid", losses.logistic),
        ("log_odds", losses.log_odds),
    ],
)
def test_numbers_with_sixty_digits(name, fn):
    for row in DATA["numerics"][name]:
        x = row.get("x", row.get("avg_logp"))
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                fn(jnp.asarray(x)), row["value"], rtol=1e-13, atol=1e-16
            )
        # float32 cannot hold values below its smallest normal number.
        got = fn(jnp.float32(x))
        np.testing.assert_allclose(got, row["value"], rtol=2e-5, atol=1e-7)


def test_numbers_that_peers_publish():
    peers = DATA["peer_published_vectors"]
    torchtune = peers["torchtune_dpo_test"]
    inputs = [
        np.array(torchtune["inputs"][name])
        for name in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    ]
    expected = torchtune["expected"]
    np.testing.assert_allclose(
        losses.dpo(*inputs, beta=0.1), expected["dpo"], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.hinge(*inputs, beta=0.1), expected["rso_hinge"], atol=1e-6
    )
    rng = np.random.RandomState(0)
    policy, reference = (
        rng.normal(0, 5, (8, 4)).sum(-1),
        rng.normal(0, 5, (8, 4)).sum(-1),
    )
    halves = policy[:4], policy[4:], reference[:4], reference[4:]
    for smoothing, wanted in ((0.0, 0.753059), (0.3, 0.925447)):
        got = losses.cdpo(*halves, beta=0.1, label_smoothing=smoothing).mean()
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    logps = -np.abs(np.random.RandomState(0).rand(8, 4))
    where = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]] * 2)
    means = (logps * where).sum(-1) / where.sum(-1)
    got = losses.orpo(means[:4], means[4:], beta=0.1).mean()
    np.testing.assert_allclose(got, 0.671129, rtol=1e-5)
