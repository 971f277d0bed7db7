"""Products of 8-bit integers, exact in i32, and the quantised operators around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, I8, I16, I32, KINDS, U8, Kind
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.product import cast, matrix_product, multiplied
from educe.compiler.operators.reduction import MAX, MIN, SUM, reduced, scalar
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("MatMulInteger")
def mat_mul_integer(
    low: Lowering,
    call: Call,
    a: Tensor,
    b: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
) -> Tensor:
    """The product of 8-bit matrices less their zero points, in i32."""
    return multiplied(low, a, b, lambda left, right: _product(low, left, right, a_zero, b_zero))


@operator("QLinearMatMul")
def q_linear_mat_mul(
    low: Lowering,
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """The product of quantised matrices, quantised again."""
    if any(each.kind is not F32 for each in (a_scale, b_scale, y_scale)) or y_zero.size != 1:
        raise NotCompiled
    if 1 in (a.rank, b.rank) and max(a_scale.size, b_scale.size) > 1:
        raise NotCompiled
    sums = multiplied(low, a, b, lambda left, right: _product(low, left, right, a_zero, b_zero))
    scales = _along(low, a_scale, a, -1), _along(low, b_scale, b, -2), low.reshape(y_scale, ())
    return low.apply("Requantize", sums, output_scale(low, *scales), low.reshape(y_zero, ()))


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(low: Lowering, call: Call, x: Tensor) -> list[Tensor]:
    """The elements as u8, with the scale and the zero point that their range and 0 ask for."""
    x, zero = low.need(x), scalar(low, 0.0, F32)
    extremes = [low.reshape(reduced(low, x, range(x.rank), how), ()) for how in (MIN, MAX)]
    least = low.need(low.apply("Min", extremes[0], zero))
    span = low.need(low.apply("Sub", low.apply("Max", extremes[1], zero), least))
    span = low.apply("Where", low.apply("Equal", span, zero), scalar(low, 1.0, F32), span)
    scale = low.need(low.apply("Div", span, scalar(low, 255.0, F32)))
    none = low.constant(np.zeros((), np.uint8))
    point = low.need(low.apply("Quantize", low.apply("Neg", least), scale, none, to="u8", precision="f32"))
    return [low.apply("Quantize", x, scale, point, to="u8", precision="f32"), scale, point]


def output_scale(low: Lowering, a_scale: Tensor, b_scale: Tensor, y_scale: Tensor) -> Tensor:
    """Return by what sums are multiplied to be quantised again."""
    scales = a_scale, b_scale, y_scale
    if any(each.value is None for each in scales):
        return low.need(low.apply("Div", low.apply("Mul", a_scale, b_scale), y_scale))
    of_a, of_b, of_y = (np.asarray(each.value, np.float32) for each in scales)
    with np.errstate(all="ignore"):
        return low.constant(of_a * of_b / of_y)


def moved_by(x: Tensor, kind: Kind) -> int:
    """Return by how much 8-bit integers move to be of the kind of an instruction's side."""
    if x.kind not in (U8, I8):
        raise NotCompiled
    if x.kind is kind or kind.size_bytes > 1:
        return 0
    return 128 if x.kind is I8 else -128


def as_dot_kind(low: Lowering, x: Tensor, kind: Kind) -> Tensor:
    """Return 8-bit integers in another 8-bit kind, moved by what `moved_by` says."""
    by = moved_by(x, kind)
    if not by:
        return x
    if x.value is None:
        return low.need(low.apply("FlipSign", x))

    def moved(value: np.ndarray) -> np.ndarray:
        return (value.astype(np.int16) + by).astype(dtype_of(kind))

    return low.derived(x, ("moved", by), moved)


def centred(low: Lowering, x: Tensor, zero: Tensor | None) -> Tensor:
    """Return `x` less its zero points in i16."""
    if zero is None or (zero.value is not None and not zero.value.any()):
        return cast(low, x, I16)
    if x.value is not None and zero.value is not None:
        points = zero.value.astype(np.int16)
        key = ("centred", points.shape, points.tobytes())
        return low.derived(x, key, lambda value: value.astype(np.int16) - points)
    return low.apply("Sub", cast(low, x, I16), cast(low, zero, I16))


def moved_zero(low: Lowering, zero: Tensor | None, by: int) -> Tensor | None:
    """Return zero points in i32, moved like their numbers; None if all are 0."""
    if zero is not None and zero.value is None:
        wide = cast(low, zero, I32)
        return low.apply("Add", wide, low.constant(np.int32(by))) if by else wide
    points = np.int32(by) + (0 if zero is None else zero.value.astype(np.int32))  # type: ignore[union-attr]
    return low.constant(np.asarray(points, np.int32)) if points.any() else None


def _product(low: Lowering, a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """Return the product of matrices less their zero points.

    Where the target multiplies 8-bit integers, zero points are taken off the sums::

        sum over k of (a - p) (b - q) = sum of a b - p (sum of b) - q ((sum of a) - K p)
    """
    dot = low.target.integer_dot
    left, right = KINDS[dot.left], KINDS[dot.right]
    a_zero, b_zero = (
        None if zero is None else _along(low, zero, each, axis)
        for zero, each, axis in ((a_zero, a, -1), (b_zero, b, -2))
    )
    if left.size_bytes > 1:
        return matrix_product(low, centred(low, a, a_zero), centred(low, b, b_zero))
    depth = low.constant(np.int32(a.shape[-1]))
    p, q = moved_zero(low, a_zero, moved_by(a, left)), moved_zero(low, b_zero, moved_by(b, right))
    a, b = as_dot_kind(low, a, left), as_dot_kind(low, b, right)
    total = matrix_product(low, a, b)
    if p is not None:
        total = low.apply("Sub", total, low.apply("Mul", p, sums(low, b, [b.rank - 2])))
    if q is not None:
        of_row = sums(low, a, [a.rank - 1])
        if p is not None:
            of_row = low.apply("Sub", of_row, low.apply("Mul", p, depth))
        total = low.apply("Sub", total, low.apply("Mul", q, low.need(of_row)))
    return total


def sums(low: Lowering, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the sums of narrow integers along some axes, in i32, the axes kept."""
    along = tuple(axes)
    if x.value is not None:
        return low.derived(x, ("sums", along), lambda value: value.sum(along, np.int32, keepdims=True))
    return reduced(low, low.apply("Cast", low.need(x), to="i32"), along, SUM)


def _along(low: Lowering, given: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return what is given once, or for each row (axis -1) or column (axis -2) of `x`, to meet it."""
    if given.size == 1:
        return low.reshape(given, ())
    if given.rank == 1 and x.rank > 1:
        return low.reshape(given, (given.size, 1) if axis == -1 else (1, given.size))
    if given.rank == x.rank and given.shape[axis] == 1:
        return given
    raise ValueError(f"scales or zero points of shape {list(given.shape)} for {list(x.shape)}")
