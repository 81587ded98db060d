"""Personal data: e-mail addresses and phone numbers, found and masked."""

import re

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
# Nine digits or more with the signs that people put between, or an international
# number; not part of a longer number, a price, a date or an identifier.
_PHONE = re.compile(
    r"(?<![\w.,/$€£-])"
    r"(?:\+\d{1,3}[ .()/-]{0,2}(?:\d[ .()/-]{0,2}){6,13}\d"
    r"|\(?\d{2,5}\)?[ ./-]{1,2}\d{2,4}(?:[ ./-]\d{2,5}){1,4}"
    r"|0\d{2,5}/\d{5,9}|0\d{8,12})"
    r"(?![\w/-]|[.,]\d)"
)
_ENOUGH_DIGITS = 9
_NO_PHONE = re.compile(
    r"(?:\d{1,3}\.){3}\d{1,3}"  # An address of the Internet, or a date.
    r"|\d{4}[./ -]\d{1,2}[./ -]\d{1,2}|\d{1,2}[./ -]\d{1,2}[./ -]\d{4}"
)


def find_personal(text: str) -> list[str]:
    """E-mail addresses and phone numbers in a text, in order of kind."""
    found = _EMAIL.findall(text) if "@" in text else []
    return found + [match.group() for match in _phones(text)]


def mask_personal(text: str) -> str:
    """The text with `[email]` and `[phone]` in place of what is personal."""
    if "@" in text:
        text = _EMAIL.sub("[email]", text)
    for match in reversed(list(_phones(text))):
        text = f"{text[: match.start()]}[phone]{text[match.end() :]}"
    return text


def _phones(text: str) -> list[re.Match[str]]:
    if not _may_hold_phone(text):
        return []
    return [
        match
        for match in _PHONE.finditer(text)
        if sum(map(str.isdigit, match.group())) >= _ENOUGH_DIGITS
        and not _NO_PHONE.fullmatch(match.group())
    ]


def _may_hold_phone(text: str) -> bool:
    """Few texts hold nine digits; counting them is cheaper than searching."""
    return sum(map(text.count, "0123456789")) >= _ENOUGH_DIGITS
