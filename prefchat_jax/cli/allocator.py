"""Less memory for the same work: what glibc keeps of what is freed.

Left alone, it gives each thread that allocates a heap of its own, which keeps what the
compiler or a save once took, and after the first large array is freed takes the next
ones from those heaps too. The library leaves the allocator of its user's process alone;
only commands that train call this.
"""

import ctypes
import os

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
# One heap alone makes compiling threads wait for each other: 5 to 13 times as many
# waits as with a heap each, with two twice as many.
_HEAPS = 2
_LARGE = 4 << 20  # Bytes from which an array goes back to the system when it is freed.
_USERS = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def give_memory_back() -> None:
    """Makes malloc share two heaps, and return large arrays when they are freed.

    What the user's environment says of either stays, and so does another malloc.
    """
    if any(name in os.environ for name in _USERS):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows.
        return
    mallopt(_M_ARENA_MAX, _HEAPS)
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
