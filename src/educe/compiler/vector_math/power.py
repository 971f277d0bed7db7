"""Powers."""

from __future__ import annotations

from educe.compiler.emit import F32, F64, Function, Val
from educe.compiler.vector_math.binary import FORMATS, by_library, in_f64, magnitude
from educe.compiler.vector_math.exponential import exp
from educe.compiler.vector_math.logarithm import log


def power(fn: Function, x: Val, y: Val) -> Val:
    """Return x to the y as the C library's `pow` does, in f32 to within 1 unit in the last place.

    In f32 it is exp(y · log |x|) in f64, with the sign that a whole exponent gives.
    """
    if x.kind is F64:
        return by_library(fn, "pow", x, y)
    assert x.kind is F32, x
    size = magnitude(fn, x)
    result = fn.cast(exp(fn, in_f64(fn, y) * log(fn, in_f64(fn, size))), F32)
    result = fn.select((y == 0) | (size == 1.0), 1.0, result)
    is_whole = fn.intrinsic("trunc", y) == y
    half = y * 0.5
    is_odd = is_whole & (fn.intrinsic("trunc", half) != half)
    is_negative = fn.bitcast(x, FORMATS[F32].bits) < 0
    result = fn.select(is_negative & is_odd, fn.neg(result), result)
    finite = size < float("inf")
    result = fn.select((x < 0) & finite & ~is_whole, float("nan"), result)
    is_nan = fn.is_nan(x) & (y != 0) | fn.is_nan(y) & (x != 1.0)
    return fn.select(is_nan, float("nan"), result)
