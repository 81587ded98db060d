import gzip
import json

import numpy as np
import pytest

from prefchat_jax.datasets.clusters import spherical_kmeans
from prefchat_jax.datasets.labels import Buckets, assign_buckets
from prefchat_jax.datasets.records import read_manifest, read_records
from prefchat_jax.datasets.responses import response_rows
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _example(text, response="r", label=None, group=None):
    groups = () if group is None else (group,)
    return Example((Turn("user", text),), response, label, None, groups)


@pytest.mark.parametrize("user", ["user", "prompt", "input", "question", "instruction"])
@pytest.mark.parametrize(
    "reply", ["assistant", "response", "output", "answer", "completion", "target"]
)
def test_flat_pairs_under_every_name(tmp_path, user, reply):
    path = _write(tmp_path / "a.jsonl", {user: " q ", reply: "r", "label": 3})
    (example,) = read_records([path]).examples
    assert (example.question, example.response, example.label) == ("q", "r", 3)
    assert example.where == f"{path}:1"


@pytest.mark.parametrize("key", ["messages", "conversation", "chat"])
def test_every_answered_user_turn_is_an_example(tmp_path, key):
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "text": "a1"},
        {"role": "user", "content": [{"type": "text", "text": "q2"}]},
        {"role": "assistant", "content": "a2"},
        {"role": "assistant", "content": "a3"},
    ]
    path = _write(tmp_path / "a.jsonl", {key: turns, "label": "x"})
    first, second = read_records([path]).examples
    assert [turn.content for turn in first.context] == ["s", "q1"]
    assert (second.question, second.response) == ("q2", "a2")
    assert [turn.content for turn in second.context] == ["s", "q1", "a1", "q2"]
    assert (first.label, second.label) == (None, "x")


def test_gz_manifest_blank_lines_and_byte_order_mark(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('\n{"user": "q", "assistant": "r"}\n\n')
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"user": "p", "assistant": "r"}\n')
    _write(tmp_path / "m.json", ["a.jsonl.gz", "b.jsonl"])
    records = read_records(read_manifest(tmp_path / "m.json"))
    assert [e.question for e in records.examples] == ["q", "p"]
    _write(tmp_path / "n.json", {"shards": ["b.jsonl"]})
    assert read_manifest(tmp_path / "n.json") == [tmp_path / "b.jsonl"]


def test_unusable_rows_are_counted_with_their_places(tmp_path):
    rows = [{"user": "q"}] * 6 + [{"assistant": "r"}, {"user": "q", "label": "x"}]
    records = read_records([_write(tmp_path / "a.jsonl", *rows)])
    assert len(records.examples) == 1 and records.unusable == 7
    places = [place.rsplit(":")[-1] for place in records.unusable_places]
    assert places == [f"{n} (neither a reply nor a label)" for n in range(1, 6)]
    assert "7 rows left out" in records.notice() and records.notice().endswith("...")


def test_integral_floats_are_labels_and_group_zero_is_a_group(tmp_path):
    row = {"user": "q", "assistant": "r", "label": 3.0, "group": 0}
    (example,) = read_records([_write(tmp_path / "a.jsonl", row)]).examples
    assert example.label == 3 and example.groups == ("0",)


@pytest.mark.parametrize("label", [-1, "oos", "out_of_scope"])
def test_out_of_scope_rows_stand_apart(tmp_path, label):
    path = _write(tmp_path / "a.jsonl", {"user": "q", "label": label})
    records = read_records([path])
    assert not records.examples and len(records.out_of_scope) == 1


def test_labels_of_any_type_become_buckets():
    rows = [_example("a", label=10), _example("b", label=2), _example("c", label="x")]
    labelled = assign_buckets(
        rows, num_buckets=10, seed=0, features=FeatureConfig(bits=10)
    )
    assert labelled.buckets.labels == (2, 10, "x")
    assert labelled.numbers.tolist() == [1, 0, 2]


def test_rows_without_a_label_among_labelled_ones_are_left_out_aloud():
    rows = [_example("a", label=1), _example("b", label=2), _example("c")]
    labelled = assign_buckets(
        rows, num_buckets=10, seed=0, features=FeatureConfig(bits=10)
    )
    assert len(labelled.examples) == 2 and "1 row left out" in labelled.notices[0]


def test_an_unknown_label_names_its_place():
    buckets = Buckets(("a", "b"), given=True)
    row = Example((Turn("user", "q"),), "r", "c", where="f.jsonl:7")
    with pytest.raises(UserError, match=r"f\.jsonl:7: label 'c' is not one of the 2"):
        buckets.numbers([row])


def test_kmeans_separates_topics_and_leaves_no_cluster_empty():
    topics = ["track your parcel", "reset the password", "we open at nine"]
    texts = [f"{topics[i % 3]} {word}" for i, word in enumerate("abcdefghijkl")]
    contexts = [(Turn("assistant", text),) for text in texts]
    config = FeatureConfig(bits=12)
    bags = Featurizer.fit(contexts, config)(contexts)
    numbers = spherical_kmeans(bags, 3, bits=12, seed=0)
    for topic in range(3):
        assert len(set(numbers[topic::3])) == 1
    assert sorted(set(numbers)) == [0, 1, 2]
    np.testing.assert_array_equal(numbers, spherical_kmeans(bags, 3, bits=12, seed=0))
    assert len(set(spherical_kmeans(bags, 12, bits=12, seed=1))) == 12


