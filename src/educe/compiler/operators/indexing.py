"""Operators that move elements to or from places told by indices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.kernel import Kernel
from educe.compiler.kernels.indexing import BITS, INNER_BLOCK, ROW_BLOCK
from educe.compiler.operators.base import Call, NotCompiled, known_values, operator, positive_axis
from educe.compiler.operators.filling import ramp
from educe.compiler.operators.movement import sliced
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_TUPLE = 16
"""Indices of a tuple up to which kernels take them."""


@operator("Gather")
def gather(low: Lowering, call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The slices of `x` along `axis` that `indices` name."""
    axis = call.axis(x.rank)
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    places = _even_places(x.shape[axis], indices)
    if places is not None:
        return low.reshape(sliced(low, x, axis, places), shape)
    return gathered(low, x, axis, indices, shape)


def _even_places(length: int, indices: Tensor) -> range | None:
    """Return known indices as a range, if they are one."""
    if indices.value is None:
        return None
    value = indices.value.ravel()
    if value.size and (value.min() < -length or value.max() >= length):
        raise ValueError(f"index {value.min()} or {value.max()} of a dimension of {length}")
    if indices.rank > 1 or value.size == 0:
        return None
    value = np.where(value < 0, value + length, value)
    step = int(value[1] - value[0]) if value.size > 1 else 1
    if step == 0 or np.any(np.diff(value) != step):
        return None
    return range(int(value[0]), int(value[0]) + step * value.size, step)


def gathered(low: Lowering, x: Tensor, axis: int, indices: Tensor, shape: list[int]) -> Tensor:
    """Launch the copy of the slices of `x` along `axis` that `indices` name."""
    out = low.empty(x.kind, shape)
    length, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    if out.size == 0:
        return out
    if length == 0:
        raise ValueError("an index of a dimension of 0")
    outer = math.prod(x.shape[:axis])
    flat = low.need(low.reshape(x, [outer, length, inner]))
    chosen = low.need(low.reshape(indices, [1, indices.size]))
    if inner == 1:
        flat, chosen = flat.view((outer, length), flat.strides[:2]), low.expand(chosen, [outer, indices.size])
        _gather_elements(low, flat, 1, chosen, out)
        return out
    if flat.strides[2] != 1:
        flat = low.dense(flat)
    _gather_rows(
        low,
        out,
        flat,
        low.dense(indices),
        inner,
        indices.size,
        flat.strides[0],
        indices.size,
        [(length, flat.strides[1])],
    )
    return out


