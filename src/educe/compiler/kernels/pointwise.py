"""The template `pointwise`: one expression of every element, inputs broadcast and read by strides."""

from __future__ import annotations

from educe.compiler.emit import I64, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.expression import Expression
from educe.compiler.target import Target

BLOCK = 4096
"""Elements that are about one unit of work."""

MAX_OUTER = 8


@template("pointwise")
def pointwise(fn: Function, target: Target, expression: Expression, access: tuple[str, ...]) -> None:
    """Write ``out[outer, row, i] = expression(in0[outer, row, i], ...)``.

    ::

        for unit in begin..end:                       # some rows, or a block of one row
            outer, group, block = unit / blocks / groups, unit / blocks % groups, unit % blocks
            for row in group:
                for i in block, a vector at a time, the last one masked:
                    out[outer, row, i] = expression(in_k[outer, row, i], ...)

    Pointers: out, in0, in1, ... Sizes: rank of the outer dimensions, length of a row, blocks of a row, rows,
    rows of a group, groups, the outer sizes (`MAX_OUTER`), and for out and each input its outer strides
    (`MAX_OUTER`), its step between rows and its step along a row.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is computed.
        access: How out and each input lie along a row: ``dense``, ``same`` (one element for the whole row),
            or ``strided``.
    """
    lanes = target.lanes
    kinds = (expression.kind, *expression.inputs)
    rank, length, blocks, rows, per_group, groups = (fn.size(number) for number in range(6))
    pointers = [fn.pointer(index) for index in range(len(kinds))]
    strides_at = [6 + MAX_OUTER + operand * (MAX_OUTER + 2) for operand in range(len(kinds))]
    row_steps = [fn.size(place + MAX_OUTER) for place in strides_at]
    steps = [fn.size(place + MAX_OUTER + 1) for place in strides_at]
    with fn.loop(fn.begin, fn.end) as unit:
        block, rest = unit % blocks, unit // blocks
        first_row = rest % groups * per_group
        first, stop = block * BLOCK, fn.minimum(block * BLOCK + BLOCK, length)
        whole = first + (stop - first) // lanes * lanes
        offsets = _offsets(fn, rank, rest // groups, strides_at)
        with fn.loop(first_row, fn.minimum(first_row + per_group, rows)) as row:
            starts = [
                fn.at(kind, pointer, offset + row * step)
                for kind, pointer, offset, step in zip(kinds, pointers, offsets, row_steps, strict=True)
            ]
            same = {k: fn.load(kinds[k], starts[k]) for k in range(1, len(kinds)) if access[k] == "same"}

            def body(
                i: Val, mask: Val | None, starts: list[Val] = starts, same: dict[int, Val] = same
            ) -> None:
                values = [
                    fn.splat(same[k], lanes)
                    if k in same
                    else _read(fn, kinds[k], starts[k], i, steps[k], access[k], lanes, mask)
                    for k in range(1, len(kinds))
                ]
                result = fn.splat(expression.emit(fn, values), lanes)
                if access[0] == "dense":
                    fn.store(result, starts[0], i, mask)
                else:
                    fn.scatter(result, starts[0], _indices(fn, i, steps[0], lanes), mask)

            with fn.loop(first, whole, lanes) as i:
                body(i, None)
            with fn.when(whole < stop):
                body(whole, fn.tail_mask(stop - whole, lanes))


def _indices(fn: Function, i: Val, step: Val, lanes: int) -> Val:
    return (fn.lane_numbers(lanes) + fn.splat(i, lanes)) * step


def _read(
    fn: Function, kind: Kind, start: Val, i: Val, step: Val, access: str, lanes: int, mask: Val | None
) -> Val:
    if access == "dense":
        return fn.load(kind, start, i, lanes, mask)
    return fn.gather(kind, start, _indices(fn, i, step, lanes), mask)


def _offsets(fn: Function, rank: Val, outer: Val, strides_at: list[int]) -> list[Val]:
    """Return each operand's offset of `outer`: the sum of index times stride over the outer dimensions."""
    rest = fn.var(outer)
    sums = [fn.var(fn.const(I64, 0)) for _ in strides_at]
    with fn.loop(0, rank) as back:
        axis = rank - 1 - back
        size = fn.size(axis + 6)
        index = rest.get() % size
        rest.set(rest.get() // size)
        for total, place in zip(sums, strides_at, strict=True):
            total.set(total.get() + index * fn.size(axis + place))
    return [total.get() for total in sums]
