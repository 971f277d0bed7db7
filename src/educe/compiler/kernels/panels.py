"""Kernels that pack the right side of a product into panels of columns."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import BOOL, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.product import lanes_of
from educe.compiler.target import Target


@template("panels")
def panels(fn: Function, target: Target, kind: Kind, vectors: int, group: int, is_dense: bool) -> None:
    """Write ``out[batch, panel, step, column, i] = b[batch, step * group + i, panel * width + column]``.

    ::

        for unit in begin..end:                          # one of a batch, a panel
            for step in 0..K / group:
                for v in vectors:
                    out[unit, step, v] = rows b[step * group ...][panel, v], element by element in turn

    Zeros stand behind the last column and row. Pointers: out, b. Sizes: N, K, panels, size of the inner batch
    dimension; strides of b: k, column, outer, inner; steps.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of both.
        vectors: Vectors of columns in a panel.
        group: Neighbours along k that lie side by side.
        is_dense: Whether neighbouring columns lie next to each other.
    """
    lanes = lanes_of(target, kind)
    width = vectors * lanes
    n, depth, count, inner, k_stride, column_stride, outer_stride, inner_stride, steps = (
        fn.size(index) for index in range(9)
    )
    out, b, whole = fn.pointer(0), fn.pointer(1), depth // group

    def columns(row: Val, v: int, mask: Val | None) -> Val:
        if is_dense:
            return fn.load(kind, row, v * lanes, lanes, mask)
        indices = (fn.lane_numbers(lanes) + v * lanes) * column_stride
        return fn.gather(kind, row, indices, mask or fn.const(BOOL, True, lanes))

    with fn.loop(fn.begin, fn.end) as unit:
        batch, first = unit // count, unit % count * width
        source = fn.at(kind, b, batch // inner * outer_stride + batch % inner * inner_stride)
        source = fn.at(kind, source, first * column_stride)
        packed = fn.at(kind, out, unit * steps * (width * group))
        masks = [fn.tail_mask(fn.minimum(n - first, width) - v * lanes, lanes) for v in range(vectors)]

        def copy(step: Val, masks: Sequence[Val | None], is_last: bool) -> None:
            for v, mask in enumerate(masks):
                rows = []
                for i in range(group):
                    k = step * group + i
                    row = fn.at(kind, source, (fn.minimum(k, depth - 1) if is_last else k) * k_stride)
                    value = columns(row, v, mask)
                    rows.append(fn.select(k < depth, value, fn.const(kind, 0, lanes)) if is_last else value)
                fn.store(interleaved(fn, rows), packed, step * (width * group) + v * lanes * group)

        with fn.either(first + width <= n) as otherwise:
            with fn.loop(0, whole) as step:
                copy(step, [None] * vectors, False)
            otherwise()
            with fn.loop(0, whole) as step:
                copy(step, masks, False)
        if group > 1:
            with fn.loop(whole, steps) as step:
                copy(step, masks, True)


def interleaved(fn: Function, rows: Sequence[Val]) -> Val:
    """Return the first elements of all rows, then the second ones, and so on."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    low, high = interleaved(fn, rows[:half]), interleaved(fn, rows[half:])
    lanes, places = low.lanes, range(low.lanes // half)
    order = [side * lanes + place * half + i for place in places for side in (0, 1) for i in range(half)]
    return fn.shuffle(low, high, order)
