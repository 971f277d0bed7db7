"""The template `transposed_copy`: a copy whose fastest dimension is another one in the source."""

from __future__ import annotations

from educe.compiler.emit import Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.indexing import offset_of
from educe.compiler.target import Target

STRIP = 4
"""Tiles side by side that are read together, so that what is read of a row is some cache lines long."""


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
