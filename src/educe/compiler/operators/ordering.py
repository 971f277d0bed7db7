"""Operators in which the order of elements counts: places of extremes, running totals, the first k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.ordering import scratch_entries
from educe.compiler.operators.base import Call, NotCompiled, operator, positive_axis
from educe.compiler.operators.layout import Layout
from educe.compiler.operators.movement import integers
from educe.compiler.operators.reduction import as_kind, without
from educe.compiler.tensor import Tensor, memory_order, strides_in_order

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("ArgMax", "ArgMin")
def arg_extreme(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Where along `axis` the largest or smallest element is; NaN counts as such."""
    axis = call.axis(x.rank, 0)
    combine = "max" if call.operator == "ArgMax" else "min"
    found = _place_of_extreme(low, x, axis, combine, last=bool(call.get("select_last_index", 0)))
    return without(low, call, found, [axis] if x.rank else [])


@operator("Hardmax")
def hardmax(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """1 where along `axis` the largest element is first, else 0."""
    axis = call.axis(x.rank, -1)
    if not x.size:
        return x
    places = _place_of_extreme(low, x, axis, "max", last=False)
    numbers = np.arange(x.shape[axis] if x.rank else 1, dtype=np.int64)
    behind = [1] * max(x.rank - axis - 1, 0)
    here = low.reshape(low.constant(numbers), (x.shape[axis], *behind) if x.rank else ())
    return as_kind(low, low.apply("Equal", here, places), x.kind)


def _place_of_extreme(low: Lowering, x: Tensor, axis: int, combine: str, *, last: bool) -> Tensor:
    axes = [axis] if x.rank else []
    shape = tuple(1 if place in axes else size for place, size in enumerate(x.shape))
    if 0 in shape or not x.size:
        if 0 not in shape:
            raise ValueError(f"axis {axis} of a tensor of shape {list(x.shape)} has no element")
        return low.empty(I64, shape)
    if x.rank and x.shape[axis] >= 1 << 31:
        raise NotCompiled
    expression, inputs = low.fused(x)
    out = low.empty(I64, shape, strides_in_order(shape, memory_order(x.shape, inputs[0].strides)))
    strides = [0 if place in axes else stride for place, stride in enumerate(out.strides)]
    layout = Layout.of([Tensor(I64, x.shape, tuple(strides))], inputs, axes)
    width = layout.width(low.target.lanes)
    low.launch(
        Kernel.of(
            "arg_extreme",
            expression=expression,
            access=layout.access,
            combine=combine,
            last=last,
            contiguous=layout.contiguous,
        ),
        outputs=[out],
        inputs=inputs,
        sizes=[layout.middle, layout.inner, width, 0, *layout.numbers()],
        extent=layout.rows * width,
        flops=x.size * (2 + expression.flops),
        bytes=x.size * x.kind.size_bytes,
    )
    return out


@operator("CumSum", "CumProd")
def cumulate(low: Lowering, call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running totals or products along `axis`."""
    chosen = positive_axis(integers(low, axis)[0], x.rank)
    x = low.need(x)
    out = low.empty(x.kind, x.shape, strides_in_order(x.shape, memory_order(x.shape, x.strides)))
    seen = [out, x]
    if call.get("reverse", 0):
        seen = [_reversed(each, chosen) for each in seen]
    layout = Layout.of(seen[:1], seen[1:], [chosen] if x.rank else [], _lies_inmost(x, chosen))
    width = layout.width(low.target.lanes)
    low.launch(
        Kernel.of(
            "cumulate",
            kind=x.kind,
            access=layout.access,
            combine="add" if call.operator == "CumSum" else "mul",
            exclusive=bool(call.get("exclusive", 0)),
            contiguous=layout.contiguous,
        ),
        outputs=seen[:1],
        inputs=seen[1:],
        sizes=[layout.middle, layout.inner, width, 0, *layout.numbers()],
        extent=layout.rows * width if x.size else 0,
        flops=x.size,
        bytes=2 * x.size * x.kind.size_bytes,
    )
    return out


@operator("TopK")
def top_k(low: Lowering, call: Call, x: Tensor, k: Tensor) -> list[Tensor]:
    """The `k` largest or smallest elements along `axis` in order, and where they were."""
    axis = call.axis(x.rank, -1)
    count = integers(low, k)[0]
    if not x.rank or not 0 <= count <= x.shape[axis]:
        raise ValueError(f"axis {axis} of a tensor of shape {list(x.shape)} has no {count} elements")
    x = low.need(x)
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    order = memory_order(x.shape, x.strides)
    outputs = [low.empty(kind, shape, strides_in_order(shape, order)) for kind in (x.kind, I64)]
    seen = [Tensor(each.kind, x.shape, each.strides) for each in outputs]
    layout = Layout.of(seen, [x], [axis], contiguous=True)
    low.launch(
        Kernel.of("top_k", kind=x.kind, access=layout.access, largest=bool(call.get("largest", 1))),
        outputs=outputs,
        inputs=[x],
        sizes=[layout.middle, layout.inner, 1, count, *layout.numbers()],
        extent=layout.rows if count else 0,
        flops=4 * x.size,
        bytes=x.size * x.kind.size_bytes,
        scratch_bytes=8 * scratch_entries(count),
    )
    return outputs


def _reversed(x: Tensor, axis: int) -> Tensor:
    if not x.size or not x.rank:
        return x
    strides = [-stride if place == axis else stride for place, stride in enumerate(x.strides)]
    return x.view(x.shape, strides, x.offset + (x.shape[axis] - 1) * x.strides[axis])


def _lies_inmost(x: Tensor, axis: int) -> bool:
    """Say whether neighbours along `axis` are neighbours in memory."""
    others: Sequence[int] = [
        abs(stride) for place, (stride, size) in enumerate(zip(x.strides, x.shape, strict=True))
        if place != axis and size != 1
    ]  # fmt: skip
    return bool(x.rank) and abs(x.strides[axis]) < min(others, default=abs(x.strides[axis]) + 1)
