"""Attention that is written as products and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
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

# What is added to a number chosen below this one is lost in its rounding.
_BEYOND_ROUNDING = -1e30


class Attentions:
    """Names scaled dot-product attention: Vaswani et al., arXiv 1706.03762.

    1. softmax(q · kᵀ · scale + mask) · v of three or four dimensions is ``educe.Attention`` of q, k, v and
       mask, where the scale may also stand at q or at k, and the mask may be absent.
    2. Scores may be chosen, as in where(shown, scores, -∞) and where(hidden, -∞, scores), with any number
       below 0; beside a mask that is added only with numbers that leave nothing of what is added to them.
    3. Scores may be bounded before that: cap · tanh(scores / cap).
    4. Weights that are no numbers may be zeros: where(isnan(weights), 0, weights).

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


@dataclass(frozen=True)
class _Masks:
    """What becomes of scores before the softmax, seen from there.

    Attributes:
        added: What is added.
        shown: Where scores are kept, or hidden if `is_hidden`.
        number: What takes the place of other scores.
        is_hidden: Whether `shown` says where scores are not kept.
        is_last: Whether it is chosen after a mask is added.
    """

    added: ir.Value | None = None
    shown: ir.Value | None = None
    number: float = 0.0
    is_hidden: bool = False
    is_last: bool = False

    def fit(self, node: ir.Node) -> bool:
        """Say whether one tensor can do both: a score that is chosen must not tell what is added to it."""
        if self.shown is None:
            return True
        return node.outputs[0].dtype is not None and (self.added is None or self.number <= _BEYOND_ROUNDING)

    def made(self, edit: Edit, node: ir.Node) -> ir.Value | None:
        """Return the mask, made before `node` if need be."""
        if self.shown is None:
            return self.added
        like = node.outputs[0]
        assert like.dtype is not None
        zero, number = (
            edit.constant(np.array(each, like.dtype.numpy()), f"{like.name}/score")
            for each in (0, self.number)
        )
        kept = zero if self.added is None else self.added
        if self.added is not None and not self.is_last:
            number = edit.insert(node, "Add", [self.added, number])
        return edit.insert(
            node, "Where", [self.shown, *((number, kept) if self.is_hidden else (kept, number))]
        )


def _visit(edit: Edit, node: ir.Node) -> None:
    if is_call(node, "MatMul") and is_read(node.outputs[0]):
        _replace(edit, node)


def _replace(edit: Edit, node: ir.Node) -> None:
    weights, zeros = _numbers(node.inputs[0])
    v, rank = node.inputs[1], _rank(node.outputs[0])
    softmax = maker(weights, "Softmax")
    if softmax is None or weights is None or rank not in (3, 4) or _rank(v) != rank:
        return
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return
    for capped, masks in _unmasked(softmax.inputs[0], _Masks()):
        scores, cap, inner = _uncapped(capped)
        scaled, scale = _unscaled(scores)
        product = maker(scaled, "MatMul")
        if product is None or scaled is None or not is_read_once(scaled) or not masks.fit(node):
            continue
        q, first = _unscaled(product.inputs[0])
        turned, second = _unscaled(product.inputs[1])
        if q is None or turned is None or _rank(q) != rank or _rank(turned) != rank:
            continue
        k, third = _unscaled(_untransposed(edit, node, turned))
        attributes: dict[str, float | int] = {"scale": inner * scale * first * second * third}
        attributes |= {"softcap": cap} if cap else {}
        attributes |= {"bound": masks.number / 2} if masks.shown is not None else {}
        attributes |= {"zeros": 1} if zeros else {}
        mask = masks.made(edit, node)
        inputs = [q, k, v, *([] if mask is None else [mask])]
        _insert(edit, node, inputs, attributes, rank)
        return


def _insert(
    edit: Edit, node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, float | int], rank: int
) -> None:
    output, like = node.outputs[0], node.outputs[0]
    if rank == 4:
        edit.replace(output, edit.insert(node, "Attention", inputs, attributes, like, domain=DOMAIN))
        return
    # What broadcasts to three dimensions broadcasts to four: the batch takes the place of the heads.
    axes = edit.constant(np.array([0], np.int64), f"{output.name}/axes")
    wide = [edit.insert(node, "Unsqueeze", [each, axes]) for each in inputs[:3]]
    found = edit.insert(node, "Attention", [*wide, *inputs[3:]], attributes, domain=DOMAIN)
    edit.replace(output, edit.insert(node, "Squeeze", [found, axes], like=like))


def _rank(value: ir.Value | None) -> int | None:
    shape = sizes(value)
    return None if shape is None else len(shape)


def _numbers(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """Return x and True where `value` is x with zeros for what is no number, else `value` and False.

    It is None where anything else reads it.
    """
    if value is None or not is_read_once(value):
        return None, False
    choice = maker(value, "Where")
    if choice is None:
        return value, False
    test, x = maker(choice.inputs[0], "IsNaN"), choice.inputs[2]
    if test is None or x is None or scalar(choice.inputs[1]) != 0 or x.is_graph_output():
        return None, False
    readers = [use.node for use in x.uses()]
    return (x, True) if len(readers) == 2 and test in readers and choice in readers else (None, False)


def _unmasked(value: ir.Value | None, masks: _Masks) -> Iterator[tuple[ir.Value | None, _Masks]]:
    """Yield what the scores may be, with the masks that make `value` of them."""
    yield value, masks
    total, choice = maker(value, "Add"), maker(value, "Where")
    if value is None or not is_read_once(value):
        return
    if total is not None and masks.added is None:
        for scores, mask in (tuple(total.inputs), tuple(total.inputs)[::-1]):
            if _is_mask(mask, value):
                yield from _unmasked(scores, replace(masks, added=mask, is_last=masks.shown is not None))
    if choice is not None and masks.shown is None:
        shown, a, b = choice.inputs
        for scores, other, is_hidden in ((a, b, False), (b, a, True)):
            number = scalar(other)
            if isinstance(number, float) and number < 0 and _is_mask(shown, value):
                yield from _unmasked(scores, replace(masks, shown=shown, number=number, is_hidden=is_hidden))


def _is_mask(mask: ir.Value | None, scores: ir.Value) -> bool:
    rank, most = _rank(mask), _rank(scores)
    return rank is not None and most is not None and rank <= most


def _uncapped(value: ir.Value | None) -> tuple[ir.Value | None, float, float]:
    """Return x, c and s where `value` is c · tanh(x · s / c), else `value`, 0 and 1."""
    tangent, cap = _unscaled(value)
    node = maker(tangent, "Tanh")
    if node is None or tangent is None or not is_read_once(tangent) or cap <= 0:
        return value, 0.0, 1.0
    argument, factor = _unscaled(node.inputs[0])
    return argument, cap, factor * cap


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


def _untransposed(edit: Edit, node: ir.Node, turned: ir.Value) -> ir.Value:
    """Return k where `turned` is k with its last two dimensions exchanged, and perhaps times one number."""
    product = maker(turned, "Mul")
    if product is not None:
        for value, number in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            shape = static_shape(number)
            if (
                value is not None
                and _rank(value) == _rank(turned)
                and shape is not None
                and set(shape) <= {1}
            ):
                k = _untransposed(edit, node, value)
                return edit.insert(node, "Mul", [k, number], like=k)
    rank = _rank(turned) or 0
    order = [*range(rank - 2), rank - 1, rank - 2]
    transpose = maker(turned, "Transpose")
    if transpose is not None and transpose.inputs[0] is not None and integers(transpose, "perm") == order:
        return transpose.inputs[0]
    return edit.insert(node, "Transpose", [turned], {"perm": order})
