"""Templates of copies whose fastest dimension is another one in the source."""

from __future__ import annotations

from educe.compiler.emit import Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.indexing import offset_of
from educe.compiler.target import Target

STRIP = 4
"""Tiles side by side that are read together, so that what is read of a row is some cache lines long."""

BLOCK = 4096
"""Columns of a woven copy that are one unit of work."""

MAX_WAYS = 8
"""Rows up to which a copy may be woven."""


def tile_size(target: Target, size_bytes: int) -> int:
    """Return the rows and columns of a tile of elements of `size_bytes`: at most a cache line each."""
    return min(target.lanes, 64 // size_bytes)


@template("transposed_copy")
def transposed_copy(fn: Function, target: Target, kind: Kind) -> None:
    """Write ``out[row, i, j] = in[row, j, i]``, both with neighbours in their last dimension.

    ::

        for unit in begin..end:                       # STRIP * n rows of out
            row, strip = unit / strips, unit % strips
            for j in 0..columns, n at a time:
                for i in strip, n at a time:          # the last tiles are moved back inside
                    tile = n vectors of in, at [row, j.., i..]
                    out[row, i.., j..] = tile transposed in registers

    Pointers: out, in. Sizes: rows and columns of out, both at least `tile_size`, strips, the step between
    rows of out and of in, outer rank, then the outer sizes and the outer strides of out and of in.
    """
    n = tile_size(target, kind.size_bytes)
    rows, columns, strips, out_step, in_step, rank = (fn.size(number) for number in range(6))
    pointers = fn.pointer(0), fn.pointer(1)
    with fn.loop(fn.begin, fn.end) as unit:
        row, start = unit // strips, unit % strips * (STRIP * n)
        stop = fn.minimum(start + STRIP * n, rows)
        out = fn.at(kind, pointers[0], offset_of(fn, row, rank, 6, rank + 6))
        source = fn.at(kind, pointers[1], offset_of(fn, row, rank, 6, rank * 2 + 6))
        with fn.loop(0, columns, n) as next_column:
            j = fn.minimum(next_column, columns - n)
            with fn.loop(start, stop, n) as next_row:
                i = fn.minimum(next_row, rows - n)
                tile = [fn.load(kind, source, (j + each) * in_step + i, n) for each in range(n)]
                for each, vector in enumerate(_transposed(fn, tile)):
                    fn.store(vector, out, (i + each) * out_step + j)


@template("woven_copy")
def woven_copy(fn: Function, target: Target, kind: Kind, ways: int, joined: bool) -> None:
    """Write ``out[row, j, i] = in[row, i, j]`` for few i and many j; or the reverse, not `joined`.

    ::

        for unit in begin..end:                       # a block of columns
            for j in block, n at a time, the last ones moved back inside:
                for i in 0..ways:                     # unrolled: one shuffle of vectors
                    out[row, j.., i] = in[row, i, j..]

    Pointers: out, in. Sizes: columns, at least `tile_size`, blocks, the step between rows on the side that
    is not woven, outer rank, then the outer sizes and the outer strides of out and of in.
    """
    n = tile_size(target, kind.size_bytes)
    columns, blocks, step, rank = (fn.size(number) for number in range(4))
    pointers = fn.pointer(0), fn.pointer(1)
    with fn.loop(fn.begin, fn.end) as unit:
        row, first = unit // blocks, unit % blocks * BLOCK
        out = fn.at(kind, pointers[0], offset_of(fn, row, rank, 4, rank + 4))
        source = fn.at(kind, pointers[1], offset_of(fn, row, rank, 4, rank * 2 + 4))
        with fn.loop(first, fn.minimum(first + BLOCK, columns), n) as next_column:
            j = fn.minimum(next_column, columns - n)
            if joined:
                rows = [fn.load(kind, source, step * i + j, n) for i in range(ways)]
                fn.store(_woven(fn, rows), out, j * ways)
            else:
                whole = fn.load(kind, source, j * ways, n * ways)
                for i in range(ways):
                    fn.store(fn.shuffle(whole, whole, range(i, n * ways, ways)), out, step * i + j)


def _woven(fn: Function, rows: list[Val]) -> Val:
    """Return the first elements of all rows, then their second ones, and so on."""
    n, ways = rows[0].lanes, len(rows)
    while len(rows) > 1:
        rows = [*rows, rows[-1]] if len(rows) % 2 else rows
        lanes = range(2 * rows[0].lanes)
        rows = [fn.shuffle(a, b, lanes) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    return fn.shuffle(rows[0], rows[0], [i * n + j for j in range(n) for i in range(ways)])


def _transposed(fn: Function, tile: list[Val]) -> list[Val]:
    """Return n vectors of n lanes transposed: blocks of 1, 2, 4, ... change places across the diagonal."""
    n = len(tile)
    step = 1
    while step < n:
        upper = [lane if not lane & step else n + lane - step for lane in range(n)]
        lower = [lane + step if not lane & step else n + lane for lane in range(n)]
        changed = list(tile)
        for each in range(n):
            if not each & step:
                a, b = tile[each], tile[each + step]
                changed[each], changed[each + step] = fn.shuffle(a, b, upper), fn.shuffle(a, b, lower)
        tile = changed
        step *= 2
    return tile
