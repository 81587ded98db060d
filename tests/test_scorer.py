import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import quick

from prefchat_jax import losses
from prefchat_jax.datasets.negatives import lexical_negatives
from prefchat_jax.datasets.records import read_records
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.models.scorer import (
    ScorerConfig,
    abstract_scorer,
    encode,
    init_scorer,
    pair_scores,
)
from prefchat_jax.text.bags import Bags, cosine
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.training.checkpoints import load_model, load_scorer
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.scorer import (
    ScorerRecipe,
    ScorerRows,
    batch_losses,
    fit_scorer,
    in_batch_accuracy,
)

CONFIG = ScorerConfig(vocabulary=256, width=16, hidden=8)


def _equal(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def _bags(rng, n, features=6):
    ids = rng.integers(1, 256, (n, features)).astype(np.int32)
    return Bags(ids, rng.random((n, features)).astype(np.float32))


# --- model


def _tower_oracle(params, tower, ids, weights):
    """The tower in float64, one row at a time."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    up, down = tree[tower]["up"], tree[tower]["down"]
    for row, row_weights in zip(ids, weights, strict=True):
        x = sum(w * tree["table"][i] for i, w in zip(row, row_weights, strict=True))
        x = x / np.sqrt(np.mean(x**2) + 1e-6)
        hidden = x @ up["kernel"] + up["bias"]
        hidden = hidden / (1 + np.exp(-hidden))
        x = x + hidden @ down["kernel"] + down["bias"]
        yield x / np.sqrt(np.sum(x**2) + 1e-12)


@pytest.mark.parametrize("tower", ["context", "response"])
def test_a_tower_equals_its_equation(tower, rng):
    params = init_scorer(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), params)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    bags = _bags(rng, 5)
    got = encode(CONFIG, params, tower, *bags)
    np.testing.assert_allclose(
        got, list(_tower_oracle(params, tower, *bags)), atol=2e-6
    )
    np.testing.assert_allclose(encode(CONFIG, params, tower, *bags), got, atol=2e-6)


def test_parameters_have_the_layout_that_others_read():
    params = init_scorer(CONFIG, jax.random.key(0))
    tower = {
        "up": {"kernel": (16, 8), "bias": (8,)},
        "down": {"kernel": (8, 16), "bias": (16,)},
    }
    shapes = {"table": (256, 16), "context": tower, "response": tower, "log_scale": ()}
    assert jax.tree.map(jnp.shape, params) == shapes
    assert jax.tree.map(jnp.shape, abstract_scorer(CONFIG)) == shapes
    assert type(params) is dict and type(params["context"]) is dict
    np.testing.assert_allclose(params["log_scale"], np.log(20), rtol=1e-6)


def test_an_untrained_scorer_measures_the_overlap_of_features():
    config = dataclasses.replace(CONFIG, vocabulary=4096, width=256)
    params = init_scorer(config, jax.random.key(1))
    ids = np.arange(1, 101, dtype=np.int32)[None] + np.array([[0], [50], [500]])
    bags = Bags(ids.astype(np.int32), np.full(ids.shape, 0.1, np.float32))
    contexts = encode(config, params, "context", *bags)
    responses = encode(config, params, "response", *bags)
    scores = pair_scores(params, contexts, responses)
    np.testing.assert_allclose(scores[0], [20, 10, 0], atol=5)  # 5 is 4 deviations.


def test_dropout_needs_a_key():
    params = init_scorer(CONFIG, jax.random.key(0))
    bags = _bags(np.random.default_rng(0), 3)
    call = lambda key: encode(CONFIG, params, "context", *bags, key=key)
    np.testing.assert_array_equal(call(None), call(None))
    assert (call(jax.random.key(0)) != call(jax.random.key(1))).any()


# --- loss


NUMBERS = np.array([3, 1, 3, 0, 2])


def _loss(scores, group, numbers=NUMBERS, candidates=NUMBERS, **settings):
    return batch_losses(
        jnp.asarray(scores),
        jnp.asarray(numbers),
        jnp.asarray(candidates),
        group=group,
        link=losses.logistic,
        **settings,
    )


def test_softmax_over_logistic_is_cross_entropy_over_the_batch(rng):
    scores = rng.normal(size=(5, 5)).astype(np.float32) * 3
    same = (NUMBERS[:, None] == NUMBERS) & ~np.eye(5, dtype=bool)
    masked = jnp.where(same, -jnp.inf, scores)
    own = jnp.arange(5)
    wanted = optax.softmax_cross_entropy_with_integer_labels(masked, own)
    np.testing.assert_allclose(_loss(scores, losses.softmax), wanted, rtol=1e-5)


@pytest.mark.parametrize("group", [losses.hardest, losses.pairwise_mean])
def test_hard_negatives_and_empty_places_by_loops(group, rng):
    """Row 4 is empty, row 0 has no second negative, row 1 has its own response."""
    candidates = np.array([*NUMBERS, 4, -1, 1, 5, 4, 5, 0, 1, 5, 4])
    scores = rng.normal(size=(5, 15)).astype(np.float32)
    where = np.array([True, True, True, True, False])
    got = _loss(scores, group, NUMBERS, candidates, where=jnp.asarray(where))
    reduce = np.mean if group is losses.pairwise_mean else np.max
    cost = lambda lead: np.logaddexp(0, -lead)
    for i in range(4):
        wrong = [
            j
            for j, number in enumerate(candidates)
            if j != 4 and number >= 0 and number != NUMBERS[i]
        ]
        wanted = reduce([cost(scores[i, i] - scores[i, j]) for j in wrong])
        np.testing.assert_allclose(got[i], wanted, rtol=1e-5)
    assert got[4] == 0


def test_accuracy_counts_only_wrong_responses():
    scores = jnp.array([[1.0, 0.0, 9.0], [0.0, 1.0, 2.0], [0.0, 0.5, 1.0]])
    numbers = jnp.array([7, 8, 7])
    got = in_batch_accuracy(scores, numbers, numbers)
    np.testing.assert_array_equal(got, [1, 0, 1])


# --- training


def _problem(rng, n=96, responses=12, hard=0):
    """Each response shares no feature with its contexts: it must be learned."""
    numbers = (np.arange(n) % responses).astype(np.int32)
    ids = lambda who, first: np.stack(
        [first + who * 8 + k for k in range(4)], axis=1
    ).astype(np.int32)
    ones = lambda n: np.full((n, 4), 0.5, np.float32)
    negatives = (numbers[:, None] + 1 + np.arange(hard)) % responses
    return ScorerRows(
        Bags(ids(numbers, 1), ones(n)),
        Bags(ids(np.arange(responses), 128), ones(responses)),
        numbers,
        negatives.astype(np.int32),
    )


def _fit(rows, epochs=12, **changes):
    plan = EpochPlan(rows.numbers, 20, 1, False, 0)  # The last batch is short.
    steps = epochs * plan.micro_batches
    optimizer = OptimizerConfig(num_steps=steps, warmup_steps=3, lr=0.02)
    recipe = ScorerRecipe(model=CONFIG, optimizer=optimizer, **changes)
    start = init_scorer(CONFIG, jax.random.key(0))
    return fit_scorer(recipe, start, rows, plan, epochs=epochs, progress=Silent())


def _right(params, rows):
    x = np.asarray(encode(CONFIG, params, "context", *rows.contexts))
    y = np.asarray(encode(CONFIG, params, "response", *rows.responses))
    return np.mean(np.argmax(x @ y.T, axis=1) == rows.numbers)


@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("name", ["softmax", "expected_win", "hardest"])
def test_training_learns_which_response_belongs_to_a_context(name, hard, rng):
    rows = _problem(rng, hard=hard)
    assert _right(init_scorer(CONFIG, jax.random.key(0)), rows) < 0.5
    assert _right(_fit(rows, group=getattr(losses, name)), rows) > 0.95


def test_equal_seeds_give_equal_bytes_and_hard_negatives_count(rng):
    once, again = (_fit(_problem(rng), epochs=2) for _ in range(2))
    assert _equal(once, again)
    assert not _equal(once, _fit(_problem(rng, hard=1), epochs=2))


def test_a_loss_that_is_not_finite_is_one_line(rng):
    link = lambda margins: margins * jnp.nan
    with pytest.raises(UserError, match=r"loss is nan at step 1: lower --scorer_lr"):
        _fit(_problem(rng), epochs=1, link=link)


# --- hard negatives


REPLIES = [
    "we pay refunds in five days",
    "we pay refunds in nine days",
    "our shop opens at nine",
    "reset your password here",
    "WE PAY refunds in five days",
]


def test_lexical_negatives_are_the_nearest_other_responses():
    contexts = [(Turn("user", text),) for text in REPLIES]
    featurizer = Featurizer.fit(contexts, FeatureConfig(min_count=1), REPLIES)
    bags = featurizer.scorer_embedded(featurizer.texts(REPLIES))
    numbers = np.array([0, 3, 1, 0], np.int32)
    found = lexical_negatives(bags, numbers, count=2, seed=0)
    assert found.shape == (4, 2) and found.dtype == np.int32
    near = cosine(bags, bags, 16)
    for row, number in enumerate(numbers):
        order = [
            other
            for other in np.argsort(-near[number])
            if other != number and near[number, other] <= 0.9
        ]
        first, second = near[number, order[:2]]
        if first > second + 0.2:  # Sketches are not exact.
            assert found[row, 0] == order[0], REPLIES[number]
    assert found[0, 0] == 1  # And not 4, which says the same.
    np.testing.assert_array_equal(found[0], found[3])
    alone = lexical_negatives(
        Bags(bags.ids[:1], bags.weights[:1]), np.zeros(3, np.int32), count=1, seed=0
    )
    np.testing.assert_array_equal(alone, -np.ones((3, 1)))


def test_negatives_come_from_random_pools_in_linear_time(rng):
    """More responses than a pool: each row still finds none of its own."""
    bags = _bags(rng, 3000)
    numbers = rng.integers(0, 3000, 5000).astype(np.int32)
    found = lexical_negatives(bags, numbers, count=3, seed=1)
    assert (found != numbers[:, None]).all() and (found >= 0).all()
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    assert len(np.unique(found)) > 1500
    np.testing.assert_array_equal(
        found, lexical_negatives(bags, numbers, count=3, seed=1)
    )


# --- runs


def _reply_accuracy(run, examples):
    """How often the right reply of the corpus has the highest score."""
    (config, params), featurizer = load_scorer(run), run.featurizer()
    replies = list(dict.fromkeys(e.response for e in examples))
    read = lambda bags: featurizer.scorer_embedded(bags)
    contexts = read(featurizer([e.context for e in examples]))
    x = encode(config, params, "context", *contexts)
    y = encode(config, params, "response", *read(featurizer.texts(replies)))
    best = np.argmax(x @ y.T, axis=1)
    return np.mean(
        [replies[b] == e.response for b, e in zip(best, examples, strict=True)]
    )


def test_a_run_has_a_scorer_that_finds_replies(run, examples):
    assert _reply_accuracy(run.run, examples) > 0.9
    shape, _ = load_scorer(run.run)
    assert shape.vocabulary == run.run.featurizer().num_scorer_rows
    assert run.run.config()["scorer"]["width"] == 128
    assert len(run.corpus.scored.numbers) == len(run.corpus.train_rows)


def test_equal_seeds_train_equal_scorers_beside_an_equal_classifier(
    run, corpus_path, tmp_path
):
    again = finetune(quick(corpus_path, tmp_path / "again"))
    assert _equal(load_scorer(run.run)[1], load_scorer(again.run)[1])
    none = finetune(quick(corpus_path, tmp_path / "none", scorer_epochs=0))
    assert load_scorer(none.run) is None and none.run.config()["scorer"] is None
    assert none.run.featurizer().scorer_rows is None
    assert _equal(load_model(run.run)[1], load_model(none.run)[1])


def test_a_run_without_replies_or_of_an_older_version_has_no_scorer(
    run, corpus_path, tmp_path
):
    rows = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row | {"assistant": ""}) + "\n" for row in rows))
    assert not any(e.response for e in read_records([path]).examples)
    labelled = finetune(quick(path, tmp_path / "labelled", epochs=1))
    assert load_scorer(labelled.run) is None

    old = RunDirectory(shutil.copytree(run.run.path, tmp_path / "old"))
    config = old.config()
    del config["scorer"]
    old.write_json("config.json", config)
    with np.load(old.path / "features.npz") as arrays:
        kept = {"idf": arrays["idf"], "rows": arrays["rows"]}
    np.savez_compressed(old.path / "features.npz", **kept)
    assert load_scorer(old) is None and old.featurizer().num_scorer_rows == 0
    with pytest.raises(ValueError, match="without responses"):
        old.featurizer().scorer_embedded(old.featurizer().texts(["a"]))
    # It warms up a run that gets a scorer of its own.
    warm = quick(corpus_path, tmp_path / "warm", epochs=1, weights=str(old.path))
    assert load_scorer(finetune(warm).run) is not None


class Killed(Exception):
    """Stands for a killed process."""


class KilledAfter(Silent):
    """Progress that dies after some epochs of the classifier."""

    def __init__(self, epochs):
        self.left, self.stages = epochs, []

    def stage(self, name):
        self.stages.append(name)

    def epoch(self, metrics):
        self.left -= 1
        if not self.left:
            raise Killed


def test_a_resumed_run_keeps_the_scorer_of_its_step(
    run, corpus_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("prefchat_jax.training.checkpoints.SAVE_SECONDS", 0.0)
    config = quick(corpus_path, tmp_path / "r")
    with pytest.raises(Killed):
        finetune(config, KilledAfter(2))
    progress = KilledAfter(99)
    resumed = finetune(dataclasses.replace(config, resume=True), progress)
    assert progress.stages == ["training"]  # And not the scorer.
    assert _equal(load_scorer(resumed.run)[1], load_scorer(run.run)[1])
    assert _equal(load_model(resumed.run)[1], load_model(run.run)[1])


def test_weights_start_at_the_scorer_of_the_source(run, corpus_path, tmp_path):
    start = {"weights": str(run.run.path), "epochs": 1}
    kept = finetune(quick(corpus_path, tmp_path / "kept", scorer_epochs=0, **start))
    source = load_scorer(run.run)
    assert kept.run.config()["scorer"] == run.run.config()["scorer"]
    assert _equal(load_scorer(kept.run)[1], source[1])
    near = quick(corpus_path, tmp_path / "near", scorer_lr=1e-9, **start)
    moved = load_scorer(finetune(near).run)[1]
    assert not _equal(moved, source[1])
    np.testing.assert_allclose(moved["table"], source[1]["table"], atol=1e-6)
    wide = quick(corpus_path, tmp_path / "wide", scorer_width=32, **start)
    with pytest.raises(
        UserError, match=r"scorer\.context\.down\.bias is \[128\].*\[32\]"
    ):
        finetune(wide)


def test_a_truncated_scorer_is_one_line(run, tmp_path):
    broken = RunDirectory(shutil.copytree(run.run.path, tmp_path / "broken"))
    step = broken.checkpoints / str(broken.last_step())
    shutil.rmtree(step / "scorer")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorer(broken)


def test_the_scorer_does_not_read_validation_rows(corpus_path, tmp_path):
    result = finetune(quick(corpus_path, tmp_path / "v", epochs=1))
    assert len(result.corpus.val_rows)
    trained = {e.response for e in result.corpus.train_rows}
    assert len(result.corpus.scored.responses.ids) == len(trained)
    assert len(result.corpus.scored.contexts.ids) == len(result.corpus.train_rows)
