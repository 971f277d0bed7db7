"""Convolutions: they stay products until the expression that ends them is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, F64, Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.scalars import Expression
from educe.compiler.lowering import Product
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.window import Window, filled_row, shared, window_of, with_channels_last
from educe.compiler.tensor import Tensor, broadcast_strides, channels_last, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering
    from educe.compiler.target import Target

_MAX_RANK = 3
_UNITS = 16
"""Units of work that a convolution is cut into at least, if it can be."""


@dataclass(frozen=True)
class _Tile:
    """A register tile, and the share of the machine's peak that it reaches."""

    rows: int
    vectors: int
    speed: float


_WIDE = (
    _Tile(12, 1, 0.7), _Tile(12, 2, 0.95), _Tile(9, 3, 1.0), _Tile(8, 3, 0.98), _Tile(7, 3, 0.95),
    _Tile(6, 4, 0.97), _Tile(5, 5, 0.95), _Tile(1, 8, 0.3),
)  # fmt: skip
_NARROW = (_Tile(6, 1, 0.8), _Tile(6, 2, 1.0), _Tile(4, 3, 1.0), _Tile(1, 6, 0.3))


@operator("Conv")
def conv(low: Lowering, call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The sum of the products of a kernel's taps and channels with what they see of the input."""
    window, groups = _checked(call, x, w)
    if bias is not None and bias.shape != (w.shape[0],):
        raise ValueError(f"a bias of shape {list(bias.shape)} for {w.shape[0]} channels")
    if x.kind not in (F32, F64):
        if not x.kind.is_float:
            raise NotCompiled
        wide = [each if each is None else low.apply("Cast", each, to="f32") for each in (x, w, bias)]
        return low.apply("Cast", _product(low, wide[0], wide[1], wide[2], window, groups), to=x.kind.name)
    return _product(low, x, w, bias, window, groups)


def _checked(call: Call, x: Tensor, w: Tensor) -> tuple[Window, int]:
    """Return window and groups of a convolution.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    groups = int(call.get("group", 1))
    if x.rank < 3 or w.rank != x.rank:  # noqa: PLR2004
        raise ValueError(f"an input of {x.rank} dimensions with weights of {w.rank}")
    if x.rank > 2 + _MAX_RANK:
        raise NotCompiled
    if groups < 1 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"{x.shape[1]} channels and weights of shape {list(w.shape)} in {groups} groups")
    kernel = call.get("kernel_shape")
    if kernel is not None and tuple(kernel) != w.shape[2:]:
        raise ValueError(f"kernel_shape is {list(kernel)}, the weights have {list(w.shape[2:])}")
    return window_of(call, x.shape[2:], w.shape[2:]), groups


def _product(
    low: Lowering, x: Tensor, w: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """Return the convolution as a product that is launched when its end is known."""
    shape = (x.shape[0], w.shape[0], *window.outputs)
    x = with_channels_last(low, x)
    if groups == w.shape[0] and w.shape[1] == 1:
        return Sliding(low, x, window, "dot", low.need(w), bias).product()
    convolution = _Convolution(low, x, low.need(w), bias, window, groups)
    return Tensor(x.kind, shape, channels_last(shape), lazy=Product(convolution.launch, accepts))


@dataclass(frozen=True, eq=False)
class Sliding:
    """A window that waits for its end, in which channels do not meet: depthwise convolution or pooling.

    Attributes:
        low: Where it is launched.
        x: The input, its channels last.
        window: What each output pixel sees.
        reduction: ``dot`` with the weights, ``sum`` or ``max``.
        w: The weights of ``dot``.
        bias: What is added to its sums.
        outside: What is seen outside of the input.
    """

    low: Lowering
    x: Tensor
    window: Window
    reduction: str
    w: Tensor | None = None
    bias: Tensor | None = None
    outside: float | int | bool = 0

    def product(self) -> Tensor:
        """Return the result, which is launched when its end is known."""
        shape = (*self.x.shape[:2], *self.window.outputs)
        return Tensor(self.x.kind, shape, channels_last(shape), lazy=Product(self.launch, accepts))

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        if out.size == 0:
            return
        if not accepts(out) or 0 in out.strides:
            whole = self.low.empty(out.kind, out.shape, channels_last(out.shape))
            self.launch(expression, operands, whole)
            self.low.copy(whole, out)
            return
        low, window, kind = self.low, self.window, self.x.kind
        operands = [broadcast(each, out.shape) for each in operands]
        channels, width = out.shape[1], window.outputs[-1]
        rows, vectors = _sliding_tile(low.target, channels, width, self.reduction)
        panel = vectors * low.target.lanes
        panels = -(-channels // panel)
        outside = filled_row(low, self.x, self.outside)
        start, packed = outside, outside
        if self.w is not None:
            start = packed_bias(low, self.bias, kind, channels, 1, panel)
            packed = packed_taps(low, self.w, panels * panel)
        tiles, lines = -(-width // rows), out.shape[0] * math.prod(window.outputs[:-1])
        parts = max(1, min(panels, _UNITS // (tiles * lines)))
        part = -(-panels // parts)
        low.launch(
            Kernel.of(
                "window",
                kind=kind,
                tile=(rows, vectors),
                reduction=self.reduction,
                expression=expression,
                access=tuple(access_of(each) for each in operands),
            ),
            outputs=[out],
            inputs=[self.x, packed, start, *window.tables(low, self.x), outside, *operands],
            sizes=[
                *(width, tiles, -(-panels // part), part * panel, channels, panels * panel),
                *(window.line_taps, window.kernel[-1]),
                *(stride for each in (out, *operands) for stride in pixel_strides(each)),
            ],
            extent=lines * tiles * -(-panels // part),
            flops=2 * out.size * window.num_taps + expression.flops * out.size,
            bytes=sum(each.size * each.kind.size_bytes for each in (self.x, out, packed, *operands)),
            scratch_bytes=8 * rows * window.num_taps,
        )


def _sliding_tile(target: Target, channels: int, width: int, reduction: str) -> tuple[int, int]:
    """Return the pixels and vectors that are reduced in registers together, for the least loads."""
    vectors = -(-channels // target.lanes)
    most = target.registers * 3 // (8 if reduction == "sum" else 4)

    def cost(tile: tuple[int, int]) -> float:
        r, v = tile
        loads = r * (v + 1) + v
        return -(-width // r) * -(-vectors // v) * (loads + 4)

    return min(((r, v) for r in range(1, 9) for v in (1, 2, 3, 4, 8) if r * v <= most), key=cost)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution that waits for its end."""

    low: Lowering
    x: Tensor
    w: Tensor
    bias: Tensor | None
    window: Window
    groups: int

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        if out.size == 0:
            return
        if not accepts(out) or 0 in out.strides:
            whole = self.low.empty(out.kind, out.shape, channels_last(out.shape))
            self.launch(expression, operands, whole)
            self.low.copy(whole, out)
            return
        low, window, kind = self.low, self.window, self.x.kind
        channels, depth = self.w.shape[0] // self.groups, self.w.shape[1]
        pixels = out.shape[0] * math.prod(window.outputs)
        operands = [broadcast(each, out.shape) for each in operands]
        written = (out, *operands)
        step, *flat = (flat_stride(each) for each in (self.x, *written))
        is_flat = window.is_pointwise and step is not None and None not in flat
        steps = [(0, each) for each in flat] if is_flat else [pixel_strides(each) for each in written]
        tile = _tile(low.target, channels, pixels)
        panel = tile.vectors * low.target.lanes
        panels = -(-channels // panel) * self.groups
        packed = packed_weights(low, self.w, self.groups, panel)
        start = packed_bias(low, self.bias, kind, channels, self.groups, panel)
        lines, columns = (packed, packed) if is_flat else window.tables(low, self.x)
        parts, part_pixels = _parts(low.target, pixels, tile, panels, self.x.size * kind.size_bytes)
        low.launch(
            Kernel.of(
                "convolution",
                kind=kind,
                tile=(tile.rows, tile.vectors),
                has_taps=not is_flat,
                expression=expression,
                access=tuple(access_of(each) for each in operands),
            ),
            outputs=[out],
            inputs=[self.x, packed, start, lines, columns, filled_row(low, self.x, 0), *operands],
            sizes=[
                *(pixels, pixels if is_flat else window.outputs[-1], part_pixels, parts),
                *(panels // self.groups, self.groups, depth, channels),
                *(window.line_taps, window.kernel[-1], step if is_flat else 0),
                *(stride for each in steps for stride in each),
            ],
            extent=-(-pixels // (parts * part_pixels)) * parts * panels,
            flops=2 * out.size * window.num_taps * depth + expression.flops * out.size,
            bytes=sum(each.size * each.kind.size_bytes for each in (self.x, out, packed, *operands)),
        )


def _tile(target: Target, channels: int, pixels: int) -> _Tile:
    """Return the register tile that does `channels` of `pixels` in the least time."""
    vectors = -(-channels // target.lanes)

    def cost(tile: _Tile) -> float:
        done = -(-pixels // tile.rows) * tile.rows * -(-vectors // tile.vectors) * tile.vectors
        return done / tile.speed

    return min(_WIDE if target.registers >= 32 else _NARROW, key=cost)  # noqa: PLR2004


def _parts(target: Target, pixels: int, tile: _Tile, panels: int, size_bytes: int) -> tuple[int, int]:
    """Return the parts of a block of pixels, and the pixels of a part.

    The input of a block stays in the second cache while all panels pass; the parts of a block follow each
    other with the same panel. There are enough of them to keep threads busy.
    """
    tiles = -(-pixels // tile.rows)
    blocks = min(-(-2 * size_bytes // target.l2_bytes) or 1, tiles)
    parts = max(1, min(-(-_UNITS // (blocks * panels)), tiles // blocks))
    return parts, -(-tiles // (blocks * parts)) * tile.rows


def packed_weights(low: Lowering, w: Tensor, groups: int, panel: int) -> Tensor:
    """Return weights in the order [group][panel][taps][input channel][channel of the panel]."""
    channels, depth = w.shape[0] // groups, w.shape[1]
    taps, panels = math.prod(w.shape[2:]), -(-channels // panel)
    shape = (groups, panels, taps, depth, panel)

    def make(value: np.ndarray) -> np.ndarray:
        packed = np.zeros((groups, panels * panel, depth, taps), value.dtype)
        packed[:, :channels] = value.reshape(groups, channels, depth, taps)
        return packed.reshape(groups, panels, panel, depth, taps).transpose(0, 1, 4, 3, 2)

    if w.value is not None:
        return low.derived(w, ("packed", groups, panel), make)
    packed = low.empty(w.kind, shape)
    given = low.reshape(w, (groups, channels, depth, taps))
    step, across = packed.strides, given.strides
    for first, count, times in ((0, panel, channels // panel), (channels // panel, channels % panel, 1)):
        if count and times:
            seen = (groups, times, taps, depth, count)
            from_ = (across[0], panel * across[1], across[3], across[2], across[1])
            low.copy(
                given.view(seen, from_, given.offset + first * panel * across[1]),
                packed.view(seen, step, first * step[1]),
            )
    return packed


def packed_taps(low: Lowering, w: Tensor, channels: int) -> Tensor:
    """Return the weights of a depthwise convolution in the order [taps][channel], up to `channels` of them."""
    given, taps = w.shape[0], math.prod(w.shape[2:])

    def make(value: np.ndarray) -> np.ndarray:
        return np.pad(value.reshape(given, taps).T, ((0, 0), (0, channels - given)))

    if w.value is not None:
        return low.derived(w, ("taps", channels), make)
    packed = low.empty(w.kind, (taps, channels))
    low.copy(low.permute(low.reshape(w, (given, taps)), (1, 0)), packed.view((taps, given), packed.strides))
    return packed


def packed_bias(
    low: Lowering, bias: Tensor | None, kind: Kind, channels: int, groups: int, panel: int
) -> Tensor:
    """Return where the sums of each panel start, [group][panel][channel of the panel]."""
    whole = -(-channels // panel) * panel
    if bias is None:
        dtype = dtype_of(kind)
        return shared(low, ("zeros", dtype.name, groups * whole), lambda: np.zeros(groups * whole, dtype))

    def make(value: np.ndarray) -> np.ndarray:
        return np.pad(value.reshape(groups, channels), ((0, 0), (0, whole - channels)))

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
