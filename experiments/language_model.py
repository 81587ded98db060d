"""A small causal language model: rows to tokens, tokens to scores, training."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from flax import nnx

from prefchat_jax.errors import UserError
from prefchat_jax.losses.logprobs import (
    chunked_token_logps,
    mean_sequence_logps,
    sequence_logps,
)

SPECIAL = ("<pad>", "<unknown>", "<answer>", "<end>")  # No words: see `words`.
PAD, UNKNOWN, ANSWER, END = range(4)


class Row(msgspec.Struct, frozen=True):
    """A prompt with a better and a worse response."""

    prompt: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the model; lengths are in words."""

    vocabulary: int = 4000
    max_prompt: int = 64
    max_response: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4
    chunk_size: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """How long and how fast to train."""

    epochs: int
    lr: float
    batch_size: int = 16


class Scores(NamedTuple):
    """Log-probabilities of whole responses, summed and averaged over tokens."""

    sums: jax.Array
    means: jax.Array


class Block(nnx.Module):
    """Causal self-attention and a feed-forward layer, both residual."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = self.qkv(self.norms[0](x)).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """A causal transformer whose embedding is also its unembedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, length = config.width, config.max_prompt + config.max_response
        self.words = nnx.Embed(config.vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List(
            [Block(width, config.heads, rngs=rngs) for _ in range(config.layers)]
        )
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens `[rows, T]` to hidden states `[rows, T, width]`."""
        x = self.words(tokens)
        x += jnp.broadcast_to(self.places(jnp.arange(x.shape[1])), x.shape)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def score(self, tokens: jax.Array) -> Scores:
        """Scores the responses of encoded rows `[..., T]`: `[...]` each."""
        start = self.config.max_prompt
        targets = tokens[..., start:]
        where = targets != PAD
        # What the last token predicts is beyond the response.
        hidden = self(tokens.reshape(-1, tokens.shape[-1])[:, :-1])[:, start - 1 :]
        logps = chunked_token_logps(
            hidden.reshape(*targets.shape, -1),
            self.words.embedding[...].T,
            targets,
            chunk_size=self.config.chunk_size,
            where=where,
        )
        sums = sequence_logps(logps, where=where)
        return Scores(sums, mean_sequence_logps(logps, where=where))


def init(config: ModelConfig, seed: int) -> tuple[nnx.GraphDef, Any]:
    """The structure of a model for `nnx.merge`, and initial parameters as dicts."""
    make = lambda: Transformer(config, rngs=nnx.Rngs(seed))
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.jit(lambda: nnx.to_pure_dict(nnx.split(make())[1]))()


def read_rows(path: str) -> list[Row]:
    """Reads JSON lines of `{"prompt", "chosen", "rejected"}`; other keys may follow.

    Raises:
      UserError: the file, or a line of it, cannot be used.
    """
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [msgspec.json.decode(line, type=Row)] if line.strip() else []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}:{number}: {error}. A line looks like "
                '{"prompt": "...", "chosen": "...", "rejected": "..."}.'
            ) from error
    if len({row.prompt for row in rows}) < 2:
        raise UserError(f"{path}: needs rows of two prompts, one of them to hold out.")
    return rows


def split(
    rows: Sequence[Row], fraction: float, rng: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows; no prompt is on both sides."""
    prompts = rng.permutation(sorted({row.prompt for row in rows}))
    number = min(max(1, round(fraction * len(prompts))), len(prompts) - 1)
    held_out = set(prompts[:number].tolist())
    train = [row for row in rows if row.prompt not in held_out]
    return train, [row for row in rows if row.prompt in held_out]


def words(text: str) -> list[str]:
    """Words and single signs of punctuation, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def build_vocabulary(rows: Sequence[Row], size: int) -> dict[str, int]:
    """Numbers `size` tokens: the special ones and the most frequent words."""
    texts = (text for row in rows for text in (row.prompt, row.chosen, row.rejected))
    counts = collections.Counter(word for text in texts for word in words(text))
    frequent = [word for word, _ in counts.most_common(size - len(SPECIAL))]
    return {word: i for i, word in enumerate([*SPECIAL, *frequent])}


def encode(
    rows: Sequence[Row], vocabulary: dict[str, int], config: ModelConfig
) -> jax.Array:
    """Tokens `[2, rows, max_prompt + max_response]`, chosen before rejected.

    Every response starts at `max_prompt`: a long prompt loses its beginning, a
    short one has padding before it, which is a token like any other to the model.
    """
    ids = lambda text: [vocabulary.get(word, UNKNOWN) for word in words(text)]
    start, length = config.max_prompt, config.max_response
    tokens = np.full((2, len(rows), start + length), PAD, np.int32)
    for i, row in enumerate(rows):
        prompt = [*ids(row.prompt), ANSWER][-start:]
        tokens[:, i, start - len(prompt) : start] = prompt
        for side, text in enumerate((row.chosen, row.rejected)):
            response = [*ids(text), END][:length]
            tokens[side, i, start : start + len(response)] = response
    return jnp.asarray(tokens)


def fit(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    stage: Stage,
    *,
    seed: int,
) -> Any:
    """Minimises `loss(params, batch).mean()`; rows are axis 1 of arrays in `data`."""
    rng = np.random.default_rng(seed)
    num_rows = jax.tree.leaves(data)[0].shape[1]
    size = min(stage.batch_size, num_rows)
    order = np.concatenate([rng.permutation(num_rows) for _ in range(stage.epochs)])
    batches = order[: len(order) // size * size].reshape(-1, size)
    warmup, num_steps = 1 + len(batches) // 10, 1 + len(batches)
    schedule = optax.warmup_cosine_decay_schedule(
        stage.lr / warmup, stage.lr, warmup, num_steps
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    @jax.jit
    def step(params, opt_state, data, rows):
        batch = jax.tree.map(lambda leaf: leaf[:, rows], data)
        gradient = jax.grad(lambda params: loss(params, batch).mean())(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for rows in batches:
        params, opt_state = step(params, opt_state, data, rows)
    return jax.block_until_ready(params)


def score_all(
    score_batch: Callable[[Any, jax.Array], Scores],
    params: Any,
    tokens: jax.Array,
    *,
    size: int = 64,
) -> Scores:
    """Scores `[2, rows]` of all rows, `size` at a time."""
    starts = range(0, tokens.shape[1], size)
    parts = [score_batch(params, tokens[:, i : i + size]) for i in starts]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *parts)
