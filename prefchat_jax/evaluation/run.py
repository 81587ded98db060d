"""Evaluation of a run: accuracy, macro-F1, replies, refusals, calibration."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.session import Chat, Reply
from prefchat_jax.datasets.labels import Buckets
from prefchat_jax.datasets.records import Records, read_records
from prefchat_jax.evaluation.asking import ask
from prefchat_jax.evaluation.metrics import (
    auroc,
    expected_calibration_error,
    macro_f1,
    softmax,
)
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import predict, score

_TIMED = 200  # Rows that are asked one by one, as in a conversation.


class BucketJudgement(NamedTuple):
    """What the classifier says.

    Attributes:
      examples: the `n` in-scope rows that have a label.
      logits: `[n, C]`.
      numbers: integer `[n]` right buckets.
      labels: the labels of the `C` buckets, as rows write them.
      names: readable names of the buckets.
      outside: `[m, C]` logits of the out-of-scope rows.
      temperature: of the run; 1 if it measured none.
      threshold: probability below which the run takes a message as out of
        scope, or None if it measured none.
    """

    examples: list[Example]
    logits: np.ndarray
    numbers: np.ndarray
    labels: tuple[str | int, ...]
    names: tuple[str, ...]
    outside: np.ndarray
    temperature: float
    threshold: float | None

    @property
    def is_right(self) -> np.ndarray:
        """Bool `[n]` whether the most probable bucket is the right one."""
        return self.logits.argmax(axis=1) == self.numbers

    def confidence(self, temperature: float) -> np.ndarray:
        """Highest probability `[n]` of each in-scope row at a temperature."""
        return softmax(self.logits, temperature).max(axis=1)

    @property
    def outside_confidence(self) -> np.ndarray:
        """Highest probability `[m]` of each out-of-scope row at the run's one."""
        return softmax(self.outside, self.temperature).max(axis=1)


class ReplyJudgement(NamedTuple):
    """What the chat says.

    Attributes:
      examples: the `n` in-scope rows that have a reply.
      replies: `n` of them.
      outside: replies to the `m` out-of-scope rows.
      milliseconds: of replies on their own, after one to warm up.
    """

    examples: list[Example]
    replies: list[Reply]
    outside: list[Reply]
    milliseconds: np.ndarray

    @property
    def ranks_first(self) -> np.ndarray:
        """Bool `[n]` whether the best candidate is the right reply."""
        return np.array(
            [
                bool(reply.candidates)
                and reply.candidates[0].response == example.response
                for example, reply in zip(self.examples, self.replies, strict=True)
            ],
            bool,
        )

    @property
    def abstained(self) -> np.ndarray:
        """Bool `[n]` whether the chat refused an in-scope row."""
        return np.array([reply.abstained for reply in self.replies], bool)

    @property
    def confidence(self) -> np.ndarray:
        """`[n]` of the in-scope rows, in [0, 1]."""
        return np.array([reply.confidence for reply in self.replies], np.float64)

    @property
    def outside_confidence(self) -> np.ndarray:
        """`[m]` of the out-of-scope rows."""
        return np.array([reply.confidence for reply in self.outside], np.float64)


class Judgement(NamedTuple):
    """Everything that the figures, the mistakes and the plot are made from.

    Attributes:
      records: the rows that were read.
      buckets: None if the run or the rows have no labels.
      replies: None if nothing is stored, or no row can be asked.
    """

    records: Records
    buckets: BucketJudgement | None
    replies: ReplyJudgement | None


def evaluate_run(
    run: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    settings: ChatSettings = ChatSettings(),
) -> dict[str, float | int]:
    """Scores a run on JSONL rows that it never saw: `figures` of `judge_run`.

    Raises:
      UserError: a file or the run cannot be read, or a label is unknown.
    """
    return figures(judge_run(run, paths, settings))


def judge_run(
    run: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    settings: ChatSettings = ChatSettings(),
) -> Judgement:
    """Asks a run about JSONL rows that it never saw.

    Args:
      run: run directory.
      paths: JSONL files; rows labelled out of scope are judged apart.
      settings: how the chat searches and when it abstains.

    Raises:
      UserError: a file or the run cannot be read, or a label is unknown.
    """
    RunDirectory.open(run)  # Before the rows are read.
    return judge_records(run, read_records(paths), settings)


def judge_records(
    run: str | os.PathLike, records: Records, settings: ChatSettings = ChatSettings()
) -> Judgement:
    """`judge_run` of rows that were read before."""
    directory = RunDirectory.open(run)
    buckets = replies = None
    if directory.config()["labels_given"]:
        buckets = _judge_buckets(directory, records)
    with Chat.load(run, settings=settings) as chat:
        if len(chat):
            replies = _judge_replies(chat, records)
    return Judgement(records, buckets, replies)


