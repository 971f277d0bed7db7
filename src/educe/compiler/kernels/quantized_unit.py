"""Products with quantised weights by a matrix unit (x86's AMX)."""

from __future__ import annotations

from collections.abc import Sequence

from educe.compiler.emit import F32, I8, I16, I32, I64, U8, Function, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.dot import BLOCK_BYTES, seen_as
from educe.compiler.kernels.matrix_unit import (
    FIRST_LEFT,
    FIRST_RIGHT,
    MAX_BLOCKS,
    ROWS,
    register,
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

        for unit in begin..end:                          # some panels of 16 columns
            if codes have 4 bits: codes = multiplier * (codes - zero), in scratch memory
            for row in 0..M, 32 at a time:
                for panel in the unit, two at a time:
                    for block in 0..blocks:
                        for k in the block, `depth` at a time:
                            sum[r][p] += rows[row + r][k] · codes[panel + p][k]
                        product[r][p] += sum[r][p] * scale[block] * scale of the row [block]
                        product[r][p] += minimum[block] * sum of the row [block] * its scale
                    out[row + r] = expression(product[r] or sum[r], operand[row + r], ...)

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
    unit_body = _Unit(body, depth)
    fn.call("llvm.x86.ldtilecfg", None, 0, fn.table(U8, shapes(depth)))
    with fn.loop(fn.begin, fn.end) as unit:
        first, stop = body.panels_of(unit)
        codes = body.codes_of(first)
        if weight.bits != 8:
            with fn.loop(first, stop) as panel:
                unit_body.expand(panel, panel - first)
            codes = fn.scratch
        with fn.loop(0, body.m, TILE_ROWS) as row, fn.loop(first, stop, MAX_BLOCKS) as panel:
            left = fn.minimum(body.m - row, TILE_ROWS)
            panels = [panel, fn.minimum(panel + 1, stop - 1)]
            of_panels = [fn.at(I8, codes, (each - first) * unit_body.panel_bytes) for each in panels]
            with fn.either(left > ROWS) as otherwise:
                unit_body.write(row, panels, of_panels, left, 2)
                otherwise()
                unit_body.write(row, panels, of_panels, left, 1)
            column = panel * PANEL
            count = fn.minimum(fn.minimum(stop * PANEL, body.n) - column, _WIDTH)
            body.ends.write(unit_body.memory, fn.const(I64, _WIDTH), row, left, body.starts, column, count)
    fn.call("llvm.x86.tilerelease", None, 0)


class _Unit:
    """The products of up to 32 rows and two panels, in the registers of a matrix unit."""

    def __init__(self, body: Product, depth: int) -> None:
        self.body, self.fn, self.depth = body, body.fn, depth
        self.panel_bytes = body.tiles * (2 * _GRAIN_BYTES)
        self.sums = body.fn.stack(I32, TILE_ROWS * _WIDTH)
        self.memory = self.sums if body.weight.is_whole else body.fn.stack(F32, TILE_ROWS * _WIDTH)

    def expand(self, panel: Val, place: Val) -> None:
        """Write the codes of a panel to scratch memory, in 8 bits, as multiples of the scale."""
        fn, body = self.fn, self.body
        to = fn.at(I8, fn.scratch, place * self.panel_bytes)
        codes = body.codes_of(panel)
        lanes = PANEL * STEP
        if not body.weight.has_multipliers:
            zero = fn.const(I8, body.weight.zero, lanes)
            with fn.loop(0, body.grains) as grain:
                self._expand_grain(codes, to, grain, None, zero)
            return
        with fn.loop(0, body.groups) as group:
            factor = fn.extend(body.multiplier(panel, group, 0, PANEL), I32)
            by = seen_as(fn, factor * 0x00010001, I16, PANEL * 2)
            zero = seen_as(fn, factor * (body.weight.zero * 0x01010101), I8, lanes)
            first = group * body.group
            with fn.loop(first, fn.minimum(first + body.group, body.grains)) as grain:
                self._expand_grain(codes, to, grain, by, zero)

    def _expand_grain(self, codes: Val, to: Val, grain: Val, by: Val | None, zero: Val) -> None:
        """Write a grain; products of codes and multipliers, all below 16, fit in bytes, two at a time."""
        fn, lanes = self.fn, PANEL * STEP
        source = fn.at(U8, codes, grain * self.body.weight.grain_bytes)
        place = fn.at(I8, to, grain * _GRAIN_BYTES)
        for pair in range(GRAIN // STEP // 2):
            both = fn.load(U8, source, pair * lanes, lanes)
            for number, half in enumerate((both & 15, both >> 4)):
                if by is not None:
                    half = seen_as(fn, seen_as(fn, half, I16, by.lanes) * by, U8, lanes)
                fn.store(seen_as(fn, half, I8, lanes) - zero, place, (2 * pair + number) * lanes)

    def write(
        self, row: Val, panels: Sequence[Val], of_panels: Sequence[Val], left: Val, blocks: int
    ) -> None:
        """Leave the products of rows, which fill so many registers, in memory."""
        fn, body = self.fn, self.body
        of_rows = [row_place(fn, body.rows, row + number * ROWS, body.tiles) for number in range(blocks)]
        following = [body.codes_of(panel + MAX_BLOCKS) for panel in panels] if blocks == 1 else []
        if body.weight.is_whole:
            self._multiply(of_rows, of_panels, following, fn.const(I64, 0))
            self._leave(blocks)
            return
        with fn.loop(0, left * MAX_BLOCKS) as place:
            fn.store(fn.const(F32, 0.0, PANEL), self.memory, place * PANEL)
        # The sums of a block are multiplied while those of the block before are scaled.
        self._multiply(of_rows, of_panels, following, fn.const(I64, 0))
        self._leave(blocks)
        with fn.loop(1, body.blocks) as block:
            self._multiply(of_rows, of_panels, following, block)
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
        self, of_rows: Sequence[Val], of_panels: Sequence[Val], following: Sequence[Val], block: Val
    ) -> None:
        """Sum the products of a block in registers, and meanwhile have the codes of other panels fetched."""
        fn, body = self.fn, self.body
        places = [(r, p) for r in range(len(of_rows)) for p in range(MAX_BLOCKS)]
        for r, p in places:
            fn.call("llvm.x86.tilezero", None, 0, register(fn, r * MAX_BLOCKS + p))
        first = block * body.block
        with fn.loop(first, fn.minimum(first + body.block, body.grains), self.depth // GRAIN) as grain:
            for r, start in enumerate(of_rows):
                self._load(FIRST_LEFT + r, fn.at(I8, start, grain_offset(grain)), TILE_DEPTH)
            for p, start in enumerate(of_panels):
                self._load(FIRST_RIGHT + p, fn.at(I8, start, grain * _GRAIN_BYTES), BLOCK_BYTES)
            for start in following:
                for number in range(self.depth // GRAIN):
                    self.body.fetch(fn.at(U8, start, (grain + number) * body.weight.grain_bytes))
            for r, p in places:
                given = (r * MAX_BLOCKS + p, FIRST_LEFT + r, FIRST_RIGHT + p)
                fn.call("llvm.x86.tdpbssd", None, 0, *(register(fn, each) for each in given))

    def _leave(self, blocks: int) -> None:
        """Leave the sums of rows, which fill so many registers, in memory."""
        fn, pitch = self.fn, self.fn.const(I64, _WIDTH * I32.size_bytes)
        for r in range(blocks):
            for p in range(MAX_BLOCKS):
                place = fn.at(I32, self.sums, r * ROWS * _WIDTH + p * PANEL)
                number = register(fn, r * MAX_BLOCKS + p)
                fn.call("llvm.x86.tilestored64", None, 0, number, place, pitch)

    def _load(self, number: int, start: Val, pitch: int) -> None:
        given = register(self.fn, number), start, self.fn.const(I64, pitch)
        self.fn.call("llvm.x86.tileloadd64", None, 0, *given)
