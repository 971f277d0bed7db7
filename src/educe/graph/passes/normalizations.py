"""Normalizations that are written as means, differences and roots."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from educe.graph.passes.lengths import lengths, lengths_of
from educe.graph.passes.terms import is_near


class Normalizations:
    """Names normalizations of f32.

    1. (x - mean) / √(variance + ε), both over one dimension, is LayerNormalization: Ba et al., arXiv
       1607.06450; a factor and an offset of that dimension after it become its scale and bias. Where the
       dimension is not the last one, it stands between two Transposes.
    2. x / √(mean of squares + ε) is RMSNormalization: Zhang and Sennrich, arXiv 1910.07467; so is its factor.
    3. A quotient may be a product with 1/√, or with (.)^-½, and that may hold the factor.
    4. The variance may be max(0, mean of squares - square of mean), which loses what the operator keeps: both
       are far larger where the mean is. Without the maximum it may be below 0, which gives no number.
    5. x · s + (offset - mean · s), where s is 1/√, perhaps with a factor, is LayerNormalization too: it loses
       more by the difference of its terms.
    6. InstanceNormalization between two Reshapes that make groups of the channels, with the factor and the
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
        found = None
        if is_call(node, "Mul", "Div"):
            found = _normalized(node)
        elif is_call(node, "Add"):
            found = _shifted(node)
        if found is not None and self._is_compiled("", found.operator, NEWEST_OPSET):
            _replace_last(edit, node, found)
        elif is_call(node, "Add") and self._is_compiled("", "GroupNormalization", NEWEST_OPSET):
            _replace_groups(edit, node)


@dataclass(frozen=True)
class _Normalized:
    """What is normalized over `axis`: x, its mean if that is subtracted, and weights that are known."""

    x: ir.Value
    axis: int
    epsilon: float
    mean: ir.Value | None
    scale: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def operator(self) -> str:
        return "RMSNormalization" if self.mean is None else "LayerNormalization"

    def is_numerator(self, value: ir.Value | None) -> bool:
        """Say whether `value` is x without its mean."""
        if self.mean is None:
            return value is self.x
        difference = maker(value, "Sub")
        return difference is not None and tuple(difference.inputs) == (self.x, self.mean)


def _normalized(node: ir.Node) -> _Normalized | None:
    """Return what `node` normalizes, as a quotient or as a product with the inverse."""
    a, b = node.inputs
    if node.op_type == "Div":
        found = _root(b)
        return found if found is not None and _is_whole(found, node) and found.is_numerator(a) else None
    for value, spread in ((a, b), (b, a)):
        found = _weighted(spread)
        if found is not None and _is_whole(found, node) and found.is_numerator(value):
            return found
    return None


def _shifted(node: ir.Node) -> _Normalized | None:
    """Return what `node` normalizes where it is x · s + (offset - mean · s)."""
    for first, second in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        product, rest = maker(first, "Mul"), maker(second, "Sub")
        other = None if rest is None else maker(rest.inputs[1], "Mul")
        if product is None or rest is None or other is None:
            continue
        for x, spread in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            found = _weighted(spread)
            if found is None or found.mean is None or found.x is not x or not _is_whole(found, node):
                continue
            if spread in other.inputs and found.mean in other.inputs:
                return replace(found, bias=rest.inputs[0])
    return None


def _is_whole(found: _Normalized, node: ir.Node) -> bool:
    return has_rank_of(node.outputs[0], found.x)


def _weighted(value: ir.Value | None) -> _Normalized | None:
    """Return what is normalized by a product with `value`: 1/√(variance + ε), perhaps times a scale."""
    found, product = _inverse(value), maker(value, "Mul")
    if found is not None or product is None:
        return found
    for spread, scale in (tuple(product.inputs), tuple(product.inputs)[::-1]):
        found = _inverse(spread)
        if found is not None and constant(scale) is not None:
            return replace(found, scale=scale)
    return None


def _inverse(value: ir.Value | None) -> _Normalized | None:
    node = maker(value, "Reciprocal", "Div", "Pow", "Sqrt")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _spread(node.inputs[0]) if scalar(node.inputs[1]) == -0.5 else None
    if node.op_type == "Sqrt":
        inner = maker(node.inputs[0], "Reciprocal")
        return None if inner is None else _spread(inner.inputs[0])
    if node.op_type == "Div":
        return _root(node.inputs[1]) if scalar(node.inputs[0]) == 1 else None
    return _root(node.inputs[0])


def _root(value: ir.Value | None) -> _Normalized | None:
    node = maker(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and scalar(node.inputs[1]) != 0.5):
        return None
    return _spread(node.inputs[0])


def _spread(value: ir.Value | None) -> _Normalized | None:
    """Return what has `value` for its variance and ε, or for its mean of squares and ε."""
    total = maker(value, "Add")
    if total is None:
        return None
    for variance, epsilon in (tuple(total.inputs), tuple(total.inputs)[::-1]):
        number = scalar(epsilon)
        if isinstance(number, float) and number >= 0:
            return _of_variance(variance, number) or _of_squares(_positive(variance), number)
    return None


def _of_variance(variance: ir.Value | None, epsilon: float) -> _Normalized | None:
    """Return what has `variance` for the mean of its squares, or of those of its distance from its mean."""
    squares = _mean(variance)
    value = None if squares is None else _squared(squares[0])
    if squares is None or value is None:
        return None
    difference = maker(value, "Sub")
    if difference is not None:
        x, mean = difference.inputs
        if x is not None and mean is not None and _mean(mean) == (x, squares[1]) and has_rank_of(value, x):
            return _Normalized(x, squares[1], epsilon, mean)
    return _Normalized(value, squares[1], epsilon, None)


