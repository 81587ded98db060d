"""Slow and obvious NumPy float64 versions of what the package computes."""

import unicodedata

import numpy as np


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def preference_loss(
    logits, labels, negatives, *, objective, estimator, beta, margin, adaptive
):
    """The mean loss over a batch, by loops."""
    total = []
    for z, y, row in zip(
        np.asarray(logits, np.float64), labels, negatives, strict=True
    ):
        d = np.array([z[y] - z[n] for n in row])
        if objective == "sigmoid":
            costs = -log_sigmoid(beta * d)
        else:
            costs = np.maximum(0.0, margin - d)
        if estimator == "epo":
            loss = -np.log(np.mean(np.exp(-costs)))
        else:
            loss = np.mean(costs)
        if adaptive:
            p = np.exp(z - z.max())
            loss *= np.clip((p / p.sum())[y], 0.2, 1.0)
        total.append(loss)
    return float(np.mean(total))


def routed_head(x, params):
    """Logits of a routed head, stage by stage, from its plain-dict parameters."""
    x = np.asarray(x, np.float64)
    z = x @ params["base"]["kernel"] + params["base"]["bias"]
    silu = lambda v: v / (1 + np.exp(-v))
    softplus = lambda v: np.logaddexp(0.0, v)
    erf = np.vectorize(__import__("math").erf)
    gelu = lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2)))
    mish = lambda v: v * np.tanh(softplus(v))
    branches = []
    for i, activation in zip(
        range(len(params.get("branches", {}))), (silu, gelu, mish), strict=False
    ):
        branch = params["branches"][i]
        hidden = activation(x @ np.asarray(branch["up"]["kernel"], np.float64))
        branches.append(hidden @ np.asarray(branch["down"]["kernel"], np.float64))
    for stage in range(1, len(branches) + 1):
        if stage == 1:
            shares = np.ones((len(x), 1))
        else:
            router = params["routers"][stage - 2]
            r = x @ np.asarray(router["kernel"], np.float64) + router["bias"]
            shares = np.exp(r - r.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
        mixed = sum(shares[:, j : j + 1] * branches[j] for j in range(stage))
        z = z + params["scales"][stage - 1] * mixed
    return z


def hash_bags(text, idf, config):
    """One text as a dict from id to weight, with Python integers and loops."""
    mask = 0xFFFFFFFF
    prime, mix = 0x9E3779B1, 0x85EBCA6B

    def finish(h):
        h = ((h ^ (h >> 15)) * mix) & mask
        h = ((h ^ (h >> 13)) * prime) & mask
        return h ^ (h >> 16)

    text = unicodedata.normalize("NFC", text.replace("\0", " "))
    data = f" {text.lower()} ".encode(errors="replace")
    shift, upper = 33 - config.bits, 2 ** (config.bits - 1)
    ids = []
    for n in config.char_ngrams:
        for i in range(len(data) - n + 1):
            h = 0
            for byte in data[i : i + n]:
                h = (h * prime + byte + 1) & mask if h else ((byte + 1) * prime) & mask
            ids.append(finish(h) >> shift)
    words, word = [], b""
    letters = b"abcdefghijklmnopqrstuvwxyz0123456789_'"
    for byte in data + b" ":
        if byte in letters or byte >= 128:
            word += bytes([byte])
            continue
        if word:
            words.append(word)
            word = b""
        if byte > 32:
            words.append(bytes([byte]))
    hashes = []
    for word in words:
        total = sum(
            finish(((byte + 1) * prime + i * mix) & mask) for i, byte in enumerate(word)
        )
        hashes.append(finish((total & mask) ^ 0x27D4EB2F))
    ids += [upper + (h >> shift) for h in hashes]
    ids += [
        upper + (finish(((a * prime + b) & mask) ^ 0x165667B1) >> shift)
        for a, b in zip(hashes, hashes[1:], strict=False)
    ]
    counts = {}
    for i in ids:
        counts[i] = counts.get(i, 0) + 1
    weights = {i: (1 + np.log(c)) * float(idf[i]) for i, c in counts.items()}
    for low, high, share in (
        (0, upper, 1 - config.word_share),
        (upper, 2 * upper, config.word_share),
    ):
        half = [i for i in weights if low <= i < high]
        norm = np.sqrt(sum(weights[i] ** 2 for i in half))
        for i in half:
            weights[i] *= np.sqrt(share) / norm
    return weights
