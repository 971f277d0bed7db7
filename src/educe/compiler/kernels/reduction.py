"""Templates of reductions: many elements to one, along contiguous memory or across rows of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from educe.compiler.emit import BF16, BOOL, F16, F32, F64, I64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.rows import Operands, Partials, along
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

UNROLL = 4
"""Independent accumulators of a row."""

_SIZES = 7


def accumulator(kind: Kind) -> Kind:
    """Return the kind in which values of `kind` are accumulated."""
    return F32 if kind in (F16, BF16) else kind


@template("reduce")
def reduce(
    fn: Function,
    target: Target,
    expression: Expression,
    access: tuple[str, ...],
    combine: str,
    prepare: str,
    finish: str,
    out: Kind,
    contiguous: bool,
    split: bool,
) -> None:
    """Write ``out[kept] = finish(combine(prepare(expression(in0[kept, reduced], ...))))``.

    If `contiguous`, the inner dimension is reduced, and split into blocks::

        for unit in begin..end:                              # a kept index and a block
            for rest, middle:
                for i in block, a vector at a time:
                    acc[i / lanes % UNROLL] = combine(acc[...], expression(...))
            out[kept, block] = finish(combine of all lanes of all acc)

    otherwise it is kept, and the middle one is split::

        for unit in begin..end:                              # a kept index, a block, and some columns
            for rest:
                for middle in block:
                    for i in columns, a vector at a time:
                        part[middle % (UNROLL · lanes), i] = combine(part[...], expression(...))
            out[kept, block, i] = finish(combine of all part[..., i])

    Either way an element of the output is made in the same order, which depends on the reduced sizes alone.

    Pointers: out, in0, ... Sizes: middle, inner, blocks, elements of a block, elements reduced, units of a
    block, columns of a unit; then those of `Operands`, where out's middle step is that of its blocks.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is reduced.
        access: How out and each input lie along the inner dimension.
        combine: add, mul, min or max.
        prepare: Nothing, ``abs`` or ``square``.
        finish: Nothing, ``mean`` or ``sqrt``.
        out: The kind of the result.
        contiguous: Whether the inner dimension is reduced.
        split: Whether there is more than one block.
    """
    operands = Operands(fn, _SIZES, (out, *expression.inputs), access)
    body = _Reduce(fn, target, expression, operands, combine, prepare, finish, out)
    blocks, columns = fn.size(2), fn.size(5)
    with fn.loop(fn.begin, fn.end) as unit:
        piece = unit if contiguous else unit // columns
        kept = operands.kept_starts(piece // blocks if split else piece)
        block = piece % blocks if split else fn.const(I64, 0)
        if contiguous:
            body.row(kept, block)
        else:
            body.columns(kept, block, unit % columns, fn.size(6))


class _Reduce:
    """The body of `reduce` for one unit."""

    def __init__(
        self,
        fn: Function,
        target: Target,
        expression: Expression,
        operands: Operands,
        combine: str,
        prepare: str,
        finish: str,
        out: Kind,
    ) -> None:
        self.fn, self.lanes, self.expression, self.operands = fn, target.lanes, expression, operands
        self.combine, self.prepare, self.finish, self.out = combine, prepare, finish, out
        self.kind = accumulator(expression.kind)
        self.neutral = fn.const(self.kind, neutral(combine, self.kind), self.lanes)
        self.middle, self.inner, self.length, self.count = (fn.size(index) for index in (0, 1, 3, 4))

    def row(self, kept: list[Val], block: Val) -> None:
        """Reduce a block of the inner dimension to one element."""
        fn = self.fn
        first = block * self.length
        stop = fn.minimum(first + self.length, self.inner)
        totals = self._start(UNROLL)
        with fn.loop(0, self.operands.rest) as rest:
            starts = self.operands.rest_starts(kept, rest)
            with fn.loop(0, self.middle) as middle:
                places = self.operands.middle_starts(starts, middle)
                along(fn, first, stop, self.lanes, UNROLL, lambda k, i, m: self._add(totals[k], places, i, m))
        result = fn.reduce(self.combine, halved(fn, self.combine, totals))
        places = self.operands.middle_starts(kept, block)
        fn.store(self._finished(result), places[0])

    def columns(self, kept: list[Val], block: Val, column: Val, width: Val) -> None:
        """Reduce a block of the middle dimension to `width` elements, in the order of `row`."""
        fn, lanes = self.fn, self.lanes
        first = block * self.length
        stop = fn.minimum(first + self.length, self.middle)
        start = column * width
        end = fn.minimum(start + width, self.inner)
        identity = neutral(self.combine, self.kind)
        partials = Partials(
            fn, self.kind, lanes, UNROLL, self.combine, identity, fn.scratch, width, stop - first
        )
        with fn.loop(0, self.operands.rest) as rest:
            starts = self.operands.rest_starts(kept, rest)

            def join(row: Val, low: Val, high: Val, step: int, starts: list[Val] = starts) -> None:
                def add(_: int, i: Val, mask: Val | None) -> None:
                    def value(index: Val) -> Val:
                        return self._value(self.operands.middle_starts(starts, first + index), i, mask)

                    partials.join(row, i - start, value, low, high, step)

                along(fn, start, end, lanes, 1, add)

            partials.each(join)
        partials.finish()
        places = self.operands.middle_starts(kept, block)

        def store(_: int, i: Val, mask: Val | None) -> None:
            value = self._finished(fn.load(self.kind, partials.memory, i - start, lanes))
            self.operands.store(0, places, value, i, mask)

        along(fn, start, end, lanes, 1, store)

    def _start(self, count: int) -> list[Var]:
        return [self.fn.var(self.neutral) for _ in range(count)]

    def _add(self, total: Var, places: list[Val], i: Val, mask: Val | None) -> None:
        total.set(self.fn.combine(self.combine, total.get(), self._value(places, i, mask)))

    def _value(self, places: list[Val], i: Val, mask: Val | None) -> Val:
        fn = self.fn
        value = fn.cast(self.operands.value(self.expression, 1, places, i, self.lanes, mask), self.kind)
        if self.prepare == "abs":
            value = absolute(fn, value)
        elif self.prepare == "square":
            value = value * value
        return value if mask is None else fn.select(mask, value, self.neutral)

    def _finished(self, value: Val) -> Val:
        fn = self.fn
        if self.finish == "mean":
            value = _mean(fn, value, self.count)
        elif self.finish == "sqrt":
            value = fn.intrinsic("sqrt", value if value.kind.is_float else fn.cast(value, F64))
        return fn.cast(value, self.out)


def halved(fn: Function, combine: str, totals: Sequence[Var]) -> Val:
    """Return accumulators, whose number is a power of two, combined by halves."""
    values = [each.get() for each in totals]
    while len(values) > 1:
        half = len(values) // 2
        values = [fn.combine(combine, *pair) for pair in zip(values[:half], values[half:], strict=True)]
    return values[0]


def absolute(fn: Function, value: Val) -> Val:
    """Return the size of f32, f64 or integers, which wrap."""
    if value.kind.is_float:
        return fn.intrinsic("fabs", value)
    return fn.select(value < 0, 0 - value, value) if value.kind.is_signed else value


def _mean(fn: Function, total: Val, count: Val) -> Val:
    """Return the total divided by the count; integers as in f64, and 0 of no elements."""
    if total.kind.is_float:
        return total / fn.splat(fn.cast(count, total.kind), total.lanes)
    return fn.cast(fn.cast(total, F64) / fn.splat(fn.cast(count, F64), total.lanes), total.kind)


def neutral(combine: str, kind: Kind) -> float:
    """Return what changes nothing when combined."""
    if combine in ("add", "mul"):
        return 0 if combine == "add" else 1
    if kind.is_float:
        return math.inf if combine == "min" else -math.inf
    if kind is BOOL:
        return combine == "min"
    bits = 8 * kind.size_bytes
    if combine == "min":
        return (1 << (bits - kind.is_signed)) - 1
    return -(1 << (bits - 1)) if kind.is_signed else 0
