"""Flags: a frozen dataclass from the command line and an optional YAML file."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import tyro

from prefchat_jax.errors import UserError

T = TypeVar("T")


def parse(
    config: type[T],
    command: str,
    argv: Sequence[str],
    *,
    first: str | None = None,
    program: str = "prefchat",
) -> T:
    """Builds `config`; flags override what `--config FILE.yaml` says.

    Args:
      config: a dataclass with a field for each flag.
      command: its name, for messages.
      argv: the words after it.
      first: the flag that a first word without one is the value of.
      program: what the command is one of.

    Raises:
      UserError: an unknown flag, a wrong value, or a bad file.
      SystemExit: after `--help`.
    """
    if first and argv and not argv[0].startswith("-"):
        if any(name == first for name, _ in _given(argv)):
            raise UserError(f"{argv[0]} and --{first}: both name it: give one.")
        argv = [f"--{first}", *argv]
    path, from_file, argv = _config_flags(config, list(argv))
    _check_files(config, argv)
    try:
        made = _parse(config, f"{program} {command}", [*from_file, *argv])
        _check_texts(made)
    except UserError as error:
        raise UserError(_place(str(error), path, from_file, argv)) from None
    return made


def _parse(config: type[T], command: str, argv: Sequence[str]) -> T:
    help_wanted = any(arg in ("-h", "--help") for arg in argv)
    _spell_unions(config)
    errors = io.StringIO()
    capture = (
        contextlib.nullcontext() if help_wanted else contextlib.redirect_stderr(errors)
    )
    description = (
        f"{config.__doc__}\n\n--config FILE.yaml sets flags, too; the command line "
        "overrides it."
    )
    with _objections(config) as found:
        try:
            with capture:
                return tyro.cli(
                    config,
                    prog=command,
                    description=description,
                    args=argv,
                )
        except SystemExit as stop:
            if not stop.code:
                raise
        if found:
            raise found[0]
        message = _wrong_value(config, argv) or _first_paragraph(errors.getvalue())
        see = f"See `{command} --help`."
        raise UserError(f"{_hint(config, argv)}{message} {see}")


@contextlib.contextmanager
def _objections(config: type) -> Iterator[list[UserError]]:
    """Keeps what the dataclass itself says of its values, which tyro would wrap."""
    found: list[UserError] = []
    check = getattr(config, "__post_init__", None)
    if check is None:
        yield found
        return

    def keep(self: Any) -> None:
        try:
            check(self)
        except UserError as error:
            found.append(error)
            raise

    config.__post_init__ = keep
    try:
        yield found
    finally:
        config.__post_init__ = check


def checked(make: Callable[..., T], **values: Any) -> T:
    """`make(**values)`, whose errors begin with the name of a field: of a flag."""
    try:
        return make(**values)
    except UserError as error:
        raise UserError(f"--{error}") from None


def check_style(name: str) -> None:
    """Raises `UserError` where --style_mode names no style, also no registered one."""
    from prefchat_jax.chat.styles import get_style

    if name != "auto":
        try:
            get_style(name)
        except UserError as error:
            raise UserError(f"--style_mode: {error}") from None


def _spell_unions(config: type) -> None:
    """Writes `X | None` as `Union[X, None]`, which means the same.

    tyro checks defaults of the first by typeguard, and importing that takes as long
    as importing NumPy. What tyro is told beside a type stays.
    """
    spell: Any = Union
    for name, hint in get_type_hints(config, include_extras=True).items():
        if isinstance(hint, UnionType):
            config.__annotations__[name] = spell[get_args(hint)]


def _hint(config: type, argv: Sequence[str]) -> str:
    """The flag that a misspelt one may have meant."""
    known = [field.name for field in dataclasses.fields(config)]
    for arg in argv:
        name = arg.removeprefix("--").partition("=")[0].replace("-", "_")
        if arg.startswith("--") and name.removeprefix("no_") not in known:
            close = difflib.get_close_matches(name, known, 1)
            return f"no flag --{name}" + (
                f", did you mean --{close[0]}? " if close else ". "
            )
    return ""


def _first_paragraph(box: str) -> str:
    """The message of tyro's error box, without its frame, in this package's words."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in box.splitlines()]
    _, *lines = filter(None, lines)  # Without the title.
    is_rule = lambda line: not line.strip("─-")
    lines = itertools.dropwhile(is_rule, lines)  # Without UTF-8 one follows it.
    message = itertools.takewhile(lambda line: not is_rule(line), lines)
    text = " ".join(message).rstrip(".")
    # Flags have underscores in all that this package prints.
    text = re.sub(r"--[a-z][\w-]*", lambda m: f"--{m[0][2:].replace('-', '_')}", text)
    if missing := re.findall(r"(--\w+) [A-Z]\S* (.*?)\.? \(required\)", text):
        return " ".join(f"{name} is missing: {meaning}." for name, meaning in missing)
    if without := re.match(r"Missing value for argument '(--\w+)'", text):
        return f"{without[1]} needs a value."
    return f"{text}."


