"""Rows as 8-bit integers for quantised products, and rows of quantised weights as f32."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import F32, I8, I32, I64, U8, Function, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.quantized import Format, grain_offset, row_place
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target
from educe.model.quantized import GRAIN, PANEL, STEP

# The size of the largest number of a row and block, once rounded.
_MOST = 127.0
# Below this the inverse of a scale is no number.
_LEAST = 1e-30


@template("quantize_rows")
def quantize_rows(
    fn: Function, target: Target, expression: Expression, access: tuple[str, ...], has_rest: bool
) -> None:
    """Write rows of x = expression(in0, ...) as 8-bit integers, with scales and sums.

    ::

        for row in begin..end:
            for block in the row:
                scale[block] = largest size of x / 127
                for group in the block:
                    rows = x / scale, rounded to nearest, the even one of two
                    sums[group] = sum of these

    Numbers of 16 rows lie together, [16 rows][K / 64][row][64], zeros behind the last one of a row. A row
    that is not finite has a scale that is not finite.

    Pointers: rows, scales, sums, in0, ... Sizes: K, grains of a block, grains of a group, blocks, groups;
    steps of each input from row to row.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is rounded.
        access: For each input, ``dense`` along the row or the ``same`` for all.
        has_rest: Whether K is no multiple of a grain.
    """
    body = _Rounding(fn, target.lanes, expression, access, has_rest)
    with fn.loop(fn.begin, fn.end) as row:
        body.write(row)


class _Rounding:
    """The body of `quantize_rows` for one row."""

    def __init__(
        self, fn: Function, lanes: int, expression: Expression, access: tuple[str, ...], has_rest: bool
    ) -> None:
        self.fn, self.lanes, self.expression, self.access = fn, lanes, expression, access
        self.has_rest, self.is_plain = has_rest, not expression.steps
        self.depth, self.block, self.group, self.blocks, self.groups = (fn.size(index) for index in range(5))
        self.grains = (self.depth + (GRAIN - 1)) // GRAIN
        self.tiles = (self.grains + 1) // 2
        self.zero = fn.const(F32, 0.0, lanes)

    def write(self, row: Val) -> None:
        """Round a row."""
        fn = self.fn
        starts = [
            fn.at(kind, fn.pointer(3 + index), row * fn.size(5 + index))
            for index, kind in enumerate(self.expression.inputs)
        ]
        to = row_place(fn, fn.pointer(0), row, self.tiles)
        with fn.loop(0, self.blocks) as block:
            first = block * self.block
            stop = fn.minimum(first + self.block, self.grains)
            most = self._largest(starts, first, stop)
            fn.store(most / _MOST, fn.pointer(1), row * self.blocks + block)
            inverse = fn.splat(fn.select(most >= _LEAST, _MOST / most, 0.0), self.lanes)
            with fn.loop(first, stop, self.group) as start:
                end = fn.minimum(start + self.group, stop)
                total = self._rounded(starts, to, start, end, inverse)
                place = row * self.groups + start // self.group
                fn.store(total, fn.pointer(2), place)
        with fn.when(self.grains % 2 != 0):
            fn.store(fn.const(I8, 0, GRAIN), to, grain_offset(self.grains))

    def _largest(self, starts: Sequence[Val], first: Val, stop: Val) -> Val:
        """Return the largest size in some grains, NaN if there is one; what is computed is kept.

        Sizes of floats are in the order of their bits, NaN above all.
        """
        fn = self.fn
        most = [fn.var(fn.const(I32, 0, self.lanes)) for _ in range(GRAIN // self.lanes)]
        with fn.loop(first, stop) as grain:
            for number, size in enumerate(most):
                k = grain * GRAIN + number * self.lanes
                x = self._computed(starts, k)
                if not self.is_plain:
                    fn.store(x, fn.scratch, k)
                size.set(fn.maximum(size.get(), fn.bitcast(fn.intrinsic("fabs", x), I32)))
        best = most[0].get()
        for each in most[1:]:
            best = fn.maximum(best, each.get())
        return fn.bitcast(fn.reduce("max", best), F32)

    def _rounded(self, starts: Sequence[Val], to: Val, first: Val, stop: Val, inverse: Val) -> Val:
        """Write some grains, and return the sum of their numbers."""
        fn, lanes = self.fn, self.lanes
        total = fn.var(fn.const(I32, 0, lanes))
        with fn.loop(first, stop) as grain:
            place = fn.at(I8, to, grain_offset(grain))
            for number in range(GRAIN // lanes):
                k = grain * GRAIN + number * lanes
                x = self._computed(starts, k) if self.is_plain else fn.load(F32, fn.scratch, k, lanes)
                code = fn.call(f"llvm.lrint.v{lanes}i32.v{lanes}f32", I32, lanes, x * inverse)
                fn.store(fn.extend(code, I8), place, number * lanes)
                total.set(total.get() + code)
        return fn.reduce("add", total.get())

    def _computed(self, starts: Sequence[Val], k: Val) -> Val:
        """Return the vector of x from `k` on, zeros behind the end."""
        fn, lanes = self.fn, self.lanes
        mask = None
        if self.has_rest:
            mask = fn.tail_mask(fn.maximum(fn.minimum(self.depth - k, lanes), 0), lanes)
        values = [
            fn.load(kind, start, k, lanes, mask)
            if access == "dense"
            else fn.splat(fn.load(kind, start), lanes)
            for kind, start, access in zip(self.expression.inputs, starts, self.access, strict=True)
        ]
        x = fn.cast(fn.splat(self.expression.emit(fn, values), lanes), F32)
        return x if mask is None else fn.select(mask, x, self.zero)


@template("dequantize_rows")
def dequantize_rows(fn: Function, target: Target, weight: Format, has_rest: bool) -> None:
    """Write ``out[i] = row rows[i] of a quantised weight`` in f32.

    ::

        for i in begin..end:
            panel, column = rows[i] / 16, rows[i] % 16
            for group in the row:
                for k in the group, four at a time:
                    out[i][k] = scale * (multiplier * (codes[panel][k][column] - zero)) + minimum

    A row counts from the end if it is negative; one that is not there is the nearest that is, and sets the
    status.

    Pointers: out, status, rows (i64), codes, scales; multipliers and minimums as far as there are any. Sizes:
    N, K, grains of a block, grains of a group, blocks, groups.

    Args:
        fn: The function to write.
        target: Its machine.
        weight: The weight's format.
        has_rest: Whether K is no multiple of four.
    """
    n, depth, block, group, blocks, groups = (fn.size(index) for index in range(6))
    grains = (depth + (GRAIN - 1)) // GRAIN
    out, status, rows, codes, scales = (fn.pointer(index) for index in range(5))
    of_panel = (grains + 1) // 2 * (2 * weight.grain_bytes)
    with fn.loop(fn.begin, fn.end) as i:
        row = fn.load(I64, rows, i)
        row = fn.select(row < 0, row + n, row)
        inside = fn.minimum(fn.maximum(row, 0), n - 1)
        with fn.when(row != inside):
            fn.store(fn.const(U8, 1), status)
        panel, column = inside // PANEL, inside % PANEL
        of_row = fn.at(U8, codes, panel * of_panel + column * STEP)
        to = fn.at(F32, out, i * depth)
        with fn.loop(0, grains) as grain:
            place = (panel * blocks + grain // block) * PANEL + column
            scale = fn.cast(fn.load(weight.scale, scales, place), F32)
            factor = None
            if weight.has_multipliers:
                place_of_group = (panel * groups + grain // group) * PANEL + column
                factor = fn.extend(fn.load(U8, fn.pointer(5), place_of_group), I32)
            minimum = (
                fn.cast(fn.load(weight.scale, fn.pointer(5), place), F32) if weight.has_minimums else None
            )
            for step, code in enumerate(_codes(fn, weight, fn.at(U8, of_row, grain * weight.grain_bytes))):
                whole = code - weight.zero if factor is None else (code - weight.zero) * factor
                value = fn.cast(whole, F32) * scale
                value = value if minimum is None else value + minimum
                k = grain * GRAIN + step * STEP
                with fn.when(k < depth):
                    mask = fn.tail_mask(fn.minimum(depth - k, STEP), STEP) if has_rest else None
                    fn.store(value, to, k, mask)


def _codes(fn: Function, weight: Format, start: Val) -> list[Val]:
    """Return the codes of a grain of one row in i32, four at a time."""
    if weight.bits == 8:
        places = [step * PANEL * STEP for step in range(GRAIN // STEP)]
        return [fn.extend(fn.load(I8, start, place, STEP), I32) for place in places]
    pairs = [fn.load(U8, start, pair * PANEL * STEP, STEP) for pair in range(GRAIN // STEP // 2)]
    return [fn.extend(half, I32) for pair in pairs for half in (pair & 15, pair >> 4)]
