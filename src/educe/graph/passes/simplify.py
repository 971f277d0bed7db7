"""Nodes that nobody needs, that do nothing, or that do what another has done."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import onnx_ir as ir

from educe.graph.passes.base import (
    Edit,
    constant,
    edits,
    integers,
    is_call,
    scalar,
    sizes,
    static_shape,
    visited,
)
from educe.model.walk import RANDOM_OPERATORS, STANDARD_DOMAINS, graph_nodes, subgraphs

RANDOM = RANDOM_OPERATORS | {"Dropout"}
"""Operators that may give something else at each call."""

# Attributes and initializers up to this size are compared by their content.
_COMPARED_BYTES = 4096


class DeadCode:
    """Removes what no output depends on.

    1. Nodes none of whose outputs is read.
    2. Initializers that nobody reads.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        changed = False
        # An inner graph may hold the last reader of an outer value.
        for edit in reversed(list(edits(model))):
            dead = []
            for node in reversed(edit.graph):
                if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                    _detach(node)
                    dead.append(node)
            if dead:
                edit.remove(dead)
            for name, value in list(edit.graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del edit.graph.initializers[name]
                    edit.changed = True
            changed |= edit.changed
        return changed


def _detach(node: ir.Node) -> None:
    """Have `node`, and the nodes of its subgraphs, read nothing."""
    for each in (node, *(inner for graph in subgraphs(node) for inner in graph_nodes(graph))):
        for index in range(len(each.inputs)):
            each.replace_input_with(index, None)


class CommonSubexpressions:
    """Keeps one of the nodes and initializers that compute the same.

    1. Nodes of one operator with the same inputs and attributes, but for random ones and those with bodies.
    2. Small initializers of the same type, shape and bytes.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        changed = False
        for edit in edits(model):
            self._initializers(edit)
            found: dict[Hashable, ir.Node] = {}
            for node in list(edit.graph):
                key = _expression(node)
                if key is None:
                    continue
                first = found.setdefault(key, node)
                if first is not node and not any(value.is_graph_output() for value in node.outputs):
                    for old, new in zip(node.outputs, first.outputs, strict=True):
                        edit.replace(old, new)
                    edit.remove([node])
            changed |= edit.changed
        return changed

    def _initializers(self, edit: Edit) -> None:
        found: dict[Hashable, ir.Value] = {}
        for value in list(edit.graph.initializers.values()):
            array = constant(value)
            plain = not value.is_graph_input() and not value.is_graph_output()
            if array is None or array.nbytes > _COMPARED_BYTES or not plain or not value.uses():
                continue
            first = found.setdefault((array.dtype.str, array.dtype.name, array.shape, array.tobytes()), value)
            if first is not value:
                value.replace_all_uses_with(first)
                edit.changed = True


def _expression(node: ir.Node) -> Hashable | None:
    """Return what tells nodes apart that compute different things; None for one that stands for itself."""
    if node.op_type in RANDOM or any(True for _ in subgraphs(node)):
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = _comparable(attribute)
        if value is None:
            return None
        attributes.append((name, attribute.type, value))
    wanted = tuple(bool(value.name) for value in node.outputs)
    inputs = tuple(id(value) for value in node.inputs)
    return (node.op_identifier(), node.version, inputs, wanted, tuple(attributes))


def _comparable(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _COMPARED_BYTES:
            return None
        return (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        # By bits: 0.0 equals -0.0, and NaN nothing.
        return np.array(attribute.value, np.float64).tobytes()
    value = attribute.value
    if isinstance(value, int | str | bytes):
        return value
    return tuple(value) if isinstance(value, tuple | list) and value else None


class Identities:
    """Removes nodes whose output is their input, bit for bit.

    1. Identity; Dropout without training, where no mask is read; Cast to the type that the input has.
    2. x * 1, x / 1, x ** 1; x - 0 and x + -0.0, and x + 0 of integers: 0.0 would turn -0.0 into 0.0.
    3. Sum, Max, Min, Mean and Concat of one tensor; Clip without bounds.
    4. Reshape, Expand, Squeeze, Unsqueeze, Flatten, Tile and Slice to the same static shape.
    5. Transpose that keeps the order; Pad by nothing.
    6. And with true, Or with false, Where of one tensor.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, _pass_through)


def _pass_through(edit: Edit, node: ir.Node) -> None:
    source = _source(node)
    if source is None:
        return
    before = edit.changed
    edit.changed = False
    edit.replace(node.outputs[0], source)
    if edit.changed and not any(value.uses() or value.is_graph_output() for value in node.outputs):
        edit.remove([node])
    edit.changed |= before


