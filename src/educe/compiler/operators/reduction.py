"""Operators that reduce axes: sums, means, extremes, norms."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.reduction import UNROLL, accumulator
from educe.compiler.kernels.rows import partial_rows
from educe.compiler.operators.base import Call, NotCompiled, operator, positive_axis
from educe.compiler.operators.layout import Layout
from educe.compiler.operators.movement import integers
from educe.compiler.tensor import Tensor, dtype_of, memory_order, strides_in_order

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

# Elements of a reduced dimension that are reduced at once: a longer one is split, whatever its layout.
_BLOCK = 4096
_MAX_COLUMNS, _MIN_COLUMNS = 1024, 128
_MAX_PARTIALS = 8192
# Rows up to this length are not reduced in vectors, but next to each other.
_SHORT = 8


@dataclass(frozen=True)
class Reduction:
    """How elements become one.

    Attributes:
        combine: add, mul, min or max.
        prepare: What is done to each before: nothing, ``abs`` or ``square``.
        finish: What is done after: nothing, ``mean`` or ``sqrt``.
    """

    combine: str
    prepare: str = ""
    finish: str = ""


SUM, MEAN, MAX, MIN = Reduction("add"), Reduction("add", finish="mean"), Reduction("max"), Reduction("min")

REDUCTIONS = {
    "ReduceSum": SUM,
    "ReduceMean": MEAN,
    "ReduceMax": MAX,
    "ReduceMin": MIN,
    "ReduceProd": Reduction("mul"),
    "ReduceL1": Reduction("add", "abs"),
    "ReduceL2": Reduction("add", "square", "sqrt"),
    "ReduceSumSquare": Reduction("add", "square"),
}
"""The operators that are one launch."""


@operator(*REDUCTIONS)
def _reduce(low: Lowering, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = reduced_axes(low, call, x, axes)
    return without(low, call, reduced(low, x, chosen, REDUCTIONS[call.operator]), chosen)


@operator("ReduceLogSum")
def reduce_log_sum(low: Lowering, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The logarithm of the sum."""
    chosen = reduced_axes(low, call, x, axes)
    total = reduced(low, x, chosen, SUM, accumulator(_real(x)))
    return without(low, call, as_kind(low, low.apply("Log", total), x.kind), chosen)


