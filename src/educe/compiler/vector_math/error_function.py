"""The error function."""

from __future__ import annotations

from educe.compiler.emit import F32, F64, Function, Val
from educe.compiler.vector_math.binary import (
    FORMATS,
    by_library,
    magnitude,
    polynomial,
    power_of_two,
    with_sign,
)

# Three approximations by Remez' algorithm: erf(x)/x - 1 in x² for |x| <= 0.9, to 2^-26; -log2(erfc(x)) for
# 0.9 <= x <= 3.93, to an error in erf of 2^-28; and (2^r - 1)/r for |r| <= 1/2, to 2^-23, of which erfc(x)
# leaves a fifth.
_SMALL = (0.12837915532, -0.37612532446, 0.1128222997, -0.026781957205, 0.0050162287954, -0.00061112941501)
_LARGE = (
    0.00025607384456, 1.6269986871, 0.91908297167, 0.15009415943,
    -0.032139031105, 0.0044083066873, -0.00028447275192,
)  # fmt: skip
_EXP2 = (0.6931469776, 0.24022242085, 0.055507337421, 0.0096715126395, 0.0013264727585)

_SPLIT = 0.9
_BOUND = 3.93


def erf(fn: Function, x: Val) -> Val:
    """Return the error function, to within 2 units in the last place.

    For small x it is x times a polynomial; else 1 - 2^-p(|x|), which is 1 in f32 from 3.93 on.
    """
    if x.kind is F64:
        return by_library(fn, "erf", x)
    assert x.kind is F32, x
    size = magnitude(fn, x)
    small = fn.fma(polynomial(fn, x * x, _SMALL), x, x)
    shift = FORMATS[F32].shift
    p = polynomial(fn, fn.minimum(size, _BOUND), _LARGE)
    shifted = shift - p
    r = (shift - shifted) - p
    e = fn.fma(polynomial(fn, r, _EXP2), r, 1.0)
    scale = power_of_two(fn, fn.bitcast(shifted, FORMATS[F32].bits), F32)
    large = with_sign(fn, fn.fma(fn.neg(e), scale, 1.0), x)
    return fn.select(size < _SPLIT, small, large)
