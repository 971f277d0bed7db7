"""Operators that normalise: softmax and its kin, and those that give rows mean 0 and variance 1."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from educe.compiler.emit import F32, Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.normalization import EXP_UNROLL
from educe.compiler.kernels.reduction import accumulator
from educe.compiler.kernels.rows import partial_rows
from educe.compiler.operators.base import Call, operator, positive_axis
from educe.compiler.operators.layout import Layout
from educe.compiler.operators.reduction import (
    MEAN,
    REDUCTIONS,
    as_kind,
    reduced,
    scalar,
    spatial_axes,
)
from educe.compiler.tensor import (
    Tensor,
    broadcast_strides,
    memory_order,
    strides_in_order,
)

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_KEPT_ELEMENTS = 65536
_EXP_FLOPS = 20


@operator("Softmax", "LogSoftmax")
def softmax(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Positive numbers along `axis` whose sum is 1, or their logarithms."""
    return normalized_exponentials(low, x, call.axis(x.rank, -1), log=call.operator == "LogSoftmax")


def normalized_exponentials(low: Lowering, x: Tensor, axis: int, *, log: bool) -> Tensor:
    """Return softmax of `x` along `axis`, or its logarithm; an expression is computed on the way."""
    expression, inputs = low.fused(x)
    out = low.empty(x.kind, x.shape, _dense_like(x, inputs[0]))
    layout = Layout.of([out], inputs, [axis] if x.rank else [])
    lanes = low.target.lanes
    partials = partial_rows(layout.middle, lanes, EXP_UNROLL)
    length = layout.inner if layout.contiguous else (layout.middle + partials) * lanes
    width = layout.width(lanes)
    low.launch(
        Kernel.of(
            "softmax",
            expression=expression,
            access=layout.access,
            out=out.kind,
            log=log,
            contiguous=layout.contiguous,
        ),
        outputs=[out],
        inputs=inputs,
        sizes=[layout.middle, layout.inner, width, *layout.numbers()],
        extent=layout.rows * width if x.size else 0,
        flops=x.size * (_EXP_FLOPS + expression.flops),
        bytes=_bytes(x, [out, *inputs]),
        scratch_bytes=(length + lanes) * accumulator(x.kind).size_bytes,
    )
    return out


