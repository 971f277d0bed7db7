"""Rotary embeddings that are written as halves, a sign and two products."""

from __future__ import annotations

import onnx_ir as ir

from educe.graph.passes.attention import DOMAIN
from educe.graph.passes.base import Edit, constant, is_call, is_read, is_read_once, maker, sizes, visited
from educe.graph.passes.functions import IsCompiled
from educe.graph.passes.lengths import lengths, lengths_of


class RotaryEmbeddings:
    """Names the rotation of pairs of features by the angles of their position: Su et al., arXiv 2104.09864.

    1. x · cos + concat(-b, a) · sin, where a and b are the halves of the last dimension of x, is
       ``educe.RotaryEmbedding`` of x, cos and sin.
    2. So it is, interleaved, where a and b are its even and odd elements, and -b and a lie in turns.

    Args:
        is_compiled: Tells whether there is a kernel.
    """

    def __init__(self, is_compiled: IsCompiled) -> None:
        self._is_compiled = is_compiled

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        if not self._is_compiled(DOMAIN, "RotaryEmbedding", 1):
            return False
        changed = visited(model, _visit)
        if changed:
            model.opset_imports.setdefault(DOMAIN, 1)
        return changed


def _visit(edit: Edit, node: ir.Node) -> None:
    if not is_call(node, "Add") or not is_read(node.outputs[0]):
        return
    for first, second in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        for turned, sin in _factors(second):
            found = _halves(turned) or _pairs(turned)
            for x, cos in _factors(first) if found else []:
                if found and x is found[0] and all(_fits(each, x, node) for each in (cos, sin)):
                    _replace(edit, node, [x, cos, sin], found[1])
                    return


def _replace(edit: Edit, node: ir.Node, inputs: list[ir.Value | None], interleaved: bool) -> None:
    output, attributes = node.outputs[0], {"interleaved": int(interleaved)}
    edit.replace(output, edit.insert(node, "RotaryEmbedding", inputs, attributes, output, domain=DOMAIN))


def _factors(value: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Return the factors of a product that nothing else reads, in both orders."""
    product = maker(value, "Mul")
    if product is None or value is None or not is_read_once(value):
        return []
    a, b = product.inputs
    return [(a, b), (b, a)]


def _fits(angle: ir.Value | None, x: ir.Value | None, node: ir.Node) -> bool:
    """Say whether `angle` may be broadcast to x, whose dimensions are those of the output."""
    given, whole, made = sizes(angle), sizes(x), sizes(node.outputs[0])
    if given is None or whole is None or made is None:
        return False
    return len(given) <= len(whole) == len(made)


def _halves(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """Return x and False where `value` is concat(-b, a) of the halves of x."""
    x = None if value is None or not is_read_once(value) else _turned(value, interleaved=False)
    return None if x is None else (x, False)


def _pairs(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """Return x and True where `value` is -b and a in turns, of the even and odd elements of x."""
    flat = maker(value, "Reshape")
    stack = None if flat is None else flat.inputs[0]
    if flat is None or value is None or stack is None or not is_read_once(value):
        return None
    x, whole, wanted = _turned(stack, interleaved=True), lengths_of(stack), lengths(flat.inputs[1])
    last = _last(x)
    if x is None or whole is None or not wanted or last is None or 0 in (*whole, *wanted):
        return None
    return (x, True) if wanted[:-1] == whole[:-2] and wanted[-1] in (-1, last) else None


def _turned(joined: ir.Value, *, interleaved: bool) -> ir.Value | None:
    """Return x where `joined` is concat(-b, a) of two parts of x, or of their elements one by one."""
    join = maker(joined, "Concat")
    if join is None or len(join.inputs) != 2 or not _is_last(join, joined):
        return None
    negative, a = (_spread(each) if interleaved else each for each in join.inputs)
    sign = maker(negative, "Neg")
    if sign is None:
        return None
    (x, first), (same, second) = _part(a), _part(sign.inputs[0])
    size = _last(x) or 0
    halves = (range(size // 2), range(size // 2, size))
    pairs = (range(0, size, 2), range(1, size, 2))
    fits = x is same and size > 0 and size % 2 == 0 and (first, second) == (pairs if interleaved else halves)
    return x if fits else None


def _spread(value: ir.Value | None) -> ir.Value | None:
    """Return x where `value` is x with a dimension of 1 behind."""
    node, shape = maker(value, "Unsqueeze"), sizes(value)
    axes = None if node is None else constant(node.inputs[1])
    if node is None or axes is None or not shape or axes.size != 1:
        return None
    return node.inputs[0] if int(axes.item()) in (-1, len(shape) - 1) else None


def _part(value: ir.Value | None) -> tuple[ir.Value | None, range]:
    """Return x and which elements of its last dimension `value` is; None if it is no such part."""
    node = maker(value, "Slice", "Split")
    x = None if node is None else node.inputs[0]
    size = _last(x)
    numbers = [] if node is None else [constant(each) for each in node.inputs[1:]]
    if node is None or x is None or size is None or any(each is None for each in numbers):
        return None, range(0)
    lists = [[int(element) for element in each.ravel()] for each in numbers if each is not None]
    if node.op_type == "Split":
        number = next(index for index, each in enumerate(node.outputs) if each is value)
        widths = lists[0] if lists else [size // len(node.outputs)] * len(node.outputs)
        if sum(widths) != size or len(widths) != len(node.outputs) or not _is_last(node, x):
            return None, range(0)
        return x, range(sum(widths[:number]), sum(widths[: number + 1]))
    if any(len(each) != 1 for each in lists) or len(lists) < 3:
        return None, range(0)
    (start,), (stop,), (axis,), *step = lists
    if axis not in (-1, len(sizes(x) or ()) - 1) or (step and step[0][0] < 1):
        return None, range(0)
    return x, range(*slice(start, stop, step[0][0] if step else 1).indices(size))


def _is_last(node: ir.Node, x: ir.Value) -> bool:
    shape = sizes(x)
    return shape is not None and node.attributes.get_int("axis", 0) in (-1, len(shape) - 1)


def _last(x: ir.Value | None) -> int | None:
    shape = sizes(x)
    return shape[-1] if shape else None
