"""Convolutions of 8-bit integers: products of matrices whose rows are what the taps of a pixel see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, I32, KINDS
from educe.compiler.kernel import Kernel
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import Multiplier, multiplier
from educe.compiler.kernels.product import tile_rows
from educe.compiler.kernels.scalars import Expression
from educe.compiler.lowering import Product
from educe.compiler.operators.base import Call, operator
from educe.compiler.operators.convolution import check_bias, checked, is_mergeable, merged
from educe.compiler.operators.panels import (
    UNITS,
    Panels,
    packed_panels,
    panel_vectors,
    panels_of,
    unit_blocks,
)
from educe.compiler.operators.product import cast
from educe.compiler.operators.quantized import as_dot_kind, centred, moved_by, moved_zero, output_scale, sums
from educe.compiler.operators.sliding import Sliding
from educe.compiler.operators.tile_end import access_of, broadcast, flat_stride
from educe.compiler.operators.window import MAX_VECTORS, Window, filled_row, window_of, with_channels_last
from educe.compiler.tensor import Tensor, channels_last, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_SCRATCH_SHARE = 4
"""The part of the second cache that gathered rows fill is one over this."""

_EXACT_TAPS = 256
"""Taps up to which sums of products of 9-bit integers are exact in f32."""


@operator("ConvInteger")
def conv_integer(
    low: Lowering,
    call: Call,
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
) -> Tensor:
    """The convolution of integers less their zero points, in i32."""
    return _convolution(low, call, x, w, x_zero, w_zero, None)


@operator("QLinearConv")
def qlinear_conv(
    low: Lowering,
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution of quantised numbers, quantised again."""
    if any(each.size != 1 for each in (x_scale, x_zero, y_scale, y_zero)):
        raise ValueError("scales and zero points of input and output are not one number each")
    total = _convolution(low, call, x, w, x_zero, w_zero, bias)
    of_x, of_y = (low.reshape(each, ()) for each in (x_scale, y_scale))
    scale = output_scale(low, of_x, low.reshape(w_scale, (w_scale.size, *[1] * (x.rank - 2))), of_y)
    return low.apply("Requantize", total, scale, low.reshape(y_zero, ()))


