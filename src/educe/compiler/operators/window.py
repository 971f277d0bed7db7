"""`Window`: where a kernel that slides over an input lies for each output pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.operators.base import Call
from educe.compiler.tensor import Tensor, channels_last, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

OUTSIDE = -(1 << 40)
"""The offset of what lies outside the input; its sum with any offset inside is negative, too."""

MAX_VECTORS = 8
"""Vectors of channels that a kernel may read behind the last whole one of a row."""

MAX_TABLE = 1 << 26
"""Entries of a window's tables."""


@dataclass(frozen=True)
class Window:
    """A kernel that slides over the spatial dimensions, given by one number for each of them.

    Attributes:
        sizes: The input's.
        kernel: Taps.
        strides: Steps between output pixels.
        dilations: Steps between taps.
        begins: What is added before the input.
        outputs: The output's sizes.
        is_transposed: Whether the kernel slides over the output instead: `strides` are then steps between
            input pixels.
    """

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    outputs: tuple[int, ...]
    is_transposed: bool = False

    @property
    def num_taps(self) -> int:
        """Taps of the whole kernel."""
        return math.prod(self.kernel)

    @property
    def line_taps(self) -> int:
        """Taps of all dimensions but the last."""
        return math.prod(self.kernel[:-1])

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel sees the input pixel of the same place and no other."""
        return (
            self.num_taps == 1
            and all(stride == 1 for stride in self.strides)
            and self.sizes == self.outputs
            and not any(self.begins)
        )

    def positions(self, axis: int) -> np.ndarray:
        """Return the place along `axis` that each output pixel's taps see, -1 where it is outside."""
        outputs = np.arange(self.outputs[axis], dtype=np.int64)[:, None]
        taps = np.arange(self.kernel[axis], dtype=np.int64)[None, :] * self.dilations[axis]
        if self.is_transposed:
            scaled = outputs + self.begins[axis] - taps
            places = np.where(scaled % self.strides[axis] == 0, scaled // self.strides[axis], -1)
        else:
            places = outputs * self.strides[axis] - self.begins[axis] + taps
        inside = (places >= 0) & (places < self.sizes[axis])
        return np.where(inside, places, -1)

    def columns(self, stride: int) -> np.ndarray:
        """Return the offsets of the last dimension's taps, [columns, taps]."""
        places = self.positions(len(self.sizes) - 1)
        return np.where(places < 0, OUTSIDE, places * stride)

    def lines(self, batch: int, strides: Sequence[int]) -> np.ndarray:
        """Return the offsets of all other dimensions' taps, [lines, taps].

        Args:
            batch: The input's first size.
            strides: Of the batch, and of all spatial dimensions but the last.
        """
        offsets = np.arange(batch, dtype=np.int64)[:, None] * strides[0]
        for axis, stride in enumerate(strides[1:]):
            places = self.positions(axis)
            own = np.where(places < 0, OUTSIDE, places * stride)
            whole = offsets[:, None, :, None] + own[None, :, None, :]
            whole = np.where((offsets[:, None, :, None] < 0) | (own[None, :, None, :] < 0), OUTSIDE, whole)
            offsets = whole.reshape(whole.shape[0] * whole.shape[1], -1)
        return offsets

    def tables(self, low: Lowering, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the constants `lines` and `columns` for the input `x`."""
        outer = (x.strides[0], *x.strides[2:-1])
        batch = x.shape[0]
        entries = batch * math.prod(self.outputs[:-1]) * self.line_taps + self.outputs[-1] * self.kernel[-1]
        if entries > MAX_TABLE:
            raise ValueError(f"a window of {list(self.kernel)} over {list(self.sizes)} is too large")
        return (
            shared(low, ("lines", self, batch, outer), lambda: self.lines(batch, outer)),
            shared(low, ("columns", self, x.strides[-1]), lambda: self.columns(x.strides[-1])),
        )


def shared(low: Lowering, key: tuple[object, ...], make: Callable[[], np.ndarray]) -> Tensor:
    """Return the constant under `key`, which all nodes share."""
    return low.constant(low.constants.made(key, make))


def filled_row(low: Lowering, x: Tensor, value: float | int | bool) -> Tensor:
    """Return what a tap outside of `x` sees: `value` in every channel."""
    count = x.shape[1] + MAX_VECTORS * low.target.lanes
    dtype = dtype_of(x.kind)
    return shared(low, ("filled", dtype.name, count, str(value)), lambda: np.full(count, value, dtype))


def with_channels_last(low: Lowering, x: Tensor) -> Tensor:
    """Return `x` in memory with its channels next to each other, copied if they are not."""
    if x.lazy is None:
        is_suitable = (x.shape[1] == 1 or x.strides[1] == 1) and min(x.strides, default=0) >= 0
        if is_suitable:
            return x
    return low.with_strides(x, channels_last(x.shape))


def window_of(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], *, ceil: bool = False
) -> Window:
    """Return the window that a node's attributes describe.

    Args:
        call: A convolution or pooling.
        sizes: The input's spatial sizes.
        kernel: The kernel's spatial sizes.
        ceil: Whether a window that lies partly behind the padded input counts.

    Raises:
        ValueError: the attributes do not fit the sizes.
    """
    rank = len(sizes)
    strides = _list(call, "strides", rank, 1)
    dilations = _list(call, "dilations", rank, 1)
    pads = _list(call, "pads", 2 * rank, 0)
    auto = call.get("auto_pad", "NOTSET") or "NOTSET"
    if len(kernel) != rank or min((*kernel, *strides, *dilations), default=1) < 1:
        raise ValueError(f"a kernel of {list(kernel)} does not slide over {list(sizes)}")
    begins, outputs = [], []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        begin, end = pads[axis], pads[rank + axis]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            size = -(-sizes[axis] // strides[axis])
            whole = max((size - 1) * strides[axis] + extent - sizes[axis], 0)
            begin = whole // 2 if auto == "SAME_UPPER" else -(-whole // 2)
            end = whole - begin
        elif auto == "VALID":
            begin = end = 0
        free = sizes[axis] + begin + end - extent
        count = (-(-free // strides[axis]) if ceil else free // strides[axis]) + 1
        if ceil and (count - 1) * strides[axis] >= sizes[axis] + begin:
            count -= 1
        begins.append(begin)
        outputs.append(max(count, 0))
    return Window(
        tuple(sizes), tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(outputs)
    )


def _list(call: Call, name: str, length: int, default: int) -> list[int]:
    values = call.get(name)
    if values is None:
        return [default] * length
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} numbers, not {length}")
    return [int(value) for value in values]


__all__ = ["OUTSIDE", "Window", "filled_row", "shared", "window_of", "with_channels_last"]
