"""Code: whether a text is about programming or holds some."""

import re

_FENCE = re.compile(r"```|^(?:    |\t)\S.*\n(?:    |\t)\S", re.MULTILINE)
_SIGNS = re.compile(
    r"\w\(\w*\)|\w\.\w+\(|==|!=|=>|->|::|\+=|&&|\|\||</\w+>|\{\}|;\s*$|^\s*(?:def|class"
    r"|import|from|return|for|while|if|else|try|public|static|const|let|var|fn|func"
    r"|SELECT|INSERT|UPDATE|CREATE)\b.*[:;({]?$",
    re.MULTILINE,
)
_WORDS = re.compile(
    r"\b(?:python|javascript|typescript|java|rust|golang|kotlin|sql|html|css|bash"
    r"|regex|json|yaml|docker|kubernetes|git|numpy|pandas|pytorch|jax|api|stack trace"
    r"|traceback|exception|compiler?|segfault|unit test|null pointer|algorithm"
    r"|data structure|source code|programming|debug(?:ger|ging)?|refactor(?:ing)?)\b"
    r"|\bc\+\+|\bc#|\.(?:py|js|ts|cpp|rs|go|sh)\b",
    re.IGNORECASE,
)
_ENOUGH = 2  # Words or signs that together tell code from prose.


def is_code_like(asked: str, reply: str) -> bool:
    """Whether an exchange is about programming: a code block, or enough hints.

    Ordinary words that are keywords elsewhere, such as "for" or "return", count
    only where a line begins with them and the text has other signs of code.
    """
    if _FENCE.search(reply):
        return True
    text = f"{asked}\n{reply}"
    words = {match.lower() for match in _WORDS.findall(text)}
    if len(words) >= _ENOUGH:
        return True
    signs = len({match.group()[:6] for match in _SIGNS.finditer(text)})
    return len(words) + signs >= _ENOUGH + (not words)
