"""The reference's network: its own logits to 1e-5, from its own files."""

import json
import pickle
import zipfile

import jax
import numpy as np
import pytest

from prefchat_jax import inference
from prefchat_jax.compat import champion, pth, sequence, tensors
from prefchat_jax.errors import UserError
from prefchat_jax.training.parameters import flatten

HEADS = {
    "base": "reference_base",
    "large": "large",
    "xlarge": "xlarge",
    "xxlarge": "xxlarge",
}
LOGITS = jax.jit(champion.logits, static_argnames="mixers")
BLOCKS = jax.jit(
    lambda params, x, mixers: list(champion.blocks(params, x, mixers)),
    static_argnames="mixers",
)


@pytest.fixture(scope="module")
def state():
    """A random checkpoint with a large head, shaped by hand."""
    rng = np.random.default_rng(0)
    head = tensors.HeadShape("large", (8,), 3)
    return {
        name: rng.normal(size=shape, scale=0.1).astype(np.float32)
        for name, (_, shape) in tensors.expected_tensors(head).items()
    }


@pytest.mark.parametrize("name", HEADS)
def test_the_logits_of_the_reference(shared, name):
    path = shared / "fixtures" / f"{name}.pth"
    head, params = tensors.to_params(pth.read_state(path), str(path))
    assert head.name == HEADS[name]
    with np.load(shared / "fixtures" / f"{name}_io.npz") as arrays:
        found = [
            np.abs(
                LOGITS(params, arrays[f"x{i}"], mixers=mixers) - arrays[f"logits{i}"]
            ).max()
            for i, mixers in ((1, None), (2, sequence.GENERAL))
        ]
    print(f"{name}: logits [8,1,10] within {found[0]:.1e}, [2,5,10] {found[1]:.1e}")
    assert max(found) < 1e-5


def test_the_output_of_every_layer(shared):
    path = shared / "fixtures" / "base.pth"
    _, params = tensors.to_params(pth.read_state(path), str(path))
    with (
        np.load(shared / "fixtures" / "base_io.npz") as inputs,
        np.load(shared / "fixtures" / "base_layerwise.npz") as outputs,
    ):
        for i, mixers in (("x1", None), ("x2", sequence.GENERAL)):
            found = BLOCKS(params["encoder"], inputs[i], mixers)
            for number, output in enumerate(found):
                expected = outputs[f"{i}_layer{number}"]
                # Layer 4 adds numbers of some 10,000, in an order of its own.
                atol = 4e-6 * max(np.abs(expected).max(), 10)
                np.testing.assert_allclose(output, expected, rtol=1e-6, atol=atol)


def test_the_gradients_of_the_reference(shared):
    """Norms by tensor, so that training goes on as there; one step, as it trains."""
    path = shared / "fixtures" / "xxlarge.pth"
    head, params = tensors.to_params(pth.read_state(path), str(path))
    with np.load(shared / "fixtures" / "xxlarge_io.npz") as arrays:
        x = arrays["x1"]

    def loss(params):
        log_probs = jax.nn.log_softmax(champion.logits(params, x)[:, 0])
        return -log_probs[np.arange(8), np.arange(8)].mean()

    grads = flatten(jax.jit(jax.grad(loss))(params))
    info = json.loads((shared / "fixtures" / "xxlarge_info.json").read_text())
    norms = info["ce_grad_norms_f64_x1_labels_arange8"]
    paths = {name: row[0] for name, row in tensors.expected_tensors(head).items()}
    assert norms.keys() == paths.keys()
    for name, norm in norms.items():
        parent, _, last = paths[name].rpartition(".")
        grad = (
            grads[parent][int(last)] if parent == "head.scales" else grads[paths[name]]
        )
        found = np.linalg.norm(grad)
        assert found == pytest.approx(norm or 0, rel=1e-3, abs=1e-6), name


