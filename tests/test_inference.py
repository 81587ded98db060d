import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import quick

from prefchat_jax import inference
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import finetune
from prefchat_jax.inference import Inference
from prefchat_jax.models.classifier import ModelConfig, init_params
from prefchat_jax.models.heads import mish
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.training import checkpoints, snapshot
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import BRANCH_WIDTHS
from prefchat_jax.training.parameters import fingerprint, flatten, nest
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.snapshot import load_snapshot
from prefchat_jax.training.steps import predict

BITS, VOCABULARY, FEATURES = 10, 512, 24


@pytest.fixture
def featurizer(rng):
    config = FeatureConfig(bits=BITS, max_features=FEATURES)
    rows = np.where(rng.random(2**BITS) < 0.8, np.arange(2**BITS) % VOCABULARY, 0)
    return Featurizer(config, np.ones(2**BITS, np.float32), rows.astype(np.int32))


def _bags(rng, n):
    """Bags of random lengths; the second is empty."""
    ids = rng.integers(0, 2**BITS, (n, FEATURES)).astype(np.int32)
    weights = rng.random((n, FEATURES)).astype(np.float32)
    lengths = rng.integers(1, FEATURES + 1, n)
    lengths[1:2] = 0
    weights[np.arange(FEATURES) >= lengths[:, None]] = 0
    return Bags(ids, weights)


def _random_params(config, rng):
    """No zeros: every branch and every router has its part in the logits."""
    shapes = init_params(config, jax.random.key(0))
    return jax.tree.map(
        lambda x: (rng.standard_normal(x.shape) / 8).astype(np.float32), shapes
    )


@pytest.mark.parametrize("size", BRANCH_WIDTHS)
def test_logits_are_those_of_jax(size, featurizer, rng):
    config = ModelConfig(
        num_buckets=7, vocabulary=VOCABULARY, branch_widths=BRANCH_WIDTHS[size]
    )
    params = _random_params(config, rng)
    ours = Inference.of(featurizer, params)
    assert ours.num_buckets == 7
    for n in (0, 1, 2, 300):
        bags = _bags(rng, n)
        logits = ours.bucket_logits(bags)
        assert logits.dtype == np.float32 and logits.shape == (n, 7)
        expected = predict(config, params, *featurizer.embedded(bags))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        alone = [
            ours.bucket_logits(Bags(bags.ids[i : i + 1], bags.weights[i : i + 1]))
            for i in range(min(n, 3))
        ]
        for i, row in enumerate(alone):
            np.testing.assert_allclose(row[0], logits[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (inference.silu, jax.nn.silu),
        (inference.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
        (inference.mish, mish),
    ],
)
def test_activations_at_any_size_are_those_of_jax(ours, theirs):
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -200, -0.0, 200, 1e4]])
    x = x.astype(np.float32)
    y = ours(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, theirs(x), rtol=2e-6, atol=1e-6)


def test_many_rows_take_little_memory(featurizer, rng):
    config = ModelConfig(num_buckets=7, vocabulary=VOCABULARY, branch_widths=(512,))
    ours = Inference.of(featurizer, _random_params(config, rng))
    bags = _bags(rng, 8192)  # All at once: 50 MB of embeddings.
    tracemalloc.start()
    try:
        ours.bucket_logits(bags)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def _unit_vector(params, tower, ids, weights):
    """The towers' equation in Python floats, feature by feature."""
    table, layers = params["table"].astype(float), params[tower]
    x = sum((w * table[i] for i, w in zip(ids, weights, strict=True)), 0 * table[0])
    x = x / math.sqrt(np.mean(x**2) + 1e-6)
    up = x @ layers["up"]["kernel"].astype(float) + layers["up"]["bias"]
    hidden = np.array([u / (1 + math.exp(-u)) for u in up])
    x = x + hidden @ layers["down"]["kernel"].astype(float) + layers["down"]["bias"]
    return x / math.sqrt(np.sum(x**2) + 1e-12)


