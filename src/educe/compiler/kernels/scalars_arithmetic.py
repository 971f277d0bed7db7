"""Scalar functions: arithmetic, rounding, and the elementary functions."""

from __future__ import annotations

from collections.abc import Callable

from educe.compiler import vector_math as vm
from educe.compiler.emit import F64, KINDS, U64, Function, Val
from educe.compiler.kernels.expression import in_f32, scalar


@scalar("Identity")
def identity(fn: Function, x: Val) -> Val:
    """Return x."""
    return x


@scalar("Add")
def add(fn: Function, a: Val, b: Val) -> Val:
    """Return a + b."""
    return a + b


@scalar("Sub")
def sub(fn: Function, a: Val, b: Val) -> Val:
    """Return a - b."""
    return a - b


@scalar("Mul")
def mul(fn: Function, a: Val, b: Val) -> Val:
    """Return a · b."""
    return a * b


@scalar("Div", flops=4)
def div(fn: Function, a: Val, b: Val) -> Val:
    """Return a / b; for integers rounded toward zero, and 0 for a zero divisor."""
    if a.kind.is_float:
        return a / b
    return fn.select(b == 0, 0, _quotient(fn, a, b))


@scalar("Mod", flops=8, fmod=0)
def mod(fn: Function, a: Val, b: Val, fmod: int) -> Val:
    """Return the rest of a / b: with the sign of a if `fmod`, else with that of b; 0 for a zero divisor."""
    if a.kind.is_float:
        return in_f32(fn, a, lambda a: _float_rest(fn, a, fn.cast(b, a.kind), fmod))
    rest = a - _quotient(fn, a, b) * b
    if not fmod and a.kind.is_signed:
        rest = fn.select((rest != 0) & ((rest ^ b) < 0), rest + b, rest)
    return fn.select(b == 0, 0, rest)


