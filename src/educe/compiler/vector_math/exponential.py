"""The exponential function and what is made of it."""

from __future__ import annotations

import math

from educe.compiler.emit import F32, F64, Function, Val
from educe.compiler.vector_math.binary import FORMATS, magnitude, polynomial, power_of_two, with_sign

# exp(r) = 1 + r + r² · polynomial(r) for |r| <= ln 2 / 2. In f32 the relative error is at most 2^-28 (Remez'
# algorithm); in f64 it is Taylor's series, whose rest is below 2^-57.
_TAIL = {
    F32: (0.49999993338, 0.16666519006, 0.041668407169, 0.0083689136817, 0.0013814191768),
    F64: tuple(1 / math.factorial(n) for n in range(2, 14)),
}

# Arguments are bounded before they are reduced. From the lower bound down both halves of the power of two are
# 0, so that what is masked out is exactly 0 and no slow denormal number comes up; above the upper one
# both of them together are infinite.
_BOUNDS = {F32: (-176.0, 89.0), F64: (-1418.0, 710.0)}

# The same for a power of two that is 2^-_RISE times a normal number.
_RISE = {F32: 64, F64: 512}
_FALL_BOUND = {F32: -132.5, F64: -1064.0}

# (tanh(x) - x)/x³ in x² for |x| <= 0.55, to 2^-29 (Remez).
_TANH_SMALL = (-0.33333318046, 0.13332601687, -0.053853858045, 0.021077758655, -0.006282473623)
_TANH_SPLIT = 0.55

# Where tanh is 1 to the last place.
_TANH_BOUND = {F32: 9.25, F64: 19.5}


def exp(fn: Function, x: Val) -> Val:
    """Return e to the x, to within 1.1 units in the last place.

    x = n · ln 2 + r with |r| <= ln 2 / 2; a polynomial gives exp(r), and n goes to the exponent
    (Cody and Waite, Software Manual for the Elementary Functions, 1980), in two halves, for the numbers at
    both ends of the range.
    """
    low, high = _BOUNDS[x.kind]
    n, tail = _reduced(fn, fn.maximum(fn.minimum(x, high), low))
    half = n >> 1
    return (tail + 1.0) * power_of_two(fn, half, x.kind) * power_of_two(fn, n - half, x.kind)


def expm1(fn: Function, x: Val) -> Val:
    """Return exp(x) - 1, to within 2 units in the last place, for small x as well."""
    n, tail = _reduced(fn, fn.maximum(fn.minimum(x, _BOUNDS[x.kind][1]), -2.0 * _TANH_BOUND[x.kind]))
    scale = power_of_two(fn, n, x.kind, -1)
    half = fn.fma(tail, scale, scale - 0.5)
    return half + half


def sigmoid(fn: Function, x: Val) -> Val:
    """Return 1 / (1 + exp(-x)), to within 3 units in the last place, for large negative x as well."""
    fall = fn.maximum(fn.neg(magnitude(fn, x)), _FALL_BOUND[x.kind])
    n, tail = _reduced(fn, fall)
    rise = _RISE[x.kind]
    e = (tail + 1.0) * power_of_two(fn, n, x.kind, rise) * 2.0**-rise
    return fn.select(x < 0, e, 1.0) / (e + 1.0)


def tanh(fn: Function, x: Val) -> Val:
    """Return the hyperbolic tangent, to within 2 units in the last place.

    It is q / (q + 2) with q = exp(2|x|) - 1; in f32, a polynomial for small x.
    """
    size = magnitude(fn, x)
    bounded = fn.minimum(size, _TANH_BOUND[x.kind])
    n, tail = _reduced(fn, bounded + bounded)
    scale = power_of_two(fn, n, x.kind)
    q = fn.fma(tail, scale, scale - 1.0)
    y = q / (q + 2.0)
    if x.kind is F32:
        square = x * x
        small = fn.fma(polynomial(fn, square, _TANH_SMALL) * square, size, size)
        y = fn.select(size < _TANH_SPLIT, small, y)
    return with_sign(fn, y, x)


def _reduced(fn: Function, x: Val) -> tuple[Val, Val]:
    """Return n, in the low bits of an integer, and exp(r) - 1 for x = n · ln 2 + r."""
    form = FORMATS[x.kind]
    shifted = fn.fma(x, math.log2(math.e), form.shift)
    n = shifted - form.shift
    r = fn.fma(n, -form.ln2_low, fn.fma(n, -form.ln2_high, x))
    return fn.bitcast(shifted, form.bits), fn.fma(polynomial(fn, r, _TAIL[x.kind]), r * r, r)
