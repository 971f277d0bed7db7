"""The natural logarithm."""

from __future__ import annotations

import math

from educe.compiler.emit import F32, F64, Function, Val
from educe.compiler.vector_math.binary import FORMATS, polynomial

# log(1 + f) = f - f²/2 + f³ · polynomial(f) for sqrt(1/2) <= 1 + f < sqrt(2), relative error 2^-27 (Remez).
_TAIL_F32 = (
    0.33333316726, -0.25000810399, 0.200022863, -0.1662455427,
    0.14181191433, -0.13128752054, 0.128816504, -0.07859622818,
)  # fmt: skip

# log(1 + f) = f - s · (f - R(s²)) with s = f / (2 + f): the series of 2 · artanh(s), its rest below 2^-55.
_TAIL_F64 = tuple(2 / (2 * k + 1) for k in range(1, 11))

_SQRT_HALF = {F32: 0x3F3504F3, F64: 0x3FE6A09E667F3BCD}
_LEAST_NORMAL = {F32: 2.0**-126, F64: 2.0**-1022}


def log(fn: Function, x: Val) -> Val:
    """Return the natural logarithm, to within 1 unit in the last place; NaN below 0.

    x = 2^n · (1 + f) with 1 + f between sqrt(1/2) and sqrt(2).
    """
    form = FORMATS[x.kind]
    is_tiny = x < _LEAST_NORMAL[x.kind]
    scaled = fn.select(is_tiny, x * 2.0**form.precision, x)
    above = fn.bitcast(scaled, form.bits) - _SQRT_HALF[x.kind]
    significand = (above & ((1 << form.precision) - 1)) + _SQRT_HALF[x.kind]
    n = fn.cast(above >> form.precision, x.kind)
    n = fn.select(is_tiny, n - float(form.precision), n)
    f = fn.bitcast(significand, x.kind) - 1.0
    low = n * form.ln2_low
    y = fn.fma(n, form.ln2_high, f + (_tail_f32 if x.kind is F32 else _tail_f64)(fn, f, low))
    y = fn.select(x < math.inf, y, x)
    return fn.select(x > 0, y, fn.select(x == 0, fn.const(x.kind, -math.inf, x.lanes), math.nan))


def log1p(fn: Function, x: Val) -> Val:
    """Return log(1 + x), to within 2 units in the last place, for small x as well.

    The logarithm of the rounded sum is corrected by what the rounding lost.
    """
    total = x + 1.0
    y = log(fn, total)
    corrected = y + (x - (total - 1.0)) / total
    return fn.select((total > 0) & (total < math.inf), corrected, y)


def _tail_f32(fn: Function, f: Val, low: Val) -> Val:
    """Return log(1 + f) - f + `low`."""
    return fn.fma(fn.fma(polynomial(fn, f, _TAIL_F32), f, -0.5), f * f, low)


def _tail_f64(fn: Function, f: Val, low: Val) -> Val:
    """Return log(1 + f) - f + `low`."""
    s = f / (f + 2.0)
    square = s * s
    return low - s * (f - square * polynomial(fn, square, _TAIL_F64))
