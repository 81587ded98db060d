"""Inference: the forward pass of a run in NumPy, so that chat needs no JAX.

One message is a few matrix-vector products. Importing JAX and compiling takes
longer than thousands of them, so they are written out here; tests hold them to
the modules of `models/`, which training uses.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Context
from prefchat_jax.text.features import Featurizer
from prefchat_jax.training.kinds import load_part
from prefchat_jax.training.parameters import fingerprint, flatten, nest
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.snapshot import load_snapshot

_BLOCK = 128  # Rows encoded at once: their embeddings take a few MB.
# Half the coefficients of the formula, lowest power first.
_TAIL = (0.127414796, -0.142248368, 0.7107068705, -0.7265760135, 0.5307027145)
_DEVICES = ("auto", "cpu", "gpu", "tpu")

# A nested dict of arrays, as in models/classifier.py.
_Tree = dict[Any, Any]
_Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
_Classify = Callable[[_Tree, Bags], np.ndarray]


def classify(params: _Tree, bags: Bags) -> np.ndarray:
    """`models.classifier.ModelConfig`: logits `[n, C]` of bags by embedding row."""
    return apply_head(params["head"], encode(params["encoder"], bags))


@dataclasses.dataclass(frozen=True)
class Inference:
    """A trained run that scores. Make one with `Inference.load`.

    Attributes:
      featurizer: turns contexts into the bags that the methods take.
      fingerprint: hash that binds a store to all parameters and the featurizer.
      classifier: parameters of the bucket classifier, NumPy arrays by name.
      scorer: parameters of the response scorer; None for a run without one.
      predict: logits of embedding rows and weights on another device; None for
        NumPy.
      classify: the logits in NumPy, by the kind of the classifier.
    """

    featurizer: Featurizer
    fingerprint: str
    classifier: _Tree
    scorer: _Tree | None = None
    predict: _Predict | None = None
    classify: _Classify = classify

    @classmethod
    def load(cls, run: RunDirectory, *, device: str = "auto") -> "Inference":
        """Loads the best parameters of a run, through its cache.

        Args:
          run: the run directory.
          device: "gpu" and "tpu" compute the bucket logits with JAX there; "auto"
            and "cpu" compute them here in NumPy and import no JAX.

        Raises:
          UserError: the run cannot be read, or there is no such device.
        """
        if device not in _DEVICES:
            raise UserError(f"--device {device}: use {', '.join(_DEVICES)}.")
        snapshot = load_snapshot(run)
        return cls(
            run.featurizer(),
            snapshot.fingerprint,
            snapshot.classifier,
            snapshot.scorer,
            _jax_predict(run, device) if device in ("gpu", "tpu") else None,
            load_part(run.config()["model"], "classify"),
        )

    @classmethod
    def of(
        cls, featurizer: Featurizer, classifier: Any, scorer: Any = None
    ) -> "Inference":
        """Scores with parameters that are in memory: trees of NumPy or JAX arrays."""
        return cls(
            featurizer,
            fingerprint(classifier, featurizer, scorer),
            nest(flatten(classifier)),
            nest(flatten(scorer)) or None,
        )

    @property
    def num_buckets(self) -> int:
        """The number of logits."""
        return len(self.classifier["head"]["base"]["bias"])

    def bucket_logits(self, bags: Bags, contexts: Sequence[Context] = ()) -> np.ndarray:
        """Logits, float32 `[n, num_buckets]`.

        Args:
          bags: of the contexts, as the featurizer gives them.
          contexts: themselves; an imported classifier has features of its own.
        """
        if self.predict is not None:
            return self.predict(*self.featurizer.classified(bags, contexts))

        def logits(rows: slice) -> np.ndarray:
            read = self.featurizer.classified(_take(bags, rows), contexts[rows])
            return self.classify(self.classifier, read)

        return _in_blocks(logits, len(bags.ids), self.num_buckets)

    def encode_contexts(self, bags: Bags) -> np.ndarray:
        """Vectors, float32 `[n, d]`, of contexts that want a response.

        Their products with those of responses are cosines, and what a scorer that was
        tuned on preferences adds for the response alone.
        """
        return self._encode("context", bags)

    def encode_responses(self, bags: Bags) -> np.ndarray:
        """Vectors, float32 `[n, d]`, of responses; empty text has one, too."""
        return self._encode("response", bags)

    @property
    def _scorer(self) -> _Tree:
        if self.scorer is None:
            raise ValueError("This run has no response scorer.")
        return self.scorer

    def _encode(self, tower: str, bags: Bags) -> np.ndarray:
        table, layers = self._scorer["table"], self._scorer[tower]
        worth = self._scorer.get("worth")

        def vectors(rows: slice) -> np.ndarray:
            learned = self.featurizer.scorer_embedded(_take(bags, rows))
            x = rms_norm(embed(table, learned))
            x = x + linear(layers["down"], silu(linear(layers["up"], x)))
            x = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)
            if worth is None:
                return x
            last = np.ones(len(x), np.float32)
            if tower == "response":
                last = np.einsum("nf,nf->n", learned.weights, worth[learned.ids])
            return np.concatenate([x, last[:, None]], axis=1)

        width = table.shape[1] + (worth is not None)
        return _in_blocks(vectors, len(bags.ids), width)


def encode(params: _Tree, bags: Bags) -> np.ndarray:
    """`models.encoders.BagEncoder`: vectors `[n, width]` of bags by embedding row."""
    x = embed(params["table"], bags)
    x = x + linear(params["down"], silu(linear(params["up"], rms_norm(x))))
    return rms_norm(x) * params["norm"]["scale"]


def apply_head(params: _Tree, x: np.ndarray) -> np.ndarray:
    """`models.heads.RoutedHead`: logits `[n, C]` of vectors `[n, width]`."""
    logits = linear(params["base"], x)
    branches = params.get("branches", {})
    if not branches:
        return logits
    mixture = np.zeros((len(x), len(branches)), np.float32)
    mixture[:, 0] = params["scales"][0]
    for number, router in params.get("routers", {}).items():
        shares = softmax(linear(router, x))  # Of the first `number + 2` branches.
        mixture[:, : number + 2] += params["scales"][number + 1] * shares
    for number, branch in branches.items():
        hidden = _ACTIVATIONS[number](x @ branch["up"]["kernel"])
        logits += mixture[:, number, None] * (hidden @ branch["down"]["kernel"])
    return logits


def embed(table: np.ndarray, bags: Bags) -> np.ndarray:
    """Weighted sums of table rows, `[n, width]`."""
    used = bags.weights.any(axis=0)  # Most columns of a single bag are padding.
    ids, weights = bags.ids[:, used], bags.weights[:, used]
    return np.matmul(weights[:, None, :], table[ids])[:, 0]


def linear(params: _Tree, x: np.ndarray) -> np.ndarray:
    """`x kernel + bias`."""
    return x @ params["kernel"] + params["bias"]


def rms_norm(x: np.ndarray) -> np.ndarray:
    """`x` over its root mean square along the last axis."""
    squares = np.add.reduce(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(squares / x.shape[-1] + 1e-6)


def softmax(x: np.ndarray) -> np.ndarray:
    """Shares along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    """`x sigmoid(x)`; the sigmoid by tanh, which cannot overflow."""
    half = 0.5 * x
    return half + half * np.tanh(half)


