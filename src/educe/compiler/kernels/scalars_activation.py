"""Scalar functions: activations."""

from __future__ import annotations

import math

from educe.compiler import vector_math as vm
from educe.compiler.emit import Function, Val
from educe.compiler.kernels.expression import in_f32, scalar


@scalar("Relu")
def relu(fn: Function, x: Val) -> Val:
    """Return max(0, x)."""
    return fn.maximum(x, 0)


@scalar("LeakyRelu", flops=2, alpha=0.01)
def leaky_relu(fn: Function, x: Val, alpha: float) -> Val:
    """Return x, or alpha · x below 0."""
    return fn.select(x < 0, x * alpha, x)


@scalar("PRelu", flops=2)
def prelu(fn: Function, x: Val, slope: Val) -> Val:
    """Return x, or slope · x below 0."""
    return fn.select(x < 0, x * slope, x)


@scalar("ThresholdedRelu", alpha=1.0)
def thresholded_relu(fn: Function, x: Val, alpha: float) -> Val:
    """Return x, or 0 up to alpha."""
    return fn.select(x > alpha, x, 0)


@scalar("Elu", flops=25, alpha=1.0)
def elu(fn: Function, x: Val, alpha: float) -> Val:
    """Return x, or alpha · (exp(x) - 1) below 0."""
    return in_f32(fn, x, lambda x: fn.select(x < 0, vm.expm1(fn, x) * alpha, x))


@scalar("Selu", flops=25, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875)
def selu(fn: Function, x: Val, alpha: float, gamma: float) -> Val:
    """Return gamma · x, or gamma · alpha · (exp(x) - 1) below 0."""
    return in_f32(fn, x, lambda x: fn.select(x <= 0, vm.expm1(fn, x) * alpha, x) * gamma)


@scalar("Celu", flops=25, alpha=1.0)
def celu(fn: Function, x: Val, alpha: float) -> Val:
    """Return x, or alpha · (exp(x / alpha) - 1) below 0."""
    return in_f32(
        fn,
        x,
        lambda x: fn.maximum(x, 0.0) + fn.minimum(vm.expm1(fn, x / alpha) * alpha, 0.0),
    )


@scalar("Sigmoid", flops=25)
def sigmoid(fn: Function, x: Val) -> Val:
    """Return 1 / (1 + exp(-x))."""
    return in_f32(fn, x, lambda x: vm.sigmoid(fn, x))


@scalar("HardSigmoid", flops=2, alpha=0.2, beta=0.5)
def hard_sigmoid(fn: Function, x: Val, alpha: float, beta: float) -> Val:
    """Return alpha · x + beta between 0 and 1."""
    return in_f32(fn, x, lambda x: fn.minimum(fn.maximum(x * alpha + beta, 0.0), 1.0))


@scalar("HardSwish", flops=3)
def hard_swish(fn: Function, x: Val) -> Val:
    """Return x times x/6 + 1/2 between 0 and 1."""
    return in_f32(fn, x, lambda x: x * fn.minimum(fn.maximum(x * (1 / 6) + 0.5, 0.0), 1.0))


@scalar("Swish", flops=26, alpha=1.0)
def swish(fn: Function, x: Val, alpha: float) -> Val:
    """Return x · sigmoid(alpha · x)."""
    return in_f32(fn, x, lambda x: x * vm.sigmoid(fn, x if alpha == 1.0 else x * alpha))


@scalar("Softplus", flops=50)
def softplus(fn: Function, x: Val) -> Val:
    """Return log(1 + exp(x))."""

    def write(x: Val) -> Val:
        return fn.maximum(x, 0.0) + vm.log1p(fn, vm.exp(fn, fn.neg(fn.intrinsic("fabs", x))))

    return in_f32(fn, x, write)


@scalar("Softsign", flops=5)
def softsign(fn: Function, x: Val) -> Val:
    """Return x / (1 + |x|)."""
    return in_f32(fn, x, lambda x: x / (fn.intrinsic("fabs", x) + 1.0))


@scalar("Mish", flops=30)
def mish(fn: Function, x: Val) -> Val:
    """Return x · tanh(log(1 + exp(x))), which is x · n / (n + 2) with n = exp(2x) + 2 exp(x)."""

    def write(x: Val) -> Val:
        # From 20 on n / (n + 2) is 1 in f32, from 40 on in f64.
        e = vm.exp(fn, fn.minimum(x, 40.0))
        n = e * (e + 2.0)
        return x * (n / (n + 2.0))

    return in_f32(fn, x, write)


@scalar("Gelu", flops=40, approximate="none")
def gelu(fn: Function, x: Val, approximate: str) -> Val:
    """Return x/2 · (1 + erf(x/√2)), or with tanh for erf in the approximation `tanh`."""

    def write(x: Val) -> Val:
        half = x * 0.5
        if approximate == "none":
            return fn.fma(half, vm.erf(fn, x * math.sqrt(0.5)), half)
        inner = fn.fma(x * x * x, 0.044715, x) * math.sqrt(2 / math.pi)
        return fn.fma(half, vm.tanh(fn, inner), half)

    return in_f32(fn, x, write)


@scalar("Shrink", flops=2, bias=0.0, lambd=0.5)
def shrink(fn: Function, x: Val, bias: float, lambd: float) -> Val:
    """Return x + bias below -lambd, x - bias above lambd, and 0 between."""
    low, high = (x < -lambd, x > lambd) if x.kind.is_float else _whole_bounds(fn, x, lambd)
    amount = bias if x.kind.is_float else int(bias)
    return fn.select(low, x + amount, fn.select(high, x - amount, 0))


def _whole_bounds(fn: Function, x: Val, bound: float) -> tuple[Val, Val]:
    """Return whether the integer x is below -`bound`, and above `bound`."""
    above = x > math.floor(bound) if bound >= 0 or x.kind.is_signed else x == x
    below = x < math.ceil(-bound) if x.kind.is_signed or bound <= 0 else x != x
    return below, above
