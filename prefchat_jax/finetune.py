"""Finetune: a corpus to a run directory that chat can load."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

import prefchat_jax
from prefchat_jax.chat.session import Chat
from prefchat_jax.datasets.labels import Labelled, assign_buckets
from prefchat_jax.datasets.records import Records, corpus_paths, read_records
from prefchat_jax.datasets.responses import response_rows
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation import answer_threshold
from prefchat_jax.indexing import build_store, is_store_of
from prefchat_jax.models.classifier import ModelConfig, Params, init_params
from prefchat_jax.text.dialogue import Example
from prefchat_jax.text.features import (
    HASH_VERSION,
    Bags,
    FeatureConfig,
    Featurizer,
    trim,
)
from prefchat_jax.training import catalogue
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.loop import Fit, LoopConfig, Progress, fit
from prefchat_jax.training.objective import Objective
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.preference import make_preference
from prefchat_jax.training.run_directory import (
    FORMAT,
    RunDirectory,
    write_json,
)
from prefchat_jax.training.steps import Recipe, Rows, predict

_BUCKET_WEIGHTS = (1.0, 0.5, 0.25, 0.1, 2.0, 4.0)  # Ties go to the first.
_MEASURED = 200  # Validation rows that are asked.
_PRIOR, _PRIOR_ROWS = 0.25, 20  # Confidence threshold before any row is asked.
_REPLIES = "sentences of replies"  # The source of rows that are no questions.


class Corpus(NamedTuple):
    """Featurised training and validation rows, and what they came from."""

    train: Rows
    val: Rows
    train_rows: list[Example]
    val_rows: list[Example]
    labelled: Labelled
    featurizer: Featurizer
    fingerprint: str
    sources: list[str]


class Result(NamedTuple):
    """What `finetune` leaves besides the run directory."""

    run: RunDirectory
    fit: Fit
    seconds: float
    corpus: Corpus


class Silent:
    """Progress that shows nothing."""

    def notice(self, text: str) -> None:
        """A line that the user should know."""

    def chunk(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Some micro-batches are through."""

    def epoch(self, metrics: dict[str, float]) -> None:
        """An epoch was validated."""


def finetune(config: FinetuneConfig, progress: Progress = Silent()) -> Result:
    """Trains a bucket classifier and writes its run directory.

    Raises:
      UserError: bad data or settings; nothing half-written is left.
    """
    start = time.perf_counter()
    run = _open_run(config)
    corpus = load_corpus(config, progress)
    recipe, loop = make_recipe(config, corpus, progress)
    params = _initial_params(config, recipe.model, corpus)
    corpus = corpus._replace(
        train=_with_reference(config, recipe, params, corpus.train, progress)
    )
    if config.resume:
        _check_same_run(run, config, corpus)
    else:
        _write_description(run, config, corpus, recipe)
    plan = make_plan(config, corpus)
    result = fit(run, recipe, loop, params, corpus.train, corpus.val, plan, progress)
    finish_run(run, result, corpus)
    if config.meta:
        write_json(config.meta, _metadata(run, result))
    return Result(run, result, time.perf_counter() - start, corpus)


def load_corpus(config: FinetuneConfig, progress: Progress) -> Corpus:
    """Reads, labels, splits and featurises the rows of a run."""
    records = read_records(corpus_paths(config.data, config.data_manifest))
    _tell(records, progress)
    features = FeatureConfig()
    labelled = assign_buckets(
        records.examples,
        num_buckets=config.num_buckets,
        seed=config.seed,
        features=features,
    )
    for notice in labelled.notices:
        progress.notice(notice)
    examples = labelled.examples
    train, val = split_rows(
        examples,
        labelled.numbers,
        fraction=config.val_split,
        mode=config.split_mode,
        seed=config.seed,
    )
    train_rows, val_rows = [examples[i] for i in train], [examples[i] for i in val]
    contexts = [row.context for row in train_rows]
    featurizer = (
        RunDirectory.open(config.weights).featurizer()  # Its rows, its table.
        if config.weights
        else Featurizer.fit(contexts, features)
    )
    labels = labelled.numbers[train]
    sources = [row.source for row in train_rows]
    if config.learn_from_responses:
        more, more_labels = response_rows(
            train_rows, labels, limit=len(train_rows), seed=config.seed
        )
        contexts, labels = contexts + more, np.concatenate([labels, more_labels])
        sources += [_REPLIES] * len(more)
    names, numbers = np.unique(sources, return_inverse=True)
    return Corpus(
        Rows(
            *trim(featurizer.embedded(featurizer(contexts))),
            labels,
            numbers.astype(np.int32),
        ),
        Rows(*_embedded(featurizer, val_rows), labelled.numbers[val]),
        train_rows,
        val_rows,
        labelled,
        featurizer,
        records.fingerprint,
        names.tolist(),
    )


