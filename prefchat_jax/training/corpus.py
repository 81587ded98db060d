"""The corpus of a run: rows that are read, labelled, split and featurised."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.datasets.labels import Labelled, assign_buckets
from prefchat_jax.datasets.records import Records, corpus_paths, read_records
from prefchat_jax.datasets.responses import response_rows
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Example
from prefchat_jax.text.features import FeatureConfig, Featurizer
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
    split = _split(config, records)
    labelled, train_rows, val_rows = split.labelled, split.train_rows, split.val_rows
    for notice in (*labelled.notices, *split.notices):
        progress.notice(notice)
    if labelled.buckets.given and config.num_buckets != FinetuneConfig.num_buckets:
        progress.notice(
            f"--num_buckets {config.num_buckets} changes nothing: the rows have "
            f"{len(labelled.buckets.labels)} labels"
        )
    contexts = [row.context for row in train_rows]
    featurizer = _featurizer(config, features, train_rows)
    labels = split.train_labels
    sources = [row.labeller for row in train_rows]
    if config.learn_from_responses:
        more, more_labels = response_rows(
            train_rows, labels, limit=len(train_rows), seed=config.corpus_seed()
        )
        contexts, labels = contexts + more, np.concatenate([labels, more_labels])
        sources += [_REPLIES] * len(more)
    names = sorted(set(sources))
    number = {name: i for i, name in enumerate(names)}
    return Corpus(
        Rows(
            *featurizer.trained(contexts),
            labels,
            np.array([number[name] for name in sources], np.int32),
        ),
        Rows(*_classified(featurizer, val_rows), split.val_labels),
        train_rows,
        val_rows,
        labelled,
        featurizer,
        records.fingerprint + split.fingerprint,
        names,
        scorer_rows(config, featurizer, train_rows)
        if trains_scorer(config, train_rows)
        else None,
    )


class _Split(NamedTuple):
    """Which rows train and which validate, and their buckets."""

    labelled: Labelled
    train_rows: list[Example]
    train_labels: np.ndarray
    val_rows: list[Example]
    val_labels: np.ndarray
    fingerprint: str = ""  # Of the file of validation rows.
    notices: tuple[str, ...] = ()  # About it.


def validation_rows(config: FinetuneConfig, records: Records) -> list[Example]:
    """The rows that a run of these flags validates on."""
    return _split(config, records).val_rows


def _split(config: FinetuneConfig, records: Records) -> _Split:
    """Validation rows: those of --val, or a share of the corpus.

    Raises:
      UserError: --val cannot be read, or has rows of no bucket of the corpus.
    """
    labelled = assign_buckets(
        records.examples,
        num_buckets=config.num_buckets,
        seed=config.corpus_seed(),
        features=FeatureConfig(),
    )
    examples, numbers = labelled.examples, labelled.numbers
    if config.val:
        return _with_file(config.val, labelled)
    train, val = split_rows(
        examples,
        numbers,
        fraction=config.val_split,
        mode=config.split_mode,
        seed=config.corpus_seed(),
    )
    train_rows, val_rows = [examples[i] for i in train], [examples[i] for i in val]
    return _Split(labelled, train_rows, numbers[train], val_rows, numbers[val])


def _with_file(path: str, labelled: Labelled) -> _Split:
    """All rows of the corpus train, those of --val validate."""
    if not labelled.buckets.given:
        raise UserError(
            f"--val {path}: the corpus has no labels that its rows could have: label "
            "the corpus, or use --val_split."
        )
    records = read_records([path])
    if not records.examples:
        raise UserError(f"--val {path}: all rows are out of scope.")
    right = labelled.buckets.numbers(records.examples)
    return _Split(
        labelled,
        labelled.examples,
        labelled.numbers,
        records.examples,
        right,
        records.fingerprint,
        tuple(_notices(records)),
    )


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


def _notices(records: Records) -> Iterator[str]:
    """What a reader should know of rows that are left out."""
    if notice := records.notice():
        yield notice
    if records.out_of_scope:
        count = len(records.out_of_scope)
        yield (
            f"{count} out-of-scope row{'s' * (count != 1)} left out: such rows "
            "evaluate, they do not train"
        )


def _tell(records: Records, progress: Progress) -> None:
    for notice in _notices(records):
        progress.notice(notice)
    if not records.examples:
        raise UserError("All rows are out of scope: there is nothing to train on.")


def bucket_names(corpus: Corpus) -> list[str]:
    """A readable name for each bucket: the intent of its rows, or its label."""
    examples = corpus.labelled.examples
    intents = {str(e.label): e.intent for e in examples if e.intent}
    labels = map(str, corpus.labelled.buckets.labels)
    return [intents.get(label, label) for label in labels]
