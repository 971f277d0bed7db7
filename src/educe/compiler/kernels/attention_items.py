"""Items of attention over pages: what a unit of work is about."""

from __future__ import annotations

from dataclasses import dataclass

from educe.compiler.emit import F32, I64, Function, Val
from educe.compiler.kernels.kv_cache import HeadBlock

ITEM_ROWS = 48
"""Rows of an item at most: those of some tokens, for all heads that share keys."""

ITEM_WORDS = 5
"""Numbers of an item: the sequence's first token, first row, rows, the sequence, and its place.

Where tokens see the keys before them, the place is that of the first token in its sequence; else it is how
many keys every token sees.
"""

_CHUNK_KEYS = 256
ITEM_SIZES = 13
"""Sizes of a kernel that are about items; see `Item`."""


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


class Item:
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
        self.rows, self.sequence = fn.minimum(rows, ITEM_ROWS), within(fn, sequence, sequences)
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


def within(fn: Function, number: Val, count: Val) -> Val:
    """Return a number, or the nearest to it of 0, ..., `count` - 1."""
    return fn.maximum(fn.minimum(number, count - 1), 0)
