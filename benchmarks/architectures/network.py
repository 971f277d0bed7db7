"""`Network`: a builder of ONNX models, layer by layer, with random weights that keep activations in range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""What PyTorch's exporter writes unless told otherwise."""

Shape = Sequence["int | str"]


class Network:
    """A model under construction; layers take and return the names of values.

    Weights are those of He et al., "Delving Deep into Rectifiers" (2015): normal, with the variance
    `gain` / inputs of a sum. A gain of 2 makes up for the half that a ReLU takes away; 1 is for linear input.

    Args:
        name: The model's name, on which the weights depend.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rng = np.random.default_rng(list(name.encode()))
        self.card: dict[str, str] = {"task": '"tensor"'}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: type = np.float32) -> str:
        """Declare an input."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Shape) -> None:
        """Make `value` the output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        return self.add_several(1, operator, *inputs, **attributes)[0]

    def add_several(self, outputs: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node and return its `outputs`."""
        name = f"{operator}_{len(self._nodes)}"
        names = [f"{name}_output_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """Add a constant, such as axes."""
        return self.weight(np.asarray(value, dtype), "constant")

    def weight(self, array: np.ndarray, kind: str = "weight") -> str:
        """Add a weight."""
        name = f"{kind}_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int, deviation: float = 1.0) -> np.ndarray:
        """Return normal numbers around 0."""
        values: np.ndarray = self.rng.standard_normal(shape, np.float32)
        values *= np.float32(deviation)
        return values

    def conv(
        self,
        x: str,
        sizes: tuple[int, int],
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        bias: bool = False,
        gain: float = 2.0,
    ) -> str:
        """Convolve from `sizes` [0] to [1] channels; padded to keep the size unless told otherwise."""
        channels, filters = sizes
        shape = (filters, channels // groups, kernel, kernel)
        deviation = (gain * groups / (channels * kernel * kernel)) ** 0.5
        inputs = [x, self.weight(self.random(*shape, deviation=deviation))]
        if bias:
            inputs.append(self.weight(self.random(filters, deviation=0.1), "bias"))
        pads = [kernel // 2 if padding is None else padding] * 4
        return self.add(
            "Conv",
            *inputs,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=pads,
            group=groups,
            dilations=[1, 1],
        )

    def norm(self, x: str, channels: int, gain: float = 1.0) -> str:
        """Normalise a batch in inference: random statistics, near those of normal activations."""
        scale = self.rng.uniform(0.8, 1.2, channels).astype(np.float32) * np.float32(gain)
        variance = self.rng.uniform(0.8, 1.2, channels).astype(np.float32)
        bias, mean = self.random(channels, deviation=0.1), self.random(channels, deviation=0.1)
        arrays = (scale, bias, mean, variance)
        return self.add("BatchNormalization", x, *map(self.weight, arrays), epsilon=1e-5, momentum=0.9)

    def gemm(self, x: str, sizes: tuple[int, int], gain: float = 2.0) -> str:
        """Multiply rows by a matrix, as ``nn.Linear`` of rank 2 is exported."""
        weight = self.random(sizes[1], sizes[0], deviation=(gain / sizes[0]) ** 0.5)
        bias = self.weight(self.random(sizes[1], deviation=0.1), "bias")
        return self.add("Gemm", x, self.weight(weight), bias, transB=1)

    def linear(self, x: str, sizes: tuple[int, int], gain: float = 1.0) -> str:
        """Multiply rows by a matrix, as ``nn.Linear`` of a higher rank is exported."""
        weight = self.random(*sizes, deviation=(gain / sizes[0]) ** 0.5)
        bias = self.weight(self.random(sizes[1], deviation=0.1), "bias")
        return self.add("Add", bias, self.add("MatMul", x, self.weight(weight)))

    def relu(self, x: str) -> str:
        """Add a ReLU."""
        return self.add("Relu", x)

    def silu(self, x: str) -> str:
        """Add x · sigmoid(x), as ``nn.SiLU`` is exported."""
        return self.add("Mul", x, self.add("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """Add x · Φ(x) by way of the error function, as ``nn.GELU`` is exported."""
        scaled = self.add("Div", x, self.constant(2**0.5, np.float32))
        raised = self.add("Add", self.add("Erf", scaled), self.constant(1.0, np.float32))
        return self.add("Mul", self.add("Mul", x, raised), self.constant(0.5, np.float32))

    def pool(
        self, x: str, kind: Literal["Max", "Average"], kernel: int, stride: int, **attributes: Any
    ) -> str:
        """Pool over squares."""
        return self.add(f"{kind}Pool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)

    def size(self, x: str, axis: int) -> str:
        """Return the size of an axis, as an array of one, as ``x.size(axis)`` is exported."""
        taken = self.add("Gather", self.add("Shape", x), self.constant(axis), axis=0)
        return self.add("Unsqueeze", taken, self.constant([0]))

    def view(self, x: str, *sizes: int | str) -> str:
        """Reshape to `sizes`: numbers, or the names of arrays of one."""
        parts = [self.constant([size]) if isinstance(size, int) else size for size in sizes]
        return self.add("Reshape", x, self.add("Concat", *parts, axis=0))

    def model(self) -> onnx.ModelProto:
        """Return the model, checked, with the shapes of all values."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        card = "\n".join(f"{key} = {value}" for key, value in self.card.items())
        model.metadata_props.add(key="educe.card", value=card)
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, True, strict_mode=True)
        return inferred
