"""The reference's network for one step in float64, on its own names; and its files.

Written from its description, apart from `prefchat_jax.compat`, which only names the
tensors of random weights: an oracle for any. `write_pth` writes what `torch.save`
writes, without torch.
"""

import collections
import math
import pickle
import sys
import types
import zipfile

import numpy as np

from prefchat_jax.compat import tensors

WIDTHS = {
    "large": (24,),
    "xlarge": (24, 16),
    "xxlarge": (24, 16, 12),
    "reference_base": (24, 16, 12, 8),
}
LABELS = ("hours", "login", "parcel", "refund")
REPLIES = {
    str(i): [{"text": f"The answer about {name}.", "count": 2, "vec": [0.0]}]
    for i, name in enumerate(LABELS)
}
META = {
    "feature_mode": "legacy",
    "lr": 1e-4,
    "labels": [{"label": name} for name in LABELS],
    "buckets": REPLIES,
}

SCALARS = ("alpha", "beta", "gamma", "zeta", "theta", "lambda_")


def logits(state, x):
    """`[n, C]` of `[n, 128]`."""
    get = lambda name: np.asarray(state[f"layers.{name}"], np.float64)
    x = x.astype(np.float64) @ get("0.weight").T + get("0.bias")
    x = _silu(_norm(x, get("1.weight")))
    u = _norm(x, get("3.norm.weight"))
    shared = u @ get("3.kv_lora.0.weight").T + get("3.kv_lora.1.weight")
    value = shared @ get("3.v_proj.weight").T @ get("3.o_proj.weight").T
    x = x + get("3.layer_scale.gamma") * value
    x = x + get("4.layer_scale.gamma") * _mamba(get, _norm(x, get("4.norm.weight")))
    u = _norm(x, get("5.norm.weight"))
    x = x + get("5.layer_scale.gamma") * _kept(u, np.abs(u), 32)
    u = _norm(x, get("6.norm.weight"))
    hidden = _silu(
        u @ get("6.saliency_predictor.0.weight").T + get("6.saliency_predictor.0.bias")
    )
    salience = hidden @ get("6.saliency_predictor.2.weight").T + get(
        "6.saliency_predictor.2.bias"
    )
    x = x + get("6.layer_scale.gamma") * _kept(u, _sigmoid(salience), 205)
    a, b = x[:, :128], x[:, 128:]
    a = a + _norm(b, get("7.f.0.weight")) @ get("7.f.1.weight").T
    b = b + _norm(a, get("7.g.0.weight")) @ get("7.g.1.weight").T
    x = np.concatenate([a, b], axis=1)
    u = _norm(x, get("8.norm.weight"))
    gate = _softmax(u @ get("8.router.weight").T + get("8.router.bias"))
    chunks = []
    for chunk in np.split(u, 4, axis=1):
        mixed = 0.0
        for e in range(4):
            value = (chunk @ get(f"8.experts.{e}.qkv.weight").T)[:, 128:]
            out = value @ get(f"8.experts.{e}.proj.weight").T
            out = out + get(f"8.experts.{e}.proj.bias")
            mixed = mixed + gate[:, [e]] * out
        chunks.append(mixed)
    x = x + np.concatenate(chunks, axis=1) @ get("8.out_proj.weight").T
    x = _norm(x, get("9.norm.weight")) @ get("9.weight").T
    return _norm(_head(lambda name: get(f"10.{name}"), state, x), get("11.weight"))


def _mamba(get, u):
    a, z = np.split(u @ get("4.mamba.in_proj.weight").T, 2, axis=1)
    now = get("4.mamba.conv1d.weight")[:, 0, 3] * a + get("4.mamba.conv1d.bias")
    u = now * _sigmoid(z)
    found = u @ get("4.mamba.x_proj.weight").T
    step, enters, leaves = found[:, :1], found[:, 1:17], found[:, 17:]
    dt = step @ get("4.mamba.dt_proj.weight").T + get("4.mamba.dt_proj.bias")
    state = (np.logaddexp(dt, 0) * u)[:, :, None] * enters[:, None, :]
    y = (state * leaves[:, None, :]).sum(axis=2) + get("4.mamba.D") * u
    y = y @ get("4.mamba.out_proj.weight").T
    return get("4.conv.weight")[:, 0, 3] * y


