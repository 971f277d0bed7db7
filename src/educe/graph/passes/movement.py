"""Chains of nodes that only move elements."""

from __future__ import annotations

import onnx_ir as ir

from educe.graph.passes.base import Edit, constant, integers, is_call, is_read_once, maker, visited
from educe.graph.passes.lengths import lengths, lengths_of

_ACTIVATIONS = ("Gelu", "Swish", "Relu", "Tanh", "Sigmoid", "HardSwish", "Mish", "Elu", "LeakyRelu")


class MovementChains:
    """Makes one node of several that move elements.

    1. Transpose of a Transpose.
    2. Reshape of a Reshape, Flatten, Squeeze or Unsqueeze, where the last shape names no size of its input.
    3. Transpose of the last two of three dimensions between two Reshapes that make one dimension of those
       before, and the same ones again of that, is one of the last two of all.
    4. An activation after a Reshape of a product stands before it, where the product can end with it.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, _visit)


def _visit(edit: Edit, node: ir.Node) -> None:
    if is_call(node, "Transpose"):
        _transposes(edit, node)
    elif is_call(node, "Reshape"):
        _reshapes(edit, node)
        _turned(edit, node)
    elif is_call(node, *_ACTIVATIONS):
        _activated(edit, node)


def _transposes(edit: Edit, node: ir.Node) -> None:
    inner = maker(node.inputs[0], "Transpose")
    if inner is None:
        return
    first, second = integers(inner, "perm"), integers(node, "perm")
    if first is None or second is None or len(first) != len(second):
        return
    order = [first[axis] for axis in second]
    output = node.outputs[0]
    edit.replace(output, edit.insert(node, "Transpose", [inner.inputs[0]], {"perm": order}, like=output))
    edit.remove([node])


def _reshapes(edit: Edit, node: ir.Node) -> None:
    inner = maker(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    shape = constant(node.inputs[1])
    if inner is None or shape is None or 0 in shape:
        return
    output = node.outputs[0]
    edit.replace(output, edit.insert(node, "Reshape", [inner.inputs[0], node.inputs[1]], like=output))
    edit.remove([node])


def _turned(edit: Edit, node: ir.Node) -> None:
    turn = maker(node.inputs[0], "Transpose")
    inner = None if turn is None else maker(turn.inputs[0], "Reshape")
    if turn is None or inner is None or integers(turn, "perm") != [0, 2, 1]:
        return
    whole, flat, wanted = lengths_of(inner.inputs[0]), lengths(inner.inputs[1]), lengths(node.inputs[1])
    if whole is None or flat is None or wanted is None or len(whole) < 3 or 0 in (*whole, *flat, *wanted):
        return
    *before, rows, columns = whole
    if flat[-2:] != [rows, columns] or len(flat) != 3 or wanted != [*before, columns, rows]:
        return
    output, order = node.outputs[0], [*range(len(before)), len(before) + 1, len(before)]
    edit.replace(output, edit.insert(node, "Transpose", [inner.inputs[0]], {"perm": order}, like=output))


def _activated(edit: Edit, node: ir.Node) -> None:
    reshape = maker(node.inputs[0], "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    if reshape is None or source is None or not is_read_once(reshape.outputs[0]) or not is_read_once(source):
        return
    if maker(source, "Gemm", "MatMul", "Conv") is None:
        return
    output, first = node.outputs[0], {name: each.value for name, each in node.attributes.items()}
    value = edit.insert(node, node.op_type, [source], first, source, node.version)
    second = {name: each.value for name, each in reshape.attributes.items()}
    edit.replace(output, edit.insert(node, "Reshape", [value, reshape.inputs[1]], second, output))
    edit.remove([node])
