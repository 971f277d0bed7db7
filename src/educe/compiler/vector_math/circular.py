"""The circular functions and their inverses."""

from __future__ import annotations

import math

from educe.compiler.emit import BOOL, F32, F64, I32, I64, Function, Val
from educe.compiler.vector_math.binary import (
    FORMATS,
    by_library,
    in_f64,
    magnitude,
    polynomial,
    with_sign,
)

# Taylor's series in r² for |r| <= π/4: sin(r)/r to 2^-37, and cos(r) to 2^-32.
_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(6))
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(6))

# π/2 in two parts, of which the first has 33 bits: its product with a number of turns below 2^20 is exact.
_HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
_HALF_PI_LOW = float.fromhex("0x1.0b4611a626331p-34")

_FAR = 2.0**20
"""Arguments from here on are reduced by `_far_quarters`."""

# 1/(2π), 224 bits after the point: enough for the largest f32 and 96 bits behind it.
_TURN_BITS = 224
_TURN = 0x28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E4107F9458EA

# (asin(x) - x)/x³ in x² for |x| <= 1/2, to 2^-27, and (atan(x) - x)/x³ in x² for |x| <= 1, to 2^-28 (Remez).
_ASIN = (0.16666753928, 0.074952417682, 0.045477099165, 0.024147599339, 0.042218569765)
_ATAN = (
    -0.33333301866, 0.19998638609, -0.14265245259, 0.10957575501, -0.084194570381,
    0.058234514832, -0.03145566714, 0.011064423019, -0.0018272090914,
)  # fmt: skip


def sin(fn: Function, x: Val) -> Val:
    """Return the sine, in f32 to within 1 unit in the last place, for arguments of any size."""
    if x.kind is F64:
        return by_library(fn, "sin", x)
    quarters, r = _reduced(fn, x)
    return _of_finite(fn, x, _sine(fn, quarters, r))


def cos(fn: Function, x: Val) -> Val:
    """Return the cosine, in f32 to within 1 unit in the last place, for arguments of any size."""
    if x.kind is F64:
        return by_library(fn, "cos", x)
    quarters, r = _reduced(fn, x)
    return _of_finite(fn, x, _sine(fn, quarters + 1, r))


def tan(fn: Function, x: Val) -> Val:
    """Return the tangent, in f32 to within 1 unit in the last place, for arguments of any size."""
    if x.kind is F64:
        return by_library(fn, "tan", x)
    quarters, r = _reduced(fn, x)
    square = r * r
    sine, cosine = r * polynomial(fn, square, _SIN), polynomial(fn, square, _COS)
    is_odd = (quarters & 1) != 0
    above, below = fn.select(is_odd, fn.neg(cosine), sine), fn.select(is_odd, sine, cosine)
    return _of_finite(fn, x, above / below)


def asin(fn: Function, x: Val) -> Val:
    """Return the arc sine, in f32 to within 1 unit in the last place; NaN beyond 1."""
    if x.kind is F64:
        return by_library(fn, "asin", x)
    is_large, y = _arc(fn, x)
    return with_sign(fn, fn.cast(fn.select(is_large, math.pi / 2 - (y + y), y), F32), x)


def acos(fn: Function, x: Val) -> Val:
    """Return the arc cosine, in f32 to within 1 unit in the last place; NaN beyond 1."""
    if x.kind is F64:
        return by_library(fn, "acos", x)
    is_large, y = _arc(fn, x)
    of_size = fn.select(is_large, y + y, math.pi / 2 - y)
    return fn.cast(fn.select(x < 0, math.pi - of_size, of_size), F32)


def atan(fn: Function, x: Val) -> Val:
    """Return the arc tangent, in f32 to within 1 unit in the last place.

    Beyond 1 it is π/2 less that of 1/x.
    """
    if x.kind is F64:
        return by_library(fn, "atan", x)
    size = in_f64(fn, magnitude(fn, x))
    is_large = size > 1.0
    t = fn.select(is_large, 1.0 / size, size)
    square = t * t
    y = fn.fma(polynomial(fn, square, _ATAN), square * t, t)
    return with_sign(fn, fn.cast(fn.select(is_large, math.pi / 2 - y, y), F32), x)