def test_the_scorer_equals_its_equation(featurizer, rng):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    tower = lambda: {
        "up": {"kernel": draw(8, 12), "bias": draw(12)},
        "down": {"kernel": draw(12, 8), "bias": draw(8)},
    }
    params = {"table": draw(40, 8), "context": tower(), "response": tower()}
    params["log_scale"] = np.float32(1.5)
    rows = rng.integers(0, 40, 2**BITS).astype(np.int32)
    scoring = dataclasses.replace(featurizer, scorer_rows=rows)
    ours = Inference.of(scoring, {}, params)
    bags = _bags(rng, 150)
    for name, encode in (
        ("context", ours.encode_contexts),
        ("response", ours.encode_responses),
    ):
        vectors = encode(bags)
        assert vectors.dtype == np.float32
        for i in (0, 1, 2, 149):
            learned = rows[bags.ids[i]] > 0
            ids, weights = rows[bags.ids[i]][learned], bags.weights[i][learned]
            expected = _unit_vector(params, name, ids, weights)
            np.testing.assert_allclose(vectors[i], expected, atol=1e-5)
        alone = encode(Bags(bags.ids[:1], bags.weights[:1]))
        np.testing.assert_allclose(alone[0], vectors[0], atol=1e-6)


def test_a_run_without_a_scorer_says_so(featurizer, rng):
    ours = Inference.of(featurizer, {})
    with pytest.raises(ValueError, match="no response scorer"):
        ours.encode_contexts(_bags(rng, 1))
    with pytest.raises(ValueError, match="without responses"):
        half = Inference.of(featurizer, {}, {"table": np.ones((2, 2)), "context": 0})
        half.encode_contexts(_bags(rng, 1))


def test_the_fingerprint_is_the_one_that_stores_carry(featurizer, rng):
    config = ModelConfig(
        num_buckets=3, vocabulary=VOCABULARY, branch_widths=(4, 5, 6), width=8
    )
    params = init_params(config, jax.random.key(3))
    digest = hashlib.sha256(featurizer.idf.tobytes() + featurizer.rows.tobytes())
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    assert fingerprint(params, featurizer) == digest.hexdigest()
    assert Inference.of(featurizer, params).fingerprint == digest.hexdigest()
    assert jax.tree.structure(nest(flatten(params))) == jax.tree.structure(params)


@pytest.fixture
def own_run(run, tmp_path):
    path = shutil.copytree(run.run.path, tmp_path / "run")
    (path / snapshot.CACHE).unlink(missing_ok=True)
    return RunDirectory.open(path)


@pytest.fixture
def bags(own_run):
    return own_run.featurizer().texts(["where is my parcel", "money back", ""])


def _expected(run, bags):
    model, params = load_model(run)
    return predict(model, params, *run.featurizer().embedded(bags))


def _bound(run):
    """The fingerprint of the parameters in orbax."""
    scorer = checkpoints.load_scorer(run)[1]
    return fingerprint(load_model(run)[1], run.featurizer(), scorer)


def _plant(run, **changes):
    """A cache of other parameters, so that a test sees whether it is read."""
    found = load_snapshot(run)
    tensors = {name: 3 * array for name, array in found.tensors.items()}
    cache = run.path / snapshot.CACHE
    snapshot.write_npz(cache, tensors, found.metadata | changes)
    return cache


def _close(logits, expected):
    return np.allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_loading_writes_a_cache_that_the_next_load_reads(own_run, bags, monkeypatch):
    cold = Inference.load(own_run)
    expected = _expected(own_run, bags)
    assert _close(cold.bucket_logits(bags), expected)
    assert (own_run.path / snapshot.CACHE).exists()
    expected_hash = _bound(own_run)
    monkeypatch.setattr(checkpoints, "load_model", None)  # Calling it would raise.
    warm = Inference.load(own_run)
    np.testing.assert_array_equal(warm.bucket_logits(bags), cold.bucket_logits(bags))
    assert warm.fingerprint == cold.fingerprint == expected_hash
    _plant(own_run)
    assert not _close(Inference.load(own_run).bucket_logits(bags), expected)


def _another_step(run, cache):
    config = run.config()
    last = config["last_epoch"]
    os.rename(run.checkpoints / str(last), run.checkpoints / str(last + 1))
    run.write_json("config.json", config | {"last_epoch": last + 1})


