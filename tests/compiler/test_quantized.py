"""Products with weights of 4 and 8 bits, against exact integers in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from educe.errors import EngineError, InputError
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.digest import Digest
from educe.model.quantized import PANEL, QuantizedWeight, pack
from tests.compiler.models import native

COUNTS = (1, 2, 3, 5, 9, 17, 33, 64)
SHAPES = {
    "int8": [(37, 172), (130, 1000), (1, 32), (16, 65)],
    "int4": [(37, 172), (130, 1000), (1, 32)],
    "int4, one scale": [(48, 100)],
    "int4, blocks of 128": [(37, 172), (40, 512)],
    "int4, blocks of 96 and groups": [(37, 480)],
    "Q8_0": [(37, 160), (130, 992)],
    "Q4_0": [(37, 160), (130, 992)],
    "Q4_1": [(37, 160), (1, 32)],
}  # fmt: skip
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def random_weight(name: str, outputs: int, inputs: int) -> QuantizedWeight:
    """Return a weight of random codes of all values."""
    rng = np.random.default_rng(outputs + inputs)
    block, group = {
        "int4": (inputs, 32),
        "int4, blocks of 128": (128, 0),
        "int4, blocks of 96 and groups": (96, 32),
        "Q8_0": (32, 0),
        "Q4_0": (32, 0),
        "Q4_1": (32, 0),
    }.get(name, (inputs, 0))
    shape, is_byte = (outputs, inputs), name in ("int8", "Q8_0")
    codes = rng.integers(-128, 128, shape, np.int8) if is_byte else rng.integers(0, 16, shape, np.uint8)
    dtype = np.float16 if name.startswith("Q") else np.float32
    scales = (rng.standard_normal((outputs, -(-inputs // block))) / 50).astype(dtype)
    multipliers = rng.integers(1, 16, (outputs, -(-inputs // group)), np.uint8) if group else None
    minimums = rng.standard_normal(scales.shape).astype(dtype) if name == "Q4_1" else None
    return QuantizedWeight(codes, scales, block, multipliers, group, minimums)


def rounded(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as integers up to 127 and the scale of each row and block."""
    parts = np.split(x, range(block, x.shape[1], block), axis=1)
    most = np.stack([np.abs(part).max(1) for part in parts], axis=1)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
    spread = np.repeat(inverse, block, axis=1)[:, : x.shape[1]]
    return np.rint(x * spread).astype(np.int64), most / np.float32(127)


def product(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """Return what `QuantizedLinear` says, sums of integers exact."""
    inputs, block = x.shape[1], weight.block
    rows, row_scales = rounded(x, block)
    whole = weight.codes.astype(np.int64) - weight.zero
    if weight.multipliers is not None:
        whole = whole * np.repeat(weight.multipliers, weight.group, axis=1)[:, :inputs]
    total = np.zeros((len(x), len(whole)), np.float32)
    for number, scale in enumerate(weight.scales.astype(np.float32).T):
        part = slice(number * block, (number + 1) * block)
        of_row = row_scales[:, number, None]
        total += (rows[:, part] @ whole[:, part].T).astype(np.float32) * scale * of_row
        if weight.minimums is not None:
            sums = rows[:, part].sum(1, keepdims=True).astype(np.float32) * of_row
            total += sums * weight.minimums[:, number].astype(np.float32)
    return total


def attributes_of(weight: QuantizedWeight) -> dict[str, int]:
    group = {"group": weight.group} if weight.multipliers is not None else {}
    return {"block": weight.block, **group}


class Graph:
    """A graph under construction, from an input x to y."""

    def __init__(self, features: int, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        shape = ["T", features] if features else ["T"]
        self.x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def constant(self, array: np.ndarray | None) -> ir.Value | None:
        if array is None:
            return None
        name = f"c{len(self.constants)}"
        tensor = ir.Tensor(array, name=name)
        kind = ir.TensorType(tensor.dtype)
        self.constants.append(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor))
        return self.constants[-1]

    def call(
        self, operator: str, *inputs: ir.Value | None, outputs: int = 1, own: bool = False, **attributes: Any
    ) -> Any:
        domain = "educe" if own else ""
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs)
        node.name = f"n{len(self.nodes)}"
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}.{number}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def weight(self, weight: QuantizedWeight) -> list[ir.Value | None]:
        packed = pack(weight)
        return [
            self.constant(each) for each in (packed.codes, packed.scales, packed.multipliers, packed.minimums)
        ]

    def linear(self, x: ir.Value, weight: QuantizedWeight, **changed: int) -> ir.Value:
        outputs, inputs = weight.codes.shape
        attributes = attributes_of(weight)
        rows = self.call("QuantizeRows", x, outputs=3, own=True, **attributes)
        sizes = {"in_features": inputs, "out_features": outputs, **changed}
        found: ir.Value = self.call(
            "QuantizedLinear", *rows, *self.weight(weight), own=True, **attributes, **sizes
        )
        return found

    def model(self, y: ir.Value) -> Model:
        y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
        opsets = {"": 24, "educe": 1}
        graph = ir.Graph([self.x], [y], nodes=self.nodes, initializers=self.constants, opset_imports=opsets)
        whole = ir.Model(graph, ir_version=10)
        signature = read_signature(ir.to_proto(whole).graph)
        return Model(whole, signature, "test", None, Digest([]), 0, {})


