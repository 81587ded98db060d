"""The preference loss on buckets in PyTorch, the peer of `benchmarks.losses`.

Written as the system that this package succeeds has it: the hardest wrong buckets by
`topk`, the others drawn with replacement, a choice by coin for each place. No sort of
ours, no compiled negatives: what an engineer would write, and no more work than ours.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Link = Callable[[torch.Tensor], torch.Tensor]


def preference_loss(
    objective: str,
    group: str,
    noise: str,
    *,
    num_negatives: int,
    hard_ratio: float,
    beta: float,
    margin: float,
) -> Callable[..., torch.Tensor]:
    """A function of logits, reference logits and labels: the mean loss."""
    link = _link(objective, beta, margin)
    scale = 1.0 if objective == "ipo" else beta

    def loss(logits, ref_logits, labels):
        negatives = mine(logits.detach(), labels, num_negatives, hard_ratio)
        chosen = labels[:, None]
        if objective == "orpo":
            lead = _log_odds(logits, chosen) - _log_odds(logits, negatives)
        else:
            rewards = logits if ref_logits is None else logits - ref_logits
            lead = rewards.gather(1, chosen) - rewards.gather(1, negatives)
        losses = _grouped(group, objective, scale * lead, link)
        if noise == "confidence":
            weights = torch.softmax(logits.detach(), 1).gather(1, chosen)[:, 0]
            losses = losses * weights.clamp(0.2, 1.0)
        return losses.mean()

    return loss


def mine(
    logits: torch.Tensor, labels: torch.Tensor, number: int, hard_ratio: float
) -> torch.Tensor:
    """`[batch, number]` wrong buckets."""
    batch, buckets = logits.shape
    chosen = labels[:, None]
    hard = logits.scatter(1, chosen, -math.inf).topk(number).indices
    uniform = torch.randint(buckets - 1, (batch, number))
    uniform = uniform + (uniform >= chosen)
    return torch.where(torch.rand(batch, number) < hard_ratio, hard, uniform)


def value_and_gradient(
    loss: Callable[..., torch.Tensor], logits: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient by the logits."""
    value = loss(logits, *others)
    return value, torch.autograd.grad(value, logits)[0]


def _log_odds(logits: torch.Tensor, buckets: torch.Tensor) -> torch.Tensor:
    logps = torch.log_softmax(logits, 1).gather(1, buckets)
    return logps - torch.log1p(-torch.exp(logps))


def _grouped(
    group: str, objective: str, margins: torch.Tensor, link: Link
) -> torch.Tensor:
    if group == "epo":
        is_logistic = objective in ("sigmoid", "dpo")
        wins = torch.sigmoid(margins) if is_logistic else torch.exp(-link(margins))
        return -torch.log(wins.mean(1).clamp_min(1e-8))
    if group == "pairwise_mean":
        return link(margins).mean(1)
    count = math.log(margins.shape[1])
    return {
        "softmax": lambda m: link(-torch.logsumexp(-m, 1)),
        "softmax_mean": lambda m: link(count - torch.logsumexp(-m, 1)),
        "hardest": lambda m: link(m.amin(1)),
        "mean_reward": lambda m: link(m.mean(1)),
    }[group](margins)


def _link(objective: str, beta: float, margin: float) -> Link:
    """The link of an objective of the catalogue; LMPO's state is left out.

    Raises:
      KeyError: it has none here.
    """
    logistic = lambda m: -F.logsigmoid(m)
    target = torch.tensor(margin)
    return {
        "sigmoid": logistic,
        "dpo": logistic,
        "orpo": logistic,
        "simpo": lambda m: logistic(m - margin),
        "repo_relu": lambda m: F.relu(margin - m),
        "hinge": lambda m: F.relu(1.0 - m),
        "ipo": lambda m: (m - 0.5 / beta) ** 2,
        "rpo": lambda m: _kl(target, m),
        "rpo_fwd_kl": lambda m: _kl(m, target),
        "rpo_sq": lambda m: (m - margin) ** 2,
        "exo": lambda m: _kl(m, torch.tensor(math.log(999.0))),
        "discopop": _discopop,
    }[objective]


def _kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """KL divergence between the coins `sigmoid(left)` and `sigmoid(right)`."""
    win = torch.sigmoid(left) * (F.logsigmoid(left) - F.logsigmoid(right))
    return win + torch.sigmoid(-left) * (F.logsigmoid(-left) - F.logsigmoid(-right))


def _discopop(margins: torch.Tensor) -> torch.Tensor:
    switch = torch.sigmoid(margins / 0.05)
    return (1 - switch) * -F.logsigmoid(margins) + switch * torch.exp(-margins)