@operator("ReduceLogSumExp")
def reduce_log_sum_exp(low: Lowering, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The logarithm of the sum of exponentials, which are taken of differences from the largest."""
    chosen = reduced_axes(low, call, x, axes)
    kind = accumulator(_real(x))
    wide = low.need(as_kind(low, x, kind))
    largest = reduced(low, wide, chosen, MAX)
    zero = scalar(low, 0.0, kind)
    is_finite = low.apply("Less", low.apply("Mul", largest, zero), scalar(low, 1.0, kind))
    shift = low.need(low.apply("Where", is_finite, largest, zero))
    total = reduced(low, low.apply("Exp", low.apply("Sub", wide, shift)), chosen, SUM)
    result = low.apply("Add", low.apply("Log", total), shift)
    return without(low, call, as_kind(low, result, x.kind), chosen)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The mean or the largest number of each channel."""
    return reduced(low, x, spatial_axes(x), MEAN if call.operator == "GlobalAveragePool" else MAX)


@operator("GlobalLpPool")
def global_lp_pool(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The p-norm of each channel."""
    p = call.get("p", 2)
    axes = spatial_axes(x)
    if p in (1, 2):
        return reduced(low, x, axes, REDUCTIONS[f"ReduceL{int(p)}"])
    kind = accumulator(_real(x))
    powers = low.apply("Pow", low.apply("Abs", as_kind(low, x, kind)), scalar(low, p, kind))
    total = reduced(low, powers, axes, SUM)
    return as_kind(low, low.apply("Pow", total, scalar(low, 1 / p, kind)), x.kind)


def reduced(
    low: Lowering,
    x: Tensor,
    axes: Collection[int],
    how: Reduction,
    kind: Kind | None = None,
    count: int | None = None,
) -> Tensor:
    """Return `x` with each of `axes` reduced to size 1; an expression is computed on the way.

    Args:
        low: The lowering.
        x: What is reduced.
        axes: Axes from 0 on.
        how: The reduction.
        kind: The result's kind; that of `x` if absent.
        count: By what a mean divides; the number of elements reduced if absent.
    """
    expression, inputs = low.fused(x)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    strides = strides_in_order(shape, memory_order(x.shape, inputs[0].strides))
    kept = [0 if axis in axes else stride for axis, stride in enumerate(strides)]
    count = math.prod(x.shape[axis] for axis in axes) if count is None else count
    seen = Tensor(x.kind, x.shape, tuple(kept))
    layout = Layout.of([seen], inputs, axes)
    if layout.contiguous and layout.inner <= _SHORT:
        layout = Layout.of([seen], inputs, axes, contiguous=False)
    length = layout.inner if layout.contiguous else layout.middle
    blocks = -(-length // _BLOCK) if length > 2 * _BLOCK else 1
    length = _BLOCK if blocks > 1 else length
    out = low.empty(kind or x.kind, shape, strides)
    written, finish = out, how.finish
    if blocks > 1:
        scale, step = (blocks, 1) if layout.contiguous else (1, out.size)
        layout = layout.with_blocks(step, scale)
        parts = (*(scale * stride for stride in strides), step)
        written, finish = low.empty(accumulator(expression.kind), (*shape, blocks), parts), ""
    partials = partial_rows(length, low.target.lanes, UNROLL)
    width = 1 if layout.contiguous else _width(low, layout.rows * blocks, layout.inner, partials)
    columns = 1 if layout.contiguous else -(-layout.inner // width)
    low.launch(
        Kernel.of(
            "reduce",
            expression=expression,
            access=layout.access,
            combine=how.combine,
            prepare=how.prepare,
            finish=finish,
            out=written.kind,
            contiguous=layout.contiguous,
            split=blocks > 1,
        ),
        outputs=[written],
        inputs=inputs,
        sizes=[
            layout.middle,
            layout.inner,
            blocks,
            length,
            count,
            columns,
            width,
            *layout.numbers(),
        ],
        extent=layout.rows * blocks * columns,
        flops=x.size * (1 + expression.flops),
        bytes=sum(each.size * each.kind.size_bytes for each in (written, *inputs)),
        scratch_bytes=partials * (width + low.target.lanes) * accumulator(expression.kind).size_bytes,
    )
    if blocks == 1:
        return out
    total = reduced(low, written, [x.rank], replace(how, prepare=""), out.kind, count)
    return low.reshape(total, shape)


def _width(low: Lowering, units: int, inner: int, partials: int) -> int:
    """Return how many columns are one unit: as many as leave enough units for all threads."""
    width = _MAX_COLUMNS
    while width > _MIN_COLUMNS and (
        width * partials > _MAX_PARTIALS or (low.threads > 1 and units * (inner // width) < 4 * low.threads)
    ):
        width //= 2
    return max(min(width, inner), 1)


def reduced_axes(low: Lowering, call: Call, x: Tensor, axes: Tensor | None) -> list[int]:
    """Return the axes that a node reduces: all, or those it names, or none if it says so.

    Raises:
        ValueError: there is no such axis, or it is named twice.
    """
    named = [] if axes is None else integers(low, axes)
    if not named:
        return [] if call.get("noop_with_empty_axes", 0) else list(range(x.rank))
    chosen = {positive_axis(axis, x.rank) for axis in named}
    if len(chosen) != len(named):
        raise ValueError(f"axes {named} name a dimension twice")
    return sorted(chosen) if x.rank else []


def without(low: Lowering, call: Call, x: Tensor, axes: Collection[int]) -> Tensor:
    """Return `x` without the reduced `axes`, if the node does not keep them."""
    if call.get("keepdims", 1):
        return x
    return low.reshape(x, [size for axis, size in enumerate(x.shape) if axis not in axes])


def spatial_axes(x: Tensor) -> list[int]:
    """Return the axes behind batch and channels; `ValueError` if there are no channels."""
    if x.rank < 2:
        raise ValueError(f"a tensor of {x.rank} dimensions has no channels")
    return list(range(2, x.rank))


def scalar(low: Lowering, value: float, kind: Kind) -> Tensor:
    """Return a constant of one element."""
    return low.constant(np.array(value, dtype_of(kind)))


def as_kind(low: Lowering, x: Tensor, kind: Kind) -> Tensor:
    """Return `x` converted to `kind`."""
    return x if x.kind is kind else low.apply("Cast", x, to=kind.name)


def _real(x: Tensor) -> Kind:
    if not x.kind.is_float:
        raise NotCompiled
    return x.kind
