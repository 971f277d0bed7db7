"""Factors and offsets of channels, folded into the weights before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from educe.graph.passes.base import Edit, constant, is_call, is_read_once, maker, sizes, visited
from educe.pages import empty

_KINDS = (np.dtype(np.float32), np.dtype(np.float64))
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Affine:
    """y = x * scale + offset for each channel; in f64."""

    scale: np.ndarray
    offset: np.ndarray


class ScaleFolding:
    """Folds what scales or shifts each channel of a product into the product's constant weights and bias.

    1. BatchNormalization after Conv, ConvTranspose, Gemm, or MatMul of two dimensions.
    2. Mul and Div by a constant of each channel, after any of these.
    3. Add and Sub of a constant of each channel, after Conv, ConvTranspose and Gemm. MatMul has no bias.

    The product has no other reader, and weights are of f32 or f64.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, _fold)


def _fold(edit: Edit, node: ir.Node) -> None:
    for source in node.inputs[:2]:
        product = maker(source, *_PRODUCTS)
        if product is None or source is None or product.graph is not edit.graph:
            continue
        if not is_read_once(source) or len(product.outputs) != 1:
            continue
        weight = constant(product.inputs[1])
        channels = None if weight is None else _channels(product, weight)
        affine = None if channels is None else _affine(node, source, product, channels)
        if weight is not None and affine is not None and _is_foldable(product, weight, affine):
            _scale(edit, node, product, weight, affine)
            return


def _channels(product: ir.Node, weight: np.ndarray) -> int | None:
    """Return how many channels the product gives."""
    if product.op_type == "Conv":
        return int(weight.shape[0])
    if product.op_type == "ConvTranspose":
        return int(weight.shape[1]) if product.attributes.get_int("group", 1) == 1 else None
    if weight.ndim != 2:
        return None
    is_turned = product.op_type == "Gemm" and product.attributes.get_int("transB", 0) == 1
    return int(weight.shape[0 if is_turned else 1])


def _affine(node: ir.Node, source: ir.Value, product: ir.Node, channels: int) -> _Affine | None:
    """Return what `node` does to each channel of the product's output, None if that is not affine."""
    if is_call(node, "BatchNormalization"):
        return _normalization(node, source, product, channels)
    if not is_call(node, "Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    factor = _for_channels(b if a is source else a, product, channels)
    if factor is None or a is b or (b is source and node.op_type == "Div"):
        return None
    none, one = np.zeros(channels), np.ones(channels)
    if node.op_type == "Mul":
        return _Affine(factor, none)
    if node.op_type == "Div":
        return None if (factor == 0).any() else _Affine(1 / factor, none)
    if node.op_type == "Add":
        return _Affine(one, factor)
    return _Affine(one, -factor) if a is source else _Affine(-one, factor)


def _normalization(node: ir.Node, source: ir.Value, product: ir.Node, channels: int) -> _Affine | None:
    arrays = [constant(value) for value in node.inputs[1:5]]
    if node.inputs[0] is not source or node.attributes.get_int("training_mode", 0) == 1:
        return None
    if any(array is None for array in arrays) or any(value.uses() for value in node.outputs[1:]):
        return None
    shape = sizes(product.inputs[0])
    if product.op_type == "MatMul" and (shape is None or len(shape) != 2):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    if any(array.shape != (channels,) for array in (gamma, beta, mean, variance)):
        return None
    spread = variance + node.attributes.get_float("epsilon", 1e-5)
    if (spread <= 0).any():
        return None
    scale = gamma / np.sqrt(spread)
    return _Affine(scale, beta - mean * scale)


def _for_channels(value: ir.Value | None, product: ir.Node, channels: int) -> np.ndarray | None:
    """Return a constant that is broadcast over all but the channels, as one number for each channel."""
    array = constant(value)
    if array is None:
        return None
    last = product.op_type in ("Gemm", "MatMul")
    given = sizes(product.inputs[0])
    weight = sizes(product.inputs[1])
    if last:
        # A MatMul of a vector gives a vector.
        rank = 2 if product.op_type == "Gemm" else (1 if array.ndim <= 1 else len(given) if given else 0)
    else:
        rank = len(weight) if weight else 0
    axis = rank - 1 if last else 1
    if rank < 1 or array.ndim > rank:
        return None
    whole = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for place, size in enumerate(whole) if place != axis) or whole[axis] not in (
        1,
        channels,
    ):
        return None
    return np.broadcast_to(array.astype(np.float64).ravel(), (channels,))


def _is_foldable(product: ir.Node, weight: np.ndarray, affine: _Affine) -> bool:
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    array = constant(bias)
    if (
        weight.dtype not in _KINDS
        or not np.isfinite(affine.scale).all()
        or not np.isfinite(affine.offset).all()
    ):
        return False
    if product.op_type == "MatMul" and affine.offset.any():
        return False
    if bias is None:
        return True
    # The bias of a Gemm may be a matrix, or one number.
    return (
        array is not None
        and array.ndim <= 1
        and (array.size == affine.scale.size or (product.op_type == "Gemm" and array.size == 1))
    )


def _scale(edit: Edit, node: ir.Node, product: ir.Node, weight: np.ndarray, affine: _Affine) -> None:
    output = node.outputs[0]
    kind = weight.dtype
    axis = {"Conv": 0, "ConvTranspose": 1}.get(product.op_type, 1)
    if product.op_type == "Gemm" and product.attributes.get_int("transB", 0) == 1:
        axis = 0
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    inputs = [product.inputs[0], product.inputs[1]]
    if (affine.scale != 1).any():
        scaled = empty(weight.shape, kind)
        np.multiply(weight, affine.scale.reshape(shape), out=scaled, casting="same_kind")
        inputs[1] = edit.constant(scaled, f"{output.name}/weight")
    if product.op_type != "MatMul":
        bias = constant(product.inputs[2]) if len(product.inputs) > 2 else None
        beta = product.attributes.get_float("beta", 1.0) if product.op_type == "Gemm" else 1.0
        shifted = affine.offset + (0 if bias is None else beta * bias * affine.scale)
        inputs.append(edit.constant(shifted.astype(kind), f"{output.name}/bias"))
    attributes = {name: each for name, each in product.attributes.items() if name != "beta"}
    value = edit.insert(node, product.op_type, inputs, like=output)
    made = value.producer()
    assert made is not None
    made.name = product.name
    for attribute in attributes.values():
        made.attributes.add(attribute)
    edit.replace(output, value)
    edit.remove([node])
    edit.remove([product])
