"""Rows of a matrix to one row for each run of them."""

from __future__ import annotations

from educe.compiler.emit import F32, I64, Function
from educe.compiler.kernel import template
from educe.compiler.target import Target

SEGMENT_WORDS = 2
"""Numbers of a segment: its first row, and how many rows it has."""


@template("segments")
def segments(fn: Function, target: Target, combine: str, mean: bool) -> None:
    """Write ``out[segment, feature] = combine(x[row, feature] for row in segment)``.

    ::

        for segment in begin..end:
            first, count = table[segment]
            for feature in features, a vector at a time:
                total = x[first, feature]
                for row in first + 1..first + count:
                    total = combine(total, x[row, feature])
                out[segment, feature] = total (/ count)

    Pointers: out, x, table (i64). Sizes: features, rows; strides of out and of x: row. A segment without
    rows, or of rows that are not there, is zeros.

    Args:
        fn: The function to write.
        target: Its machine.
        combine: What becomes of two rows: ``add`` or ``maximum``.
        mean: Whether the result is divided by the number of rows.
    """
    features, rows, of_out, of_x = (fn.size(index) for index in range(4))
    lanes = target.lanes
    with fn.loop(fn.begin, fn.end) as segment:
        place = segment * SEGMENT_WORDS
        first, count = (fn.load(I64, fn.pointer(2), place + word) for word in range(SEGMENT_WORDS))
        inside = (first >= 0) & (count > 0) & (first < rows) & (count <= rows - first)
        count, first = fn.select(inside, count, 0), fn.select(inside, first, 0)
        out, x = fn.at(F32, fn.pointer(0), segment * of_out), fn.at(F32, fn.pointer(1), first * of_x)
        factor = 1.0 / fn.cast(fn.maximum(count, 1), F32) if mean else fn.const(F32, 1)
        with fn.loop(0, features, lanes) as feature:
            mask = fn.tail_mask(features - feature, lanes)
            total = fn.var(fn.const(F32, 0, lanes))
            with fn.when(inside):
                total.set(fn.load(F32, x, feature, lanes, mask))
            with fn.loop(1, count) as row:
                each = fn.load(F32, x, row * of_x + feature, lanes, mask)
                total.set(fn.maximum(total.get(), each) if combine == "maximum" else total.get() + each)
            fn.store(total.get() * fn.splat(factor, lanes), out, feature, mask)
