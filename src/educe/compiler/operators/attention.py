"""Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import BF16, BOOL, F16, F32, F64, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.attention import scratch_elements
from educe.compiler.lowering import Repeat
from educe.compiler.operators.base import Call, NotCompiled, operator, operators
from educe.compiler.operators.joining import concat
from educe.compiler.operators.product import cast, matrix_product
from educe.compiler.tensor import (
    Tensor,
    broadcast_shape,
    broadcast_strides,
    dtype_of,
    strides_in_order,
)
from educe.graph.normalize import INTERNAL_OPSET

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering
    from educe.compiler.target import Target

_RANK = 4
_DOUBLE = 11

# The share of the machine's peak that blocks of so many vectors of rows reach.
_SPEEDS = {1: 0.8, 2: 1.0}


@operator("Attention", domain="educe")
def fused_attention(
    low: Lowering, call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The product softmax(scale · q · kᵀ + mask) · v of tensors of (batch, heads, length, features).

    The scores are bounded by `softcap` before they are masked. A number of the mask up to `bound` is not
    added to a score, but takes its place. With `zeros` the weights of a query that are no numbers are zeros.
    """
    bound = call.get("bound")
    scores = Scores(
        float(call.get("scale", 1.0)),
        float(call.get("softcap", 0.0)),
        None if bound is None else float(bound),
        "undefined" if call.get("zeros", 0) else "never",
    )
    try:
        return attention(low, q, *_grouped(q, k, v), mask, scores)
    except ValueError:
        # The products that it stands for may broadcast to each other.
        return _unfused(low, q, k, v, mask, scores)


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return k and v with each head once, where a graph repeats them for groups of heads of q."""
    shared = [_shared(each) for each in (k, v)]
    heads = {each.shape[1] for each in shared}
    is_grouped = len(heads) == 1 and all(each.shape[1] == q.shape[1] for each in (k, v))
    return (shared[0], shared[1]) if is_grouped else (k, v)


def _shared(x: Tensor) -> Tensor:
    """Return (batch, heads, length, features) where `x` repeats each head several times, else `x`."""
    if not isinstance(x.lazy, Repeat) or x.lazy.source.rank != _RANK + 1:
        return x
    source = x.lazy.source
    (batch, heads, group, *rest), strides = source.shape, source.strides
    if x.shape != (batch, heads * group, *rest) or strides[2] != 0:
        return x
    return source.view((batch, heads, *rest), (*strides[:2], *strides[3:]))


@operator("Attention")
def standard_attention(
    low: Lowering,
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> list[Tensor]:
    """Scaled dot-product attention with grouped heads, masks and a cache of keys and values."""
    if (past_key is None) != (past_value is None) or (past_key is not None and lengths is not None):
        raise ValueError("a cache needs keys and values, and none that lies outside")
    if any(call.outputs[3:]) or call.get("softmax_precision", 1) == _DOUBLE or q.kind is F64:
        raise NotCompiled
    if v.kind is not q.kind or (mask is not None and mask.kind not in (BOOL, q.kind)):
        raise NotCompiled
    is_flat = q.rank == _RANK - 1
    if is_flat:
        q = by_heads(low, q, call.get("q_num_heads"))
        k, v = (by_heads(low, each, call.get("kv_num_heads")) for each in (k, v))
    if past_key is not None and past_value is not None:
        k, v = _joined(low, past_key, k), _joined(low, past_value, v)
    if any(each.rank != _RANK for each in (q, k, v)):
        raise ValueError(f"attention of {q}, {k}, {v}")
    ahead = 0 if past_key is None else past_key.shape[2]
    is_causal = bool(call.get("is_causal", 0))
    mask = _whole_mask(low, call, q, k, mask, lengths, ahead)
    scores = Scores(
        float(call.get("scale", 1 / math.sqrt(max(q.shape[-1], 1)))),
        float(call.get("softcap", 0.0)),
        zeros="unseen",
        ahead=ahead if is_causal and lengths is None else None,
    )
    result = attention(low, q, k, v, mask, scores)
    if is_flat:
        turned = low.permute(result, (0, 2, 1, 3))
        result = low.reshape(turned, (*turned.shape[:2], turned.shape[2] * turned.shape[3]))
    return [result, k, v][: len(call.outputs)]


def _joined(low: Lowering, past: Tensor, new: Tensor) -> Tensor:
    """Return the keys or values of the cache followed by new ones."""
    joined = concat(low, Call("Concat", "", INTERNAL_OPSET, {"axis": 2}), past, new)
    assert isinstance(joined, Tensor)
    return joined


def by_heads(low: Lowering, x: Tensor, heads: int | None) -> Tensor:
    """Return (batch, length, heads · features) as (batch, heads, length, features), without a copy."""
    if x.rank != _RANK - 1 or not heads or heads < 0 or x.shape[2] % heads:
        raise ValueError(f"{x} has not {heads} heads")
    split = low.reshape(x, (*x.shape[:2], int(heads), x.shape[2] // heads))
    return low.permute(split, (0, 2, 1, 3))


def _whole_mask(
    low: Lowering,
    call: Call,
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    ahead: int,
) -> Tensor | None:
    """Return what is added to the scores: the mask, a window, and what hides the keys after `lengths`."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None and mask.rank and mask.shape[-1] not in (1, keys):
        raise NotCompiled
    parts = [] if mask is None else [_additive(low, mask, q)]
    left, right = int(call.get("left_window_size", -1)), int(call.get("right_window_size", -1))
    if min(left, right) < -1:
        raise ValueError(f"a window of {left} and {right} keys")
    if left >= 0 or right >= 0:
        if lengths is not None:
            raise NotCompiled
        place = _distances(low, queries, keys)
        is_hidden = ((left >= 0) & (ahead - place > left)) | ((right >= 0) & (place - ahead > right))
        parts.append(low.constant(np.where(is_hidden, -np.inf, 0).astype(dtype_of(q.kind))))
    if lengths is not None:
        if lengths.shape != q.shape[:1]:
            raise ValueError(f"{lengths} are not the lengths of a batch of {q.shape[0]}")
        known = low.reshape(lengths, (lengths.size, 1, 1, 1))
        parts.append(_additive(low, low.apply("Less", low.constant(np.arange(keys)), known), q))
        if call.get("is_causal", 0):
            last = low.constant(_distances(low, queries, keys) + (queries - 1))
            parts.append(_additive(low, low.apply("Less", last, known), q))
    total = parts[0] if parts else None
    for part in parts[1:]:
        assert total is not None
        total = low.apply("Add", total, part)
    return total


