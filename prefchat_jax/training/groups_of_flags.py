"""Which flags of `finetune` belong together: those of a kind of training, or a loss."""

# Flags that --preferences reads.
OF_PREFERENCES = (
    "preferences",
    "data",
    "data_manifest",
    "output",
    "meta",
    "report_to",
    "weights",
    "device",
    "compile_cache",
    "compute_dtype",
    "seed",
    "val_split",
    "pref_objective",
    "pref_weight",
    "pref_beta",
    "pref_margin",
    "pref_noise",
    "pref_noise_rate",
    "adaptive_pref_weighting",
    "length_control",
    "epochs",
    "batch_size",
    "scorer_lr",
    "early_stop_patience",
)

# Flags of the preference loss of buckets, which a weight of 0 leaves out.
OF_PREFERENCE_LOSS = (
    "pref_objective",
    "pref_beta",
    "pref_margin",
    "pref_group_size",
    "pref_group_estimator",
    "pref_noise",
    "pref_noise_rate",
    "pref_warmup_epochs",
    "adaptive_pref_weighting",
    "hard_negative_ratio",
    "false_negative_margin",
    "sampling_correction",
    "approximate_negatives",
)