def test_a_pth_holds_what_the_npz_does(shared):
    path = shared / "fixtures" / "large.pth"
    with np.load(path.with_suffix(".npz")) as arrays:
        expected = dict(arrays)
    found = pth.read_state(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_one_step_needs_no_recurrence(state, rng):
    _, params = tensors.to_params(state, "here")
    x = rng.normal(size=(4, 1, 128)).astype(np.float32)
    general = LOGITS(params, x, mixers=sequence.GENERAL)
    np.testing.assert_allclose(LOGITS(params, x), general, atol=2e-6)
    scans = lambda mixers: str(
        jax.make_jaxpr(lambda x: champion.logits(params, x, mixers=mixers))(x)
    ).count("scan[")
    # Two go over the bits of what the sparse blocks keep, none over time.
    assert (scans(sequence.GENERAL), scans(None)) == (3, 2)


def test_a_sequence_is_not_taken_for_one_step(state, rng):
    _, params = tensors.to_params(state, "here")
    with pytest.raises(ValueError, match="Sequences need the mixers"):
        champion.logits(params, rng.normal(size=(1, 2, 128)).astype(np.float32))


def test_steps_are_mixed_as_the_equations_say(rng):
    """The scan against the recurrence written out."""
    u, dt = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    b, c = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    decay = rng.normal(size=(5, 2)).astype(np.float32)
    found = sequence.scan_states(decay, u, dt, b, c)
    memory = np.zeros((3, 5, 2))
    for t in range(4):
        memory = memory * np.exp(dt[:, t, :, None] * decay)
        memory += (dt * u)[:, t, :, None] * b[:, t, None]
        np.testing.assert_allclose(
            found[:, t], (memory * c[:, t, None]).sum(-1), atol=1e-5
        )


def test_the_head_is_the_routed_head(state, rng):
    """What chat computes without JAX, before the norm over the logits."""
    state = {k: v for k, v in state.items() if not k.startswith("layers.10.")}
    head = tensors.HeadShape("xxlarge", (8, 6, 4), 3)
    for name, (_, shape) in tensors.expected_tensors(head).items():
        if name not in state:
            state[name] = rng.normal(size=shape).astype(np.float32)
    _, params = tensors.to_params(state, "here")
    x = rng.normal(size=(5, 256)).astype(np.float32)
    expected = inference.apply_head(params["head"], x)
    found = champion.head_logits(params["head"], x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_dropout_is_for_training(state, rng):
    _, params = tensors.to_params(state, "here")
    x = rng.normal(size=(4, 1, 128)).astype(np.float32)
    first, second = (LOGITS(params, x, key=jax.random.key(i)) for i in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.3.k_proj.weight": None}, "lacks layers.3.k_proj.weight"),
        ({"layers.10.router.weight": (2, 256)}, "the unknown layers.10.router.weight"),
        ({"layers.9.weight": (256, 9)}, r"9.weight is \[256, 9\] where \[256, 256\]"),
        ({"layers.10.weight": None}, "no checkpoint of the reference"),
        ({"layers.10.weight": ()}, "no checkpoint of the reference"),
        ({"layers.10.adapter_up.weight": None}, "its head has no branch"),
        ({"layers.10.adapter_up.weight": ()}, "adapter_up.weight is"),
        ({"layers.10.adapter_up_e.weight": (1,)}, "has the head ultralarge"),
        ({"layers.10.adapters_up.0.weight": (8, 256)}, "lacks layers.10.adapters_up.1"),
    ],
)
def test_a_checkpoint_that_does_not_fit(state, change, message):
    state = dict(state)
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=message) as error:
        tensors.to_params(state, "file.pth")
    assert "file.pth" in str(error.value)


def test_numbers_that_are_not_finite(state):
    bad = state["layers.9.weight"].copy()
    bad[3, 4] = np.nan
    with pytest.raises(UserError, match=r"layers.9.weight has numbers"):
        tensors.to_params(state | {"layers.9.weight": bad}, "file.pth")


class _Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _zipped(path, pickled, storage=b"", **how):
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", storage)
    return path


def test_a_pickle_that_runs_something_is_refused(tmp_path):
    victim = tmp_path / "victim"
    bad = _zipped(tmp_path / "bad.pth", pickle.dumps({"w": _Command(victim)}))
    with pytest.raises(UserError, match=r"bad.pth names _?io.open.*nothing was run"):
        pth.read_state(bad)
    assert not victim.exists()


@pytest.mark.parametrize(
    "statement",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"ccollections\nOrderedDict.fromkeys\n.",
    ],
)
def test_no_other_callable_is_found(tmp_path, statement):
    with pytest.raises(UserError, match="refused, nothing was run"):
        pth.read_state(_zipped(tmp_path / "bad.pth", statement))


def test_files_that_are_no_state_dict(tmp_path):
    cases = {
        b"": "truncated",
        b"PK\x03\x04 and then nothing": "truncated",
        b"\x80\x02}q\x00.": "torch 1.6",
    }
    path = tmp_path / "file.pth"
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            pth.read_state(path)
    with pytest.raises(UserError, match="Check the path"):
        pth.read_state(tmp_path / "missing.pth")
    for content in (pickle.dumps([1]), pickle.dumps({"a": 1}), pickle.dumps({1: 2})):
        with pytest.raises(UserError, match="no flat dict of tensors"):
            pth.read_state(_zipped(path, content))
    for content in (b"", b"}", b"\x80\x09.", b"(" * 10):
        with pytest.raises(UserError, match="is damaged"):
            pth.read_state(_zipped(path, content))


def test_every_cut_of_a_file_is_one_error(shared, tmp_path):
    whole = (shared / "fixtures" / "large.pth").read_bytes()
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated"):
            pth.read_state(tmp_path / "cut.pth")


def test_a_tensor_stays_within_its_storage():
    storage = np.arange(6, dtype="<f4")
    rebuilt = pth._tensor(storage, 1, (2, 2), (1, 2))
    np.testing.assert_array_equal(rebuilt, [[1, 3], [2, 4]])
    for offset, size, stride in ((0, (7,), (1,)), (5, (2,), (1,)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match="beyond its storage"):
            pth._tensor(storage, offset, size, stride)


def test_a_file_that_torch_writes(tmp_path, state):
    torch = pytest.importorskip("torch", reason="needs torch")
    path = tmp_path / "file.pth"
    weights = {name: torch.tensor(array) for name, array in state.items()}
    square = "layers.9.weight"
    weights[square] = torch.nn.Parameter(weights[square].T)
    torch.save(weights, path)
    found = pth.read_state(path)
    np.testing.assert_array_equal(found.pop(square), state[square].T)
    for name, array in found.items():
        np.testing.assert_array_equal(array, state[name])
