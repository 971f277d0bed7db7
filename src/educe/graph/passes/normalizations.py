"""Normalizations that are written as means, differences and roots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from educe.graph.passes.base import (
    NEWEST_OPSET,
    Edit,
    constant,
    has_rank_of,
    is_call,
    is_read,
    is_read_once,
    maker,
    scalar,
    sizes,
    static_shape,
    visited,
)
from educe.graph.passes.functions import IsCompiled


class Normalizations:
    """Names normalizations of f32.

    1. (x - mean) / √(variance + ε), both over the last dimension, is LayerNormalization: Ba et al., arXiv
       1607.06450; a factor and an offset of that dimension after it become its scale and bias.
    2. x / √(mean of squares + ε) is RMSNormalization: Zhang and Sennrich, arXiv 1910.07467; so is its factor.
    3. InstanceNormalization between two Reshapes that make groups of the channels, with the factor and the
       offset of each channel after it, is GroupNormalization: Wu and He, arXiv 1803.08494.

    Args:
        is_compiled: Tells which operators have kernels; the others are not named.
    """

    def __init__(self, is_compiled: IsCompiled) -> None:
        self._is_compiled = is_compiled

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, self._name, backwards=True)

    def _name(self, edit: Edit, node: ir.Node) -> None:
        if not is_read(node.outputs[0]) or node.outputs[0].dtype != ir.DataType.FLOAT:
            return
        if is_call(node, "Mul", "Div"):
            found = _normalized(node)
            name = "" if found is None else "LayerNormalization" if found.is_centered else "RMSNormalization"
            if found is not None and self._is_compiled("", name, NEWEST_OPSET):
                _replace_last(edit, node, found, name)
        elif is_call(node, "Add") and self._is_compiled("", "GroupNormalization", NEWEST_OPSET):
            _replace_groups(edit, node)


@dataclass(frozen=True)
class _Normalized:
    x: ir.Value
    epsilon: float
    is_centered: bool


def _normalized(node: ir.Node) -> _Normalized | None:
    """Return what `node` normalizes over the last dimension, as a quotient or a product with the inverse."""
    a, b = node.inputs
    pairs = [(a, b)] if node.op_type == "Div" else [(a, b), (b, a)]
    for value, spread in pairs:
        root = spread if node.op_type == "Div" else _inverted(spread)
        if value is None or root is None:
            continue
        power = maker(root, "Sqrt")
        epsilon = None if power is None else _with_epsilon(power.inputs[0])
        if epsilon is None:
            continue
        mean_of, number = epsilon
        squared = _mean(mean_of)
        if squared is None or _squared(squared) is not value or not has_rank_of(node.outputs[0], value):
            continue
        difference = maker(value, "Sub")
        if difference is not None and _mean(difference.inputs[1]) is difference.inputs[0]:
            x = difference.inputs[0]
            if x is not None and has_rank_of(value, x):
                return _Normalized(x, number, True)
        return _Normalized(value, number, False)
    return None


def _inverted(value: ir.Value | None) -> ir.Value | None:
    """Return r where `value` is 1/r."""
    reciprocal = maker(value, "Reciprocal")
    if reciprocal is not None:
        return reciprocal.inputs[0]
    division = maker(value, "Div")
    return division.inputs[1] if division is not None and scalar(division.inputs[0]) == 1 else None


def _with_epsilon(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    total = maker(value, "Add")
    if total is None:
        return None
    for a, b in (tuple(total.inputs), tuple(total.inputs)[::-1]):
        number = scalar(b)
        if isinstance(number, float) and number >= 0 and a is not None:
            return a, number
    return None


def _mean(value: ir.Value | None) -> ir.Value | None:
    """Return x where `value` is the mean of x over the last dimension, which is kept."""
    node = maker(value, "ReduceMean")
    if node is None or not node.attributes.get_int("keepdims", 1) or len(node.inputs) != 2:
        return None
    axes, shape = constant(node.inputs[1]), sizes(node.inputs[0])
    if axes is None or axes.size != 1 or shape is None:
        return None
    return node.inputs[0] if int(axes.item()) in (-1, len(shape) - 1) else None


def _squared(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is x²."""
    power = maker(value, "Pow")
    if power is not None:
        return power.inputs[0] if scalar(power.inputs[1]) == 2 else None
    product = maker(value, "Mul")
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _next(value: ir.Value, operator: str) -> tuple[ir.Node, ir.Value] | None:
    """Return the node of `operator` that alone reads `value`, and its other input."""
    if not is_read_once(value):
        return None
    node = value.uses()[0].node  # type: ignore[index]
    if not is_call(node, operator) or node.graph is not value.graph:
        return None
    a, b = node.inputs
    other = b if a is value else a
    return None if other is None or other is value else (node, other)