def gelu(x: np.ndarray) -> np.ndarray:
    """`x Phi(x)`, exact to the rounding of float32.

    `max(x, 0) - |x| Q(|x|)` with the upper tail `Q` of the normal distribution by
    Abramowitz and Stegun, 7.1.26: off by 7.5e-8 at most. Importing scipy for its
    `ndtr`, which rounds as much, takes longer than a thousand messages.
    """
    size = np.abs(x)
    t = 1 / (1 + 0.23164189 * size)
    tail = np.float32(_TAIL[-1])
    for coefficient in _TAIL[-2::-1]:
        tail = tail * t + coefficient
    return np.maximum(x, 0) - size * (tail * t * np.exp(-0.5 * x * x))


def mish(x: np.ndarray) -> np.ndarray:
    """`x tanh(softplus(x))`, where `tanh(log(1 + e)) = n / (n + 2)`, `n = e^2 + 2e`."""
    e = np.exp(np.minimum(x, 20))  # Beyond 20 the quotient is 1.
    n = e * (e + 2)
    return x * (n / (n + 2))


_ACTIVATIONS = (silu, gelu, mish)  # Of the branches, in order.


def _in_blocks(
    function: Callable[[slice], np.ndarray], count: int, width: int
) -> np.ndarray:
    """`function` of all rows, float32 `[count, width]`, a few rows at a time."""
    if count == 1:
        return function(slice(0, 1))
    out = np.empty((count, width), np.float32)
    for start in range(0, count, _BLOCK):
        rows = slice(start, start + _BLOCK)
        out[rows] = function(rows)
    return out


def _take(bags: Bags, rows: slice) -> Bags:
    return Bags(bags.ids[rows], bags.weights[rows])


def _jax_predict(run: RunDirectory, device: str) -> _Predict:
    """`training.steps.predict` with the parameters on an accelerator."""
    import jax

    from prefchat_jax.training.checkpoints import load_model
    from prefchat_jax.training.steps import predict

    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        raise UserError(
            f"--device {device}: JAX finds none here; `prefchat env` lists what it "
            "finds, and the JAX installation guide tells how to add one."
        ) from error
    model, params = load_model(run)
    return functools.partial(predict, model, jax.device_put(params, place))
