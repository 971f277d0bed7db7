"""Products of values, flattened, so that a pattern need not know in which order they are multiplied."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from educe.graph.passes.base import is_read_once, maker, scalar

_MAX_FACTORS = 8


@dataclass
class Factors:
    """A product: a number, and values with their powers.

    Attributes:
        scale: The number.
        powers: How often each value is a factor, by its identity.
        values: The values, by their identity.
    """

    scale: float = 1.0
    powers: dict[int, int] = field(default_factory=dict)
    values: dict[int, ir.Value] = field(default_factory=dict)

    def is_power(self, value: ir.Value, exponent: int = 1) -> bool:
        """Say whether this is a number times a power of `value`."""
        return self.powers == {id(value): exponent}

    def pair(self) -> list[tuple[ir.Value, ir.Value]]:
        """Return two factors in both orders; nothing if there are not just two, each once."""
        if list(self.powers.values()) != [1, 1]:
            return []
        a, b = self.values.values()
        return [(a, b), (b, a)]


def factors(value: ir.Value) -> Factors:
    """Return the factors of `value` through Mul, Div by a number, Neg, and Pow by a whole one.

    Inner products are opened only where nothing else reads them.
    """
    found = Factors()
    _open(value, found, is_root=True)
    return found


def _open(value: ir.Value, found: Factors, is_root: bool = False) -> None:
    number = scalar(value)
    if isinstance(number, float):
        found.scale *= number
        return
    node = None
    if (is_root or is_read_once(value)) and len(found.values) < _MAX_FACTORS:
        node = maker(value, "Mul", "Div", "Neg", "Pow")
    if node is not None and _open_node(node, found):
        return
    found.powers[id(value)] = found.powers.get(id(value), 0) + 1
    found.values[id(value)] = value


def _open_node(node: ir.Node, found: Factors) -> bool:
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "Neg":
        found.scale = -found.scale
        _open(inputs[0], found)
        return True
    a, b = inputs
    number = scalar(b)
    if node.op_type == "Div":
        if not isinstance(number, float) or number == 0:
            return False
        found.scale /= number
        _open(a, found)
        return True
    if node.op_type == "Pow":
        if number not in (2, 3):
            return False
        for _ in range(int(number)):
            found.powers[id(a)] = found.powers.get(id(a), 0) + 1
            found.values[id(a)] = a
        return True
    _open(a, found)
    _open(b, found)
    return True


def is_near(a: float, b: float) -> bool:
    """Say whether two numbers are the same but for rounding to f32."""
    return bool(np.isclose(a, b, rtol=1e-5, atol=0))


def one_plus(value: ir.Value | None) -> ir.Value | None:
    """Return x where `value` is x + 1 or 1 + x, and nothing else reads that."""
    node = maker(value, "Add")
    if node is None or value is None or not is_read_once(value):
        return None
    a, b = node.inputs
    if scalar(b) == 1:
        return a
    return b if scalar(a) == 1 else None