def _precedes(value: ir.Value, node: ir.Node) -> bool:
    """Say whether `value` is there before `node` for certain: an input or an initializer."""
    return value.producer() is None or value.is_initializer()


def _replace_last(edit: Edit, node: ir.Node, found: _Normalized, name: str) -> None:
    last = (sizes(found.x) or [None])[-1]
    if last is None:
        return
    output, scale, bias = node.outputs[0], None, None
    for operator in ("Mul", "Add") if found.is_centered else ("Mul",):
        following = _next(output, operator)
        if following is None or static_shape(following[1]) != (last,) or not _precedes(following[1], node):
            continue
        output = following[0].outputs[0]
        if operator == "Mul":
            scale = following[1]
        else:
            bias = following[1]
    if scale is None:
        scale = edit.constant(np.ones(last, np.float32), f"{output.name}/scale")
    inputs = [found.x, scale] if bias is None else [found.x, scale, bias]
    attributes = {"axis": -1, "epsilon": found.epsilon}
    version = None if found.is_centered else NEWEST_OPSET
    last_node = output.producer()
    assert last_node is not None
    edit.replace(output, edit.insert(last_node, name, inputs, attributes, output, version))


def _replace_groups(edit: Edit, node: ir.Node) -> None:
    """Replace Reshape, InstanceNormalization, Reshape, Mul, Add, where `node` is the Add."""
    output = node.outputs[0]
    for scaled, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        product = maker(scaled, "Mul")
        if product is None or scaled is None or not is_read_once(scaled):
            continue
        for back, scale in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            found = _grouped(back)
            shape = None if found is None else sizes(found[0])
            if found is None or shape is None or len(shape) < 3 or shape[1] is None:
                continue
            factors = [_of_channels(value, shape[1], len(shape)) for value in (scale, bias)]
            if any(array is None for array in factors) or not has_rank_of(output, found[0]):
                continue
            x, groups, epsilon = found
            weights = [edit.constant(np.array(array), f"{output.name}/weight") for array in factors]
            attributes = {"num_groups": groups, "epsilon": epsilon}
            edit.replace(output, edit.insert(node, "GroupNormalization", [x, *weights], attributes, output))
            return


def _grouped(value: ir.Value | None) -> tuple[ir.Value, int, float] | None:
    """Return what is normalized in groups, how many there are, and ε."""
    back = maker(value, "Reshape")
    if back is None or value is None or not is_read_once(value):
        return None
    normalization = maker(back.inputs[0], "InstanceNormalization")
    forth = None if normalization is None else maker(normalization.inputs[0], "Reshape")
    if normalization is None or forth is None or forth.inputs[0] is None:
        return None
    x, shape = forth.inputs[0], constant(forth.inputs[1])
    scale, bias = (constant(each) for each in normalization.inputs[1:3])
    if shape is None or scale is None or bias is None or shape.size != 3 or shape[2] != -1:
        return None
    batch = (sizes(x) or [None])[0]
    if (shape[0] != 0 and shape[0] != batch) or shape[1] != scale.size or (scale != 1).any() or bias.any():
        return None
    restored = maker(back.inputs[1], "Shape")
    same = (restored is not None and restored.inputs[0] is x and not restored.attributes) or (
        static_shape(value) is not None and static_shape(value) == static_shape(x)
    )
    return (x, int(shape[1]), normalization.attributes.get_float("epsilon", 1e-5)) if same else None


def _of_channels(value: ir.Value | None, channels: int, rank: int) -> np.ndarray | None:
    """Return a constant that is broadcast over all but dimension 1, as one number for each channel."""
    array = constant(value)
    if array is None or array.size != channels:
        return None
    whole = (1,) * (rank - array.ndim) + array.shape
    fits = len(whole) == rank and whole == (1, channels, *(1,) * (rank - 2))
    return array.reshape(channels) if fits else None