def _gather_rows(
    low: Lowering,
    out: Tensor,
    data: Tensor,
    indices: Tensor,
    length: int,
    rows: int,
    batch_step: int,
    index_rows: int,
    places: list[tuple[int, int]],
) -> None:
    """Launch copies of rows of `length`; `places` has the length and the step of each index of a tuple."""
    width = out.kind.size_bytes
    blocks = -(-length * width // ROW_BLOCK)
    sizes = [length * width, blocks, rows, batch_step * width, index_rows, len(places)]
    for size, step in places:
        sizes += [size, step * width]
    low.launch(
        Kernel.of("gather_rows", index=indices.kind),
        outputs=[out],
        inputs=[data, indices, low.status()],
        sizes=sizes,
        extent=out.size // length * blocks,
        bytes=2 * out.size * width,
    )


def _gather_elements(low: Lowering, data: Tensor, axis: int, indices: Tensor, out: Tensor) -> None:
    """Launch ``out[..., i, ...] = data[..., indices[..., i, ...], ...]``."""
    last = data.rank - 1
    strides = [0 if each == axis else stride for each, stride in enumerate(data.strides)]
    sizes = [indices.shape[last], strides[last], data.shape[axis], data.strides[axis], indices.strides[last]]
    sizes += [last, *indices.shape[:last], *strides[:last], *indices.strides[:last]]
    low.launch(
        Kernel.of("gather_elements", kind=BITS[data.kind.size_bytes], index=indices.kind),
        outputs=[out],
        inputs=[data, indices, low.status()],
        sizes=sizes,
        extent=math.prod(indices.shape[:last]),
        bytes=out.size * (2 * out.kind.size_bytes + indices.kind.size_bytes),
    )


@operator("GatherElements")
def gather_elements(low: Lowering, call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """For each index, the element of `x` at the same place but for `axis`, which the index tells."""
    axis = call.axis(x.rank)
    _same_but(x, indices, axis)
    out = low.empty(x.kind, indices.shape)
    if out.size:
        _gather_elements(low, low.need(x), axis, low.need(indices), out)
    return out


@operator("GatherND")
def gather_nd(low: Lowering, call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The slices of `x` at the tuples of indices."""
    batch = int(call.get("batch_dims", 0))
    if indices.rank < 1 or not 0 <= batch < min(indices.rank, x.rank + 1):
        raise ValueError(f"indices of shape {list(indices.shape)} after {batch} dimensions in common")
    depth = indices.shape[-1]
    inner = x.shape[batch + depth :]
    if batch + depth > x.rank or depth < 1 or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"indices of shape {list(indices.shape)} into a tensor of shape {list(x.shape)}")
    if depth > _MAX_TUPLE:
        raise NotCompiled
    out = low.empty(x.kind, [*indices.shape[:-1], *inner])
    if out.size == 0:
        return out
    data, length = low.dense(x), math.prod(inner)
    places = list(zip(x.shape[batch : batch + depth], data.strides[batch : batch + depth], strict=True))
    if any(size == 0 for size, _ in places):
        raise ValueError("an index of a dimension of 0")
    tuples = indices.size // depth
    batch_step = math.prod(x.shape[batch:])
    rows = tuples // math.prod(x.shape[:batch])
    _gather_rows(low, out, data, low.dense(indices), length, rows, batch_step, tuples, places)
    return out


@operator("ReverseSequence")
def reverse_sequence(low: Lowering, call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first elements of each sequence in the opposite order."""
    time, batch = call.axis(x.rank, 0, "time_axis"), call.axis(x.rank, 1, "batch_axis")
    if x.rank < 2 or {time, batch} != {0, 1} or lengths.shape != (x.shape[batch],):
        raise ValueError(f"lengths of shape {list(lengths.shape)} for sequences of shape {list(x.shape)}")
    if time == 0:
        x = low.permute(x, [1, 0, *range(2, x.rank)])
    out = low.empty(x.kind, x.shape)
    if out.size:
        sequences, length = x.shape[:2]
        if lengths.kind.name != "i64":
            lengths = low.apply("Cast", lengths, to="i64")
        place, ends = ramp(low, length, [1, length]), low.reshape(lengths, [sequences, 1])
        last = low.apply("Sub", ends, low.constant(np.array(1, np.int64)))
        turned = low.apply("Sub", last, place)
        chosen = low.dense(low.apply("Where", low.apply("Less", place, ends), turned, place))
        data, inner = low.dense(x), math.prod(x.shape[2:])
        _gather_rows(low, out, data, chosen, inner, length, length * inner, chosen.size, [(length, inner)])
    return out if time else low.permute(out, [1, 0, *range(2, x.rank)])


@operator("ScatterElements", "Scatter")
def scatter_elements(low: Lowering, call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`x`, with each update at its own place but for `axis`, which its index tells."""
    axis = call.axis(x.rank)
    _same_but(x, indices, axis)
    if updates.shape != indices.shape or updates.kind != x.kind:
        raise ValueError(f"updates {updates} with indices {indices} into {x}")
    return _scattered(low, x, axis, indices, updates, _reduction(call, x))


def _scattered(
    low: Lowering, x: Tensor, axis: int, indices: Tensor, updates: Tensor, reduction: str
) -> Tensor:
    out = low.empty(x.kind, x.shape)
    low.write(x, out)
    if indices.size == 0:
        return out
    whole = [out, low.need(updates), low.need(indices)]
    outer = [each for each in range(x.rank) if each != axis]
    sizes = [indices.shape[axis], x.shape[axis], *(each.strides[axis] for each in whole), len(outer)]
    sizes += [indices.shape[each] for each in outer]
    for tensor in whole:
        sizes += [tensor.strides[each] for each in outer]
    kind = BITS[x.kind.size_bytes] if reduction == "none" else x.kind
    low.launch(
        Kernel.of("scatter_elements", kind=kind, index=indices.kind, reduction=reduction),
        outputs=[out],
        inputs=[*whole[1:], low.status()],
        sizes=sizes,
        extent=indices.size // indices.shape[axis],
        bytes=indices.size * (2 * x.kind.size_bytes + indices.kind.size_bytes),
    )
    return out


@operator("ScatterND")
def scatter_nd(low: Lowering, call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`x`, with each slice of `updates` at the place that its tuple of indices tells."""
    depth = indices.shape[-1] if indices.rank else 0
    if not 1 <= depth <= x.rank or updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
        raise ValueError(f"updates {updates} with indices {indices} into {x}")
    if depth > _MAX_TUPLE:
        raise NotCompiled
    out = low.empty(x.kind, x.shape)
    low.write(x, out)
    if updates.size == 0:
        return out
    if 0 in x.shape[:depth]:
        raise ValueError("an index of a dimension of 0")
    length = math.prod(x.shape[depth:])
    sizes = [indices.size // depth, length, depth]
    for size, step in zip(x.shape[:depth], out.strides[:depth], strict=True):
        sizes += [size, step]
    reduction = _reduction(call, x)
    kind = BITS[x.kind.size_bytes] if reduction == "none" else x.kind
    low.launch(
        Kernel.of("scatter_rows", kind=kind, index=indices.kind, reduction=reduction),
        outputs=[out],
        inputs=[low.dense(updates), low.dense(indices), low.status()],
        sizes=sizes,
        extent=-(-length // INNER_BLOCK),
        bytes=2 * updates.size * x.kind.size_bytes,
    )
    return out


@operator("TensorScatter")
def tensor_scatter(
    low: Lowering, call: Call, cache: Tensor, update: Tensor, starts: Tensor | None = None
) -> Tensor:
    """`cache`, with `update` along `axis` from each sequence's own start on."""
    axis = call.axis(cache.rank, -2)
    _same_but(cache, update, axis)
    length, number = cache.shape[axis], update.shape[axis]
    if axis == 0 or number > length or (starts is not None and starts.shape != cache.shape[:1]):
        raise ValueError(f"{update} does not go into {cache}")
    first = low.constant(np.zeros((), np.int64)) if starts is None else _column(low, starts, cache.rank, 0)
    place = low.apply("Add", first, _column(low, ramp(low, number, [number]), cache.rank, axis))
    if call.get("mode", "linear") == "circular":
        size = low.constant(np.array(length, np.int64))
        rounds = low.apply("Div", place, size)
        place = low.apply("Sub", place, low.apply("Mul", rounds, size))
    indices = low.expand(place, update.shape)
    return _scattered(low, cache, axis, indices, update, "none")


def _column(low: Lowering, x: Tensor, rank: int, axis: int) -> Tensor:
    return low.reshape(x, [x.size if each == axis else 1 for each in range(rank)])


@operator("Compress")
def compress(low: Lowering, call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """The slices along `axis`, or the elements, where `condition` is true."""
    (chosen,) = known_values(low, condition)
    assert chosen is not None
    axis = call.get("axis")
    if axis is None:
        x, axis = low.reshape(x, [x.size]), 0
    axis = positive_axis(int(axis), x.rank)
    places = np.flatnonzero(chosen)
    if chosen.size > x.shape[axis]:
        raise ValueError(f"a condition of {chosen.size} for a dimension of {x.shape[axis]}")
    shape = [places.size if each == axis else size for each, size in enumerate(x.shape)]
    return gathered(low, x, axis, low.constant(places), shape)


def _reduction(call: Call, x: Tensor) -> str:
    reduction = call.get("reduction", "none")
    if x.kind.name == "bool" and reduction != "none":
        raise NotCompiled
    if reduction not in ("none", "add", "mul", "min", "max"):
        raise ValueError(f"there is no reduction {reduction!r}")
    return str(reduction)


def _same_but(x: Tensor, other: Tensor, axis: int) -> None:
    """Check that `other` fits inside `x` in every dimension but `axis`."""
    fits = other.rank == x.rank and all(
        each == axis or size <= bound
        for each, (size, bound) in enumerate(zip(other.shape, x.shape, strict=False))
    )
    if not fits or (x.shape[axis] == 0 and other.size):
        raise ValueError(f"shape {list(other.shape)} for places in shape {list(x.shape)} along {axis}")
