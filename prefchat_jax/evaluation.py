"""Evaluation: accuracy, macro-F1, replies, refusals, and retrieval ranks."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.session import Chat, Reply
from prefchat_jax.datasets.labels import Buckets
from prefchat_jax.datasets.records import read_records
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import predict, score


class Outcome(NamedTuple):
    """How a system answered questions, each a share in [0, 1].

    Attributes:
      right: in-scope questions that got their own answer.
      macro_f1: of the answers over in-scope questions.
      wrong: in-scope questions that got another answer.
      refused: out-of-scope questions that were refused; NaN without any.
    """

    right: float
    macro_f1: float
    wrong: float
    refused: float


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 over the classes that occur in `labels`.

    Args:
      predicted: `[n]` predicted classes; one that is no label predicts none.
      labels: `[n]` right classes.
    """
    scores = []
    for label in np.unique(labels):
        hits = np.sum((predicted == label) & (labels == label))
        total = np.sum(predicted == label) + np.sum(labels == label)
        scores.append(2 * hits / total)
    return float(np.mean(scores)) if scores else float("nan")


def outcome(
    answers: Sequence[str], right_answers: Sequence[str], refused_outside: np.ndarray
) -> Outcome:
    """Scores answers; an empty one is a refusal.

    Args:
      answers: answers to `n` in-scope questions.
      right_answers: what they should have been.
      refused_outside: bool `[m]` whether each out-of-scope question was refused.
    """
    given, wanted = np.array(answers), np.array(right_answers)
    return Outcome(
        right=float(np.mean(given == wanted)),
        macro_f1=macro_f1(given, wanted),
        wrong=float(np.mean((given != wanted) & (given != ""))),
        refused=float(np.mean(refused_outside)),
    )


def answer_threshold(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """The confidence from which on an answer is more often right than wrong.

    A right answer gains one, a wrong one loses one, and a refusal costs
    nothing: the threshold has the largest sum over validation rows. It never
    abstains (0) if there are no right answers to measure it on.

    Args:
      confidence: `[n]` of the answers to validation rows.
      is_right: bool `[n]`.
    """
    if not np.any(is_right):
        return 0.0
    order = np.argsort(-confidence, kind="stable")
    gain = np.cumsum(np.where(is_right[order], 1, -1))
    if gain.max() < 0:
        return 1.0  # Refusing everything is better.
    # The last maximum lets most answers through; halfway to the next row, since
    # the threshold lies somewhere between the two.
    last = len(gain) - 1 - int(np.argmax(gain[::-1]))
    below = confidence[order[last + 1]] if last + 1 < len(order) else 0.0
    return float((confidence[order[last]] + below) / 2)


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % interval of `mean(ours - theirs)` over resampled rows.

    Args:
      ours: `[n]` scores by row, such as 0/1 correctness (seeds averaged).
      theirs: `[n]` scores of the other system on the same rows.
      seed: of the resampling.
      draws: number of resamples.
    """
    differences = np.asarray(ours, np.float64) - theirs
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(differences), size=(draws, len(differences)))
    low, high = np.percentile(differences[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


class Ranks(NamedTuple):
    """How high the right response ranks: recall at 1 and mean reciprocal rank."""

    recall_at_1: float
    mrr: float


def rank_metrics(scores: np.ndarray, right: np.ndarray) -> Ranks:
    """Ranks the right candidate of each row; ties count against it.

    Args:
      scores: `[n, candidates]`.
      right: integer `[n]` place of the right candidate.
    """
    own = np.take_along_axis(scores, right[:, None], axis=1)
    ranks = np.sum(scores >= own, axis=1)
    return Ranks(float(np.mean(ranks == 1)), float(np.mean(1 / ranks)))


def evaluate_run(
    run: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    settings: ChatSettings = ChatSettings(),
) -> dict[str, float | int]:
    """Scores a run on JSONL rows that it never saw.

    Args:
      run: run directory.
      paths: JSONL files; out-of-scope rows count as refused or not.
      settings: how the chat searches and when it abstains.

    Returns:
      `in_scope_rows`, and where rows have labels `accuracy`, `macro_f1` and
      `cross_entropy` of the buckets; where they have replies `right`, `wrong`
      and the times of a reply; where some are out of scope `refused`.

    Raises:
      UserError: a file or the run cannot be read, or a label is unknown.
    """
    directory = RunDirectory.open(run)
    records = read_records(paths)
    figures: dict[str, float | int] = {"in_scope_rows": len(records.examples)}
    labelled = [example for example in records.examples if example.label is not None]
    if directory.config()["labels_given"] and labelled:
        figures |= _bucket_figures(directory, labelled)
    answered = [example for example in records.examples if example.response]
    with Chat.load(run, settings=settings) as chat:
        if len(chat) and answered:
            figures |= _reply_figures(chat, answered)
        if len(chat) and records.out_of_scope:
            replies = [_ask(chat, row) for row in records.out_of_scope]
            figures["out_of_scope_rows"] = len(replies)
            figures["refused"] = float(np.mean([reply.abstained for reply in replies]))
    return figures


def _bucket_figures(run: RunDirectory, examples: Sequence[Example]) -> dict[str, float]:
    labels = tuple(bucket["label"] for bucket in run.read_json("labels.json"))
    numbers = Buckets(labels, given=True).numbers(examples)
    model, params = load_model(run)
    featurizer = run.featurizer()
    bags = featurizer([example.context for example in examples])
    logits = predict(model, params, *featurizer.embedded(bags))
    scored = score(logits, numbers)
    return {
        "accuracy": scored["accuracy"],
        "macro_f1": macro_f1(logits.argmax(axis=1), numbers),
        "cross_entropy": scored["loss"],
    }


def _reply_figures(chat: Chat, examples: Sequence[Example]) -> dict[str, float]:
    """Each reply on its own, as in a conversation, after one to warm up."""
    _ask(chat, examples[0])
    replies = [_ask(chat, example) for example in examples]
    right = [
        not reply.abstained and reply.candidates[0].response == example.response
        for reply, example in zip(replies, examples, strict=True)
    ]
    abstained = np.array([reply.abstained for reply in replies])
    times = [reply.milliseconds for reply in replies]
    return {
        "right": float(np.mean(right)),
        "wrong": float(np.mean(~abstained & ~np.array(right))),
        "abstained": float(np.mean(abstained)),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
    }


def _ask(chat: Chat, example: Example) -> Reply:
    return chat.reply(
        example.question, history=example.context[:-1], style="balanced", creativity=0.0
    )
