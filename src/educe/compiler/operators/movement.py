"""Operators that see the same memory in another way, with one copy where strides cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.lowering import reshaped_strides
from educe.compiler.operators.base import Call, known_values, operator, positive_axis
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("Reshape")
def reshape(low: Lowering, call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """The same elements in another shape; 0 keeps a size unless `allowzero`, -1 is what is left."""
    wanted = integers(low, shape)
    sizes = wanted
    if not call.get("allowzero", 0):
        if 0 in sizes[x.rank :]:
            raise ValueError(f"a tensor of shape {list(x.shape)} has no size to keep for shape {sizes}")
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    if sizes.count(-1) == 1:
        rest = math.prod(size for size in sizes if size != -1)
        sizes = [(x.size // rest if rest else 0) if size == -1 else size for size in sizes]
    if math.prod(sizes) != x.size or any(size < 0 for size in sizes):
        raise ValueError(f"a tensor of shape {list(x.shape)} has no shape {wanted}")
    if (
        x.lazy is None
        and x.value is None
        and _is_repeated(x)
        and not reshaped_strides(x.shape, x.strides, sizes)
    ):
        return low.repeat(x, sizes)
    return low.reshape(x, sizes)


def _is_repeated(x: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.strides, strict=True))


@operator("Transpose")
def transpose(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The same memory with its dimensions in another order."""
    order = [int(axis) for axis in call.get("perm", range(x.rank)[::-1])]
    if sorted(order) != list(range(x.rank)):
        raise ValueError(f"perm {order} is no order of {x.rank} dimensions")
    return low.permute(x, order)


