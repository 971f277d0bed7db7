"""Products with quantised weights by a matrix unit (x86's AMX)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from educe.compiler.emit import F32, I8, I16, I32, I64, U8, Function, Operand, Val
from educe.compiler.kernel import template
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import BLOCK_BYTES, seen_as
from educe.compiler.kernels.matrix_unit import (
    FIRST_LEFT,
    FIRST_RIGHT,
    MAX_BLOCKS,
    ROWS,
    shapes,
)
from educe.compiler.kernels.quantized import Format, Product, grain_offset, row_place
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target
from educe.model.quantized import GRAIN, PANEL, STEP, TILE_DEPTH

TILE_ROWS = MAX_BLOCKS * ROWS
"""Rows whose products are summed at once."""

_WIDTH = MAX_BLOCKS * PANEL
_GRAIN_BYTES = GRAIN * PANEL


def expanded_bytes(grains: int) -> int:
    """Return the size of a panel of so many grains in 8 bits."""
    return -(-grains // 2) * 2 * _GRAIN_BYTES


@template("quantized_unit")
def quantized_unit(
    fn: Function,
    target: Target,
    weight: Format,
    depth: int,
    expression: Expression,
    access: tuple[str, ...],
) -> None:
    """Write what `quantized_product` does.

    ::

        for rows in 0..M, as many as half of the second cache holds:
            for panel in begin..end, two panels of 16 columns at a time:
                if codes have 4 bits: codes = multiplier * (codes - zero), in scratch memory
                for row in the rows, 32 at a time:
                    for block in 0..blocks:
                        for k in the block, `depth` at a time:
                            sum[r][p] += rows[row + r][k] · codes[panel + p][k]
                        product[r][p] += sum[r][p] * scale[block] * scale of the row [block]
                        product[r][p] += minimum[block] * sum of the row [block] * its scale
                    out[row + r] = expression(product[r] or sum[r], operand[row + r], ...)

    The codes of the next two panels are fetched, or expanded to the other half of the scratch memory, while
    the first rows meet two panels, which then stay in the first cache.

    Pointers and sizes are those of `quantized_product`. The numbers behind the last one of a row are zeros,
    so that whatever codes meet them do not matter.

    Args:
        fn: The function to write.
        target: Its machine.
        weight: The weight's format.
        depth: Numbers along k that are multiplied at once: 64, or 32 where blocks ask for it.
        expression: What ends the product.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
    """
    body = Product(fn, target, weight, expression, access)
    zero = fn.const(I64, 0)
    matrix_unit.configure(fn, fn.table(U8, shapes(depth)))
    panels = fn.begin * body.unit, body.panels_of(fn.end - 1)[1]
    Unit(body, depth).multiply(panels, (zero, body.m), zero)
    matrix_unit.release(fn)


class Unit:
    """The products of rows and panels, up to 32 rows and two panels at once in a matrix unit's registers."""

    def __init__(self, body: Product, depth: int) -> None:
        self.body, self.fn, self.depth = body, body.fn, depth
        self.is_expanded = body.weight.bits != 8
        self.panel_bytes = body.tiles * (2 * _GRAIN_BYTES)
        blocks = body.fn.const(I64, body.target.l2_bytes // (2 * TILE_ROWS * TILE_DEPTH)) // body.tiles
        self.most_rows = body.fn.maximum(blocks, 1) * TILE_ROWS
        self.sums = body.fn.stack(I32, TILE_ROWS * _WIDTH)
        self.memory = self.sums if body.weight.is_whole else body.fn.stack(F32, TILE_ROWS * _WIDTH)

    def multiply(self, panels: tuple[Val, Val], rows: tuple[Val, Val], origin: Val) -> None:
        """Multiply some rows and some panels.

        Args:
            panels: The first panel, and the end.
            rows: The first row, and the end.
            origin: The panel of the first columns of the output.
        """
        fn, body, (first, stop) = self.fn, self.body, panels
        with fn.loop(rows[0] // ROWS * ROWS, rows[1], self.most_rows) as row:
            end = fn.minimum(row + self.most_rows, rows[1])
            if self.is_expanded:
                with fn.loop(0, body.grains) as grain:
                    self._expand_two(self._two(first, stop), grain, fn.scratch)
            with fn.loop(first, stop, MAX_BLOCKS) as panel:
                two, following = self._two(panel, stop), self._two(panel + MAX_BLOCKS, stop)
                half = (panel - first) // MAX_BLOCKS % 2
                now, later = (self._place(fn.scratch, each * MAX_BLOCKS) for each in (half, 1 - half))
                of_panels = [body.codes_of(each) for each in two]
                meanwhile = partial(self._fetch_two, following)
                if self.is_expanded:
                    of_panels = [self._place(now, number) for number in range(MAX_BLOCKS)]
                    meanwhile = partial(self._expand_two, following, to=later)
                self._multiply_two(row, (rows[0], end), two, of_panels, stop, origin, meanwhile)
                with fn.loop(row + TILE_ROWS, end, TILE_ROWS) as other:
                    self._multiply_two(other, (rows[0], end), two, of_panels, stop, origin)

    def _two(self, panel: Val, stop: Val) -> list[Val]:
        """Return the numbers of two panels, none of which is behind the last."""
        return [self.fn.minimum(panel + number, stop - 1) for number in range(MAX_BLOCKS)]

    def _place(self, codes: Val, number: Operand) -> Val:
        return self.fn.at(I8, codes, self.panel_bytes * number)

    def _fetch_two(self, panels: Sequence[Val], grain: Val) -> None:
        for panel in panels:
            self.body.fetch(self.fn.at(U8, self.body.codes_of(panel), grain * self.body.weight.grain_bytes))

    def _expand_two(self, panels: Sequence[Val], grain: Val, to: Val) -> None:
        for number, panel in enumerate(panels):
            self._expand(panel, grain, self._place(to, number))

    def _expand(self, panel: Val, grain: Val, to: Val) -> None:
        """Write a grain of a panel to `to`, where the panel lies in 8 bits, as multiples of the scale.

        Products of codes and multipliers, all below 16, fit in bytes, two at a time.
        """
        fn, body, lanes = self.fn, self.body, PANEL * STEP
        source = fn.at(U8, body.codes_of(panel), grain * body.weight.grain_bytes)
        body.fetch(fn.at(U8, source, body.tiles * (2 * MAX_BLOCKS * body.weight.grain_bytes)))
        place = fn.at(I8, to, grain * _GRAIN_BYTES)
        by, zero = None, fn.const(I8, body.weight.zero, lanes)
        if body.weight.has_multipliers:
            group = grain if body.weight.is_fine else grain // body.group
            factor = fn.extend(body.multiplier(panel, group, 0, PANEL), I32)
            by = seen_as(fn, factor * 0x00010001, I16, 2 * PANEL)
            zero = seen_as(fn, factor * (body.weight.zero * 0x01010101), I8, lanes)
        for pair in range(GRAIN // STEP // 2):
            both = fn.load(U8, source, pair * lanes, lanes)
            for number, half in enumerate((both & 15, both >> 4)):
                if by is not None:
                    half = seen_as(fn, seen_as(fn, half, I16, by.lanes) * by, U8, lanes)
                fn.store(seen_as(fn, half, I8, lanes) - zero, place, (2 * pair + number) * lanes)

    def _multiply_two(
        self,
        row: Val,
        rows: tuple[Val, Val],
        panels: Sequence[Val],
        of_panels: Sequence[Val],
        stop: Val,
        origin: Val,
        meanwhile: Callable[[Val], None] | None = None,
    ) -> None:
        """Multiply up to 32 rows and two panels, and end the product; something is done for each grain.

        `row` is that of whole tiles; those of them that are not among `rows` are not written.
        """
        fn, body = self.fn, self.body
        left = fn.minimum(rows[1] - row, TILE_ROWS)
        with fn.either(left > ROWS) as otherwise:
            self._write(row, panels, of_panels, left, 2, meanwhile)
            otherwise()
            self._write(row, panels, of_panels, left, 1, meanwhile)
        column = (panels[0] - origin) * PANEL
        count = fn.minimum(fn.minimum((stop - origin) * PANEL, body.n) - column, _WIDTH)
        others = fn.maximum(rows[0] - row, 0)
        memory = fn.at(body.weight.total, self.memory, others * _WIDTH)
        first, left, pitch = row + others, left - others, fn.const(I64, _WIDTH)
        body.ends.write(memory, pitch, first, left, body.starts, column, count, _WIDTH)

    def _write(
        self,
        row: Val,
        panels: Sequence[Val],
        of_panels: Sequence[Val],
        left: Val,
        blocks: int,
        meanwhile: Callable[[Val], None] | None,
    ) -> None:
        """Leave the products of rows, which fill so many registers, in memory."""
        fn, body = self.fn, self.body
        of_rows = [row_place(fn, body.rows, row + number * ROWS, body.tiles) for number in range(blocks)]
        multiply = partial(self._multiply, of_rows, of_panels, meanwhile)
        if body.weight.is_whole:
            multiply(fn.const(I64, 0))
            self._leave(blocks)
            return
        with fn.loop(0, left * MAX_BLOCKS) as place:
            fn.store(fn.const(F32, 0.0, PANEL), self.memory, place * PANEL)
        # The sums of a block are multiplied while those of the block before are scaled.
        multiply(fn.const(I64, 0))
        self._leave(blocks)
        with fn.loop(1, body.blocks) as block:
            multiply(block)
            self._scale(row, panels, left, block - 1)
            self._leave(blocks)
        self._scale(row, panels, left, body.blocks - 1)

    def _scale(self, row: Val, panels: Sequence[Val], left: Val, block: Val) -> None:
        """Add the sums of a block, scaled, to the products."""
        fn, body = self.fn, self.body
        of_columns = [body.of_columns(panel, block, 0, PANEL) for panel in panels]
        with fn.loop(0, left) as r:
            of_row = [fn.splat(each, PANEL) for each in body.of_row(row + r, block)]
            for number, each in enumerate(of_columns):
                place = r * _WIDTH + number * PANEL
                total = fn.load(I32, self.sums, place, PANEL)
                product = fn.load(F32, self.memory, place, PANEL)
                fn.store(body.scaled(total, each, of_row, product), self.memory, place)

    def _multiply(
        self,
        of_rows: Sequence[Val],
        of_panels: Sequence[Val],
        meanwhile: Callable[[Val], None] | None,
        block: Val,
    ) -> None:
        """Sum the products of a block in registers."""
        fn, body = self.fn, self.body
        places = [(r, p) for r in range(len(of_rows)) for p in range(MAX_BLOCKS)]
        for r, p in places:
            matrix_unit.clear(fn, r * MAX_BLOCKS + p)
        first = block * body.block
        with fn.loop(first, fn.minimum(first + body.block, body.grains), self.depth // GRAIN) as grain:
            for r, start in enumerate(of_rows):
                matrix_unit.load(fn, FIRST_LEFT + r, fn.at(I8, start, grain_offset(grain)), TILE_DEPTH)
            for p, start in enumerate(of_panels):
                matrix_unit.load(fn, FIRST_RIGHT + p, fn.at(I8, start, grain * _GRAIN_BYTES), BLOCK_BYTES)
            for r, p in places:
                given = r * MAX_BLOCKS + p, FIRST_LEFT + r, FIRST_RIGHT + p
                matrix_unit.multiply(fn, "llvm.x86.tdpbssd", *given)
            if meanwhile is not None:
                for number in range(self.depth // GRAIN):
                    meanwhile(grain + number)

    def _leave(self, blocks: int) -> None:
        """Leave the sums of rows, which fill so many registers, in memory."""
        fn = self.fn
        for r in range(blocks):
            for p in range(MAX_BLOCKS):
                place = fn.at(I32, self.sums, r * ROWS * _WIDTH + p * PANEL)
                matrix_unit.leave(fn, r * MAX_BLOCKS + p, place, _WIDTH * I32.size_bytes)
