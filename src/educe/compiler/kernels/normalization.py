"""Templates of normalisations: rows in the cache are read for their statistics, and for the result."""

from __future__ import annotations

import math
from collections.abc import Callable

from educe.compiler import vector_math as vm
from educe.compiler.emit import Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.reduction import UNROLL, accumulator
from educe.compiler.kernels.rows import Operands, along, columns
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

_SIZES = 3

_EXP_UNROLL = 2


@template("softmax")
def softmax(
    fn: Function,
    target: Target,
    expression: Expression,
    access: tuple[str, ...],
    out: Kind,
    log: bool,
    contiguous: bool,
) -> None:
    """Write ``exp(x - max(x)) / sum(exp(x - max(x)))``, or its logarithm, of x = expression(in0, ...).

    ::

        for unit in begin..end:                       # a row, or COLUMNS vectors of columns
            for i in row or column:
                scratch[i] = x[i]
                most = max(most, x[i])
            for i:
                e = exp(scratch[i] - most)
                total += e
                scratch[i] = e                        # not for the logarithm
            for i:
                out[i] = scratch[i] / total           # or scratch[i] - most - log(total)

    A row lies along the inner dimension, a column along the middle one.

    Pointers: out, in0, ... Sizes: middle, inner, units of a kept index; then those of `Operands`.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is normalised.
        access: How out and each input lie along the inner dimension.
        out: The kind of the result.
        log: Whether the logarithm is wanted.
        contiguous: Whether rows are normalised, not columns.
    """
    operands = Operands(fn, _SIZES, (out, *expression.inputs), access)
    body = _Softmax(fn, target.lanes, expression, operands, out, log)
    width = fn.size(2)
    with fn.loop(fn.begin, fn.end) as unit:
        starts = operands.kept_starts(unit // width)
        if contiguous:
            body.row(starts)
        else:
            with columns(fn, unit % width, body.inner, target.lanes) as (i, mask):
                body.column(starts, i, mask)


class _Softmax:
    """The body of `softmax` for one unit."""

    def __init__(
        self, fn: Function, lanes: int, expression: Expression, operands: Operands, out: Kind, log: bool
    ) -> None:
        self.fn, self.lanes, self.expression, self.operands = fn, lanes, expression, operands
        self.out, self.log = out, log
        self.kind = accumulator(expression.kind)
        self.least = fn.const(self.kind, -math.inf, lanes)
        self.zero = fn.const(self.kind, 0, lanes)
        self.middle, self.inner = fn.size(0), fn.size(1)

    def row(self, starts: list[Val]) -> None:
        """Normalise along the inner dimension; behind the row, scratch is filled with what adds nothing."""
        fn, zero = self.fn, self.fn.const(self.inner.kind, 0)
        most = [fn.var(self.least) for _ in range(UNROLL)]

        def read(k: int, i: Val, mask: Val | None) -> None:
            x = fn.cast(self.operands.value(self.expression, 1, starts, i, self.lanes, mask), self.kind)
            x = x if mask is None else fn.select(mask, x, self.least)
            fn.store(x, fn.scratch, i)
            most[k].set(fn.maximum(most[k].get(), x))

        along(fn, zero, self.inner, self.lanes, UNROLL, read)
        best = most[0].get()
        for each in most[1:]:
            best = fn.maximum(best, each.get())
        peak = fn.splat(fn.reduce("max", best), self.lanes)
        totals = [fn.var(self.zero) for _ in range(_EXP_UNROLL)]
        along(
            fn, zero, self.inner, self.lanes, _EXP_UNROLL, lambda k, i, _: self._raise(i, peak, totals[k])
        )
        total = fn.splat(fn.reduce("add", totals[0].get() + totals[1].get()), self.lanes)
        last = self._last(peak, total)
        along(
            fn, zero, self.inner, self.lanes, 1,
            lambda _, i, mask: self.operands.store(0, starts, last(i), i, mask),
        )  # fmt: skip

    def column(self, starts: list[Val], i: Val, mask: Val) -> None:
        """Normalise a vector of columns along the middle dimension."""
        fn, lanes = self.fn, self.lanes
        most = fn.var(self.least)
        with fn.loop(0, self.middle) as m:
            places = self.operands.middle_starts(starts, m)
            x = fn.cast(self.operands.value(self.expression, 1, places, i, lanes, mask), self.kind)
            fn.store(x, fn.scratch, m * lanes)
            most.set(fn.maximum(most.get(), x))
        peak, total = most.get(), fn.var(self.zero)
        with fn.loop(0, self.middle) as m:
            self._raise(m * lanes, peak, total)
        last = self._last(peak, total.get())
        with fn.loop(0, self.middle) as m:
            places = self.operands.middle_starts(starts, m)
            self.operands.store(0, places, last(m * lanes), i, mask)

    def _raise(self, i: Val, peak: Val, total: Var) -> None:
        fn = self.fn
        value = vm.exp(fn, fn.load(self.kind, fn.scratch, i, self.lanes) - peak)
        total.set(total.get() + value)
        if not self.log:
            fn.store(value, fn.scratch, i)

    def _last(self, peak: Val, total: Val) -> Callable[[Val], Val]:
        """Return what gives the result at a place of scratch."""
        fn = self.fn
        scale = vm.log(fn, total) if self.log else 1.0 / total

        def result(i: Val) -> Val:
            value = fn.load(self.kind, fn.scratch, i, self.lanes)
            return fn.cast(value - peak - scale if self.log else value * scale, self.out)

        return result


@template("normalize")
def normalize(
    fn: Function,
    target: Target,
    expression: Expression,
    access: tuple[str, ...],
    outputs: tuple[Kind, ...],
    weights: tuple[Kind, ...],
    epsilon: float,
    centered: bool,
    kept: bool,
) -> None:
    """Write ``(x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) · scale + bias`` of each row.

    x = expression(in0, ...); if not `centered`, the mean is taken to be 0.

    ::

        for row in begin..end:
            for middle, i in row:
                total += x[i]
            mean = total / count
            for middle, i in row:
                square += (x[i] - mean)²
            inverse = 1 / sqrt(square / count + epsilon)
            for middle, i in row:
                out[i] = (x[i] - mean) · inverse · scale[i] + bias[i]

    Pointers: out, and mean and inverse if wanted; in0, ..., scale and bias if there are any. Sizes: middle,
    inner, count; then those of `Operands`.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is normalised.
        access: How each operand lies along a row.
        outputs: The kinds of out, mean and inverse; the last two may be missing.
        weights: The kinds of scale and bias; the last or both may be missing.
        epsilon: What is added to the variance.
        centered: Whether the mean is subtracted.
        kept: Whether x is kept in scratch, as computing it again costs more.
    """
    operands = Operands(fn, _SIZES, (*outputs, *expression.inputs, *weights), access)
    body = _Normalize(fn, target.lanes, expression, operands, outputs, kept)
    lanes, count = target.lanes, fn.cast(fn.size(2), body.kind)
    with fn.loop(fn.begin, fn.end) as row:
        starts = operands.kept_starts(row)
        mean = fn.const(body.kind, 0, lanes)
        if centered:
            mean = fn.splat(body.total(starts, lambda x: x, is_first=True) / count, lanes)
        square = body.total(starts, lambda x: (x - mean) * (x - mean), is_first=not centered)
        inverse = 1.0 / fn.intrinsic("sqrt", square / count + epsilon)
        for place, value in enumerate((fn.extract(mean, 0), inverse)[: len(outputs) - 1], 1):
            fn.store(fn.cast(value, outputs[place]), starts[place])
        body.write(starts, mean if centered else None, fn.splat(inverse, lanes), len(weights))


class _Normalize:
    """How `normalize` goes along a row, each time anew."""

    def __init__(
        self,
        fn: Function,
        lanes: int,
        expression: Expression,
        operands: Operands,
        outputs: tuple[Kind, ...],
        kept: bool,
    ) -> None:
        self.fn, self.lanes, self.expression, self.operands, self.kept = fn, lanes, expression, operands, kept
        self.first = len(outputs)
        self.kind = accumulator(expression.kind)
        self.middle, self.inner = fn.size(0), fn.size(1)
        self.pitch = (self.inner + (lanes - 1)) // lanes * lanes

    def total(self, starts: list[Val], prepare: Callable[[Val], Val], is_first: bool) -> Val:
        """Return the sum of `prepare` of each element."""
        fn = self.fn
        zero = fn.const(self.kind, 0, self.lanes)
        sums = [fn.var(zero) for _ in range(UNROLL)]

        def add(_places: list[Val], k: int, x: Val, _i: Val, mask: Val | None) -> None:
            value = prepare(x)
            value = value if mask is None else fn.select(mask, value, zero)
            sums[k].set(sums[k].get() + value)

        self.visit(starts, UNROLL, add, is_first)
        whole = (sums[0].get() + sums[1].get()) + (sums[2].get() + sums[3].get())
        return fn.reduce("add", whole)

    def write(self, starts: list[Val], mean: Val | None, inverse: Val, weights: int) -> None:
        """Write the row's result; the last `weights` operands are scale and bias."""
        fn, operands = self.fn, self.operands
        first = len(operands.kinds) - weights

        def scaled(places: list[Val], _: int, x: Val, i: Val, mask: Val | None) -> None:
            y = (x if mean is None else x - mean) * inverse
            for k in range(weights):
                w = fn.cast(operands.load(first + k, places, i, self.lanes, mask), self.kind)
                y = y + w if k else y * w
            operands.store(0, places, fn.cast(y, operands.kinds[0]), i, mask)

        self.visit(starts, 1, scaled, is_first=False)

    def visit(
        self,
        starts: list[Val],
        unroll: int,
        body: Callable[[list[Val], int, Val, Val, Val | None], None],
        is_first: bool,
    ) -> None:
        """Run ``body(starts, accumulator, x, i, mask)`` for each vector of the row."""
        fn = self.fn
        with fn.loop(0, self.middle) as m:
            places = self.operands.middle_starts(starts, m)
            scratch = fn.at(self.kind, fn.scratch, m * self.pitch)

            def step(k: int, i: Val, mask: Val | None) -> None:
                if self.kept and not is_first:
                    x = fn.load(self.kind, scratch, i, self.lanes)
                else:
                    x = self.operands.value(self.expression, self.first, places, i, self.lanes, mask)
                    x = fn.cast(x, self.kind)
                if self.kept and is_first:
                    fn.store(x, scratch, i)
                body(places, k, x, i, mask)

            along(fn, fn.const(self.inner.kind, 0), self.inner, self.lanes, unroll, step)


__all__ = ["normalize", "softmax"]
