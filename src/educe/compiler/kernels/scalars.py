"""Scalar functions: what one element of an output is, from one element of each input.

Each is an ONNX operator of that name; its keyword arguments are the operator's attributes with their
defaults. `Expression` composes them, and templates emit an expression in the middle of a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from educe.compiler import vector_math as vm
from educe.compiler.emit import BOOL, F32, F64, KINDS, Function, Kind, Val

ScalarFunction = Callable[..., Val]


@dataclass(frozen=True)
class Scalar:
    """A scalar function with the defaults of its attributes."""

    name: str
    write: ScalarFunction
    attributes: dict[str, Any]
    flops: int = 1


SCALARS: dict[str, Scalar] = {}
"""Every scalar function, by the name of its ONNX operator."""


def scalar(*names: str, flops: int = 1, **attributes: Any) -> Callable[[ScalarFunction], ScalarFunction]:
    """Register a function ``write(fn, *values, **attributes)`` for the operators `names`."""

    def register(write: ScalarFunction) -> ScalarFunction:
        for name in names:
            assert name not in SCALARS, name
            SCALARS[name] = Scalar(name, write, attributes, flops)
        return write

    return register


@dataclass(frozen=True)
class Step:
    """One call of a scalar function; `arguments` number the inputs first, then the steps before."""

    function: str
    arguments: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Expression:
    """A composition of scalar functions.

    Attributes:
        inputs: The kinds of its inputs.
        steps: The calls in order; the last is the result. Without steps, the result is the first input.
    """

    inputs: tuple[Kind, ...]
    steps: tuple[Step, ...] = ()

    def emit(self, fn: Function, values: Sequence[Val]) -> Val:
        """Emit the expression of `values`, one for each input."""
        known = list(values)
        for step in self.steps:
            known.append(apply(fn, step, [known[index] for index in step.arguments]))
        return known[-1] if self.steps else known[0]

    @property
    def kind(self) -> Kind:
        """The kind of the result."""
        fn = Function("probe")
        return self.emit(fn, [Val(fn, kind, "%x", 4) for kind in self.inputs]).kind

    @property
    def flops(self) -> int:
        """Operations for one element, transcendental functions counted as they cost."""
        return sum(SCALARS[step.function].flops for step in self.steps if step.function in SCALARS)

    def __repr__(self) -> str:
        names = [f"x{index}" for index in range(len(self.inputs))]
        for step in self.steps:
            given = [names[index] for index in step.arguments]
            given += [f"{name}={value}" for name, value in step.attributes]
            names.append(f"{step.function}({', '.join(given)})")
        kinds = ",".join(kind.name for kind in self.inputs)
        return f"[{kinds}]->{names[-1] if self.steps else names[0]}"


def apply(fn: Function, step: Step, values: Sequence[Val]) -> Val:
    """Emit one step."""
    if step.function == "const":
        attributes = dict(step.attributes)
        kind = KINDS[attributes["kind"]]
        return fn.const(kind, attributes["value"])
    function = SCALARS[step.function]
    lanes = max((value.lanes for value in values), default=0)
    return function.write(fn, *(fn.splat(value, lanes) for value in values), **dict(step.attributes))


def _in_f32(fn: Function, x: Val, write: Callable[[Val], Val]) -> Val:
    """Return `write` of `x`, computed in f32 for the halves."""
    return write(x) if x.kind in (F32, F64) else fn.cast(write(fn.cast(x, F32)), x.kind)


@scalar("Add", "Sum")
def add(fn: Function, *values: Val) -> Val:
    """Return the sum."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


@scalar("Sub")
def sub(fn: Function, a: Val, b: Val) -> Val:
    """Return a - b."""
    return a - b


@scalar("Mul")
def mul(fn: Function, a: Val, b: Val) -> Val:
    """Return a · b."""
    return a * b


@scalar("Div")
def div(fn: Function, a: Val, b: Val) -> Val:
    """Return a / b; for integers rounded toward zero, and 0 for a zero divisor."""
    if a.kind.is_float:
        return a / b
    is_zero = b == 0
    return fn.select(is_zero, 0, a // fn.select(is_zero, 1, b))


@scalar("Relu")
def relu(fn: Function, x: Val) -> Val:
    """Return max(0, x)."""
    return fn.select(x < 0, 0, x)


@scalar("LeakyRelu", alpha=0.01)
def leaky_relu(fn: Function, x: Val, alpha: float) -> Val:
    """Return x, or alpha · x below 0."""
    return fn.select(x < 0, x * alpha, x)


@scalar("Sigmoid", flops=20)
def sigmoid(fn: Function, x: Val) -> Val:
    """Return 1 / (1 + exp(-x))."""
    return _in_f32(fn, x, lambda x: 1.0 / (1.0 + vm.exp(fn, -x)))


@scalar("Exp", flops=15)
def exp(fn: Function, x: Val) -> Val:
    """Return e to the x."""
    return _in_f32(fn, x, lambda x: vm.exp(fn, x))


@scalar("Identity")
def identity(fn: Function, x: Val) -> Val:
    """Return x."""
    return x


@scalar("Cast", to="f32")
def cast(fn: Function, x: Val, to: str) -> Val:
    """Return x as another kind."""
    return fn.cast(x, KINDS[to])


@scalar("Clip")
def clip(fn: Function, x: Val, *bounds: Val) -> Val:
    """Return x within its bounds; the upper one wins where they cross."""
    low, high = bounds
    return fn.minimum(fn.maximum(x, low), high)


@scalar("Sqrt", flops=4)
def sqrt(fn: Function, x: Val) -> Val:
    """Return the square root."""
    return fn.intrinsic("sqrt", x)


@scalar("Less")
def less(fn: Function, a: Val, b: Val) -> Val:
    """Return whether a < b."""
    return a < b


@scalar("Where")
def where(fn: Function, condition: Val, a: Val, b: Val) -> Val:
    """Return a where the condition is true, else b."""
    return fn.select(condition, a, b)


__all__ = ["BOOL", "SCALARS", "Expression", "Scalar", "Step", "apply", "math", "scalar"]
