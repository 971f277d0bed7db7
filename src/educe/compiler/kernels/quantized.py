"""Products of rows rounded to 8 bits with weights of 4 or 8 bits; see `educe.model.quantized` for these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from educe.compiler.emit import F32, I8, I32, I64, U8, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.dot import bytes_at_once, sum_of_bytes
from educe.compiler.kernels.scalars import Expression
from educe.compiler.kernels.tile_end import TileEnd
from educe.compiler.target import Target
from educe.model.quantized import GRAIN, PANEL, STEP, TILE_DEPTH

ROWS = 16
"""Rows whose numbers lie together."""

_TILE_BYTES = ROWS * TILE_DEPTH
_FLIPPED = 128
# Sums of a row that are under way at once.
_CHAINS = 4
# How far before their use codes are fetched.
_AHEAD_BYTES = 8192
_LINE_BYTES = 64


@dataclass(frozen=True)
class Format:
    """What is fixed of a quantised weight when code is made.

    Attributes:
        bits: Bits of a code: 4 or 8.
        scale: The kind of the scales and minimums.
        is_whole: Whether a row is one block without a minimum: then sums are integers, not scaled yet.
        is_fine: Whether a group, or a block without multipliers, is one grain.
        has_multipliers: Whether groups have multipliers.
        has_minimums: Whether something is added in each block.
    """

    bits: int
    scale: Kind
    is_whole: bool
    is_fine: bool
    has_multipliers: bool
    has_minimums: bool

    @property
    def zero(self) -> int:
        """The code of what is 0 before the minimum is added."""
        return 0 if self.bits == 8 or self.has_minimums else 8

    @property
    def grain_bytes(self) -> int:
        """Size of the codes of a grain of a panel."""
        return GRAIN * PANEL * self.bits // 8

    @property
    def total(self) -> Kind:
        """The kind of a product before its end."""
        return I32 if self.is_whole else F32

    @property
    def extras(self) -> tuple[bool, bool, bool]:
        """Whether scales, multipliers and minimums are read by the product."""
        return not self.is_whole, self.has_multipliers, self.has_minimums


def row_place(fn: Function, rows: Val, row: Val, tiles: Val) -> Val:
    """Return where the first numbers of a row lie, the next `TILE_DEPTH` ones `_TILE_BYTES` behind them."""
    return fn.at(I8, rows, row // ROWS * tiles * _TILE_BYTES + row % ROWS * TILE_DEPTH)


def grain_offset(grain: Val) -> Val:
    """Return how far behind the first numbers of a row those of a grain lie."""
    return grain // 2 * _TILE_BYTES + grain % 2 * GRAIN


NUM_SIZES = 8
"""Sizes of a quantised product before the strides of what its expression reads and writes."""


@template("quantized_product")
def quantized_product(
    fn: Function,
    target: Target,
    weight: Format,
    rows: int,
    expression: Expression,
    access: tuple[str, ...],
) -> None:
    """Write ``out[row, column] = expression(product, operands...)`` of rounded rows and a quantised weight.

    ::

        for unit in begin..end:                          # some panels of 16 columns
            for panel in the unit:
                for row in 0..M, `rows` at a time:
                    for block in 0..blocks:
                        sum = 0
                        for group in the block:
                            acc[r] = -zero * sums[row + r][group]
                            for k in the group, four at a time:
                                acc[r] += rows[row + r][k] * codes[panel][k]
                            sum[r] += multiplier[group] * acc[r]
                        product[r] += sum[r] * scale[block] * scale of the row [block]
                        product[r] += minimum[block] * sums[row + r][block] * scale of the row [block]
                    out[row + r] = expression(product[r] or sum[r], operand[row + r], ...)

    All within a block are integers, and blocks follow each other, so that an output does not depend on how
    many rows there are. Codes are read once from memory, in their order there.

    Pointers: out, rows, scales of rows, sums, codes; scales, multipliers and minimums as far as there are
    any; operands. Sizes: N, K, M, panels of a unit, grains of a block, grains of a group, blocks, groups;
    strides of out and then of each operand: row, outer, inner.

    Args:
        fn: The function to write.
        target: Its machine.
        weight: The weight's format.
        rows: Rows that are multiplied at once.
        expression: What ends the product.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
    """
    body = Product(fn, target, weight, expression, access)
    tile = Sums(body, rows)
    with fn.loop(fn.begin, fn.end) as unit:
        first, stop = body.panels_of(unit)
        with fn.loop(first, stop) as panel, fn.loop(0, body.m, rows) as row:
            left = fn.minimum(body.m - row, rows)
            tile.write(panel, row, body.m)
            column = panel * PANEL
            count = fn.minimum(body.n - column, PANEL)
            body.ends.write(tile.memory, fn.const(I64, PANEL), row, left, body.starts, column, count)


class Product:
    """What the kernels of quantised products have in common: pointers, sizes, the scaling of a block."""

    def __init__(
        self, fn: Function, target: Target, weight: Format, expression: Expression, access: tuple[str, ...]
    ) -> None:
        self.fn, self.target, self.weight = fn, target, weight
        self.n, self.depth, self.m, self.unit, self.block, self.group, self.blocks, self.groups = (
            fn.size(index) for index in range(NUM_SIZES)
        )
        self.grains = (self.depth + (GRAIN - 1)) // GRAIN
        self.tiles = (self.grains + 1) // 2
        self.rows, self.row_scales, self.sums, self.codes = (fn.pointer(index) for index in range(1, 5))
        places = [5 + sum(weight.extras[:index]) for index in range(len(weight.extras))]
        self.scales, self.multipliers, self.minimums = (fn.pointer(place) for place in places)
        first = 5 + sum(weight.extras)
        self.ends = TileEnd(fn, target.lanes, weight.total, expression, access, first, NUM_SIZES)
        zero = fn.const(I64, 0)
        self.starts = self.ends.starts((zero, zero))

    def panels_of(self, unit: Val) -> tuple[Val, Val]:
        """Return the first panel of a unit of work, and the end."""
        first = unit * self.unit
        return first, self.fn.minimum(first + self.unit, (self.n + (PANEL - 1)) // PANEL)

    def codes_of(self, panel: Val) -> Val:
        """Return where the codes of a panel lie."""
        return self.fn.at(U8, self.codes, panel * self.tiles * (2 * self.weight.grain_bytes))

    def fetch(self, codes: Val) -> None:
        """Have as many codes as a grain of a panel has fetched into the second cache."""
        for line in range(0, self.weight.grain_bytes, _LINE_BYTES):
            self.fn.prefetch(self.fn.at(U8, codes, line), 2)

    def multiplier(self, panel: Val, group: Val, column: int, lanes: int) -> Val:
        """Return the multipliers of some columns of a panel, in u8."""
        place = (panel * self.groups + group) * PANEL + column
        return self.fn.load(U8, self.multipliers, place, lanes)

    def of_columns(self, panel: Val, block: Val, column: int, lanes: int) -> list[Val]:
        """Return the scales of some columns in a block, and the minimums if there are any, in f32."""
        fn, kind = self.fn, self.weight.scale
        given = [self.scales, self.minimums] if self.weight.has_minimums else [self.scales]
        place = (panel * self.blocks + block) * PANEL + column
        return [fn.cast(fn.load(kind, pointer, place, lanes), F32) for pointer in given]

    def of_row(self, row: Val, block: Val) -> list[Val]:
        """Return the scale of a row in a block, and the sum of its numbers if there are minimums."""
        fn = self.fn
        scale = fn.load(F32, self.row_scales, row * self.blocks + block)
        if not self.weight.has_minimums:
            return [scale]
        return [scale, fn.cast(fn.load(I32, self.sums, row * self.groups + block), F32) * scale]

    def scaled(self, total: Val, of_columns: Sequence[Val], of_row: Sequence[Val], product: Val) -> Val:
        """Return `product` with the exact sums of a block added."""
        fn = self.fn
        product = fn.fma(fn.cast(total, F32) * of_columns[0], of_row[0], product)
        return fn.fma(of_columns[1], of_row[1], product) if self.weight.has_minimums else product


class Sums:
    """The products of some rows and a panel, in vector registers."""

    def __init__(self, body: Product, rows: int) -> None:
        fn = body.fn
        self.body, self.fn, self.rows = body, fn, rows
        self.lanes = min(body.target.lanes, PANEL)
        self.columns = range(0, PANEL, self.lanes)
        self.memory = fn.stack(body.weight.total, rows * PANEL)
        self.chains = max(1, _CHAINS // rows)
        self.of_block = (body.block + (body.group - 1)) // body.group
        self.is_flipped = body.weight.bits == 8 and body.target.integer_dot.left == "u8"
        self.zero = body.weight.zero + _FLIPPED * self.is_flipped

    def write(self, panel: Val, row: Val, stop: Val) -> None:
        """Leave the products of a panel and rows from `row` on, those from `stop` on as the one before."""
        fn, body = self.fn, self.body
        numbers = [fn.minimum(row + r, stop - 1) for r in range(self.rows)]
        of_rows = [row_place(fn, body.rows, number, body.tiles) for number in numbers]
        codes = body.codes_of(panel)
        products = self._variables(F32)
        sums = self._variables(I32)
        with fn.loop(0, body.blocks) as block:
            if body.weight.has_multipliers:
                self._reset(sums)
                start = block * self.of_block
                with fn.loop(start, fn.minimum(start + self.of_block, body.groups)) as group:
                    found = self._sums(numbers, of_rows, codes, group, body.group)
                    self._multiplied(panel, group, found, sums)
            else:
                found = self._sums(numbers, of_rows, codes, block, body.block)
                for of_row, values in zip(sums, found, strict=True):
                    for total, value in zip(of_row, values, strict=True):
                        total.set(value)
            if not body.weight.is_whole:
                of_columns = [body.of_columns(panel, block, column, self.lanes) for column in self.columns]
                row_scales = [body.of_row(number, block) for number in numbers]
                for r, c, _ in self._places():
                    given = of_columns[c], row_scales[r], products[r][c].get()
                    products[r][c].set(body.scaled(sums[r][c].get(), *given))
        for r, c, column in self._places():
            value = (sums if body.weight.is_whole else products)[r][c].get()
            fn.store(value, self.memory, r * PANEL + column)

    def _places(self) -> list[tuple[int, int, int]]:
        return [(r, c, column) for r in range(self.rows) for c, column in enumerate(self.columns)]

    def _variables(self, kind: Kind) -> list[list[Var]]:
        fn = self.fn
        return [[fn.var(fn.const(kind, 0, self.lanes)) for _ in self.columns] for _ in range(self.rows)]

    def _reset(self, variables: Sequence[Sequence[Var]]) -> None:
        for each in variables:
            for total in each:
                total.set(0)

    def _multiplied(
        self, panel: Val, group: Val, found: Sequence[Sequence[Val]], sums: Sequence[Sequence[Var]]
    ) -> None:
        """Add the sums of a group, times its multipliers."""
        for c, column in enumerate(self.columns):
            by = self.fn.extend(self.body.multiplier(panel, group, column, self.lanes), I32)
            for of_row, values in zip(sums, found, strict=True):
                of_row[c].set(of_row[c].get() + values[c] * by)

    def _sums(
        self, numbers: Sequence[Val], of_rows: Sequence[Val], codes: Val, group: Val, size: Val
    ) -> list[list[Val]]:
        """Return the sums of products of a group of so many grains, for each row and vector."""
        fn, body = self.fn, self.body
        chains = [self._variables(I32) for _ in range(self.chains)]
        for number, of_row in zip(numbers, chains[0], strict=True):
            start = fn.const(I32, 0)
            if self.zero:
                start = fn.load(I32, body.sums, number * body.groups + group) * -self.zero
            for total in of_row:
                total.set(start)
        for each in chains[1:]:
            self._reset(each)
        if body.weight.is_fine:
            self._grain(of_rows, codes, group, chains)
        else:
            first_grain = group * size
            with fn.loop(first_grain, fn.minimum(first_grain + size, body.grains)) as grain:
                self._grain(of_rows, codes, grain, chains)
        first, *others = ([[total.get() for total in of_row] for of_row in chain] for chain in chains)
        for other in others:
            first = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(first, other, strict=True)]
        return first

    def _grain(
        self, of_rows: Sequence[Val], codes: Val, grain: Val, chains: Sequence[Sequence[Sequence[Var]]]
    ) -> None:
        """Add the products of a grain, and have codes fetched that come later."""
        fn, target = self.fn, self.body.target
        of_rows = [fn.at(I8, row, grain_offset(grain)) for row in of_rows]
        codes = fn.at(U8, codes, grain * self.body.weight.grain_bytes)
        self.body.fetch(fn.at(U8, codes, _AHEAD_BYTES))
        for step, load in enumerate(self._steps(codes)):
            sums = chains[step % len(chains)]
            right = [load(column) for column in self.columns]
            for row, of_row in zip(of_rows, sums, strict=True):
                left = bytes_at_once(fn, fn.load(I32, row, step), self.lanes)
                for total, each in zip(of_row, right, strict=True):
                    total.set(sum_of_bytes(fn, target, each, left, total.get()))

    def _steps(self, codes: Val) -> list[Callable[[int], Val]]:
        """Return what loads the codes of some columns from a column on, for each step of a grain."""
        fn, count = self.fn, self.lanes * STEP

        def whole(step: int) -> Callable[[int], Val]:
            def load(column: int) -> Val:
                found = fn.load(I8, codes, (step * PANEL + column) * STEP, count)
                return found ^ -_FLIPPED if self.is_flipped else found

            return load

        def half(step: int) -> Callable[[int], Val]:
            def load(column: int) -> Val:
                both = fn.load(U8, codes, (step // 2 * PANEL + column) * STEP, count)
                return both >> 4 if step % 2 else both & 15

            return load

        return [(whole if self.body.weight.bits == 8 else half)(step) for step in range(GRAIN // STEP)]
