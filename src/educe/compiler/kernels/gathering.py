"""What the taps of a convolution see, gathered into rows of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import I64, Function, Kind, Val
from educe.compiler.target import Target


def gathered(
    fn: Function, target: Target, kind: Kind, a: Val, rows: tuple[Val, Val], pitch: Val, first_size: int
) -> None:
    """Copy what the taps of some pixels see into scratch memory, a row of `pitch` for each pixel.

    ::

        for pixel in first..stop, line and column of it:
            for i in line taps, j in column taps:
                row[i][j] = a + lines[line][i] + columns[column][j], or what is outside if that is negative

    Args:
        fn: The function to write; pointers 3 to 5 are lines, columns and what is outside.
        target: Its machine.
        kind: The kind of a.
        a: The input.
        rows: The first pixel, and the end.
        pitch: From row to row.
        first_size: The number of the first of these sizes: columns of a line, line taps, column taps,
            numbers of a tap.
    """
    first, stop = rows
    lines, columns, outside = (fn.pointer(index) for index in (3, 4, 5))
    width, line_taps, column_taps, depth = (fn.size(first_size + index) for index in range(4))
    with fn.loop(first, stop) as pixel:
        of_line = fn.at(I64, lines, pixel // width * line_taps)
        of_column = fn.at(I64, columns, pixel % width * column_taps)
        place = fn.var(fn.at(kind, fn.scratch, (pixel - first) * pitch))
        with fn.loop(0, line_taps) as i:
            start = fn.load(I64, of_line, i)
            with fn.loop(0, column_taps) as j:
                offset = start + fn.load(I64, of_column, j)
                source, to = fn.select(offset < 0, outside, fn.at(kind, a, offset)), place.get()
                _copy(fn, kind, source, to, depth, (target.vector_bytes, 16), target.has_masks)
                place.set(fn.at(kind, to, depth))


def _copy(
    fn: Function, kind: Kind, source: Val, to: Val, count: Val, sizes: Sequence[int], has_masks: bool
) -> None:
    """Copy `count` numbers in vectors of some sizes in bytes, and the rest under a mask, or one by one."""
    done = fn.const(I64, 0)
    for lanes in sorted({size // kind.size_bytes for size in sizes}, reverse=True):
        stop = count - count % lanes
        with fn.loop(done, stop, lanes) as index:
            fn.store(fn.load(kind, source, index, lanes), to, index)
        done = stop
        if has_masks:
            with fn.when(done < count):
                mask = fn.tail_mask(count - done, lanes)
                fn.store(fn.load(kind, source, done, lanes, mask), to, done, mask)
            return
    with fn.loop(done, count) as index:
        fn.store(fn.load(kind, source, index), to, index)
