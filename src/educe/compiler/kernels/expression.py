"""Expressions: compositions of scalar functions, which templates emit in the middle of a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from educe.compiler.emit import F32, F64, KINDS, Function, Kind, Val

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
        return _kind(self)

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


@lru_cache(4096)
def _kind(expression: Expression) -> Kind:
    fn = Function("probe")
    return expression.emit(fn, [Val(fn, kind, "%x", 4) for kind in expression.inputs]).kind


def apply(fn: Function, step: Step, values: Sequence[Val]) -> Val:
    """Emit one step."""
    if step.function == "const":
        attributes = dict(step.attributes)
        kind = KINDS[attributes["kind"]]
        return fn.const(kind, attributes["value"])
    function = SCALARS[step.function]
    lanes = max((value.lanes for value in values), default=0)
    return function.write(fn, *(fn.splat(value, lanes) for value in values), **dict(step.attributes))


def in_f32(fn: Function, x: Val, write: Callable[[Val], Val]) -> Val:
    """Return `write` of the float `x`, computed in f32 for the halves."""
    return write(x) if x.kind in (F32, F64) else fn.cast(write(fn.cast(x, F32)), x.kind)
