"""A state dict out of a `.pth` file: its arrays, and nothing that could run.

torch writes a zip of one pickle and the bytes of each storage. The pickle is read
with three callables allowed, none of which is torch's; whatever else it names is
refused before anything is called. Neither torch nor JAX is imported.
"""

import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.errors import UserError

_TYPES = {"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2"}


class _Storage(NamedTuple):
    """What stands for a storage class in the pickle: the type of its numbers."""

    dtype: str


class _Refused(Exception):
    """What a pickle names that no state dict needs."""


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict by name.

    Args:
      path: a file that `torch.save` of torch 1.6 or newer wrote.

    Raises:
      UserError: the file is missing, damaged, or holds anything but a flat dict of
        floating-point tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state = _Unpickler(archive).load()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}. Check the path."
        ) from error
    except _Refused as error:
        raise UserError(
            f"{path} names {error}, which no state dict needs: refused, nothing was "
            "run. Save model.state_dict() alone."
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not a file of torch 1.6 or newer, or is truncated: write it "
            "again with torch.save(model.state_dict(), PATH)."
        ) from error
    except Exception as error:  # A damaged pickle raises any type.
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise UserError(
            f"{path} is damaged ({reason}): write it again with "
            "torch.save(model.state_dict(), PATH)."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in state.items()
    ):
        raise UserError(
            f"{path} holds no flat dict of tensors: write it with "
            "torch.save(model.state_dict(), PATH)."
        )
    return dict(state)


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl` of an archive with the callables of a state dict alone."""

    def __init__(self, archive: zipfile.ZipFile):
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise zipfile.BadZipFile("Torch writes one pickle; NumPy, say, none.")
        (name,) = names
        self._archive, self._folder = archive, name.removesuffix("data.pkl")
        self._order = "<"
        if f"{self._folder}byteorder" in archive.namelist():
            big = self._bytes("byteorder") == b"big"
            self._order = ">" if big else "<"
        super().__init__(archive.open(archive.getinfo(name)))

    def find_class(self, module: str, name: str, /) -> Any:
        """One of the allowed callables, or what a storage class means."""
        allowed: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in _TYPES:
            return _Storage(_TYPES[name])
        if (module, name) not in allowed:
            raise _Refused(f"{module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any, /) -> np.ndarray:
        """The numbers of one storage, `[n]`."""
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise ValueError("not a storage")
        numbers = np.frombuffer(self._bytes(f"data/{key}"), self._order + storage.dtype)
        if len(numbers) != count:
            raise ValueError(f"storage {key} has {len(numbers)} numbers, not {count}")
        return numbers

    def _bytes(self, name: str) -> bytes:
        info = self._archive.getinfo(f"{self._folder}{name}")
        # torch compresses nothing: what does could fill the memory.
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return self._archive.read(info)


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any):
    """A view of a storage, as torch rebuilds one, within its bounds."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (
        0 not in size and last >= len(storage)
    ):
        raise ValueError("a tensor reaches beyond its storage")
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * item for step in stride], writeable=False
    )
    return view.copy()
