"""Mixtures of experts against NumPy: the order of choices, and the products of those chosen."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from educe.errors import EduceError
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.digest import Digest
from educe.model.quantized import QuantizedWeight, pack
from tests.compiler.models import FLOAT, native
from tests.compiler.test_quantized import Graph, attributes_of, product, random_weight


def model(nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, weights: dict) -> Model:
    infos = [
        [helper.make_tensor_value_info(name, *declared) for name, declared in values.items()]
        for values in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "experts", *infos, tensors)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("educe", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Model(
        ir.from_proto(proto),
        read_signature(proto.graph),
        "experts",
        None,
        Digest([b""]),
        0,
        {"": 24, "educe": 1},
    )


def order(choices: np.ndarray, num_experts: int, **options: int) -> list[np.ndarray]:
    node = helper.make_node(
        "ExpertOrder", ["e"], ["places", "sources", "ends"], domain="educe", num_experts=num_experts
    )
    outputs = dict.fromkeys(node.output, (TensorProto.INT64, None))
    executable = native(model([node], {"e": (TensorProto.INT64, ["T", "K"])}, outputs, {}), **options)
    found = executable.run({"e": choices})
    return [found[name] for name in node.output]


@pytest.mark.parametrize(
    ("tokens", "chosen", "num_experts"), [(1, 1, 1), (1, 2, 8), (37, 3, 5), (200, 8, 128)]
)
def test_choices_lie_by_expert_in_their_own_order(tokens: int, chosen: int, num_experts: int) -> None:
    rng = np.random.default_rng(tokens)
    choices = rng.integers(0, num_experts, (tokens, chosen))
    places, sources, ends = order(choices, num_experts)
    right = np.argsort(choices.reshape(-1), kind="stable")
    np.testing.assert_array_equal(places[right], np.arange(choices.size))
    np.testing.assert_array_equal(sources, right // chosen)
    np.testing.assert_array_equal(ends, np.bincount(choices.reshape(-1), minlength=num_experts).cumsum())


def test_an_expert_that_is_not_there_is_the_nearest_that_is() -> None:
    places, _, ends = order(np.array([[5, -3], [1, 2**62]]), 3)
    np.testing.assert_array_equal(ends, [1, 2, 4])
    np.testing.assert_array_equal(places, [2, 0, 1, 3])


def linear(outputs: int, weights: np.ndarray, shape: list | None = None, **options: int):
    names = [f"w{index}" for index in range(len(weights))]
    node = helper.make_node("ExpertLinear", ["x", "ends", *names], ["y"], domain="educe")
    inputs = {
        "x": (FLOAT, shape or ["T", weights.shape[2]]),
        "ends": (TensorProto.INT64, [len(weights)]),
    }
    return native(
        model([node], inputs, {"y": (FLOAT, ["T", outputs])}, dict(zip(names, weights, strict=True))),
        **options,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("counts", "inputs", "outputs"),
    [
        ([1], 1, 1),
        ([0, 1, 0, 1], 64, 96),
        ([3, 0, 17, 40, 1], 33, 50),
        ([0, 0, 90], 129, 257),
        ([2] * 64, 40, 8),
    ],
)
def test_rows_meet_the_matrix_of_their_expert(
    counts: list[int], inputs: int, outputs: int, threads: int
) -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((len(counts), outputs, inputs)).astype(np.float32)
    x = rng.standard_normal((sum(counts), inputs)).astype(np.float32)
    executable = linear(outputs, weights, threads=threads)
    found = executable.run({"x": x, "ends": np.cumsum(counts)})["y"]
    experts = np.repeat(np.arange(len(counts)), counts)
    right = np.einsum("tk,tnk->tn", x.astype(float), weights[experts].astype(float))
    np.testing.assert_allclose(found, right, atol=1e-4, rtol=1e-5)
    for row, expert in enumerate(experts[:9]):
        ends = (np.arange(len(counts)) >= expert).astype(np.int64)
        alone = executable.run({"x": x[row : row + 1], "ends": ends})["y"]
        np.testing.assert_array_equal(alone[0], found[row])


def test_what_follows_ends_the_product() -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((3, 20, 16)).astype(np.float32)
    x, gate = (rng.standard_normal((9, size)).astype(np.float32) for size in (16, 20))
    nodes = [
        helper.make_node("ExpertLinear", ["x", "ends", "a", "b", "c"], ["z"], domain="educe"),
        helper.make_node("Mul", ["z", "gate"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    inputs = {"x": (FLOAT, ["T", 16]), "ends": (TensorProto.INT64, [3]), "gate": (FLOAT, ["T", 20])}
    made = model(nodes, inputs, {"y": (FLOAT, ["T", 20])}, dict(zip("abc", weights, strict=True)))
    found = native(made).run({"x": x, "ends": np.array([4, 4, 9]), "gate": gate})["y"]
    experts = [0] * 4 + [2] * 5
    right = np.maximum(np.einsum("tk,tnk->tn", x, weights[experts]) * gate, 0)
    np.testing.assert_allclose(found, right, atol=1e-5)


def test_ends_beyond_the_rows_and_disorder_stay_inside() -> None:
    weights = np.ones((3, 4, 4), np.float32)
    executable = linear(4, weights)
    for ends in ([2**62, -(2**62), 5], [-1, -1, -1], [5, 3, 1], [0, 2, 2**63 - 1]):
        executable.run({"x": np.ones((5, 4), np.float32), "ends": np.array(ends)})


def test_shapes_that_do_not_fit_are_refused() -> None:
    weights = np.ones((3, 4, 4), np.float32)
    with pytest.raises(EduceError, match="3 experts of 4 inputs"):
        linear(4, weights, ["T", 5]).run({"x": np.ones((2, 5), np.float32), "ends": np.array([1, 1, 2])})


def quantized(weights: list[QuantizedWeight], counts: list[int], *, ended: bool = False) -> Model:
    """Return products of rows and experts' packed weights, with something at their end if so wished."""
    graph = Graph(weights[0].codes.shape[1])
    packed = [pack(weight) for weight in weights]
    parts = [
        None if getattr(packed[0], part) is None else np.concatenate([getattr(each, part) for each in packed])
        for part in ("codes", "scales", "multipliers", "minimums")
    ]
    rows = graph.call("QuantizeRows", graph.x, outputs=3, own=True, **attributes_of(weights[0]))
    outputs, inputs = weights[0].codes.shape
    sizes = {"in_features": inputs, "out_features": outputs, **attributes_of(weights[0])}
    given = [*rows, graph.constant(np.cumsum(counts)), *(graph.constant(part) for part in parts)]
    y = graph.call("QuantizedExpertLinear", *given, own=True, **sizes)
    return graph.model(graph.call("Relu", y) if ended else y)


