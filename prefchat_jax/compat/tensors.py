"""The reference's state dicts as our parameters: names, shapes, and what is wrong.

Its Linear weights are `[out, in]` and become kernels `[in, out]`; the weights of its
depth-wise convolutions, `[channels, 1, taps]`, become `[taps, channels]`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.training.parameters import nest

HeadName = Literal["reference_base", "large", "xlarge", "xxlarge"]
# By their branches, one to four.
HEADS: tuple[HeadName, ...] = ("large", "xlarge", "xxlarge", "reference_base")

_HEAD = "layers.10."
_GATES = ("alpha", "beta", "gamma")
_SUFFIXES = ("", "_b", "_c")  # Of the adapters, in order.
# A tensor of a head that is larger than ours, and that head.
_LARGER = {
    "layers.11.adapter_up.weight": "megalarge",
    "layers.10.adapter_up_e.weight": "ultralarge",
    "layers.10.adapter_up_d.weight": "xxxlarge",
}
# By the reference's name of a tensor: our path, and the reference's shape.
_Rows = dict[str, tuple[str, tuple[int, ...]]]

_SHOWN = 3  # Tensors that one message names.

_ENCODER: _Rows = {
    "layers.0.weight": ("input.kernel", (256, 128)),
    "layers.0.bias": ("input.bias", (256,)),
    "layers.1.weight": ("input_norm.scale", (256,)),
    "layers.3.norm.weight": ("attention.norm.scale", (256,)),
    "layers.3.q_lora.0.weight": ("attention.query_down.kernel", (32, 256)),
    "layers.3.q_lora.1.weight": ("attention.query_down.bias", (32,)),
    "layers.3.q_lora.2.weight": ("attention.query_up.kernel", (256, 32)),
    "layers.3.kv_lora.0.weight": ("attention.shared.kernel", (64, 256)),
    "layers.3.kv_lora.1.weight": ("attention.shared.bias", (64,)),
    "layers.3.k_proj.weight": ("attention.key.kernel", (256, 64)),
    "layers.3.v_proj.weight": ("attention.value.kernel", (256, 64)),
    "layers.3.o_proj.weight": ("attention.out.kernel", (256, 256)),
    "layers.3.layer_scale.gamma": ("attention.layer_scale", (256,)),
    "layers.4.norm.weight": ("state_space.norm.scale", (256,)),
    "layers.4.mamba.in_proj.weight": ("state_space.in.kernel", (1024, 256)),
    "layers.4.mamba.conv1d.weight": ("state_space.before.kernel", (512, 1, 4)),
    "layers.4.mamba.conv1d.bias": ("state_space.before.bias", (512,)),
    "layers.4.mamba.x_proj.weight": ("state_space.select.kernel", (33, 512)),
    "layers.4.mamba.dt_proj.weight": ("state_space.step.kernel", (512, 1)),
    "layers.4.mamba.dt_proj.bias": ("state_space.step.bias", (512,)),
    "layers.4.mamba.A": ("state_space.decay", (512, 16)),
    "layers.4.mamba.D": ("state_space.skip", (512,)),
    "layers.4.mamba.out_proj.weight": ("state_space.out.kernel", (256, 512)),
    "layers.4.conv.weight": ("state_space.after.kernel", (256, 1, 7)),
    "layers.4.layer_scale.gamma": ("state_space.layer_scale", (256,)),
    "layers.5.norm.weight": ("largest.norm.scale", (256,)),
    "layers.5.layer_scale.gamma": ("largest.layer_scale", (256,)),
    "layers.6.norm.weight": ("salient.norm.scale", (256,)),
    "layers.6.layer_scale.gamma": ("salient.layer_scale", (256,)),
    "layers.6.saliency_predictor.0.weight": ("salient.down.kernel", (64, 256)),
    "layers.6.saliency_predictor.0.bias": ("salient.down.bias", (64,)),
    "layers.6.saliency_predictor.2.weight": ("salient.up.kernel", (256, 64)),
    "layers.6.saliency_predictor.2.bias": ("salient.up.bias", (256,)),
    "layers.7.f.0.weight": ("reversible.f.norm.scale", (128,)),
    "layers.7.f.1.weight": ("reversible.f.kernel", (128, 128)),
    "layers.7.g.0.weight": ("reversible.g.norm.scale", (128,)),
    "layers.7.g.1.weight": ("reversible.g.kernel", (128, 128)),
    "layers.8.norm.weight": ("experts.norm.scale", (256,)),
    "layers.8.router.weight": ("experts.router.kernel", (4, 256)),
    "layers.8.router.bias": ("experts.router.bias", (4,)),
    "layers.8.out_proj.weight": ("experts.out.kernel", (256, 256)),
    "layers.9.norm.weight": ("plain.norm.scale", (256,)),
    "layers.9.weight": ("plain.kernel", (256, 256)),
}
_ENCODER |= {
    f"layers.8.experts.{i}.{theirs}": (f"experts.experts.{i}.{ours}", shape)
    for i in range(4)
    for theirs, ours, shape in (
        ("qkv.weight", "qkv.kernel", (192, 64)),
        ("proj.weight", "out.kernel", (64, 64)),
        ("proj.bias", "out.bias", (64,)),
    )
}


class HeadShape(NamedTuple):
    """What the tensors of a head say about it."""

    name: HeadName
    widths: tuple[int, ...]
    num_buckets: int


def head_shape(shapes: Mapping[str, tuple[int, ...]], source: str) -> HeadShape:
    """Which head a checkpoint has, by the names of its tensors.

    Args:
      shapes: shapes by tensor name.
      source: the file, for the message.

    Raises:
      UserError: it has no head, or one of the larger ones.
    """
    for tensor, name in _LARGER.items():
        if tensor in shapes:
            raise UserError(
                f"{source} has the head {name}: import base, large, xlarge or xxlarge."
            )
    if not shapes.get(f"{_HEAD}weight"):
        raise UserError(
            f"{source} has no {_HEAD}weight: it is no checkpoint of the reference."
        )
    buckets = shapes[f"{_HEAD}weight"][0]
    width_of = lambda name: (shapes[name] or (0,))[0]
    base = [f"{_HEAD}adapters_up.{i}.weight" for i in range(4)]
    if base[0] in shapes:
        widths = tuple(width_of(name) for name in base if name in shapes)
        if len(widths) < len(base):
            raise UserError(f"{source} lacks {base[len(widths)]}.")
        return HeadShape("reference_base", widths, buckets)
    ups = [f"{_HEAD}adapter_up{suffix}.weight" for suffix in _SUFFIXES]
    widths = tuple(width_of(name) for name in ups if name in shapes)
    if not widths:
        raise UserError(f"{source} lacks {ups[0]}: its head has no branch.")
    return HeadShape(HEADS[len(widths) - 1], widths, buckets)


def expected_tensors(head: HeadShape) -> _Rows:
    """Our path and the reference's shape of each tensor, by the reference's name."""
    buckets, widths = head.num_buckets, head.widths
    rows: _Rows = {
        "layers.11.weight": ("head.norm.scale", (buckets,)),
        f"{_HEAD}weight": ("head.base.kernel", (buckets, 256)),
        f"{_HEAD}bias": ("head.base.bias", (buckets,)),
    }
    base = head.name == "reference_base"
    for i, width in enumerate(widths):
        up, down, scale = (
            (f"adapters_up.{i}", f"adapters_down.{i}", f"scales.{i}")
            if base
            else (f"adapter_up{_SUFFIXES[i]}", f"adapter_down{_SUFFIXES[i]}", _GATES[i])
        )
        branch = f"head.branches.{i}"
        rows[f"{_HEAD}{up}.weight"] = (f"{branch}.up.kernel", (width, 256))
        rows[f"{_HEAD}{down}.weight"] = (f"{branch}.down.kernel", (buckets, width))
        rows[f"{_HEAD}{scale}"] = (f"head.scales.{i}", ())
    for i in range(len(widths) if base else len(widths) - 1):
        name = f"routers.{i}" if base else ("router", "router2")[i]
        router = f"head.routers.{i}"
        rows[f"{_HEAD}{name}.weight"] = (f"{router}.kernel", (i + 2, 256))
        rows[f"{_HEAD}{name}.bias"] = (f"{router}.bias", (i + 2,))
    if base:
        rows |= {f"{_HEAD}{name}": row for name, row in _base_parts(buckets).items()}
    encoder = {
        name: (f"encoder.{path}", shape) for name, (path, shape) in _ENCODER.items()
    }
    return encoder | rows


def to_params(
    state: Mapping[str, np.ndarray], source: str
) -> tuple[HeadShape, dict[Any, Any]]:
    """Parameters as `compat.champion.logits` takes them, float32.

    Args:
      state: tensors by the reference's names.
      source: the file, for messages.

    Returns:
      The shape of the head, and the parameters as a nested dict.

    Raises:
      UserError: a tensor is missing, unknown, of another shape, or not finite.
    """
    head = head_shape({name: array.shape for name, array in state.items()}, source)
    expected = expected_tensors(head)
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    misfits = [
        f"{name} is {list(state[name].shape)} where {list(shape)} is due"
        for name, (_, shape) in expected.items()
        if name in state and state[name].shape != shape
    ]
    wrong = [
        f"{what} {_listed(names)}"
        for what, names in (("lacks", missing), ("has the unknown", unknown))
        if names
    ]
    if wrong or misfits:
        reasons = "; ".join([*wrong, _listed(misfits)] if misfits else wrong)
        raise UserError(f"{source} does not fit the head {head.name}: {reasons}.")
    arrays = {}
    for name, (path, _) in expected.items():
        array = np.asarray(state[name], np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{source}: {name} has numbers that are not finite.")
        arrays[path] = _as_kernel(array) if path.endswith(".kernel") else array
    params = nest(arrays)
    scales, domains = params["head"]["scales"], params["head"].get("domains")
    params["head"]["scales"] = np.stack([scales[i] for i in range(len(scales))])
    if domains:  # The logits of each domain apart.
        experts = domains["experts"]["kernel"].reshape(256, -1, head.num_buckets)
        domains["experts"]["kernel"] = experts
    return head, params


def empty_params(head: HeadShape) -> dict[Any, Any]:
    """Zeros where the parameters of a checkpoint with this head would be."""
    rows = expected_tensors(head).items()
    return to_params({name: np.zeros(shape) for name, (_, shape) in rows}, "")[1]


def _base_parts(buckets: int) -> _Rows:
    """What only the reference's base head has."""
    return {
        "pre_norm.weight": ("head.pre_norm.scale", (256,)),
        "pre_norm.bias": ("head.pre_norm.bias", (256,)),
        "domain_router.weight": ("head.domains.router.kernel", (4, 256)),
        "domain_router.bias": ("head.domains.router.bias", (4,)),
        "domain_experts.weight": ("head.domains.experts.kernel", (4 * buckets, 256)),
        "zeta": ("head.domains.scale", ()),
        "calib_gate.weight": ("head.calibration.kernel", (buckets, 256)),
        "calib_gate.bias": ("head.calibration.bias", (buckets,)),
        "theta": ("head.calibration.scale", ()),
        "reasoning_gate.0.weight": ("head.reasoning.down.kernel", (64, 256)),
        "reasoning_gate.2.weight": ("head.reasoning.up.kernel", (buckets, 64)),
        "reasoning_gate.2.bias": ("head.reasoning.up.bias", (buckets,)),
        "lambda_": ("head.reasoning.scale", ()),
    }


def _as_kernel(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[:, 0]
    return np.ascontiguousarray(array.T)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