def _float_rest(fn: Function, a: Val, b: Val, fmod: int) -> Val:
    rest = fn.binary("rem", a, b)
    if fmod:
        return rest
    rest = fn.select((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
    return fn.select(rest == 0, fn.intrinsic("copysign", rest, b), rest)


def _quotient(fn: Function, a: Val, b: Val) -> Val:
    """Return the integer a / b rounded toward zero, and anything for a zero divisor."""
    # The least integer has no negative, and the instruction traps on it.
    is_minus_one = b == -1 if a.kind.is_signed else b != b
    divisor = fn.select((b == 0) | is_minus_one, 1, b)
    if a.kind.size_bytes <= 4:
        # A quotient of integers of 32 bits, rounded to the 53 of f64, is never rounded up to a whole number.
        quotient = fn.truncate(fn.cast(a, F64) / fn.cast(divisor, F64), a.kind)
    else:
        quotient = a // divisor
    return fn.select(is_minus_one, -a, quotient)


@scalar("Neg")
def neg(fn: Function, x: Val) -> Val:
    """Return -x."""
    return -x


@scalar("Abs")
def absolute(fn: Function, x: Val) -> Val:
    """Return |x|; the least integer stays what it is."""
    if x.kind.is_float:
        return fn.binary_bits("and", x, (1 << (8 * x.kind.size_bytes - 1)) - 1)
    return fn.select(x < 0, -x, x) if x.kind.is_signed else x


@scalar("Sign")
def sign(fn: Function, x: Val) -> Val:
    """Return -1, 0 or 1 as x is below, at or above 0, and NaN for NaN."""
    positive = fn.select(x > 0, fn.const(x.kind, 1, x.lanes), x)
    return fn.select(x < 0, -1, positive) if x.kind.is_signed else positive


@scalar("Reciprocal", flops=4)
def reciprocal(fn: Function, x: Val) -> Val:
    """Return 1 / x."""
    return 1.0 / x


@scalar("Sqrt", flops=4)
def sqrt(fn: Function, x: Val) -> Val:
    """Return the square root."""
    return fn.intrinsic("sqrt", x)


@scalar("Pow", flops=80)
def power(fn: Function, x: Val, y: Val) -> Val:
    """Return x to the y, in the kind of x; kinds may differ."""
    if x.kind.is_float:
        return in_f32(fn, x, lambda x: vm.power(fn, x, fn.cast(y, x.kind)))
    if y.kind.is_float:
        return fn.cast(vm.power(fn, fn.cast(x, F64), fn.cast(y, F64)), x.kind)
    return _integer_power(fn, x, y)


def _integer_power(fn: Function, x: Val, y: Val) -> Val:
    """Return the integer x to the integer y, modulo the size of x; negative powers are rounded to 0."""
    one = fn.const(x.kind, 1, x.lanes)
    exponent = fn.cast(y, U64)
    result, square, left = fn.var(one), fn.var(x), fn.var(exponent)
    with fn.loop(0, 8 * y.kind.size_bytes):
        times = fn.select((left.get() & 1) != 0, square.get(), one)
        result.set(result.get() * times)
        square.set(square.get() * square.get())
        left.set(left.get() >> 1)
    if not y.kind.is_signed:
        return result.get()
    below = fn.select(x == 1, one, 0)
    if x.kind.is_signed:
        below = fn.select(x == -1, fn.select((exponent & 1) != 0, x, one), below)
    return fn.select(y < 0, below, result.get())


@scalar("PowerOf", exponent=2)
def power_of(fn: Function, x: Val, exponent: int) -> Val:
    """Return x to a small power that is known: 2 or 3, or 1/2 for `exponent` 0."""
    if exponent == 2:
        return x * x
    if exponent == 3:
        return in_f32(fn, x, lambda x: x * x * x)
    # The square root of -inf is NaN and that of -0 is -0; the power is inf and 0.
    return in_f32(fn, x, lambda x: fn.select(x == float("-inf"), float("inf"), fn.intrinsic("sqrt", x + 0.0)))


@scalar("Max")
def maximum(fn: Function, *values: Val) -> Val:
    """Return the largest; NaN if any is."""
    return _combined(fn, "max", values)


@scalar("Min")
def minimum(fn: Function, *values: Val) -> Val:
    """Return the smallest; NaN if any is."""
    return _combined(fn, "min", values)


@scalar("Sum")
def total(fn: Function, *values: Val) -> Val:
    """Return the sum."""
    return _combined(fn, "add", values)


@scalar("Mean", flops=4)
def mean(fn: Function, *values: Val) -> Val:
    """Return the mean."""
    return _combined(fn, "add", values) / float(len(values))


def _combined(fn: Function, name: str, values: tuple[Val, ...]) -> Val:
    result = values[0]
    for value in values[1:]:
        result = fn.combine(name, result, value)
    return result


@scalar("Clip")
def clip(fn: Function, x: Val, low: Val, high: Val) -> Val:
    """Return x within its bounds; the upper one wins where they cross."""
    return fn.minimum(fn.maximum(x, low), high)


@scalar("Round")
def round_(fn: Function, x: Val) -> Val:
    """Return the nearest whole number, the even one of two."""
    return fn.intrinsic("nearbyint", x)


@scalar("Cast", to="f32")
def cast(fn: Function, x: Val, to: str) -> Val:
    """Return x as another kind."""
    return fn.cast(x, KINDS[to])


def _intrinsics() -> None:
    for name, intrinsic in (("Ceil", "ceil"), ("Floor", "floor")):

        def write(fn: Function, x: Val, intrinsic: str = intrinsic) -> Val:
            return fn.intrinsic(intrinsic, x)

        scalar(name)(write)


def _elementary(name: str, function: Callable[[Function, Val], Val], flops: int) -> None:
    def write(fn: Function, x: Val) -> Val:
        return in_f32(fn, x, lambda x: function(fn, x))

    scalar(name, flops=flops)(write)


_intrinsics()
for _name, _function, _flops in (
    ("Exp", vm.exp, 20),
    ("Log", vm.log, 25),
    ("Tanh", vm.tanh, 25),
    ("Erf", vm.erf, 35),
    ("Sin", vm.sin, 50),
    ("Cos", vm.cos, 50),
    ("Tan", vm.tan, 60),
    ("Asin", vm.asin, 25),
    ("Acos", vm.acos, 25),
    ("Atan", vm.atan, 25),
    ("Sinh", vm.sinh, 60),
    ("Cosh", vm.cosh, 60),
    ("Asinh", vm.asinh, 80),
    ("Acosh", vm.acosh, 80),
    ("Atanh", vm.atanh, 80),
):
    _elementary(_name, _function, _flops)
