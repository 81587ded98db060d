"""Processes of their own: what is measured there has nothing else in its memory.

No JAX, which some of them must not hold.
"""

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

# For `python -c`: the command line as users have it.
PREFCHAT = "import sys; from prefchat_jax.cli.main import main; sys.exit(main())"
_CALL = """
import importlib, json, sys
module, _, name = sys.argv[1].partition(":")
call = getattr(importlib.import_module(module), name)
print(json.dumps(call(*json.load(sys.stdin))))
"""


def in_process(target: str, *arguments: Any) -> Any:
    """What a function returns in a process of its own.

    Args:
      target: the function, as `module:name`.
      *arguments: for it; these and the result pass as JSON.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CALL, target],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def peak_memory() -> float:
    """Bytes; `getrusage` would also count what the parent had when it forked."""
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024.0 * int(match[1]) if match else 0.0
