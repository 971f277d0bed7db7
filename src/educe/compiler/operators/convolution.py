"""Convolutions: they stay products until the expression that ends them is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, F64, Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.scalars import Expression
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.movement import sliced
from educe.compiler.operators.sliding import Sliding
from educe.compiler.operators.tile_end import (
    access_of,
    broadcast,
    flat_stride,
    launch_aside,
    packed_bias,
    pixel_strides,
    waiting,
)
from educe.compiler.operators.window import (
    Window,
    filled_row,
    numbers,
    transposed_window,
    window_of,
    with_channels_last,
)
from educe.compiler.tensor import Tensor, channels_last, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering
    from educe.compiler.target import Target

_MAX_RANK = 3
_FEW_CHANNELS = 4
"""Channels up to which the taps of a line are merged with them."""

_LATER = 7
"""Which of the kernel's pointers is to weights that are needed later."""

_MAX_PHASES = 1024
_UNITS = 16
"""Units of work that a convolution is cut into at least, if it can be."""


@dataclass(frozen=True)
class _Tile:
    """A register tile, and the share of the machine's peak that it reaches."""

    rows: int
    vectors: int
    speed: float


_WIDE = (
    *(_Tile(rows, 1, 0.7) for rows in (14, 12)),
    *(_Tile(rows, 2, 0.96) for rows in (14, 12, 10)),
    *(_Tile(rows, 3, 1.0) for rows in (9, 8, 7)),
    *(_Tile(6, 4, 0.98), _Tile(5, 5, 0.75), _Tile(1, 8, 0.3)),
)
_NARROW = (_Tile(6, 1, 0.8), _Tile(6, 2, 1.0), _Tile(4, 3, 1.0), _Tile(1, 6, 0.3))


