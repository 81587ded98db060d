"""The machine of a benchmark: what it is, and what it can do at most."""

import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prefchat_jax.errors import UserError


class Ceilings(NamedTuple):
    """The most that this machine does: measured, not looked up."""

    copy_gb_per_second: float  # Bytes read and bytes written.
    product_gflops: float  # Of a float32 matrix product.


def use_threads(number: int | None) -> None:
    """Leaves this process so many processors; None is all. Before JAX starts.

    It holds every library equally, and what they count at their start.

    Raises:
      UserError: there are fewer, or the system has no such call.
    """
    if number is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--threads: only Linux can hold a process to processors.")
    processors = sorted(os.sched_getaffinity(0))
    if not 1 <= number <= len(processors):
        raise UserError(
            f"--threads {number}: this process may use 1 to {len(processors)}."
        )
    os.sched_setaffinity(0, processors[:number])


def threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, object]:
    """What belongs beside every figure."""
    versions = {}
    for name in ("jax", "jaxlib", "numpy", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "threads": threads(),
        # Others at work on the machine: a quiet one says about 0 here.
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def ceilings(*, quick: bool) -> Ceilings:
    """Measures both; `quick` takes arrays that are too small to be sure."""
    numbers = jnp.ones(1 << (22 if quick else 26), jnp.float32)  # 256 MiB.
    matrix = jnp.ones((256 if quick else 2048,) * 2, jnp.float32)
    copy = _median_seconds(jax.jit(lambda x: x + 1), numbers)
    product = _median_seconds(
        jax.jit(lambda x: jnp.matmul(x, x, precision="highest")), matrix
    )
    return Ceilings(
        2 * numbers.nbytes / copy / 1e9, 2 * len(matrix) ** 3 / product / 1e9
    )


def _median_seconds(fn, array: jax.Array, repeats: int = 5) -> float:
    jax.block_until_ready(fn(array))
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(array))
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
