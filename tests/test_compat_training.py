"""Training of an imported checkpoint: where it starts, what moves, what it learns."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import quick
from reference_network import LABELS, WIDTHS

from prefchat_jax import Chat
from prefchat_jax.compat import champion
from prefchat_jax.compat.heads import branch_mixture
from prefchat_jax.compat.importing import import_run
from prefchat_jax.compat.model import ChampionConfig
from prefchat_jax.compat.tensors import HeadShape, empty_params
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.run import evaluate_run
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.inference import Inference
from prefchat_jax.models.classifier import init_params
from prefchat_jax.text.bags import Bags
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.corpus import load_corpus
from prefchat_jax.training.export import describe
from prefchat_jax.training.parameters import flatten, nest
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.start import initial_params, load_source, model_shape
from prefchat_jax.training.steps import predict
from prefchat_jax.training.warm_start import grow


def _start(config):
    corpus, source = load_corpus(config, Silent()), load_source(config)
    model = model_shape(config, corpus, source)
    return corpus, source, model, *initial_params(config, model, corpus, source)


@pytest.mark.parametrize("size", [None, "xlarge"])
def test_a_warm_start_says_what_the_import_says(size, imported, corpus_path, tmp_path):
    """Also with buckets in another order, and with a branch more."""
    weights = shutil.copytree(imported.run.path, tmp_path / "other")
    labels = json.loads((weights / "labels.json").read_text())
    order = [2, 0, 3, 1]
    renamed = [labels[order.index(i)] for i in range(4)]
    (weights / "labels.json").write_text(json.dumps(renamed))
    config = quick(corpus_path, tmp_path / "r", weights=str(weights), model_size=size)
    corpus, source, model, params, report = _start(config)
    assert not report.fresh_buckets and model.head == (size or "large")
    before = predict(source.shape, source.params, *corpus.train[:2])
    now = predict(model, params, *corpus.train[:2])
    places = [source.names.index(name) for name in LABELS]
    assert places == order
    np.testing.assert_allclose(now, before[:, places], atol=1e-5)
    contexts = [row.context for row in corpus.train_rows]
    inference = Inference.load(RunDirectory.open(weights))
    chatted = inference.bucket_logits(inference.featurizer(contexts), contexts)
    np.testing.assert_allclose(now[: len(contexts)], chatted[:, places], atol=1e-5)


def test_buckets_that_have_only_numbers_are_matched_by_label(reference_files, tmp_path):
    import_run(reference_files / "x.pth", tmp_path / "run")
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"user": f"{name} {i}", "label": n, "intent": name}) + "\n"
            for n, name in enumerate(LABELS)
            for i in range(5)
        )
    )
    *_, report = _start(
        quick(path, tmp_path / "r", weights=str(tmp_path / "run"), model_size=None)
    )
    assert report.copied_buckets == LABELS


@pytest.mark.parametrize("head", ["xxlarge", "reference_base"])
def test_the_first_parameters_are_those_of_a_new_head(head):
    """Warm starts take from them what a source lacks: that says nothing yet."""
    model = ChampionConfig(
        num_buckets=5, branch_widths=WIDTHS[head], feature_mode="legacy"
    )
    assert model.head == head
    params = nest(flatten(init_params(model, jax.random.key(0))))
    x = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    assert np.isfinite(champion.classify(params, Bags(x, x))).all()
    for path, leaf in flatten(params).items():
        silent = path.startswith(("head.branches", "head.routers"))
        if path.endswith("kernel") and not (silent and ".up." not in path):
            assert 0 < np.std(leaf) < 2, path
    # More buckets: what is there stays, by name, in each array that has them.
    more = dataclasses.replace(model, num_buckets=6)
    names = [*"abcde"]
    grown, report = grow(
        params,
        init_params(more, jax.random.key(1)),
        names,
        ["new", *names],
        more.growing_axes,
    )
    assert report.copied_buckets == tuple(names)
    for path, leaf in flatten(grown).items():
        before = flatten(params)[path]
        if leaf.shape != before.shape:
            np.testing.assert_array_equal(leaf[..., 1:], before)


@pytest.fixture(scope="module")
def trained(imported, corpus_path, tmp_path_factory):
    """Everything trained, with the import as the reference policy of DPO."""
    config = quick(
        corpus_path,
        tmp_path_factory.mktemp("trained") / "run",
        weights=str(imported.run.path),
        model_size=None,
        train_all=True,
        pref_objective="dpo",
        epochs=12,
        lr=3e-3,
        scorer_epochs=1,
    )
    return finetune(config)


def test_training_moves_all_that_has_a_gradient(imported, trained):
    before, after = (flatten(load_model(r.run)[1]) for r in (imported, trained))
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert still == {  # One step needs none of them; kernels decay.
        "encoder.attention.query_down.bias",
        "encoder.salient.down.bias",
        "encoder.salient.up.bias",
        "encoder.state_space.decay",
    }
    history = trained.fit.history
    assert history[-1]["loss/pref"] < history[0]["loss/pref"]
    assert history[-1]["loss/ce"] < history[0]["loss/ce"]


def test_a_trained_import_answers_and_is_evaluated(trained, corpus_path):
    run = trained.run.path
    found = evaluate_run(run, [corpus_path])
    assert found["accuracy"] > 0.9 and found["right"] > 0.9
    with Chat.load(run) as chat:
        assert chat.reply("money back please").bucket == "refund"
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["kind"] == "champion" and config["scorer"] is not None
    tensors, metadata = describe(RunDirectory.open(run))
    assert metadata["model"]["head"] == "large"
    assert tensors["classifier.encoder.plain.kernel"].shape == (256, 256)


def test_the_report_of_a_trained_import_says_what_its_branches_do(trained):
    report = (trained.run.path / "report.md").read_text()
    assert "## What a branch does" in report and "| branch 1 |" in report


@pytest.mark.parametrize("name", ["reference_base", "xxlarge"])
def test_branches_weigh_what_routers_and_scales_say(name, rng):
    """The routers of the base head have an output more than it mixes."""
    shape = HeadShape(name, WIDTHS[name], 4)
    leaves = flatten(empty_params(shape))
    head = nest({path: rng.normal(size=x.shape) for path, x in leaves.items()})["head"]
    x, count = rng.normal(size=(5, 256)), len(head["branches"])
    expected = np.zeros((5, count))
    first = count - len(head["routers"])
    for stage in range(count):
        if stage < first:
            expected[:, stage] += head["scales"][stage]
            continue
        router = head["routers"][stage - first]
        odds = np.exp(x @ router["kernel"] + router["bias"])
        for j in range(stage + 1):
            share = odds[:, j] / odds.sum(axis=1)
            expected[:, j] += head["scales"][stage] * share
    np.testing.assert_allclose(branch_mixture(head, x), expected, rtol=1e-10)


def test_frozen_training_moves_the_head_alone(imported, corpus_path, tmp_path):
    config = quick(
        corpus_path,
        tmp_path / "run",
        weights=str(imported.run.path),
        model_size=None,
        scorer_epochs=0,
        epochs=1,
    )
    run = finetune(config).run
    before, after = (flatten(load_model(r)[1]) for r in (imported.run, run))
    moved = {n for n in before if not np.array_equal(before[n], after[n])}
    assert moved == {name for name in before if name.startswith("head.")}


def test_an_import_is_evaluated_as_it_is(imported, corpus_path, examples):
    found = evaluate_run(imported.run.path, [corpus_path])
    contexts = [row.context for row in examples]
    inference = Inference.load(imported.run)
    logits = inference.bucket_logits(inference.featurizer(contexts), contexts)
    labels = [LABELS.index(row.label) for row in examples]
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))


def test_a_word_nobody_stored_counts_as_known(imported):
    featurizer = Inference.load(imported.run).featurizer
    assert featurizer.known(featurizer.texts(["zebra"]), 0) == pytest.approx(1)


def test_errors_in_python_name_the_import(reference_files, tmp_path, corpus_path):
    config = quick(corpus_path, tmp_path / "r", weights=str(reference_files / "x.pth"))
    with pytest.raises(UserError, match="prefchat import_torch"):
        finetune(config)
