"""What new sizes cost: no new kernels, no constants that stay, no memory beyond what is computed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.compiler.emit import Function
from educe.compiler.kernel import Kernel
from educe.compiler.library import library
from educe.compiler.target import TARGETS, host_target
from educe.model import Model
from tests.compiler.models import FLOAT, model, native


@pytest.mark.parametrize("operator", ["Div", "Mul"])
def test_a_number_that_comes_from_a_size_is_no_part_of_the_code(operator: str) -> None:
    nodes = [
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Cast", ["size"], ["number"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["x", "number"], ["y"]),
    ]
    executable = native(model(nodes, {"x": (FLOAT, ["n", 8])}, ["y"]))
    function = {"Div": np.divide, "Mul": np.multiply}[operator]
    for rows in (1, 2, 3):
        executable.run({"x": np.ones((rows, 8), np.float32)})
    made = len(library(host_target()))
    for rows in range(4, 30):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        np.testing.assert_array_equal(executable.run({"x": x})["y"], function(x, np.float32(x.size)))
    assert len(library(host_target())) == made


def test_tables_of_sizes_go_with_their_programs() -> None:
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    executable = native(model([node], {"x": (FLOAT, [1, 3, "h", "w_"])}, ["y"], {"w": weights}))
    counts = []
    for size in range(8, 28):
        executable.run({"x": np.ones((1, 3, size, size + 1), np.float32)})
        counts.append(len(executable.executor.code.constants._buffers))
    assert counts[-1] == counts[1]


def test_programs_hold_what_they_launch_once() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Softmax", ["e"], ["y"])]
    executable = native(model(nodes, {"x": (FLOAT, ["n", 8])}, ["y"]))
    programs = [executable.executor.program([np.ones((rows, 8), np.float32)]) for rows in (3, 5)]
    first, second = ([launch.kernel for launch in program.launches] for program in programs)
    assert first
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert not any(program.expected for program in programs)


def sized(operator: str) -> Model:
    """A model whose operator makes tables, or numbers, of the size of its input."""
    if operator == "OneHot":
        nodes = [
            helper.make_node("Shape", ["x"], ["depth"]),
            helper.make_node("OneHot", ["x", "depth", "values"], ["y"]),
        ]
        return model(
            nodes, {"x": (TensorProto.INT64, ["n"])}, ["y"], {"values": np.array([0, 1], np.float32)}
        )
    if operator == "Trilu":
        return model([helper.make_node("Trilu", ["x"], ["y"])], {"x": (FLOAT, ["n", "n"])}, ["y"])
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=4)
    weights = np.random.default_rng(0).standard_normal((2, 1, 16, 4)).astype(np.float32)
    return model([node], {"x": (FLOAT, ["n", 1, 4])}, ["y"], {"w": weights[0], "r": weights[1]})


@pytest.mark.parametrize("operator", ["OneHot", "Trilu", "LSTM"])
def test_more_sizes_leave_neither_kernels_nor_constants(operator: str) -> None:
    executable = native(sized(operator))

    def run(size: int) -> tuple[int, int]:
        shape = {"OneHot": (size,), "Trilu": (size, size), "LSTM": (size, 1, 4)}[operator]
        executable.run({"x": np.zeros(shape, np.int64 if operator == "OneHot" else np.float32)})
        return len(library(host_target())), len(executable.executor.code.constants._buffers)

    first = [run(size) for size in range(2, 6)][-1]
    assert [run(size) for size in range(6, 30)][-1] == first


def test_causal_attention_takes_no_memory_for_the_pairs_of_its_positions() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)
    executable = native(model([node], dict.fromkeys("qkv", (FLOAT, [1, 1, "n", 8])), ["y"], opset=24))
    x = np.random.default_rng(0).standard_normal((1, 1, 3000, 8)).astype(np.float32)
    tracemalloc.start()
    try:
        executable.run({"q": x, "k": x, "v": x})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3000 * 3000


def test_a_scale_of_zero_is_a_scale() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=0.0)
    executable = native(model([node], dict.fromkeys("qkv", (FLOAT, [1, 1, "n", 8])), ["y"], opset=24))
    x = np.random.default_rng(0).standard_normal((1, 1, 5, 8)).astype(np.float32)
    expected = np.broadcast_to(x.mean(axis=2, keepdims=True), x.shape)
    np.testing.assert_allclose(executable.run({"q": x, "k": x, "v": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_sums_side_by_side_fit_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    stack = Function.stack

    def noted(self, kind, count):
        asked.append(count)
        return stack(self, kind, count)

    monkeypatch.setattr(Function, "stack", noted)
    from educe.compiler.emit import F64
    from educe.compiler.kernels.product import DOT_ROWS
    from educe.compiler.kernels.scalars import Expression

    for name in ("x86-64", "neon"):
        asked.clear()
        Kernel.of("dots", kind=F64, expression=Expression((F64,)), access=()).text(TARGETS[name])
        assert asked[0] >= DOT_ROWS
