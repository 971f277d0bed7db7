"""Attention over a cache of keys and values in pages, for many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from educe.compiler.emit import F32, I32, I64, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.attention import (
    Ends,
    State,
    padded,
    padded_features,
    scores_of_block,
    softmax_of_block,
    turn,
    weigh,
    write_rows,
)
from educe.compiler.kernels.product import tiles
from educe.compiler.target import Target

VECTORS = 1
"""Vectors of rows in an item."""

ITEM_WORDS = 5
"""Numbers of an item: the sequence's first token, first row, rows, the sequence, and its place.

Where tokens see the keys before them, the place is that of the first token in its sequence; else it is how
many keys every token sees.
"""


def rows_of_item(target: Target) -> int:
    """Return how many rows, which are tokens of all heads that share keys, an item has at most."""
    return VECTORS * target.lanes


def scratch_elements(target: Target, page: int, features: int) -> int:
    """Return the size of the memory that a thread needs."""
    width = rows_of_item(target)
    keys = page + tiles(target, VECTORS)[0][0]
    return width * (2 * padded(target, features) + 2 * keys)


@dataclass(frozen=True)
class _Bias:
    """What is added to scores by head and by how far a key is after its token, as far as `reach`."""

    table: Val
    reach: Val
    heads: Val


@dataclass(frozen=True)
class _Ends(Ends):
    """Ends that know how far a key is from each token: `limits` are the tokens' places."""

    window: Val | None = None
    bias: _Bias | None = None

    @property
    def change_scores(self) -> bool:
        """Whether scores become others at all."""
        return super().change_scores or self.bias is not None

    def emit(self, fn: Function, score: Val, key: Val, number: Val, place: Val, limit: Val) -> Val:
        """Return the score at `place` of a key; see `Ends.emit`."""
        score, lanes = super().emit(fn, score, key, number, place, limit), score.lanes
        if self.bias is not None:
            distance = fn.maximum(
                fn.minimum(fn.splat(number, lanes) - limit, self.bias.reach), -self.bias.reach
            )
            score = score + fn.gather(
                F32, self.bias.table, fn.load(I64, self.bias.heads, 0, lanes) + distance
            )
        if self.window is not None:
            hidden = fn.splat(number + self.window, lanes) <= limit
            score = fn.select(hidden, float("-inf"), score)
        return score


