"""Sums by labels that are products of matrices."""

from __future__ import annotations

import re

import onnx_ir as ir

from educe.graph.passes.base import Edit, is_call, is_read, visited

_EQUATION = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]+)")


class Einsums:
    """Says sums by labels in the operators that other passes know.

    1. Einsum of two operands with one label of rows, one of columns, one that is summed, and any number that
       all have, each once, is MatMul between Transposes.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, _visit)


def _visit(edit: Edit, node: ir.Node) -> None:
    if not is_call(node, "Einsum") or len(node.inputs) != 2 or not is_read(node.outputs[0]):
        return
    match = _EQUATION.fullmatch(re.sub(r"\s", "", node.attributes.get_string("equation", "")))
    if match is None or any(len(set(labels)) < len(labels) for labels in match.groups()):
        return
    a, b, out = match.groups()
    batch = [label for label in out if label in a and label in b]
    rows, columns = ([label for label in out if label not in other] for other in (b, a))
    summed = [label for label in a if label not in out and label in b]
    if not len(rows) == len(columns) == len(summed) == 1:
        return
    wanted = [*batch, *rows, *summed], [*batch, *summed, *columns], [*batch, *rows, *columns]
    if {*a} != {*wanted[0]} or {*b} != {*wanted[1]} or {*out} != {*wanted[2]}:
        return
    first, second = (
        _ordered(edit, node, value, labels, order)
        for value, labels, order in zip(node.inputs, (a, b), wanted[:2], strict=True)
        if value is not None
    )
    output = node.outputs[0]
    product = edit.insert(node, "MatMul", [first, second], like=output if [*out] == wanted[2] else None)
    edit.replace(output, _ordered(edit, node, product, "".join(wanted[2]), [*out], output))


def _ordered(
    edit: Edit, node: ir.Node, value: ir.Value, labels: str, order: list[str], like: ir.Value | None = None
) -> ir.Value:
    """Return `value` with its dimensions, which have `labels`, in another order."""
    axes = [labels.index(label) for label in order]
    return value if axes == sorted(axes) else edit.insert(node, "Transpose", [value], {"perm": axes}, like)
