"""Models of old operator sets answer after the conversion as ONNX Runtime answers on the file itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import educe
from educe.graph import INTERNAL_OPSET

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE, CUBE = normal(1, 2, 5, 5), normal(2, 3, 4)
NORM = {"s": normal(2), "b": normal(2), "m": normal(2), "v": np.abs(normal(2)) + 0.1}
PADS = [0, 0, 1, 1, 0, 0, 2, 1]


def scales(*values: float) -> dict[str, np.ndarray]:
    return {"scales": np.array(values, np.float32)}


# Name: operator, its set, the input, constant inputs, attributes.
CASES: dict[str, tuple[str, int, np.ndarray, dict[str, np.ndarray], dict[str, Any]]] = {
    **{
        f"{op}-11-axis-{axis}": (op, 11, CUBE, {}, {} if axis is None else {"axis": axis})
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (None, 0, 1, 2, -1)
    },
    **{
        f"Upsample-{opset}-{mode}": ("Upsample", opset, IMAGE, constants, {"mode": mode, **attributes})
        for mode in ("nearest", "linear")
        for opset, constants, attributes in (
            (7, {}, {"scales": [1.0, 1.0, 2.0, 2.0]}),
            (8, {}, {"scales": [1.0, 1.0, 1.7, 2.3]}),
            (9, scales(1, 1, 2, 3), {}),
        )
    },
    **{
        f"Resize-10-{mode}-{by}": ("Resize", 10, IMAGE, scales(1, 1, by, by), {"mode": mode})
        for mode in ("nearest", "linear")
        for by in (0.6, 1.7, 2)
    },
    **{
        f"Pad-{opset}-{mode}": ("Pad", opset, IMAGE, {}, {"mode": mode, "pads": PADS, "value": 1.5})
        for opset in (2, 7, 10)
        for mode in ("constant", "reflect", "edge")
    },
    **{
        f"{op}-11-{name}": (op, 11, CUBE, {}, attributes)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")
        for name, attributes in (("one", {"axes": [1], "keepdims": 0}), ("all", {}))
    },
    **{
        f"AveragePool-10-{pad}-{ceil}": (
            "AveragePool", 10, IMAGE, {},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
            | {"count_include_pad": pad, "ceil_mode": ceil},
        )
        for pad in (0, 1)
        for ceil in (0, 1)
    },
    **{
        f"BatchNormalization-{opset}": ("BatchNormalization", opset, IMAGE, NORM, {})
        for opset in (7, 9, 13, 14)
    },
    "BatchNormalization-7-rows": (
        "BatchNormalization", 7, CUBE, {k: np.abs(normal(3, 4)) for k in "sbmv"}, {"spatial": 0},
    ),
    "GroupNormalization-18": (
        "GroupNormalization", 18, normal(1, 4, 5, 5), {"s": normal(2), "b": normal(2)}, {"num_groups": 2},
    ),
    "Dropout-7": ("Dropout", 7, CUBE, {}, {"ratio": 0.5}),
    "Squeeze-11": ("Squeeze", 11, IMAGE, {}, {"axes": [0]}),
    "Unsqueeze-11": ("Unsqueeze", 11, CUBE, {}, {"axes": [-1, 0]}),
    "Clip-6": ("Clip", 10, CUBE, {}, {"max": 0.5}),
    "Slice-1": ("Slice", 9, CUBE, {}, {"starts": [0, -2], "ends": [1, 2**31 - 1], "axes": [0, 2]}),
    "DFT-17": ("DFT", 17, normal(1, 8, 1), {}, {"axis": 1}),
    "Flatten-8": ("Flatten", 8, CUBE, {}, {"axis": 0}),
    "LSTM-7": (
        "LSTM", 7, normal(5, 2, 3), {"w": normal(1, 16, 3), "r": normal(1, 16, 4)}, {"hidden_size": 4},
    ),
    "GRU-7": (
        "GRU", 7, normal(5, 2, 3), {"w": normal(1, 12, 3), "r": normal(1, 12, 4), "b": normal(1, 24)},
        {"hidden_size": 4, "linear_before_reset": 1},
    ),
    "Scatter-9": (
        "Scatter", 9, CUBE, {"i": np.zeros((2, 1, 4), np.int64), "u": normal(2, 1, 4)}, {"axis": 1},
    ),
    "DepthToSpace-1": ("DepthToSpace", 10, normal(1, 8, 2, 2), {}, {"blocksize": 2}),
    "GridSample-16": (
        "GridSample", 16, IMAGE, {"g": RNG.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)},
        {"mode": "bilinear"},
    ),
}  # fmt: skip
KEPT = {name for name in CASES if name.startswith(("Hardmax", "Resize-10-nearest", "GroupNorm"))} | {
    *(f"Pad-{opset}-{mode}" for opset in (2, 7, 10) for mode in ("reflect", "edge")),
    "BatchNormalization-7-rows",
}
"""The cases that no conversion serves, so that the model stays at its set."""


def build(name: str, in_branch: bool = False) -> onnx.ModelProto:
    operator, opset, x, constants, attributes = CASES[name]
    node = helper.make_node(operator, ["x", *constants], ["y"], name="node", **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    if in_branch:
        node.output[0] = "t"
        branch = helper.make_tensor_value_info("t", TensorProto.FLOAT, [None] * x.ndim)
        node = helper.make_node(
            "If", ["c"], ["y"],
            then_branch=helper.make_graph([node], "then", [], [branch]),
            else_branch=helper.make_graph([node], "else", [], [branch]),
        )  # fmt: skip
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def of_the_file_itself(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_meaning_is_kept(name: str) -> None:
    proto, feeds = build(name), {"x": CASES[name][2]}
    model = educe.load(proto)
    assert (model.opsets["ai.onnx"] == INTERNAL_OPSET) == (name not in KEPT)
    assert bool(model.notes) == (name in KEPT)
    found = educe.compile(model, engine="onnxruntime").run(feeds)["y"]
    expected = of_the_file_itself(proto, feeds)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["Upsample-9-linear", "Softmax-11-axis-1", "ReduceSum-11-one", "Pad-10-reflect"]
)
def test_the_meaning_is_kept_in_a_branch(name: str) -> None:
    proto, feeds = build(name, in_branch=True), {"x": CASES[name][2], "c": np.array(True)}
    found = educe.compile(educe.load(proto), engine="onnxruntime").run(feeds)["y"]
    np.testing.assert_allclose(found, of_the_file_itself(proto, feeds), rtol=1e-4, atol=1e-5)


def test_an_old_alignment_that_no_conversion_keeps() -> None:
    node = helper.make_node("PRelu", ["x", "slope"], ["y"], name="node")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 5, 5])],
        [numpy_helper.from_array(normal(2), "slope")],
    )
    model = educe.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=7))
    assert model.notes == ("kept at operator set 6: PRelu at node 'node' has no faithful conversion",)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (
            helper.make_node("Mystery", ["x"], ["y"], name="node"),
            "Mystery at node 'node' is no standard operator",
        ),
        (
            helper.make_node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0]),
            "Upsample in opset 1 needs to have width_scale and height_scale attributes",
        ),
    ],
)
def test_a_note_tells_the_reason_alone(node: onnx.NodeProto, reason: str) -> None:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = educe.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=7))
    assert model.notes == (f"kept at operator set 6: {reason}",)
