"""Settings of a training run: one flat dataclass, one field a flag. No JAX."""

import dataclasses
import importlib.util
import math
from typing import Literal

from prefchat_jax.errors import UserError
from prefchat_jax.training import catalogue
from prefchat_jax.training.groups_of_flags import OF_PREFERENCE_LOSS, OF_PREFERENCES

ModelSize = Literal["base", "large", "xlarge", "xxlarge"]
ReportTo = Literal["none", "tensorboard"]
GroupName = Literal[
    "pairwise_mean", "epo", "softmax", "softmax_mean", "hardest", "mean_reward"
]

# Hidden units of the adapter branches of each size.
BRANCH_WIDTHS: dict[str, tuple[int, ...]] = {
    "base": (),
    "large": (512,),
    "xlarge": (768, 1536),
    "xxlarge": (1024, 2048, 3072),
}


def is_checkpoint(weights: str | None) -> bool:
    """Whether --weights is a file of PyTorch, which is imported, and not a run."""
    return weights is not None and weights.endswith((".pth", ".pt"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Train a bucket classifier and write a run directory that chat can load."""

    data: str | None = None
    """JSONL corpus, plain or .gz."""
    data_manifest: str | None = None
    """JSON list of corpus files, instead of --data or beside it."""
    val: str | None = None
    """JSONL rows with labels to validate on, instead of a share of the corpus."""
    preferences: str | None = None
    """JSONL rows with prompt, chosen, rejected: tune the scorer of --weights alone."""
    output: str
    """Run directory to write."""
    meta: str | None = None
    """Also write the run's metadata to this JSON file."""
    weights: str | None = None
    """Start from this run, grown where it is smaller; also the reference policy.
    A .pth of the PyTorch reference is imported into --output first."""
    weights_meta: str | None = None
    """Metadata of that .pth, which are read; --meta is written."""
    train_all: bool = False
    """With --weights: train everything, not only the head and the final norm."""
    frozen_features: bool = False
    """With --weights: train the head on vectors that the frozen encoder makes once,
    without dropout; faster, and much faster in a sweep."""
    resume: bool = False
    """Go on with the run in --output after its last checkpoint."""
    report_to: ReportTo = "none"
    """Besides metrics.jsonl: event files of TensorBoard in the run's folder."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to train; auto takes what JAX finds first."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products of training steps; all else, and what is validated and
    saved, is float32."""
    compile_cache: bool = True
    """Keep what was compiled in ~/.cache, for the next command to begin sooner."""
    profile: bool = False
    """Trace some steps, after compilation, to OUTPUT/profile, for Perfetto."""
    seed: int = 0
    """Of the parameters, the split, the order of rows, dropout and negatives."""
    data_seed: int | None = None
    """Of the clusters, the split and the sentences of replies alone [as --seed]."""

    num_buckets: int = 10
    """Clusters of replies, where no row has a label."""
    split_mode: Literal["stratified", "random"] = "stratified"
    """Draw validation rows from each class, or from all rows."""
    val_split: float = 0.05
    """Share of the rows to validate on; 0 validates on none."""
    balanced_sampler: bool = False
    """Draw rows with replacement, all classes equally often."""

    model_size: ModelSize | None = None
    """0, 1, 2 or 3 adapter branches on the head [large, or as --weights]."""
    expansion_dim: int | None = None
    """Hidden units of the first branch [large 512, xlarge 768, xxlarge 1024]."""
    extra_expansion_dim: int | None = None
    """Hidden units of the second branch [xlarge 1536, xxlarge 2048]."""
    third_expansion_dim: int | None = None
    """Hidden units of the third branch [xxlarge 3072]."""

    pref_objective: str = "sigmoid"
    """A name that `prefchat losses` explains, or module:function of your own."""
    pref_weight: float = 0.2
    """Weight of the preference loss; 0 is cross-entropy alone, and with --preferences
    the loss of finding the chosen replies among others."""
    pref_beta: float | None = None
    """Reward scale of the margins [by objective]; some have none."""
    pref_margin: float | None = None
    """Target margin, in rpo the reward of the gold bucket [by objective]."""
    pref_group_size: int = 4
    """Negatives of one example, at most the number of buckets - 1."""
    pref_group_estimator: GroupName = "pairwise_mean"
    """How the negatives of one example make one loss."""
    hard_negative_ratio: float = 0.6
    """Share of negatives with the highest wrong logits; the rest is uniform."""
    false_negative_margin: float | None = None
    """Skip negatives that lead the gold bucket by more logits than this [none]."""
    sampling_correction: bool = False
    """With softmax: make the drawn negatives stand for all wrong buckets."""
    approximate_negatives: bool = False
    """With hundreds of buckets: find hard negatives faster, and miss a few."""
    pref_noise: Literal["none", "confidence", "smoothing", "robust", "re_po"] = "none"
    """Wrong labels; re_po learns which to trust by the rows' `annotator` or file."""
    pref_noise_rate: float | None = None
    """Share of wrong labels that smoothing, robust and re_po start from [0.1]."""
    adaptive_pref_weighting: bool = False
    """The same as --pref_noise confidence."""
    length_control: Literal["none", "matched", "projected"] = "none"
    """With --preferences: train on length-matched pairs, or beside length's share."""
    pref_warmup_epochs: float = 1.0
    """Epochs over which the preference weight grows from 0."""

    epochs: int | None = None
    """Passes over the training rows [30; fewer where that is over 1,350 steps; over
    --preferences 10]."""
    batch_size: int | None = None
    """Rows of a micro-batch [256; less for a corpus of under 4,096 rows]."""
    grad_accum_steps: int = 1
    """Micro-batches of one optimizer step."""
    lr: float = 6e-3
    """Peak learning rate; an import with --train_all wants about 5e-4."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: down to 0, or constant."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up [5 % of the run]."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of the kernels."""
    grad_clip_norm: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""
    label_smoothing: float | None = None
    """Share of the target that cross-entropy spreads over all buckets [0.05; none
    with --gce_q]."""
    gce_q: float | None = None
    """In (0, 1]: generalised cross-entropy, which wrong labels move less than
    cross-entropy [none]; 1 is the mean absolute error, the authors use 0.7."""
    logit_adjustment: float = 0.0
    """For classes of unequal size: adds this times the log of a class's share of the
    rows to its logit, in training alone; the authors use 1."""
    ema_decay: float = 0.0
    """Decay of the weight average; 0 keeps none."""
    disable_ema_eval: bool = False
    """With --ema_decay: validate and save the raw weights, not the average."""
    early_stop_patience: int = 0
    """Epochs without a lower validation loss (on --preferences: without rewards that
    order more validation pairs) before training stops; 0 never."""
    learn_from_responses: bool = True
    """Also train on each sentence of a reply as if it asked for that reply."""
    max_candidates_per_bucket: int = 16
    """Stored question-reply pairs that a bucket pools, the most frequent first."""

    scorer_epochs: int | None = None
    """Passes of the response scorer [as many as 1,500 steps need, 1 to 8]; 0 none."""
    scorer_width: int | None = None
    """Size of the scorer's vectors [128, or as --weights]."""
    scorer_batch_size: int | None = None
    """Rows whose replies compete [512; less for a corpus of under 8,192 rows]."""
    scorer_lr: float = 1e-2
    """Peak learning rate of the scorer."""
    scorer_group_estimator: GroupName = "softmax"
    """How the wrong replies of one row make one loss of the scorer."""
    scorer_hard_negatives: int = 0
    """Wrong replies of each row that share words with the right one."""

    def __post_init__(self):
        _check_range(self, 0, 1, "label_smoothing", "hard_negative_ratio")
        _check_range(self, 0, 0.99999, "ema_decay", "val_split")
        _check_range(
            self,
            0,
            math.inf,
            "logit_adjustment",
            "pref_weight",
            "pref_warmup_epochs",
            "weight_decay",
            "grad_clip_norm",
            "early_stop_patience",
            "warmup_steps",
            "scorer_epochs",
            "scorer_hard_negatives",
        )
        at_least_one = ("epochs", "batch_size", "grad_accum_steps", "pref_group_size")
        _check_range(self, 1, math.inf, *at_least_one, "max_candidates_per_bucket")
        _check_range(self, 1, math.inf, "scorer_width", "expansion_dim")
        _check_range(self, 1, math.inf, "extra_expansion_dim", "third_expansion_dim")
        _check_range(self, 2, math.inf, "num_buckets", "scorer_batch_size")
        _check_range(self, 1e-12, math.inf, "lr", "scorer_lr", "pref_beta")
        _check_range(self, 0, math.inf, "pref_margin", "false_negative_margin")
        _check_range(self, 1e-12, 0.49999, "pref_noise_rate")
        _check_range(self, 1e-12, 1, "gce_q")
        _check_range(self, 0, 2**31 - 1, "seed", "data_seed")
        self._check_cross_entropy()
        self._check_objective()
        self._check_noise()
        self._check_weight()
        if self.weights_meta and not is_checkpoint(self.weights):
            raise UserError(
                f"--weights_meta {self.weights_meta}: needs a .pth as --weights; a run "
                "has its own."
            )
        if self.frozen_features and (not self.weights or self.train_all):
            raise UserError(
                "--frozen_features needs --weights, whose encoder is frozen, without "
                "--train_all."
            )
        self._check_preferences()
        self._check_report_to()
        if self.model_size or not self.weights:
            self.branch_widths()
        if self.disable_ema_eval and self.ema_decay == 0:
            raise UserError("--disable_ema_eval needs --ema_decay above 0.")

    @property
    def head_only(self) -> bool:
        """Whether the encoder stays as it is, but for its final norm."""
        return bool(self.weights) and not self.train_all

    def branch_widths(self, source: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Hidden units of the branches: as the flags say, or else the size's own.

        Args:
          source: the branches of --weights, which stay as wide as they are, and are
            all there is without a size.

        Raises:
          UserError: a width is wrong, or for a branch that is not there.
        """
        if self.weights and not self.model_size:
            widths, which = source, f"--weights {self.weights}"
        else:
            size = self.model_size or "large"
            pairs = zip(BRANCH_WIDTHS[size], (*source, 0, 0, 0), strict=False)
            widths, which = tuple(map(max, pairs)), f"--model_size {size}"
        given = {
            "expansion_dim": self.expansion_dim,
            "extra_expansion_dim": self.extra_expansion_dim,
            "third_expansion_dim": self.third_expansion_dim,
        }
        for (name, value), branch in zip(given.items(), range(3), strict=True):
            if value is not None and branch >= len(widths):
                raise UserError(
                    f"--{name} {value}: {which} has {len(widths)} branches."
                )
        wider = dict(enumerate(given.values()))
        return tuple(wider.get(i) or width for i, width in enumerate(widths))

    def corpus_seed(self) -> int:
        """The seed of what becomes of the data before training, by either flag."""
        return self.seed if self.data_seed is None else self.data_seed

    def low_dtype(self) -> str | None:
        """What training computes in; None where that is as its parameters are."""
        return None if self.compute_dtype == "float32" else self.compute_dtype

    def smoothing(self) -> float:
        """The label smoothing, as asked or by default."""
        if self.label_smoothing is None:
            return 0.05 if self.gce_q is None else 0.0
        return self.label_smoothing

    def noise(self) -> str:
        """The noise model, by either flag."""
        return "confidence" if self.adaptive_pref_weighting else self.pref_noise

    def _check_cross_entropy(self) -> None:
        if self.gce_q is not None and self.label_smoothing:
            raise UserError(
                f"--label_smoothing {self.label_smoothing:g} is for cross-entropy, "
                "which --gce_q takes the place of: give one of them."
            )
        if self.logit_adjustment and self.balanced_sampler:
            raise UserError(
                "--logit_adjustment and --balanced_sampler make up for the sizes of "
                "the classes twice: give one of them."
            )

    def _check_objective(self) -> None:
        catalogue.hyper_parameters(
            self.pref_objective, beta=self.pref_beta, margin=self.pref_margin
        )
        if self.sampling_correction and self.pref_group_estimator != "softmax":
            raise UserError(
                "--sampling_correction needs --pref_group_estimator softmax."
            )
        if self.sampling_correction and self.hard_negative_ratio == 1:
            raise UserError(
                "--sampling_correction needs --hard_negative_ratio below 1: negatives "
                "that are all hard say nothing of the others."
            )

        if self.approximate_negatives and self.sampling_correction:
            raise UserError(
                "--approximate_negatives: --sampling_correction needs the exact ones."
            )
        if self.approximate_negatives and not self.hard_negative_ratio:
            raise UserError(
                "--approximate_negatives needs --hard_negative_ratio above 0."
            )

    def _check_noise(self) -> None:
        if self.adaptive_pref_weighting and self.pref_noise not in (
            "none",
            "confidence",
        ):
            raise UserError(
                f"--adaptive_pref_weighting is --pref_noise confidence, and not "
                f"{self.pref_noise}: give one of them."
            )
        if self.pref_noise_rate is not None and not catalogue.NOISE[self.noise()].rate:
            raise UserError(
                "--pref_noise_rate needs --pref_noise smoothing, robust or re_po."
            )

    def _check_weight(self) -> None:
        """Raises `UserError` for flags of a loss that has no weight.

        Epochs over --preferences are compared by that loss, also without a weight.
        """
        if self.pref_weight or self.preferences:
            return
        for name in OF_PREFERENCE_LOSS:
            value = getattr(self, name)
            if value != getattr(FinetuneConfig, name):
                given = "" if value is True else f" {value}"
                raise UserError(f"--{name}{given} needs --pref_weight above 0.")

    def _check_preferences(self) -> None:
        """Raises `UserError` for flags that would be ignored."""
        if not self.preferences:
            if self.length_control != "none":
                raise UserError("--length_control is for --preferences: give both.")
            return
        if not self.weights:
            raise UserError("--preferences tunes a run: name it with --weights RUN.")
        if self.resume:
            raise UserError(
                "--resume: tuning on --preferences is short and saves nothing before "
                "its end: leave --resume out, and it starts again."
            )
        for field in dataclasses.fields(self):
            if field.name in OF_PREFERENCES:
                continue
            if getattr(self, field.name) != field.default:
                raise UserError(
                    f"--{field.name} has no meaning with --preferences, which tunes "
                    "the response scorer alone: leave it out."
                )

    def _check_report_to(self) -> None:
        needed = self.report_to == "tensorboard"
        if needed and not importlib.util.find_spec("tensorboardX"):
            raise UserError(
                "--report_to tensorboard needs tensorboardX: pip install "
                "'prefchat-jax[tensorboard]'."
            )


def _check_range(config: object, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            bound = (
                f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            )
            finite = ", and finite" if value == math.inf == high else ""
            raise UserError(f"--{name} {value:g}: must be {bound}{finite}.")
