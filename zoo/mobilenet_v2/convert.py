"""Convert the quantised TensorFlow Lite MobileNetV2 to ONNX.

The original is `mobilenet_v2_1.0_224_quant.tflite` of github.com/tensorflow/tflite-support (folder
tensorflow_lite_support/metadata/python/tests/testdata/image_classifier). The weights stay uint8 and pass
through DequantizeLinear, so the file is small; activations are float32. The output of each convolution is
clipped to the range of its uint8 form, which holds the ReLU6 as well.

    pip install onnx tflite
    python convert.py mobilenet_v2_1.0_224_quant.tflite model.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


def data(model: tflite.Model, tensor: tflite.Tensor, dtype: type) -> NDArray[np.generic]:
    """Return the constant that a tensor of the original holds."""
    raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
    return np.reshape(np.asarray(raw, np.uint8).view(dtype), tuple(tensor.ShapeAsNumpy()))


def scale_of(tensor: tflite.Tensor) -> NDArray[np.float32]:
    """Return the scale of a tensor, without dimensions."""
    return np.asarray(tensor.Quantization().Scale(0), np.float32)


def zero_point_of(tensor: tflite.Tensor) -> int:
    """Return the zero point of a tensor."""
    return int(tensor.Quantization().ZeroPoint(0))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after one dimension that TensorFlow calls SAME."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Builder:
    """Collects the nodes and constants of the new graph."""

    def __init__(self, model: tflite.Model) -> None:
        self.model = model
        self.graph = model.Subgraphs(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        self.constants[name] = value
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def clip(self, name: str, index: int) -> None:
        """Clip `name` to what the uint8 form of the original's tensor `index` can hold."""
        tensor = self.graph.Tensors(index)
        scale, zero = scale_of(tensor), zero_point_of(tensor)
        low = self.constant(f"low{index}", np.asarray(-zero * scale, np.float32))
        high = self.constant(f"high{index}", np.asarray((255 - zero) * scale, np.float32))
        self.node("Clip", [name, low, high], f"t{index}")

    def conv(self, operator: tflite.Operator, depthwise: bool) -> None:
        """Add a convolution with its dequantised weights."""
        source, weight_index, bias_index = (int(i) for i in operator.InputsAsNumpy())
        weight, bias = self.graph.Tensors(weight_index), self.graph.Tensors(bias_index)
        options = tflite.DepthwiseConv2DOptions() if depthwise else tflite.Conv2DOptions()
        table = operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        kernel = data(self.model, weight, np.uint8).transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        height, width = (int(n) for n in self.graph.Tensors(source).ShapeAsNumpy()[1:3])
        strides = [options.StrideH(), options.StrideW()]
        pads = [(0, 0), (0, 0)]
        if options.Padding() == tflite.Padding.SAME:
            pads = [
                same_padding(n, k, s)
                for n, k, s in zip((height, width), kernel.shape[2:], strides, strict=True)
            ]
        weights = self.node(
            "DequantizeLinear",
            [
                self.constant(f"w{weight_index}", np.ascontiguousarray(kernel)),
                self.constant(f"w{weight_index}_scale", scale_of(weight)),
                self.constant(f"w{weight_index}_zero", np.asarray(zero_point_of(weight), np.uint8)),
            ],
            f"w{weight_index}_f32",
        )
        # The bias has the scale of the input times that of the weights.
        biases = data(self.model, bias, np.int32).astype(np.float32) * scale_of(bias)
        output = int(operator.Outputs(0))
        self.node(
            "Conv",
            [f"t{source}", weights, self.constant(f"b{bias_index}", biases.astype(np.float32))],
            f"c{output}",
            group=kernel.shape[0] if depthwise else 1,
            kernel_shape=list(kernel.shape[2:]),
            strides=strides,
            pads=[before for before, _ in pads] + [after for _, after in pads],
        )
        self.clip(f"c{output}", output)


def convert(model: tflite.Model) -> onnx.ModelProto:
    """Return the ONNX form of the original."""
    builder = Builder(model)
    graph = builder.graph
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        inputs = [f"t{i}" for i in operator.InputsAsNumpy()]
        output = int(operator.Outputs(0))
        if kind in (tflite.BuiltinOperator.CONV_2D, tflite.BuiltinOperator.DEPTHWISE_CONV_2D):
            builder.conv(operator, kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D)
        elif kind == tflite.BuiltinOperator.ADD:
            builder.node("Add", inputs, f"t{output}")
        elif kind == tflite.BuiltinOperator.AVERAGE_POOL_2D:
            builder.node("GlobalAveragePool", inputs, f"t{output}")
        elif kind == tflite.BuiltinOperator.RESHAPE:
            builder.node("Flatten", inputs[:1], f"t{output}")
        else:
            raise SystemExit(f"unexpected operator {kind}")
    names = {f"t{graph.Inputs(0)}": "image", f"t{graph.Outputs(0)}": "logits"}
    for node in builder.nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    result = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "mobilenet_v2_1.0_224",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1001])],
            [numpy_helper.from_array(value, name) for name, value in builder.constants.items()],
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
