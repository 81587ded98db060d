"""Margins of a batch: how far the gold buckets lead over their negatives.

Each takes the preference's settings, logits `[batch, C]`, targets, negatives
`[batch, K]` and the state, and returns `[batch, K]` margins and the new state.
"""

from collections.abc import Callable

import jax

from prefchat_jax import losses
from prefchat_jax.training.targets import PreferenceState

Margins = Callable[..., tuple[jax.Array, PreferenceState]]


def policy_margins(preference, logits, targets, negatives, state):
    """Implicit rewards, `beta log pi / pi_ref`."""
    margins = losses.bucket_margins(
        logits,
        targets.labels,
        negatives,
        beta=preference.beta,
        ref_logits=targets.ref_logits,
    )
    return margins, state


def odds_margins(preference, logits, targets, negatives, state):
    """ORPO: log-odds."""
    del preference
    gold = losses.bucket_log_odds(logits, targets.labels[:, None])
    return gold - losses.bucket_log_odds(logits, negatives), state


def running_margins(preference, logits, targets, negatives, state):
    """LMPO: rewards less a running score; a bucket is a response of one token."""
    margins, _ = policy_margins(preference, logits, targets, negatives, state)
    chosen = losses.bucket_logps(logits, targets.labels[:, None])
    rejected = losses.bucket_logps(logits, negatives)
    # Its authors' k, decay and weight.
    raw = losses.lmpo_margin(chosen, rejected, 1, 1, power=5)
    where = None if targets.where is None else targets.where[:, None]
    offset, lmpo = losses.lmpo_offset(raw, state.lmpo, decay=0.9, where=where)
    return margins - 0.2 * offset, state._replace(lmpo=lmpo)