@template("paged_attention")
def paged_attention(
    fn: Function,
    target: Target,
    scale: float,
    softcap: float,
    page: int,
    causal: bool,
    windowed: bool,
    biased: bool,
) -> None:
    """Write ``out[token] = softmax(scale * q[token] . k) . v`` over the keys of each token's sequence.

    ::

        for unit in begin..end:                           # an item, a head of k and v
            token, first, rows, sequence, place = items[item]
            for row in first..first + rows:               # heads of one token after those of another
                causal: see keys up to place + row / group, and no more than `window` of them
                else: see `place` keys
            for page in pages that a row sees:
                k, v = pools + table[sequence, page] * stride
                online softmax over the keys of the page, as in `attention`,
                    of scores + bias[head of q, reach + key - place of the token]

    Pointers: out, q, pool of k, pool of v, table of pages (i32), items, bias. Sizes: features, heads of k,
    window; strides of q and of out: token, head; of the pools: page, head, key; of the table: sequence;
    heads of q for each of k; pages of the pools, and of a sequence at most; tokens; sequences; reach. A page
    or a sequence that is not there is the nearest that is; an item of tokens that are not there is left out.

    Args:
        fn: The function to write.
        target: Its machine.
        scale: What q is multiplied by.
        softcap: The bound of scores; none if 0.
        page: Keys of a page.
        causal: Whether a token sees the keys as far as itself, or all.
        windowed: Whether a token sees the last `window` keys only.
        biased: Whether there is a bias: f32[heads of q, 2 * reach + 1], for keys from `reach` before a token
            to `reach` after it, and all beyond.
    """
    width = rows_of_item(target)
    lanes = target.lanes
    features, heads, window = (fn.size(index) for index in range(3))
    of_q, of_out = (fn.size(3), fn.size(4)), (fn.size(5), fn.size(6))
    of_pool, of_table, group = (fn.size(7), fn.size(8), fn.size(9)), fn.size(10), fn.size(11)
    pages, most_pages, num_tokens, num_sequences, reach = (fn.size(index) for index in range(12, 17))
    q_scratch = fn.scratch
    s = fn.at(F32, q_scratch, padded_features(fn, target, features) * width)
    block_elements = (page + tiles(target, VECTORS)[0][0]) * width
    o = fn.at(F32, s, 2 * block_elements)
    tables = [fn.stack(I64, width) for _ in range(4)]
    bias = _Bias(fn.pointer(6), reach, tables[3]) if biased else None
    state = State(fn, VECTORS, lanes)
    zero = fn.const(I64, 0)
    with fn.loop(fn.begin, fn.end) as unit:
        item = fn.at(I64, fn.pointer(5), unit // heads * ITEM_WORDS)
        token, first, rows, sequence, place = (fn.load(I64, item, word) for word in range(ITEM_WORDS))
        rows = fn.minimum(rows, width)
        last = token + (first + rows - 1) // group
        inside = (token >= 0) & (token < num_tokens) & (first >= 0) & (first < num_tokens * group)
        inside = inside & (place >= 0) & (last < num_tokens)
        sequence = _within(fn, sequence, num_sequences)
        with fn.when(inside & (rows > 0)):
            head = unit % heads
            start = place if causal else zero
            _fill_tables(fn, tables, width, (first, rows, group), of_q, of_out, start)
            if biased:
                _fill_heads(fn, tables[3], width, (first, rows, group), head, reach)
            q = fn.at(F32, fn.pointer(1), token * of_q[0] + head * group * of_q[1])
            out = fn.at(F32, fn.pointer(0), token * of_out[0] + head * group * of_out[1])
            turn(fn, q, tables[0], fn.const(I64, 0), features, q_scratch, width, lanes, scale)
            with fn.loop(0, padded_features(fn, target, features)) as row:
                fn.store(fn.const(F32, 0, lanes), o, row * lanes)
            state.start()
            seen = place + (first + rows - 1) // group + 1 if causal else place
            least = fn.maximum(place + first // group + 1 - window, zero) if windowed else zero
            numbers = fn.at(I32, fn.pointer(4), sequence * of_table)
            with fn.loop(least // page, fn.minimum((seen + (page - 1)) // page, most_pages)) as number:
                found = fn.extend(fn.load(I32, numbers, number), I64)
                where = _within(fn, found, pages) * of_pool[0] + head * of_pool[1]
                k, v = (fn.at(F32, fn.pointer(index), where) for index in (2, 3))
                count = fn.minimum(seen - number * page, page)
                scores_of_block(fn, target, (k, of_pool[2]), q_scratch, s, zero, count, features, VECTORS)
                seen_last = window if windowed else None
                ends = _Ends(softcap, "none", None, causal, s, s, tables[2], seen_last, bias)
                softmax_of_block(fn, state, s, number * page, count, ends)
                weigh(fn, target, v, of_pool[2], s, o, count, features, state)
            write_rows(fn, state, o, out, tables[1], rows, features, "unseen")


def _within(fn: Function, number: Val, count: Val) -> Val:
    return fn.maximum(fn.minimum(number, count - 1), 0)


def _fill_tables(
    fn: Function,
    tables: Sequence[Val],
    width: int,
    block: tuple[Val, Val, Val],
    of_q: tuple[Val, Val],
    of_out: tuple[Val, Val],
    place: Val,
) -> None:
    """Store the offsets of an item's rows in q and out, and the last key that each sees."""
    first, rows, group = block
    with fn.loop(0, width) as row:
        number = first + fn.minimum(row, rows - 1)
        token, head = number // group, number % group
        for table, steps in zip(tables, (of_q, of_out), strict=False):
            fn.store(token * steps[0] + head * steps[1], table, row)
        fn.store(token + place, tables[2], row)


def _fill_heads(
    fn: Function, table: Val, width: int, block: tuple[Val, Val, Val], head: Val, reach: Val
) -> None:
    """Store where the bias of each row's head has the distance 0."""
    first, rows, group = block
    with fn.loop(0, width) as row:
        number = head * group + (first + fn.minimum(row, rows - 1)) % group
        fn.store(number * (reach * 2 + 1) + reach, table, row)


@template("cache_write")
def cache_write(fn: Function, target: Target, kind: Kind) -> None:
    """Write ``pool[slot / page, head, slot % page] = new[token, head]`` for the slot of each token.

    ::

        for token in begin..end:
            if 0 <= slots[token] < limit:
                for head: copy the features

    Pointers: pool, new, slots (i64). Sizes: heads, features, page, limit; strides of the pool: page, head,
    key; of new: token, head.
    """
    lanes = target.vector_bytes // kind.size_bytes
    heads, features, page, limit = (fn.size(index) for index in range(4))
    of_pool, of_new = [fn.size(index) for index in range(4, 7)], [fn.size(index) for index in range(7, 9)]
    with fn.loop(fn.begin, fn.end) as token:
        slot = fn.load(I64, fn.pointer(2), token)
        with fn.when((slot >= 0) & (slot < limit)), fn.loop(0, heads) as head:
            place = slot // page * of_pool[0] + head * of_pool[1] + slot % page * of_pool[2]
            to = fn.at(kind, fn.pointer(0), place)
            source = fn.at(kind, fn.pointer(1), token * of_new[0] + head * of_new[1])
            with fn.loop(0, features, lanes) as feature:
                mask = fn.tail_mask(features - feature, lanes)
                fn.store(fn.load(kind, source, feature, lanes, mask), to, feature, mask)
