"""Activations that are written as several nodes."""

from __future__ import annotations

import math
from typing import TypeAlias

import onnx_ir as ir

from educe.graph.passes.base import (
    NEWEST_OPSET,
    Edit,
    has_rank_of,
    is_call,
    is_read,
    is_read_once,
    maker,
    scalar,
    visited,
)
from educe.graph.passes.functions import IsCompiled
from educe.graph.passes.terms import Factors, factors, is_near, one_plus

_CUBE = 0.044715


class Activations:
    """Names activations.

    1. x/2 · (1 + erf(x/√2)) and x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), their factors in any order, are
       Gelu: Hendrycks and Gimpel, arXiv 1606.08415.
    2. x · sigmoid(a·x) is Swish: Ramachandran et al., arXiv 1710.05941; so is x / (1 + exp(-a·x)).
    3. x · clip(x + 3, 0, 6)/6 and x · HardSigmoid(x) with α = 1/6, β = 1/2 are HardSwish; the clip may be
       min(max(., 0), 6).
    4. x · tanh(softplus(x)), and with log(1 + exp(x)) for softplus, are Mish: Misra, arXiv 1908.08681.

    Args:
        is_compiled: Tells which operators have kernels; the others are not named.
    """

    def __init__(self, is_compiled: IsCompiled) -> None:
        self._is_compiled = is_compiled

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        # From the end, so that a product is seen before the products in it.
        return visited(model, self._name, backwards=True)

    def _name(self, edit: Edit, node: ir.Node) -> None:
        if not is_call(node, "Mul", "Div") or not is_read(node.outputs[0]):
            return
        output = node.outputs[0]
        quotient = _quotient(node)
        if quotient is not None:
            self._replace(edit, node, *quotient)
            return
        product = factors(output)
        for x, other in product.pair():
            found = _gelu(x, other, product) or _swish(x, other, product) or _hard_swish(x, other, product)
            found = found or _mish(x, other, product)
            if found is not None:
                self._replace(edit, node, x, found)
                return

    def _replace(self, edit: Edit, node: ir.Node, x: ir.Value, found: _Found) -> None:
        output, (name, attributes) = node.outputs[0], found
        version = NEWEST_OPSET if name == "Swish" else None
        if self._is_compiled("", name, NEWEST_OPSET) and has_rank_of(output, x):
            edit.replace(output, edit.insert(node, name, [x], attributes, output, version))


_Found: TypeAlias = "tuple[str, dict[str, float | str]]"


def _quotient(node: ir.Node) -> tuple[ir.Value, _Found] | None:
    """Return x and Swish where `node` is x / (1 + exp(-a · x))."""
    x, below = node.inputs
    exponential = maker(one_plus(below), "Exp") if node.op_type == "Div" else None
    if exponential is None or x is None or exponential.inputs[0] is None:
        return None
    if not is_read_once(exponential.outputs[0]):
        return None
    argument = factors(exponential.inputs[0])
    return (x, ("Swish", {"alpha": -argument.scale})) if argument.is_power(x) else None


def _gelu(x: ir.Value, other: ir.Value, product: Factors) -> _Found | None:
    inner = one_plus(other)
    if inner is None or not is_near(product.scale, 0.5) or not is_read_once(inner):
        return None
    error = maker(inner, "Erf")
    if error is not None and error.inputs[0] is not None:
        argument = factors(error.inputs[0])
        return ("Gelu", {}) if argument.is_power(x) and is_near(argument.scale, math.sqrt(0.5)) else None
    tangent = maker(inner, "Tanh")
    if tangent is None or tangent.inputs[0] is None:
        return None
    return ("Gelu", {"approximate": "tanh"}) if _is_cubic(factors(tangent.inputs[0]), x) else None


def _is_cubic(argument: Factors, x: ir.Value) -> bool:
    """Say whether `argument` is √(2/π) · (x + 0.044715 x³), or √(2/π) · x · (1 + 0.044715 x²)."""
    if not is_near(argument.scale, math.sqrt(2 / math.pi)):
        return False
    if len(argument.values) == 1:
        (total,) = argument.values.values()
        node = maker(total, "Add")
        if node is None:
            return False
        a, b = node.inputs
        cube = b if a is x else a
        if cube is None or (a is not x and b is not x):
            return False
        term = factors(cube)
        return term.is_power(x, 3) and is_near(term.scale, _CUBE)
    for first, second in argument.pair():
        square = one_plus(second)
        if first is x and square is not None:
            term = factors(square)
            return term.is_power(x, 2) and is_near(term.scale, _CUBE)
    return False


def _swish(x: ir.Value, other: ir.Value, product: Factors) -> _Found | None:
    sigmoid = maker(other, "Sigmoid")
    if sigmoid is None or product.scale != 1 or not is_read_once(other) or sigmoid.inputs[0] is None:
        return None
    if sigmoid.inputs[0] is x:
        return ("Swish", {})
    argument = factors(sigmoid.inputs[0])
    return ("Swish", {"alpha": argument.scale}) if argument.is_power(x) else None


def _hard_swish(x: ir.Value, other: ir.Value, product: Factors) -> _Found | None:
    if not is_read_once(other):
        return None
    hard = maker(other, "HardSigmoid")
    if hard is not None:
        alpha, beta = hard.attributes.get_float("alpha", 0.2), hard.attributes.get_float("beta", 0.5)
        same = hard.inputs[0] is x and is_near(alpha, 1 / 6) and beta == 0.5 and product.scale == 1
        return ("HardSwish", {}) if same else None
    clipped = _clipped_to_six(other)
    if clipped is None or not is_near(product.scale, 1 / 6):
        return None
    total = maker(clipped, "Add")
    if total is None:
        return None
    a, b = total.inputs
    same = (a is x and scalar(b) == 3) or (b is x and scalar(a) == 3)
    return ("HardSwish", {}) if same else None


def _clipped_to_six(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is x between 0 and 6."""
    clip = maker(value, "Clip")
    if clip is not None:
        fits = len(clip.inputs) == 3 and scalar(clip.inputs[1]) == 0 and scalar(clip.inputs[2]) == 6
        return clip.inputs[0] if fits else None
    least = _other(maker(value, "Min"), 6)
    positive = maker(least, "Relu")
    if positive is not None:
        return positive.inputs[0]
    return _other(maker(least, "Max"), 0)


def _other(node: ir.Node | None, number: float) -> ir.Value | None:
    """Return the input of `node` beside a constant `number`."""
    if node is None or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    return a if scalar(b) == number else b if scalar(a) == number else None


def _mish(x: ir.Value, other: ir.Value, product: Factors) -> _Found | None:
    tangent = maker(other, "Tanh")
    if tangent is None or product.scale != 1 or not is_read_once(other):
        return None
    soft = maker(tangent.inputs[0], "Softplus")
    if soft is not None:
        return ("Mish", {}) if soft.inputs[0] is x else None
    logarithm = maker(tangent.inputs[0], "Log")
    exponential = None if logarithm is None else maker(one_plus(logarithm.inputs[0]), "Exp")
    return ("Mish", {}) if exponential is not None and exponential.inputs[0] is x else None