@pytest.mark.parametrize("counts", [[1], [0, 1, 0, 1], [3, 0, 40, 17]])
@pytest.mark.parametrize(
    ("name", "shape"), [("int8", (37, 172)), ("int4", (48, 172)), ("Q8_0", (37, 160)), ("Q4_1", (20, 64))]
)
def test_rows_meet_the_packed_weight_of_their_expert(
    name: str, shape: tuple[int, int], counts: list[int], rng: np.random.Generator
) -> None:
    weights = [random_weight(name, *shape) for _ in counts]
    for number, weight in enumerate(weights):
        weight.codes[...] = np.roll(weight.codes, number + 1, axis=0)
    x = rng.standard_normal((sum(counts), shape[1])).astype(np.float32)
    found = native(quantized(weights, counts)).run({"x": x})["y"]
    experts = np.repeat(np.arange(len(counts)), counts)
    right = np.concatenate([product(x[experts == number], weight) for number, weight in enumerate(weights)])
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-4 * np.abs(right).max())
    ended = native(quantized(weights, counts, ended=True), threads=2).run({"x": x})["y"]
    np.testing.assert_array_equal(ended, np.maximum(found, 0))
    for row in range(0, sum(counts), 7):
        alone = [int(number == experts[row]) for number in range(len(counts))]
        once = native(quantized(weights, alone)).run({"x": x[row : row + 1]})["y"]
        np.testing.assert_array_equal(once[0], found[row])


def test_packed_weights_that_do_not_fit_are_refused() -> None:
    weights = [random_weight("int8", 37, 172) for _ in range(3)]
    made = quantized(weights, [1, 1])
    with pytest.raises(EduceError, match="codes"):
        native(made).run({"x": np.ones((2, 172), np.float32)})


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_packed_weights_and_ends_in_disorder_stay_inside(name: str) -> None:
    weights = [random_weight(name, 37, 172) for _ in range(3)]
    for counts in ([2**62, -(2**62), 5], [-1, 0, 0], [90, -80, 2**61]):
        native(quantized(weights, counts)).run({"x": np.ones((70, 172), np.float32)})
