"""Sizes that no machine bears are errors that name the node, before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from educe.compiler.lowering import Constants, Lowering
from educe.compiler.target import host_target
from educe.errors import EduceError, EngineError, InputError, LimitError
from tests.compiler.models import model, native

ONE = np.ones(1, np.float32)
IMAGE = np.ones((1, 2, 4, 4), np.float32)

Case = tuple[list[NodeProto], np.ndarray, dict[str, np.ndarray], type[EduceError]]


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def single(
    error: type[EduceError], operator: str, x: np.ndarray, inputs: list[str], w: Any = (), **attributes: Any
) -> Case:
    """Return one node, whose other input is `w`."""
    return (
        [helper.make_node(operator, inputs, ["y"], name="large", **attributes)],
        x,
        {"w": np.array(w)},
        error,
    )


def seen(error: type[EduceError], sizes: list[int], operator: str, *more: Any, **attributes: Any) -> Case:
    """Return a node that reads one element as a view of many."""
    names = [f"w{index}" for index in range(len(more))]
    nodes = [
        helper.make_node("Expand", ["x", "sizes"], ["e"]),
        helper.make_node(operator, ["e", *names], ["y"], name="large", **attributes),
    ]
    given = {name: np.array(each) for name, each in zip(names, more, strict=True)}
    return nodes, ONE.reshape([1] * len(sizes)), {"sizes": integers(*sizes), **given}, error


CASES: dict[str, Case] = {
    "sum": seen(EngineError, [2**46], "ReduceSum"),
    "sum of squares": seen(EngineError, [2**31, 2**31], "ReduceSumSquare", [0], keepdims=0),
    "place of the largest": seen(LimitError, [2**30, 2**30], "ArgMax"),
    "largest": seen(LimitError, [2**46], "TopK", [3]),
    "product": seen(EngineError, [2**22, 2**23], "MatMul", np.ones((2**23, 1), np.float32)),
    "exponentials": seen(EngineError, [2**46], "Softmax"),
    "running sum": seen(EngineError, [2**46], "CumSum", 0),
    "convolution": seen(EngineError, [1, 1, 2**18, 2**18], "Conv", np.ones((1, 1, 3, 3), np.float32)),
    "double": seen(EngineError, [2**40], "Cast", to=11),
    "twice": seen(EngineError, [2**62], "Tile", [4]),
    "sequence": seen(
        InputError, [2**40, 1, 1], "RNN", np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32),
        hidden_size=1,
    ),
    "repeated": single(EngineError, "Tile", ONE, ["x", "w"], [2**40]),
    "sizes that overflow": single(InputError, "Expand", ONE, ["x", "w"], [2**62, 2**62]),
    "filled": single(EngineError, "ConstantOfShape", integers(2**40), ["x"]),
    "ramp": single(EngineError, "Range", np.array(2**40), ["w", "x", "step"], 0),
    "one of many": single(EngineError, "OneHot", integers(1), ["x", "w", "values"], 2**40),
    "padded": single(EngineError, "Pad", ONE, ["x", "w"], [2**62, 2**62]),
    "padded twice": single(EngineError, "Pad", ONE, ["x", "w"], [2**40, 2**40], mode="edge"),
    "resized": single(InputError, "Resize", IMAGE, ["x", "", "", "w"], [1, 2, 4, 2**40]),
    "without end": single(InputError, "Resize", IMAGE, ["x", "", "w"], np.float32([1, 1, 1, np.inf])),
    "pads of windows": single(InputError, "MaxPool", IMAGE, ["x"], kernel_shape=[3, 3], pads=[2**62] * 4),
    "kernel of windows": single(InputError, "MaxPool", IMAGE, ["x"], kernel_shape=[3, 2**40]),
    "transposed": single(
        InputError, "ConvTranspose", IMAGE, ["x", "w"], np.ones((2, 1, 3, 3), np.float32), strides=[2**40] * 2
    ),
    "samples": single(
        LimitError, "RoiAlign", IMAGE, ["x", "w", "items"], np.ones((1, 4), np.float32), sampling_ratio=2**33
    ),
    "negative sizes": single(InputError, "ConstantOfShape", integers(2, -3), ["x"]),
    "ramp without steps": single(InputError, "Range", np.array(5), ["w", "x", "still"], 0),
    "ramp without end": single(InputError, "Range", np.array(np.inf), ["w", "x", "float step"], 0.0),
    "ramp of no numbers": single(InputError, "Range", np.array(np.nan), ["w", "x", "float step"], 0.0),
    "no channels": single(InputError, "LRN", IMAGE, ["x"], size=0),
    "negative channels": single(InputError, "LRN", IMAGE, ["x"], size=-3),
    "window of a signal": single(EngineError, "HannWindow", np.array(2**40), ["x"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_size_that_no_machine_bears_is_an_error(name: str) -> None:
    nodes, x, given, error = CASES[name]
    others = {
        "step": np.array(1),
        "still": np.array(0),
        "float step": np.array(1.0),
        "values": np.float32([0, 1]),
        "items": integers(0),
    }
    used = {each for node in nodes for each in node.input}
    weights = {key: value for key, value in {**others, **given}.items() if key in used}
    inputs = {"x": (helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))}
    executable = native(model(nodes, inputs, ["y"], weights))
    with pytest.raises(error) as caught:
        executable.run({"x": x})
    assert any(name in (caught.value.place or "") for name in ("node 'large'", "output 'y'"))


def test_a_number_of_elements_beyond_64_bits_is_not_folded() -> None:
    nodes = [
        helper.make_node("Expand", ["x", "sizes"], ["e"], name="large"),
        helper.make_node("Size", ["e"], ["y"]),
    ]
    made = model(nodes, {"x": (1, [1])}, ["y"], {"sizes": integers(2**62, 2**62)})
    with pytest.raises(InputError, match="large"):
        native(made).run({"x": ONE})


def test_a_view_of_many_elements_costs_nothing() -> None:
    nodes = [
        helper.make_node("Expand", ["x", "sizes"], ["e"]),
        helper.make_node("Slice", ["e", "from", "to"], ["y"]),
    ]
    weights = {"sizes": integers(2**62), "from": integers(2**61), "to": integers(2**61 + 3)}
    found = native(model(nodes, {"x": (1, [1])}, ["y"], weights)).run({"x": ONE})["y"]
    np.testing.assert_array_equal(found, np.ones(3, np.float32))


@pytest.mark.parametrize("shape", [(-2, -2), (-1, 4), (3,)])
def test_a_tensor_is_not_seen_in_a_shape_of_another_size(shape: tuple[int, ...]) -> None:
    low = Lowering(host_target(), 1, Constants())
    with pytest.raises(ValueError, match="has no shape"):
        low.reshape(low.constant(np.zeros(4, np.float32)), shape)


def test_sums_of_no_channels_are_told_in_own_words() -> None:
    made = model([helper.make_node("LRN", ["x"], ["y"], size=-3)], {"x": (1, [1, 2, 4, 4])}, ["y"], {})
    with pytest.raises(InputError, match="has no sums of -3 channels"):
        native(made).run({"x": IMAGE})
