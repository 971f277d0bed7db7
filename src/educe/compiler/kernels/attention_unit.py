"""What a chunk of keys means for the rows of an item, by a matrix unit (x86's AMX).

Keys and values are bf16. A query and a weight are each the sum of two such numbers, what is rounded off from
the first being the second, so that products are as exact as those of f32 with the same keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from educe.compiler.emit import BF16, F32, I64, U8, U32, Function, Val
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.attention_chunks import Chunks
from educe.compiler.kernels.attention_items import ITEM_ROWS, Item, Scores
from educe.compiler.kernels.dot import BLOCK_BYTES
from educe.compiler.kernels.kv_cache import UNIT, UNIT_DEPTH, HeadBlock
from educe.compiler.kernels.matrix_unit import FIRST_LEFT, FIRST_RIGHT, ROWS, ROWS_AT, shapes
from educe.compiler.target import Target

_MOST_SUMS = 4
# Lines that are fetched in one go.
_FETCHED = 16
_PAIRS = UNIT_DEPTH // 2
# Numbers of a register.
_TILE = UNIT_DEPTH * UNIT


class UnitChunks(Chunks):
    """What a chunk of keys means, where keys and values lie in pairs.

    Rows of queries and of weights are ``[depth / 32][2][32]`` in bf16: first what they are when rounded, then
    what is left.
    """

    weighed: ClassVar[int] = 2

    def __init__(self, fn: Function, target: Target, block: HeadBlock, scores: Scores) -> None:
        super().__init__(fn, target, block, scores)
        dot = target.dot(block.kind.name)
        assert dot is not None
        self.instruction = dot.matrix_unit
        self.queries = self.end
        self.tail = fn.at(F32, self.queries, ITEM_ROWS * block.features)
        self.sums = fn.stack(F32, ROWS * _MOST_SUMS * UNIT)
        self.shapes = fn.stack(U8, BLOCK_BYTES)
        fn.store(fn.load(U8, fn.table(U8, shapes()), 0, BLOCK_BYTES), self.shapes)

    @classmethod
    def scratch_elements(cls, target: Target, block: HeadBlock) -> int:
        """Return the size of the memory that a thread needs."""
        return super().scratch_elements(target, block) + ITEM_ROWS * block.features + _PAIRS * block.row

    def meet(self, item: Item, of_q: tuple[Val, Val], record_step: Val | None) -> None:
        """Know each row of an item, have queries in two parts, and registers for as many rows as needed."""
        super().meet(item, of_q, record_step)
        fn, lanes, features = self.fn, self.lanes, self.block.features
        count = fn.extend(fn.minimum(item.rows, ROWS), U8)
        for number in (*range(_MOST_SUMS), FIRST_LEFT, FIRST_LEFT + 1):
            fn.store(count, self.shapes, ROWS_AT + number)
        matrix_unit.configure(fn, self.shapes)
        with fn.loop(0, item.rows) as row:
            query = fn.at(F32, fn.pointer(1), fn.load(I64, self.places, row))
            to = fn.at(F32, self.queries, row * features)
            with fn.loop(0, features, UNIT_DEPTH) as feature:
                self._halve([fn.load(F32, query, feature + v * lanes, lanes) for v in range(2)], to, feature)

    def release(self) -> None:
        """Give the registers of the matrix unit back."""
        matrix_unit.release(self.fn)

    def _halve(self, numbers: Sequence[Val], to: Val, place: Val) -> None:
        """Store 32 numbers of a row in two parts, from the number `place` on."""
        fn = self.fn
        start = fn.at(F32, to, place)
        for v, number in enumerate(numbers):
            rounded = self._rounded(number)
            rest = self._rounded(number - fn.cast(rounded, F32))
            fn.store(rounded, start, v * number.lanes)
            fn.store(rest, start, UNIT_DEPTH + v * number.lanes)

    def _rounded(self, x: Val) -> Val:
        fn = self.fn
        name = f"%{fn.fresh('b')}"
        fn.declare("llvm.x86.avx512bf16.cvtneps2bf16.512", "<16 x bfloat>", [x.type])
        fn.line(f"{name} = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512({x.type} {x.ref})")
        return fn.emit(BF16, x.lanes, f"bitcast <16 x bfloat> {name} to <16 x i16>")

    def _score(self, item: Item, number: Val, place: Val) -> None:
        """Store the scores of a page for all rows, from the key `place` of the chunk on."""
        fn, block, lanes = self.fn, self.block, self.lanes
        keys = self._page(item, number)
        self._fetch(self._page(item, fn.minimum(number + 1, item.own_pages[1] - 1)))
        steps = fn.const(I64, block.features // UNIT_DEPTH)
        with fn.loop(0, item.rows, ROWS) as row:
            left = fn.at(F32, self.queries, row * block.features)
            for first, count in _groups(block.page):
                self._clear(count)
                with fn.loop(0, steps) as k:
                    right = fn.at(BF16, keys, k * _TILE + first * block.features)
                    self._step(fn.at(F32, left, k * UNIT_DEPTH), block.features, right, block.features, count)
                self._leave(count, fn.at(F32, self.s, row * self.step + place + first), self.step)
        width = self.of_keys * lanes
        with fn.loop(0, item.rows) as row, fn.loop(0, block.page, width) as key:
            at = fn.at(F32, self.s, row * self.step + place + key)
            found = [fn.load(F32, at, v * lanes, lanes) for v in range(self.of_keys)]
            self._keep(item, found, row, number * block.page + key, place + key)

    def _fetch(self, page: Val) -> None:
        """Have the keys and values of a page fetched into the second cache."""
        fn, at_once = self.fn, _FETCHED * BLOCK_BYTES
        with fn.loop(0, self.block.elements * BF16.size_bytes // at_once) as number:
            for line in range(_FETCHED):
                fn.prefetch(fn.at(U8, page, number * at_once + line * BLOCK_BYTES), 2)

    def _store_weights(self, weights: Sequence[Val], to: Val, key: Val) -> None:
        """Store some weights of a row in two parts, where its scores were."""
        self._halve(weights, to, key)

    def _sum(self, item: Item, pages: tuple[Val, Val], first: Val, to: Val) -> None:
        """Add the values of some pages of a chunk to the records of all rows; see `Chunks._sum`."""
        fn, block = self.fn, self.block
        last = pages[1] - 1
        seen = fn.minimum(item.seen - last * block.page, block.page)
        whole, rest = seen // UNIT_DEPTH, seen % UNIT_DEPTH
        with fn.when(rest > 0):
            self._copy_tail(self._values(item, last), whole, rest)
        with fn.loop(0, item.rows, ROWS) as row:
            weights = fn.at(F32, self.s, row * self.step - first * block.page)
            for feature, count in _groups(block.row):
                self._clear(count)
                with fn.loop(*pages) as number:
                    values = fn.at(BF16, self._values(item, number), feature * block.page)
                    steps = fn.minimum(item.seen - number * block.page, block.page) // UNIT_DEPTH
                    with fn.loop(0, steps) as k:
                        left = fn.at(F32, weights, number * block.page + k * UNIT_DEPTH)
                        right = fn.at(BF16, values, k * _TILE)
                        self._step(left, self.step, right, block.page, count)
                with fn.when(rest > 0):
                    left = fn.at(F32, weights, last * block.page + whole * UNIT_DEPTH)
                    right = fn.at(BF16, self.tail, feature * UNIT_DEPTH)
                    self._step(left, self.step, right, UNIT_DEPTH, count)
                self._leave(count, self.sums, count * UNIT)
                with fn.loop(0, fn.minimum(item.rows - row, ROWS)) as r:
                    sums = fn.at(F32, self.sums, r * (count * UNIT))
                    self._add(sums, self.record(to, row + r), feature, count)

    def _values(self, item: Item, number: Val) -> Val:
        """Return where the values of an item's page begin."""
        return self.fn.at(BF16, self._page(item, number), self.block.values_at)

    def _copy_tail(self, values: Val, step: Val, count: Val) -> None:
        """Copy the first values of a step, and zeros after them: the page may hold anything there."""
        fn, block = self.fn, self.block
        with fn.loop(0, block.row, UNIT) as feature, fn.loop(0, _PAIRS) as pair:
            source = fn.at(BF16, values, feature * block.page + step * _TILE)
            kept = fn.select(count > pair * 2, fn.select(count > pair * 2 + 1, fn.const(I64, -1), 0xFFFF), 0)
            words = fn.load(U32, source, pair * UNIT, UNIT) & fn.splat(fn.extend(kept, U32), UNIT)
            fn.store(words, self.tail, feature * _PAIRS + pair * UNIT)

    def _clear(self, count: int) -> None:
        for number in range(count):
            matrix_unit.clear(self.fn, number)

    def _step(self, left: Val, left_step: int, right: Val, depth: int, count: int) -> None:
        """Add the products of 16 rows in two parts with 32 numbers of so many blocks of 16 columns.

        Args:
            left: The first row.
            left_step: From row to row, in words of 32 bits.
            right: The first columns.
            depth: Numbers along k of a block of columns, from one to the next.
            count: Blocks of columns.
        """
        fn, pitch = self.fn, left_step * F32.size_bytes
        for part in range(2):
            matrix_unit.load(fn, FIRST_LEFT + part, fn.at(BF16, left, part * UNIT_DEPTH), pitch)
        for column in range(count):
            number = FIRST_RIGHT + column % 2
            matrix_unit.load(fn, number, fn.at(BF16, right, column * UNIT * depth), BLOCK_BYTES)
            for part in range(2):
                matrix_unit.multiply(fn, self.instruction, column, FIRST_LEFT + part, number)

    def _leave(self, count: int, to: Val, step: int) -> None:
        """Store the sums of so many blocks of columns, with rows `step` apart."""
        for number in range(count):
            place = self.fn.at(F32, to, number * UNIT)
            matrix_unit.leave(self.fn, number, place, step * F32.size_bytes)


def chunks_of(block: HeadBlock) -> type[Chunks]:
    """Return what computes with keys and values that lie so."""
    return UnitChunks if block.is_paired else Chunks


def _groups(columns: int) -> list[tuple[int, int]]:
    """Return the first columns, and the blocks of 16, of what is summed at once."""
    blocks = columns // UNIT
    return [(first * UNIT, min(_MOST_SUMS, blocks - first)) for first in range(0, blocks, _MOST_SUMS)]
