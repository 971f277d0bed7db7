"""Operators that move elements: most only see the same memory in another way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.operators.base import Call, known_values, operator, positive_axis
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("Reshape")
def reshape(low: Lowering, call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """The same elements in another shape; 0 keeps a size unless `allowzero`, -1 is what is left."""
    (wanted,) = known_values(low, shape)
    assert wanted is not None
    sizes = [int(size) for size in wanted]
    if not call.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = x.size // rest if rest else 0
    if math.prod(sizes) != x.size:
        raise ValueError(f"a tensor of shape {list(x.shape)} has no shape {sizes}")
    return low.reshape(x, sizes)


@operator("Transpose")
def transpose(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The same memory with its dimensions in another order."""
    order = [int(axis) for axis in call.get("perm", range(x.rank)[::-1])]
    return low.permute(x, order)


@operator("Flatten")
def flatten(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Two dimensions: those before `axis`, and the others."""
    axis = int(call.get("axis", 1))
    axis = axis + x.rank if axis < 0 else axis
    return low.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@operator("Shape")
def shape(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The sizes, which are known while lowering."""
    start, end = int(call.get("start", 0)), call.get("end")
    return low.constant(np.array(x.shape[start : None if end is None else int(end)], np.int64))


@operator("Unsqueeze")
def unsqueeze(low: Lowering, call: Call, x: Tensor, axes: Tensor) -> Tensor:
    """With dimensions of size 1 inserted."""
    (places,) = known_values(low, axes)
    assert places is not None
    rank = x.rank + places.size
    chosen = {positive_axis(int(axis), rank) for axis in places}
    rest = iter(x.shape)
    return low.reshape(x, [1 if axis in chosen else next(rest) for axis in range(rank)])
