"""What a branch does, and the report of a run that says so."""

import re
import shlex

import numpy as np
import pytest
from conftest import quick
from oracles import routed_head

from prefchat_jax.cli import flags
from prefchat_jax.evaluation.branches import (
    measure_branches,
    weights_by_class,
    without_branches,
)
from prefchat_jax.finetune import finetune
from prefchat_jax.inference import encode
from prefchat_jax.models.classifier import ModelConfig
from prefchat_jax.reporting.report import branch_section, markdown
from prefchat_jax.text.bags import Bags
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.steps import Rows, predict

ROWS, CLASSES = 41, 5
XLARGE = {"model_size": "xlarge", "expansion_dim": 9, "epochs": 1, "scorer_epochs": 0}


def _model(rng, widths):
    """A classifier with parameters that are not zero anywhere, and rows for it."""
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    linear = lambda a, b: {"kernel": draw(a, b) / 2, "bias": draw(b)}
    model = ModelConfig(
        num_buckets=CLASSES, vocabulary=30, branch_widths=widths, width=6, hidden=7
    )
    kernel = lambda a, b: {"kernel": draw(a, b) / 2}
    head = {"base": linear(6, CLASSES)}
    if widths:
        head["branches"] = {
            i: {"up": kernel(6, w), "down": kernel(w, CLASSES)}
            for i, w in enumerate(widths)
        }
        head["routers"] = {i: linear(6, i + 2) for i in range(len(widths) - 1)}
        head["scales"] = draw(len(widths))
    encoder = {
        "table": draw(30, 6),
        "up": linear(6, 7),
        "down": linear(7, 6),
        "norm": {"scale": draw(6)},
    }
    ids = rng.integers(0, 30, (ROWS, 4)).astype(np.int32)
    weights = rng.random((ROWS, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    return model, {"encoder": encoder, "head": head}, Rows(ids, weights, labels)


def _vectors(params, rows):
    return np.float64(encode(params["encoder"], Bags(rows.ids, rows.weights)))


def _total_weights(x, head):
    """What each branch is multiplied by, row by row and stage by stage."""
    count = len(head["scales"])
    total = np.zeros((len(x), count))
    for row in range(len(x)):
        for stage in range(1, count + 1):
            if stage == 1:
                shares = [1.0]
            else:
                router = head["routers"][stage - 2]
                odds = np.exp(x[row] @ router["kernel"] + router["bias"])
                shares = odds / odds.sum()
            for branch in range(stage):
                total[row, branch] += head["scales"][stage - 1] * shares[branch]
    return total


def _scored(logits, labels):
    logits = np.float64(logits)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -np.mean(log_probs[np.arange(len(labels)), labels])
    return loss, np.mean(logits.argmax(axis=1) == labels)


@pytest.mark.parametrize("widths", [(8,), (8, 9), (8, 9, 10)])
def test_figures_are_those_of_the_equation(rng, widths):
    model, params, rows = _model(rng, widths)
    head, x = params["head"], _vectors(params, rows)
    found, whole = measure_branches(model, params, rows), routed_head(x, head)
    weights = _total_weights(x, head)
    np.testing.assert_allclose(found.weights, weights, atol=2e-5)
    np.testing.assert_allclose(found.scales, head["scales"])
    assert (found.loss, found.accuracy) == pytest.approx(
        _scored(whole, rows.labels), rel=1e-5
    )
    for number, ablation in enumerate(found.without):
        # The head of one branch with scale 1 is the base and that branch.
        alone = {
            "base": head["base"],
            "scales": [1.0],
            "branches": {0: head["branches"][number]},
        }
        output = _branch_output(x, alone, number)
        off = whole - weights[:, number, None] * output
        _assert_ablation(ablation, off, whole, rows.labels)
    base = x @ head["base"]["kernel"] + head["base"]["bias"]
    _assert_ablation(found.base, base, whole, rows.labels)


def _branch_output(x, head, number):
    """What branch `number` gives; its activation goes by its place."""
    branch = head["branches"][0]
    quiet = {
        "up": {"kernel": np.zeros((x.shape[1], 1))},
        "down": {"kernel": np.zeros((1, CLASSES))},
    }
    zero = {"kernel": np.zeros((x.shape[1], CLASSES)), "bias": np.zeros(CLASSES)}
    branches = {i: quiet for i in range(number)} | {number: branch}
    # Routers that give all to the last branch of their stage.
    routers = {
        i: {
            "kernel": np.zeros((x.shape[1], i + 2)),
            "bias": np.append(np.full(i + 1, -1e9), 0.0),
        }
        for i in range(number)
    }
    scales = np.append(np.zeros(number), 1.0)
    return routed_head(
        x, {"base": zero, "branches": branches, "routers": routers, "scales": scales}
    )


def _assert_ablation(found, off, whole, labels):
    loss, accuracy = _scored(off, labels)
    assert (found.loss, found.accuracy) == pytest.approx((loss, accuracy), rel=1e-4)
    change, low, high = found.change
    assert change == pytest.approx(accuracy - _scored(whole, labels)[1])
    assert low <= change <= high
    assert found.moved == np.mean(off.argmax(axis=1) != whole.argmax(axis=1))


def test_a_branch_is_switched_off_and_nothing_else(rng):
    model, params, rows = _model(rng, (8, 9))
    before = predict(model, params, rows.ids, rows.weights)
    off = without_branches(params, [1])
    assert not np.any(off["head"]["branches"][1]["down"]["kernel"])
    assert off["head"]["branches"][0] is params["head"]["branches"][0]
    assert off["encoder"] is params["encoder"]
    np.testing.assert_array_equal(
        before, predict(model, params, rows.ids, rows.weights)
    )
    assert np.any(before != predict(model, off, rows.ids, rows.weights))


def test_buckets_by_how_their_weights_differ():
    weights = np.array([[1, 0], [1, 0], [0.0, 1], [0.5, 0.5], [0.6, 0.4]])
    found = weights_by_class(weights, np.array([2, 2, 7, 0, 0]))
    assert [(one.bucket, one.rows) for one in found] == [(7, 1), (2, 2), (0, 2)]
    np.testing.assert_allclose(found[2].weights, [0.55, 0.45])


def test_tables_are_markdown(rng):
    assert markdown(["a", "b"], [["x|y", "1"]]).splitlines() == [
        "| a | b |",
        "|---|---:|",
        "| x\\|y | 1 |",
    ]
    model, params, rows = _model(rng, (8, 9))
    found = measure_branches(model, params, rows)
    text = branch_section(found, (8, 9), rows.labels, [f"b{i}" for i in range(CLASSES)])
    cells = [line.split(" | ") for line in text.splitlines() if line[:2] == "| "]
    names = [row[0].removeprefix("| ") for row in cells]
    assert names[:5] == ["switched off", "none", "branch 1", "branch 2", "all branches"]
    assert float(cells[1][4]) == pytest.approx(found.accuracy, abs=1e-4)
    assert float(cells[3][7].removesuffix(" |")) == pytest.approx(
        found.without[1].loss, abs=1e-4
    )
    assert names[-1] == "all" and len({len(row) for row in cells[5:]}) == 1


@pytest.fixture(scope="module")
def large(corpus_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    runs = [folder / name / "run" for name in ("a", "b")]
    return [finetune(quick(corpus_path, run, **XLARGE)) for run in runs]


def test_the_report_of_a_run(run, large, corpus_path):
    text = (large[0].run.path / "report.md").read_text()
    best = large[0].fit.history[large[0].fit.best_epoch - 1]
    assert f"| bucket accuracy | {best['eval_accuracy']:.4f} |" in text
    assert f"| none |  |  |  | {best['eval_accuracy']:.4f} |" in text
    assert f"| training rows | {len(large[0].corpus.train_rows)} |" in text
    assert "| buckets | 4 |" in text and "scorer |" not in text
    assert "| branch 2 | 1,536 |" in text and "differ most" in text
    command = shlex.split(re.search(r"```\n(.*)\n```", text)[1])
    given = flags.parse(FinetuneConfig, "finetune", command[2:])
    assert command[:2] == ["prefchat", "finetune"]
    assert given == quick(corpus_path, large[0].run.path, **XLARGE)
    base = (run.run.path / "report.md").read_text()
    assert "## Parameters" in base and "| scorer |" in base and "branch" not in base


def test_the_same_run_has_the_same_report(large):
    texts = [
        (one.run.path / "report.md").read_text().replace(str(one.run.path), "RUN")
        for one in large
    ]
    assert texts[0] == texts[1]


def test_a_run_without_validation_rows_has_a_report(corpus_path, tmp_path):
    made = finetune(quick(corpus_path, tmp_path / "run", val_split=0.0, **XLARGE))
    text = (made.run.path / "report.md").read_text()
    assert "| validation rows | 0 |" in text and "bucket accuracy" not in text