def _other_bytes(run, cache):
    step = run.checkpoints / str(run.config()["last_epoch"])
    path = step / "best" / "commit_success.txt"  # Orbax does not read what it says.
    text = path.read_text()
    path.write_text(text.swapcase())
    assert text != text.swapcase() and path.stat().st_size == len(text)


def _other_features(run, cache):
    featurizer = run.featurizer()
    run.write_features(dataclasses.replace(featurizer, idf=featurizer.idf * 2))


def _truncated(run, cache):
    cache.write_bytes(cache.read_bytes()[:-500])


def _flipped(run, cache):
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 255
    cache.write_bytes(content)


def _empty(run, cache):
    cache.write_bytes(b"")


def _older_format(run, cache):
    _plant(run, format=0)


def _no_metadata(run, cache):
    np.savez(cache, **{"classifier.head.base.bias": np.zeros(4)})


@pytest.mark.parametrize(
    "damage",
    [
        _another_step,
        _other_bytes,
        _other_features,
        _truncated,
        _flipped,
        _empty,
        _older_format,
        _no_metadata,
    ],
)
def test_a_stale_or_damaged_cache_is_rebuilt(damage, own_run, bags):
    damage(own_run, _plant(own_run))
    expected, ours = _expected(own_run, bags), Inference.load(own_run)
    assert _close(ours.bucket_logits(bags), expected)
    assert ours.fingerprint == _bound(own_run)
    step = own_run.config()["last_epoch"]
    cached = np.load(own_run.path / snapshot.CACHE)
    assert json.loads(str(cached["metadata"]))["step"] == step
    bias = load_model(own_run)[1]["head"]["base"]["bias"]
    np.testing.assert_array_equal(cached["classifier.head.base.bias"], bias)


def test_other_parameters_in_a_step_of_the_same_number(
    own_run, bags, corpus_path, tmp_path
):
    before = Inference.load(own_run).bucket_logits(bags)
    other = finetune(quick(corpus_path, tmp_path / "other", lr=0.03)).run
    step = str(own_run.config()["last_epoch"])
    shutil.rmtree(own_run.checkpoints / step)
    shutil.copytree(other.checkpoints / step, own_run.checkpoints / step)
    after = Inference.load(own_run).bucket_logits(bags)
    assert _close(after, _expected(own_run, bags)) and not _close(after, before)


def test_what_training_alone_needs_does_not_count(own_run, bags):
    _plant(own_run)
    step = own_run.checkpoints / str(own_run.config()["last_epoch"])
    shutil.rmtree(step / "last")
    logits = Inference.load(own_run).bucket_logits(bags)
    assert not _close(logits, _expected(own_run, bags))


def test_a_cache_hides_no_damaged_or_unfinished_step(own_run):
    Inference.load(own_run)
    config = own_run.config()
    shutil.rmtree(own_run.checkpoints / str(config["last_epoch"]) / "best")
    with pytest.raises(UserError, match="cannot be loaded"):
        Inference.load(own_run)
    del config["last_epoch"]
    own_run.write_json("config.json", config)
    with pytest.raises(UserError, match="is not finished"):
        Inference.load(own_run)


