"""What is wrong with a command, told in one line."""

import contextlib
import sys
from collections.abc import Iterator

from prefchat_jax.errors import UserError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints an error that the user can mend, and exits with code 2; also decorates."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