def _head(get, state, x):
    z = x @ get("weight").T + get("bias")
    if "layers.10.adapters_up.0.weight" in state:
        return z + _base_head(get, x)
    outputs, suffixes = [], ("", "_b", "_c")
    for i, suffix in enumerate(suffixes):
        if f"layers.10.adapter_up{suffix}.weight" not in state:
            break
        hidden = ACTIVATIONS[i](x @ get(f"adapter_up{suffix}.weight").T)
        outputs.append(hidden @ get(f"adapter_down{suffix}.weight").T)
        if i == 0:
            mixed = outputs[0]
        else:
            name = ("router", "router2")[i - 1]
            shares = _softmax(x @ get(f"{name}.weight").T + get(f"{name}.bias"))
            mixed = sum(shares[:, [j]] * outputs[j] for j in range(i + 1))
        z = z + get(SCALARS[i]) * mixed
    return z


def _base_head(get, x):
    z, outputs = 0.0, []
    for i in range(4):
        hidden = ACTIVATIONS[i](x @ get(f"adapters_up.{i}.weight").T)
        outputs.append(hidden @ get(f"adapters_down.{i}.weight").T)
        shares = _softmax(x @ get(f"routers.{i}.weight").T + get(f"routers.{i}.bias"))
        z = z + get(f"scales.{i}") * sum(
            shares[:, [j]] * outputs[j] for j in range(i + 1)
        )
    h = _norm(x, get("pre_norm.weight")) + get("pre_norm.bias")
    domains = _softmax(h @ get("domain_router.weight").T + get("domain_router.bias"))
    experts = (_silu(h) @ get("domain_experts.weight").T).reshape(len(x), 4, -1)
    dom = np.einsum("nk,nkc->nc", domains, experts)
    calibration = np.tanh(h @ get("calib_gate.weight").T + get("calib_gate.bias"))
    thought = _silu(x @ get("reasoning_gate.0.weight").T)
    thought = thought @ get("reasoning_gate.2.weight").T + get("reasoning_gate.2.bias")
    return (
        z
        + get("zeta") * dom
        + get("theta") * calibration
        + get("lambda_") * np.tanh(thought)
    )


def _norm(x, weight):
    centred = x - x.mean(axis=1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)


def _kept(u, size, count):
    """`u` where `size` is among the largest `count` of its row."""
    out, rows = np.zeros_like(u), np.arange(len(u))[:, None]
    places = np.argsort(-size, axis=1)[:, :count]
    out[rows, places] = u[rows, places]
    return out


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _mish(x):
    return x * np.tanh(np.logaddexp(x, 0))


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


ACTIVATIONS = (_silu, _gelu, _mish, lambda x: np.maximum(x, 0))


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            kind = sys.modules["torch"].FloatStorage
            return "storage", kind, obj.key, "cpu", obj.array.size
        return None


class _Tensor:
    def __init__(self, key, array):
        self.key, self.array = key, array

    def __reduce__(self):
        stride = tuple(step // 4 for step in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        stored = _Storage(self.key, self.array)
        shape = self.array.shape
        return rebuild, (stored, 0, shape, stride, False, collections.OrderedDict())


def write_pth(path, state, monkeypatch):
    """Writes a state dict of float32 arrays as `torch.save` does."""

    def _rebuild_tensor_v2():
        pass

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    arrays = {name: np.array(a, "<f4", order="C") for name, a in state.items()}
    tensors = {name: _Tensor(str(i), a) for i, (name, a) in enumerate(arrays.items())}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch", torch)
        patched.setitem(sys.modules, "torch._utils", utils)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("model/data.pkl", "w") as file:
                _Pickler(file, protocol=2).dump(tensors)
            for tensor in tensors.values():
                archive.writestr(f"model/data/{tensor.key}", tensor.array.tobytes())
    return path


def random_state(head, buckets=len(LABELS), seed=0):
    """Random weights in which nothing is zero."""
    rng = np.random.default_rng(seed)
    rows = tensors.expected_tensors(tensors.HeadShape(head, WIDTHS[head], buckets))
    return {
        name: (rng.uniform(-1, 1, shape) / np.sqrt([1, *shape][-1])).astype("f4")
        for name, (_, shape) in rows.items()
    }
