"""An estimate of the arithmetic in one run of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from educe.model.walk import STANDARD_DOMAINS, all_nodes

if TYPE_CHECKING:
    import onnx_ir as ir


def estimate_flops(model: ir.Model) -> int | None:
    """Return the floating-point operations of one run, a multiply-add counted as two.

    Counted are the operators that dominate (convolutions, matrix products, recurrences) and one operation
    for each element that any other operator makes out of a known shape. Sizes known only at run time count
    as 1, a branch of an If as taken, a Loop's body as run once: the figure is a floor for one item.

    Returns:
        None if the shapes that a dominating operator needs are unknown, or an operator is not a standard one.
    """
    total = 0
    for node in all_nodes(model):
        if node.domain not in STANDARD_DOMAINS:
            return None
        rule = _RULES.get(node.op_type) if node.outputs else None
        flops = rule(node) if rule else _elementwise(node)
        if flops is None:
            return None
        total += flops
    return total


def _input(node: ir.Node, position: int) -> list[int] | None:
    """Return the sizes of an input; None if it is absent or its shape is unknown."""
    return _sizes(node.inputs[position]) if position < len(node.inputs) else None


def _sizes(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def _elements(value: ir.Value | None) -> int | None:
    sizes = _sizes(value)
    return None if sizes is None else math.prod(sizes)


def _elementwise(node: ir.Node) -> int:
    return _elements(node.outputs[0]) or 0 if node.op_type in _ARITHMETIC and node.outputs else 0


def _convolution(node: ir.Node) -> int | None:
    position = 3 if node.op_type == "QLinearConv" else 1
    weight, made = _input(node, position), _elements(node.outputs[0])
    return None if weight is None or made is None else 2 * made * math.prod(weight[1:])


def _transposed_convolution(node: ir.Node) -> int | None:
    weight, taken = _input(node, 1), _input(node, 0)
    return None if weight is None or taken is None else 2 * math.prod(taken) * math.prod(weight[1:])


def _matrix_product(node: ir.Node) -> int | None:
    left, made = _input(node, 0), _elements(node.outputs[0])
    if left is None or made is None:
        return None
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return 2 * made * left[0 if transposed else -1] if left else 0


def _recurrence(node: ir.Node) -> int | None:
    taken, weight, recurrent = (_input(node, position) for position in range(3))
    if taken is None or weight is None or recurrent is None or len(taken) < 2:
        return None
    steps = taken[0] * taken[1]
    return 2 * steps * (math.prod(weight) + math.prod(recurrent))


def _attention(node: ir.Node) -> int | None:
    query, key = _input(node, 0), _input(node, 1)
    return None if not query or not key or len(key) < 2 else 4 * math.prod(query) * key[-2]


_RULES: dict[str, Callable[[ir.Node], int | None]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product,
    "MatMulInteger": _matrix_product,
    "QLinearMatMul": _matrix_product,
    "Gemm": _matrix_product,
    "Attention": _attention,
    "LSTM": _recurrence,
    "GRU": _recurrence,
    "RNN": _recurrence,
}


_ARITHMETIC = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Ceil Clip Cos Div Elu Equal Erf Exp
    Floor Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pow RMSNormalization Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Resize Round Selu Sigmoid Sign Sin Softmax Softplus Softsign
    Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """.split()
)
