"""The corpus of a run: rows that are read, labelled, split and featurised."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.datasets.labels import Labelled, assign_buckets
from prefchat_jax.datasets.records import Records, corpus_paths, read_records
from prefchat_jax.datasets.responses import response_rows
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example
from prefchat_jax.text.features import Bags, FeatureConfig, Featurizer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.scorer import ScorerRows
from prefchat_jax.training.scorer_run import scorer_rows, trains_scorer
from prefchat_jax.training.steps import Rows

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
    scored: ScorerRows | None  # None where no scorer is to be trained.


def load_corpus(config: FinetuneConfig, progress: Progress) -> Corpus:
    """Reads, labels, splits and featurises the rows of a run."""
    records = read_records(corpus_paths(config.data, config.data_manifest))
    _tell(records, progress)
    features = FeatureConfig()
    labelled, train, val = _split(config, records)
    for notice in labelled.notices:
        progress.notice(notice)
    examples = labelled.examples
    train_rows, val_rows = [examples[i] for i in train], [examples[i] for i in val]
    contexts = [row.context for row in train_rows]
    featurizer = _featurizer(config, features, train_rows)
    labels = labelled.numbers[train]
    sources = [row.labeller for row in train_rows]
    if config.learn_from_responses:
        more, more_labels = response_rows(
            train_rows, labels, limit=len(train_rows), seed=config.seed
        )
        contexts, labels = contexts + more, np.concatenate([labels, more_labels])
        sources += [_REPLIES] * len(more)
    names, numbers = np.unique(sources, return_inverse=True)
    hashed = featurizer(contexts)
    return Corpus(
        Rows(
            *featurizer.trained(hashed, contexts),
            labels,
            numbers.astype(np.int32),
        ),
        Rows(*_classified(featurizer, val_rows), labelled.numbers[val]),
        train_rows,
        val_rows,
        labelled,
        featurizer,
        records.fingerprint,
        names.tolist(),
        scorer_rows(config, featurizer, hashed, train_rows)
        if trains_scorer(config, train_rows)
        else None,
    )


def validation_rows(config: FinetuneConfig, records: Records) -> list[Example]:
    """The rows that a run of these flags validates on."""
    labelled, _, val = _split(config, records)
    return [labelled.examples[i] for i in val]


def _split(
    config: FinetuneConfig, records: Records
) -> tuple[Labelled, np.ndarray, np.ndarray]:
    """Rows with their buckets, and the numbers of those that train and validate."""
    labelled = assign_buckets(
        records.examples,
        num_buckets=config.num_buckets,
        seed=config.seed,
        features=FeatureConfig(),
    )
    train, val = split_rows(
        labelled.examples,
        labelled.numbers,
        fraction=config.val_split,
        mode=config.split_mode,
        seed=config.seed,
    )
    return labelled, train, val


def _featurizer(
    config: FinetuneConfig, features: FeatureConfig, rows: Sequence[Example]
) -> Featurizer:
    """Fitted on the training rows, or that of --weights: its rows, its tables."""
    contexts = [row.context for row in rows]
    replies = []
    if trains_scorer(config, rows):
        replies = [row.response for row in rows if row.response]
    if not config.weights:
        return Featurizer.fit(contexts, features, replies)
    theirs = RunDirectory.open(config.weights).featurizer()
    if theirs.scorer_rows is None and replies:
        return theirs.with_scorer(contexts, replies)
    return theirs


def _classified(featurizer: Featurizer, rows: Sequence[Example]) -> Bags:
    contexts = [row.context for row in rows]
    return featurizer.classified(featurizer(contexts), contexts)


def _tell(records: Records, progress: Progress) -> None:
    if notice := records.notice():
        progress.notice(notice)
    if records.out_of_scope:
        count = len(records.out_of_scope)
        progress.notice(
            f"{count} out-of-scope row{'s' * (count != 1)} left out: such rows "
            "evaluate, they do not train"
        )
    if not records.examples:
        raise UserError("All rows are out of scope: there is nothing to train on.")


def bucket_names(corpus: Corpus) -> list[str]:
    """A readable name for each bucket: the intent of its rows, or its label."""
    examples = corpus.labelled.examples
    intents = {str(e.label): e.intent for e in examples if e.intent}
    labels = map(str, corpus.labelled.buckets.labels)
    return [intents.get(label, label) for label in labels]
