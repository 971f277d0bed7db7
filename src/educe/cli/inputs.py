"""The INPUT arguments: files, folders, patterns and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from educe.errors import EduceError, InputError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.text import read_text
from educe.tasks import Task
from educe.tasks.predictor import Named


def expand_inputs(
    arguments: Sequence[str], task: Task[Any], limits: Limits
) -> tuple[list[Path | Named], list[EduceError]]:
    """Return the inputs that `arguments` name, in order, and an error for each argument that names none.

    A folder gives the files in it and below that the task takes, sorted, hidden ones left out; a pattern
    gives the files that match; ``-`` is standard input.
    """
    found: list[Path | Named] = []
    failures: list[EduceError] = []
    for argument in arguments:
        try:
            found += _expand(argument, task, limits)
        except EduceError as error:
            failures.append(error)
    return found, failures


def standard_input_text() -> str:
    """Return the text that comes from standard input, as UTF-8."""
    content = sys.stdin.buffer.read(DEFAULT_LIMITS.text_bytes + 1)
    return read_text(content, DEFAULT_LIMITS)


def read_text_argument(argument: str, *, may_be_text: bool) -> tuple[str, str]:
    """Return a name and the text of an argument: a file, ``-`` for standard input, or the text itself.

    Args:
        argument: What was given.
        may_be_text: Whether what is no file is the text.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    if argument == "-":
        return argument, standard_input_text()
    # Unlike a Path's own method, this one answers for names that no file can have.
    if may_be_text and not os.path.isfile(argument):  # noqa: PTH113
        return argument, argument
    return argument, read_text(Path(argument), DEFAULT_LIMITS)


def _expand(argument: str, task: Task[Any], limits: Limits) -> Sequence[Path | Named]:
    if not argument:
        raise InputError("the name of an input is empty", remedy="name a file, a folder or a pattern")
    if argument == "-":
        return [Named("-", sys.stdin.buffer if task.takes_stream else _standard_input(limits))]
    # Unlike a Path's, these functions answer for names that no file can have.
    if os.path.isdir(argument):  # noqa: PTH112
        return _folder(Path(argument), task)
    if os.path.exists(argument):  # noqa: PTH110
        return [Path(argument)]
    if glob.has_magic(argument):
        return _pattern(argument)
    if task.takes_text:
        remedy = "check the name; text itself is read from standard input, for the name -"
        raise InputError("is no file", path=argument, remedy=remedy)
    return [Path(argument)]


def _standard_input(limits: Limits) -> bytes:
    content = sys.stdin.buffer.read(limits.image_bytes + 1)
    limits.check("image_bytes", len(content), path="-")
    return content


def _folder(folder: Path, task: Task[Any]) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (task.suffixes is None or path.suffix.lower() in task.suffixes)
    ]
    if not found:
        raise InputError(f"the folder holds no file for {task.name}", path=folder, remedy="name the files")
    return found


def _pattern(pattern: str) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not found:
        raise InputError("no file matches the pattern", path=pattern, remedy="check it with ls")
    return found
