"""The kernels of matrix products: rows of A against panels of B's columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from educe.compiler.emit import I64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import Multiplier, multiplier, multiply_add
from educe.compiler.kernels.gathering import gathered
from educe.compiler.kernels.scalars import Expression
from educe.compiler.kernels.tile_end import TileEnd
from educe.compiler.target import Target

NUM_SIZES = 16
"""Sizes of a product before the strides of what its expression reads and writes."""

DOT_ROWS = 4
"""Rows that `dots` sums at once."""

# Sums that are under way at once, for the latency of an addition to be hidden.
_CHAINS = 8


def lanes_of(target: Target, kind: Kind) -> int:
    """Return how many elements of `kind` the products take at once: a register full."""
    return target.lanes // 2 if kind.size_bytes == 8 else target.lanes


def tiles(target: Target, vectors: int) -> tuple[tuple[int, int], ...]:
    """Return the register tiles for panels of `vectors`: rows and panels, those of most rows first.

    A tile of few rows goes through several panels at once, so that there are sums enough to hide latency.
    """
    most = next(tile.rows for tile in target.tiles if tile.vectors == vectors)
    rows = [most, *(each for each in (8, 4, 1) if each < most)]
    return tuple((each, 1 if vectors == 1 else -(-_CHAINS // (each * vectors))) for each in rows)


def tile_rows(target: Target, by: Multiplier, vectors: int) -> int:
    """Return the rows of the largest tile for panels of `vectors`."""
    if by.has_matrix_unit:
        return matrix_unit.ROWS * matrix_unit.MAX_BLOCKS
    return tiles(target, vectors)[0][0]


@template("product")
def product(
    fn: Function,
    target: Target,
    kind: Kind,
    vectors: int,
    expression: Expression,
    access: tuple[str, ...],
    has_taps: bool = False,
    has_rest: bool = False,
) -> None:
    """Write ``out[row, column] = expression(sum over k of a[row, k] * b[k, column], operands...)``.

    ::

        for unit in begin..end:                          # one of a batch, a group of panels, a block of rows
            if has_taps: a = the rows of the block, gathered from a
            for panel in the group, tile.panels at a time:
                for row in the block, tile.rows at a time:
                    for k in 0..K:                       # meanwhile a part of the next panel is fetched
                        acc[r][p][v] += a[row + r][k] * b[panel + p][k][v]
                    out[row + r] = expression(acc[r], operand[row + r], ...)

    The tile is the largest that the rows left do not leave half empty; rows and panels after the last are the
    last again. Each output is one sum in the order of k, whatever the tile. A panel is `vectors` of columns;
    its row k lies at ``panel * panel_step + k * k_step``. Where the target sums groups of numbers, a row of a
    panel holds a group for each column, and k counts groups.

    Pointers: out, a, b, operands. Sizes: N, K, M, rows of a block, blocks, panels of a group, groups, size of
    the inner batch dimension; strides of a: row, outer, inner; of b: k_step, panel_step, outer, inner; how
    far what is fetched of the next panel moves with k; strides of out and then of each operand: row, outer,
    inner. With taps, the operands come after lines, columns and what is seen outside (`gathered`), and
    before the strides of out stand the columns of a line, line taps, column taps and numbers of a tap.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of a, which tells that of b and of the sums.
        vectors: Vectors of columns in a panel.
        expression: What ends the sum.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
        has_taps: Whether rows of a are pixels of a convolution, whose taps lie apart.
        has_rest: Whether K is no multiple of the numbers that are summed at once.
    """
    lanes = lanes_of(target, kind)
    width = vectors * lanes
    by = multiplier(target, kind)
    n, depth, m, block_rows, blocks, group_panels, groups, inner = (fn.size(index) for index in range(8))
    a_row, *a_batch = (fn.size(index) for index in range(8, 11))
    k_step, panel_step, *b_batch = (fn.size(index) for index in range(11, 15))
    fetch_step = fn.size(15)
    places = (6, NUM_SIZES + 4) if has_taps else (3, NUM_SIZES)
    ends = TileEnd(fn, lanes, by.total, expression, access, *places)
    taps_at = NUM_SIZES if has_taps else None
    body = (
        matrix_unit.Body(fn, by, target, vectors, ends, (depth, a_row, k_step, panel_step), taps_at)
        if by.has_matrix_unit
        else Body(fn, by, target, vectors, ends, (depth, a_row, k_step, panel_step, fetch_step), has_rest)
    )
    with body.registers(), fn.loop(fn.begin, fn.end) as unit:
        batch, place = unit // (groups * blocks), unit % (groups * blocks)
        batches = (batch // inner, batch % inner)
        a = fn.at(kind, fn.pointer(1), batches[0] * a_batch[0] + batches[1] * a_batch[1])
        b = fn.at(by.right, fn.pointer(2), batches[0] * b_batch[0] + batches[1] * b_batch[1])
        first_row, first_panel = place % blocks * block_rows, place // blocks * group_panels
        stop_row = fn.minimum(first_row + block_rows, m)
        if has_taps and not by.has_matrix_unit:
            gathered(fn, target, kind, a, (first_row, stop_row), a_row, NUM_SIZES)
            a = fn.at(kind, fn.scratch, -first_row * a_row)
        stop_column = fn.minimum((first_panel + group_panels) * width, n)
        panels = (first_panel, (stop_column + (width - 1)) // width)
        body.write((a, b), ends.starts(batches), (first_row, stop_row), panels, stop_column)


class Body:
    """What a unit of work of `product` does: the products of some rows and some panels.

    Args:
        fn: The function to write.
        by: How numbers are multiplied.
        target: Its machine.
        vectors: Vectors of columns in a panel.
        ends: What ends a tile.
        sizes: K, and the steps of a row of a, of k, from panel to panel, and of what is fetched.
        has_rest: Whether there are numbers behind the last whole step.
    """

    def __init__(
        self,
        fn: Function,
        by: Multiplier,
        target: Target,
        vectors: int,
        ends: TileEnd,
        sizes: tuple[Val, ...],
        has_rest: bool,
    ) -> None:
        self.fn, self.by, self.vectors, self.ends, self.has_rest = fn, by, vectors, ends, has_rest
        self.depth, self.a_row, self.k_step, self.panel_step, self.fetch_step = sizes
        self.shapes, self.lanes = tiles(target, vectors), ends.lanes
        self.width = vectors * self.lanes
        self.tile = fn.stack(by.total, max(rows * panels for rows, panels in self.shapes) * self.width)

    def registers(self) -> AbstractContextManager[None]:
        """Do nothing: vector registers are always there."""
        return nullcontext()

    def write(
        self,
        given: tuple[Val, Val],
        starts: Sequence[Val],
        rows: tuple[Val, Val],
        panels: tuple[Val, Val],
        stop_column: Val,
    ) -> None:
        """Write the product of some rows of a and some panels of b, whose first and end are given."""
        fn, most = self.fn, self.shapes[0][0]
        at_once = _panels_at_once(fn, rows[1] - rows[0], self.shapes)
        with fn.loop(*panels, at_once) as panel:
            following = fn.var(fn.at(self.by.right, given[1], (panel + at_once) * self.panel_step))
            with fn.loop(*rows, most) as row:
                left = fn.minimum(rows[1] - row, most)
                self._sum(given, (row, rows[1]), (panel, panels[1]), left, following)
                column = panel * self.width
                count = fn.minimum(at_once * self.width, stop_column - column)
                tile_row = _panels_at_once(fn, left, self.shapes) * self.width
                self.ends.write(self.tile, tile_row, row, left, starts, column, count)

    def _sum(
        self,
        given: tuple[Val, Val],
        rows: tuple[Val, Val],
        panels: tuple[Val, Val],
        left: Val,
        following: Var,
    ) -> None:
        """Leave the sums of a tile in its memory; rows and panels after the last are the last again."""
        fn, by, (a, b) = self.fn, self.by, given

        def sums(shape: tuple[int, int]) -> None:
            of_a = [
                fn.at(by.left, a, fn.minimum(rows[0] + r, rows[1] - 1) * self.a_row) for r in range(shape[0])
            ]
            of_b = [
                fn.at(by.right, b, fn.minimum(panels[0] + p, panels[1] - 1) * self.panel_step)
                for p in range(shape[1])
            ]
            ahead = (following, self.fetch_step) if shape[0] == self.shapes[0][0] else None
            panel = (self.vectors, self.lanes)
            depth, rest = self.depth, self.has_rest
            sum_of_products(fn, by, of_a, of_b, self.tile, panel, depth, self.k_step, ahead, rest)

        choose_tile(fn, left, self.shapes, sums)


def _panels_at_once(fn: Function, rows: Val, shapes: Sequence[tuple[int, int]]) -> Val:
    """Return how many panels the tile of so many rows takes at once."""
    found = fn.as_val(shapes[-1][1], rows.kind, 0)
    for smaller, shape in reversed(list(zip(shapes[1:], shapes, strict=False))):
        found = fn.select(rows > smaller[0], shape[1], found)
    return found


def choose_tile(
    fn: Function, left: Val, shapes: Sequence[tuple[int, int]], write: Callable[[tuple[int, int]], None]
) -> None:
    """Write the tile of fewest rows that holds `left` of them."""
    if len(shapes) == 1:
        write(shapes[0])
        return
    with fn.either(left > shapes[1][0]) as otherwise:
        write(shapes[0])
        otherwise()
        choose_tile(fn, left, shapes[1:], write)


def sum_of_products(
    fn: Function,
    by: Multiplier,
    of_a: Sequence[Val],
    of_b: Sequence[Val],
    tile: Val,
    panel: tuple[int, int],
    depth: Val,
    k_step: Val,
    ahead: tuple[Var, Val] | None = None,
    has_rest: bool = False,
) -> None:
    """Sum the products of rows and panels in registers and leave them in `tile`, row after row.

    With a rest, `depth` is no multiple of the numbers that are summed at once.
    """
    vectors, lanes = panel
    columns = [(start, v) for start in of_b for v in range(vectors)]
    acc = [[fn.var(fn.const(by.total, 0, lanes)) for _ in columns] for _ in of_a]

    def step(k: Val, load: Callable[[Val], Val]) -> None:
        row = k * k_step
        b = [by.load_right(fn, fn.at(by.right, start, row), v * lanes, lanes) for start, v in columns]
        for start, sums in zip(of_a, acc, strict=True):
            a = load(start)
            for total, each in zip(sums, b, strict=True):
                total.set(by.add(fn, a, each, total.get()))

    steps = depth // by.group
    with fn.loop(0, steps) as k:
        if ahead is not None:
            pointer, fetch_step = ahead
            fn.prefetch(pointer.get())
            pointer.set(fn.at(by.right, pointer.get(), fetch_step))
        step(k, lambda start: by.load_left(fn, start, k, lanes))
    if has_rest:
        step(steps, lambda start: by.load_last(fn, start, depth, lanes))
    for r, row in enumerate(acc):
        for c, total in enumerate(row):
            fn.store(total.get(), tile, (r * len(columns) + c) * lanes)


@template("dots")
def dots(fn: Function, target: Target, kind: Kind, expression: Expression, access: tuple[str, ...]) -> None:
    """Write ``out[row] = expression(sum over k of a[row, k] * b[k], operands...)``.

    ::

        for unit in begin..end:                          # one of a batch, a block of rows
            for row in the block, as many at a time as a vector has lanes:
                for some rows at a time:
                    for k in 0..K, a vector at a time, the last one masked:
                        acc[r] += a[row + r][k] * b[k]
                    sum[r] = the lanes of acc[r], combined by halves
                out[row] = expression(sum, operand[row], ...)

    Pointers: out, a, b, operands. Sizes: M, K, rows of a block, blocks, size of the inner batch dimension;
    strides of a: row, outer, inner; of b: outer, inner; of out and then of each operand: row, outer,
    inner.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of a and b.
        expression: What ends the sum.
        access: For each operand, ``dense`` along the rows or the ``same`` for all.
    """
    lanes = lanes_of(target, kind)
    m, depth, block_rows, blocks, inner = (fn.size(index) for index in range(5))
    a_row, *a_batch = (fn.size(index) for index in range(5, 8))
    b_batch = (fn.size(8), fn.size(9))
    tile = fn.stack(kind, max(lanes, DOT_ROWS))
    ends = TileEnd(fn, lanes, kind, expression, access, 3, 10)
    whole = depth - depth % lanes
    mask = fn.tail_mask(depth - whole, lanes)
    zero = fn.const(kind, 0, lanes)
    zero_row, one_row = fn.const(I64, 0), fn.const(I64, 1)
    acc = [fn.var(zero) for _ in range(DOT_ROWS)]
    with fn.loop(fn.begin, fn.end) as unit:
        batch = unit // blocks
        batches = (batch // inner, batch % inner)
        a = fn.at(kind, fn.pointer(1), batches[0] * a_batch[0] + batches[1] * a_batch[1])
        b = fn.at(kind, fn.pointer(2), batches[0] * b_batch[0] + batches[1] * b_batch[1])
        first = unit % blocks * block_rows
        stop = fn.minimum(first + block_rows, m)
        with fn.loop(first, stop, lanes) as row:
            count = fn.minimum(stop - row, lanes)
            with fn.loop(0, count, DOT_ROWS) as done:
                rows = [fn.at(kind, a, fn.minimum(row + done + r, stop - 1) * a_row) for r in range(DOT_ROWS)]
                for total in acc:
                    total.set(zero)

                def step(k: Val, mask: Val | None) -> None:
                    each = fn.load(kind, b, k, lanes, mask)
                    for total, start in zip(acc, rows, strict=True):
                        total.set(multiply_add(fn, fn.load(kind, start, k, lanes, mask), each, total.get()))

                with fn.loop(0, whole, lanes) as k:
                    step(k, None)
                with fn.when(whole < depth):
                    step(whole, mask)
                for r, total in enumerate(acc):
                    fn.store(fn.reduce("add", total.get()), tile, done + r)
            ends.write(tile, zero_row, zero_row, one_row, ends.starts(batches), row, count)
