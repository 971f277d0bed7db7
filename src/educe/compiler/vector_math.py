"""Elementary functions on vectors, from arithmetic alone."""

from __future__ import annotations

from educe.compiler.emit import F32, F64, I32, I64, Function, Val


def exp(fn: Function, x: Val) -> Val:
    """Return e to the x, to within 2 units in the last place.

    x = n · ln 2 + r with |r| <= ln 2 / 2; a polynomial gives exp(r), and n goes to the exponent
    (Cody and Waite, Software Manual for the Elementary Functions, 1980).
    """
    if x.kind is F64:
        return fn.intrinsic("exp", x)
    assert x.kind is F32
    bounded = fn.maximum(fn.minimum(x, 89.0), -104.0)
    n = fn.intrinsic("roundeven", bounded * 1.4426950408889634)
    r = fn.fma(n, -0.693145751953125, bounded)
    r = fn.fma(n, -1.42860682030941723212e-6, r)
    p = fn.const(F32, 1.9875691500e-4, x.lanes)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fn.fma(p, r, c)
    y = fn.fma(p, r * r, r) + 1.0
    whole = fn.cast(n, I32)
    half = whole >> 1
    y = y * _power_of_two(fn, half) * _power_of_two(fn, whole - half)
    return fn.select(fn.is_nan(x), x, y)


def _power_of_two(fn: Function, n: Val) -> Val:
    return fn.bitcast((n + 127) << 23, F32)


__all__ = ["F64", "I64", "exp"]
