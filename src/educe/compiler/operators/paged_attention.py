"""Attention over a cache of keys and values in pages, and what writes to the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from educe.compiler.emit import F32, I32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.paged_attention import ITEM_WORDS, scratch_elements
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_POOL_RANK = 4
_BIAS_RANK = 2


@operator("PagedAttention", domain="educe")
def paged_attention(
    low: Lowering,
    call: Call,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    table: Tensor,
    items: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of the tokens of many sequences, each over the keys and values of its own pages.

    Inputs: q of (tokens, heads, features); pools of (pages, heads of k, keys of a page, features); the pages
    of each sequence (sequences, most pages), i32; items (n, 5), i64, as `kernels.paged_attention` has them,
    those of tokens that are not there left out; and what is added to scores by the distance from a token to
    a key, (heads, 2 · reach + 1), the distance 0 in the middle, and those beyond the reach as at its ends.
    Attributes: scale; softcap; causal (1), 0 if all tokens see all keys; window, the keys a token sees at
    most (all, if 0), itself among them.
    """
    if any(each.kind is not F32 for each in (q, k_pool, v_pool, bias or q)) or table.kind is not I32:
        raise NotCompiled
    if k_pool.rank != _POOL_RANK or k_pool.shape != v_pool.shape or k_pool.strides != v_pool.strides:
        raise ValueError(f"pools {k_pool} and {v_pool}")
    _check_pool(k_pool)
    _check_pool(v_pool)
    if items.kind is not I64 or items.shape[1:] != (ITEM_WORDS,):
        raise ValueError(f"items {items}")
    pages, heads, page, features = k_pool.shape
    if not pages or not table.size:
        raise ValueError(f"{pages} pages, and {list(table.shape)} of sequences")
    if q.rank != _POOL_RANK - 1 or q.shape[1] % heads or q.shape[2] != features:
        raise ValueError(f"attention of {q} over {k_pool}")
    causal, window = bool(call.get("causal", 1)), int(call.get("window", 0))
    if window and not causal:
        raise ValueError(f"a window of {window} where tokens see all keys")
    if bias is not None and (
        bias.rank != _BIAS_RANK or bias.shape[0] != q.shape[1] or bias.shape[1] % 2 == 0
    ):
        raise ValueError(f"a bias {bias} by heads and distances for {q}")
    q = low.need(q)
    table, items = low.dense(table), low.dense(items)
    if q.strides[-1] != 1:
        q = low.dense(q)
    out = low.empty(F32, q.shape)
    keys = table.shape[1] * page
    low.launch(
        Kernel.of(
            "paged_attention",
            scale=float(call.get("scale", 1.0)),
            softcap=float(call.get("softcap", 0.0)),
            page=page,
            causal=causal,
            windowed=window > 0,
            biased=bias is not None,
        ),
        outputs=[out],
        inputs=[q, k_pool, v_pool, table, items, *([] if bias is None else [low.dense(bias)])],
        sizes=[
            *(features, heads, window),
            *q.strides[:2],
            *out.strides[:2],
            *k_pool.strides[:3],
            table.strides[0],
            q.shape[1] // heads,
            *(k_pool.shape[0], table.shape[1], q.shape[0], table.shape[0]),
            0 if bias is None else bias.shape[1] // 2,
        ],
        extent=items.shape[0] * heads,
        flops=4 * q.size * keys,
        bytes=8 * items.shape[0] * heads * features * keys,
        scratch_bytes=-(-4 * scratch_elements(low.target, page, features) // 64) * 64,
    )
    return out


@operator("CacheWrite", domain="educe")
def cache_write(low: Lowering, call: Call, pool: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Write the keys or values of tokens to their slots, in place, and return the pool.

    Inputs: the pool of (pages, heads, keys of a page, features); new ones of (tokens, heads, features);
    a slot for each token, i64: page · keys of a page + key, -1 for a token that is not kept.
    """
    del call
    if slots.kind is not I64 or new.kind is not pool.kind:
        raise NotCompiled
    if pool.rank != _POOL_RANK or new.shape != (slots.size, pool.shape[1], pool.shape[3]):
        raise ValueError(f"{new} does not fit {pool}")
    _check_pool(pool)
    new, slots = low.need(new), low.dense(slots)
    if new.strides[-1] != 1:
        new = low.dense(new)
    pages, heads, page, features = pool.shape
    low.launch(
        Kernel.of("cache_write", kind=pool.kind),
        outputs=[pool],
        inputs=[new, slots],
        sizes=[heads, features, page, pages * page, *pool.strides[:3], *new.strides[:2]],
        extent=slots.size,
        bytes=2 * new.size * new.kind.size_bytes,
        flops=0,
    )
    return pool


@operator("After", domain="educe")
def after(low: Lowering, call: Call, x: Tensor, *done: Tensor) -> Tensor:
    """The tensor `x` itself, once what makes the others has run."""
    del low, call, done
    return x


def _check_pool(pool: Tensor) -> None:
    """Raise ValueError unless `pool` is an input of the graph whose features lie side by side."""
    if pool.buffer is None or pool.buffer.slot != "input" or pool.strides[-1] != 1:
        raise ValueError(f"a cache is an input of the graph, not {pool}")
