"""Finetune: a corpus to a run directory that chat can load."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import prefchat_jax
from prefchat_jax.calibration import Refused, measure_chat, measure_refused
from prefchat_jax.chat.config import Calibration
from prefchat_jax.chat.session import Chat
from prefchat_jax.errors import UserError
from prefchat_jax.indexing import build_store, is_store_of
from prefchat_jax.inference import Inference
from prefchat_jax.reporting.report import write_report
from prefchat_jax.text.dialogue import Example
from prefchat_jax.text.features import HASH_VERSION
from prefchat_jax.training.checkpoints import fingerprint, load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus, bucket_names, load_corpus
from prefchat_jax.training.loop import Fit, Metrics, Progress, fit
from prefchat_jax.training.recipe import make_plan, make_recipe
from prefchat_jax.training.run_directory import (
    FORMAT,
    RunDirectory,
    start_run,
    write_json,
)
from prefchat_jax.training.scorer_run import ScorerStart, scorer_start, train_scorer
from prefchat_jax.training.start import (
    frozen_recipe,
    frozen_rows,
    initial_params,
    load_source,
    model_shape,
    show_parts,
    show_report,
    with_reference,
)
from prefchat_jax.training.steps import Recipe, predict
from prefchat_jax.training.warm_start import Report


class Result(NamedTuple):
    """What `finetune` leaves besides the run directory."""

    run: RunDirectory
    fit: Fit
    seconds: float
    corpus: Corpus
    refused: Refused | None  # Of the validation rows; None where none has a reply.


class Silent:
    """Progress that shows nothing."""

    def notice(self, text: str) -> None:
        """A line that the user should know."""

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """What training starts from."""

    def stage(self, name: str) -> None:
        """What trains from now on."""

    def chunk(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Some micro-batches are through."""

    def epoch(self, metrics: dict[str, float]) -> None:
        """An epoch was validated."""


def finetune(config: FinetuneConfig, progress: Progress = Silent()) -> Result:
    """Trains a bucket classifier and writes its run directory.

    Raises:
      UserError: bad data or settings; nothing half-written is left.
    """
    if config.preferences:
        raise UserError("preferences: call preference_tuning.tune_preferences instead.")
    start = time.perf_counter()
    run = start_run(config)
    corpus = load_corpus(config, progress)
    source = load_source(config)
    model = model_shape(config, corpus, source)
    recipe, loop = make_recipe(config, model, corpus, progress)
    params, report = initial_params(config, model, corpus, source)
    corpus = corpus._replace(
        train=with_reference(config, recipe, params, corpus.train, progress)
    )
    start_hash = fingerprint(params, corpus.featurizer) if config.weights else None
    if config.resume:
        _check_same_run(run, config, corpus, start_hash)
    scorer = scorer_start(run, config, corpus.featurizer, corpus.scored)
    train, val = (
        frozen_rows(config, recipe, params, rows) for rows in (corpus.train, corpus.val)
    )
    with run.alone():
        if not config.resume:
            RunDirectory.create(run.path)  # Another may have finished meanwhile.
            if report is not None:
                report = report.with_scorer(() if scorer is None else scorer.paths)
                show_report(report, config, progress)
            _write_description(run, config, corpus, recipe, scorer, start_hash, report)
        show_parts(recipe, params, scorer, progress)
        scorer_params = train_scorer(config, scorer, progress)
        progress.stage("training")
        result = fit(
            run,
            frozen_recipe(config, recipe),
            loop,
            params,
            train,
            val,
            make_plan(config, corpus),
            progress,
            scorer_params,
            config.report_to,
        )
        refused = finish_run(run, result, corpus)
        write_report(run, config, result, corpus, refused)
    if config.meta:
        write_json(config.meta, metadata(run, result.history))
    return Result(run, result, time.perf_counter() - start, corpus, refused)