def test_kmeans_with_few_distinct_rows_keeps_every_cluster():
    weights = np.ones((40, 1), np.float32)
    ids = np.repeat([[1], [2], [3]], [38, 1, 1], axis=0).astype(np.int32)
    numbers = spherical_kmeans(Bags(ids, weights), 3, bits=4, seed=0)
    assert np.bincount(numbers).tolist() == [38, 1, 1]


def test_replies_cluster_where_no_row_has_a_label():
    rows = [
        _example(str(i), response=["yes sure", "no never"][i % 2]) for i in range(8)
    ]
    labelled = assign_buckets(
        rows, num_buckets=10, seed=0, features=FeatureConfig(bits=10)
    )
    assert labelled.buckets == Buckets((0, 1), given=False)
    assert "2 buckets, not 10" in labelled.notices[0]
    assert len(set(labelled.numbers[::2])) == 1


@pytest.mark.parametrize("mode", ["stratified", "random"])
def test_copies_and_groups_never_stand_on_both_sides(mode, rng):
    texts = [f"Question {i}" for i in range(60)]
    rows = [_example(t) for t in texts] + [_example(t.upper() + "?") for t in texts]
    rows += [_example(f"other {i}", group=f"g{i % 7}") for i in range(40)]
    labels = rng.integers(0, 4, len(rows))
    train, val = split_rows(rows, labels, fraction=0.3, mode=mode, seed=1)
    assert sorted([*train, *val]) == list(range(160))
    assert 0.15 < len(val) / 160 < 0.45
    side = np.isin(np.arange(160), val)
    assert (side[:60] == side[60:120]).all()
    for g in range(7):
        assert len(set(side[120 + g :: 7])) == 1


def test_groups_join_across_texts():
    rows = [_example("a", group="g"), _example("a"), _example("b", group="g")]
    rows += [_example(f"c{i}") for i in range(20)]
    for seed in range(5):
        _, val = split_rows(
            rows, np.zeros(23, int), fraction=0.4, mode="random", seed=seed
        )
        assert len({0 in val, 1 in val, 2 in val}) == 1


def test_stratified_draws_from_every_class_and_random_does_not():
    labels = np.repeat([0, 1], [190, 10])
    rows = [_example(f"text {i}") for i in range(200)]
    share = lambda mode, seed: np.mean(
        labels[split_rows(rows, labels, fraction=0.1, mode=mode, seed=seed)[1]]
    )
    assert {share("stratified", s) for s in range(5)} == {0.05}
    assert len({share("random", s) for s in range(5)}) > 1
    assert len(split_rows(rows, labels, fraction=0.0, mode="random", seed=0)[1]) == 0


def test_an_epoch_reads_every_row_once_in_an_order_of_seed_and_epoch():
    plan = EpochPlan(np.zeros(10, int), 4, 2, False, seed=3)
    assert (plan.optimizer_steps, plan.micro_batches) == (2, 4)
    first, again, second = plan.epoch(1), plan.epoch(1), plan.epoch(2)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert (first.rows != second.rows).any()
    assert sorted(first.rows[first.rows >= 0]) == list(range(10))
    # The last window holds two rows, not eight.
    assert first.window.tolist() == [8, 8, 2, 2]


def test_the_balanced_sampler_draws_classes_alike():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    order = EpochPlan(labels, 100, 1, True, seed=0).epoch(1).rows.ravel()
    np.testing.assert_allclose(np.bincount(labels[order]) / 1000, 1 / 3, atol=0.06)
    plain = EpochPlan(labels, 100, 1, False, seed=0).epoch(1).rows.ravel()
    assert np.bincount(labels[plain]).tolist() == [900, 90, 10]


def test_sentences_of_replies_become_rows_of_their_bucket():
    rows = [
        _example("a", "Open the app first. Then press 3.5 times."),
        _example("b", "Open the app first. Then press 3.5 times."),
        _example("c", "No."),
    ]
    contexts, labels = response_rows(rows, np.array([4, 4, 1]), limit=9, seed=0)
    texts = [context[0].content for context in contexts]
    assert texts == ["Open the app first.", "Then press 3.5 times."]
    assert labels.tolist() == [4, 4]
    assert len(response_rows(rows, np.array([4, 4, 1]), limit=1, seed=0)[0]) == 1


def test_a_source_is_the_annotator_or_the_data_set_or_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"user": "q", "assistant": "a", "label": "x"}
    named = [{"annotator": "ann", "source": "set"}, {"source": "set"}, {}]
    path.write_text("".join(json.dumps(row | extra) + "\n" for extra in named))
    sources = [example.labeller for example in read_records([path]).examples]
    assert sources == ["ann", "set", str(path)]