def _of_squares(variance: ir.Value | None, epsilon: float) -> _Normalized | None:
    """Return what has `variance` for its mean of squares minus the square of its mean."""
    difference = maker(variance, "Sub")
    if difference is None:
        return None
    squares, mean = _mean(difference.inputs[0]), _squared(difference.inputs[1])
    x = None if squares is None else _squared(squares[0])
    if squares is None or x is None or mean is None or _mean(mean) != (x, squares[1]):
        return None
    return _Normalized(x, squares[1], epsilon, mean)


def _positive(value: ir.Value | None) -> ir.Value | None:
    """Return x where `value` is max(0, x)."""
    node = maker(value, "Max", "Relu")
    if node is None or node.op_type == "Relu":
        return None if node is None else node.inputs[0]
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    return a if scalar(b) == 0 else b if scalar(a) == 0 else None


def _mean(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Return x and a dimension of it where `value` is the mean of x over that, which is kept."""
    node = maker(value, "ReduceMean", "Unsqueeze", "Mul", "Div")
    if node is None or node.op_type == "ReduceMean":
        return None if node is None else _reduced(node, keeps=1)
    if node.op_type == "Unsqueeze":
        inner, axes = maker(node.inputs[0], "ReduceMean"), constant(node.inputs[1])
        found = None if inner is None else _reduced(inner, keeps=0)
        rank = 0 if found is None else len(sizes(found[0]) or ())
        same = found is not None and axes is not None and axes.size == 1 and axes.item() % rank == found[1]
        return found if same else None
    inner, number = maker(node.inputs[0], "ReduceSum"), scalar(node.inputs[1])
    found = None if inner is None else _reduced(inner, keeps=1)
    size = None if found is None else (sizes(found[0]) or [])[found[1]]
    if size is None or not isinstance(number, float):
        return None
    return found if is_near(number, 1 / size if node.op_type == "Mul" else size) else None


def _reduced(node: ir.Node, keeps: int) -> tuple[ir.Value, int] | None:
    """Return what is reduced over one dimension, and that."""
    x, axes = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) == 2 else None
    shape = sizes(x)
    if (
        x is None
        or axes is None
        or axes.size != 1
        or not shape
        or node.attributes.get_int("keepdims", 1) != keeps
    ):
        return None
    return x, int(axes.item()) % len(shape)


def _squared(value: ir.Value | None) -> ir.Value | None:
    """Return x where `value` is x²."""
    node = maker(value, "Pow", "Mul")
    if node is None:
        return None
    a, b = node.inputs
    return a if (scalar(b) == 2 if node.op_type == "Pow" else a is b) else None


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


def _replace_last(edit: Edit, node: ir.Node, found: _Normalized) -> None:
    shape = sizes(found.x) or []
    size, behind = shape[found.axis], len(shape) - found.axis
    if size is None:
        return
    output, weights = node.outputs[0], [found.scale, found.bias]
    operators = ["Mul"] * (found.scale is None and found.bias is None)
    operators += ["Add"] * (found.mean is not None and found.bias is None)
    for operator in operators:
        following = _next(output, operator)
        if following is not None and _is_along(following[1], size, behind, len(shape)):
            output, weights[operator == "Add"] = following[0].outputs[0], following[1]
    if all(each is None or _is_along(each, size, behind, len(shape)) for each in weights):
        scale, bias = (_flat(edit, each, size) for each in weights)
        scale = scale or edit.constant(np.ones(size, np.float32), f"{output.name}/scale")
        _insert(edit, output, found, [scale] if bias is None else [scale, bias], len(shape))


def _insert(edit: Edit, output: ir.Value, found: _Normalized, weights: list[ir.Value], rank: int) -> None:
    last, is_last = output.producer(), found.axis == rank - 1
    assert last is not None
    order = [*(axis for axis in range(rank) if axis != found.axis), found.axis]
    x = found.x if is_last else edit.insert(last, "Transpose", [found.x], {"perm": order})
    attributes = {"axis": -1, "epsilon": found.epsilon}
    version = None if found.mean is not None else NEWEST_OPSET
    like = output if is_last else None
    value = edit.insert(last, found.operator, [x, *weights], attributes, like, version)
    if not is_last:
        back = [order.index(axis) for axis in range(rank)]
        value = edit.insert(last, "Transpose", [value], {"perm": back}, output)
    edit.replace(output, value)


def _is_along(value: ir.Value, size: int, behind: int, rank: int) -> bool:
    """Say whether `value` is weights of one of `rank` dimensions, from where there are `behind`."""
    shape, array = static_shape(value), constant(value)
    if shape == (size,) and behind == 1:
        # It is there before the node for certain: an input or an initializer.
        return value.producer() is None or value.is_initializer()
    if array is None or shape is None:
        return False
    return array.size == size and behind <= len(shape) <= rank and shape[-behind] == size


def _flat(edit: Edit, value: ir.Value | None, size: int) -> ir.Value | None:
    array = constant(value)
    if array is None or array.shape == (size,):
        return value
    return edit.constant(array.reshape(size), f"{value.name}/weights" if value is not None else "")


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
    is_whole = restored is not None and restored.inputs[0] is x and lengths(back.inputs[1]) == lengths_of(x)
    same = is_whole or (static_shape(value) is not None and static_shape(value) == static_shape(x))
    return (x, int(shape[1]), normalization.attributes.get_float("epsilon", 1e-5)) if same else None


def _of_channels(value: ir.Value | None, channels: int, rank: int) -> np.ndarray | None:
    """Return a constant that is broadcast over all but dimension 1, as one number for each channel."""
    array = constant(value)
    if array is None or array.size != channels:
        return None
    whole = (1,) * (rank - array.ndim) + array.shape
    fits = len(whole) == rank and whole == (1, channels, *(1,) * (rank - 2))
    return array.reshape(channels) if fits else None