def _embedded(featurizer: Featurizer, rows: Sequence[Example]) -> Bags:
    return featurizer.embedded(featurizer([row.context for row in rows]))


def make_recipe(
    config: FinetuneConfig, corpus: Corpus, progress: Progress
) -> tuple[Recipe, LoopConfig]:
    """Turns flags into what compiles and what loops."""
    num_buckets = len(corpus.labelled.buckets.labels)
    if config.early_stop_patience and not len(corpus.val.ids):
        progress.notice("--early_stop_patience needs validation rows: there are none")
    steps_per_epoch = make_plan(config, corpus).optimizer_steps
    epochs = config.epochs or min(20, max(4, 900 // steps_per_epoch))
    steps = epochs * steps_per_epoch
    recipe = Recipe(
        model=ModelConfig(
            num_buckets=num_buckets,
            vocabulary=corpus.featurizer.num_rows,
            branch_widths=config.branch_widths(),
        ),
        objective=_objective(config, corpus, progress),
        optimizer=OptimizerConfig(
            num_steps=steps,
            warmup_steps=_warmup_steps(config, steps, progress),
            lr=config.lr,
            schedule=config.lr_schedule,
            weight_decay=config.weight_decay,
            clip_norm=config.grad_clip_norm,
            accumulate=config.grad_accum_steps,
            ema_decay=config.ema_decay,
            head_only=bool(config.weights) and not config.train_all,
        ),
    )
    loop = LoopConfig(
        epochs=epochs,
        patience=config.early_stop_patience,
        ramp_epochs=config.pref_warmup_epochs,
        use_ema=config.ema_decay > 0 and not config.disable_ema_eval,
        seed=config.seed,
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


def finish_run(run: RunDirectory, result: Fit, corpus: Corpus) -> None:
    """Binds the store and what chat needs to know to the best checkpoint."""
    config = run.config() | {
        "best_epoch": result.best_epoch,
        "last_epoch": len(result.history),
        "min_confidence": 0.0,
        "bucket_weight": 1.0,
    }
    if config["finetune"]["pref_noise"] == "re_po":
        trust = zip(corpus.sources, result.reliability.tolist(), strict=True)
        config["reliability"] = dict(trust)
    run.write_json("config.json", config)
    _, params = load_model(run)
    if not is_store_of(run.store, corpus.featurizer, params):
        labels = corpus.train.labels[: len(corpus.train_rows)]
        pairs = zip(corpus.train_rows, labels, strict=True)
        rows = [(row, int(bucket)) for row, bucket in pairs if row.response]
        build_store(run.store, corpus.featurizer, params, rows)
    with Chat.load(run.path) as chat:
        run.write_json("config.json", config | measure_chat(chat, corpus))


def measure_chat(chat: Chat, corpus: Corpus) -> dict[str, float]:
    """Measures on validation rows how chat should rank and when it should abstain.

    The bucket's weight is the one that ranks most right replies first (a
    classifier with few rows deserves less trust than one with many); from the
    threshold on, replies are more often right than wrong.

    Returns:
      What changes in config.json: nothing without validation rows that have
      replies.
    """
    rows = [row for row in corpus.val_rows if row.response]
    if not rows:
        return {}
    rows = rows[:: -(-len(rows) // _MEASURED)]  # Evenly: files are often sorted.
    measured = []
    for weight in _BUCKET_WEIGHTS:
        chat.bucket_weight = weight
        is_right, confidence = _ask(chat, rows)
        measured.append((is_right.mean(), weight, is_right, confidence))
    _, weight, is_right, confidence = max(measured, key=lambda found: found[0])
    # Few rows measure a threshold badly: it is drawn to a cautious one.
    measured_sum = len(rows) * answer_threshold(confidence, is_right)
    threshold = (measured_sum + _PRIOR_ROWS * _PRIOR) / (len(rows) + _PRIOR_ROWS)
    return {"bucket_weight": weight, "min_confidence": threshold}


def _ask(chat: Chat, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each reply is right, and how confident it is."""
    replies = chat.reply_batch(
        [row.question for row in rows],
        histories=[row.context[:-1] for row in rows],
        style="balanced",
        creativity=0.0,
    )
    right = [
        bool(reply.candidates) and reply.candidates[0].response == row.response
        for reply, row in zip(replies, rows, strict=True)
    ]
    return np.array(right), np.array([reply.confidence for reply in replies])


def _open_run(config: FinetuneConfig) -> RunDirectory:
    if config.resume:
        return RunDirectory.open(config.output)
    return RunDirectory.create(config.output)


def _tell(records: Records, progress: Progress) -> None:
    if notice := records.notice():
        progress.notice(notice)
    if records.out_of_scope:
        progress.notice(
            f"{len(records.out_of_scope)} out-of-scope rows left out: they evaluate, "
            "they do not train"
        )
    if not records.examples:
        raise UserError("All rows are out of scope: there is nothing to train on.")


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
    slack = config.false_negative_margin
    preference = make_preference(
        config.pref_objective,
        group=config.pref_group_estimator,
        noise=config.noise(),
        beta=config.pref_beta,
        margin=config.pref_margin,
        noise_rate=config.pref_noise_rate or 0.1,
        num_negatives=group_size,
        hard_ratio=config.hard_negative_ratio,
        slack=math.inf if slack is None else slack,
        correct_sampling=config.sampling_correction,
        num_sources=len(corpus.sources),
    )
    return Objective(
        label_smoothing=config.label_smoothing,
        weight=config.pref_weight,
        preference=preference,
    )


def _with_reference(
    config: FinetuneConfig,
    recipe: Recipe,
    params: Params,
    train: Rows,
    progress: Progress,
) -> Rows:
    """The rows with the logits of the frozen start, if the objective wants them."""
    row = catalogue.OBJECTIVES.get(config.pref_objective, catalogue.USERS)
    if not row.reference or config.pref_weight == 0:
        return train
    if not config.weights:
        progress.notice(
            f"--pref_objective {config.pref_objective} without --weights: the "
            "reference policy is uniform"
        )
        return train
    logits = predict(recipe.model, params, train.ids, train.weights)
    return train._replace(ref_logits=logits)


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


def _initial_params(
    config: FinetuneConfig, model: ModelConfig, corpus: Corpus
) -> Params:
    if not config.weights:
        return init_params(model, jax.random.fold_in(jax.random.key(config.seed), 1))
    source = RunDirectory.open(config.weights)
    shape, params = load_model(source)
    theirs = dataclasses.asdict(shape) | {"labels": _labels(source)}
    ours = dataclasses.asdict(model) | {"labels": list(corpus.labelled.buckets.labels)}
    changes = [
        f"{name} {_short(theirs[name])} there, {_short(value)} here"
        for name, value in ours.items()
        if theirs[name] != value
    ]
    if changes:
        raise UserError(
            f"--weights {config.weights} has another shape: {'; '.join(changes)}."
        )
    return params


def _labels(run: RunDirectory) -> list[str | int]:
    return [bucket["label"] for bucket in run.read_json("labels.json")]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write_description(
    run: RunDirectory, config: FinetuneConfig, corpus: Corpus, recipe: Recipe
) -> None:
    buckets = corpus.labelled.buckets
    names = _names(corpus)
    run.write_json(
        "labels.json",
        [{"label": label, "name": names[i]} for i, label in enumerate(buckets.labels)],
    )
    run.write_features(corpus.featurizer)
    run.write_json(
        "config.json",
        {
            "format": FORMAT,
            "version": prefchat_jax.__version__,
            "hash_version": HASH_VERSION,
            "finetune": dataclasses.asdict(config),
            "model": dataclasses.asdict(recipe.model),
            "features": dataclasses.asdict(corpus.featurizer.config),
            "labels_given": buckets.given,
            "data_fingerprint": corpus.fingerprint,
            "train_rows": len(corpus.train_rows),
            "val_rows": len(corpus.val_rows),
        },
    )


def _names(corpus: Corpus) -> list[str]:
    """A readable name for each bucket: the intent of its rows, or its label."""
    examples = corpus.labelled.examples
    intents = {str(e.label): e.intent for e in examples if e.intent}
    labels = map(str, corpus.labelled.buckets.labels)
    return [intents.get(label, label) for label in labels]


def _check_same_run(run: RunDirectory, config: FinetuneConfig, corpus: Corpus) -> None:
    """A resumed run must repeat the settings and the data it started with."""
    written = run.config()
    ignored = {"resume", "output", "device", "meta", "early_stop_patience"}
    for name, value in dataclasses.asdict(config).items():
        if name not in ignored and written["finetune"][name] != value:
            raise UserError(
                f"--resume: --{name} was {written['finetune'][name]!r} and is "
                f"{value!r}: repeat the first command."
            )
    if written["data_fingerprint"] != corpus.fingerprint:
        raise UserError("--resume: the data has changed since the run started.")


def _metadata(run: RunDirectory, result: Fit) -> dict:
    return run.config() | {
        "labels": run.read_json("labels.json"),
        "history": result.history,
    }