def _source(node: ir.Node) -> ir.Value | None:
    """Return the value that the first output of `node` equals, None if there is none."""
    if node.domain not in STANDARD_DOMAINS or any(value.uses() for value in node.outputs[1:]):
        return None
    if any(value.is_graph_output() for value in node.outputs[1:]) or not node.inputs:
        return None
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(node)


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return node.inputs[0] if training is None or scalar(training) is False else None


def _cast(node: ir.Node) -> ir.Value | None:
    value = node.inputs[0]
    same = value is not None and value.dtype is not None and value.dtype == node.attributes["to"].as_int()
    return value if same else None


def _neutral(value: ir.Value | None, other: ir.Value | None, accepts: Callable[[Any], bool]) -> bool:
    """Say whether `value` is a constant that `accepts` and that does not change the shape of `other`."""
    element, rank, other_rank = scalar(value), sizes(value), sizes(other)
    if element is None or rank is None or not accepts(element):
        return False
    return not rank or (other_rank is not None and len(rank) <= len(other_rank))


def _commutative(accepts: Callable[[Any], bool]) -> Callable[[ir.Node], ir.Value | None]:
    def rule(node: ir.Node) -> ir.Value | None:
        a, b = node.inputs
        if _neutral(b, a, accepts):
            return a
        return b if _neutral(a, b, accepts) else None

    return rule


def _right(accepts: Callable[[Any], bool]) -> Callable[[ir.Node], ir.Value | None]:
    def rule(node: ir.Node) -> ir.Value | None:
        a, b = node.inputs
        return a if _neutral(b, a, accepts) else None

    return rule


def _is_one(x: Any) -> bool:
    return bool(x == 1)


def _adds_nothing(x: Any) -> bool:
    return bool(x == 0) and (not isinstance(x, float) or bool(np.signbit(x)))


def _subtracts_nothing(x: Any) -> bool:
    return bool(x == 0) and not (isinstance(x, float) and bool(np.signbit(x)))


def _power(node: ir.Node) -> ir.Value | None:
    return _right(_is_one)(node)


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _without_bounds(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if all(value is None for value in node.inputs[1:]) else None


def _same_shape(node: ir.Node) -> ir.Value | None:
    shape = static_shape(node.inputs[0])
    return node.inputs[0] if shape is not None and shape == static_shape(node.outputs[0]) else None


def _same_slice(node: ir.Node) -> ir.Value | None:
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    return _same_shape(node) if steps is not None and bool((steps == 1).all()) else None


def _same_order(node: ir.Node) -> ir.Value | None:
    order = integers(node, "perm")
    return node.inputs[0] if order is not None and order == sorted(order) else None


def _no_padding(node: ir.Node) -> ir.Value | None:
    widths = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.inputs[0] if widths is not None and not widths.any() else None


def _where(node: ir.Node) -> ir.Value | None:
    condition, a, b = node.inputs
    shape, chosen = sizes(condition), sizes(a)
    fits = shape is not None and (
        not shape or (chosen is not None and set(shape) == {1} and len(shape) <= len(chosen))
    )
    return a if a is b and fits else None


_RULES: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "Mul": _commutative(_is_one),
    "Div": _right(_is_one),
    "Pow": _power,
    "Add": _commutative(_adds_nothing),
    "Sub": _right(_subtracts_nothing),
    "And": _commutative(lambda x: x is True),
    "Or": _commutative(lambda x: x is False),
    "Where": _where,
    **dict.fromkeys(("Sum", "Max", "Min", "Mean", "Concat"), _single),
    "Clip": _without_bounds,
    **dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Tile"), _same_shape),
    "Slice": _same_slice,
    "Transpose": _same_order,
    "Pad": _no_padding,
}


class Constants:
    """Makes an initializer of each Constant node.

    1. Tensors, numbers and lists of them.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        changed = False
        for edit in edits(model):
            for node in list(edit.graph):
                if is_call(node, "Constant"):
                    array = _constant_array(node)
                    if array is not None:
                        edit.replace(node.outputs[0], edit.constant(array, str(node.outputs[0].name)))
                        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                            edit.remove([node])
            changed |= edit.changed
        return changed


def _constant_array(node: ir.Node) -> np.ndarray | None:
    name, attribute = next(iter(node.attributes.items()))
    if name == "value" and attribute.as_tensor().dtype != ir.DataType.STRING:
        return attribute.as_tensor().numpy()
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return np.array(attribute.value, kinds[name]) if name in kinds else None