def _wrong_value(config: type, argv: Sequence[str]) -> str:
    """The first value that does not suit its flag, and what would."""
    hints = get_type_hints(config)
    for name, values in _given(argv):
        hint = hints.get(name) or hints.get(name.removeprefix("no_"))
        kinds, all_of_them = _kinds(hint), f"--{name} {' '.join(values)}"
        if kinds == [bool] and values:
            yes = name.removeprefix("no_")
            return f"{all_of_them}: say --{yes} or --no_{yes}, in a file true or false."
        for value in values:
            if not any(_suits(kind, value) for kind in kinds):
                return f"--{name} {value}: {_wanted(kinds)}."
        if len(values) > 1 and hint and not _is_listed(hint):
            return f"{all_of_them}: give one value."
    return ""


def _given(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag, with underscores, and the values after it."""
    found: list[tuple[str, list[str]]] = []
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            found.append((name.replace("-", "_"), [value] if equals else []))
        elif found:
            found[-1][1].append(arg)
    return found


def _kinds(hint: Any) -> list[Any]:
    """The types that a value may have, `X` of `X | None` and of `tuple[X, ...]`."""
    inner = [arg for arg in get_args(hint) if arg not in (type(None), ...)]
    if get_origin(hint) is Literal or not inner:
        return [hint]
    return [kind for arg in inner for kind in _kinds(arg)]


def _is_listed(hint: Any) -> bool:
    """Whether a flag takes several values at once."""
    return tuple in (get_origin(hint), *map(get_origin, get_args(hint)))


def _suits(kind: Any, value: str) -> bool:
    if get_origin(kind) is Literal:
        return value in (*get_args(kind), "None")
    if kind not in (int, float) or value == "None":
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _wanted(kinds: Sequence[Any]) -> str:
    if get_origin(kinds[0]) is Literal:
        return f"use one of {', '.join(map(str, get_args(kinds[0])))}"
    return "give a whole number" if kinds[0] is int else "give a number"


def _check_files(config: type, argv: Sequence[str]) -> None:
    """Raises `UserError` where a second file would silently replace the first.

    Of other flags the last value holds, as everywhere; of corpora none may be lost.
    """
    for flag in ("data", "preferences"):
        files = [" ".join(values) for name, values in _given(argv) if name == flag]
        if len(files) > 1 and flag not in _repeated(config):
            listed = flag == "data" and hasattr(config, "data_manifest")
            raise UserError(
                f"--{flag} {files[0]} and --{flag} {files[1]}: give it once"
                + (", or list the files in a --data_manifest." if listed else ".")
            )


def _check_texts(made: Any) -> None:
    """Raises `UserError` where a text, most of them paths, is empty or no path."""
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.strip():
                raise UserError(f"--{field.name} is empty: give a value or drop it.")
            if isinstance(text, str) and "\0" in text:
                raise UserError(f"--{field.name} holds a null character: drop it.")


def _place(
    message: str, path: pathlib.Path | None, from_file: Sequence[str], argv: list[str]
) -> str:
    """The message, after the file of the flag that it is about."""
    about = re.match(r"--(?:no_)?(\w+)", message)
    names = [{name for name, _ in _given(args)} for args in (from_file, argv)]
    if path and about and about[1] in names[0] and about[1] not in names[1]:
        return f"{_line(path, about[1])}: {message}"
    return message


def _line(path: pathlib.Path, flag: str) -> str:
    """`file:line` of a flag in a file of flags, or the file where it stands nowhere."""
    for number, text in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        keys = re.findall(r"""(?:^|[{,])\s*["']?([\w-]+)["']?\s*:""", text)
        if flag in (key.replace("-", "_") for key in keys):
            return f"{path}:{number}"
    return str(path)


def _config_flags(
    config: type, argv: list[str]
) -> tuple[pathlib.Path | None, list[str], list[str]]:
    """Takes `--config FILE` out of `argv` and turns the file into flags."""
    for i, arg in enumerate(argv):
        name, _, value = arg.partition("=")
        if name == "--config":
            rest = argv[i + 1 :]
            if not value and not rest:
                raise UserError("--config needs a YAML file.")
            path = pathlib.Path(value or rest.pop(0))
            return path, _read_flags(config, path), argv[:i] + rest
    return None, [], argv


def _read_flags(config: type, path: pathlib.Path) -> list[str]:
    try:
        values = msgspec.yaml.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error
    except msgspec.DecodeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config holds `flag: value` lines.")
    known = {field.name for field in dataclasses.fields(config)}
    repeated = _repeated(config)
    flags = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            where = _line(path, name)
            raise UserError(f"{where}: no flag {key!r}: see the command's --help.")
        several = value if name in repeated and isinstance(value, list) else [value]
        for one in several:
            flags += _flag(name, one)
    return flags


def _repeated(config: type) -> set[str]:
    """The flags that take one value and may be given again."""
    hints = get_type_hints(config, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        if tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ())
    }


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    values = value if isinstance(value, list) else [value]
    return [] if value is None else [f"--{name}", *map(str, values)]
