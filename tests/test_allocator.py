"""Commands that train make glibc keep less of what is freed."""

import json
import os
import platform
import subprocess
import sys

import pytest

from prefchat_jax.cli import allocator, finetune, sweep

# What malloc does, told by itself: heaps after threads allocated beside each other, and
# mapped bytes where a large block was freed before another one is taken.
_TOLD = """
import ctypes, json, re, sys, tempfile, threading
from prefchat_jax.cli import allocator
if sys.argv[1] == "on":
    allocator.give_memory_back()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
barrier = threading.Barrier(8)
def allocate():
    barrier.wait()
    libc.malloc(2000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.free(libc.malloc(16 << 20))
libc.malloc(12 << 20)
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    told = file.read().decode()
mapped = int(re.search(r'<total type="mmap" count="\\d+" size="(\\d+)"', told)[1])
print(json.dumps([told.count("<heap nr="), mapped]))
"""


def _told(switch, **environment):
    done = subprocess.run(
        [sys.executable, "-c", _TOLD, switch],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_threads_share_two_heaps_and_large_blocks_go_back():
    heaps, mapped = _told("off")
    assert heaps > 2 and mapped < 12 << 20
    heaps, mapped = _told("on")
    assert heaps <= 2 and mapped >= 12 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_what_the_environment_says_stays():
    assert _told("on", MALLOC_ARENA_MAX="5")[0] == 5


def test_another_malloc_stays_as_it_is(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.give_memory_back()


@pytest.mark.parametrize("command", [finetune, sweep])
def test_commands_that_train_call_it(command, monkeypatch, tmp_path):
    called = RuntimeError("called")

    def stop():
        raise called

    monkeypatch.setattr(command, "give_memory_back", stop)
    argv = ["--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "run")]
    with pytest.raises(RuntimeError) as raised:
        command.main(argv)
    assert raised.value is called
