"""Convert the TensorFlow Lite DS-CNN keyword spotter of MLPerf Tiny to ONNX.

The original is `kws_ref_model_float32.tflite` of github.com/mlcommons/tiny (folder
benchmark/training/keyword_spotting/trained_models). Its convolution weights are int8 with one scale for
each output channel; here they are stored as float32.

    pip install onnx tflite
    python convert.py kws_ref_model_float32.tflite model.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


def weights(model: tflite.Model, index: int) -> NDArray[np.float32]:
    """Return a constant of the original, dequantised."""
    tensor = model.Subgraphs(0).Tensors(index)
    raw = np.asarray(model.Buffers(tensor.Buffer()).DataAsNumpy(), np.uint8)
    shape = tensor.ShapeAsNumpy()
    if tensor.Type() == tflite.TensorType.FLOAT32:
        return np.reshape(raw.view(np.float32), tuple(shape))
    scale = tensor.Quantization().ScaleAsNumpy().reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(raw.view(np.int8).reshape(shape) * scale, np.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after one dimension that TensorFlow calls SAME."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def convert(model: tflite.Model) -> onnx.ModelProto:
    """Return the ONNX form of the original: a chain of convolutions, a mean and a dense layer."""
    graph = model.Subgraphs(0)
    nodes: list[onnx.NodeProto] = [helper.make_node("Transpose", ["mfcc"], ["x"], perm=[0, 3, 1, 2])]
    constants: dict[str, NDArray[np.float32]] = {}
    last = "x"
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        table = operator.BuiltinOptions()
        depthwise = kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D
        if depthwise or kind == tflite.BuiltinOperator.CONV_2D:
            options = tflite.DepthwiseConv2DOptions() if depthwise else tflite.Conv2DOptions()
            options.Init(table.Bytes, table.Pos)
            source, weight, bias = (int(index) for index in operator.InputsAsNumpy())
            kernel = weights(model, weight).transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
            strides = (options.StrideH(), options.StrideW())
            sizes = zip(graph.Tensors(source).ShapeAsNumpy()[1:3], kernel.shape[2:], strides, strict=True)
            pads = [same_padding(int(size), length, stride) for size, length, stride in sizes]
            constants[f"weight{i}"] = np.ascontiguousarray(kernel)
            constants[f"bias{i}"] = weights(model, bias)
            nodes += [
                helper.make_node(
                    "Conv",
                    [last, f"weight{i}", f"bias{i}"],
                    [f"conv{i}"],
                    group=kernel.shape[0] if depthwise else 1,
                    kernel_shape=list(kernel.shape[2:]),
                    strides=list(strides),
                    pads=[before for before, _ in pads] + [after for _, after in pads],
                ),
                helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"]),
            ]
            last = f"relu{i}"
        elif kind == tflite.BuiltinOperator.AVERAGE_POOL_2D:
            nodes.append(helper.make_node("GlobalAveragePool", [last], ["pool"]))
            last = "pool"
        elif kind == tflite.BuiltinOperator.RESHAPE:
            nodes.append(helper.make_node("Flatten", [last], ["flat"]))
            last = "flat"
        elif kind == tflite.BuiltinOperator.FULLY_CONNECTED:
            constants["dense"] = weights(model, operator.Inputs(1))
            constants["dense_bias"] = weights(model, operator.Inputs(2))
            nodes.append(helper.make_node("Gemm", [last, "dense", "dense_bias"], ["logits"], transB=1))
            last = "logits"
        elif kind == tflite.BuiltinOperator.SOFTMAX:
            nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
        else:
            raise SystemExit(f"unexpected operator {kind}")
    result = helper.make_model(
        helper.make_graph(
            nodes,
            "kws_dscnn",
            [helper.make_tensor_value_info("mfcc", TensorProto.FLOAT, ["batch", 49, 10, 1])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 12])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="educe zoo",
    )
    onnx.checker.check_model(result, full_check=True)
    return result


if __name__ == "__main__":
    original = tflite.Model.GetRootAs(Path(sys.argv[1]).read_bytes(), 0)
    Path(sys.argv[2]).write_bytes(convert(original).SerializeToString())