@operator("Flatten")
def flatten(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Two dimensions: those before `axis`, and the others."""
    axis = int(call.get("axis", 1))
    if not -x.rank <= axis <= x.rank:
        raise ValueError(f"axis {axis} does not part a tensor of {x.rank} dimensions")
    axis = axis + x.rank if axis < 0 else axis
    return low.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@operator("Shape")
def shape(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The sizes, which are known while lowering."""
    start, end = int(call.get("start", 0)), call.get("end")
    return low.constant(np.array(x.shape[start : None if end is None else int(end)], np.int64))


@operator("Size")
def size(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The number of elements, which is known while lowering."""
    return low.constant(np.array(x.size, np.int64))


@operator("Unsqueeze")
def unsqueeze(low: Lowering, call: Call, x: Tensor, axes: Tensor) -> Tensor:
    """With dimensions of size 1 inserted."""
    places = integers(low, axes)
    rank = x.rank + len(places)
    chosen = {positive_axis(axis, rank) for axis in places}
    if len(chosen) != len(places):
        raise ValueError(f"axes {places} name a dimension twice")
    rest = iter(x.shape)
    return low.reshape(x, [1 if axis in chosen else next(rest) for axis in range(rank)])


@operator("Squeeze")
def squeeze(low: Lowering, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without dimensions of size 1: all of them, or those of `axes`."""
    if axes is None:
        chosen = {axis for axis, size in enumerate(x.shape) if size == 1}
    else:
        chosen = {positive_axis(axis, x.rank) for axis in integers(low, axes)}
    if any(x.shape[axis] != 1 for axis in chosen):
        raise ValueError(f"a tensor of shape {list(x.shape)} cannot lose the dimensions {sorted(chosen)}")
    return low.reshape(x, [size for axis, size in enumerate(x.shape) if axis not in chosen])


@operator("Expand")
def expand(low: Lowering, call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast with the shape given, by NumPy's rule."""
    wanted = integers(low, shape)
    return low.expand(x, np.broadcast_shapes(x.shape, tuple(wanted)))


@operator("Slice")
def slice_(
    low: Lowering,
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Every `step`-th element from `start` up to `end` along each of `axes`."""
    known_values(low, starts, ends, axes, steps)
    firsts, stops = integers(low, starts), integers(low, ends)
    places = list(range(len(firsts))) if axes is None else integers(low, axes)
    strides = [1] * len(firsts) if steps is None else integers(low, steps)
    if not len(firsts) == len(stops) == len(places) == len(strides):
        raise ValueError(f"{len(firsts)} starts, {len(stops)} ends, {len(places)} axes, {len(strides)} steps")
    chosen = {positive_axis(axis, x.rank) for axis in places}
    if len(chosen) != len(places) or 0 in strides:
        raise ValueError(f"axes {places} with steps {strides} are no slice")
    for axis, start, stop, step in zip(places, firsts, stops, strides, strict=True):
        place = positive_axis(axis, x.rank)
        found = range(*slice(start, stop, step).indices(x.shape[place]))
        x = sliced(low, x, place, found)
    return x


@operator("Split")
def split(low: Lowering, call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    """Parts one after the other along `axis`: of the sizes given, or as equal as they can be."""
    axis = call.axis(x.rank)
    length = x.shape[axis]
    if sizes is not None:
        parts = integers(low, sizes)
    else:
        number = int(call.get("num_outputs", len(call.outputs)))
        most = -(-length // number)
        parts = [max(min(most, length - most * index), 0) for index in range(number)]
    if sum(parts) != length or len(parts) != len(call.outputs) or min(parts) < 0:
        raise ValueError(f"a dimension of {length} has no {len(call.outputs)} parts of sizes {parts}")
    ends = np.cumsum(parts).tolist()
    return [sliced(low, x, axis, range(end - part, end)) for part, end in zip(parts, ends, strict=True)]


@operator("DepthToSpace")
def depth_to_space(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """(N, C·b·b, H, W) as (N, C, H·b, W·b)."""
    block = int(call.get("blocksize"))
    n, channels, height, width = _of_rank(x, 4)
    if block < 1 or channels % (block * block):
        raise ValueError(f"{channels} channels are not blocks of {block} by {block}")
    rest = channels // (block * block)
    if call.get("mode", "DCR") == "DCR":
        parts = low.permute(low.reshape(x, [n, block, block, rest, height, width]), [0, 3, 4, 1, 5, 2])
    else:
        parts = low.permute(low.reshape(x, [n, rest, block, block, height, width]), [0, 1, 4, 2, 5, 3])
    return low.reshape(parts, [n, rest, height * block, width * block])


@operator("SpaceToDepth")
def space_to_depth(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """(N, C, H·b, W·b) as (N, C·b·b, H, W)."""
    block = int(call.get("blocksize"))
    n, channels, height, width = _of_rank(x, 4)
    if block < 1 or height % block or width % block:
        raise ValueError(f"{height} by {width} are not blocks of {block} by {block}")
    height, width = height // block, width // block
    parts = low.reshape(x, [n, channels, height, block, width, block])
    order = [0, 3, 5, 1, 2, 4] if call.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return low.reshape(low.permute(parts, order), [n, channels * block * block, height, width])


def integers(low: Lowering, given: Tensor) -> list[int]:
    """Return the numbers of an input that must be known while lowering."""
    (values,) = known_values(low, given)
    assert values is not None
    return [int(each) for each in values.ravel()]


def sliced(low: Lowering, x: Tensor, axis: int, places: range) -> Tensor:
    """Return the elements at `places` of one dimension, without a copy."""
    if places == range(x.shape[axis]):
        return x
    x = low.need(x)
    shape, strides = list(x.shape), list(x.strides)
    shape[axis] = len(places)
    strides[axis] *= places.step
    offset = x.offset + (places.start * x.strides[axis] if len(places) else 0)
    seen = x.view(shape, strides, offset)
    if x.value is not None:
        stop = places.stop if places.stop >= 0 else None
        chosen = slice(places.start, stop if len(places) else places.start, places.step)
        seen.value = x.value[(slice(None),) * axis + (chosen,)]
    return seen


def _of_rank(x: Tensor, rank: int) -> Sequence[int]:
    if x.rank != rank:
        raise ValueError(f"a tensor of {x.rank} dimensions instead of {rank}")
    return x.shape
