"""Resizing against the ONNX project's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.compiler.models import FLOAT, model, native
from tests.compiler.test_convolution import assert_near, compiled

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def run(x, kind, given, value, **attributes):
    """Return what the compiler and the evaluator say, and whether all is compiled."""
    names = ["x", "", given] if given == "scales" else ["x", "", "", given]
    node = helper.make_node("Resize", names, ["y"], **attributes)
    weights = {given: np.asarray(value)}
    executable = native(model([node], {"x": (kind, x.shape)}, ["y"], weights))
    graph = helper.make_graph(
        [node],
        "reference",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    return executable.run({"x": x})["y"], expected, compiled(executable, {"x": x})


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(2, 19, 12, 9), (2, 19, 3, 7), (2, 19, 6, 1)], ids=str)
def test_resized_to_sizes(mode, coordinates, sizes):
    x = np.random.default_rng(1).standard_normal((2, 19, 6, 7)).astype("f4")
    found, expected, is_compiled = run(
        x, FLOAT, "sizes", np.array(sizes), mode=mode, coordinate_transformation_mode=coordinates
    )
    assert is_compiled
    assert_near(found, expected, 0 if mode == "nearest" else 2e-6)


@pytest.mark.parametrize(("mode", "antialias"), [("linear", 1), ("cubic", 1), ("cubic", 0)])
@pytest.mark.parametrize("outside", [0, 1])
def test_fewer_pixels_without_aliasing(mode, antialias, outside):
    x = np.random.default_rng(1).standard_normal((1, 5, 23, 30)).astype("f4")
    found, expected, is_compiled = run(
        x,
        FLOAT,
        "scales",
        np.float32([1, 1, 0.3, 0.55]),
        mode=mode,
        antialias=antialias,
        exclude_outside=outside,
    )
    assert is_compiled
    assert_near(found, expected, 2e-6)


@pytest.mark.parametrize("shape", [(8, 9), (7,), (1, 4, 5, 6, 3), (1, 6, 5, 4), (2, 3, 10)], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_any_dimensions(shape, mode):
    x = np.random.default_rng(1).standard_normal(shape).astype("f4")
    scales = {2: [2, 1.5], 1: [3], 5: [1, 1, 2, 1, 2], 4: [1, 2, 1.7, 1], 3: [1, 1, 0.5]}[len(shape)]
    found, expected, is_compiled = run(x, FLOAT, "scales", np.float32(scales), mode=mode)
    assert is_compiled
    assert_near(found, expected, 0 if mode == "nearest" else 2e-6)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT64, TensorProto.FLOAT16])
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_nearest_neighbours_of_every_kind(kind, rounding):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = np.random.default_rng(1).integers(0, 200, (1, 3, 5, 4)).astype(dtype)
    found, expected, is_compiled = run(
        x, kind, "scales", np.float32([1, 1, 2, 2.5]), mode="nearest", nearest_mode=rounding
    )
    assert is_compiled
    assert found.dtype == dtype
    assert np.array_equal(found, expected)


def test_bits_do_not_depend_on_the_batch():
    x = np.random.default_rng(1).standard_normal((3, 21, 6, 7)).astype("f4")
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")
    executable = native(
        model([node], {"x": (FLOAT, ["n", 21, 6, 7])}, ["y"], {"s": np.float32([1, 1, 2, 2])})
    )
    whole = executable.run({"x": x})["y"]
    for n in range(3):
        assert np.array_equal(executable.run({"x": x[n : n + 1]})["y"][0], whole[n])
