"""Einsum: sums of products by labels, as views, reductions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.operators.base import Call, operator, operators
from educe.compiler.operators.product import matrix_product
from educe.compiler.tensor import Tensor
from educe.graph.normalize import INTERNAL_OPSET

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@dataclass(frozen=True, eq=False)
class _Labelled:
    """A tensor with a label for each dimension, all different."""

    tensor: Tensor
    labels: tuple[str, ...]

    def size(self, label: str) -> int:
        return self.tensor.shape[self.labels.index(label)]


@operator("Einsum")
def einsum(low: Lowering, call: Call, *inputs: Tensor) -> Tensor:
    """Sums of products over the labels that the equation's output lacks: NumPy's einsum."""
    terms, output = _parsed(str(call.get("equation")), inputs)
    operands = [_diagonal(low, x, term) for x, term in zip(inputs, terms, strict=True)]
    operands = _without_broadcast(low, operands)
    while len(operands) > 1:
        first, second, *rest = operands
        kept = {*output, *(label for each in rest for label in each.labels)}
        pair = _summed(low, first, {*kept, *second.labels}), _summed(low, second, {*kept, *first.labels})
        operands = [_contracted(low, *pair, kept), *rest]
    result = _summed(low, operands[0], set(output))
    if set(output) != set(result.labels):
        raise ValueError(f"no operand has every label of {''.join(output)}")
    order = [result.labels.index(label) for label in output]
    return _permuted(low, result.tensor, order)


def _parsed(equation: str, inputs: Sequence[Tensor]) -> tuple[list[list[str]], list[str]]:
    """Return the labels of each operand and of the output; those of an ellipsis are numbers down to 1."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(inputs):
        raise ValueError(f"{equation!r} is not of {len(inputs)} operands")
    terms = []
    for text, x in zip(texts, inputs, strict=True):
        before, dots, after = text.partition("...")
        missing = x.rank - len(before) - len(after)
        if missing < 0 or (missing and not dots) or not (before + after + "x").isalpha():
            raise ValueError(f"{text!r} does not name the dimensions of {x}")
        terms.append([*before, *(str(number) for number in range(missing, 0, -1)), *after])
    hidden = max((label for term in terms for label in term if label.isdigit()), key=int, default="0")
    spread = [str(number) for number in range(int(hidden), 0, -1)]
    if arrow:
        before, dots, after = right.partition("...")
        output = [*before, *(spread if dots else []), *after]
    else:
        named = [label for term in terms for label in term if not label.isdigit()]
        output = [*spread, *sorted(label for label in set(named) if named.count(label) == 1)]
    if len(set(output)) != len(output):
        raise ValueError(f"{equation!r} names a dimension of the output twice")
    return terms, output


def _diagonal(low: Lowering, x: Tensor, labels: Sequence[str]) -> _Labelled:
    """Return `x` with each label once: where it stands twice, the elements of equal index, without a copy."""
    own = tuple(dict.fromkeys(labels))
    if len(own) == len(labels):
        return _Labelled(x, own)
    x = low.need(x)
    places = {label: [axis for axis, other in enumerate(labels) if other == label] for label in own}
    if any(len({x.shape[axis] for axis in axes}) > 1 for axes in places.values()):
        raise ValueError(f"{x} has no diagonal along {''.join(labels)}")
    shape = [x.shape[axes[0]] for axes in places.values()]
    strides = [sum(x.strides[axis] for axis in axes) for axes in places.values()]
    return _Labelled(x.view(shape, strides), own)


def _without_broadcast(low: Lowering, operands: Sequence[_Labelled]) -> list[_Labelled]:
    """Return the operands without dimensions of 1 that meet larger ones."""
    sizes: dict[str, int] = {}
    for each in operands:
        for label in each.labels:
            size, known = each.size(label), sizes.get(label, 1)
            if 1 not in (size, known) and size != known:
                raise ValueError(f"dimension {label} is of {size} and of {known}")
            sizes[label] = size if known == 1 else known
    found = []
    for each in operands:
        labels = tuple(label for label in each.labels if each.size(label) == sizes[label])
        found.append(_Labelled(low.reshape(each.tensor, [each.size(label) for label in labels]), labels))
    return found


def _summed(low: Lowering, x: _Labelled, kept: set[str]) -> _Labelled:
    """Return the sums over the labels that are not in `kept`."""
    axes = [axis for axis, label in enumerate(x.labels) if label not in kept]
    if not axes:
        return x
    call = Call("ReduceSum", "", INTERNAL_OPSET, {"keepdims": 0})
    total = operators()["", "ReduceSum"](low, call, x.tensor, low.constant(np.array(axes)))
    assert isinstance(total, Tensor)
    return _Labelled(total, tuple(label for label in x.labels if label in kept))


def _contracted(low: Lowering, a: _Labelled, b: _Labelled, kept: set[str]) -> _Labelled:
    """Return the product of two operands, summed over the labels of both that are not in `kept`."""
    shared = [label for label in a.labels if label in b.labels]
    batch = [label for label in shared if label in kept]
    depth = [label for label in shared if label not in kept]
    rows = [label for label in a.labels if label not in shared]
    columns = [label for label in b.labels if label not in shared]
    left = _grouped(low, a, batch, rows, depth)
    right = _grouped(low, b, batch, depth, columns)
    product = matrix_product(low, left, right) if depth else low.apply("Mul", left, right)
    shape = [*(a.size(label) for label in (*batch, *rows)), *(b.size(label) for label in columns)]
    return _Labelled(low.reshape(product, shape), (*batch, *rows, *columns))


def _grouped(low: Lowering, x: _Labelled, batch: list[str], *groups: list[str]) -> Tensor:
    """Return `x` with the dimensions of `batch` first, and then one for each of `groups`."""
    order = [x.labels.index(label) for label in (*batch, *groups[0], *groups[1])]
    shape = [x.size(label) for label in batch]
    shape += [math.prod(x.size(label) for label in group) for group in groups]
    return low.reshape(_permuted(low, x.tensor, order), shape)


def _permuted(low: Lowering, x: Tensor, order: Sequence[int]) -> Tensor:
    return x if list(order) == list(range(x.rank)) else low.permute(x, order)