def linear(weight: QuantizedWeight, bias: np.ndarray | None = None) -> Model:
    """Return a product, with a bias if there is one."""
    graph = Graph(weight.codes.shape[1])
    y = graph.linear(graph.x, weight)
    return graph.model(y if bias is None else graph.call("Add", y, graph.constant(bias)))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_products_are_exact_and_have_the_same_bits_however_many_rows(
    name: str, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    weight, bias = random_weight(name, *shape), rng.standard_normal(shape[0], np.float32)
    x = rng.standard_normal((70, shape[1]), np.float32)
    runs = [native(linear(weight, bias), threads=threads) for threads in (1, 2)]
    whole = runs[0].run({"x": x})["y"]
    expected = product(x, weight) + bias
    np.testing.assert_allclose(whole, expected, rtol=0, atol=4e-7 * np.abs(expected).max())
    for count in COUNTS:
        for run in runs:
            found = run.run({"x": x[3 : 3 + count]})["y"]
            np.testing.assert_array_equal(found, whole[3 : 3 + count], strict=True)


def test_rounding_takes_in_what_comes_before_it(rng: np.random.Generator) -> None:
    weight = random_weight("int4", 40, 172)
    graph = Graph(2 * 172)
    gate, up = graph.call("Split", graph.x, outputs=2, axis=1, num_outputs=2)
    gated = graph.call("Mul", graph.call("Mul", gate, graph.call("Sigmoid", gate)), up)
    run = native(graph.model(graph.linear(gated, weight)))
    x = rng.standard_normal((19, 2 * 172), np.float32)
    gate_value, up_value = np.split(x, 2, axis=1)
    expected = product(gate_value / (1 + np.exp(-gate_value)) * up_value, weight)
    # A number on the border may be rounded to the other side.
    np.testing.assert_allclose(run.run({"x": x})["y"], expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    kernels = {launch.kernel.template for launch in run.executor.program([x]).launches}
    assert kernels == {"quantize_rows", "quantized_unit"} or kernels == {"quantize_rows", "quantized_product"}


@pytest.mark.parametrize("name", ["int8", "Q4_0"])
def test_what_is_not_finite_stays_in_its_row(name: str, rng: np.random.Generator) -> None:
    weight = random_weight(name, 20, 96)
    run = native(linear(weight))
    x = rng.standard_normal((8, 96), np.float32)
    clean = run.run({"x": x})["y"]
    x[1, 5], x[3, 7], x[4], x[6] = np.nan, np.inf, 0, 1e-42
    found = run.run({"x": x})["y"]
    assert not np.isfinite(found[[1, 3]]).any()
    assert not found[4].any()
    np.testing.assert_allclose(found[6], 0, atol=1e-35)
    np.testing.assert_array_equal(found[[0, 2, 5, 7]], clean[[0, 2, 5, 7]])


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_rows_of_a_weight_are_what_they_stand_for(name: str, shape: tuple[int, int]) -> None:
    weight = random_weight(name, *shape)
    outputs, inputs = shape
    graph = Graph(0, ir.DataType(TensorProto.INT64))
    sizes = {"in_features": inputs, "out_features": outputs}
    y = graph.call(
        "DequantizeRows", graph.x, *graph.weight(weight), own=True, **attributes_of(weight), **sizes
    )
    run = native(graph.model(y))
    numbers = np.random.default_rng(0).integers(-outputs, outputs, 40)
    np.testing.assert_allclose(run.run({"x": numbers})["y"], weight.dequantize()[numbers], rtol=2e-7)
    with pytest.raises(EngineError, match="an index is out of range"):
        run.run({"x": np.array([outputs])})


def test_rows_whose_numbers_are_known_are_computed_where_others_are() -> None:
    weight = random_weight("int8", 8, 32)
    graph = Graph(3)
    numbers = np.array([7, 0, 3], np.int64)
    known = graph.constant(numbers)
    sizes = {"in_features": 32, "out_features": 8}
    rows = graph.call(
        "DequantizeRows", known, *graph.weight(weight), own=True, **attributes_of(weight), **sizes
    )
    run = native(graph.model(graph.call("MatMul", graph.x, rows)))
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(run.run({"x": x})["y"], weight.dequantize()[numbers], rtol=2e-7)


@pytest.mark.parametrize("name", ["int4", "Q8_0"])
def test_pieces_of_a_weight_are_packed_one_after_the_other(name: str) -> None:
    weight = random_weight(name, 50, 96)
    whole = pack(weight)

    def piece(start: int, stop: int) -> QuantizedWeight:
        multipliers = None if weight.multipliers is None else weight.multipliers[start:stop]
        return QuantizedWeight(
            weight.codes[start:stop], weight.scales[start:stop], weight.block, multipliers, weight.group
        )

    pieces = [pack(piece(0, 2 * PANEL)), pack(piece(2 * PANEL, 50))]
    np.testing.assert_array_equal(np.concatenate([each.codes for each in pieces]), whole.codes)
    np.testing.assert_array_equal(np.concatenate([each.scales for each in pieces]), whole.scales)


def test_parts_that_do_not_fit_are_refused() -> None:
    codes, scales = np.zeros((8, 96), np.uint8), np.zeros((8, 1), np.float32)
    ones = np.ones((8, 3), np.uint8)
    QuantizedWeight(codes, scales, 96, ones, 32)
    for wrong in (
        lambda: QuantizedWeight(codes, scales, 32),
        lambda: QuantizedWeight(codes, scales, 0),
        lambda: QuantizedWeight(codes, scales[:4], 96),
        lambda: QuantizedWeight(codes, scales.astype(np.float64), 96),
        lambda: QuantizedWeight(codes, scales, 96, ones, 40),
        lambda: QuantizedWeight(codes, scales, 96, ones[:, :2], 32),
        lambda: QuantizedWeight(codes.view(np.int8), scales, 96, ones, 32),
        lambda: QuantizedWeight(codes, scales, 96, ones, 32, scales),
        lambda: QuantizedWeight(codes, np.zeros((8, 2), np.float32), 48),
    ):
        with pytest.raises(ValueError, match=r"blocks|codes"):
            wrong()


@pytest.mark.parametrize("changed", [{"in_features": 160}, {"out_features": 33}, {"out_features": 0}])
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, int]) -> None:
    graph = Graph(96)
    run = native(graph.model(graph.linear(graph.x, random_weight("Q4_0", 20, 96), **changed)))
    with pytest.raises(InputError, match="QuantizedLinear"):
        run.run({"x": np.zeros((2, 96), np.float32)})
