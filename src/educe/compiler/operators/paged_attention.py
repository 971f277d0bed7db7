"""Attention over a cache of keys and values in pages, and what writes to the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from educe.compiler.emit import F32, I32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.attention_items import ITEM_ROWS, ITEM_WORDS, Scores, chunk_pages
from educe.compiler.kernels.attention_records import record_elements
from educe.compiler.kernels.attention_unit import chunks_of
from educe.compiler.kernels.kv_cache import CACHE_KINDS, UNIT, HeadBlock
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_POOL_RANK = 3
_BIAS_RANK = 2
# Shares of a sequence's chunks where there are fewer items than threads.
_SHARES = 8


@operator("PagedAttention", domain="educe")
def paged_attention(
    low: Lowering,
    call: Call,
    q: Tensor,
    pool: Tensor,
    table: Tensor,
    items: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of the tokens of many sequences, each over the keys and values of its own pages.

    Inputs: q of (tokens, heads, features); a pool, as `CacheWrite` has it; the pages of each sequence
    (sequences, most pages), i32; items (n, 5), i64, as `kernels.paged_attention` has them, those of tokens
    that are not there left out; and what is added to scores by the distance from a token to a key, (heads,
    2 · reach + 1), the distance 0 in the middle, and those beyond the reach as at its ends.
    Attributes: page, the keys of a page; scale; softcap; causal (1), 0 if all tokens see all keys; window,
    the keys a token sees at most (all, if 0), itself among them.
    """
    if any(each.kind is not F32 for each in (q, bias or q)) or table.kind is not I32:
        raise NotCompiled
    if q.rank != _POOL_RANK or not pool.size or not table.size or q.shape[1] % pool.shape[1]:
        raise ValueError(f"attention of {q} over the pages {table} of {pool}")
    block = _block(low, call, pool, q.shape[2])
    if items.kind is not I64 or items.shape[1:] != (ITEM_WORDS,):
        raise ValueError(f"items {items}")
    causal, window = bool(call.get("causal", 1)), int(call.get("window", 0))
    if window and not causal:
        raise ValueError(f"a window of {window} where tokens see all keys")
    if bias is not None and (
        bias.rank != _BIAS_RANK or bias.shape[0] != q.shape[1] or bias.shape[1] % 2 == 0
    ):
        raise ValueError(f"a bias {bias} by heads and distances for {q}")
    scale, softcap = float(call.get("scale", 1.0)), float(call.get("softcap", 0.0))
    scores = Scores(scale, softcap, causal, window > 0, bias is not None)
    q = low.need(q)
    if q.strides[-1] != 1:
        q = low.dense(q)
    given = [q, pool, low.dense(table), low.dense(items), *([] if bias is None else [low.dense(bias)])]
    return _attention(low, block, scores, given, window)


def _attention(
    low: Lowering, block: HeadBlock, scores: Scores, given: Sequence[Tensor], window: int
) -> Tensor:
    """Launch the attention of q, pool, table, items and maybe a bias, in two parts if there are few items."""
    q, pool, table, items, *bias = given
    tokens, num_heads, features = q.shape
    heads, most_pages = pool.shape[1], table.shape[1]
    group, most_chunks = num_heads // heads, -(-most_pages // chunk_pages(block.page))
    split = most_chunks > 1 and -(-tokens * group // ITEM_ROWS) * heads < 2 * low.threads
    shares = min(_SHARES, most_chunks) if split else 1
    out = low.empty(F32, q.shape)
    found = low.empty(F32, (tokens, num_heads, most_chunks, record_elements(block.row))) if split else out
    sizes = [
        *(items.shape[0], heads, group, window),
        *out.strides[:2],
        *pool.strides[:2],
        *(most_pages, pool.shape[0], tokens, table.shape[0]),
        bias[0].shape[1] // 2 if bias else 0,
    ]
    keys = most_pages * block.page
    scratch = chunks_of(block).scratch_elements(low.target, block)
    low.launch(
        Kernel.of("paged_attention", block=block, scores=scores, split=split),
        outputs=[found],
        inputs=given,
        sizes=[*sizes, *q.strides[:2], shares, most_chunks],
        extent=items.shape[0] * heads * shares,
        flops=4 * q.size * keys,
        bytes=2 * items.shape[0] * heads * features * keys * block.kind.size_bytes,
        scratch_bytes=-(-4 * scratch // 64) * 64,
    )
    if split:
        low.launch(
            Kernel.of("attention_of_chunks", block=block, scores=scores),
            outputs=[out],
            inputs=[found, items],
            sizes=[*sizes, most_chunks],
            extent=items.shape[0] * heads,
            bytes=4 * found.size,
        )
    return out


@operator("CacheWrite", domain="educe")
def cache_write(low: Lowering, call: Call, pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """Write the keys and values of tokens to their slots, in place, and return the pool.

    Inputs: the pool of (pages, heads, elements of a head in a page), of f32, bf16 or i8, see
    `kernels.kv_cache`; k and v of (tokens, heads, features); a slot for each token, i64: page · keys of a
    page + key, -1 for a token that is not kept. Attribute: page, the keys of a page.
    """
    if slots.kind is not I64 or k.kind is not F32 or v.kind is not F32:
        raise NotCompiled
    if k.rank != _POOL_RANK or k.shape != v.shape or k.shape[:2] != (slots.size, pool.shape[1]):
        raise ValueError(f"{k} and {v} do not fit {pool}")
    block = _block(low, call, pool, k.shape[2])
    new = [low.need(each) for each in (k, v)]
    new = [each if each.strides[-1] == 1 else low.dense(each) for each in new]
    pages, heads, _ = pool.shape
    low.launch(
        Kernel.of("cache_write", block=block),
        outputs=[pool],
        inputs=[*new, low.dense(slots)],
        sizes=[heads, pages * block.page, *pool.strides[:2], *new[0].strides[:2], *new[1].strides[:2]],
        extent=slots.size,
        bytes=2 * k.size * (k.kind.size_bytes + pool.kind.size_bytes),
    )
    return pool


@operator("After", domain="educe")
def after(low: Lowering, call: Call, x: Tensor, *done: Tensor) -> Tensor:
    """The tensor `x` itself, once what makes the others has run."""
    del low, call, done
    return x


def _block(low: Lowering, call: Call, pool: Tensor, features: int) -> HeadBlock:
    """Return how a pool has keys and values of so many features.

    Raises:
        NotCompiled: it is of a kind that is not compiled.
        ValueError: it is no pool of such.
    """
    if pool.kind not in CACHE_KINDS:
        raise NotCompiled
    block = HeadBlock.of(low.target, pool.kind, int(call.get("page", 0)), features)
    if block.page < UNIT or block.page % UNIT:
        raise ValueError(f"pages of {block.page} keys, which are no multiple of {UNIT}")
    if pool.rank != _POOL_RANK or pool.shape[2] != block.elements:
        raise ValueError(f"a cache {pool} of pages of {block.page} keys of {features} features")
    if pool.buffer is None or pool.buffer.slot != "input" or pool.strides[-1] != 1:
        raise ValueError(f"a cache is an input of the graph, not {pool}")
    return block