@operator("LayerNormalization", "RMSNormalization")
def layer_normalization(
    low: Lowering, call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> list[Tensor]:
    """Variance 1, and mean 0 unless it is RMS, over the axes from `axis` on; then scale and bias."""
    first = call.axis(x.rank, -1)
    weights = [scale] if bias is None else [scale, bias]
    centered = call.operator == "LayerNormalization"
    wanted = sum(1 for _ in call.outputs[1:]) if centered else 0
    stash = F32 if call.get("stash_type", 1) == 1 else x.kind
    return normalized(
        low,
        x,
        range(first, x.rank),
        [_broadcast(low, each, x.shape[first:]) for each in weights],
        float(call.get("epsilon", 1e-5)),
        centered=centered,
        statistics=[stash] * (2 if wanted else 0),
    )


@operator("InstanceNormalization")
def instance_normalization(low: Lowering, call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Mean 0 and variance 1 of each channel of each item; then scale and bias."""
    axes = spatial_axes(x)
    weights = [low.reshape(each, (x.shape[1], *[1] * len(axes))) for each in (scale, bias)]
    epsilon = float(call.get("epsilon", 1e-5))
    return normalized(low, x, axes, weights, epsilon)[0]


@operator("GroupNormalization")
def group_normalization(low: Lowering, call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Mean 0 and variance 1 of each group of channels; then scale and bias of each channel."""
    groups = int(call.get("num_groups"))
    ones = [1] * len(spatial_axes(x))
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels are not {groups} groups")
    depth = x.shape[1] // groups
    parts = low.reshape(x, (x.shape[0], groups, depth, *x.shape[2:]))
    weights = [low.reshape(each, (groups, depth, *ones)) for each in (scale, bias)]
    epsilon = float(call.get("epsilon", 1e-5))
    result = normalized(low, parts, range(2, parts.rank), weights, epsilon)[0]
    return low.reshape(result, x.shape)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over `axes`."""
    axes = {positive_axis(int(axis), x.rank) for axis in call.get("axes", [0, 2, 3])}
    kind = accumulator(x.kind)
    difference, variance = _centered(low, low.need(x), axes)
    deviation = low.apply("Add", low.apply("Sqrt", variance), scalar(low, 1e-9, kind))
    return as_kind(low, low.apply("Div", difference, low.need(deviation)), x.kind)


@operator("LpNormalization")
def lp_normalization(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Divided by the p-norm along `axis`; zeros stay zeros."""
    p = int(call.get("p", 2))
    if p not in (1, 2):
        raise ValueError(f"p is {p}, not 1 or 2")
    kind = accumulator(x.kind)
    x = low.need(x)
    norm = reduced(low, x, [call.axis(x.rank, -1)] if x.rank else [], REDUCTIONS[f"ReduceL{p}"], kind)
    is_zero = low.apply("Equal", norm, scalar(low, 0, kind))
    safe = low.need(low.apply("Where", is_zero, scalar(low, 1, kind), norm))
    return as_kind(low, low.apply("Div", as_kind(low, x, kind), safe), x.kind)


@operator("LRN")
def lrn(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Divided by a power of the sum of squares of `size` channels around each."""
    size = int(call.get("size"))
    if size < 1 or x.rank < 2:
        raise ValueError(f"a tensor of shape {list(x.shape)} has no sums of {size} channels")
    channels = x.shape[1]
    kind = accumulator(x.kind)
    x = low.need(x)
    before = (size - 1) // 2
    order = memory_order(x.shape, x.strides)
    shape = (x.shape[0], channels + size - 1, *x.shape[2:])
    padded = low.empty(x.kind, shape, strides_in_order(shape, order))
    step = padded.strides[1]
    zero = scalar(low, 0, x.kind)
    for first, count in ((0, before), (before + channels, size - 1 - before)):
        part = (x.shape[0], count, *x.shape[2:])
        edge = padded.view(part, padded.strides, padded.offset + first * step)
        low.copy(low.expand(low.reshape(zero, [1] * x.rank), part), edge)
    low.copy(x, padded.view(x.shape, padded.strides, padded.offset + before * step))
    windows = padded.view((*x.shape, size), (*padded.strides, step))
    squares = reduced(low, windows, [x.rank], REDUCTIONS["ReduceSumSquare"], kind)
    squares = low.reshape(squares, x.shape)
    alpha, beta = float(call.get("alpha", 1e-4)), float(call.get("beta", 0.75))
    base = low.apply("Mul", squares, scalar(low, alpha / size, kind))
    base = low.apply("Add", base, scalar(low, float(call.get("bias", 1.0)), kind))
    power = low.apply("Pow", base, scalar(low, beta, kind))
    return as_kind(low, low.apply("Div", as_kind(low, x, kind), power), x.kind)


def normalized(
    low: Lowering,
    x: Tensor,
    axes: Collection[int],
    weights: Sequence[Tensor],
    epsilon: float,
    *,
    centered: bool = True,
    statistics: Sequence[Kind] = (),
    contiguous: bool | None = None,
) -> list[Tensor]:
    """Return `x` with mean 0 and variance 1 over `axes`, then scaled and shifted.

    Args:
        low: The lowering.
        x: What is normalised; an expression is computed on the way.
        axes: Those over which statistics are taken.
        weights: Scale and bias, of a shape that broadcasts to that of `x`; the last or both may be missing.
        epsilon: What is added to the variance.
        centered: Whether the mean is subtracted; else it is taken to be 0.
        statistics: The kinds of mean and inverse deviation, if they are wanted.
        contiguous: True if `x`, its weights, and `axes`, the last ones, are known to lie one after the other.

    Returns:
        The result, and mean and inverse deviation if they are wanted.
    """
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    expression, inputs = low.fused(x)
    out = low.empty(x.kind, x.shape, _dense_like(x, inputs[0]))
    found = [low.empty(kind, shape) for kind in statistics]
    seen = [_seen(each, x.shape) for each in map(low.need, weights)]
    outputs = [out, *(_seen(each, x.shape) for each in found)]
    layout = Layout.of(outputs, [*inputs, *seen], axes, contiguous)
    if not layout.contiguous or layout.rest:
        if not statistics and centered:
            return [_composed(low, low.need(x), axes, weights, epsilon)]
        row = [x.shape[axis] for axis in axes]
        weights = [low.dense(low.expand(each, row)) for each in weights]
        return normalized(
            low,
            low.dense(x),
            axes,
            weights,
            epsilon,
            centered=centered,
            statistics=statistics,
            contiguous=True,
        )
    count = layout.middle * layout.inner
    low.launch(
        Kernel.of(
            "normalize",
            expression=expression,
            access=layout.access,
            outputs=tuple(each.kind for each in outputs),
            weights=tuple(each.kind for each in seen),
            epsilon=epsilon,
            centered=centered,
            kept=_is_kept(expression.flops, count),
        ),
        outputs=[out, *found],
        inputs=[*inputs, *seen],
        sizes=[layout.middle, layout.inner, count, *layout.numbers()],
        extent=layout.rows if x.size else 0,
        flops=x.size * (10 + expression.flops),
        bytes=_bytes(x, [out, *inputs]),
        scratch_bytes=layout.middle * (layout.inner + low.target.lanes) * accumulator(x.kind).size_bytes,
    )
    return [out, *found]


def _is_kept(flops: int, count: int) -> bool:
    """Say whether an expression of so many operations is better kept than computed again."""
    return flops > 1 and count <= _KEPT_ELEMENTS


def _composed(
    low: Lowering, x: Tensor, axes: Collection[int], weights: Sequence[Tensor], epsilon: float
) -> Tensor:
    """Return what `normalized` does, as reductions and an expression, for `x` of any strides."""
    kind = accumulator(x.kind)
    difference, variance = _centered(low, x, axes)
    root = low.apply("Sqrt", low.apply("Add", variance, scalar(low, epsilon, kind)))
    factor = low.need(low.apply("Div", scalar(low, 1, kind), root))
    result = low.apply("Mul", difference, factor)
    for function, weight in zip(("Mul", "Add"), weights, strict=False):
        result = low.apply(function, result, as_kind(low, weight, kind))
    return as_kind(low, result, x.kind)


def _centered(low: Lowering, x: Tensor, axes: Collection[int]) -> tuple[Tensor, Tensor]:
    """Return the difference of `x`, which is in memory, from its mean, as an expression; and its variance."""
    kind = accumulator(x.kind)
    mean = reduced(low, x, axes, MEAN, kind)

    def difference() -> Tensor:
        return low.apply("Sub", as_kind(low, x, kind), mean)

    apart = difference()
    square = REDUCTIONS["ReduceSumSquare"]
    total = reduced(low, apart, axes, square)
    count = math.prod(x.shape[axis] for axis in axes)
    return difference(), low.need(low.apply("Div", total, scalar(low, count, kind)))


def _broadcast(low: Lowering, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `weight` if it broadcasts to `shape`; `ValueError` if not."""
    missing = len(shape) - weight.rank
    if missing < 0 or any(a not in (1, b) for a, b in zip(weight.shape, shape[missing:], strict=True)):
        raise ValueError(f"a scale or bias of shape {list(weight.shape)} does not fit {list(shape)}")
    return low.need(weight)


def _seen(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.view(shape, broadcast_strides(x.shape, x.strides, shape))


def _dense_like(x: Tensor, first: Tensor) -> tuple[int, ...]:
    """Return the strides of a dense tensor of the shape of `x` whose dimensions lie as those of `first`."""
    return strides_in_order(x.shape, memory_order(x.shape, first.strides))


def _bytes(x: Tensor, operands: Sequence[Tensor]) -> int:
    return sum(min(each.size, x.size) * each.kind.size_bytes for each in operands)