def _convolution(
    low: Lowering,
    call: Call,
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None,
    w_zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return the convolution of integers less their zero points, plus a bias, in i32."""
    groups = checked(call, x, w, w.shape[1] if w.rank > 1 else 0, w.shape[0])
    check_bias(bias, w.shape[0])
    ones = (1,) * (x.rank - 2)
    window = window_of(call, x.shape[2:], w.shape[2:])
    x_zero = low.constant(np.zeros((), dtype_of(x.kind))) if x_zero is None else low.reshape(x_zero, ())
    if w_zero is not None:
        w_zero = low.reshape(w_zero, () if w_zero.size == 1 else (w_zero.size, 1, *ones))
    if groups == w.shape[0] and w.shape[1] == 1 and window.num_taps <= _EXACT_TAPS:
        total, offset = _depthwise(low, x, w, x_zero, w_zero, window)
    else:
        total, offset = _product(low, x, w, x_zero, w_zero, window, groups)
    added = _sum(low, [each for each in (offset, bias) if each is not None])
    return total if added is None else low.apply("Add", total, low.reshape(added, (w.shape[0], *ones)))


def _sum(low: Lowering, vectors: Sequence[Tensor]) -> Tensor | None:
    """Return the sum of vectors, which is computed once for all runs if they are known."""
    if len(vectors) < 2:
        return vectors[0] if vectors else None
    known = [each.value for each in vectors if each.value is not None]
    if len(known) == len(vectors):
        return low.constant(np.asarray(np.sum(known, axis=0, dtype=np.int32)))
    return low.need(low.apply("Add", *vectors))


def _depthwise(
    low: Lowering, x: Tensor, w: Tensor, x_zero: Tensor, w_zero: Tensor | None, window: Window
) -> tuple[Tensor, Tensor | None]:
    """Return what `_product` does where channels do not meet, by way of f32, in which it is exact."""
    weights, offset, outside = centred(low, w, w_zero), None, 0
    if x_zero.value is None:
        x = low.apply("Sub", low.apply("Cast", x, to="f32"), cast(low, x_zero, F32))
    elif x_zero.value.any():
        outside = int(x_zero.value)
        offset = _negative_product(low, cast(low, x_zero, I32), weights)
    x, weights = with_channels_last(low, x), low.need(cast(low, weights, F32))
    sliding = Sliding(low, x, window, "dot", weights, outside=outside)
    return low.apply("WholeNumber", sliding.product()), offset


def _product(
    low: Lowering, x: Tensor, w: Tensor, x_zero: Tensor, w_zero: Tensor | None, window: Window, groups: int
) -> tuple[Tensor, Tensor | None]:
    """Return the sums, and what each channel's lack because of the zero point of `x`.

    Zero points of the weights are taken off before, which needs i16.
    """
    left, right = (KINDS[name] for name in (low.target.integer_dot.left, low.target.integer_dot.right))
    offset = None
    if left.size_bytes == 1 and moved_zero(low, w_zero, moved_by(w, right)) is None:
        point = moved_zero(low, x_zero, moved_by(x, left))
        x, weights = as_dot_kind(low, x, left), as_dot_kind(low, w, right)
        if point is not None:
            offset = _negative_product(low, point, weights)
        outside = as_dot_kind(low, x_zero, left)
    else:
        x, weights = centred(low, x, x_zero), centred(low, w, w_zero)
        outside = low.constant(np.zeros((), np.int16))
    if groups == 1 and is_mergeable(x, window):
        x, weights, window = merged(low, x, weights, window, outside)
    made = _Convolution(
        low,
        multiplier(low.target, x.kind),
        with_channels_last(low, x),
        low.need(weights),
        outside,
        window,
        groups,
    )
    shape = (x.shape[0], w.shape[0], *window.outputs)
    lazy = Product(made.launch, _accepts, _accepts)
    return Tensor(I32, shape, channels_last(shape), lazy=lazy), offset


def _negative_product(low: Lowering, point: Tensor, w: Tensor) -> Tensor:
    """Return what takes a zero point off each channel's sums: minus the point times its weights."""
    total = low.reshape(sums(low, w, range(1, w.rank)), (w.shape[0],))
    if point.value is None or total.value is None:
        return low.need(low.apply("Neg", low.apply("Mul", point, total)))
    with np.errstate(over="ignore"):
        return low.constant(np.multiply(point.value, -total.value))


def _accepts(x: Tensor) -> bool:
    """Say whether the end of a tile can read `x`: by one step from pixel to pixel, and along channels."""
    return flat_stride(x) is not None and (x.shape[1] == 1 or x.strides[1] in (0, 1))


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution that waits for its end.

    Attributes:
        low: Where it is launched.
        by: How numbers are multiplied.
        x: The input, its channels last.
        w: The weights.
        outside: What taps outside of the input see.
        window: What each output pixel sees.
        groups: Groups of channels that do not meet.
    """

    low: Lowering
    by: Multiplier
    x: Tensor
    w: Tensor
    outside: Tensor
    window: Window
    groups: int

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        if out.size == 0:
            return
        low, window, by = self.low, self.window, self.by
        operands = [broadcast(each, out.shape) for each in operands]
        assert all(map(_accepts, (out, *operands)))
        pixels = out.shape[0] * math.prod(window.outputs)
        channels, depth = self.w.shape[0] // self.groups, self.w.shape[1]
        flat = flat_stride(self.x) if window.is_pointwise else None
        whole = -(-depth * window.num_taps // by.group) * by.group
        panels = self._panels(pixels)
        width = panels.vectors * low.target.lanes
        count = -(-channels // width)
        most = tile_rows(low.target, by, panels.vectors)
        rows, group = self._blocks(pixels, panels, count, whole if flat is None else 0)
        taps: list[Tensor] = []
        numbers: list[int] = []
        if flat is None:
            taps = [*window.tables(low, self.x), self._outside_row()]
            numbers = [window.outputs[-1], window.line_taps, window.kernel[-1], depth]
        low.launch(
            Kernel.of(
                "product",
                kind=self.x.kind,
                vectors=panels.vectors,
                expression=expression,
                access=tuple(access_of(each) for each in operands),
                has_taps=flat is None,
                has_rest=flat is not None and not by.has_matrix_unit and depth % by.group != 0,
            ),
            outputs=[out],
            inputs=[self.x, panels.matrices, *taps, *operands],
            sizes=[
                *(channels, depth if flat is not None else whole, pixels, rows, -(-pixels // rows)),
                *(group, -(-count // group), self.groups),
                *(whole if flat is None else flat, 0, depth, panels.k_step, panels.panel_step),
                *(0, count * panels.panel_step, panels.k_step // max(1, rows // most)),
                *numbers,
                *(step for each in (out, *operands) for step in self._steps(each, channels)),
            ],
            extent=self.groups * -(-pixels // rows) * -(-count // group),
            flops=2 * out.size * window.num_taps * depth + expression.flops * out.size,
            bytes=sum(x.size * x.kind.size_bytes for x in (self.x, out, panels.matrices, *operands)),
            scratch_bytes=self._scratch_bytes(rows, depth if flat is not None else whole, flat is None),
        )

    def _scratch_bytes(self, rows: int, depth: int, is_gathered: bool) -> int:
        row_bytes = depth * self.x.kind.size_bytes
        if self.by.has_matrix_unit:
            return matrix_unit.scratch_bytes(row_bytes)
        return rows * row_bytes if is_gathered else 0

    def _steps(self, x: Tensor, channels: int) -> tuple[int, int, int]:
        """Return the strides of pixels, of the batch, which are pixels too, and of groups."""
        step = flat_stride(x)
        assert step is not None
        return step, 0, channels * x.strides[1]

    def _panels(self, pixels: int) -> Panels:
        """Return the weights in panels of channels, taps before input channels along k."""
        low, w, groups = self.low, self.w, self.groups
        split = (groups, w.shape[0] // groups, w.shape[1], math.prod(w.shape[2:]))
        if w.value is None:
            seen = low.permute(low.reshape(w, split), (0, 3, 2, 1))
            matrices = low.reshape(low.dense(seen), (groups, split[3] * split[2], split[1]))
            return panels_of(low, matrices, pixels, self.by)
        vectors = panel_vectors(low, self.by, split[1])

        def matrix(value: np.ndarray) -> np.ndarray:
            seen = value.reshape(split).transpose(0, 3, 2, 1)
            return np.reshape(seen, (groups, split[3] * split[2], split[1]))

        return packed_panels(low, w, matrix, vectors, self.by)

    def _blocks(self, pixels: int, panels: Panels, count: int, gathered: int) -> tuple[int, int]:
        """Return the pixels of a block and the panels of a group: what a unit of work does.

        Rows that are gathered stay in the second cache while panels pass.
        """
        target, size = self.low.target, self.x.kind.size_bytes
        if self.by.has_matrix_unit:
            return unit_blocks(target, pixels, panels.panel_step * size, count, self.groups)
        most = tile_rows(target, self.by, panels.vectors)
        row_tiles = -(-pixels // most)
        block = -(-row_tiles // UNITS)
        if gathered:
            block = min(block, max(1, target.l2_bytes // (_SCRATCH_SHARE * gathered * size * most)))
        units = -(-row_tiles // block) * self.groups
        return block * most, -(-count // max(1, min(count, UNITS // (2 * units))))

    def _outside_row(self) -> Tensor:
        """Return what a tap outside of the input sees."""
        low, outside = self.low, self.outside
        if outside.value is not None:
            return filled_row(low, self.x, int(outside.value))
        row = low.empty(self.x.kind, (self.x.shape[1] + MAX_VECTORS * low.target.lanes,))
        low.copy(low.expand(outside, row.shape), row)
        return row
