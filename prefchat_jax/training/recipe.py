"""The recipe of a run: what its flags and its corpus make of it."""

import numpy as np

from prefchat_jax import losses
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.losses.negatives import mines_in_blocks
from prefchat_jax.models.classifier import BucketModel
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus
from prefchat_jax.training.loop import MOST_AT_ONCE, LoopConfig, Progress
from prefchat_jax.training.objective import Objective
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.preference import make_preference
from prefchat_jax.training.steps import Recipe


def make_recipe(
    config: FinetuneConfig, model: BucketModel, corpus: Corpus, progress: Progress
) -> tuple[Recipe, LoopConfig]:
    """Turns flags into what compiles and what loops."""
    if config.early_stop_patience and not len(corpus.val.ids):
        progress.notice("--early_stop_patience needs validation rows: there are none")
    plan = make_plan(config, corpus)
    steps_per_epoch = plan.optimizer_steps
    epochs = config.epochs or min(30, max(4, 1350 // steps_per_epoch))
    if config.profile and epochs == 1 and plan.micro_batches <= MOST_AT_ONCE:
        progress.notice("--profile: nothing runs after compilation: train two epochs")
    steps = epochs * steps_per_epoch
    recipe = Recipe(
        model=model,
        objective=_objective(config, corpus, progress),
        optimizer=OptimizerConfig(
            num_steps=steps,
            warmup_steps=_warmup_steps(config, steps, progress),
            lr=config.lr,
            schedule=config.lr_schedule,
            weight_decay=config.weight_decay,
            clip_norm=config.grad_clip_norm or None,
            accumulate=config.grad_accum_steps,
            ema_decay=config.ema_decay or None,
            head_only=config.head_only,
        ),
        compute_dtype=config.low_dtype(),
    )
    loop = LoopConfig(
        epochs=epochs,
        patience=config.early_stop_patience,
        ramp_epochs=config.pref_warmup_epochs,
        use_ema=config.ema_decay > 0 and not config.disable_ema_eval,
        seed=config.seed,
        profile=config.profile,
    )
    return recipe, loop


def make_plan(config: FinetuneConfig, corpus: Corpus) -> EpochPlan:
    """The order in which a run reads its rows."""
    return EpochPlan(
        corpus.train.labels,
        batch_size=_batch_size(config, len(corpus.train.labels)),
        accumulate=config.grad_accum_steps,
        balanced=config.balanced_sampler,
        seed=config.seed,
    )


def _batch_size(config: FinetuneConfig, rows: int) -> int:
    """As asked, or such that also a small corpus has 16 steps in an epoch."""
    if config.batch_size is not None:
        return min(config.batch_size, rows)
    return min(256, max(16, 1 << (rows // 16).bit_length() - 1)) if rows > 32 else rows


def _objective(config: FinetuneConfig, corpus: Corpus, progress: Progress) -> Objective:
    num_buckets = len(corpus.labelled.buckets.labels)
    group_size = min(config.pref_group_size, num_buckets - 1)
    if group_size < config.pref_group_size and config.pref_weight > 0:
        progress.notice(
            f"--pref_group_size {config.pref_group_size} cut to {group_size}: there "
            f"are {num_buckets} buckets"
        )
    if config.approximate_negatives and not mines_in_blocks(num_buckets, group_size):
        progress.notice(
            f"--approximate_negatives changes nothing: {num_buckets} buckets are too "
            f"few for {group_size} negatives"
        )
    preference = make_preference(
        config.pref_objective,
        group=config.pref_group_estimator,
        noise=config.noise(),
        beta=config.pref_beta,
        margin=config.pref_margin,
        noise_rate=config.pref_noise_rate or 0.1,
        num_negatives=group_size,
        hard_ratio=config.hard_negative_ratio,
        slack=config.false_negative_margin,
        correct_sampling=config.sampling_correction,
        approximate_negatives=config.approximate_negatives,
        num_sources=len(corpus.sources),
    )
    adjustment = None
    if config.logit_adjustment:
        counts = np.bincount(corpus.train.labels, minlength=num_buckets)
        adjustment = losses.logit_adjustment(counts, tau=config.logit_adjustment)
    return Objective(
        label_smoothing=config.smoothing(),
        gce_q=config.gce_q,
        adjustment=adjustment,
        weight=config.pref_weight or None,
        preference=preference,
    )


def _warmup_steps(config: FinetuneConfig, steps: int, progress: Progress) -> int:
    if config.warmup_steps is None:
        return steps // 20
    if config.warmup_steps < steps:
        return config.warmup_steps
    cut = steps // 10
    progress.notice(
        f"--warmup_steps {config.warmup_steps} cut to {cut}: the run has {steps} steps"
    )
    return cut
