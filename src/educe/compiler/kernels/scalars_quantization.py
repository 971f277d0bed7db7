"""Scalar functions: between floats and the integers that stand for them."""

from __future__ import annotations

from educe.compiler.emit import F32, I32, KINDS, Function, Kind, Val
from educe.compiler.kernels.expression import scalar


@scalar("Quantize", flops=8, to="u8", precision="f32")
def quantize(fn: Function, x: Val, scale: Val, zero_point: Val, to: str, precision: str) -> Val:
    """Return x / scale rounded to nearest, the even one of two, plus the zero point, within bounds."""
    quotient = fn.cast(x, KINDS[precision]) / fn.cast(scale, KINDS[precision])
    return _rounded(fn, fn.cast(quotient, F32), zero_point, KINDS[to])


@scalar("Requantize", flops=6)
def requantize(fn: Function, total: Val, scale: Val, zero_point: Val) -> Val:
    """Return an integer's product with a scale, rounded like `quantize`, in the kind of the zero point."""
    return _rounded(fn, fn.cast(total, F32) * scale, zero_point, zero_point.kind)


@scalar("Dequantize", flops=2, to="f32")
def dequantize(fn: Function, x: Val, scale: Val, zero_point: Val, to: str) -> Val:
    """Return (x - zero point) · scale."""
    return fn.cast((fn.cast(x, F32) - fn.cast(zero_point, F32)) * fn.cast(scale, F32), KINDS[to])


@scalar("WholeNumber")
def whole_number(fn: Function, x: Val) -> Val:
    """Return a float that is known to be an integer of 32 bits as one."""
    return fn.truncate(x, I32)


@scalar("FlipSign")
def flip_sign(fn: Function, x: Val) -> Val:
    """Return the 8-bit integer x moved by 128 into the kind of the other sign."""
    other = KINDS["i8" if x.kind.name == "u8" else "u8"]
    return fn.extend(x ^ (-128 if x.kind.is_signed else 128), other)


def _rounded(fn: Function, x: Val, zero_point: Val, kind: Kind) -> Val:
    """Return x rounded to nearest, the even one of two, plus the zero point; NaN becomes the least number."""
    bits = 8 * kind.size_bytes
    least = -(1 << (bits - 1)) if kind.is_signed else 0
    zero = fn.cast(zero_point, F32)
    low, high = float(least) - zero, float(least + (1 << bits) - 1) - zero
    inside = fn.select(x > low, x, low)
    inside = fn.select(inside < high, inside, high)
    name = f"llvm.lrint.v{x.lanes}i32.v{x.lanes}f32" if x.lanes else "llvm.lrint.i32.f32"
    return fn.extend(fn.call(name, I32, x.lanes, inside) + fn.extend(zero_point, I32), kind)
