"""Reading tables: CSV and its kin with a header line, one row at a time.

The dialect is that of RFC 4180: cells may stand in double quotes, and then hold delimiters, doubled quotes
and line ends. Lines end with LF or CRLF; blank lines are skipped. The delimiter is a comma, tab, semicolon
or vertical bar: the one by which the header line names most of the wanted columns; if several do, the one
that cuts it into most cells; if several do that, the first of them. Names and cells are taken literally,
with their spaces.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, TextIO, TypeAlias, cast

from educe.errors import InputError, LimitError
from educe.files import open_regular
from educe.limits import Limits
from educe.media.text import BOM, decode_utf8

TableSource: TypeAlias = Path | bytes | TextIO | BinaryIO

DELIMITERS = ",\t;|"
MAX_SHOWN = 20
MAX_COMPARED = 1000


def read_table(
    source: TableSource, columns: Sequence[str], limits: Limits
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line where a row begins, from 1, and its cells of `columns`, in that order.

    Memory is constant: no more than one row is held. Other columns are ignored.

    Args:
        source: A file, its content, or an open stream of text or bytes, which is read to its end and not
            closed. Of a stream only the rows are bounded, not the whole.
        columns: The names of the wanted columns.
        limits: The bounds on the table, each row and each cell.

    Raises:
        InputError: there is no such column, two columns have one name, a row has more or fewer cells than
            the header, a quote is not closed, or the file is not UTF-8.
        LimitError: the table, a row or a cell is too large.
    """
    path = source if isinstance(source, Path) else None
    lines = _Lines(source, limits)
    try:
        yield from _rows(lines, columns, limits)
    except (InputError, LimitError) as fault:
        raise (fault.located(path) if path else fault) from None
    finally:
        lines.close()


class _Lines:
    """The lines of a table with their ends, counting the characters of the current row."""

    def __init__(self, source: TableSource, limits: Limits) -> None:
        self.number = 0
        self.row_characters = 0
        self._limits = limits
        self._offset = 0
        self._own = _binary(source, limits) if isinstance(source, (Path, bytes)) else None
        self._stream: BinaryIO | TextIO = self._own or cast("BinaryIO | TextIO", source)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number += 1
        line = self._read()
        if not line:
            raise StopIteration
        self.row_characters += len(line)
        if self.row_characters > self._limits.row_bytes:
            self._limits.check("row_bytes", self.row_characters)
        return line.removeprefix(BOM) if self.number == 1 else line

    def _read(self) -> str:
        try:
            line = self._stream.readline(self._limits.row_bytes + 1)
        except UnicodeDecodeError as fault:
            raise InputError(f"is not UTF-8 text ({fault.reason})", place=f"line {self.number}") from None
        except OSError as fault:
            raise InputError(
                f"cannot be read: {fault.strerror or fault}", place=f"line {self.number}"
            ) from None
        if isinstance(line, str):
            return line
        self._offset += len(line)
        return decode_utf8(line, offset=self._offset - len(line))

    def close(self) -> None:
        """Close what this object opened."""
        if self._own is not None:
            self._own.close()


def _binary(source: Path | bytes, limits: Limits) -> BinaryIO:
    if isinstance(source, bytes):
        limits.check("table_bytes", len(source))
        return io.BytesIO(source)
    file = open_regular(source)
    try:
        limits.check("table_bytes", os.fstat(file.fileno()).st_size, path=source)
    except LimitError:
        file.close()
        raise
    return file


def _rows(lines: _Lines, columns: Sequence[str], limits: Limits) -> Iterator[tuple[int, list[str]]]:
    records = _records(lines, columns, limits)
    line, header = next(records, (1, []))
    _refuse_twins(header, line)
    positions = _positions(header, columns)
    for line, cells in records:
        if len(cells) != len(header):
            raise InputError(
                f"expected {len(header)} cells as in the header, found {len(cells)}",
                place=f"line {line}",
                remedy="put cells that hold the delimiter in double quotes",
            )
        yield line, [cells[position] for position in positions]


def _records(lines: _Lines, columns: Sequence[str], limits: Limits) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where each record that is not blank begins, and its cells; the header is the first."""
    first = next((line for line in lines if line.strip()), "")
    begin = max(1, lines.number)
    try:
        reader = csv.reader(_chain(first, lines), delimiter=_delimiter(first, columns), strict=True)
        for cells in reader:
            if lines.row_characters > limits.cell_bytes:
                limits.check("cell_bytes", max(map(len, cells), default=0))
            if cells:
                yield begin, cells
            begin, lines.row_characters = lines.number + 1, 0
    except csv.Error as fault:
        raise _csv_error(fault, begin, lines) from None


def _chain(first: str, lines: _Lines) -> Iterator[str]:
    yield first
    yield from lines


def _delimiter(header: str, columns: Sequence[str]) -> str:
    wanted = set(columns)

    def fitness(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return len(wanted.intersection(cells)), len(cells)

    return max(DELIMITERS, key=fitness)


def _csv_error(fault: csv.Error, begin: int, lines: _Lines) -> InputError | LimitError:
    place = f"line {begin}"
    if "field limit" in str(fault):
        return LimitError(f"a cell is larger than {csv.field_size_limit():,} characters", place=place)
    if "unexpected end" in str(fault):
        return InputError(
            "the quoted cell that begins here never ends", place=place, remedy="close its quotes"
        )
    return InputError(
        f"is no CSV: {fault}", place=f"line {max(begin, lines.number)}", remedy="quote as RFC 4180 says"
    )


def _refuse_twins(header: list[str], line: int) -> None:
    # Spreadsheets leave several nameless columns at the end.
    twins = [name for name, count in Counter(header).items() if name and count > 1]
    if twins:
        raise InputError(
            f"two columns are named {twins[0]!r}", place=f"line {line}", remedy="rename one of them"
        )


def _positions(header: list[str], columns: Sequence[str]) -> list[int]:
    if not header:
        raise InputError("the table has no header line", remedy=f"begin it with {','.join(columns)}")
    positions = {name: position for position, name in enumerate(header)}
    for name in columns:
        if name not in positions:
            raise missing_column(name, header, columns)
    return [positions[name] for name in columns]


def missing_column(name: str, found: Sequence[str], wanted: Sequence[str]) -> InputError:
    """Return the error for a table that lacks the column `name` of those wanted, and has those in `found`."""
    shown = ", ".join(map(repr, found[:MAX_SHOWN]))
    rest = f", and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    close = get_close_matches(name, found[:MAX_COMPARED], n=1)
    more = ", …" if len(wanted) > MAX_SHOWN else ""
    remedy = (
        f"did you mean {close[0]!r}?" if close else f"the columns are {', '.join(wanted[:MAX_SHOWN])}{more}"
    )
    return InputError(f"the table has no column {name!r}; it has {shown}{rest}", remedy=remedy)
