"""What the commands share on screen: consoles, errors, JSON lines, units."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from educe.errors import EduceError, UnsupportedModelError

_UNBOUNDED = 10_000
_PATIENCE_SECONDS = 0.5
_SHOWN_CHARACTERS = 60
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Console(Console):
    """A console to which text from strangers, such as a model's names, can do nothing but be shown."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def output() -> Console:
    """Return the console of standard output, for results."""
    return _Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def errors() -> Console:
    """Return the console of standard error, for errors, warnings and progress."""
    return _Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Say on a terminal's standard error what goes on, once it has taken half a second.

    It gives what changes the words.
    """
    console = errors()
    if not console.is_terminal:
        yield lambda text: None
        return
    status = console.status(escape(text))
    timer = threading.Timer(_PATIENCE_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda text: status.update(escape(text))
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def terminal_width() -> int | None:
    """Return the columns of the terminal that shows standard output; None for a file or a pipe."""
    console = output()
    return console.width if console.is_terminal else None


def print_table(table: Table) -> None:
    """Print a table on standard output; what its columns do not let be wrapped is never cut short."""
    console = output()
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    needed = console.measure(table, options=console.options.update(width=_UNBOUNDED))
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(table, soft_wrap=True)


def print_facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and what belongs to each, on standard output: wrapped on a terminal, else a line each."""
    console = output()
    if not console.is_terminal:
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            print(printable(f"{name:{width}}  {text}".rstrip()))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    console.print(table)


def print_json(value: dict[str, Any], file: TextIO | None = None) -> None:
    """Print `value` as one line of strict JSON, on standard output if no file is given."""
    stream = file or sys.stdout
    stream.write(json_line(value))
    stream.flush()


def json_line(value: dict[str, Any]) -> str:
    """Return `value` as one line of strict JSON."""
    try:
        line = msgspec.json.encode(value)
    except UnicodeEncodeError:
        line = msgspec.json.encode(_printable_parts(value))
    return line.decode() + "\n"


def _printable_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable_parts(name): _printable_parts(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable_parts(part) for part in value]
    return printable(value) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Return `text` with what is no character in it replaced: control codes, and bytes of file names."""
    return _NO_CHARACTERS.sub("\ufffd", text)


def shortened(text: str) -> str:
    """Return a text as one line of at most 60 characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def error_fields(error: EduceError) -> dict[str, Any]:
    """Return an error as plain values; fields that do not apply are absent."""
    fields: dict[str, Any] = {
        "kind": error.kind,
        "path": error.path,
        "place": error.place,
        "cause": error.cause,
        "remedy": error.remedy,
    }
    if isinstance(error, UnsupportedModelError) and error.problems:
        fields["problems"] = [vars(problem) for problem in error.problems]
    return {name: value for name, value in fields.items() if value}


def print_error(error: EduceError) -> None:
    """Print an error on standard error: what, where, why, and what to do."""
    console = errors()
    where = ": ".join(part for part in (error.path, error.place) if part)
    console.print(f"[bold red]{error.kind}[/] {escape(where + ': ' if where else '')}{escape(error.cause)}")
    if error.remedy:
        console.print(f"  [dim]→[/] {escape(error.remedy)}")


def print_failure(name: str, error: EduceError, *, json: bool, row: int | None = None) -> None:
    """Print on standard error what is wrong with the input of this name, as JSON or in words.

    Args:
        name: The input's name.
        row: Its line in a file of lines, from 0.
    """
    if json:
        place = {} if row is None else {"row": row}
        print_json({"input": name, **place, "error": error_fields(error)}, sys.stderr)
    else:
        print_error(error.located(name if row is None else f"{name} row {row}"))


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    errors().print(f"[yellow]warning[/] {escape(text)}")


def format_seconds(seconds: float) -> str:
    """Return a time with a fitting unit, such as ``3.21 ms``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"


def counted(count: int, one: str, many: str = "") -> str:
    """Return how many there are of something, such as ``1 token`` or ``1,024 tokens``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def format_count(count: float, unit: str = "") -> str:
    """Return a number with three digits and a decimal prefix, such as ``1.06 G``, or ``1.06 GFLOP``."""
    rounded = float(f"{count:.3g}")
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= factor:
            return f"{rounded / factor:g} {prefix}{unit}"
    return f"{rounded:g} {unit}".rstrip()