def figures(judged: Judgement) -> dict[str, float | int]:
    """The figures of a judgement.

    Returns:
      `in_scope_rows`, `out_of_scope_rows` where there are some, and:

      Of the buckets, where rows have labels: `accuracy`, `macro_f1`,
      `cross_entropy`, and the expected calibration error `ece` before and
      `ece_scaled` after the run's `temperature`. Beside out-of-scope rows
      `bucket_auroc`, how well the probability tells them apart, and where the
      run has a threshold, `accuracy_above_threshold` (in-scope rows that are
      right and not refused) and `bucket_refused` (out-of-scope rows that are).

      Of the replies, where rows have some: `right`, `wrong`, `abstained`,
      `reply_ece` of the confidence, and the times of a reply; where rows are out
      of scope `refused`, and beside in-scope ones `reply_auroc`.
    """
    records = judged.records
    found: dict[str, float | int] = {"in_scope_rows": len(records.examples)}
    if records.out_of_scope:
        found["out_of_scope_rows"] = len(records.out_of_scope)
    if judged.buckets:
        found |= _bucket_figures(judged.buckets)
    if judged.replies:
        found |= _reply_figures(judged.replies)
    return found


def _bucket_figures(judged: BucketJudgement) -> dict[str, float]:
    found = {}
    if judged.examples:
        scored = score(judged.logits, judged.numbers)
        plain, scaled = (judged.confidence(t) for t in (1.0, judged.temperature))
        found = {
            "accuracy": scored["accuracy"],
            "macro_f1": macro_f1(judged.logits.argmax(axis=1), judged.numbers),
            "cross_entropy": scored["loss"],
            "temperature": judged.temperature,
            "ece": expected_calibration_error(plain, judged.is_right),
            "ece_scaled": expected_calibration_error(scaled, judged.is_right),
        }
    if len(judged.outside) and judged.threshold is not None:
        if judged.examples:
            answered = judged.confidence(judged.temperature) >= judged.threshold
            right = np.mean(judged.is_right & answered)
            found["accuracy_above_threshold"] = float(right)
        refused = np.mean(judged.outside_confidence < judged.threshold)
        found["bucket_refused"] = float(refused)
    if len(judged.outside) and judged.examples:
        confidence = judged.confidence(judged.temperature)
        found["bucket_auroc"] = auroc(confidence, judged.outside_confidence)
    return found


def _reply_figures(judged: ReplyJudgement) -> dict[str, float]:
    found = {}
    if judged.examples:
        first, abstained = judged.ranks_first, judged.abstained
        found = {
            "right": float(np.mean(first & ~abstained)),
            "wrong": float(np.mean(~first & ~abstained)),
            "abstained": float(np.mean(abstained)),
            "reply_ece": expected_calibration_error(
                np.clip(judged.confidence, 0, 1), first
            ),
            "p50_ms": float(np.percentile(judged.milliseconds, 50)),
            "p99_ms": float(np.percentile(judged.milliseconds, 99)),
        }
    if judged.outside:
        refused = [reply.abstained for reply in judged.outside]
        found["refused"] = float(np.mean(refused))
    if judged.outside and judged.examples:
        found["reply_auroc"] = auroc(judged.confidence, judged.outside_confidence)
    return found


def _judge_buckets(run: RunDirectory, records: Records) -> BucketJudgement | None:
    examples = [example for example in records.examples if example.label is not None]
    if not examples and not records.out_of_scope:
        return None
    config, written = run.config(), run.buckets()
    labels = tuple(bucket["label"] for bucket in written)
    numbers = Buckets(labels, given=True).numbers(examples)
    model, params = load_model(run)
    featurizer = run.featurizer()
    contexts = [row.context for row in [*examples, *records.out_of_scope]]
    read = featurizer.classified(featurizer(contexts), contexts)
    logits = predict(model, params, *read)
    return BucketJudgement(
        examples,
        logits[: len(examples)],
        numbers,
        labels,
        tuple(str(bucket["name"]) for bucket in written),
        logits[len(examples) :],
        config.get("temperature", 1.0),
        config.get("min_probability"),
    )


def _judge_replies(chat: Chat, records: Records) -> ReplyJudgement | None:
    examples = [example for example in records.examples if example.response]
    rows = [*examples, *records.out_of_scope]
    if not rows:
        return None
    replies = ask(chat, rows)
    timed = [ask(chat, [row])[0].milliseconds for row in rows[:_TIMED]]
    return ReplyJudgement(
        examples,
        replies[: len(examples)],
        replies[len(examples) :],
        np.array(timed),
    )
