"""The hyperbolic functions that are rare, and their inverses."""

from __future__ import annotations

from collections.abc import Callable

from educe.compiler.emit import F32, F64, Function, Val
from educe.compiler.vector_math.binary import by_library, in_f64, magnitude, with_sign
from educe.compiler.vector_math.exponential import exp
from educe.compiler.vector_math.logarithm import log

# Below it an odd function is its argument in f32; above it f64 loses nothing that f32 could show.
_SMALL = 2.0**-13


def sinh(fn: Function, x: Val) -> Val:
    """Return the hyperbolic sine, in f32 to within 1 unit in the last place."""

    def of(size: Val) -> Val:
        e = exp(fn, size)
        return (e - 1.0 / e) * 0.5

    return _odd(fn, "sinh", x, of)


def cosh(fn: Function, x: Val) -> Val:
    """Return the hyperbolic cosine, in f32 to within 1 unit in the last place."""
    if x.kind is F64:
        return by_library(fn, "cosh", x)
    e = exp(fn, in_f64(fn, x))
    return fn.cast((e + 1.0 / e) * 0.5, F32)


def asinh(fn: Function, x: Val) -> Val:
    """Return the inverse hyperbolic sine, in f32 to within 1 unit in the last place."""
    return _odd(fn, "asinh", x, lambda size: log(fn, size + fn.intrinsic("sqrt", size * size + 1.0)))


def acosh(fn: Function, x: Val) -> Val:
    """Return the inverse hyperbolic cosine, in f32 to within 1 unit in the last place; NaN below 1."""
    if x.kind is F64:
        return by_library(fn, "acosh", x)
    wide = in_f64(fn, x)
    root = fn.intrinsic("sqrt", wide - 1.0) * fn.intrinsic("sqrt", wide + 1.0)
    return fn.cast(log(fn, wide + root), F32)


def atanh(fn: Function, x: Val) -> Val:
    """Return the inverse hyperbolic tangent, in f32 to within 1 unit in the last place; NaN beyond 1."""
    return _odd(fn, "atanh", x, lambda size: log(fn, (size + 1.0) / (1.0 - size)) * 0.5)


def _odd(fn: Function, name: str, x: Val, of: Callable[[Val], Val]) -> Val:
    """Return an odd function, given for f64 from 0 on; it is near the identity at 0."""
    if x.kind is F64:
        return by_library(fn, name, x)
    size = magnitude(fn, x)
    large = with_sign(fn, fn.cast(of(in_f64(fn, size)), F32), x)
    return fn.select(size < _SMALL, x, large)
