"""Preference losses as pure functions that compose.

An objective is margins, a group over a link, and weights or a noise model:

>>> import jax, jax.numpy as jnp
>>> from prefchat_jax import losses
>>> logits = jnp.array([[2.0, 0.5, -1.0, 1.0]])
>>> labels = jnp.array([0])
>>> negatives = losses.mine_negatives(
...     jax.random.key(0), logits, labels, num_negatives=2, hard_ratio=1.0)
>>> margins = losses.bucket_margins(logits, labels, negatives.buckets, beta=2.0)
>>> losses.expected_win(margins, losses.logistic).round(4)
Array([0.087], dtype=float32)

On the log-probs of whole responses, each paper is one function:

>>> losses.dpo(-1.0, -3.0, -2.0, -2.0, beta=0.1).round(4)
Array(0.5981, dtype=float32)

Nothing here reduces over the batch or logs; what couples a batch or has a state
says so. Repo, re_po and rpo differ by a letter: `repo_relu` is RePO, `reliability_*`
is RE-PO, `rpo` is RPO.
"""

import types

from prefchat_jax.losses.buckets import bucket_log_odds as bucket_log_odds
from prefchat_jax.losses.buckets import bucket_logps as bucket_logps
from prefchat_jax.losses.buckets import bucket_margins as bucket_margins
from prefchat_jax.losses.buckets import (
    generalized_cross_entropy as generalized_cross_entropy,
)
from prefchat_jax.losses.buckets import logit_adjustment as logit_adjustment
from prefchat_jax.losses.buckets import (
    symmetric_cross_entropy as symmetric_cross_entropy,
)
from prefchat_jax.losses.divergences import alpha_scores as alpha_scores
from prefchat_jax.losses.divergences import f_dpo as f_dpo
from prefchat_jax.losses.divergences import forward_kl_scores as forward_kl_scores
from prefchat_jax.losses.divergences import js_scores as js_scores
from prefchat_jax.losses.given_rewards import Distance as Distance
from prefchat_jax.losses.given_rewards import rpo as rpo
from prefchat_jax.losses.given_rewards import rpo_bwd_kl as rpo_bwd_kl
from prefchat_jax.losses.given_rewards import rpo_fwd_kl as rpo_fwd_kl
from prefchat_jax.losses.given_rewards import rpo_margin as rpo_margin
from prefchat_jax.losses.given_rewards import rpo_responses as rpo_responses
from prefchat_jax.losses.given_rewards import rpo_sq as rpo_sq
from prefchat_jax.losses.groups import Group as Group
from prefchat_jax.losses.groups import expected_win as expected_win
from prefchat_jax.losses.groups import hardest as hardest
from prefchat_jax.losses.groups import mean_reward as mean_reward
from prefchat_jax.losses.groups import pairwise_mean as pairwise_mean
from prefchat_jax.losses.groups import plackett_luce as plackett_luce
from prefchat_jax.losses.groups import softmax as softmax
from prefchat_jax.losses.groups import softmax_mean as softmax_mean
from prefchat_jax.losses.links import Link as Link
from prefchat_jax.losses.links import exo_pair as exo_pair
from prefchat_jax.losses.links import log_ratio_modulated as log_ratio_modulated
from prefchat_jax.losses.links import logistic as logistic
from prefchat_jax.losses.links import preference_gce as preference_gce
from prefchat_jax.losses.links import relu_margin as relu_margin
from prefchat_jax.losses.links import squared as squared
from prefchat_jax.losses.links import target_logistic as target_logistic
from prefchat_jax.losses.logprobs import chunked_token_logps as chunked_token_logps
from prefchat_jax.losses.logprobs import log_collision as log_collision
from prefchat_jax.losses.logprobs import mean_sequence_logps as mean_sequence_logps
from prefchat_jax.losses.logprobs import sequence_logps as sequence_logps
from prefchat_jax.losses.logprobs import token_logps as token_logps
from prefchat_jax.losses.metrics import preference_metrics as preference_metrics
from prefchat_jax.losses.negatives import Negatives as Negatives
from prefchat_jax.losses.negatives import mine_negatives as mine_negatives
from prefchat_jax.losses.negatives import plausible_negatives as plausible_negatives
from prefchat_jax.losses.noise import confidence_weights as confidence_weights
from prefchat_jax.losses.noise import smoothed as smoothed
from prefchat_jax.losses.noise import unbiased as unbiased
from prefchat_jax.losses.noise import wpo_weights as wpo_weights
from prefchat_jax.losses.pointwise import apo_down as apo_down
from prefchat_jax.losses.pointwise import apo_zero as apo_zero
from prefchat_jax.losses.pointwise import bco as bco
from prefchat_jax.losses.pointwise import kto as kto
from prefchat_jax.losses.pointwise import nca as nca
from prefchat_jax.losses.pointwise import sppo as sppo
from prefchat_jax.losses.reference import cdpo as cdpo
from prefchat_jax.losses.reference import discopop as discopop
from prefchat_jax.losses.reference import dpo as dpo
from prefchat_jax.losses.reference import exo as exo
from prefchat_jax.losses.reference import hinge as hinge
from prefchat_jax.losses.reference import ipo as ipo
from prefchat_jax.losses.reference import normalized_dpo as normalized_dpo
from prefchat_jax.losses.reference import rdpo as rdpo
from prefchat_jax.losses.reference import reward_margins as reward_margins
from prefchat_jax.losses.reference_free import alphapo as alphapo
from prefchat_jax.losses.reference_free import cpo as cpo
from prefchat_jax.losses.reference_free import log_odds as log_odds
from prefchat_jax.losses.reference_free import odds_ratio as odds_ratio
from prefchat_jax.losses.reference_free import orpo as orpo
from prefchat_jax.losses.reference_free import repo_relu as repo_relu
from prefchat_jax.losses.reference_free import simpo as simpo
from prefchat_jax.losses.reliability import (
    bucket_reliability_posterior as bucket_reliability_posterior,
)
from prefchat_jax.losses.reliability import reliability_loss as reliability_loss
from prefchat_jax.losses.reliability import reliability_nll as reliability_nll
from prefchat_jax.losses.reliability import (
    reliability_posterior as reliability_posterior,
)
from prefchat_jax.losses.reliability import reliability_update as reliability_update
from prefchat_jax.losses.running_margin import LmpoState as LmpoState
from prefchat_jax.losses.running_margin import init_lmpo as init_lmpo
from prefchat_jax.losses.running_margin import lmpo as lmpo
from prefchat_jax.losses.running_margin import lmpo_margin as lmpo_margin
from prefchat_jax.losses.running_margin import lmpo_offset as lmpo_offset
from prefchat_jax.losses.transport import aot as aot
from prefchat_jax.losses.transport import aot_unpaired as aot_unpaired

# What is imported above: a loss is one line there, and none here.
__all__ = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
)