@operator("Conv")
def conv(low: Lowering, call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The sum of the products of a kernel's taps and channels with what they see of the input."""
    groups = checked(call, x, w, w.shape[1] if w.rank > 1 else 0, w.shape[0])
    check_bias(bias, w.shape[0])
    window = window_of(call, x.shape[2:], w.shape[2:])
    kind = x.kind
    x, w, bias = _as_computed(low, x, w, bias)
    if groups == 1 and is_mergeable(x, window):
        zero = low.shared(("zero", x.kind.name), lambda: np.zeros((), dtype_of(x.kind)))
        x, w, window = merged(low, x, w, window, zero)
    return _narrow(
        low, _Convolution(low, with_channels_last(low, x), low.need(w), bias, window, groups), kind
    )


def is_mergeable(x: Tensor, window: Window) -> bool:
    """Say whether the channels are few, and the taps of a line see pixels next to each other."""
    columns = window.places[-1]
    if x.shape[1] > _FEW_CHANNELS or window.num_taps == 1 or not x.size:
        return False
    return columns.size > 0 and columns.shape[1] > 1 and bool((np.diff(columns, axis=1) == 1).all())


def merged(
    low: Lowering, x: Tensor, w: Tensor, window: Window, outside: Tensor
) -> tuple[Tensor, Tensor, Window]:
    """Return the same convolution with the taps of a line as channels, over a padded copy of the input.

    The channels of pixels next to each other are one run of memory, so that few channels make long sums.
    """
    before = [max(0, -int(each.min())) for each in window.places]
    sizes = [
        begin + max(size, int(each.max()) + 1)
        for begin, size, each in zip(before, window.sizes, window.places, strict=True)
    ]
    shape = (*x.shape[:2], *sizes)
    whole = low.empty(x.kind, shape, channels_last(shape))
    inner = whole
    for axis, (begin, size) in enumerate(zip(before, window.sizes, strict=True)):
        for part in (range(begin), range(begin + size, sizes[axis])):
            if part:
                border = sliced(low, whole, 2 + axis, part)
                low.copy(low.expand(outside, border.shape), border)
        inner = sliced(low, inner, 2 + axis, range(begin, begin + size))
    low.copy(x, inner)
    taps = window.kernel[-1]
    seen = whole.view((shape[0], taps * shape[1], *sizes), whole.strides)
    order = (0, w.rank - 1, *range(1, w.rank - 1))
    weights = low.reshape(low.permute(w, order), (w.shape[0], taps * shape[1], *w.shape[2:-1], 1))
    places = [each + begin for each, begin in zip(window.places, before, strict=True)]
    return seen, weights, Window(tuple(sizes), (*places[:-1], np.ascontiguousarray(places[-1][:, :1])))


def _as_computed(
    low: Lowering, x: Tensor, w: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in f32 if they are narrower floats; `NotCompiled` for those that are no floats."""
    if not x.kind.is_float:
        raise NotCompiled
    if x.kind in (F32, F64):
        return x, w, bias
    return _in_f32(low, x), _in_f32(low, w), None if bias is None else _in_f32(low, bias)


@operator("ConvTranspose")
def conv_transpose(low: Lowering, call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The sum of what each input pixel sends to the output through a kernel's taps and channels."""
    groups = int(call.get("group", 1))
    channels = w.shape[1] * groups if w.rank > 1 else 0
    checked(call, x, w, w.shape[0] // max(groups, 1), channels)
    check_bias(bias, channels)
    window = transposed_window(call, x.shape[2:], w.shape[2:])
    kind = x.kind
    x, w, bias = _as_computed(low, x, w, bias)
    strides = numbers(call, "strides", x.rank - 2, 1)
    if math.prod(strides) > _MAX_PHASES:
        raise NotCompiled
    return _narrow(
        low,
        _Transposed(low, with_channels_last(low, x), low.need(w), bias, window, groups, tuple(strides)),
        kind,
    )


def checked(call: Call, x: Tensor, w: Tensor, depth: int, channels: int) -> int:
    """Return the groups of a convolution from `depth` channels a group to `channels` in all.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    groups = int(call.get("group", 1))
    if x.rank < 3 or w.rank != x.rank:
        raise ValueError(f"an input of {x.rank} dimensions with weights of {w.rank}")
    if x.rank > 2 + _MAX_RANK:
        raise NotCompiled
    if groups < 1 or x.shape[1] != depth * groups or channels % groups:
        raise ValueError(f"{x.shape[1]} channels and weights of shape {list(w.shape)} in {groups} groups")
    kernel = call.get("kernel_shape")
    if kernel is not None and tuple(kernel) != w.shape[2:]:
        raise ValueError(f"kernel_shape is {list(kernel)}, the weights have {list(w.shape[2:])}")
    return groups


def check_bias(bias: Tensor | None, channels: int) -> None:
    """Raise ValueError unless a bias has one number for each channel."""
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"a bias of shape {list(bias.shape)} for {channels} channels")


def _in_f32(low: Lowering, x: Tensor) -> Tensor:
    if x.value is not None:
        return low.derived(x, ("cast", "f32"), lambda value: value.astype(np.float32))
    return low.apply("Cast", x, to="f32")


def _narrow(low: Lowering, begun: _Convolution | _Transposed, kind: Kind) -> Tensor:
    """Return the result of a convolution as `kind`."""
    x, window = begun.x, begun.window
    shape = (x.shape[0], begun.channels, *window.outputs)
    result = waiting(x.kind, shape, begun.launch)
    return result if x.kind is kind else low.apply("Cast", result, to=kind.name)


@dataclass(frozen=True, eq=False)
class _Transposed:
    """A transposed convolution that waits for its end.

    Outputs that lie the same distance behind a multiple of the strides receive from the same taps: they are
    one convolution of their own, a phase.
    """

    low: Lowering
    x: Tensor
    w: Tensor
    bias: Tensor | None
    window: Window
    groups: int
    strides: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.w.shape[1] * self.groups

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        operands = [broadcast(each, out.shape) for each in operands]
        for phase in itertools.product(*(range(stride) for stride in self.strides)):
            outputs = [slice(first, None, step) for first, step in zip(phase, self.strides, strict=True)]
            taps = [np.flatnonzero(self.window.inside(d)[some].any(axis=0)) for d, some in enumerate(outputs)]
            window = self.window.chosen(outputs, taps)
            convolution = _Convolution(self.low, self.x, self._weights(taps), self.bias, window, self.groups)
            seen = [_every(each, phase, self.strides, window.outputs) for each in (out, *operands)]
            convolution.launch(expression, seen[1:], seen[0])

    def _weights(self, taps: Sequence[np.ndarray]) -> Tensor:
        """Return the weights of some taps as a convolution has them."""
        low, w, groups = self.low, self.w, self.groups
        depth, channels = w.shape[0] // groups, w.shape[1]

        def make(value: np.ndarray) -> np.ndarray:
            for axis, few in enumerate(taps):
                value = value.take(few, axis=2 + axis)
            split = value.reshape(groups, depth, channels, *value.shape[2:])
            return np.reshape(split.swapaxes(1, 2), (groups * channels, depth, *value.shape[2:]))

        if w.value is not None:
            return low.derived(w, ("phase", groups, *(tuple(few.tolist()) for few in taps)), make)
        steps = [int(few[1] - few[0]) if few.size > 1 else 1 for few in taps]
        firsts = [int(few[0]) if few.size else 0 for few in taps]
        offset = w.offset + sum(a * b for a, b in zip(firsts, w.strides[2:], strict=True))
        strides = [a * b for a, b in zip(steps, w.strides[2:], strict=True)]
        sizes = [few.size for few in taps]
        whole = low.empty(w.kind, (groups, channels, depth, *sizes))
        of_group = (depth * w.strides[0], w.strides[1], w.strides[0])
        low.copy(w.view(whole.shape, (*of_group, *strides), offset), whole)
        return low.reshape(whole, (groups * channels, depth, *sizes))


def _every(x: Tensor, firsts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return every few pixels of `x`."""
    strides = (*x.strides[:2], *(a * b for a, b in zip(x.strides[2:], steps, strict=True)))
    offset = x.offset + sum(a * b for a, b in zip(firsts, x.strides[2:], strict=True))
    return x.view((*x.shape[:2], *sizes), strides, offset)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution that waits for its end."""

    low: Lowering
    x: Tensor
    w: Tensor
    bias: Tensor | None
    window: Window
    groups: int

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.w.shape[0]

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        if self.groups == self.channels and self.w.shape[1] == 1:
            sliding = Sliding(self.low, self.x, self.window, "dot", self.w, self.bias)
            sliding.launch(expression, operands, out)
            return
        if launch_aside(self.low, self.launch, expression, operands, out):
            return
        low, window, kind = self.low, self.window, self.x.kind
        channels, depth = self.w.shape[0] // self.groups, self.w.shape[1]
        pixels = out.shape[0] * math.prod(window.outputs)
        operands = [broadcast(each, out.shape) for each in operands]
        written = (out, *operands)
        flat = [stride for each in (self.x, *written) if (stride := flat_stride(each)) is not None]
        is_flat = window.is_pointwise and len(flat) == 1 + len(written)
        strides = [(0, each) for each in flat[1:]] if is_flat else [pixel_strides(each) for each in written]
        tile = _tile(low.target, channels, pixels)
        panel = tile.vectors * low.target.lanes
        panels = -(-channels // panel) * self.groups
        packed = packed_weights(low, self.w, self.groups, panel)
        start = packed_bias(low, self.bias, kind, channels, self.groups, panel)
        lines, columns = (packed, packed) if is_flat else window.tables(low, self.x)
        parts, part_pixels = _parts(low.target, pixels, tile, panels, self.x.size * kind.size_bytes)
        _announce(low, packed)
        kernels = {
            each: Kernel.of(
                "convolution",
                kind=kind,
                tile=(each.rows, each.vectors),
                has_taps=not is_flat,
                has_tail=channels % (each.vectors * low.target.lanes) != 0,
                expression=expression,
                access=tuple(access_of(each) for each in operands),
            )
            for each in {tile, *(_WIDE if low.target.registers >= 32 else _NARROW)}
        }
        low.expect(kernels.values())
        low.launch(
            kernels[tile],
            outputs=[out],
            inputs=[self.x, packed, start, lines, columns, filled_row(low, self.x, 0), packed, *operands],
            sizes=[
                *(pixels, pixels if is_flat else window.outputs[-1], part_pixels, parts),
                *(panels // self.groups, self.groups, depth, channels),
                *(window.line_taps, window.kernel[-1], flat[0] if is_flat else 0),
                *(stride for each in strides for stride in each),
            ],
            extent=-(-pixels // (parts * part_pixels)) * parts * panels,
            flops=2 * out.size * window.num_taps * depth + expression.flops * out.size,
            bytes=sum(each.size * each.kind.size_bytes for each in (self.x, out, packed, *operands)),
        )


def _announce(low: Lowering, packed: Tensor) -> None:
    """Let the convolution before ask for the first of these weights while it works on its last panel."""
    before = next((each for each in reversed(low.launches) if each.kernel.template == "convolution"), None)
    if before is not None and packed.value is not None:
        before.tensors = (*before.tensors[:_LATER], packed, *before.tensors[_LATER + 1 :])


def _tile(target: Target, channels: int, pixels: int) -> _Tile:
    """Return the register tile that does `channels` of `pixels` in the least time."""
    vectors = -(-channels // target.lanes)

    def cost(tile: _Tile) -> float:
        done = -(-pixels // tile.rows) * tile.rows * -(-vectors // tile.vectors) * tile.vectors
        return done / tile.speed

    return min(_WIDE if target.registers >= 32 else _NARROW, key=cost)


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
        packed = value
        if channels % panel:
            packed = np.zeros((groups, panels * panel, depth, taps), value.dtype)
            packed[:, :channels] = value.reshape(groups, channels, depth, taps)
        return np.transpose(packed.reshape(groups, panels, panel, depth, taps), (0, 1, 4, 3, 2))

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
