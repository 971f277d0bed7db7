"""Windows in which channels do not meet: depthwise convolution, pooling, and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.kernel import Kernel
from educe.compiler.kernels.depthwise import total_kind
from educe.compiler.kernels.scalars import Expression
from educe.compiler.operators.tile_end import (
    access_of,
    broadcast,
    launch_aside,
    packed_bias,
    pixel_strides,
    waiting,
)
from educe.compiler.operators.window import Window, filled_row
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_LINE = 7
"""Column taps up to which the code of a line is written without a loop."""

_UNITS = 16
"""Units of work that a window is cut into at least, if it can be."""


@dataclass(frozen=True, eq=False)
class Sliding:
    """A window that waits for its end, in which channels do not meet.

    Attributes:
        low: Where it is launched.
        x: The input, its channels last.
        window: What each output pixel sees.
        reduction: ``dot`` with weights for each channel, ``blend`` with weights for each output pixel,
            ``sum`` or ``max``.
        w: The weights of ``dot``.
        bias: What is added to its sums.
        tap_weights: The weights of ``blend``, which are products of one for each dimension, [outputs, taps].
        start: What other reductions start with.
        outside: What is seen outside of the input.
    """

    low: Lowering
    x: Tensor
    window: Window
    reduction: str
    w: Tensor | None = None
    bias: Tensor | None = None
    tap_weights: tuple[np.ndarray, ...] = ()
    start: float = 0
    outside: float = 0

    def product(self) -> Tensor:
        """Return the result, which is launched when its end is known."""
        return waiting(
            total_kind(self.x.kind, self.reduction), (*self.x.shape[:2], *self.window.outputs), self.launch
        )

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        if launch_aside(self.low, self.launch, expression, operands, out):
            return
        low, window, kind = self.low, self.window, self.x.kind
        operands = [broadcast(each, out.shape) for each in operands]
        channels, width = out.shape[1], window.outputs[-1]
        rows, vectors = self._tile(channels, width)
        panel = vectors * low.target.lanes
        panels = -(-channels // panel)
        tiles, lines = -(-width // rows), out.shape[0] * math.prod(window.outputs[:-1])
        parts = max(1, min(panels, _UNITS // (tiles * lines)))
        part = -(-panels // parts)
        weights, start, *more = self._weights(panel, panels)
        low.launch(
            Kernel.of(
                "window",
                kind=kind,
                tile=(rows, vectors),
                reduction=self.reduction,
                has_tail=channels % panel != 0,
                neighbours=self._neighbours,
                expression=expression,
                access=tuple(access_of(each) for each in operands),
            ),
            outputs=[out],
            inputs=[
                *(self.x, weights, start, *window.tables(low, self.x)),
                *(filled_row(low, self.x, self.outside), *more, *operands),
            ],
            sizes=[
                *(width, tiles, -(-panels // part), part * panel, channels, panels * panel),
                *(window.line_taps, window.kernel[-1], window.column_step * self.x.strides[-1]),
                *(stride for each in (out, *operands) for stride in pixel_strides(each)),
            ],
            extent=lines * tiles * -(-panels // part),
            flops=2 * out.size * window.num_taps + expression.flops * out.size,
            bytes=sum(each.size * each.kind.size_bytes for each in (self.x, out, *operands)),
            scratch_bytes=16 * rows * window.num_taps,
        )

    @property
    def _neighbours(self) -> tuple[int, int] | None:
        """The column taps and the step between pixels, if numbers are converted and taps are neighbours."""
        columns, step = self.window.places[-1], self.window.column_step
        taps = self.window.kernel[-1]
        if total_kind(self.x.kind, self.reduction) is self.x.kind:
            return None
        if not 1 <= taps <= _MAX_LINE or not 1 <= step <= taps:
            return None
        return (taps, step) if bool((np.diff(columns[0]) == 1).all()) else None

    def _tile(self, channels: int, width: int) -> tuple[int, int]:
        """Return the pixels and vectors that are reduced in registers together, for the least loads."""
        target, neighbours = self.low.target, self._neighbours
        vectors = -(-channels // target.lanes)

        def registers(tile: tuple[int, int]) -> int:
            r, v = tile
            return (r + neighbours[0] + 1) * v if neighbours else r * v

        def cost(tile: tuple[int, int]) -> float:
            r, v = tile
            loads = r * (v + 1) + v
            if neighbours:
                taps, step = neighbours
                loads = -(-(((r - 1) * step + 2 * taps) * v) // taps)
            return -(-width // r) * -(-vectors // v) * (loads + 4)

        most = target.registers * 3 // (8 if self.reduction == "sum" else 4)
        most = target.registers - 3 if neighbours else most
        tiles = [(r, v) for r in range(1, 9) for v in (1, 2, 3, 4, 8)]
        return min((tile for tile in tiles if registers(tile) <= most), key=cost)

    def _weights(self, panel: int, panels: int) -> list[Tensor]:
        """Return the kernel's weights and starts, and the weights of columns for ``blend``."""
        low, kind = self.low, self.x.kind
        if self.reduction == "dot":
            assert self.w is not None
            channels = self.w.shape[0]
            bias = packed_bias(low, self.bias, total_kind(kind, "dot"), channels, 1, panel)
            return [packed_taps(low, self.w, panels * panel), bias]
        start = filled_row(low, self.x, self.start)
        if self.reduction != "blend":
            return [start, start]
        dtype, batch = dtype_of(kind), self.x.shape[0]
        *outer, columns = self.tap_weights
        key = tuple((each.shape, each.tobytes()) for each in self.tap_weights)

        def lines() -> np.ndarray:
            whole = np.ones((batch, 1))
            for each in outer:
                whole = whole[:, None, :, None] * each[None, :, None, :]
                whole = whole.reshape(whole.shape[0] * whole.shape[1], -1)
            return whole.astype(dtype)

        return [
            low.shared(("line weights", dtype.name, batch, key), lines),
            start,
            low.shared(("column weights", dtype.name, key[-1]), lambda: columns.astype(dtype)),
        ]


def packed_taps(low: Lowering, w: Tensor, channels: int) -> Tensor:
    """Return the weights of a depthwise convolution in the order [taps][channel], for `channels` of them."""
    given, taps = w.shape[0], math.prod(w.shape[2:])

    def make(value: np.ndarray) -> np.ndarray:
        padded = np.zeros((taps, channels), value.dtype)
        padded[:, :given] = value.reshape(given, taps).T
        return padded

    if w.value is not None:
        return low.derived(w, ("taps", channels), make)
    packed = low.empty(w.kind, (taps, channels))
    low.copy(low.permute(low.reshape(w, (given, taps)), (1, 0)), packed.view((taps, given), packed.strides))
    return packed
