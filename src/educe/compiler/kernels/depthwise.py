"""The kernel of windows whose channels do not meet: depthwise convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import F32, I64, PTR, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.convolution import RowEnd, multiply_add, start_sums, sums
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

NUM_SIZES = 9
"""Sizes of a window before the strides of what its expression reads and writes."""


def total_kind(kind: Kind, reduction: str) -> Kind:
    """Return the kind in which a window is reduced: for products of 8-bit numbers f32, which is exact."""
    return F32 if kind.size_bytes == 1 and reduction == "dot" else kind


@template("window")
def window(
    fn: Function,
    target: Target,
    kind: Kind,
    tile: tuple[int, int],
    reduction: str,
    has_tail: bool,
    expression: Expression,
    access: tuple[str, ...],
    neighbours: tuple[int, int] | None = None,
) -> None:
    """Write the reduction of what a window sees of each channel.

    ::

        for unit in begin..end:                          # `tile.rows` pixels of a line, a part of channels
            for tap in taps, r in pixels:
                see[tap][r] = x + lines[line][a] + columns[column + r][b], or `outside` if that is negative
            for c in the part, tile.vectors at a time:
                acc[r][v] = start[c]
                for tap in taps:
                    acc[r][v] = reduce(acc[r][v], see[tap][r][c], weights[tap][c])
                out[r] = expression(acc[r], operand[r], ...)

    Each output is one sum in the order of taps; without weights, the taps of a line are summed first, and
    then the lines. Weights for each pixel are weights[line][a] * columns'[column][b] for the tap (a, b).
    Where all of a tile's taps see the input, only its first pixel is looked up.

    Pointers: out, x, weights, start, lines, columns, outside, the weights of columns where there are such,
    operands. Sizes: columns of a line, tiles of a line, parts, channels of a part, channels, channels of
    weights and start, line taps, column taps, the step from one pixel's input to the next one's, or 0 if it
    is not always the same; then for out and each operand the strides of line and column. Scratch: an address
    and a weight for each tap and pixel of a tile.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of x; sums of 8-bit numbers, and their weights, are f32.
        tile: Pixels and vectors of channels that are reduced in registers.
        reduction: ``dot`` with weights for each channel, ``blend`` with weights for each pixel, ``sum`` or
            ``max``.
        has_tail: Whether the channels do not fill the last vectors.
        expression: What ends the reduction.
        access: For each operand, ``dense`` along the channels or the ``same`` for all.
        neighbours: The column taps of ``dot`` and the columns from pixel to pixel, where taps see columns
            side by side: what several pixels of a tile see is then loaded once.
    """
    rows, vectors = tile
    lanes = target.lanes
    out, x, weights, start, lines, columns, outside = (fn.pointer(index) for index in range(7))
    width, tiles, parts, part_channels, channels, padded, line_taps, column_taps, step = (
        fn.size(index) for index in range(NUM_SIZES)
    )
    acc = sums(fn, total_kind(kind, reduction), tile, lanes)
    reducer = _REDUCERS[reduction](fn, kind, acc, weights, padded, neighbours)
    is_blend = reduction == "blend"
    ends = RowEnd(fn, target, expression, access, out, 8 if is_blend else 7, NUM_SIZES)
    with fn.loop(fn.begin, fn.end) as unit:
        line, part = unit // (parts * tiles), unit % parts
        column = unit // parts % tiles * rows
        counts = (line_taps, column_taps)
        tables, place = (x, lines, columns, outside), (line, column, width)
        inner = _look(fn, kind, tables, place, counts, rows, step)
        if is_blend:
            _weigh(fn, kind, (weights, fn.pointer(7)), place, counts, rows)
        first = part * part_channels
        with fn.loop(first, fn.minimum(first + part_channels, channels), vectors * lanes) as c:
            count = fn.minimum(channels - c, vectors * lanes)
            start_sums(fn, acc, fn.at(acc[0][0].kind, start, c))
            reducer.reduce_tile(c, counts, count if has_tail else None, inner, step)
            pixels = fn.minimum(width - column, rows)
            ends.write(acc, (line, column), pixels, width, c, count if has_tail else None)


def _look(
    fn: Function,
    kind: Kind,
    tables: tuple[Val, Val, Val, Val],
    place: tuple[Val, Val, Val],
    counts: tuple[Val, Val],
    rows: int,
    step: Val,
) -> Val:
    """Store what each tap of a tile sees; return whether it is an inner one, whose first pixel says all."""
    inner = _is_inner(fn, tables, place, counts, rows) & (step > 0)
    with fn.either(inner) as otherwise:
        _see(fn, kind, tables, place, counts, rows, 1)
        otherwise()
        _see(fn, kind, tables, place, counts, rows, rows)
    return inner


def _is_inner(
    fn: Function,
    tables: tuple[Val, Val, Val, Val],
    place: tuple[Val, Val, Val],
    counts: tuple[Val, Val],
    rows: int,
) -> Val:
    """Return whether a tile is whole, and its first and last tap see the input in every line."""
    _, lines, columns, _ = tables
    line, column, width = place
    line_taps, column_taps = counts
    last = fn.minimum(column + (rows - 1), width - 1)
    ends = fn.load(I64, columns, column * column_taps) | fn.load(I64, columns, (last + 1) * column_taps - 1)
    least = fn.var(ends)
    with fn.loop(0, line_taps) as a:
        least.set(least.get() | fn.load(I64, lines, line * line_taps + a))
    return (least.get() >= 0) & (column + rows <= width)


def _see(
    fn: Function,
    kind: Kind,
    tables: tuple[Val, Val, Val, Val],
    place: tuple[Val, Val, Val],
    counts: tuple[Val, Val],
    rows: int,
    pixels: int,
) -> None:
    """Store what each tap of the first `pixels` of a tile sees into the scratch memory, [tap][pixel]."""
    x, lines, columns, outside = tables
    line, column, width = place
    line_taps, column_taps = counts
    last = width - 1
    of_pixel = [fn.at(I64, columns, fn.minimum(column + r, last) * column_taps) for r in range(pixels)]
    with fn.loop(0, line_taps) as a:
        begin = fn.load(I64, lines, line * line_taps + a)
        with fn.loop(0, column_taps) as b:
            seen = fn.at(PTR, fn.scratch, (a * column_taps + b) * rows)
            for r in range(pixels):
                offset = begin + fn.load(I64, of_pixel[r], b)
                fn.store(fn.select(offset < 0, outside, fn.at(kind, x, offset)), seen, r)


def _weigh(
    fn: Function,
    kind: Kind,
    tables: tuple[Val, Val],
    place: tuple[Val, Val, Val],
    counts: tuple[Val, Val],
    rows: int,
) -> None:
    """Store the weight of each tap of each pixel of a tile behind the addresses, [tap][pixel]."""
    of_lines, of_columns = tables
    line, column, width = place
    line_taps, column_taps = counts
    behind = _weights_at(fn, counts, rows)
    with fn.loop(0, line_taps) as a:
        weight = fn.load(kind, of_lines, line * line_taps + a)
        with fn.loop(0, column_taps) as b:
            for r in range(rows):
                pixel = fn.minimum(column + r, width - 1)
                product = weight * fn.load(kind, of_columns, pixel * column_taps + b)
                fn.store(product, behind, (a * column_taps + b) * rows + r)


def _weights_at(fn: Function, counts: tuple[Val, Val], rows: int) -> Val:
    return fn.at(PTR, fn.scratch, counts[0] * counts[1] * rows)


class _Reducer:
    """Reduces what the taps of a tile see, vector by vector."""

    def __init__(
        self,
        fn: Function,
        kind: Kind,
        acc: Sequence[Sequence[Var]],
        weights: Val,
        padded: Val,
        neighbours: tuple[int, int] | None,
    ) -> None:
        self.fn, self.kind, self.acc, self.weights, self.padded = fn, kind, acc, weights, padded
        self.neighbours = neighbours
        self.lanes = acc[0][0].lanes
        self._step: Val | None = None

    def reduce_tile(
        self, c: Val, counts: tuple[Val, Val], channels: Val | None, inner: Val, step: Val
    ) -> None:
        """Reduce all taps for the channels from `c` on: all that the vectors hold, or `channels` if given.

        In an `inner` tile, pixels lie `step` apart.
        """
        fn, vectors = self.fn, len(self.acc[0])
        if channels is None:
            self._reduce_either(c, counts, [None] * vectors, inner, step)
            return
        with fn.either(channels == vectors * self.lanes) as otherwise:
            self._reduce_either(c, counts, [None] * vectors, inner, step)
            otherwise()
            masks = [fn.tail_mask(channels - v * self.lanes, self.lanes) for v in range(vectors)]
            self._reduce_either(c, counts, masks, inner, step)

    def _reduce_either(
        self, c: Val, counts: tuple[Val, Val], masks: Sequence[Val | None], inner: Val, step: Val
    ) -> None:
        with self.fn.either(inner) as otherwise:
            self._step = step
            self.reduce(c, counts, masks)
            otherwise()
            self._step = None
            self.reduce(c, counts, masks)

    def reduce(self, c: Val, counts: tuple[Val, Val], masks: Sequence[Val | None]) -> None:
        """Reduce all taps for the channels from `c` on."""
        with self.fn.loop(0, counts[0] * counts[1]) as tap:
            self._tap(tap, c, masks, self.acc)

    def _tap(self, tap: Val, c: Val, masks: Sequence[Val | None], acc: Sequence[Sequence[Var]]) -> None:
        fn, lanes, rows = self.fn, self.lanes, len(acc)
        weights = self._weights(tap, c)
        for r, row in enumerate(acc):
            pixel = self._pixel(tap * rows, r)
            weights = self._pixel_weights(tap * rows + r) or weights
            for v, total in enumerate(row):
                seen = fn.load(self.kind, pixel, c + v * lanes, lanes, masks[v])
                total.set(self._combined(total.get(), fn.cast(seen, total.kind), weights[v]))

    def _pixel(self, first: Val, r: int) -> Val:
        """Return where the channels of pixel `r` lie, of those whose addresses begin at `first`."""
        if self._step is None:
            return self.fn.load(PTR, self.fn.scratch, first + r)
        return self.fn.at(self.kind, self.fn.load(PTR, self.fn.scratch, first), self._step * r)

    def _weights(self, tap: Val, c: Val) -> list[Val]:
        return [c] * len(self.acc[0])

    def _pixel_weights(self, index: Val) -> list[Val]:
        return []

    def _combined(self, total: Val, seen: Val, weight: Val) -> Val:
        raise NotImplementedError


class _Dot(_Reducer):
    def reduce(self, c: Val, counts: tuple[Val, Val], masks: Sequence[Val | None]) -> None:
        """Reduce all taps for the channels from `c` on; an inner tile loads each column of a line once."""
        if self._step is None or self.neighbours is None:
            super().reduce(c, counts, masks)
            return
        fn, rows, (taps, step) = self.fn, len(self.acc), self.neighbours
        pitch = self._step // step
        with fn.loop(0, counts[0]) as a:
            weights = [self._weights(a * taps + b, c) for b in range(taps)]
            first = fn.load(PTR, fn.scratch, a * taps * rows)
            for column in range((rows - 1) * step + taps):
                self._column(column, fn.at(self.kind, first, pitch * column + c), weights, masks)

    def _column(
        self, column: int, place: Val, weights: Sequence[Sequence[Val]], masks: Sequence[Val | None]
    ) -> None:
        """Add what is seen in a column of a line to the sums of every pixel that sees it."""
        fn, (taps, step) = self.fn, self.neighbours or (1, 1)
        for v, mask in enumerate(masks):
            seen = fn.load(self.kind, place, v * self.lanes, self.lanes, mask)
            seen = fn.cast(seen, self.acc[0][0].kind)
            for r, row in enumerate(self.acc):
                if 0 <= column - r * step < taps:
                    row[v].set(multiply_add(fn, seen, weights[column - r * step][v], row[v].get()))

    def _weights(self, tap: Val, c: Val) -> list[Val]:
        kind = self.acc[0][0].kind
        row = self.fn.at(kind, self.weights, tap * self.padded + c)
        return [self.fn.load(kind, row, v * self.lanes, self.lanes) for v in range(len(self.acc[0]))]

    def _combined(self, total: Val, seen: Val, weight: Val) -> Val:
        return multiply_add(self.fn, seen, weight, total)


class _Blend(_Reducer):
    def reduce(self, c: Val, counts: tuple[Val, Val], masks: Sequence[Val | None]) -> None:
        """Reduce all taps for the channels from `c` on, each with the weight of its pixel."""
        self._behind = _weights_at(self.fn, counts, len(self.acc))
        super().reduce(c, counts, masks)

    def _pixel_weights(self, index: Val) -> list[Val]:
        weight = self.fn.load(self.kind, self._behind, index)
        return [self.fn.splat(weight, self.lanes)] * len(self.acc[0])

    def _combined(self, total: Val, seen: Val, weight: Val) -> Val:
        return multiply_add(self.fn, seen, weight, total)


class _Max(_Reducer):
    def _combined(self, total: Val, seen: Val, weight: Val) -> Val:
        return self.fn.combine("max", total, seen)


class _Sum(_Reducer):
    def reduce(self, c: Val, counts: tuple[Val, Val], masks: Sequence[Val | None]) -> None:
        """Reduce all taps for the channels from `c` on: each line of them first."""
        fn = self.fn
        zero = fn.const(self.kind, 0, self.lanes)
        own = [[fn.var(zero) for _ in row] for row in self.acc]
        with fn.loop(0, counts[0]) as a:
            for partials in own:
                for each in partials:
                    each.set(zero)
            with fn.loop(0, counts[1]) as b:
                self._tap(a * counts[1] + b, c, masks, own)
            for row, partial in zip(self.acc, own, strict=True):
                for total, each in zip(row, partial, strict=True):
                    total.set(total.get() + each.get())

    def _combined(self, total: Val, seen: Val, weight: Val) -> Val:
        return total + seen


_REDUCERS: dict[str, type[_Reducer]] = {"dot": _Dot, "blend": _Blend, "max": _Max, "sum": _Sum}
