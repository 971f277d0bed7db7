"""Scalar functions: between floats and the integers that stand for them."""

from __future__ import annotations

from educe.compiler.emit import F32, KINDS, Function, Val
from educe.compiler.kernels.expression import scalar


@scalar("Quantize", flops=8, to="u8", precision="f32")
def quantize(fn: Function, x: Val, scale: Val, zero_point: Val, to: str, precision: str) -> Val:
    """Return x / scale rounded to nearest, the even one of two, plus the zero point, within bounds."""
    quotient = fn.cast(x, KINDS[precision]) / fn.cast(scale, KINDS[precision])
    y = fn.intrinsic("nearbyint", fn.cast(quotient, F32)) + fn.cast(zero_point, F32)
    return fn.cast(y, KINDS[to])


@scalar("Dequantize", flops=2, to="f32")
def dequantize(fn: Function, x: Val, scale: Val, zero_point: Val, to: str) -> Val:
    """Return (x - zero point) · scale."""
    return fn.cast((fn.cast(x, F32) - fn.cast(zero_point, F32)) * fn.cast(scale, F32), KINDS[to])
