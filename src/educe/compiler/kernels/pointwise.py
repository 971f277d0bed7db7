"""The template `pointwise`: one expression of every element, inputs broadcast and read by strides."""

from __future__ import annotations

from educe.compiler.emit import I64, PTR, Function, Operand, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

BLOCK = 4096
"""Elements of a row that are one unit of work."""

MAX_OUTER = 8


@template("pointwise")
def pointwise(fn: Function, target: Target, expression: Expression, access: tuple[str, ...]) -> None:
    """Write ``out[row, i] = expression(in0[row, i], ...)``.

    ::

        for unit in begin..end:                       # a block of a row
            row, block = unit / blocks, unit % blocks
            for i in block, a vector at a time, the last one masked:
                out[offset_out(row) + i] = expression(in_k[offset_k(row) + i * step_k], ...)

    Pointers: out, in0, in1, ... Sizes: rank of the outer dimensions, length of a row, blocks of a row, the
    outer sizes (`MAX_OUTER`), and for out and each input its outer strides (`MAX_OUTER`) and its step.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is computed.
        access: How out and each input lie along a row: ``dense``, ``same`` (one element for the whole row),
            or ``strided``.
    """
    lanes = target.lanes
    num = len(expression.inputs) + 1
    rank, length, blocks = fn.size(0), fn.size(1), fn.size(2)
    pointers = [fn.pointer(index) for index in range(num)]
    strides_at = [3 + MAX_OUTER + operand * (MAX_OUTER + 1) for operand in range(num)]
    steps = [fn.size(place + MAX_OUTER) for place in strides_at]
    offsets = fn.stack(I64, num)
    with fn.loop(fn.begin, fn.end) as unit:
        row, block = unit // blocks, unit % blocks
        _offsets(fn, rank, row, strides_at, offsets)
        starts = [fn.at(expression_kind(expression, k), pointers[k], fn.load(I64, offsets, k)) for k in range(num)]
        first = block * BLOCK
        stop = fn.minimum(first + BLOCK, length)
        once = {k: fn.load(expression.inputs[k - 1], starts[k]) for k in range(1, num) if access[k] == "same"}
        whole = first + ((stop - first) // lanes) * lanes

        def body(i: Val, mask: Val | None) -> None:
            values = [
                fn.splat(once[k], lanes)
                if k in once
                else _read(fn, expression.inputs[k - 1], starts[k], i, steps[k], access[k], lanes, mask)
                for k in range(1, num)
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


def expression_kind(expression: Expression, operand: int) -> object:
    """Return the kind of the output (0) or of an input (1, ...)."""
    return expression.inputs[operand - 1] if operand else expression.kind


def _indices(fn: Function, i: Val, step: Val, lanes: int) -> Val:
    return (fn.lane_numbers(lanes) + fn.splat(i, lanes)) * step


def _read(
    fn: Function, kind: object, start: Val, i: Val, step: Val, access: str, lanes: int, mask: Val | None
) -> Val:
    if access == "dense":
        return fn.load(kind, start, i, lanes, mask)
    return fn.gather(kind, start, _indices(fn, i, step, lanes), mask)


def _offsets(fn: Function, rank: Val, row: Val, strides_at: list[int], offsets: Val) -> None:
    """Store each operand's offset of `row`: the sum of index times stride over the outer dimensions."""
    rest = fn.var(row)
    for operand in range(len(strides_at)):
        fn.store(fn.const(I64, 0), offsets, operand)
    with fn.loop(0, rank) as back:
        axis = rank - 1 - back
        size = fn.size(axis + 3)
        index = rest.get() % size
        rest.set(rest.get() // size)
        for operand, place in enumerate(strides_at):
            stride = fn.size(axis + place)
            fn.store(fn.load(I64, offsets, operand) + index * stride, offsets, operand)


__all__ = ["BLOCK", "MAX_OUTER", "PTR", "Operand", "pointwise"]
