"""A warm start: what a grown model says, what it reports, what it refuses."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import oracles
import pytest
from conftest import FILLINGS, quick

from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.models.classifier import ModelConfig, bucket_logits, init_params
from prefchat_jax.training.checkpoints import load_model, load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import load_corpus
from prefchat_jax.training.parameters import flatten
from prefchat_jax.training.parts import count_parts
from prefchat_jax.training.start import initial_params, load_source, model_shape
from prefchat_jax.training.steps import predict
from prefchat_jax.training.warm_start import grow

LOGITS = jax.jit(bucket_logits, static_argnums=0)
NAMES = ("parcel", "refund", "login", "hours", "price")
SIZES = {"base": (), "large": (8,), "xlarge": (8, 12), "xxlarge": (8, 12, 16)}
CHAIN = [*itertools.pairwise(SIZES.values()), ((), (8, 12, 16)), ((8,), (8, 12, 16))]
WIDER = [((8,), (11,)), ((8, 12), (9, 20)), ((8,), (10, 12)), ((8, 12), (8, 13, 3))]
BUCKETS = {
    "the same": NAMES,
    "more, fewer and permuted": ("hours", "new", "parcel", "newer"),
}


def _shape(widths, names=NAMES):
    return ModelConfig(
        num_buckets=len(names), vocabulary=256, branch_widths=widths, width=16
    )


def _trained(widths, names=NAMES):
    """Parameters in which nothing is zero, as after training."""
    rng = np.random.default_rng(7)
    params = init_params(_shape(widths, names), jax.random.key(0))
    return jax.tree.map(
        lambda x: np.float32(x + 0.3 * rng.standard_normal(x.shape)), params
    )


def _new(widths, names=NAMES):
    return init_params(_shape(widths, names), jax.random.key(1))


def _oracle(params, names):
    """Logits of fixed vectors by bucket name, in float64, stage by stage."""
    x = np.random.default_rng(1).standard_normal((9, 16))
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["head"])
    return dict(zip(names, oracles.routed_head(x, head).T, strict=True))


@pytest.mark.parametrize("names", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize(("there", "here"), [*CHAIN, *WIDER], ids=str)
def test_a_grown_model_says_what_its_source_says(there, here, names):
    source = _trained(there)
    grown, _ = grow(source, _new(here, names), NAMES, names)
    before, after = _oracle(source, NAMES), _oracle(grown, names)
    for name in set(names) & set(NAMES):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-12, atol=1e-12)
    rng = np.random.default_rng(2)
    bags = (rng.integers(0, 256, (6, 10)), rng.random((6, 10)).astype(np.float32))
    columns = [(NAMES.index(n), i) for i, n in enumerate(names) if n in NAMES]
    old, new = np.array(columns).T
    np.testing.assert_allclose(
        LOGITS(_shape(here, names), grown, *bags)[:, new],
        LOGITS(_shape(there), source, *bags)[:, old],
        rtol=1e-5,
        atol=1e-5,
    )
    for one, other in zip(
        jax.tree.leaves(grown["encoder"]),
        jax.tree.leaves(source["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_new_buckets_start_as_in_a_new_model():
    names = ("new", *NAMES)
    grown, _ = grow(_trained((8, 12)), _new((8, 12), names), NAMES, names)
    fresh = _new((8, 12), names)["head"]
    np.testing.assert_array_equal(
        grown["head"]["base"]["kernel"][:, 0], fresh["base"]["kernel"][:, 0]
    )
    assert grown["head"]["base"]["bias"][0] == 0
    for branch in grown["head"]["branches"].values():
        assert not branch["down"]["kernel"][:, 0].any()


def test_a_new_tree_has_the_structure_of_a_new_model():
    for here in SIZES.values():
        grown, _ = grow(_trained(()), _new(here), NAMES, NAMES)
        assert jax.tree.structure(grown) == jax.tree.structure(_new(here))


def test_the_report_counts_every_value():
    names = ("new", "hours", "parcel")
    source, target = _trained((8, 12)), _new((9, 12, 3), names)
    _, report = grow(source, target, NAMES, names)
    assert report.copied_buckets == ("hours", "parcel")
    assert report.fresh_buckets == ("new",)
    assert report.unused_buckets == ("refund", "login", "price")
    rows = {row.path: row for row in report.paths}
    theirs, ours = flatten(source), flatten(target)
    assert set(rows) == set(ours)
    for path, row in rows.items():
        assert row.copied + row.fresh == ours[path].size
        assert row.target_shape == ours[path].shape
        there = theirs.get(path)
        assert row.source_shape == (None if there is None else there.shape)
        assert row.copied + row.unused == (0 if there is None else there.size)
    how = {path: row.how for path, row in rows.items()}
    assert how["encoder.table"] == how["head.routers.0.kernel"] == "copied"
    assert how["head.branches.1.up.kernel"] == "copied"
    assert how["head.branches.0.up.kernel"] == how["head.scales"] == "grown"
    assert how["head.branches.2.up.kernel"] == how["head.routers.1.bias"] == "fresh"
    kernel = rows["head.base.kernel"]
    assert (kernel.how, kernel.copied, kernel.unused) == ("grown", 32, 48)
    down = rows["head.branches.0.down.kernel"]
    assert (down.copied, down.fresh, down.unused) == (16, 11, 24)


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ((8,), (7,), r"head\.branches\.0\.down\.kernel is \[8, 5\] .* \[7, 5\] in"),
        (
            (8, 12),
            (8,),
            r"head\.branches\.1\.down\.kernel is \[12, 5\] .* is missing in",
        ),
        ((8,), (), r"head\.branches\.0\.down\.kernel is \[8, 5\] .* is missing in"),
    ],
)
def test_what_would_shrink_is_an_error_with_path_and_shapes(there, here, message):
    with pytest.raises(UserError, match=message):
        grow(_trained(there), _new(here), NAMES, NAMES)


def test_another_encoder_is_an_error_with_path_and_shapes():
    other = dataclasses.replace(_shape(()), vocabulary=512)
    target = init_params(other, jax.random.key(0))
    with pytest.raises(UserError, match=r"encoder\.table is \[256, 16\].*\[512, 16\]"):
        grow(_trained(()), target, NAMES, NAMES)


# --- the growth of a run


def _lines(**questions):
    """Rows of labels; nine questions each."""
    rows = [
        {"user": f"{question} {extra}", "assistant": f"Answer {label}.", "label": label}
        for label, question in questions.items()
        for extra in ("", *FILLINGS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def more_path(tmp_path_factory):
    """The corpus of four buckets without one of them, and with two new ones."""
    path = tmp_path_factory.mktemp("more") / "more.jsonl"
    path.write_text(
        _lines(
            vouchers="do you have vouchers",
            refund="money back",
            parcel="where is my parcel",
            hours="when are you open",
            address="where is the shop",
        )
    )
    return path


class Told(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.notices, self.tables = [], {}

    def notice(self, text):
        self.notices.append(text)

    def table(self, title, columns, rows):
        self.tables[title] = {row[0]: row[1:] for row in rows}


def _start(config):
    """(corpus, source, model, params, report) before step 1."""
    corpus, source = load_corpus(config, Silent()), load_source(config)
    model = model_shape(config, corpus, source)
    return corpus, source, model, *initial_params(config, model, corpus, source)


@pytest.mark.parametrize("size", ["base", "xxlarge"])
def test_a_grown_run_starts_with_the_outputs_of_its_source(
    size, run, more_path, tmp_path
):
    config = quick(more_path, tmp_path, weights=str(run.run.path), model_size=size)
    corpus, source, model, params, report = _start(config)
    assert (report.copied_buckets, report.fresh_buckets, report.unused_buckets) == (
        ("hours", "parcel", "refund"),
        ("address", "vouchers"),
        ("login",),
    )
    labels = corpus.labelled.buckets.labels
    new = [labels.index(name) for name in report.copied_buckets]
    old = [source.names.index(name) for name in report.copied_buckets]
    bags = corpus.train.ids, corpus.train.weights
    np.testing.assert_allclose(
        predict(model, params, *bags)[:, new],
        predict(source.shape, source.params, *bags)[:, old],
        rtol=1e-6,
        atol=1e-5,
    )


def test_every_part_of_a_grown_head_learns(run, more_path, tmp_path):
    """Also the new stages, whose scale and down-projection are both 0."""
    small = {"expansion_dim": 4, "epochs": 1, "scorer_epochs": 0}
    large = quick(more_path, tmp_path / "a", model_size="large", **small)
    grown = dataclasses.replace(
        large,
        weights=str(finetune(large).run.path),
        output=str(tmp_path / "b"),
        model_size="xxlarge",
        expansion_dim=5,
        extra_expansion_dim=6,
        third_expansion_dim=7,
        weight_decay=0.0,
    )
    before = flatten(_start(grown)[3])
    assert before["head.scales"][1:].tolist() == [0, 0]
    after = flatten(load_model(finetune(grown).run)[1])
    for path, value in after.items():
        moved = not np.array_equal(value, before[path])
        assert moved == (path.startswith("head.") or path == "encoder.norm.scale"), path


def test_the_run_tells_and_keeps_what_it_took(run, more_path, tmp_path):
    told = Told()
    config = quick(
        more_path,
        tmp_path / "warm",
        weights=str(run.run.path),
        model_size="large",
        epochs=1,
    )
    result = finetune(config, told)
    kept = result.run.read_json("warm_start.json")
    assert kept["weights"] == str(run.run.path)
    assert kept["unused_buckets"] == ["login"]
    paths = {row["path"]: row for row in kept["paths"]}
    assert paths["head.base.kernel"]["source_shape"] == [64, 4]
    assert paths["head.base.kernel"]["target_shape"] == [64, 5]
    how = {path: row["how"] for path, row in paths.items()}
    assert how["scorer.table"] == how["encoder.table"] == "copied"
    assert how["head.base.bias"] == "grown"
    assert how["head.branches.0.up.kernel"] == "fresh"
    assert told.tables["warm start"].keys() == paths.keys()
    assert told.tables["warm start"]["head.base.kernel"] == [
        *("grown", "64 x 4", "64 x 5", "192", "128", "64")
    ]
    assert any(
        "3 copied (hours, parcel, refund), 2 fresh (address, vouchers), 1 unused "
        "(login)" in notice
        for notice in told.notices
    )
    assert how.keys() == set(flatten(load_model(result.run)[1])) | {
        f"scorer.{path}" for path in flatten(load_scorer(result.run)[1])
    }


def test_parameters_are_counted_by_part(run, more_path, tmp_path):
    shape = {"model_size": "xlarge", "expansion_dim": 3, "extra_expansion_dim": 5}
    params = _start(quick(more_path, tmp_path, **shape))[3]
    rows = params["encoder"]["table"].shape[0]
    sizes = {
        "encoder embedding": rows * 64,
        "encoder rest": 64 * 128 + 128 + 128 * 64 + 64,
        "head base": 64 * 5 + 5,
        "branches": (64 + 5) * (3 + 5),
        "routers and scales": 64 * 2 + 2 + 2,
        "final norm": 64,
    }
    parts = count_parts(params, {"x": np.zeros(7)}, head_only=False)
    assert parts == [*((n, s, 0) for n, s in sizes.items()), ("scorer", 0, 7)]
    frozen = {"encoder embedding", "encoder rest"}
    assert count_parts(params, head_only=True) == [
        (name, 0, size) if name in frozen else (name, size, 0)
        for name, size in sizes.items()
    ]


def test_a_grown_run_resumes_to_the_same_bytes(run, more_path, tmp_path, monkeypatch):
    """With a reference policy, which is the grown start again."""
    monkeypatch.setattr("prefchat_jax.training.checkpoints.SAVE_SECONDS", 0.0)
    settings = {"weights": str(run.run.path), "model_size": "xlarge", "epochs": 3}
    settings |= {"pref_objective": "dpo", "scorer_epochs": 1}
    whole = finetune(quick(more_path, tmp_path / "whole", **settings))

    class Stops(Told):
        def epoch(self, metrics):
            if metrics["epoch"] == 2:
                raise InterruptedError

    config = quick(more_path, tmp_path / "halved", **settings)
    with pytest.raises(InterruptedError):
        finetune(config, Stops())
    told = Told()
    resumed = finetune(dataclasses.replace(config, resume=True), told)
    assert told.tables.keys() == {"parameters"}
    for load in (load_model, load_scorer):
        one, other = flatten(load(whole.run)[1]), flatten(load(resumed.run)[1])
        assert {k: v.tobytes() for k, v in one.items()} == {
            k: v.tobytes() for k, v in other.items()
        }


def test_the_reference_policy_of_a_grown_run_is_its_start(
    run, more_path, tmp_path, monkeypatch
):
    config = quick(
        more_path,
        tmp_path / "warm",
        weights=str(run.run.path),
        model_size="large",
        pref_objective="dpo",
    )
    seen = []

    def stop(run, recipe, loop, params, train, *rest):
        seen.append(train)
        raise InterruptedError

    monkeypatch.setattr("prefchat_jax.finetune.fit", stop)
    with pytest.raises(InterruptedError):
        finetune(config)
    (train,) = seen
    corpus, source, _, _, report = _start(config)
    columns = [corpus.labelled.buckets.labels.index(n) for n in report.copied_buckets]
    theirs = predict(source.shape, source.params, train.ids, train.weights)
    wanted = theirs[:, [source.names.index(n) for n in report.copied_buckets]]
    np.testing.assert_allclose(train.ref_logits[:, columns], wanted, atol=1e-5)
    new = np.delete(train.ref_logits, columns, axis=1)
    assert np.abs(new).max() < 0.5  # No opinion.


def test_buckets_are_matched_by_name_and_not_by_number(tmp_path):
    """Two sets that number their intents from 0 mean other ones by a number."""
    rows = lambda *intents: "".join(
        json.dumps({"user": f"{x} {i} {j}", "label": i, "intent": x}) + "\n"
        for i, x in enumerate(intents)
        for j in range(6)
    )
    (tmp_path / "one.jsonl").write_text(rows("pay", "pay", "send", "lose"))
    (tmp_path / "two.jsonl").write_text(rows("lose", "pay", "find"))
    first = finetune(quick(tmp_path / "one.jsonl", tmp_path / "one", epochs=1))
    config = quick(
        tmp_path / "two.jsonl", tmp_path / "two", weights=str(first.run.path)
    )
    report = _start(config)[4]
    assert report.copied_buckets == ("lose",)
    assert report.fresh_buckets == ("pay", "find")
    assert report.unused_buckets == ("pay (label 0)", "pay (label 1)", "send")


def test_clusters_are_those_of_the_same_clustering_alone(tmp_path):
    lines = _lines(a="parcel", b="money", c="open").replace('"label"', '"topic"')
    (tmp_path / "all").write_text(lines)
    (tmp_path / "fewer").write_text(lines.partition("\n")[2])
    settings = {"num_buckets": 3, "epochs": 1}
    run = finetune(quick(tmp_path / "all", tmp_path / "run", **settings)).run.path
    warm = quick(tmp_path / "all", tmp_path / "warm", weights=str(run), **settings)
    assert len(_start(warm)[4].copied_buckets) == 3
    other = dataclasses.replace(warm, data=str(tmp_path / "fewer"))
    assert not _start(other)[4].copied_buckets


def test_shapes_are_those_of_the_source_unless_flags_say_otherwise():
    config = lambda **flags: FinetuneConfig(data="a", output="b", weights="R", **flags)
    assert config().branch_widths((7, 9)) == (7, 9)
    assert config(expansion_dim=8).branch_widths((7, 9)) == (8, 9)
    assert config(model_size="xlarge").branch_widths((7,)) == (768, 1536)
    assert config(model_size="xlarge").branch_widths((999,)) == (999, 1536)
    narrower = config(model_size="xlarge", expansion_dim=5)
    assert narrower.branch_widths((999,)) == (5, 1536)
    assert config(model_size="base").branch_widths((7,)) == ()
    assert FinetuneConfig(data="a", output="b").branch_widths() == (512,)
    with pytest.raises(UserError, match="--weights R has 1 branches"):
        config(extra_expansion_dim=4).branch_widths((7,))
    with pytest.raises(UserError, match="--model_size base has 0 branches"):
        config(model_size="base", expansion_dim=4)
    with pytest.raises(UserError, match="--expansion_dim 0"):
        config(expansion_dim=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--expansion_dim", "4"], "--expansion_dim 4: --weights "),
        (["--scorer_width", "32"], "scorer.context.down.bias is [128]"),
        (["--weights", "{corpus}"], "is not a run directory"),
        (["--weights", "{run}/checkpoints"], "is not a run directory"),
    ],
)
def test_a_start_that_cannot_work_is_one_line(
    flags, message, run, more_path, tmp_path, capsys
):
    argv = ["finetune", "--data", str(more_path), "--output", str(tmp_path / "new")]
    argv += ["--weights", str(run.run.path)]
    argv += [flag.format(run=run.run.path, corpus=more_path) for flag in flags]
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_command_prints_lines_where_nobody_looks(run, more_path, tmp_path, capsys):
    argv = ["finetune", "--data", str(more_path), "--output", str(tmp_path / "new")]
    argv += ["--weights", str(run.run.path), "--epochs", "1", "--scorer_epochs", "0"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "warm start: head.base.bias: how grown, there 4, here 5, copied 3" in out
    assert "parameters: final norm: trained 64, frozen 0\n" in out
    assert (
        "parameters: scorer: trained 0, frozen " in out and "parameters: all: " in out
    )