def finish_run(run: RunDirectory, result: Fit, corpus: Corpus) -> Refused | None:
    """Binds the store and what chat needs to know to the best checkpoint."""
    config = run.config() | {
        "best_epoch": result.best_epoch,
        "last_epoch": len(result.history),
    }
    if config["finetune"].get("pref_noise") == "re_po":
        best = result.history[result.best_epoch - 1]
        config["reliability"] = {
            name: best[f"reliability/{number}"]
            for number, name in enumerate(corpus.sources)
        }
    run.write_json("config.json", config)
    inference = Inference.load(run)
    if not is_store_of(run.store, inference):
        labels = corpus.train.labels[: len(corpus.train_rows)]
        pairs = zip(corpus.train_rows, labels, strict=True)
        rows = [(row, int(bucket)) for row, bucket in pairs if row.response]
        build_store(run.store, inference, rows)
    model, params = load_model(run)
    val = corpus.val
    with Chat.load(run.path) as chat:
        measured = measure_chat(
            chat,
            corpus.val_rows,
            logits=predict(model, params, val.ids, val.weights),
            labels=val.labels,
        )
        chat.calibration = Calibration.read(config | measured)
        refused = measure_refused(chat, corpus.val_rows)
    run.write_json("config.json", config | measured)
    return refused


def _write_description(
    run: RunDirectory,
    config: FinetuneConfig,
    corpus: Corpus,
    recipe: Recipe,
    scorer: ScorerStart | None,
    start_hash: str | None,
    report: Report | None,
) -> None:
    buckets = corpus.labelled.buckets
    names = bucket_names(corpus)
    run.write_json(
        "labels.json",
        [{"label": label, "name": names[i]} for i, label in enumerate(buckets.labels)],
    )
    if report is not None:
        taken = {"weights": config.weights} | dataclasses.asdict(report)
        run.write_json("warm_start.json", taken)
    run.write_features(corpus.featurizer)
    run.write_json(
        "config.json",
        {
            "format": FORMAT,
            "version": prefchat_jax.__version__,
            "hash_version": HASH_VERSION,
            "finetune": dataclasses.asdict(config),
            "model": dataclasses.asdict(recipe.model),
            "scorer": None if scorer is None else dataclasses.asdict(scorer.shape),
            "features": dataclasses.asdict(corpus.featurizer.config),
            "labels_given": buckets.given,
            "data_fingerprint": corpus.fingerprint,
            "weights_fingerprint": start_hash,
            "train_rows": len(corpus.train_rows),
            "val_rows": len(corpus.val_rows),
            "history": _history_share(corpus.train_rows),
        },
    )


def _history_share(rows: Sequence[Example]) -> float:
    """The share of rows with earlier turns, which tells chat how to read its own."""
    return sum(len(row.context) > 1 for row in rows) / max(len(rows), 1)


def _check_same_run(
    run: RunDirectory,
    config: FinetuneConfig,
    corpus: Corpus,
    start_hash: str | None,
) -> None:
    """A resumed run must repeat the settings, the data and the start it had."""
    written = run.config()
    if "preferences" in written:
        raise UserError(
            f"--resume: {run.path} was tuned on --preferences, which ended its "
            "training: start a new run with --weights of it."
        )
    if written["format"] != FORMAT:
        raise UserError(
            f"--resume: {run.path} was written by prefchat-jax {written['version']}, "
            "which trained in another way: start a new run with --weights of it."
        )
    ignored = {"resume", "output", "device", "compile_cache", "profile", "meta"}
    ignored |= {"report_to", "early_stop_patience"}
    for name, value in dataclasses.asdict(config).items():
        # A flag that is newer than the run had no say in it.
        before = written["finetune"].get(name, value)
        if name not in ignored and before != value:
            raise UserError(
                f"--resume: --{name} was {before!r} and is {value!r}: repeat the "
                "first command."
            )
    if written["data_fingerprint"] != corpus.fingerprint:
        raise UserError("--resume: the data has changed since the run started.")
    if written["weights_fingerprint"] != start_hash:
        raise UserError("--resume: --weights has changed since the run started.")


def metadata(run: RunDirectory, history: list[Metrics]) -> dict:
    """What `--meta` writes: settings, buckets, and the metrics of every epoch."""
    return run.config() | {"labels": run.buckets(), "history": history}
