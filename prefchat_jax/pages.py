"""Pages: HTML in one file that needs no network, and of which nothing is trusted."""

import html
import re
import string
from collections.abc import Iterable, Sequence

_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root { color-scheme: light dark; --line: #8884; --bar: #3573b1; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .8em; background: var(--bar); min-width: 1px; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; }
.tile b { display: block; font-size: 1.6rem; }
.wide { overflow-x: auto; }
figure { margin: .5rem 0 1.5rem; }
figure svg { max-width: 100%; height: auto; }
code, .small { font-size: .85em; }
pre { overflow-x: auto; }
details { margin: .3rem 0; }
</style></head><body><h1>$title</h1>$body</body></html>
""")


def document(title: str, body: Iterable[str]) -> str:
    """The page.

    Args:
      title: plain text.
      body: pieces of HTML, in order.
    """
    return _PAGE.substitute(title=safe(title), body="\n".join(body))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    figures: Sequence[int] = (1,),
) -> str:
    """A table.

    Args:
      columns: plain text.
      rows: cells, which are HTML.
      figures: the columns that hold figures.
    """
    kind = lambda i: ' class="n"' if i in figures else ""
    head = "".join(f"<th{kind(i)}>{safe(c)}</th>" for i, c in enumerate(columns))
    body = "".join(
        f"<tr>{''.join(f'<td{kind(i)}>{c}</td>' for i, c in enumerate(row))}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def picture(svg: str, caption: str) -> str:
    """An `<svg>` element with a caption, which also says what it shows where the
    picture cannot be seen."""
    said = safe(caption)
    return (
        f'<figure role="img" aria-label="{said}">{svg}'
        f'<figcaption class="small">{said}</figcaption></figure>'
    )


def folded(summary: str, body: str, *, is_open: bool = False) -> str:
    """HTML behind one line of plain text."""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{safe(summary)}</summary>{body}</details>"


def from_markdown(text: str) -> str:
    """The part of Markdown that `report.md` is written in, as HTML.

    Headings go down by one; code, tables and paragraphs are known, nothing else.
    """
    made = []
    # Between the fences stands code: each second piece.
    for number, piece in enumerate(re.split(r"^```$", text, flags=re.M)):
        if number % 2:
            made.append(f"<pre><code>{safe(piece.strip())}</code></pre>")
        else:
            made += map(_block, filter(None, map(str.strip, piece.split("\n\n"))))
    return "\n".join(made)


def _block(text: str) -> str:
    """A heading, a table or a paragraph."""
    lines = text.splitlines()
    if heading := re.match(r"(#+) (.*)", lines[0]):
        level = min(len(heading[1]) + 1, 6)
        return f"<h{level}>{safe(heading[2])}</h{level}>"
    if lines[0].startswith("|"):
        columns, _, *rows = map(_cells, lines)
        cells = (list(map(safe, row)) for row in rows)
        return table(columns, cells, figures=range(1, len(columns)))
    return f"<p>{safe(' '.join(lines))}</p>"


def safe(text: object) -> str:
    """Plain text as HTML."""
    return html.escape(str(text))


def _cells(line: str) -> list[str]:
    inner = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in inner]