def test_a_read_only_run_is_served_without_a_cache(own_run, bags, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions do not stop root.
    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    logits = Inference.load(own_run).bucket_logits(bags)
    assert _close(logits, _expected(own_run, bags))
    assert not list(own_run.path.glob("*inference*"))


def test_a_warm_cache_needs_no_jax(own_run):
    code = (
        "import sys\n"
        "from prefchat_jax.inference import Inference\n"
        "from prefchat_jax.training.run_directory import RunDirectory\n"
        "ours = Inference.load(RunDirectory.open(sys.argv[1]))\n"
        "logits = ours.bucket_logits(ours.featurizer.texts(['where is my parcel']))\n"
        "print(len(ours.fingerprint), logits.argmax(), *sys.modules)\n"
    )
    argv = [sys.executable, "-c", code, str(own_run.path)]
    cold, warm = (
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert cold[:2] == warm[:2]
    assert "jax" in cold
    assert not {"jax", "flax", "orbax", "optax", "scipy"} & set(warm)


def test_an_accelerator_computes_with_jax(own_run, bags, monkeypatch):
    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *name: devices())
    logits = Inference.load(own_run, device="gpu").bucket_logits(bags)
    np.testing.assert_array_equal(logits, _expected(own_run, bags))


def test_a_device_that_is_not_there_is_an_error(own_run):
    with pytest.raises(UserError, match="--device npu: use auto, cpu"):
        Inference.load(own_run, device="npu")
    with pytest.raises(UserError, match="--device tpu: JAX finds none here"):
        Inference.load(own_run, device="tpu")


def _read(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            tensors = dict(arrays)
        return tensors, json.loads(str(tensors.pop("metadata")))
    with safetensors.safe_open(path, "numpy") as file:
        return safetensors.numpy.load_file(path), json.loads(
            file.metadata()["metadata"]
        )


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_an_export_reads_back_as_orbax_has_it(format, own_run, tmp_path, capsys):
    path = tmp_path / f"model.{format}"
    argv = ["export", str(own_run.path), "--output", str(path)]
    assert main(argv) == 0, capsys.readouterr().err
    tensors, metadata = _read(path)
    model, params = load_model(own_run)
    trees = {"classifier": params, "scorer": checkpoints.load_scorer(own_run)[1]}
    leaves = jax.tree.leaves_with_path(trees)
    for keys, leaf in leaves:
        array = tensors.pop(".".join(str(key.key) for key in keys))
        assert array.dtype == leaf.dtype
        np.testing.assert_array_equal(array, leaf)
    featurizer = own_run.featurizer()
    for name in ("rows", "idf", "scorer_rows"):
        array = tensors.pop(f"featurizer.{name}")
        np.testing.assert_array_equal(array, getattr(featurizer, name))
    assert not tensors
    config = own_run.config()
    assert metadata["format"] == 1 and metadata["step"] == config["last_epoch"]
    assert metadata["model"] == json.loads(json.dumps(dataclasses.asdict(model)))
    assert metadata["labels"] == own_run.read_json("labels.json")
    assert metadata["checkpoint"] == load_snapshot(own_run).checkpoint
    assert f"{len(leaves) + 3} tensors" in capsys.readouterr().out.replace("\n", " ")
    again = tmp_path / f"again.{format}"
    flags = ["--weights", str(own_run.path), "--format", format]
    assert main(["export", *flags, "--output", str(again)]) == 0
    assert again.read_bytes() == path.read_bytes()


def test_format_beats_an_ending_that_says_nothing(
    own_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.bin"
    argv = ["export", str(own_run.path), "--output", path.name, "--format"]
    assert main([*argv, "npz"]) == 0
    assert path.read_bytes()[:2] == b"PK"
    assert capsys.readouterr().out.startswith("model.bin: ")
    assert main([*argv, "safetensors"]) == 0
    assert capsys.readouterr().out.startswith("model.bin (replaced): ")
    assert "classifier.encoder.table" in safetensors.numpy.load_file(path)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--output", "m.npz", "--format", "pickle"], "format"),
        (["--output", "m.npz", "--format", "safetensors"], "ends like npz"),
        (["--output", "model"], "end it in .safetensors or .npz"),
        (["--output", "{run}/m.npz"], "lies in the run itself"),
        (["--output", "{run}", "--format", "npz"], "is a folder"),
        (["--output", "nowhere/m.npz"], "--output nowhere/m.npz: no such folder"),
        (["--outptu", "m.npz"], "did you mean --output"),
        ([], "output"),
    ],
)
def test_a_wrong_export_flag_is_one_line(
    argv, message, own_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = [arg.format(run=own_run.path) for arg in argv]
    assert main(["export", "--weights", str(own_run.path), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("m*"))


def test_export_of_no_run_and_without_safetensors_is_one_line(
    own_run, tmp_path, monkeypatch, capsys
):
    output = ["--output", str(tmp_path / "m.safetensors")]
    assert main(["export", "--weights", str(tmp_path / "none"), *output]) == 2
    assert "not a run directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert main(["export", str(own_run.path), *output]) == 2
    error = capsys.readouterr().err
    assert "install prefchat-jax[export]" in error and error.count("\n") == 1
