"""Catalogue: the names of preference objectives, groups and noise models. No JAX.

`preference.py` has the functions of the same names; `prefchat losses` prints this.
"""

from typing import NamedTuple

from prefchat_jax.errors import UserError


class NamedObjective(NamedTuple):
    """What `--pref_objective` may be.

    Attributes:
      equation: of the loss of one negative; d is how far the gold logit leads over
        it, less the same lead in the reference policy where there is one.
      paper: where it comes from.
      beta: default of `--pref_beta`; None where there is none.
      margin: default of `--pref_margin`; None where there is none.
      reference: whether it takes a reference policy.
    """

    equation: str
    paper: str
    beta: float | None = None
    margin: float | None = None
    reference: bool = False


class NamedPart(NamedTuple):
    """What `--pref_group_estimator` or `--pref_noise` may be."""

    equation: str
    paper: str = ""
    rate: bool = False  # Whether it takes --pref_noise_rate.


OBJECTIVES = {
    "sigmoid": NamedObjective(
        "-log sigmoid(beta d)", "DPO, arXiv 2305.18290", beta=2.0
    ),
    "repo_relu": NamedObjective(
        "max(0, margin - d)", "RePO, arXiv 2503.07426", margin=0.2
    ),
    "dpo": NamedObjective(
        "-log sigmoid(beta d)",
        "DPO, arXiv 2305.18290",
        beta=2.0,
        reference=True,
    ),
    "ipo": NamedObjective(
        "(d - 1 / (2 beta))^2",
        "IPO, arXiv 2310.12036",
        beta=0.1,
        reference=True,
    ),
    "hinge": NamedObjective(
        "max(0, 1 - beta d)",
        "SLiC, RSO, arXiv 2309.06657",
        beta=1.0,
        reference=True,
    ),
    "orpo": NamedObjective("-log sigmoid(lead in log-odds)", "ORPO, arXiv 2403.07691"),
    "simpo": NamedObjective(
        "-log sigmoid(beta d - margin)",
        "SimPO, arXiv 2405.14734",
        beta=2.0,
        margin=0.5,
    ),
    "lmpo": NamedObjective(
        "-log sigmoid(beta d - 0.2 z - margin)",
        "LMPO, arXiv 2502.14643",
        beta=2.5,
        margin=1.0,
    ),
    "rpo": NamedObjective(
        "KL(margin || beta d), of sigmoids",
        "RPO, arXiv 2502.00203",
        beta=0.2,
        margin=1.0,
        reference=True,
    ),
    "rpo_fwd_kl": NamedObjective(
        "KL(beta d || margin), of sigmoids",
        "RPO, arXiv 2502.00203",
        beta=0.2,
        margin=1.0,
        reference=True,
    ),
    "rpo_sq": NamedObjective(
        "(beta d - margin)^2",
        "RPO, arXiv 2502.00203",
        beta=0.2,
        margin=1.0,
        reference=True,
    ),
    "exo": NamedObjective(
        "KL(beta d || 0.999), of sigmoids",
        "EXO, arXiv 2402.00856",
        beta=2.0,
        reference=True,
    ),
    "discopop": NamedObjective(
        "logistic to exponential in beta d",
        "DiscoPOP, arXiv 2406.08414",
        beta=0.1,
        reference=True,
    ),
}

USERS = NamedObjective("your own, of margins beta d", "", beta=2.0)

GROUPS = {
    "pairwise_mean": NamedPart("mean_k l(m_k)", "DPO on all pairs"),
    "epo": NamedPart("-log mean_k exp(-l(m_k)), the expected win", "the seed system"),
    "softmax": NamedPart("l(-log sum_k exp(-m_k))", "S-DPO, arXiv 2406.09215"),
    "softmax_mean": NamedPart("l(-log mean_k exp(-m_k))", "InfoNCE, negatives meaned"),
    "hardest": NamedPart("l(min_k m_k)"),
    "mean_reward": NamedPart("l(mean_k m_k)"),
}

NOISE = {
    "none": NamedPart("L"),
    "confidence": NamedPart("clip(pi(gold), 0.2, 1) L", "the seed system"),
    "smoothing": NamedPart(
        "(1 - rate) L + rate S", "cDPO, ericmitchell.ai/cdpo.pdf", True
    ),
    "robust": NamedPart(
        "((1 - rate) L - rate S) / (1 - 2 rate)", "rDPO, arXiv 2403.00409", True
    ),
    "re_po": NamedPart(
        "-log(r p + (1 - r)(1 - p)), p = sigmoid(S - L), r learned for each source; "
        "cross-entropy counts by the posterior",
        "RE-PO, arXiv 2509.24159",
        True,
    ),
}

# Flags of cross-entropy, which the preference loss is added to.
CROSS_ENTROPY = {
    "label_smoothing": NamedPart("-(1 - e) log p(gold) - e mean_c log p(c)"),
    "gce_q": NamedPart(
        "(1 - p(gold)^q) / q, for wrong labels", "GCE, arXiv 1805.07836"
    ),
    "logit_adjustment": NamedPart(
        "p = softmax(z + tau log share of rows), in training, for unequal classes",
        "logit adjustment, arXiv 2007.07314",
    ),
}


def hyper_parameters(
    name: str, *, beta: float | None, margin: float | None
) -> tuple[float, float]:
    """The beta and the target margin of an objective: as given, or its defaults.

    Where it has none they are 1 and 0, which change nothing.

    Raises:
      UserError: no such objective, or it has none of what was given.
    """
    row = OBJECTIVES.get(name, USERS)
    if row is USERS and ":" not in name:
        raise UserError(
            f"--pref_objective {name}: use {', '.join(OBJECTIVES)}, or "
            "module:function for your own function of margins [..., K]."
        )
    for flag, given, default in (
        ("--pref_beta", beta, row.beta),
        ("--pref_margin", margin, row.margin),
    ):
        if given is not None and default is None:
            raise UserError(f"{flag}: {name} has none, as `prefchat losses` shows.")
    return _first(beta, row.beta, 1.0), _first(margin, row.margin, 0.0)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