def _distances(low: Lowering, queries: int, keys: int) -> np.ndarray:
    """Return how far each key is after each query, i64[queries, keys]."""
    # Refused beyond the bound on memory, before NumPy takes it.
    low.empty(I64, (queries, keys))
    return np.arange(keys, dtype=np.int64) - np.arange(queries, dtype=np.int64).reshape(-1, 1)


def _additive(low: Lowering, mask: Tensor, q: Tensor) -> Tensor:
    if mask.kind is not BOOL:
        return mask
    shown, hidden = (low.constant(np.array(each, dtype_of(q.kind))) for each in (0, -np.inf))
    return low.apply("Where", mask, shown, hidden)


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys.

    Attributes:
        scale: What they are multiplied by.
        softcap: Their bound before the mask; none if 0.
        bound: The largest number of the mask that takes the place of a score; all are added if absent.
        zeros: Which queries get zeros, as the kernel takes it.
        ahead: How many keys a query sees beyond its own number; all if absent.
    """

    scale: float
    softcap: float = 0.0
    bound: float | None = None
    zeros: str = "never"
    ahead: int | None = None


def attention(low: Lowering, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """Return softmax(scores) · v, of tensors of (batch, heads, length, features).

    Args:
        low: Where it is launched.
        q: The queries, whose heads are a multiple of those of k.
        k: The keys.
        v: The values.
        mask: What is added to the scores, broadcast to (batch, heads, queries, keys).
        scores: What the scores are.

    Raises:
        ValueError: the shapes do not fit each other.
        NotCompiled: for kinds that kernels do not cover.
    """
    _check(q, k, v, mask)
    if q.kind in (F16, BF16):
        bias = None if mask is None else cast(low, mask, F32)
        q_wide, k_wide, v_wide = (cast(low, each, F32) for each in (q, k, v))
        result = attention(low, q_wide, k_wide, v_wide, bias, scores)
        return low.apply("Cast", result, to=q.kind.name)
    if q.kind is F64 and scores.ahead is None and scores.zeros != "unseen":
        return _unfused(low, q, k, v, mask, scores)
    if q.kind is not F32:
        raise NotCompiled
    if k.shape[2] == 0:
        scores = replace(scores, zeros="unseen")
    return _launched(low, q, k, v, mask, scores)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    given = [q, k, v] if mask is None else [q, k, v, mask]
    if any(each.rank != _RANK for each in given[:3]) or any(each.kind is not q.kind for each in given):
        raise ValueError(f"attention of {given}")
    heads = k.shape[1]
    fits = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and k.shape[:3] == v.shape[:3]
    if not fits or heads == 0 or q.shape[1] % heads:
        raise ValueError(f"attention of {given}")
    whole = (*q.shape[:3], k.shape[2])
    if mask is not None and broadcast_shape(mask.shape, whole) != whole:
        raise ValueError(f"a mask of shape {list(mask.shape)} for scores of shape {list(whole)}")


def _unfused(low: Lowering, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    if q.shape[1] != k.shape[1] and 1 not in (q.shape[1], k.shape[1]):
        raise NotCompiled

    def number(value: float) -> Tensor:
        return low.constant(np.array(value, dtype_of(q.kind)))

    found = low.apply("Mul", matrix_product(low, q, low.permute(k, (0, 1, 3, 2))), number(scores.scale))
    if scores.softcap:
        bounded = low.apply("Tanh", low.apply("Div", found, number(scores.softcap)))
        found = low.apply("Mul", bounded, number(scores.softcap))
    if mask is not None:
        found = low.apply("Add", found, mask)
        if scores.bound is not None:
            found = low.apply("Where", low.apply("LessOrEqual", mask, number(scores.bound)), mask, found)
    softmax = operators()["", "Softmax"](low, Call("Softmax", "", INTERNAL_OPSET, {"axis": -1}), found)
    assert isinstance(softmax, Tensor)
    if scores.zeros == "undefined":
        softmax = low.apply("Where", low.apply("IsNaN", low.need(softmax)), number(0), softmax)
    return matrix_product(low, softmax, v)


def _launched(
    low: Lowering,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scores: Scores,
) -> Tensor:
    batch, q_heads, queries, features = q.shape
    heads, keys, v_features = k.shape[1], k.shape[2], v.shape[3]
    shape = (batch, q_heads, queries, v_features)
    out = low.empty(F32, shape, strides_in_order(shape, (0, 2, 1, 3)))
    group = q_heads // heads
    rows = group * queries
    q, k, v = (_in_rows(low, each) for each in (q, k, v))
    vectors = _vectors(low.target, rows)
    bias = None if mask is None else _in_rows(low, _along_keys(low, mask, keys))
    of_mask = (0, 0, 0, 0) if bias is None else _mask_strides(bias, (*shape[:3], keys), group)
    blocks = -(-rows // (vectors * low.target.lanes))
    elements = scratch_elements(low.target, vectors, features, v_features)
    kernels = {
        each: Kernel.of(
            "attention",
            vectors=each,
            scale=scores.scale,
            softcap=scores.softcap,
            mask="none" if bias is None else _mask_kind(of_mask, group, queries),
            bound=None if mask is None else scores.bound,
            causal=scores.ahead is not None,
            zeros=scores.zeros,
        )
        for each in _SPEEDS
    }
    low.expect(kernels.values())
    low.launch(
        kernels[vectors],
        outputs=[out],
        inputs=[q, k, v] if bias is None else [q, k, v, bias],
        sizes=[
            *(rows, queries, keys, features, v_features, heads, blocks, scores.ahead or 0),
            *_by_head(q.strides, group),
            *k.strides[:3],
            *v.strides[:3],
            *_by_head(out.strides, group),
            *of_mask,
        ],
        extent=batch * heads * blocks if v_features else 0,
        flops=batch * q_heads * queries * keys * (2 * features + 2 * v_features + 20),
        bytes=4 * (q.size + k.size + v.size + out.size),
        scratch_bytes=-(-4 * elements // 64) * 64,
    )
    return out


def _by_head(strides: tuple[int, ...], group: int) -> tuple[int, int, int, int]:
    """Return the strides of batch, head of the keys, head in its group, and query."""
    batch, head, query, _ = strides
    return batch, head * group, head, query


def _in_rows(low: Lowering, x: Tensor) -> Tensor:
    """Return `x` in memory, the elements of its last dimension next to each other."""
    x = low.need(x)
    return x if x.strides[-1] == 1 or x.shape[-1] == 1 else low.dense(x)


def _along_keys(low: Lowering, mask: Tensor, keys: int) -> Tensor:
    """Return a mask whose last dimension is that of the keys."""
    mask = mask if mask.rank else low.reshape(mask, (1,))
    return low.expand(mask, (*mask.shape[:-1], keys))


def _mask_strides(mask: Tensor, whole: tuple[int, ...], group: int) -> tuple[int, int, int, int]:
    """Return the strides of a mask that is broadcast to all scores, as `_by_head` does."""
    return _by_head(broadcast_strides(mask.shape, mask.strides, whole), group)


def _mask_kind(strides: tuple[int, int, int, int], group: int, queries: int) -> str:
    """Return how the kernel takes a mask: one row for all that share keys, or one for each."""
    is_row = (group == 1 or strides[2] == 0) and (queries == 1 or strides[3] == 0)
    return "row" if is_row else "matrix"


def _vectors(target: Target, rows: int) -> int:
    """Return the vectors of rows in a block with which so many rows take least time."""
    return min(_SPEEDS, key=lambda each: -(-rows // (each * target.lanes)) * each / _SPEEDS[each])
