"""The kernel of convolutions: pixels against panels of channels, without a copy of the input."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import I8, I64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

NUM_SIZES = 11
"""Sizes of a convolution before the strides of what its expression reads and writes."""

_MAX_UNROLLED_FLOPS = 3
"""Operations for which it is worth while to write a tile without a loop."""


@template("convolution")
def convolution(
    fn: Function,
    target: Target,
    kind: Kind,
    tile: tuple[int, int],
    has_taps: bool,
    has_tail: bool,
    expression: Expression,
    access: tuple[str, ...],
) -> None:
    """Write a convolution of tensors whose channels lie next to each other.

    ::

        for unit in begin..end:                        # part of a block of pixels, a panel of channels
            for pixels in the part, tile.rows at a time:
                acc[r][v] = bias[panel][v]
                for a in line taps, b in column taps:
                    row[r] = x + lines[line(r)][a] + columns[column(r)][b], or zeros if that is negative
                    for c in channels:
                        acc[r][v] += row[r][c] * weights[panel][a][b][c][v]
                out[r] = expression(acc[r], operand[r], ...)

    Each output is one sum in the order of taps and channels, whatever the tile. A pixel is a line and a
    column. Pointers: out, x, weights, bias, lines, columns, zeros, the weights of the convolution after
    this one, operands. Weights are asked for while the panel before them is at work. Sizes: pixels, columns
    of a line, pixels of a part, parts of a block, panels of a group, groups, input and output channels of a
    group, line taps, column taps, the pixel stride of x without taps; then for out and each operand those of
    line and column.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of x, weights and bias.
        tile: Pixels and vectors of channels that are summed in registers.
        has_taps: Whether `lines` and `columns` tell where a pixel's input lies; without them it lies at the
            pixel's number times a stride.
        has_tail: Whether the channels of a group do not fill its last panel.
        expression: What ends the sum.
        access: For each operand, ``dense`` along the channels or the ``same`` for all.
    """
    rows, vectors = tile
    lanes = target.lanes
    out, x, weights, bias, lines, columns, zeros, later = (fn.pointer(index) for index in range(8))
    pixels, width, part_pixels, parts, panels, groups, depth, channels, line_taps, column_taps, step = (
        fn.size(index) for index in range(NUM_SIZES)
    )
    panel_size = line_taps * column_taps * depth * (vectors * lanes)
    slices = part_pixels // rows * parts
    step_bytes = fn.binary("div", vectors * lanes * kind.size_bytes, slices)
    acc = sums(fn, kind, tile, lanes)
    ends = RowEnd(fn, target, expression, access, out, 8, NUM_SIZES)
    with fn.loop(fn.begin, fn.end) as unit:
        panel = (unit // parts) % (panels * groups)
        start = (unit // (parts * panels * groups) * parts + unit % parts) * part_pixels
        group = panel // panels
        done = panel % panels * (vectors * lanes)
        count = fn.minimum(channels - done, vectors * lanes)
        source = fn.at(kind, x, group * depth)
        stop = fn.minimum(start + part_pixels, pixels)
        packed = fn.at(kind, weights, panel * panel_size)
        following = fn.select(panel + 1 < panels * groups, fn.at(kind, packed, panel_size), later)
        following = fn.at(kind, following, unit % parts * (panel_size // parts))
        with fn.loop(start, stop, rows) as first:
            start_sums(fn, acc, fn.at(kind, bias, panel * (vectors * lanes)))
            ahead = fn.at(kind, following, (first - start) // rows * (panel_size // slices))
            places = _places(fn, first, pixels, width, rows) if has_taps else [(fn.const(I64, 0), first)]
            if has_taps:
                tables, counts = (lines, columns, zeros), (line_taps, column_taps, depth)
                _sum_taps(fn, kind, acc, source, (packed, ahead, step_bytes), tables, places, counts)
            else:
                last = pixels - 1
                pointers = [fn.at(kind, source, fn.minimum(first + r, last) * step) for r in range(rows)]
                _sum(fn, kind, acc, pointers, (packed, ahead, step_bytes), depth)
            left = fn.minimum(stop - first, rows)
            ends.write(acc, places[0], left, width, group * channels + done, count if has_tail else None)


def sums(fn: Function, kind: Kind, tile: tuple[int, int], lanes: int) -> list[list[Var]]:
    """Return the variables of a tile of rows and vectors."""
    zero = fn.const(kind, 0, lanes)
    return [[fn.var(zero) for _ in range(tile[1])] for _ in range(tile[0])]


def start_sums(fn: Function, acc: Sequence[Sequence[Var]], start: Val) -> None:
    """Let every row of a tile start with the numbers at `start`."""
    for v, column in enumerate(zip(*acc, strict=True)):
        initial = fn.load(column[0].kind, start, v * column[0].lanes, column[0].lanes)
        for each in column:
            each.set(initial)


def _places(fn: Function, first: Val, pixels: Val, width: Val, rows: int) -> list[tuple[Val, Val]]:
    """Return line and column of `rows` pixels from `first` on, those after the last pixel being the last."""
    line, column = first // width, first % width
    places = [(line, column)]
    for r in range(1, rows):
        is_pixel = first + r < pixels
        is_next = column + 1 == width
        line = fn.select(is_pixel & is_next, line + 1, line)
        column = fn.select(is_pixel, fn.select(is_next, 0, column + 1), column)
        places.append((line, column))
    return places


def _sum_taps(
    fn: Function,
    kind: Kind,
    acc: Sequence[Sequence[Var]],
    source: Val,
    weights: tuple[Val, Val, Val],
    tables: tuple[Val, Val, Val],
    places: Sequence[tuple[Val, Val]],
    sizes: tuple[Val, Val, Val],
) -> None:
    """Add the products of every tap to the sums of a tile."""
    lines, columns, zeros = tables
    line_taps, column_taps, depth = sizes
    width = len(acc[0]) * acc[0][0].lanes
    present, later, step = fn.var(weights[0]), fn.var(weights[1]), weights[2]
    of_line = [fn.at(I64, lines, line * line_taps) for line, _ in places]
    of_column = [fn.at(I64, columns, column * column_taps) for _, column in places]
    with fn.loop(0, line_taps) as a:
        starts = [fn.load(I64, each, a) for each in of_line]
        with fn.loop(0, column_taps) as b:
            pointers = []
            for start, column in zip(starts, of_column, strict=True):
                offset = start + fn.load(I64, column, b)
                pointers.append(fn.select(offset < 0, zeros, fn.at(kind, source, offset)))
            _sum(fn, kind, acc, pointers, (present.get(), later.get(), step), depth)
            present.set(fn.at(kind, present.get(), depth * width))
            later.set(fn.at(I8, later.get(), depth * step))


def _sum(
    fn: Function,
    kind: Kind,
    acc: Sequence[Sequence[Var]],
    pointers: Sequence[Val],
    weights: tuple[Val, Val, Val],
    depth: Val,
) -> None:
    """Add the products of `depth` channels to the sums of a tile.

    Args:
        fn: The function to write.
        kind: The kind of the numbers.
        acc: The sums.
        pointers: Where each row's channels lie.
        weights: Where the weights lie; and what is asked for meanwhile, by its address and step in bytes.
        depth: The channels.
    """
    vectors, lanes = len(acc[0]), acc[0][0].lanes
    with fn.loop(0, depth) as c:
        place = c * (vectors * lanes)
        b = [fn.load(kind, weights[0], place + v * lanes, lanes) for v in range(vectors)]
        fn.prefetch(fn.at(I8, weights[1], c * weights[2]), 2)
        for row, pointer in zip(acc, pointers, strict=True):
            a = fn.splat(fn.load(kind, pointer, c), lanes)
            for v in range(vectors):
                row[v].set(multiply_add(fn, a, b[v], row[v].get()))


def multiply_add(fn: Function, a: Val, b: Val, c: Val) -> Val:
    """Return a · b + c, rounded once where the target can; integers wrap."""
    return fn.fma(a, b, c) if a.kind.is_float else a * b + c


class RowEnd:
    """The end of a tile: its sums go through the expression to the output, one row after the other.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is computed of a sum and the operands.
        access: For each operand, ``dense`` along the channels or the ``same`` for all.
        out: The output.
        first_pointer: The number of the first operand among the kernel's pointers.
        first_size: Where the strides of line and column begin among its sizes: the output's, then the
            operands'.
    """

    def __init__(
        self,
        fn: Function,
        target: Target,
        expression: Expression,
        access: tuple[str, ...],
        out: Val,
        first_pointer: int,
        first_size: int,
    ) -> None:
        self.fn, self.lanes = fn, target.lanes
        self.expression, self.access = expression, access
        self.kinds = (expression.kind, *expression.inputs[1:])
        self.pointers = [out, *(fn.pointer(first_pointer + index) for index in range(len(access)))]
        self.strides = [
            (fn.size(first_size + 2 * index), fn.size(first_size + 2 * index + 1))
            for index in range(len(access) + 1)
        ]

    def write(
        self,
        acc: Sequence[Sequence[Var]],
        first: tuple[Val, Val],
        rows: Val,
        width: Val,
        channel: Val,
        count: Val | None,
    ) -> None:
        """Write the outputs of a tile.

        Args:
            acc: The sums.
            first: Line and column of the first pixel.
            rows: How many pixels there are.
            width: Columns of a line.
            channel: The first channel.
            count: How many channels there are; None if they fill the vectors.
        """
        if self.expression.flops > _MAX_UNROLLED_FLOPS:
            self._write_rows(acc, first, rows, width, channel, count)
            return
        is_whole = rows == len(acc)
        if count is not None:
            is_whole = is_whole & (count == len(acc[0]) * self.lanes)
        with self.fn.either(is_whole) as otherwise:
            self._write_whole(acc, first, width, channel)
            otherwise()
            self._write_rows(acc, first, rows, width, channel, count)

    def _write_whole(
        self, acc: Sequence[Sequence[Var]], first: tuple[Val, Val], width: Val, channel: Val
    ) -> None:
        """Write all rows of a tile from the registers."""
        line, column = first
        for row in acc:
            starts = self._starts(line, column)
            self._write_row([total.get() for total in row], starts, channel, None)
            line, column = self._next(line, column, width)

    def _write_rows(
        self,
        acc: Sequence[Sequence[Var]],
        first: tuple[Val, Val],
        rows: Val,
        width: Val,
        channel: Val,
        count: Val | None,
    ) -> None:
        """Write some rows of a tile, by way of the stack."""
        fn, lanes, vectors = self.fn, self.lanes, len(acc[0])
        kind = acc[0][0].kind
        tile = fn.stack(kind, len(acc) * vectors * lanes)
        for r, row in enumerate(acc):
            for v, total in enumerate(row):
                fn.store(total.get(), tile, (r * vectors + v) * lanes)
        line, column = fn.var(first[0]), fn.var(first[1])
        with fn.loop(0, rows) as index:
            starts = self._starts(line.get(), column.get())
            place = index * (vectors * lanes)
            totals = [fn.load(kind, tile, place + v * lanes, lanes) for v in range(vectors)]
            if count is None:
                self._write_row(totals, starts, channel, None)
            else:
                with fn.either(count == vectors * lanes) as otherwise:
                    self._write_row(totals, starts, channel, None)
                    otherwise()
                    self._write_row(totals, starts, channel, count)
            next_line, next_column = self._next(line.get(), column.get(), width)
            line.set(next_line)
            column.set(next_column)

    def _next(self, line: Val, column: Val, width: Val) -> tuple[Val, Val]:
        """Return the pixel after another."""
        is_next = column + 1 == width
        return self.fn.select(is_next, line + 1, line), self.fn.select(is_next, 0, column + 1)

    def _starts(self, line: Val, column: Val) -> list[Val]:
        """Return where the channels of a pixel lie in the output and the operands."""
        return [
            self.fn.at(kind, pointer, line * of_line + column * of_column)
            for kind, pointer, (of_line, of_column) in zip(
                self.kinds, self.pointers, self.strides, strict=True
            )
        ]

    def _write_row(
        self, totals: Sequence[Val], starts: Sequence[Val], channel: Val, count: Val | None
    ) -> None:
        """Write one pixel's channels from `channel` on, all or `count` of them."""
        fn, lanes = self.fn, self.lanes
        for v, total in enumerate(totals):
            place = channel + v * lanes
            mask = None if count is None else fn.tail_mask(count - v * lanes, lanes)
            values = [total]
            for kind, start, access in zip(self.kinds[1:], starts[1:], self.access, strict=True):
                is_dense = access == "dense"
                value = fn.load(kind, start, place, lanes, mask) if is_dense else fn.load(kind, start)
                values.append(fn.splat(value, lanes))
            fn.store(fn.splat(self.expression.emit(fn, values), lanes), starts[0], place, mask)
