"""`Window`: where a kernel that slides over an input lies for each output pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class Window:
    """What each output pixel sees of an input.

    Attributes:
        sizes: The input's spatial sizes.
        places: For each spatial dimension the place that each output's taps see, [outputs, taps]; below 0 or
            from the size on, it is outside.
        ends: Where the padding of each dimension ends; the sizes if there is none.
    """

    sizes: tuple[int, ...]
    places: tuple[np.ndarray, ...]
    ends: tuple[int, ...] = ()

    @cached_property
    def key(self) -> tuple[object, ...]:
        """What tells windows apart."""
        return self.sizes, tuple((each.shape, each.tobytes()) for each in self.places)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The output's spatial sizes."""
        return tuple(each.shape[0] for each in self.places)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps in each dimension."""
        return tuple(each.shape[1] for each in self.places)

    @property
    def num_taps(self) -> int:
        """Taps of the whole kernel."""
        return math.prod(self.kernel)

    @property
    def line_taps(self) -> int:
        """Taps of all dimensions but the last."""
        return math.prod(self.kernel[:-1])

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether each output pixel sees the input pixel of the same place and no other."""
        return all(
            each.shape == (size, 1) and np.array_equal(each[:, 0], np.arange(size))
            for size, each in zip(self.sizes, self.places, strict=True)
        )

    @cached_property
    def column_step(self) -> int:
        """How far what the columns see lies apart, or 0 if that is not always the same."""
        columns = self.places[-1]
        if columns.shape[0] < 2 or columns.shape[1] == 0:
            return 1
        step = int(columns[1, 0] - columns[0, 0])
        affine = columns[:1] + np.arange(columns.shape[0])[:, None] * step
        is_rising = step > 0 and bool((np.diff(columns[0]) >= 0).all())
        return step if is_rising and np.array_equal(columns, affine) else 0

    def chosen(self, outputs: Sequence[slice], taps: Sequence[np.ndarray]) -> Window:
        """Return the window of some outputs and some taps, given for each dimension."""
        places = (each[some][:, few] for each, some, few in zip(self.places, outputs, taps, strict=True))
        return Window(self.sizes, tuple(np.ascontiguousarray(each) for each in places))

    def inside(self, axis: int) -> np.ndarray:
        """Return which places of a dimension are inside the input."""
        return (self.places[axis] >= 0) & (self.places[axis] < self.sizes[axis])

    def counts(self, *, with_padding: bool) -> np.ndarray:
        """Return how many taps of each output pixel see the input, or the padding too."""
        total = np.ones((), np.int64)
        for axis, each in enumerate(self.places):
            counted = each < self.ends[axis] if with_padding else self.inside(axis)
            total = total[..., None] * counted.sum(axis=1)
        return total

    def tables(self, low: Lowering, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the constants `lines` and `columns` for the input `x`: offsets, [outputs, taps]."""
        outer = (x.strides[0], *x.strides[2:-1])
        batch = x.shape[0]
        lines, columns = batch * math.prod(self.outputs[:-1]), self.outputs[-1]
        if lines * self.line_taps + columns * self.kernel[-1] > MAX_TABLE:
            raise ValueError(f"a window of {list(self.kernel)} over {list(self.sizes)} is too large")
        return (
            low.shared(("lines", self.key, batch, outer), lambda: self._lines(batch, outer)),
            low.shared(("columns", self.key, x.strides[-1]), lambda: self._offsets(-1, x.strides[-1])),
        )

    def _offsets(self, axis: int, stride: int) -> np.ndarray:
        return np.where(self.inside(axis), self.places[axis] * stride, OUTSIDE)

    def _lines(self, batch: int, strides: Sequence[int]) -> np.ndarray:
        """Return the offsets of all dimensions but the last, of which `strides` are, the batch first."""
        offsets = np.arange(batch, dtype=np.int64)[:, None] * strides[0]
        for axis, stride in enumerate(strides[1:]):
            a, b = offsets[:, None, :, None], self._offsets(axis, stride)[None, :, None, :]
            whole = np.where((a < 0) | (b < 0), OUTSIDE, a + b)
            offsets = whole.reshape(whole.shape[0] * whole.shape[1], whole.shape[2] * whole.shape[3])
        return offsets


def filled_row(low: Lowering, x: Tensor, value: float | int | bool) -> Tensor:
    """Return what a tap outside of `x` sees: `value` in every channel."""
    count = x.shape[1] + MAX_VECTORS * low.target.lanes
    dtype = dtype_of(x.kind)
    return low.shared(("filled", dtype.name, count, str(value)), lambda: np.full(count, value, dtype))


def with_channels_last(low: Lowering, x: Tensor) -> Tensor:
    """Return `x` in memory with its channels next to each other, copied if they are not."""
    if x.lazy is None and (x.shape[1] == 1 or x.strides[1] == 1) and min(x.strides) >= 0:
        return x
    return low.with_strides(x, channels_last(x.shape))


def window_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """Return the window that a node's attributes describe.

    Args:
        call: A convolution or pooling.
        sizes: The input's spatial sizes.
        kernel: The kernel's spatial sizes.

    Raises:
        ValueError: the attributes do not fit the sizes.
    """
    rank = len(sizes)
    strides, dilations, pads = (
        numbers(call, "strides", rank, 1),
        numbers(call, "dilations", rank, 1),
        (numbers(call, "pads", 2 * rank, 0)),
    )
    check_kernel(sizes, kernel, strides, dilations)
    auto, is_ceil = call.get("auto_pad", "NOTSET"), bool(call.get("ceil_mode", 0))
    places, ends = [], []
    for axis, (size, taps, stride, step) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        extent = (taps - 1) * step + 1
        begin, end = pads[axis], pads[rank + axis]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            whole = max((-(-size // stride) - 1) * stride + extent - size, 0)
            begin = whole // 2 if auto == "SAME_UPPER" else -(-whole // 2)
            end = whole - begin
        elif auto == "VALID":
            begin = end = 0
        free = size + begin + end - extent
        count = (-(-free // stride) if is_ceil else free // stride) + 1
        if is_ceil and (count - 1) * stride >= size + begin:
            count -= 1
        check_table(max(count, 1), taps)
        places.append(np.arange(max(count, 0))[:, None] * stride - begin + np.arange(taps)[None, :] * step)
        ends.append(size + end)
    return Window(tuple(sizes), tuple(places), tuple(ends))


def transposed_window(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """Return the window of a transposed convolution: what each output pixel receives from.

    Raises:
        ValueError: the attributes do not fit the sizes.
    """
    rank = len(sizes)
    strides, dilations = numbers(call, "strides", rank, 1), numbers(call, "dilations", rank, 1)
    pads, more = numbers(call, "pads", 2 * rank, 0), numbers(call, "output_padding", rank, 0)
    check_kernel(sizes, kernel, strides, dilations)
    auto, shape = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    shape = None if shape is None else [int(size) for size in shape][-rank:]
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    places = []
    for axis, (size, taps, stride, step) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        whole = stride * (size - 1) + more[axis] + (taps - 1) * step + 1
        begin = pads[axis]
        count = whole - begin - pads[rank + axis]
        if shape is not None:
            total = max(whole - shape[axis], 0)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
            count = shape[axis]
        elif auto == "VALID":
            begin, count = 0, whole
        check_table(max(count, 1), taps)
        sent = np.arange(max(count, 0))[:, None] + begin - np.arange(taps)[None, :] * step
        seen = sent // stride
        places.append(np.where(sent % stride == 0, seen, -1))
    return Window(tuple(sizes), tuple(places))


def check_table(outputs: int, taps: int) -> None:
    """Raise ValueError if a dimension of so many outputs and taps has too large a table of places."""
    if outputs * taps > MAX_TABLE:
        raise ValueError(f"{outputs} places that a kernel of {taps} slides to are too many")


def check_kernel(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> None:
    """Raise ValueError unless a kernel can slide over `sizes`."""
    if len(kernel) != len(sizes) or min((*kernel, *strides, *dilations), default=1) < 1:
        raise ValueError(
            f"a kernel of {list(kernel)} with strides {list(strides)} and dilations {list(dilations)} "
            f"does not slide over {list(sizes)}"
        )


def numbers(call: Call, name: str, length: int, default: int) -> list[int]:
    """Return an attribute of `length` numbers, all of them `default` where the node has none such.

    Raises:
        ValueError: it has another length.
    """
    values = call.get(name)
    if values is None:
        return [default] * length
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} numbers, not {length}")
    return [int(value) for value in values]
