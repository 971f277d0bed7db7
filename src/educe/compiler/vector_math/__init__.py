"""Elementary functions on vectors of f32 and f64, from arithmetic alone wherever speed matters.

In f32 each function is within 2 units in the last place over its whole range, denormal numbers, infinities
and arguments of any size included; the rarer ones are computed in f64 and rounded once. In f64, `exp`, `log`
and `tanh` are vectors too, within a few units in the last place; the others call the C library lane by lane.
"""

from educe.compiler.vector_math.circular import acos, asin, atan, cos, sin, tan
from educe.compiler.vector_math.error_function import erf
from educe.compiler.vector_math.exponential import exp, expm1, sigmoid, tanh
from educe.compiler.vector_math.hyperbolic import acosh, asinh, atanh, cosh, sinh
from educe.compiler.vector_math.logarithm import log, log1p
from educe.compiler.vector_math.power import power

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "cos",
    "cosh",
    "erf",
    "exp",
    "expm1",
    "log",
    "log1p",
    "power",
    "sigmoid",
    "sin",
    "sinh",
    "tan",
    "tanh",
]
