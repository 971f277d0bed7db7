"""Tiles of a product by a matrix unit, whose registers hold 16 rows of 64 bytes (x86's AMX)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from educe.compiler.emit import I8, I64, U8, Function, Val
from educe.compiler.kernels.dot import BLOCK_BYTES, Multiplier

ROWS = 16
MAX_BLOCKS = 2
"""Registers of rows, and of columns, whose products are summed at once."""

_FIRST_LEFT, _FIRST_RIGHT, _REGISTERS = 4, 6, 8
# Palette 1; then the bytes of a row of each register, as 16 bits, and the rows of each.
_SHAPES = [1, *[0] * 15, *[BLOCK_BYTES, 0] * _REGISTERS, *[0] * 16, *[ROWS] * _REGISTERS, *[0] * 8]


@contextmanager
def configured(fn: Function, is_used: Val) -> Iterator[None]:
    """Have the registers in the block; only if they are used, as that takes some time."""
    shapes = fn.table(U8, _SHAPES)
    with fn.when(is_used):
        fn.call("llvm.x86.ldtilecfg", None, 0, shapes)
    yield
    with fn.when(is_used):
        fn.call("llvm.x86.tilerelease", None, 0)


def sum_of_products(
    fn: Function,
    by: Multiplier,
    rows: tuple[Val, Val, int],
    panel: tuple[Val, Val, int],
    depth: Val,
    tile: Val,
) -> None:
    """Sum the products of some rows and a panel in registers and leave them in `tile`, row after row.

    ::

        for k in 0..K, a register's row at a time:
            left[r] = rows[r], right[v] = panel[v]
            sum[r][v] += left[r] · right[v]

    Args:
        fn: The function to write.
        by: How numbers are multiplied.
        rows: Where the rows lie, how far apart, and how many registers they fill.
        panel: Where the panel lies, how far its rows are apart, and how many vectors it is wide.
        depth: The length of the rows; the panel has zeros behind, up to a multiple of a register's.
        tile: Receives the sums.
    """
    assert by.dot is not None
    (a, a_step, left), (b, b_step, right) = rows, panel
    numbers = BLOCK_BYTES // by.left.size_bytes
    blocks = [(r, v) for r in range(left) for v in range(right)]
    for r, v in blocks:
        fn.call("llvm.x86.tilezero", None, 0, _register(fn, r * MAX_BLOCKS + v))

    def step(source: Val, pitch: Val, k: Val) -> None:
        for r in range(left):
            _load(fn, _FIRST_LEFT + r, fn.at(by.left, source, pitch * (r * ROWS)), pitch * by.left.size_bytes)
        for v in range(right):
            of_panel = fn.at(by.right, b, k * b_step * (numbers // by.group))
            start = fn.at(I8, of_panel, v * BLOCK_BYTES)
            _load(fn, _FIRST_RIGHT + v, start, b_step * by.right.size_bytes)
        for r, v in blocks:
            given = (r * MAX_BLOCKS + v, _FIRST_LEFT + r, _FIRST_RIGHT + v)
            fn.call(by.dot.matrix_unit, None, 0, *(_register(fn, each) for each in given))  # type: ignore[union-attr]

    whole = depth // numbers
    with fn.loop(0, whole) as k:
        step(fn.at(by.left, a, k * numbers), a_step, k)
    with fn.when(whole * numbers < depth):
        rest = fn.stack(by.left, left * ROWS * numbers)
        mask = fn.tail_mask(depth - whole * numbers, numbers)
        with fn.loop(0, left * ROWS) as row:
            last = fn.at(by.left, a, row * a_step + whole * numbers)
            fn.store(fn.load(by.left, last, 0, numbers, mask), rest, row * numbers)
        step(rest, fn.const(I64, numbers), whole)
    _store(fn, blocks, tile, right * BLOCK_BYTES)


def _store(fn: Function, blocks: Sequence[tuple[int, int]], tile: Val, row_bytes: int) -> None:
    for r, v in blocks:
        place = fn.at(I8, tile, r * ROWS * row_bytes + v * BLOCK_BYTES)
        register = _register(fn, r * MAX_BLOCKS + v)
        fn.call("llvm.x86.tilestored64", None, 0, register, place, fn.const(I64, row_bytes))


def _load(fn: Function, number: int, start: Val, step_bytes: Val) -> None:
    fn.call("llvm.x86.tileloadd64", None, 0, _register(fn, number), start, step_bytes)


def _register(fn: Function, number: int) -> Val:
    return fn.const(I8, number)
