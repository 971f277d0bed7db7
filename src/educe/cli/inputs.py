"""The INPUT arguments: files, folders, patterns and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.errors import EduceError, InputError
from educe.files import open_regular
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.text import read_lines, read_text

if TYPE_CHECKING:
    from educe.tasks import Task
    from educe.tasks.predictor import Named


@dataclass(frozen=True)
class Line:
    """A text that an argument gives.

    Attributes:
        text: The text.
        row: Its line in the file, from 0; None where the argument is the text itself.
    """

    text: str
    row: int | None


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
    if may_be_text and not names_file(argument):
        return argument, argument
    return argument, read_text(Path(argument), DEFAULT_LIMITS)


def text_lines(argument: str) -> Iterator[Line]:
    """Yield the lines of an argument that are not empty: of a file, of ``-``, or the text itself.

    Raises:
        InputError: a file cannot be read, or is not UTF-8.
        LimitError: a line is too long.
    """
    if argument == "-":
        source: Path | bytes = standard_input_bytes(DEFAULT_LIMITS)
    elif names_file(argument):
        source = Path(argument)
    else:
        yield Line(argument, None)
        return
    for row, text in read_lines(source, DEFAULT_LIMITS):
        yield Line(text, row)


def num_lines(argument: str) -> int | None:
    """Return how many lines of an argument are not empty; None for standard input, which is read once."""
    if argument == "-":
        return None
    if not names_file(argument):
        return 1
    with open_regular(argument) as file:
        return sum(1 for line in file if line.strip())


def names_file(argument: str) -> bool:
    """Say whether an argument names a file that is there."""
    # Unlike a Path's own method, this one answers for names that no file can have.
    return os.path.isfile(argument)  # noqa: PTH113


def standard_input_bytes(limits: Limits) -> bytes:
    """Return what comes from standard input.

    Raises:
        LimitError: it is larger than `limits.image_bytes`.
    """
    content = sys.stdin.buffer.read(limits.image_bytes + 1)
    limits.check("image_bytes", len(content), path="-")
    return content


def _expand(argument: str, task: Task[Any], limits: Limits) -> Sequence[Path | Named]:
    if not argument:
        raise InputError("the name of an input is empty", remedy="name a file, a folder or a pattern")
    if argument == "-":
        from educe.tasks.predictor import Named

        return [Named("-", sys.stdin.buffer if task.takes_stream else standard_input_bytes(limits))]
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
