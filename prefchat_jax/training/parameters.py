"""Parameters as named arrays: flattened, nested again, and hashed. No JAX.

A tree is nested dicts of arrays, NumPy's or JAX's. Keys are names, and numbers
where a module holds a list.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prefchat_jax.text.features import Featurizer


def leaves_with_path(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, np.ndarray]]:
    """The arrays of a tree with their keys, in the order in which JAX lists them."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from leaves_with_path(tree[key], (*path, key))
    elif tree is not None:
        yield path, np.asarray(tree)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by dotted path, such as `head.base.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in leaves_with_path(tree)}


def nest(arrays: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """The tree that `flatten` flattened: a key of digits is a number again."""
    tree: dict[Any, Any] = {}
    for name, array in arrays.items():
        *parents, last = [int(k) if k.isdigit() else k for k in name.split(".")]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def fingerprint(params: Any, featurizer: Featurizer, scorer: Any = None) -> str:
    """A hash of what gives bucket numbers, feature ids and vectors a meaning.

    Stores carry it: another digest of the same parameters would orphan them. The
    paths are written as `jax.tree_util.keystr` writes them.
    """
    digest = hashlib.sha256(featurizer.idf.tobytes() + featurizer.rows.tobytes())
    if scorer is not None and featurizer.scorer_rows is not None:
        digest.update(featurizer.scorer_rows.tobytes())
    for path, leaf in (*leaves_with_path(params), *leaves_with_path(scorer)):
        digest.update("".join(f"[{key!r}]" for key in path).encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
