"""Attention that is written as products and a softmax."""

from __future__ import annotations

import onnx_ir as ir

from educe.graph.passes.base import (
    Edit,
    integers,
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

DOMAIN = "educe"


class Attentions:
    """Names scaled dot-product attention: Vaswani et al., arXiv 1706.03762.

    1. softmax(q · kᵀ · scale + mask) · v of four dimensions is ``educe.Attention`` of q, k, v and mask, where
       the scale may also stand at q or at k, and the mask may be absent.

    Args:
        is_compiled: Tells whether there is a kernel.
    """

    def __init__(self, is_compiled: IsCompiled) -> None:
        self._is_compiled = is_compiled

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        if not self._is_compiled(DOMAIN, "Attention", 1):
            return False
        changed = visited(model, _visit)
        if changed:
            model.opset_imports.setdefault(DOMAIN, 1)
        return changed


def _visit(edit: Edit, node: ir.Node) -> None:
    if is_call(node, "MatMul") and is_read(node.outputs[0]):
        _replace(edit, node)


def _replace(edit: Edit, node: ir.Node) -> None:
    weights, v = node.inputs
    softmax = maker(weights, "Softmax")
    if softmax is None or weights is None or v is None or not is_read_once(weights) or not _has_rank(v):
        return
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return
    for scores, mask in _masked(softmax.inputs[0]):
        scaled, scale = _unscaled(scores)
        product = maker(scaled, "MatMul")
        if product is None or scaled is None or (scaled is not weights and not is_read_once(scaled)):
            continue
        q, first = _unscaled(product.inputs[0])
        turned, second = _unscaled(product.inputs[1])
        if q is None or not _has_rank(q) or not _has_rank(turned) or not _fits(mask):
            continue
        k = _untransposed(edit, node, turned)
        if k is None:
            continue
        attributes = {"scale": scale * first * second}
        inputs = [q, k, v] if mask is None else [q, k, v, mask]
        output = node.outputs[0]
        edit.replace(output, edit.insert(node, "Attention", inputs, attributes, output, domain=DOMAIN))
        return


def _has_rank(value: ir.Value | None) -> bool:
    shape = sizes(value)
    return shape is not None and len(shape) == 4


def _fits(mask: ir.Value | None) -> bool:
    return mask is None or (sizes(mask) is not None and len(sizes(mask) or ()) <= 4)


def _masked(value: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Return the scores and the mask that `value` may be the sum of."""
    total = maker(value, "Add")
    if total is None or value is None or not is_read_once(value):
        return [(value, None)]
    a, b = total.inputs
    return [(a, b), (b, a)]


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return x and s where `value` is x · s, and nothing else reads that."""
    node = maker(value, "Mul", "Div")
    if node is None or value is None or not is_read_once(value):
        return value, 1.0
    a, b = node.inputs
    number = scalar(b)
    if isinstance(number, float) and number != 0:
        return a, number if node.op_type == "Mul" else 1 / number
    other = scalar(a)
    return (b, other) if node.op_type == "Mul" and isinstance(other, float) else (value, 1.0)


def _untransposed(edit: Edit, node: ir.Node, turned: ir.Value | None) -> ir.Value | None:
    """Return k where `turned` is k with its last two dimensions exchanged, and perhaps times one number."""
    product = maker(turned, "Mul")
    if product is not None:
        for value, number in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            shape = static_shape(number)
            if shape is not None and len(shape) <= 4 and set(shape) <= {1}:
                k = _untransposed(edit, node, value)
                return None if k is None else edit.insert(node, "Mul", [k, number], like=k)
        return None
    transpose = maker(turned, "Transpose")
    order = None if transpose is None else integers(transpose, "perm")
    if transpose is None or order is None or len(order) != 4:
        return None
    kept = [order[0], order[1], order[3], order[2]]
    if kept == [0, 1, 2, 3]:
        return transpose.inputs[0]
    return edit.insert(node, "Transpose", [transpose.inputs[0]], {"perm": kept})
