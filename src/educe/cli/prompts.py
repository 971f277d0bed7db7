"""Many prompts from a file of lines, and what is written after each, as JSON."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from educe.cli.completions import completion_fields
from educe.cli.inputs import num_lines
from educe.cli.screen import print_failure, print_json
from educe.cli.tracking import progress_bar
from educe.errors import EduceError, InputError, OptionError
from educe.files import open_regular
from educe.generate.batch import Request
from educe.generate.generator import Generator
from educe.generate.stream import Completion
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.text import decode_utf8


@dataclass(frozen=True)
class _Line:
    """One line of a file: what it asks for, or what is wrong with it."""

    row: int
    request: Request | EduceError


def write_all(generator: Generator, name: str, options: dict[str, Any]) -> int:
    """Print what is written after each prompt of a file, in its order, as JSON; return the exit status.

    Args:
        name: The file, or ``-`` for standard input. A line is a text; or, if it begins with a brace, JSON
            with ``prompt`` or ``messages``, and options of its own.
        options: Those of all prompts.
    """
    status, is_answered = 0, False
    with (
        sys.stdin.buffer if name == "-" else open_regular(name) as file,
        progress_bar(not sys.stdout.isatty()) as progress,
    ):
        bar = progress.add_task("writing", total=num_lines(name), rate=0.0)
        for line, result in _results(generator, _lines(file, DEFAULT_LIMITS), options):
            # A fault of the options is one of the command, not of each line.
            if isinstance(result, OptionError) and isinstance(line.request, str) and not is_answered:
                raise result
            if isinstance(result, EduceError):
                status = max(status, result.exit_status)
                print_failure(name, result, json=True, row=line.row)
            else:
                is_answered = True
                print_json({"row": line.row, **completion_fields(generator, result)})
            progress.update(bar, advance=1, rate=progress.tasks[bar].speed or 0.0)
    return status


def _results(
    generator: Generator, lines: Iterator[_Line], options: dict[str, Any]
) -> Iterator[tuple[_Line, Completion | EduceError]]:
    """Yield the lines with what becomes of each, in their order."""
    taken: deque[_Line] = deque()

    def requests() -> Iterator[Request]:
        for line in lines:
            taken.append(line)
            if not isinstance(line.request, EduceError):
                yield line.request

    def broken() -> Iterator[tuple[_Line, EduceError]]:
        while taken and isinstance(error := taken[0].request, EduceError):
            yield taken.popleft(), error

    for result in generator.batch(requests(), **options):
        yield from broken()
        yield taken.popleft(), result
    yield from broken()


def _lines(file: BinaryIO, limits: Limits) -> Iterator[_Line]:
    """Yield the lines of a file that are not empty; one that is too long is passed over."""
    row = 0
    while content := file.readline(limits.text_bytes + 1):
        size = len(content)
        while not content.endswith(b"\n") and (rest := file.readline(limits.text_bytes + 1)):
            content, size = rest, size + len(rest)
        if size > limits.text_bytes or content.strip():
            yield _Line(row, _request(content, size, limits))
        row += 1


def _request(content: bytes, size: int, limits: Limits) -> Request | EduceError:
    try:
        limits.check("text_bytes", size)
        text = decode_utf8(content).rstrip("\r\n")
        return msgspec.json.decode(text, type=dict[str, Any]) if text.lstrip().startswith("{") else text
    except EduceError as error:
        return error
    except (msgspec.MsgspecError, RecursionError) as fault:
        return InputError(
            f"begins as JSON, and is none: {fault}", remedy='write {"prompt": "…"}, or a line of plain text'
        )
