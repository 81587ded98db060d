"""Preference tuning: the response scorer of a run, tuned on pairs of replies.

The new run has the classifier, the buckets, the features and the stored replies of the
old one; its scorer ranks as the pairs say.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import prefchat_jax
from prefchat_jax.calibration import measure_chat
from prefchat_jax.chat.copying import check_store, copy_store
from prefchat_jax.chat.session import Chat
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.datasets.records import (
    Comparisons,
    corpus_paths,
    read_pairs,
    read_records,
)
from prefchat_jax.datasets.split import prompt_key
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, metadata
from prefchat_jax.indexing import finish_store
from prefchat_jax.inference import Inference
from prefchat_jax.models.scorer import with_values
from prefchat_jax.reporting.report import write_tuned_report
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.checkpoints import Checkpoints, load_model, load_scorer
from prefchat_jax.training.config import FinetuneConfig, ReportTo
from prefchat_jax.training.corpus import validation_rows
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.metrics_log import MetricsLog
from prefchat_jax.training.pairs_run import (
    PairCorpus,
    PairFit,
    load_pairs,
    tune_scorer,
)
from prefchat_jax.training.parameters import fingerprint
from prefchat_jax.training.run_directory import RunDirectory, start_run, write_json


class Tuned(NamedTuple):
    """What `tune_preferences` leaves besides the run directory.

    Attributes:
      run: the new run.
      fit: how the tuning went.
      corpus: the pairs.
      reliability: how far RE-PO trusts each source; empty without it.
      rows: how many rows ranking and confidence were measured on; 0 if they are
        those of the old run.
      seconds: of the whole.
    """

    run: RunDirectory
    fit: PairFit
    corpus: PairCorpus
    reliability: dict[str, float]
    rows: int
    seconds: float


def tune_preferences(config: FinetuneConfig, progress: Progress = Silent()) -> Tuned:
    """Tunes the scorer of `config.weights` on `config.preferences`.

    Raises:
      UserError: bad data or settings, or a run without a scorer or a store.
    """
    start = time.perf_counter()
    run = start_run(config)
    source = RunDirectory.open(str(config.weights))
    compared = read_pairs([str(config.preferences)])
    if notice := compared.notice():
        progress.notice(notice)
    scorer = load_scorer(source)
    if scorer is None:
        raise UserError(
            f"--preferences: {config.weights} has no response scorer: train it anew, "
            "on rows with two or more different replies and without --scorer_epochs 0."
        )
    shape, params = with_values(*scorer)
    old = Inference.load(source)
    check_store(source.store, fingerprint=old.fingerprint, inference=old)
    corpus = load_pairs(config, old.featurizer, compared.pairs)
    rows = _calibration_rows(config, source, compared.pairs, progress)
    _tell(corpus, progress)
    with run.alone():
        RunDirectory.create(run.path)  # Another may have finished meanwhile.
        progress.stage("preferences")
        fit = tune_scorer(config, shape, params, corpus, progress)
        reliability = _reliability(fit, corpus)
        description = source.config() | {
            "version": prefchat_jax.__version__,
            "scorer": dataclasses.asdict(shape),
            "preferences": _description(config, compared, corpus, fit, old.fingerprint)
            | {"reliability": reliability, "calibration_rows": len(rows)},
        }
        _write(run, source, description, fit, old, config.report_to)
        if rows:
            with Chat.load(run.path) as chat:
                description |= measure_chat(chat, rows)
            run.write_json("config.json", description)
        write_tuned_report(run, source, fit.history, fit.start_accuracy)
    if config.meta:
        write_json(config.meta, metadata(run, fit.history))
    seconds = time.perf_counter() - start
    return Tuned(run, fit, corpus, reliability, len(rows), seconds)


def _write(
    run: RunDirectory,
    source: RunDirectory,
    description: dict[str, Any],
    fit: PairFit,
    old: Inference,
    report_to: ReportTo,
) -> None:
    """All files of the new run; the checkpoint, which makes it one, comes last."""
    _, classifier = load_model(source)
    scorer = fit.params
    with MetricsLog(run, fit.history, report_to):
        pass
    run.write_json("labels.json", source.buckets())
    run.write_features(old.featurizer)
    run.write_json("config.json", description)
    new = dataclasses.replace(
        old,
        scorer=scorer,
        fingerprint=fingerprint(old.classifier, old.featurizer, scorer),
    )
    copy_store(source.store, run.store, fingerprint=old.fingerprint, inference=new)
    finish_store(run.store, new)
    with Checkpoints(run.checkpoints, jax.tree.map(jnp.asarray, scorer)) as steps:
        steps.save_final(description["last_epoch"], classifier)


def _description(
    config: FinetuneConfig,
    compared: Comparisons,
    corpus: PairCorpus,
    fit: PairFit,
    start_hash: str,
) -> dict[str, Any]:
    return {
        "finetune": dataclasses.asdict(config),
        "fingerprint": compared.fingerprint,
        "weights_fingerprint": start_hash,
        "train_pairs": len(corpus.train.replies),
        "val_pairs": len(corpus.val.replies),
        "best_epoch": fit.best_epoch,
    }


def _reliability(fit: PairFit, corpus: PairCorpus) -> dict[str, float]:
    """How far RE-PO trusts each source in the best epoch; empty without RE-PO."""
    best = fit.history[fit.best_epoch - 1]
    return {
        name: best[f"reliability/{number}"]
        for number, name in enumerate(corpus.sources)
        if f"reliability/{number}" in best
    }


def _calibration_rows(
    config: FinetuneConfig,
    source: RunDirectory,
    pairs: list[PreferencePair],
    progress: Progress,
) -> list[Example]:
    """Answered rows of --data that neither the run nor the tuning learns from.

    Of the very rows that the run was trained on those are its validation rows; of
    other rows all are.
    """
    if not config.data and not config.data_manifest:
        return []
    paths = corpus_paths(config.data, config.data_manifest)
    records, written = read_records(paths), source.config()
    rows = records.examples
    # That of a run with rows of --val goes on with theirs.
    if written["data_fingerprint"].startswith(records.fingerprint):
        names = ("num_buckets", "seed", "data_seed", "val", "val_split", "split_mode")
        settings = {name: written["finetune"].get(name) for name in names}
        rows = validation_rows(FinetuneConfig(output="", **settings), records)
    asked = {prompt_key(Example(pair.context, "")) for pair in pairs}
    kept = [row for row in rows if row.response and prompt_key(row) not in asked]
    if not kept:
        progress.notice(
            "--data: no answered row is left that neither the run nor the preferences "
            "learn from: ranking weights and confidence stay as they were"
        )
    return kept


def _tell(corpus: PairCorpus, progress: Progress) -> None:
    if corpus.unmatched:
        progress.notice(
            f"--length_control matched: {corpus.unmatched} pairs left out of "
            f"{corpus.unmatched + len(corpus.train.replies)}, "
            f"{len(corpus.train.replies)} train"
        )
