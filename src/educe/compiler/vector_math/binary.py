"""The binary floating-point formats, and what every elementary function does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from educe.compiler.emit import F32, F64, I32, I64, Function, Kind, Val


@dataclass(frozen=True)
class Format:
    """A binary floating-point format (IEEE 754).

    Attributes:
        bits: The integer kind of the same size.
        precision: Bits of the stored significand.
        bias: The exponent's bias.
        ln2_high: The leading bits of ln 2, so few that its product with any exponent is exact.
        ln2_low: The rest of ln 2.
    """

    bits: Kind
    precision: int
    bias: int
    ln2_high: float
    ln2_low: float

    @property
    def shift(self) -> float:
        """A number whose last place is 1: adding it rounds to an integer, which is then in the low bits."""
        return 1.5 * 2.0**self.precision


FORMATS = {
    F32: Format(I32, 23, 127, float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cf79abcap-20")),
    F64: Format(I64, 52, 1023, float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")),
}
"""The formats that functions are computed in, by kind."""


def polynomial(fn: Function, x: Val, coefficients: Sequence[float]) -> Val:
    """Return the polynomial of `x` with `coefficients` from the constant one on, by Horner's rule."""
    value = fn.const(x.kind, coefficients[-1], x.lanes)
    for coefficient in reversed(coefficients[:-1]):
        value = fn.fma(value, x, coefficient)
    return value


def power_of_two(fn: Function, n: Val, kind: Kind, more: int = 0) -> Val:
    """Return 2 to the n + `more`, and 0 for the exponent below the smallest; only low bits of `n` count."""
    form = FORMATS[kind]
    return fn.bitcast((n << form.precision) + ((form.bias + more) << form.precision), kind)


def magnitude(fn: Function, x: Val) -> Val:
    """Return |x|."""
    return fn.intrinsic("fabs", x)


def with_sign(fn: Function, x: Val, sign: Val) -> Val:
    """Return `x` with the sign of `sign`."""
    return fn.intrinsic("copysign", x, sign)


def in_f64(fn: Function, x: Val) -> Val:
    """Return the f32 `x` as f64."""
    assert x.kind is F32, x
    return fn.cast(x, F64)


def by_library(fn: Function, name: str, *arguments: Val) -> Val:
    """Return the C library's function `name` of f64 arguments, called for each lane."""
    lanes = arguments[0].lanes
    if not lanes:
        return fn.call(name, F64, 0, *arguments)
    result = fn.const(F64, 0.0, lanes)
    for lane in range(lanes):
        value = fn.call(name, F64, 0, *(fn.extract(each, lane) for each in arguments))
        text = f"insertelement {result.type} {result.ref}, {value.type} {value.ref}, i64 {lane}"
        result = fn.emit(F64, lanes, text)
    return result
