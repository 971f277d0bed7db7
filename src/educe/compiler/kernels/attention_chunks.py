"""What a chunk of keys means for the rows of an item, by vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, I32, I64, Function, Operand, Val
from educe.compiler.kernels.attention_items import ITEM_ROWS, Item, Scores, chunk_pages, within
from educe.compiler.kernels.attention_records import Record, record_elements, shift
from educe.compiler.kernels.dot import Multiplier
from educe.compiler.kernels.kv_cache import HeadBlock
from educe.compiler.kernels.product import choose_tile, sum_of_products, tiles
from educe.compiler.target import Target

_MINUS_INFINITY = float("-inf")
# Rows of scores lie apart, so that those of a block of rows do not share the places of a cache.
_GAP = 16


def _score_step(block: HeadBlock) -> int:
    """Return how many elements lie from the scores of a row of a chunk to those of the next one."""
    return chunk_pages(block.page) * block.page + _GAP


class _Widening(Multiplier):
    """Products of f32 with numbers of the cache's kind, in f32."""

    def load_right(self, fn: Function, pointer: Val, lane: int | Val, lanes: int) -> Val:
        return fn.cast(super().load_right(fn, pointer, lane, lanes), F32)


class Chunks:
    """What a chunk of keys means for the rows of an item.

    Attributes:
        step: From the scores of a row to those of the next one.
        end: The memory of the thread after that which is taken.
    """

    weighed: ClassVar[int] = 1
    """Vectors of scores that become weights at once."""

    def __init__(self, fn: Function, target: Target, block: HeadBlock, scores: Scores) -> None:
        self.fn, self.target, self.block, self.scores, self.lanes = fn, target, block, scores, target.lanes
        self.by = _Widening(F32, block.kind, F32)
        self.of_keys, self.of_values = (_vectors(target, size) for size in (block.page, block.row))
        keys, record = chunk_pages(block.page) * block.page, record_elements(block.row)
        self.step = _score_step(block)
        self.value_scales = fn.scratch
        self.s = fn.at(F32, fn.scratch, keys)
        self.best = fn.at(F32, self.s, ITEM_ROWS * self.step)
        self.own = fn.at(F32, self.best, ITEM_ROWS * self.lanes)
        self.known = fn.at(F32, self.own, ITEM_ROWS * record)
        self.end = fn.at(F32, self.known, ITEM_ROWS * record)
        self.places, self.limits, self.biases, self.records = (fn.stack(I64, ITEM_ROWS) for _ in range(4))
        most = max(tiles(target, each)[0][0] * each for each in (self.of_keys, self.of_values))
        self.tile = fn.stack(F32, most * self.lanes)

    @classmethod
    def scratch_elements(cls, target: Target, block: HeadBlock) -> int:
        """Return the size of the memory that a thread needs."""
        of_row = _score_step(block) + target.lanes + 2 * record_elements(block.row)
        return chunk_pages(block.page) * block.page + ITEM_ROWS * of_row

    def record(self, records: Val, row: Val) -> Record:
        """Return the record of a row, by the places of records."""
        at = self.fn.at(F32, records, self.fn.load(I64, self.records, row))
        return Record(self.fn, at, self.block.row, self.lanes)

    def meet(self, item: Item, of_q: tuple[Val, Val], record_step: Val | None) -> None:
        """Know each row: where its query, its bias and what is found begin, and the last key that it sees."""
        fn = self.fn
        with fn.loop(0, item.rows) as row:
            token, head = item.token_and_head(row)
            of_all = item.head * item.group + head
            fn.store((item.token + token) * of_q[0] + of_all * of_q[1], self.places, row)
            fn.store(item.place + token, self.limits, row)
            fn.store(of_all * (item.reach * 2 + 1) + item.reach, self.biases, row)
            record = (
                row * record_elements(self.block.row) if record_step is None else item.row(row) * record_step
            )
            fn.store(record, self.records, row)

    def release(self) -> None:
        """Give back what the machine lent."""

    def write(self, item: Item, chunk: Val, to: Val) -> None:
        """Write what a chunk means for each row to its record, from `to` on."""
        fn, lanes = self.fn, self.lanes
        first = chunk * chunk_pages(self.block.page)
        last = fn.minimum(first + chunk_pages(self.block.page), item.own_pages[1])
        pages = fn.maximum(first, item.own_pages[0]), last
        with fn.loop(0, item.rows) as row:
            fn.store(fn.const(F32, _MINUS_INFINITY, lanes), self.best, row * lanes)
        with fn.loop(*pages) as number:
            self._score(item, number, (number - first) * self.block.page)
        with fn.loop(0, item.rows) as row:
            self._weigh(row, self.record(to, row), [(number - first) * self.block.page for number in pages])
        self._sum(item, pages, first, to)

    def _page(self, item: Item, number: Val) -> Val:
        """Return where the keys of an item's page begin."""
        fn = self.fn
        found = fn.load(I32, fn.pointer(3), item.sequence * item.most_pages + number)
        page = within(fn, fn.extend(found, I64), item.pages)
        place = page * item.of_pool[0] + item.head * item.of_pool[1]
        return fn.at(self.block.kind, fn.pointer(2), place)

    def _score(self, item: Item, number: Val, place: Val) -> None:
        """Store the scores of a page for all rows, from the key `place` of the chunk on."""
        fn, block, lanes = self.fn, self.block, self.lanes
        keys, width = self._page(item, number), self.of_keys * lanes
        scales = fn.at(block.kind, keys, block.scales_at)
        q = fn.pointer(1)
        if block.has_scales:
            with fn.loop(0, block.page, lanes) as key:
                scale = fn.load(F32, scales, key + block.page, lanes)
                fn.store(scale, self.value_scales, place + key)
        with fn.loop(0, block.page, width) as first:
            panel = fn.at(block.kind, keys, first)

            def query(row: Val) -> Val:
                return fn.at(F32, q, fn.load(I64, self.places, row))

            def end(row: Val, tile: Val) -> None:
                found = [fn.load(F32, tile, v * lanes, lanes) for v in range(self.of_keys)]
                if block.has_scales:
                    found = [x * fn.load(F32, scales, first + v * lanes, lanes) for v, x in enumerate(found)]
                self._keep(item, found, row, number * block.page + first, place + first)

            depth, step = fn.const(I64, block.features), fn.const(I64, block.page)
            self._product(item.rows, query, (panel, step), self.of_keys, depth, end)

    def _keep(self, item: Item, products: Sequence[Val], row: Val, key: Val, place: Val) -> None:
        """Store the scores of a row for the keys from `key` on, from the place `place` of the chunk on."""
        fn, lanes = self.fn, self.lanes
        best = fn.load(F32, self.best, row * lanes, lanes)
        for v, product in enumerate(products):
            score = self._ended(item, product * self.scores.scale, row, key + v * lanes)
            fn.store(score, self.s, row * self.step + place + v * lanes)
            best = fn.maximum(best, score)
        fn.store(best, self.best, row * lanes)

    def _ended(self, item: Item, score: Val, row: Val, key: Val) -> Val:
        """Return the scores of a row for the keys from `key` on, of which it may not see all."""
        fn, lanes, scores = self.fn, self.lanes, self.scores
        limit = fn.load(I64, self.limits, row)
        if scores.softcap:
            score = vm.tanh(fn, score * (1 / scores.softcap)) * scores.softcap
        if scores.biased:
            distance = fn.splat(key - limit, lanes) + fn.lane_numbers(lanes)
            distance = fn.maximum(fn.minimum(distance, item.reach), -item.reach)
            at = distance + fn.load(I64, self.biases, row)
            score = score + fn.gather(F32, fn.pointer(5), at)
        last = limit if scores.causal else item.seen - 1
        number = fn.lane_numbers(lanes, I32)
        score = fn.select(number > fn.extend(last - key, I32), _MINUS_INFINITY, score)
        if scores.windowed:
            hidden = number <= fn.extend(limit - item.window - key, I32)
            score = fn.select(hidden, _MINUS_INFINITY, score)
        return score

    def _weigh(self, row: Val, record: Record, keys: Sequence[Val]) -> None:
        """Replace the scores of a row by weights, and begin its record."""
        fn, lanes = self.fn, self.lanes
        best = fn.reduce("max", fn.load(F32, self.best, row * lanes, lanes))
        taken = shift(fn, fn.splat(best, lanes))
        total = fn.var(fn.const(F32, 0, lanes))
        s, vectors = fn.at(F32, self.s, row * self.step), self.weighed
        with fn.loop(keys[0], keys[1], vectors * lanes) as key:
            scores = [fn.load(F32, s, key + v * lanes, lanes) for v in range(vectors)]
            weights = [vm.exp(fn, score - taken) for score in scores]
            for weight in weights:
                total.set(total.get() + weight)
            self._store_weights(weights, s, key)
        record.clear()
        record.weigh(best, fn.reduce("add", total.get()))

    def _store_weights(self, weights: Sequence[Val], to: Val, key: Val) -> None:
        """Store some weights of a row as its products with values take them."""
        fn, (weight,) = self.fn, weights
        if self.block.has_scales:
            weight = weight * fn.load(F32, self.value_scales, key, self.lanes)
        fn.store(weight, to, key)

    def _sum(self, item: Item, pages: tuple[Val, Val], first: Val, to: Val) -> None:
        """Add the values of some pages of a chunk to the records of all rows, from `to` on.

        Args:
            item: The item.
            pages: The first page, and the end.
            first: The first page of the chunk.
            to: Where records begin.
        """
        fn = self.fn
        with fn.loop(*pages) as number:
            self._sum_page(item, number, (number - first) * self.block.page, to)

    def _sum_page(self, item: Item, number: Val, place: Val, to: Val) -> None:
        fn, block, lanes = self.fn, self.block, self.lanes
        values = fn.at(block.kind, self._page(item, number), block.values_at)
        count = fn.minimum(item.seen - number * block.page, block.page)
        with fn.loop(0, block.row, self.of_values * lanes) as feature:
            panel = fn.at(block.kind, values, feature)

            def weights(row: Val) -> Val:
                return fn.at(F32, self.s, row * self.step + place)

            def end(row: Val, tile: Val) -> None:
                self._add(tile, self.record(to, row), feature, self.of_values)

            step = fn.const(I64, block.row)
            self._product(item.rows, weights, (panel, step), self.of_values, count, end)

    def _add(self, sums: Val, record: Record, feature: Operand, vectors: int) -> None:
        """Add sums of weighted values to a record, from a feature on."""
        fn, lanes = self.fn, self.lanes
        to = fn.at(F32, record.at, feature)
        for v in range(vectors):
            so_far, more = (fn.load(F32, each, v * lanes, lanes) for each in (to, sums))
            fn.store(so_far + more, to, v * lanes)

    def _product(
        self,
        rows: Val,
        left: Callable[[Val], Val],
        right: tuple[Val, Val],
        vectors: int,
        depth: Val,
        end: Callable[[Val, Val], None],
    ) -> None:
        """Call `end` with each row and its product with a panel.

        Args:
            rows: How many there are.
            left: Where a row begins.
            right: Where the panel begins, and its step along k.
            vectors: Vectors of the panel.
            depth: The numbers of a row.
            end: What takes a row and its product.
        """
        fn, shapes = self.fn, [(count, 1) for count, _ in tiles(self.target, vectors)]
        with fn.loop(0, rows, shapes[0][0]) as row:
            here = fn.minimum(rows - row, shapes[0][0])

            def sums(shape: tuple[int, int]) -> None:
                starts = [left(fn.minimum(row + r, rows - 1)) for r in range(shape[0])]
                panel = (vectors, self.lanes)
                sum_of_products(fn, self.by, starts, [right[0]], self.tile, panel, depth, right[1])

            choose_tile(fn, here, shapes, sums)
            with fn.loop(0, here) as r:
                end(row + r, fn.at(F32, self.tile, r * (vectors * self.lanes)))


def _vectors(target: Target, elements: int) -> int:
    """Return how many vectors a panel of a row of so many elements has: no row has a part of a panel."""
    whole = elements // target.lanes
    return next(tile.vectors for tile in target.tiles if whole % tile.vectors == 0)
