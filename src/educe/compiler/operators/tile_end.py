"""What the end of a tile reads and writes: channels side by side, and uniform steps from pixel to pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from educe.compiler.emit import Kind
from educe.compiler.kernels.scalars import Expression
from educe.compiler.lowering import Product
from educe.compiler.tensor import Tensor, broadcast_strides, channels_last, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

Launch: TypeAlias = Callable[[Expression, Sequence[Tensor], Tensor], None]


def waiting(kind: Kind, shape: Sequence[int], launch: Launch) -> Tensor:
    """Return the tensor that `launch` makes as soon as what follows it is known."""
    shape = tuple(shape)
    return Tensor(kind, shape, channels_last(shape), lazy=Product(launch, accepts, accepts))


def launch_aside(
    low: Lowering, launch: Launch, expression: Expression, operands: Sequence[Tensor], out: Tensor
) -> bool:
    """Launch into other memory and copy, if tiles cannot write `out`; say whether nothing is left to do."""
    if out.size == 0:
        return True
    seen = [broadcast(each, out.shape) for each in operands]
    if accepts(out) and all(accepts(each) for each in seen):
        return False
    strides = channels_last(out.shape)
    whole = low.empty(out.kind, out.shape, strides)
    launch(expression, [each if accepts(each) else low.with_strides(each, strides) for each in seen], whole)
    low.copy(whole, out)
    return True


def packed_bias(
    low: Lowering, bias: Tensor | None, kind: Kind, channels: int, groups: int, panel: int
) -> Tensor:
    """Return where the sums of each panel start, [group][panel][channel of the panel]."""
    whole = -(-channels // panel) * panel
    if bias is None:
        dtype = dtype_of(kind)
        return low.shared(("zeros", dtype.name, groups * whole), lambda: np.zeros(groups * whole, dtype))

    def make(value: np.ndarray) -> np.ndarray:
        padded = np.zeros((groups, whole), value.dtype)
        padded[:, :channels] = value.reshape(groups, channels)
        return padded

    if bias.value is not None:
        return low.derived(bias, ("packed", groups, panel), make)
    packed = low.empty(bias.kind, (groups, whole))
    low.copy(low.reshape(bias, (groups, channels)), packed.view((groups, channels), packed.strides))
    return packed


def pixel_strides(x: Tensor) -> tuple[int, int]:
    """Return the strides of a line and of a column, a line being all pixels of the last dimension."""
    found = _uniform([x.shape[0], *x.shape[2:-1]], [x.strides[0], *x.strides[2:-1]])
    assert found is not None
    return found, x.strides[-1]


def broadcast(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the same memory seen with a shape that `x` broadcasts to."""
    return x.view(shape, broadcast_strides(x.shape, x.strides, shape))


def access_of(x: Tensor) -> str:
    """Return how an operand is read along the channels."""
    return "dense" if x.strides[1] == 1 or x.shape[1] == 1 else "same"


def accepts(x: Tensor) -> bool:
    """Say whether the end of a tile can read `x`: by uniform steps from line to line."""
    lines = _uniform([x.shape[0], *x.shape[2:-1]], [x.strides[0], *x.strides[2:-1]])
    return lines is not None and (x.shape[1] == 1 or x.strides[1] in (0, 1))


def flat_stride(x: Tensor) -> int | None:
    """Return the one step from each pixel to the next, or None if there is none such."""
    return _uniform([x.shape[0], *x.shape[2:]], [x.strides[0], *x.strides[2:]])


def _uniform(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the one stride that walks through dimensions of `sizes`, or None."""
    step, count = None, 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if step is not None and stride != step * count:
            return None
        step = stride if step is None else step
        count *= size
    return 0 if step is None else step
