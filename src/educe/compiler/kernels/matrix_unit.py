"""Products by a matrix unit, whose registers hold up to 16 rows of 64 bytes (x86's AMX)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from educe.compiler.emit import I8, I64, U8, Function, Operand, Val
from educe.compiler.kernels.dot import BLOCK_BYTES, Multiplier
from educe.compiler.kernels.gathering import gathered
from educe.compiler.kernels.tile_end import TileEnd
from educe.compiler.target import Target

ROWS = 16
MAX_BLOCKS = 2
"""Registers of rows, and of columns, whose products are summed at once."""

FIRST_LEFT, FIRST_RIGHT = 4, 6
"""The numbers of the first registers of either side; those before are for sums."""

ROWS_AT = 48
"""Where the description of registers says how many rows each has."""

_REGISTERS = 8


def shapes(depth_bytes: int = BLOCK_BYTES) -> list[int]:
    """Return the description of registers for steps of so many bytes along k, as `ldtilecfg` reads it."""
    widths, heights = [BLOCK_BYTES] * _REGISTERS, [ROWS] * _REGISTERS
    widths[FIRST_LEFT:FIRST_RIGHT] = [depth_bytes] * (FIRST_RIGHT - FIRST_LEFT)
    heights[FIRST_RIGHT:] = [depth_bytes // 4] * (_REGISTERS - FIRST_RIGHT)
    # Palette 1; then the bytes of a row of each register, as 16 bits, and the rows of each.
    return [1, *[0] * 15, *(byte for width in widths for byte in (width, 0)), *[0] * 16, *heights, *[0] * 8]


def scratch_bytes(row_bytes: int) -> int:
    """Return the memory that a thread needs for rows of so many bytes."""
    return MAX_BLOCKS * ROWS * (-(-row_bytes // BLOCK_BYTES) + 1) * BLOCK_BYTES


class Body:
    """What a unit of work of a product does: the products of some rows and some panels.

    ::

        for row in rows, as many as the registers hold at a time:
            own[r] = a[row + r], or what the taps of a pixel see, in scratch memory
            for panel in panels:
                for k in 0..K, a register's row at a time:
                    left[r] = own[r][k], right[v] = panel[k][v]
                    sum[r][v] += left[r] · right[v]
                out[row] = expression(sum, ...)

    So the rows stay in the first cache, wherever they come from, and what is written lies side by side.

    Args:
        fn: The function to write.
        by: How numbers are multiplied.
        target: Its machine.
        vectors: Vectors of columns in a panel; it has zeros behind K, up to a multiple of a register's row.
        ends: What ends a tile.
        sizes: K, and the steps of a row of a, of k, and from panel to panel.
        taps_at: The first of the sizes of `gathered`, if rows are pixels.
    """

    def __init__(
        self,
        fn: Function,
        by: Multiplier,
        target: Target,
        vectors: int,
        ends: TileEnd,
        sizes: tuple[Val, ...],
        taps_at: int | None,
    ) -> None:
        self.fn, self.by, self.vectors, self.ends = fn, by, vectors, ends
        self.depth, self.a_row, self.k_step, self.panel_step = sizes
        self.row_bytes, self.numbers = vectors * BLOCK_BYTES, BLOCK_BYTES // by.left.size_bytes
        self.tile = fn.stack(U8, MAX_BLOCKS * ROWS * self.row_bytes)
        self.target, self.taps_at = target, taps_at
        self.steps = (self.depth + (self.numbers - 1)) // self.numbers
        self.pitch = (self.steps + 1) * self.numbers
        self.whole = self.depth - self.depth % self.numbers
        self.rest = fn.tail_mask(self.depth - self.whole, self.numbers)
        self._shapes = fn.stack(U8, BLOCK_BYTES)
        self._configured = fn.var(fn.const(I64, 0))

    @contextmanager
    def registers(self) -> Iterator[None]:
        """Have the registers in the block."""
        fn = self.fn
        fn.store(fn.load(U8, fn.table(U8, shapes()), 0, BLOCK_BYTES), self._shapes)
        yield
        release(fn)

    def write(
        self,
        given: tuple[Val, Val],
        starts: Sequence[Val],
        rows: tuple[Val, Val],
        panels: tuple[Val, Val],
        stop_column: Val,
    ) -> None:
        """Write the product of some rows of a and some panels of b, whose first and end are given."""
        fn, (a, b), width = self.fn, given, self.row_bytes // self.by.total.size_bytes
        with fn.loop(rows[0], rows[1], MAX_BLOCKS * ROWS) as row:
            left = fn.minimum(rows[1] - row, MAX_BLOCKS * ROWS)
            self._configure(left)
            self._fetch(a, row, left)
            with fn.loop(*panels) as panel:
                of_b = fn.at(self.by.right, b, panel * self.panel_step)
                with fn.either(left > ROWS) as otherwise:
                    self._sum(of_b, 2)
                    otherwise()
                    self._sum(of_b, 1)
                count = fn.minimum(stop_column - panel * width, width)
                self.ends.write(self.tile, fn.const(I64, width), row, left, starts, panel * width, count)

    def _configure(self, rows: Val) -> None:
        """Have registers for so many rows, if they are not for as many already: that empties them all."""
        fn = self.fn
        with fn.when(rows != self._configured.get()):
            self._configured.set(rows)
            for block in range(MAX_BLOCKS):
                count = fn.minimum(fn.maximum(rows - block * ROWS, 1), ROWS)
                for number in (*(block * MAX_BLOCKS + v for v in range(MAX_BLOCKS)), FIRST_LEFT + block):
                    fn.store(fn.extend(count, U8), self._shapes, ROWS_AT + number)
            configure(fn, self._shapes)

    def _fetch(self, a: Val, row: Val, rows: Val) -> None:
        """Have some rows in scratch memory."""
        fn, kind = self.fn, self.by.left
        if self.taps_at is not None:
            gathered(fn, self.target, kind, a, (row, row + rows), self.pitch, self.taps_at)
            return
        with fn.loop(0, rows) as r:
            source, to = fn.at(kind, a, (row + r) * self.a_row), fn.at(kind, fn.scratch, r * self.pitch)
            with fn.loop(0, self.whole, self.numbers) as k:
                fn.store(fn.load(kind, source, k, self.numbers), to, k)
            with fn.when(self.whole < self.depth):
                fn.store(fn.load(kind, source, self.whole, self.numbers, self.rest), to, self.whole)

    def _sum(self, b: Val, left: int) -> None:
        """Sum the products of rows, which fill `left` registers, and leave them in the tile."""
        fn = self.fn
        blocks = [(r, v) for r in range(left) for v in range(self.vectors)]
        for r, v in blocks:
            clear(fn, r * MAX_BLOCKS + v)
        with fn.loop(0, self.steps) as k:
            self._step(b, k, blocks)
        for r, v in blocks:
            place = fn.at(U8, self.tile, r * ROWS * self.row_bytes + v * BLOCK_BYTES)
            leave(fn, r * MAX_BLOCKS + v, place, self.row_bytes)

    def _step(self, b: Val, k: Val, blocks: Sequence[tuple[int, int]]) -> None:
        """Add the products of a register's row along k."""
        fn, by = self.fn, self.by
        assert by.dot is not None
        for r in {r for r, _ in blocks}:
            start = fn.at(by.left, fn.scratch, self.pitch * (r * ROWS) + k * self.numbers)
            load(fn, FIRST_LEFT + r, start, self.pitch * by.left.size_bytes)
        panel = fn.at(by.right, b, k * self.k_step * (self.numbers // by.group))
        for v in range(self.vectors):
            start = fn.at(U8, panel, v * BLOCK_BYTES)
            load(fn, FIRST_RIGHT + v, start, self.k_step * by.right.size_bytes)
        for r, v in blocks:
            multiply(fn, by.dot.matrix_unit, r * MAX_BLOCKS + v, FIRST_LEFT + r, FIRST_RIGHT + v)


def configure(fn: Function, description: Val) -> None:
    """Have registers of the description at an address, see `shapes`; what they held is gone."""
    fn.call("llvm.x86.ldtilecfg", None, 0, description)


def release(fn: Function) -> None:
    """Give the registers back."""
    fn.call("llvm.x86.tilerelease", None, 0)


def clear(fn: Function, number: int) -> None:
    """Fill a register with zeros."""
    fn.call("llvm.x86.tilezero", None, 0, _register(fn, number))


def load(fn: Function, number: int, start: Val, pitch: Operand) -> None:
    """Load a register, of which each row lies `pitch` bytes behind the one before."""
    fn.call("llvm.x86.tileloadd64", None, 0, _register(fn, number), start, fn.as_val(pitch, I64, 0))


def leave(fn: Function, number: int, to: Val, pitch: Operand) -> None:
    """Store a register as `load` loads it."""
    fn.call("llvm.x86.tilestored64", None, 0, _register(fn, number), to, fn.as_val(pitch, I64, 0))


def multiply(fn: Function, instruction: str, total: int, left: int, right: int) -> None:
    """Add the products of two registers to a third one by the `Dot.matrix_unit` of their kinds."""
    fn.call(instruction, None, 0, *(_register(fn, number) for number in (total, left, right)))


def _register(fn: Function, number: int) -> Val:
    return fn.const(I8, number)
