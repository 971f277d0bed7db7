"""Attention over a cache of keys and values in pages, for many sequences at once.

A row is a token's query of one head. What becomes of it depends on nothing that runs beside it: keys are cut
into chunks by their places in the sequence, each with a softmax of its own, and chunks are put together in
their order, whichever threads computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, I32, I64, Function, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.attention_records import Record, record_elements, shift
from educe.compiler.kernels.dot import Multiplier
from educe.compiler.kernels.kv_cache import HeadBlock
from educe.compiler.kernels.product import choose_tile, sum_of_products, tiles
from educe.compiler.target import Target

ITEM_ROWS = 48
"""Rows of an item at most: those of some tokens, for all heads that share keys."""

ITEM_WORDS = 5
"""Numbers of an item: the sequence's first token, first row, rows, the sequence, and its place.

Where tokens see the keys before them, the place is that of the first token in its sequence; else it is how
many keys every token sees.
"""

_CHUNK_KEYS = 256
_SIZES = 13
_MINUS_INFINITY = float("-inf")


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys.

    Attributes:
        scale: What they are multiplied by.
        softcap: Their bound then; none if 0.
        causal: Whether a token sees the keys as far as itself, or all.
        windowed: Whether a token sees the last `window` keys only.
        biased: Whether there is a bias: f32[heads of q, 2 * reach + 1], for keys from `reach` before a token
            to `reach` after it, and all beyond.
    """

    scale: float
    softcap: float
    causal: bool
    windowed: bool
    biased: bool


