import json

import numpy as np
import pytest

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.evaluation.errors import (
    OUTSIDE,
    REFUSED,
    confusions,
    mistakes,
    write_mistakes,
)
from prefchat_jax.evaluation.metrics import auroc, softmax
from prefchat_jax.evaluation.run import evaluate_run, figures, judge_run

OOS = ("pizza with pineapple", "who won the match", "where is my parcel")


@pytest.fixture(scope="module")
def held_out(corpus_path, tmp_path_factory):
    """Rows of the corpus, two with a wrong label and reply, and three outside."""
    rows = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    for row in (rows[0], rows[3]):
        row["label"], row["assistant"] = "refund", rows[9]["assistant"]
    rows += [{"user": text, "label": "out_of_scope"} for text in OOS]
    path = tmp_path_factory.mktemp("held_out") / "val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def judged(run, held_out):
    return judge_run(run.run.path, [held_out], ChatSettings(min_confidence=0.5))


def test_a_run_is_scored_on_rows_it_never_saw(run, corpus_path):
    found = evaluate_run(run.run.path, [corpus_path])
    assert found["in_scope_rows"] == 36 and found["accuracy"] > 0.9
    total = found["right"] + found["wrong"] + found["abstained"]
    assert total == pytest.approx(1.0)
    assert found["p50_ms"] <= found["p99_ms"]
    assert "out_of_scope_rows" not in found and "bucket_auroc" not in found


def test_the_figures_are_counts_of_the_rows(judged):
    found = figures(judged)
    buckets, replies = judged.buckets, judged.replies
    assert (found["in_scope_rows"], found["out_of_scope_rows"]) == (36, 3)
    wrong = [
        str(row.label) != str(buckets.labels[number])
        for row, number in zip(
            buckets.examples, buckets.logits.argmax(axis=1), strict=True
        )
    ]
    assert found["accuracy"] == pytest.approx(1 - np.mean(wrong))
    answered = [
        not reply.abstained and reply.candidates[0].response == row.response
        for row, reply in zip(replies.examples, replies.replies, strict=True)
    ]
    assert found["right"] == pytest.approx(np.mean(answered))
    refused = [reply.confidence < 0.5 for reply in replies.outside]
    assert found["refused"] == pytest.approx(np.mean(refused))
    assert 0 < found["refused"] < 1  # The parcel is known.


def test_out_of_scope_figures_are_those_of_the_probabilities(judged):
    found, buckets = figures(judged), judged.buckets
    inside = softmax(buckets.logits, buckets.temperature).max(axis=1)
    outside = softmax(buckets.outside, buckets.temperature).max(axis=1)
    assert found["bucket_auroc"] == auroc(inside, outside)
    assert found["bucket_refused"] == np.mean(outside < buckets.threshold)
    right = (buckets.logits.argmax(axis=1) == buckets.numbers) & (
        inside >= buckets.threshold
    )
    assert found["accuracy_above_threshold"] == np.mean(right)
    assert 0.5 < found["reply_auroc"] <= 1


def test_the_temperature_scales_the_calibration_error(judged):
    scaled = judged._replace(buckets=judged.buckets._replace(temperature=9.0))
    plain = judged._replace(buckets=judged.buckets._replace(temperature=1.0))
    assert figures(scaled)["ece"] == figures(plain)["ece"]
    assert figures(plain)["ece_scaled"] == figures(plain)["ece"]
    assert figures(scaled)["ece_scaled"] > figures(plain)["ece"]  # Much too unsure.


def test_each_mistake_is_a_row_that_names_its_place(judged, held_out, tmp_path):
    found = mistakes(judged)
    buckets = [row for row in found if row["kind"] == "bucket"]
    replies = [row for row in found if row["kind"] == "reply"]
    assert [row["where"] for row in buckets[:2]] == [f"{held_out}:1", f"{held_out}:4"]
    assert {row["expected"] for row in buckets[:2]} == {"refund"}
    assert {row["given"] for row in buckets[:2]} == {"parcel"}
    assert {f"{held_out}:1", f"{held_out}:4", f"{held_out}:39"} <= {
        row["where"] for row in replies
    }
    outside = next(row for row in replies if row["where"] == f"{held_out}:39")
    assert outside["expected"] is None and not outside["abstained"]
    total = figures(judged)
    inside = sum(row["expected"] is not None for row in replies)
    assert inside == round(36 * (1 - total["right"]))
    path = tmp_path / "errors.jsonl"
    write_mistakes(path, found)
    assert [json.loads(line) for line in path.read_text().splitlines()] == found


def test_the_rank_is_the_place_among_the_candidates(judged):
    by_row = {
        row.where: reply
        for row, reply in zip(
            judged.replies.examples, judged.replies.replies, strict=True
        )
    }
    ranked = [row for row in mistakes(judged) if row.get("rank")]
    assert ranked
    for row in ranked:
        candidates = by_row[row["where"]].candidates
        assert candidates[row["rank"] - 1].response == row["expected"]


def test_confused_pairs_are_counted_by_kind():
    row = lambda kind, expected, given: {
        "kind": kind,
        "expected": expected,
        "given": given,
    }
    wrong = [row("reply", "a", None)] * 3 + [row("bucket", None, "y")]
    wrong += [row("bucket", "x", "y")] * 2
    assert confusions(wrong) == [("bucket", "x", "y", 2), ("bucket", OUTSIDE, "y", 1)]
    assert confusions(wrong, limit=1) == [("bucket", "x", "y", 2)]
    assert confusions(wrong[:3]) == [("reply", "a", REFUSED, 3)]
    assert confusions([]) == []


def test_the_history_of_a_mistake_is_kept(run, tmp_path):
    path = tmp_path / "dialogue.jsonl"
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "money back")]
    turns += [("assistant", "Never.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    last = mistakes(judge_run(run.run.path, [path]))[-1]
    assert last["message"] == "money back" and last["expected"] == "Never."
    assert last["history"] == messages[:2] and last["rank"] is None


def _largest(logits):
    """The probability of the most probable bucket."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / odds.sum(axis=1)


def test_a_run_without_replies_is_judged_by_its_buckets(corpus_path, tmp_path):
    from conftest import quick

    from prefchat_jax.finetune import finetune

    rows = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    lines = [json.dumps({"user": r["user"], "label": r["label"]}) for r in rows]
    train.write_text("\n".join(lines))
    val.write_text("\n".join([*lines, '{"user": "zebra quartz", "label": -1}']))
    result = finetune(quick(train, tmp_path / "run"))
    config = result.run.config()
    assert "confidence" not in config and 0 < config["min_probability"] < 1
    judged = judge_run(result.run.path, [val])
    assert judged.replies is None
    found = figures(judged)
    said = judged.buckets
    inside, outside = (
        _largest(logits / said.temperature) for logits in (said.logits, said.outside)
    )
    assert outside.shape == (1,) and "refused" not in found
    assert found["bucket_auroc"] == pytest.approx(np.mean(inside > outside))
    assert {"bucket_refused", "accuracy_above_threshold", "ece"} <= set(found)
    # With a threshold that nothing reaches all is refused.
    strict = judged._replace(buckets=judged.buckets._replace(threshold=1.01))
    assert figures(strict)["bucket_refused"] == 1.0
    assert figures(strict)["accuracy_above_threshold"] == 0.0
    assert not any(row["expected"] is None for row in mistakes(strict))