def _arc(fn: Function, x: Val) -> tuple[Val, Val]:
    """Return whether |x| > 1/2, and asin |x|; there asin sqrt((1 - |x|)/2), which is acos(|x|)/2."""
    size = in_f64(fn, magnitude(fn, x))
    is_large = size > 0.5
    square = fn.select(is_large, (1.0 - size) * 0.5, size * size)
    t = fn.select(is_large, fn.intrinsic("sqrt", square), size)
    return is_large, fn.fma(polynomial(fn, square, _ASIN), square * t, t)


def _of_finite(fn: Function, x: Val, value: Val) -> Val:
    """Return the f64 `value` as f32, and NaN where x is not finite."""
    return fn.select(magnitude(fn, x) < math.inf, fn.cast(value, F32), math.nan)


def _sine(fn: Function, quarters: Val, r: Val) -> Val:
    """Return the sine of `quarters` · π/2 + r."""
    square = r * r
    sine, cosine = r * polynomial(fn, square, _SIN), polynomial(fn, square, _COS)
    value = fn.select((quarters & 1) != 0, cosine, sine)
    return fn.bitcast(fn.bitcast(value, I64) ^ ((quarters & 2) << 62), F64)


def _reduced(fn: Function, x: Val) -> tuple[Val, Val]:
    """Return the quarter turns next to the f32 `x`, in the low bits of an i64, and the rest, |r| <= π/4."""
    wide = in_f64(fn, x)
    shift = FORMATS[F64].shift
    shifted = fn.fma(wide, 2 / math.pi, shift)
    n = shifted - shift
    rest = fn.var(fn.fma(n, -_HALF_PI_LOW, fn.fma(n, -_HALF_PI_HIGH, wide)))
    quarters = fn.var(fn.bitcast(shifted, I64))
    is_far = magnitude(fn, x) >= _FAR
    some = fn.call(f"llvm.vector.reduce.or.v{x.lanes}i1", BOOL, 0, is_far) if x.lanes else is_far
    with fn.when(some):
        far_quarters, far_rest = _far_quarters(fn, x)
        rest.set(fn.select(is_far, far_rest, rest.get()))
        quarters.set(fn.select(is_far, far_quarters, quarters.get()))
    return quarters.get(), rest.get()


def _far_quarters(fn: Function, x: Val) -> tuple[Val, Val]:
    """Return what `_reduced` does, for |x| from `_FAR` on.

    x = m · 2^e; a table has 2^e/(2π) without its whole turns for each exponent e, in units of 2^-64 and 2^-96
    turns, so that m times it is x in turns, modulo 1 (Payne and Hanek, Radian Reduction for Trigonometric
    Functions, 1983).
    """
    first = 127 + 20
    bits = fn.bitcast(magnitude(fn, x), I32)
    exponent = fn.minimum(fn.maximum(bits >> 23, first), 254) - first
    significand = fn.extend((bits & 0x7FFFFF) | 0x800000, I64)
    parts = [_turn(each - 150) for each in range(first, 255)]
    index = fn.extend(exponent, I64)
    high = _looked_up(fn, [part >> 32 for part in parts], index)
    low = _looked_up(fn, [part & 0xFFFFFFFF for part in parts], index)
    turns = significand * high + ((significand * low) >> 32)
    quarters = (turns + (1 << 61)) >> 62
    rest = fn.cast(turns - (quarters << 62), F64) * (2 * math.pi / 2.0**64)
    is_negative = x < 0
    return fn.select(is_negative, -quarters, quarters), fn.select(is_negative, -rest, rest)


def _turn(exponent: int) -> int:
    """Return 2^`exponent`/(2π) modulo 1, in units of 2^-96."""
    return (_TURN >> (_TURN_BITS - 96 - exponent)) & ((1 << 96) - 1)


def _looked_up(fn: Function, values: list[int], index: Val) -> Val:
    signed = [value - (1 << 64) if value >> 63 else value for value in values]
    table = fn.table(I64, signed)
    return fn.gather(I64, table, index) if index.lanes else fn.load(I64, table, index)