def chunk_pages(page: int) -> int:
    """Return the pages of a chunk."""
    return max(_CHUNK_KEYS // page, 1)


def scratch_elements(target: Target, block: HeadBlock) -> int:
    """Return the size of the memory that a thread needs."""
    keys = chunk_pages(block.page) * block.page
    return keys + ITEM_ROWS * (keys + target.lanes + 2 * record_elements(block.row))


class _Widening(Multiplier):
    """Products of f32 with numbers of the cache's kind, in f32."""

    def load_right(self, fn: Function, pointer: Val, lane: int | Val, lanes: int) -> Val:
        return fn.cast(super().load_right(fn, pointer, lane, lanes), F32)


@template("paged_attention")
def paged_attention(fn: Function, target: Target, block: HeadBlock, scores: Scores, split: bool) -> None:
    """Write ``out[row] = softmax(scale * q[row] . k) . v`` over the keys of each row's sequence.

    ::

        for unit in begin..end:                           # a share of the chunks, a head of k and v, an item
            token, first, rows, sequence, place = items[item]
            for row in first..first + rows:               # heads of one token after those of another
                causal: see keys up to place + row / group, and no more than `window` of them
                else: see `place` keys
            for chunk in those of the share, some pages that a row sees:
                for page in chunk:
                    s[row, key] = q[row] . k + bias[head of q, reach + key - place of the token]
                p[row, key] = exp(s[row, key] - max(s[row]))
                for page in chunk:
                    o[row] += p[row] . v
                split: partial[row, chunk] = o[row], max(s[row]), sum(p[row])
                else: add o[row] to what is known of the row
            not split: out[row] = o[row] / sum(p[row])

    The softmax is the online one (Milakov and Gimelshein, 2018, arxiv.org/abs/1805.02867), by blocks of keys
    (Dao et al., 2022, arxiv.org/abs/2205.14135).

    Pointers: out, or partial if split; q, pool, table of pages (i32), items, bias. Sizes: those of `_Item`;
    strides of q, shares, chunks of a sequence at most. A page or a sequence that is not there is the nearest
    that is; an item of tokens that are not there is left out.

    Args:
        fn: The function to write.
        target: Its machine.
        block: How keys and values lie in a page.
        scores: What becomes of scores.
        split: Whether the chunks of a sequence are shared between units.
    """
    body, record = _Body(fn, target, block, scores), record_elements(block.row)
    of_q, shares, most_chunks = (
        (fn.size(_SIZES), fn.size(_SIZES + 1)),
        fn.size(_SIZES + 2),
        fn.size(_SIZES + 3),
    )
    with fn.loop(fn.begin, fn.end) as unit:
        item = _Item(fn, block, scores, unit % _units(fn), items_at=4)
        with fn.when(item.is_there):
            body.fill_tables(item, of_q, most_chunks * record if split else None)
            if not split:
                with fn.loop(0, item.rows) as row:
                    body.record(body.known, row).clear()
            with fn.loop(item.chunks[0] + unit // _units(fn), item.chunks[1], shares) as chunk:
                body.write(item, chunk, fn.at(F32, fn.pointer(0), chunk * record) if split else body.own)
                if not split:
                    with fn.loop(0, item.rows) as row:
                        body.record(body.known, row).add(body.record(body.own, row))
            if not split:
                with fn.loop(0, item.rows) as row:
                    body.record(body.known, row).finish(item.out(row), block.features)


@template("attention_of_chunks")
def attention_of_chunks(fn: Function, target: Target, block: HeadBlock, scores: Scores) -> None:
    """Write ``out[row]`` from what `paged_attention` found in each chunk.

    Pointers: out, partial, items. Sizes: those of `_Item`; chunks of a sequence at most.

    Args:
        fn: The function to write.
        target: Its machine.
        block: How keys and values lie in a page.
        scores: What became of scores.
    """
    most_chunks, elements = fn.size(_SIZES), record_elements(block.row)
    known = Record(fn, fn.stack(F32, elements), block.row, target.lanes)
    with fn.loop(fn.begin, fn.end) as unit:
        item = _Item(fn, block, scores, unit, items_at=2)
        with fn.when(item.is_there), fn.loop(0, item.rows) as row:
            known.clear()
            partial = fn.at(F32, fn.pointer(1), item.row(row) * most_chunks * elements)
            with fn.loop(*item.chunks) as chunk:
                known.add(Record(fn, fn.at(F32, partial, chunk * elements), block.row, target.lanes))
            known.finish(item.out(row), block.features)


def _units(fn: Function) -> Val:
    """Return how many pairs of a head of k and v and of an item there are."""
    return fn.size(0) * fn.size(1)


class _Item:
    """An item for one head of k and v.

    Sizes: items, heads of k, heads of q for each, window; strides of out: token, head; of the pool: page,
    head; pages of a sequence at most; pages of the pool; tokens; sequences; reach.
    """

    def __init__(self, fn: Function, block: HeadBlock, scores: Scores, unit: Val, items_at: int) -> None:
        self.fn = fn
        items, self.group, self.window, *self.of_out = (fn.size(index) for index in (0, 2, 3, 4, 5))
        self.of_pool, self.most_pages, self.pages = (fn.size(6), fn.size(7)), fn.size(8), fn.size(9)
        tokens, sequences, self.reach = (fn.size(index) for index in range(10, 13))
        self.head, number = unit // items, unit % items
        words = fn.at(I64, fn.pointer(items_at), number * ITEM_WORDS)
        self.token, self.first, rows, sequence, place = (fn.load(I64, words, index) for index in range(5))
        self.rows, self.sequence = fn.minimum(rows, ITEM_ROWS), _within(fn, sequence, sequences)
        last = (self.first + self.rows - 1) // self.group
        inside = (self.token >= 0) & (self.token < tokens) & (self.first >= 0)
        inside = inside & (self.first < tokens * self.group) & (place >= 0) & (self.rows > 0)
        self.is_there = inside & (self.token + last < tokens)
        zero = fn.const(I64, 0)
        self.place = place if scores.causal else zero
        self.seen = place + last + 1 if scores.causal else place
        least = zero
        if scores.windowed:
            least = fn.maximum(place + self.first // self.group + 1 - self.window, zero)
        stop = fn.minimum((self.seen + (block.page - 1)) // block.page, self.most_pages)
        self.own_pages, chunk = (least // block.page, stop), chunk_pages(block.page)
        self.chunks = self.own_pages[0] // chunk, (stop + (chunk - 1)) // chunk

    def token_and_head(self, row: Val) -> tuple[Val, Val]:
        """Return a row's token, from the sequence's first, and head, from the first of those keys."""
        number = self.first + row
        return number // self.group, number % self.group

    def row(self, row: Val) -> Val:
        """Return the number of a row among those of all tokens and heads."""
        token, head = self.token_and_head(row)
        heads = self.fn.size(1) * self.group
        return (self.token + token) * heads + self.head * self.group + head

    def out(self, row: Val) -> Val:
        """Return where a row's output begins."""
        token, head = self.token_and_head(row)
        place = (self.token + token) * self.of_out[0] + (self.head * self.group + head) * self.of_out[1]
        return self.fn.at(F32, self.fn.pointer(0), place)


class _Body:
    """What a chunk of keys means for the rows of an item."""

    def __init__(self, fn: Function, target: Target, block: HeadBlock, scores: Scores) -> None:
        self.fn, self.target, self.block, self.scores, self.lanes = fn, target, block, scores, target.lanes
        self.by = _Widening(F32, block.kind, F32)
        self.of_keys, self.of_values = (_vectors(target, size) for size in (block.page, block.row))
        self.keys, record = chunk_pages(block.page) * block.page, record_elements(block.row)
        self.value_scales = fn.scratch
        self.s = fn.at(F32, fn.scratch, self.keys)
        self.best = fn.at(F32, self.s, ITEM_ROWS * self.keys)
        self.own = fn.at(F32, self.best, ITEM_ROWS * self.lanes)
        self.known = fn.at(F32, self.own, ITEM_ROWS * record)
        self.places, self.limits, self.biases, self.records = (fn.stack(I64, ITEM_ROWS) for _ in range(4))
        most = max(tiles(target, each)[0][0] * each for each in (self.of_keys, self.of_values))
        self.tile = fn.stack(F32, most * self.lanes)

    def record(self, records: Val, row: Val) -> Record:
        """Return the record of a row, by the places of records."""
        at = self.fn.at(F32, records, self.fn.load(I64, self.records, row))
        return Record(self.fn, at, self.block.row, self.lanes)

    def fill_tables(self, item: _Item, of_q: tuple[Val, Val], record_step: Val | None) -> None:
        """Store where each row's query, its bias and what is found begin, and the last key that it sees."""
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

    def write(self, item: _Item, chunk: Val, to: Val) -> None:
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
        with fn.loop(*pages) as number:
            self._sum(item, number, (number - first) * self.block.page, to)

    def _page(self, item: _Item, number: Val) -> Val:
        """Return where the keys of an item's page begin."""
        fn = self.fn
        found = fn.load(I32, fn.pointer(3), item.sequence * item.most_pages + number)
        page = _within(fn, fn.extend(found, I64), item.pages)
        place = page * item.of_pool[0] + item.head * item.of_pool[1]
        return fn.at(self.block.kind, fn.pointer(2), place)

    def _score(self, item: _Item, number: Val, place: Val) -> None:
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
                best = fn.load(F32, self.best, row * lanes, lanes)
                for v in range(self.of_keys):
                    key = first + v * lanes
                    score = fn.load(F32, tile, v * lanes, lanes) * self.scores.scale
                    if block.has_scales:
                        score = score * fn.load(F32, scales, key, lanes)
                    score = self._ended(item, score, row, number * block.page + key)
                    fn.store(score, self.s, row * self.keys + place + key)
                    best = fn.maximum(best, score)
                fn.store(best, self.best, row * lanes)

            depth, step = fn.const(I64, block.features), fn.const(I64, block.page)
            self._product(item.rows, query, (panel, step), self.of_keys, depth, end)

    def _ended(self, item: _Item, score: Val, row: Val, key: Val) -> Val:
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
        fn, block, lanes = self.fn, self.block, self.lanes
        best = fn.reduce("max", fn.load(F32, self.best, row * lanes, lanes))
        taken = shift(fn, fn.splat(best, lanes))
        total = fn.var(fn.const(F32, 0, lanes))
        s = fn.at(F32, self.s, row * self.keys)
        with fn.loop(keys[0], keys[1], lanes) as key:
            weight = vm.exp(fn, fn.load(F32, s, key, lanes) - taken)
            total.set(total.get() + weight)
            if block.has_scales:
                weight = weight * fn.load(F32, self.value_scales, key, lanes)
            fn.store(weight, s, key)
        record.clear()
        record.weigh(best, fn.reduce("add", total.get()))

    def _sum(self, item: _Item, number: Val, place: Val, to: Val) -> None:
        """Add the values of a page to the records of all rows, from `to` on."""
        fn, block, lanes = self.fn, self.block, self.lanes
        values = fn.at(block.kind, self._page(item, number), block.values_at)
        count = fn.minimum(item.seen - number * block.page, block.page)
        with fn.loop(0, block.row, self.of_values * lanes) as feature:
            panel = fn.at(block.kind, values, feature)

            def weights(row: Val) -> Val:
                return fn.at(F32, self.s, row * self.keys + place)

            def end(row: Val, tile: Val) -> None:
                sums = fn.at(F32, self.record(to, row).at, feature)
                for v in range(self.of_values):
                    so_far, more = (fn.load(F32, each, v * lanes, lanes) for each in (sums, tile))
                    fn.store(so_far + more, sums, v * lanes)

            step = fn.const(I64, block.row)
            self._product(item.rows, weights, (panel, step), self.of_values, count, end)

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


def _within(fn: Function, number: Val, count: Val) -> Val:
    return fn.maximum(fn.minimum(number, count - 1), 0)
