"""Attention over a cache of keys and values in pages, for many sequences at once.

A row is a token's query of one head. What becomes of it depends on nothing that runs beside it: keys are cut
into chunks by their places in the sequence, each with a softmax of its own, and chunks are put together in
their order, whichever threads computed them.
"""

from __future__ import annotations

from educe.compiler.emit import F32, Function, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.attention_items import ITEM_SIZES, Item, Scores
from educe.compiler.kernels.attention_records import Record, record_elements
from educe.compiler.kernels.attention_unit import chunks_of
from educe.compiler.kernels.kv_cache import HeadBlock
from educe.compiler.target import Target


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

    Pointers: out, or partial if split; q, pool, table of pages (i32), items, bias. Sizes: those of `Item`;
    strides of q, shares, chunks of a sequence at most. A page or a sequence that is not there is the nearest
    that is; an item of tokens that are not there is left out.

    Args:
        fn: The function to write.
        target: Its machine.
        block: How keys and values lie in a page.
        scores: What becomes of scores.
        split: Whether the chunks of a sequence are shared between units.
    """
    body, record = chunks_of(block)(fn, target, block, scores), record_elements(block.row)
    of_q, shares, most_chunks = (
        (fn.size(ITEM_SIZES), fn.size(ITEM_SIZES + 1)),
        fn.size(ITEM_SIZES + 2),
        fn.size(ITEM_SIZES + 3),
    )
    with fn.loop(fn.begin, fn.end) as unit:
        item = Item(fn, block, scores, unit % _units(fn), items_at=4)
        first = item.chunks[0] + unit // _units(fn)
        with fn.when(item.is_there & (first < item.chunks[1]) if split else item.is_there):
            body.meet(item, of_q, most_chunks * record if split else None)
            if not split:
                with fn.loop(0, item.rows) as row:
                    body.record(body.known, row).clear()
            with fn.loop(first, item.chunks[1], shares) as chunk:
                body.write(item, chunk, fn.at(F32, fn.pointer(0), chunk * record) if split else body.own)
                if not split:
                    with fn.loop(0, item.rows) as row:
                        body.record(body.known, row).add(body.record(body.own, row))
            if not split:
                with fn.loop(0, item.rows) as row:
                    body.record(body.known, row).finish(item.out(row), block.features)
    body.release()


@template("attention_of_chunks")
def attention_of_chunks(fn: Function, target: Target, block: HeadBlock, scores: Scores) -> None:
    """Write ``out[row]`` from what `paged_attention` found in each chunk.

    Pointers: out, partial, items. Sizes: those of `Item`; chunks of a sequence at most.

    Args:
        fn: The function to write.
        target: Its machine.
        block: How keys and values lie in a page.
        scores: What became of scores.
    """
    most_chunks, elements = fn.size(ITEM_SIZES), record_elements(block.row)
    known = Record(fn, fn.stack(F32, elements), block.row, target.lanes)
    with fn.loop(fn.begin, fn.end) as unit:
        item = Item(fn, block, scores, unit, items_at=2)
        with fn.when(item.is_there), fn.loop(0, item.rows) as row:
            known.clear()
            partial = fn.at(F32, fn.pointer(1), item.row(row) * most_chunks * elements)
            with fn.loop(*item.chunks) as chunk:
                known.add(Record(fn, fn.at(F32, partial, chunk * elements), block.row, target.lanes))
            known.finish(item.out(row), block.features)


def _units(fn: Function) -> Val:
    """Return how many pairs of a head of k and v and of an item there are."""
    return fn.size(0) * fn.size(1)
