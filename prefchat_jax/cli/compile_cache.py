"""Compiled programs kept on disk, so that the next process need not compile them.

The library leaves JAX as its user set it up; only commands turn this on.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import warnings

_MOST_BYTES = 256 << 20  # Of all versions and processors; a training run takes 1 MB.


def use_compile_cache(enabled: bool) -> None:
    """Lets JAX keep compiled programs in the user's cache directory.

    A directory that JAX was told of (JAX_COMPILATION_CACHE_DIR) stays. Where none can
    be written, as in a read-only home, every process compiles for itself.
    """
    import jax

    if not enabled:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder.parent)
    except (OSError, RuntimeError):  # The second: there is no home.
        return
    if not os.access(folder, os.W_OK):
        return
    # Two processes may write one program at once, and a full disk half of one: JAX
    # compiles what it cannot read, and that is nobody's concern.
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> pathlib.Path:
    """Where programs for this jaxlib and this processor are kept.

    What is compiled for one processor may crash on another, and a home is sometimes
    shared by machines.

    Raises:
      RuntimeError: the user has no home.
    """
    told = os.environ.get("XDG_CACHE_HOME")
    root = pathlib.Path(told) if told else pathlib.Path.home() / ".cache"
    digest = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    version = importlib.metadata.version("jaxlib")
    return root / "prefchat_jax" / "compiled" / f"{version}-{digest}"


def _processor() -> str:
    """The model and what it can do; where the system does not say, this machine."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return " ".join(platform.uname())
    told = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.M)
    return "\n".join(sorted(set(told))) or " ".join(platform.uname())


def _prune(root: pathlib.Path) -> None:
    """Removes the oldest programs beyond `_MOST_BYTES`."""
    files = sorted(
        ((entry.stat(), entry) for entry in root.glob("*/*-cache")),
        key=lambda pair: -pair[0].st_mtime,
    )
    kept = 0
    for status, entry in files:
        kept += status.st_size
        if kept > _MOST_BYTES:
            entry.unlink(missing_ok=True)
