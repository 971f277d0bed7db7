"""Templates of normalisations: rows in the cache are read for their statistics, and for the result."""

from __future__ import annotations

import math
from collections.abc import Callable

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, F64, I32, I64, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.reduction import UNROLL, accumulator, halved
from educe.compiler.kernels.rows import Operands, Partials, along, columns
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

_SIZES = 3

EXP_UNROLL = 2
"""Independent totals of the exponentials of a row."""

# Adding 1.5 · 2^23 leaves a whole number in the last bits of an f32; 127 is the bias of exponents.
_BIASED = 12582912.0 + 127
_LEAST_EXPONENT = -87.3
# The least relative error of e to the r for |r| <= ln 2 / 2 with the last two coefficients 1: 3.1e-9.
_EXP_POLYNOMIAL = (
    1.3814466888e-3,
    8.3687804146e-3,
    4.1668394214e-2,
    1.6666520108e-1,
    4.9999993412e-1,
    1.0,
    1.0,
)


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
                scratch[i] = x[i]                     # not for a row that needs no computing
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
        if contiguous:
            body.row(operands.kept_starts(unit))
        else:
            starts = operands.kept_starts(unit // width)
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
        self.is_plain = not expression.steps and operands.access[1] == "dense"
        self.least = fn.const(self.kind, -math.inf, lanes)
        self.zero = fn.const(self.kind, 0, lanes)
        self.middle, self.inner = fn.size(0), fn.size(1)

    def row(self, starts: list[Val]) -> None:
        """Normalise along the inner dimension."""
        fn = self.fn
        most = [fn.var(self.least) for _ in range(UNROLL)]

        def read(k: int, i: Val, mask: Val | None) -> None:
            x = self._value(starts, i, mask)
            if not self.is_plain:
                fn.store(x, fn.scratch, i)
            most[k].set(fn.maximum(most[k].get(), x))

        def again(i: Val, mask: Val | None) -> Val:
            return self._value(starts, i, mask) if self.is_plain else self._kept(i)

        self._along(UNROLL, read)
        best = most[0].get()
        for each in most[1:]:
            best = fn.maximum(best, each.get())
        peak = fn.splat(_largest(fn, best), self.lanes)
        totals = [fn.var(self.zero) for _ in range(EXP_UNROLL)]

        def add(k: int, i: Val, mask: Val | None) -> None:
            totals[k].set(totals[k].get() + self._raised(i, again(i, mask) - peak))

        self._along(EXP_UNROLL, add)
        total = fn.splat(fn.reduce("add", halved(fn, "add", totals)), self.lanes)
        last = self._last(peak, total)

        def write(_: int, i: Val, mask: Val | None) -> None:
            value = again(i, mask) if self.log else self._kept(i)
            self.operands.store(0, starts, last(value), i, mask)

        self._along(1, write)

    def column(self, starts: list[Val], i: Val, mask: Val) -> None:
        """Normalise a vector of columns along the middle dimension, in the order of `row`."""
        fn, lanes = self.fn, self.lanes
        most = fn.var(self.least)
        with fn.loop(0, self.middle) as m:
            x = self._value(self.operands.middle_starts(starts, m), i, mask)
            fn.store(x, fn.scratch, m * lanes)
            most.set(fn.maximum(most.get(), x))
        peak = most.get()
        memory = fn.at(self.kind, fn.scratch, self.middle * lanes)
        width = fn.const(I64, lanes)
        partials = Partials(fn, self.kind, lanes, EXP_UNROLL, "add", 0, memory, width, self.middle)

        def raised(m: Val) -> Val:
            return self._raised(m * lanes, self._kept(m * lanes) - peak)

        start = fn.const(I64, 0)
        partials.each(lambda row, low, high, step: partials.join(row, start, raised, low, high, step))
        partials.finish()
        last = self._last(peak, fn.load(self.kind, memory, 0, lanes))
        with fn.loop(0, self.middle) as m:
            places = self.operands.middle_starts(starts, m)
            self.operands.store(0, places, last(self._kept(m * lanes)), i, mask)

    def _along(self, unroll: int, body: Callable[[int, Val, Val | None], None]) -> None:
        along(self.fn, self.fn.const(I64, 0), self.inner, self.lanes, unroll, body)

    def _value(self, starts: list[Val], i: Val, mask: Val | None) -> Val:
        """Return the expression, and what adds nothing to the total where `mask` is false."""
        x = self.operands.value(self.expression, 1, starts, i, self.lanes, mask)
        x = self.fn.cast(x, self.kind)
        return x if mask is None else self.fn.select(mask, x, self.least)

    def _kept(self, i: Val) -> Val:
        return self.fn.load(self.kind, self.fn.scratch, i, self.lanes)

    def _raised(self, i: Val, difference: Val) -> Val:
        """Return the exponential, which is kept unless the logarithm is wanted."""
        value = _exp_of_negative(self.fn, difference)
        if not self.log:
            self.fn.store(value, self.fn.scratch, i)
        return value

    def _last(self, peak: Val, total: Val) -> Callable[[Val], Val]:
        """Return what gives the result: of x for the logarithm, else of its exponential."""
        fn = self.fn
        scale = vm.log(fn, total) if self.log else 1.0 / total
        return lambda value: fn.cast(value - peak - scale if self.log else value * scale, self.out)


def _exp_of_negative(fn: Function, x: Val) -> Val:
    """Return e to the x for x <= 0, to within 1 unit in the last place, and 0 where that is not normal.

    As `vector_math.exp`, but the exponent of 2^n is at hand in the last bits of a large sum, and what is too
    small for it needs no bound, as it is not used.
    """
    if x.kind is F64:
        return vm.exp(fn, x)
    shifted = fn.fma(x, math.log2(math.e), _BIASED)
    n = shifted - _BIASED
    r = fn.fma(n, -1.42860682030941723212e-6, fn.fma(n, -0.693145751953125, x))
    p = fn.const(F32, _EXP_POLYNOMIAL[0], x.lanes)
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = fn.fma(p, r, coefficient)
    power = fn.bitcast(fn.bitcast(shifted, I32) << 23, F32)
    return fn.select(~(x < _LEAST_EXPONENT), p * power, 0)


def _largest(fn: Function, vector: Val) -> Val:
    """Return the largest lane; lanes that are not numbers do not count, as they show in the total."""
    while vector.lanes > 1:
        half = vector.lanes // 2
        low, high = (fn.shuffle(vector, vector, range(first, first + half)) for first in (0, half))
        vector = fn.maximum(low, high)
    return fn.extract(vector, 0)


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
        return fn.reduce("add", halved(fn, "add", sums))

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
