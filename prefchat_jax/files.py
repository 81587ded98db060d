"""Files that are written whole or not at all, and what may be written."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping

from prefchat_jax.errors import UserError

os.umask(_UMASK := os.umask(0))  # The only way to read it is to set it.


@contextlib.contextmanager
def write_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path that replaces `path` when the block succeeds.

    A reader sees the old file or the new one, never a part, also when the disk
    fills up or the process dies. An `OSError` names `path`, not the temporary one.
    """
    path, name = pathlib.Path(path), None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        yield pathlib.Path(name)
        os.chmod(name, 0o666 & ~_UMASK)  # mkstemp lets nobody else read.
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            pathlib.Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and _is_aside(error.filename, path):
            error.filename, error.filename2 = os.fspath(path), None
        raise


@contextlib.contextmanager
def folder_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that becomes `path` when the block succeeds.

    Where there is a folder already, it must be empty.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        aside.chmod(0o777 & ~_UMASK)  # mkdtemp lets nobody else in.
        if path.is_dir():
            path.rmdir()
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_outputs(
    outputs: Mapping[str, str | os.PathLike | None],
    *,
    reads: Iterable[str | os.PathLike] = (),
    run: str | os.PathLike | None = None,
) -> None:
    """Fails before the work where a file could not be written after it, or must not.

    Args:
      outputs: file by flag, without its dashes; None is not written.
      reads: files that must stay as they are.
      run: a run directory, in which nothing else may be written.

    Raises:
      UserError: it names the flag and the path; also where that lies in another run.
    """
    taken: dict[pathlib.Path, str] = {}
    read = set(map(_real, reads))
    for flag, path in outputs.items():
        if path is None:
            continue
        place, given = _real(path), f"--{flag} {os.fspath(path)}"
        if run is not None and _real(run) in place.parents:
            raise UserError(f"{given} lies in the run itself: name another file.")
        if any(map(_is_run, place.parents)):
            raise UserError(f"{given} lies in a run directory: name another file.")
        _check_place(given, pathlib.Path(path))
        if place in read:
            raise UserError(f"{given} would replace what is read: name another file.")
        if place in taken:
            raise UserError(f"{given} is the file of --{taken[place]}, too.")
        taken[place] = flag


def _is_aside(name: str | None, path: pathlib.Path) -> bool:
    """Whether an error is of the temporary file; of a failed write it names none."""
    return name is None or pathlib.Path(name).name.startswith(f".{path.name}.")


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _real(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.realpath(path))


def _check_place(given: str, path: pathlib.Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{given}: no such folder, make {path.parent} first.")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{given} is {kind}: name a file.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{given}: nothing can be written to {path.parent}.")
