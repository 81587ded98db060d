"""An explanation as a rich table."""

import io

from rich.console import Console, Group, RenderableType
from rich.text import Text

from prefchat_jax.chat.reply import Explanation
from prefchat_jax.cli.console import table

_WIDTH = 160  # Where nobody looks.
_LONGEST = 44  # Letters of a question or a response.


def explanation_table(found: Explanation) -> RenderableType:
    """What was said and searched for, the buckets, and the candidates by term."""
    buckets = [[name, f"{p:.3f}"] for name, p in found.buckets.items()]
    heads, cells = found.rows()
    made = table("candidates", heads, [list(map(_short, row)) for row in cells])
    for column in made.columns[-3:]:
        column.justify, column.overflow = "left", "fold"
    return Group(
        Text("\n".join(found.summary)),
        table("buckets", ["bucket", "probability"], buckets),
        made,
    )


def as_text(found: Explanation) -> str:
    """The table without colours, for a pipe."""
    file = io.StringIO()
    Console(file=file, width=_WIDTH, color_system=None).print(explanation_table(found))
    return file.getvalue().rstrip()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
