"""Opening a stranger's files: only regular files, only beneath their folder, only up to a limit."""

from __future__ import annotations

import difflib
import os
import re
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from educe.errors import InputError, ModelFileError, UserError
from educe.limits import Limits

_MOST_NEIGHBOURS = 10_000
_CLOSE = 0.75
_HUB_BLOB = re.compile(r"blobs/[0-9a-f]{40,64}")


def read_bytes(
    path: str | os.PathLike[str], limits: Limits, limit: str, *, error: type[UserError] = InputError
) -> bytes:
    """Return the whole content of the file at `path`.

    Args:
        limits: The bounds in force.
        limit: Which of them applies to this file.
        error: What to raise when the file cannot be read.

    Raises:
        LimitError: the file is larger than the limit.
    """
    with open_regular(path, error=error) as file:
        limits.check(limit, os.fstat(file.fileno()).st_size, path=path)
        try:
            return file.read()
        except OSError as fault:
            raise error(f"cannot be read: {fault.strerror}", path=path, remedy="check the disk") from None


def open_regular(path: str | os.PathLike[str], *, error: type[UserError] = InputError) -> BinaryIO:
    """Open the regular file at `path` for reading; a folder, pipe or device is refused."""
    # O_NONBLOCK keeps the open of a named pipe from waiting for its writer.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as fault:
        raise _open_error(path, fault, error) from None
    return _regular(descriptor, path, error)


def stamp(file: BinaryIO) -> str:
    """Return what tells an open file from all others, and from itself after it was written to again.

    Which file it is, its size, and when its content and its entry were last changed. Nobody but the system
    sets the last of these, so that a file that was exchanged or edited has another stamp even if its
    times were set back; the content need not be read.
    """
    found = os.fstat(file.fileno())
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def open_beneath(folder: Path, relative: str) -> BinaryIO:
    """Open `relative` beneath `folder`, following no symbolic link and leaving the folder nowhere.

    Every part of the path is opened in the folder opened before it, so that nothing can be exchanged
    between the check and the use. In the cache of the Hugging Face Hub a file is a link from
    ``models--NAME/snapshots/REVISION/`` to ``models--NAME/blobs/HASH``: there that blob is opened instead,
    beneath its ``models--NAME``.

    Raises:
        ModelFileError: the path is absolute, has a ``..``, passes a link, or is no regular file.
    """
    parts = PurePosixPath(relative.replace("\\", "/")).parts
    if not parts or relative.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in relative:
        raise ModelFileError(
            f"names the file {relative!r}, which is not beneath the model's own folder",
            remedy="keep all files of a model in one folder, and name them relative to it",
        )
    if hub := _hub_blob(folder.absolute().joinpath(*parts)):
        folder, relative = hub
        parts = PurePosixPath(relative).parts
    if not hasattr(os, "O_NOFOLLOW") or os.open not in os.supports_dir_fd:
        return _open_beneath_by_name(folder, relative, parts)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise _open_error(folder, fault, ModelFileError) from None
    try:
        for position, part in enumerate(parts):
            kind = os.O_NONBLOCK if position == len(parts) - 1 else os.O_DIRECTORY
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except (OSError, ValueError) as fault:
        os.close(descriptor)
        raise _beneath_error(folder / relative, fault) from None
    return _regular(descriptor, folder / relative, ModelFileError)


def _hub_blob(path: Path) -> tuple[Path, str] | None:
    """Return the folder of a model in the Hub's cache, and the blob in it that `path` is a link to."""
    for root in path.parents:
        inner = path.relative_to(root).parts
        if root.name.startswith("models--") and inner[0] == "snapshots" and len(inner) > 2:
            with suppress(OSError):
                blob = path.readlink().as_posix().removeprefix("../" * (len(inner) - 1))
                return (root, blob) if _HUB_BLOB.fullmatch(blob) else None
    return None


def _open_beneath_by_name(folder: Path, relative: str, parts: tuple[str, ...]) -> BinaryIO:
    path = folder.joinpath(*parts)
    if path.resolve() != folder.resolve().joinpath(*parts):
        raise ModelFileError("is reached through a symbolic link", path=path, remedy="copy the file itself")
    return open_regular(folder / relative, error=ModelFileError)


def _regular(descriptor: int, path: str | os.PathLike[str], error: type[UserError]) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("is not a regular file", path=path, remedy="give the name of a file")
    return os.fdopen(descriptor, "rb")


def _open_error(path: str | os.PathLike[str], fault: Exception, error: type[UserError]) -> UserError:
    remedy = None
    if isinstance(fault, FileNotFoundError):
        near = neighbour(Path(path))
        remedy = "check the name" if near is None else f"did you mean {str(near)!r}?"
    return error(f"cannot be opened: {_reason(fault)}", path=path, remedy=remedy)


def neighbour(path: Path) -> Path | None:
    """Return what lies beside a path that is not there and is called much like it; None if nothing is."""
    with suppress(OSError):
        while path.parent != path and not path.parent.exists():
            path = path.parent
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NEIGHBOURS)]
        for name in difflib.get_close_matches(path.name, names, n=1, cutoff=_CLOSE):
            return path.with_name(name)
    return None


def _reason(fault: Exception) -> str:
    return fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)


def _beneath_error(path: Path, fault: Exception) -> ModelFileError:
    # Linux answers ELOOP for a link at the end of the path and ENOTDIR for one inside it. The path's own
    # method raises for names that no file can have.
    if any(os.path.islink(part) for part in (path, *path.parents)):  # noqa: PTH114
        return ModelFileError(
            "is reached through a symbolic link, which may lead anywhere",
            path=path,
            remedy="copy the file itself into the model's folder (cp -L)",
        )
    return ModelFileError(
        f"cannot be opened: {_reason(fault)}", path=path, remedy="check that it was copied too"
    )
