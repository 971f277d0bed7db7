"""Scalar functions: comparisons, truth, choice and bits."""

from __future__ import annotations

from educe.compiler.emit import Function, Val
from educe.compiler.kernels.expression import scalar


@scalar("Equal")
def equal(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a = b."""
    return a == b


@scalar("Less")
def less(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a < b."""
    return a < b


@scalar("LessOrEqual")
def less_or_equal(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a <= b."""
    return a <= b


@scalar("Greater")
def greater(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a > b."""
    return a > b


@scalar("GreaterOrEqual")
def greater_or_equal(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a >= b."""
    return a >= b


@scalar("IsNaN")
def is_nan(fn: Function, x: Val) -> Val:
    """Return whether x is not a number."""
    return fn.is_nan(x)


@scalar("IsInf", detect_negative=1, detect_positive=1)
def is_inf(fn: Function, x: Val, detect_negative: int, detect_positive: int) -> Val:
    """Return whether x is infinite, with a sign that is asked for."""
    infinity = fn.const(x.kind, float("inf"), x.lanes)
    found = fn.const(x.kind, 0, x.lanes) != 0
    if detect_positive:
        found = found | (x == infinity)
    if detect_negative:
        found = found | (x == float("-inf"))
    return found


@scalar("And", "BitwiseAnd")
def and_(fn: Function, a: Val, b: Val) -> Val:
    """Return a and b, of every bit."""
    return a & b


@scalar("Or", "BitwiseOr")
def or_(fn: Function, a: Val, b: Val) -> Val:
    """Return a or b, of every bit."""
    return a | b


@scalar("Xor", "BitwiseXor")
def xor(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a and b differ, of every bit."""
    return a ^ b


@scalar("Not", "BitwiseNot")
def not_(fn: Function, x: Val) -> Val:
    """Return the opposite, of every bit."""
    return ~x


@scalar("BitShift", direction="LEFT")
def bit_shift(fn: Function, a: Val, b: Val, direction: str) -> Val:
    """Return a shifted by b bits; shifted by all its bits or more, or by fewer than 0, it is all sign."""
    bits = 8 * a.kind.size_bytes
    inside = b < bits
    if b.kind.is_signed:
        inside = inside & (b >= 0)
    if direction == "LEFT":
        return fn.select(inside, a << fn.select(inside, b, 0), 0)
    if a.kind.is_signed:
        return a >> fn.select(inside, b, bits - 1)
    return fn.select(inside, a >> fn.select(inside, b, 0), 0)


@scalar("Where")
def where(fn: Function, condition: Val, a: Val, b: Val) -> Val:
    """Return a where the condition is true, else b."""
    return fn.select(condition, a, b)
