"""The reference's network in PyTorch, and its training step: the peer of `champion`.

Functions of tensors by the reference's own names, as an engineer would write them.
The network takes sequences `[batch, time, 128]`, as the reference's does, which never
have more than one step; `one_step` leaves out what then changes nothing, as ours does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

State = Mapping[str, torch.Tensor]

_STATES = 16
_NUM_EXPERTS = 4
_ACTIVATIONS = (F.silu, F.gelu, F.mish)
_BRANCHES = ("", "_b", "_c")
_SCALES = ("alpha", "beta", "gamma")
_ROUTERS = ("router", "router2")


def logits(state: State, x: torch.Tensor, *, one_step: bool, dropout: float):
    """Logits `[batch, 10]` of features `[batch, 128]`, of sequences of one step."""
    get = lambda name: state[f"layers.{name}"]
    x = x if one_step else x[:, None]
    x = F.silu(_norm(F.linear(x, get("0.weight"), get("0.bias")), get("1.weight")))
    u = _norm(x, get("3.norm.weight"))
    x = x + get("3.layer_scale.gamma") * _attention(get, u, one_step)
    u = _norm(x, get("4.norm.weight"))
    x = x + get("4.layer_scale.gamma") * _state_space(get, u, one_step)
    u = _norm(x, get("5.norm.weight"))
    x = x + get("5.layer_scale.gamma") * _kept(u, u.abs(), 32)
    u = _norm(x, get("6.norm.weight"))
    x = x + get("6.layer_scale.gamma") * _kept(u, _salience(get, u), 205)
    a, b = x.chunk(2, -1)
    a = a + F.linear(_norm(b, get("7.f.0.weight")), get("7.f.1.weight"))
    b = b + F.linear(_norm(a, get("7.g.0.weight")), get("7.g.1.weight"))
    x = torch.cat([a, b], -1)
    x = x + _experts(get, _norm(x, get("8.norm.weight")), one_step)
    x = F.linear(_norm(x, get("9.norm.weight")), get("9.weight"))
    x = _norm(head_logits(state, x, dropout=dropout), get("11.weight"))
    return x if one_step else x[:, 0]


def head_logits(state: State, x: torch.Tensor, *, dropout: float = 0.0):
    """Logits of vectors `[..., width]`, by a head of up to three branches."""
    get = lambda name: state[f"layers.10.{name}"]
    found = F.linear(x, get("weight"), get("bias"))
    outputs: list[torch.Tensor] = []
    for i, (suffix, act) in enumerate(zip(_BRANCHES, _ACTIVATIONS, strict=True)):
        if f"layers.10.adapter_up{suffix}.weight" not in state:
            break
        hidden = act(F.linear(x, get(f"adapter_up{suffix}.weight")))
        hidden = F.dropout(hidden, dropout) if dropout else hidden
        outputs.append(F.linear(hidden, get(f"adapter_down{suffix}.weight")))
        if i == 0:
            mixed = outputs[0]
        else:
            router = _ROUTERS[i - 1]
            shares = F.linear(x, get(f"{router}.weight"), get(f"{router}.bias"))
            shares = shares.softmax(-1)
            mixed = sum(shares[..., [j]] * outputs[j] for j in range(i + 1))
        found = found + get(_SCALES[i]) * mixed
    return found


def make_step(
    state: State,
    loss: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    *,
    lr: float,
    weight_decay: float,
    clip: float | None,
    ema: float | None,
    fused: bool,
) -> Callable[..., float]:
    """A function that trains all of `state` by a step on a batch; gives its loss."""
    trained = list(state.values())
    averages = [tensor.detach().clone() for tensor in trained]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, weight_decay=weight_decay, fused=fused
    )

    def step(*batch: torch.Tensor) -> float:
        optimizer.zero_grad()
        value, _ = loss(state, *batch)
        value.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        if ema is not None:
            with torch.no_grad():
                for average, tensor in zip(averages, trained, strict=True):
                    average.lerp_(tensor, 1 - ema)
        return value.item()

    return step


# --- blocks


def _norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], scale)


def _attention(get, u: torch.Tensor, one_step: bool) -> torch.Tensor:
    shared = F.linear(u, get("3.kv_lora.0.weight")) + get("3.kv_lora.1.weight")
    value = F.linear(shared, get("3.v_proj.weight"))
    if not one_step:
        query = F.linear(u, get("3.q_lora.0.weight")) + get("3.q_lora.1.weight")
        query = F.linear(query, get("3.q_lora.2.weight"))
        value = _attend(query, F.linear(shared, get("3.k_proj.weight")), value)
    return F.linear(value, get("3.o_proj.weight"))


def _attend(query, key, value) -> torch.Tensor:
    """Of heads of 32, over `[batch, time, width]`."""
    heads = [
        part.unflatten(-1, (-1, 32)).transpose(1, 2) for part in (query, key, value)
    ]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def _state_space(get, u: torch.Tensor, one_step: bool) -> torch.Tensor:
    a, gate = F.linear(u, get("4.mamba.in_proj.weight")).chunk(2, -1)
    before, after = get("4.mamba.conv1d.weight"), get("4.conv.weight")
    bias = get("4.mamba.conv1d.bias")
    if one_step:
        c = before[:, 0, -1] * a + bias
    else:
        taps = before.shape[-1] - 1
        c = F.conv1d(a.mT, before, bias, padding=taps, groups=a.shape[-1])
        c = c[..., : a.shape[1]].mT
    u = c * gate.sigmoid()
    found = F.linear(u, get("4.mamba.x_proj.weight"))
    step, enters, leaves = found.split([1, _STATES, _STATES], -1)
    weight, bias = get("4.mamba.dt_proj.weight"), get("4.mamba.dt_proj.bias")
    dt = F.softplus(F.linear(step, weight, bias))
    if one_step:
        y = dt * u * (enters * leaves).sum(-1, keepdim=True)
    else:
        y = _scan(get("4.mamba.A"), u, dt, enters, leaves)
    y = F.linear(y + get("4.mamba.D") * u, get("4.mamba.out_proj.weight"))
    if one_step:
        return after[:, 0, after.shape[-1] // 2] * y
    return F.conv1d(y.mT, after, padding=after.shape[-1] // 2, groups=y.shape[-1]).mT


def _scan(decay, u, dt, enters, leaves) -> torch.Tensor:
    state = u.new_zeros(u.shape[0], *decay.shape)
    outputs = []
    for now in range(u.shape[1]):
        step = dt[:, now, :, None]
        state = state * torch.exp(step * decay)
        state = state + step * u[:, now, :, None] * enters[:, now, None]
        outputs.append((state * leaves[:, now, None]).sum(-1))
    return torch.stack(outputs, 1)


def _salience(get, u: torch.Tensor) -> torch.Tensor:
    layer = lambda x, i: F.linear(
        x,
        get(f"6.saliency_predictor.{i}.weight"),
        get(f"6.saliency_predictor.{i}.bias"),
    )
    return layer(F.silu(layer(u, 0)), 2).sigmoid()


def _kept(u: torch.Tensor, size: torch.Tensor, count: int) -> torch.Tensor:
    """`u` where `size` is among the largest `count` of its row."""
    places = size.topk(count, -1).indices
    return u * torch.zeros_like(u).scatter(-1, places, 1.0)


def _experts(get, u: torch.Tensor, one_step: bool) -> torch.Tensor:
    gate = F.linear(u, get("8.router.weight"), get("8.router.bias")).softmax(-1)
    mixed = []
    for chunk in u.chunk(_NUM_EXPERTS, -1):
        out: Any = 0.0
        for e in range(_NUM_EXPERTS):
            name = f"8.experts.{e}"
            query, key, value = F.linear(chunk, get(f"{name}.qkv.weight")).chunk(3, -1)
            value = value if one_step else _attend(query, key, value)
            weight, bias = get(f"{name}.proj.weight"), get(f"{name}.proj.bias")
            out = out + gate[..., [e]] * F.linear(value, weight, bias)
        mixed.append(out)
    return F.linear(torch.cat(mixed, -1), get("8.out_proj.weight"))
