"""Pooling against a plain loop over windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.models import FLOAT, model, native
from tests.compiler.test_convolution import assert_near, compiled


def windows(x, kernel, strides, pads, dilations, sizes):
    """Yield each output's place, and what its window sees: [N, C, numbers], padding left out."""
    rank = x.ndim - 2
    for place in itertools.product(*(range(size) for size in sizes)):
        axes = []
        for d in range(rank):
            taps = place[d] * strides[d] - pads[d] + np.arange(kernel[d]) * dilations[d]
            axes.append(taps[(taps >= 0) & (taps < x.shape[2 + d])])
        yield place, x[(slice(None), slice(None), *np.ix_(*axes))].reshape(*x.shape[:2], -1)


CASES = [
    # x, kernel, strides, pads, dilations, output sizes
    ((2, 20, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (5, 6)),
    ((1, 64, 13, 13), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), (13, 13)),
    ((1, 3, 8, 33), (2, 3), (1, 2), (0, 1, 0, 0), (2, 1), (6, 16)),
    ((2, 5, 17), (4,), (3,), (2, 1), (1,), (6,)),
    ((1, 17, 4, 5, 6), (2, 2, 3), (1, 2, 1), (0, 1, 0, 1, 0, 1), (1, 1, 1), (4, 3, 5)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling_is_of_each_window(operator, case):
    shape, kernel, strides, pads, dilations, sizes = case
    x = np.random.default_rng(1).standard_normal(shape).astype("f4")
    node = helper.make_node(
        operator, ["x"], ["y"], kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations
    )
    executable = native(model([node], {"x": (FLOAT, [None] * x.ndim)}, ["y"]))
    found = executable.run({"x": x})["y"]
    expected = np.zeros((*shape[:2], *sizes))
    for place, seen in windows(x.astype("f8"), kernel, strides, pads, dilations, sizes):
        expected[(slice(None), slice(None), *place)] = (
            seen.max(axis=2) if operator == "MaxPool" else seen.mean(axis=2)
        )
    assert compiled(executable, {"x": x})
    assert_near(found, expected, 0 if operator == "MaxPool" else 1e-6)


@pytest.mark.parametrize(
    "shape", [(2, 19, 7, 7), (1, 130, 1, 1), (1, 8, 200, 300), (3, 5, 6), (1, 4, 2, 3, 4)]
)
@pytest.mark.parametrize("operator", ["GlobalMaxPool", "GlobalAveragePool"])
def test_global_pooling(operator, shape):
    x = np.random.default_rng(1).random(shape).astype("f4")
    node = helper.make_node(operator, ["x"], ["y"])
    executable = native(model([node], {"x": (FLOAT, [None] * x.ndim)}, ["y"]))
    found = executable.run({"x": x})["y"]
    axes = tuple(range(2, x.ndim))
    reduce = np.max if operator == "GlobalMaxPool" else np.mean
    assert compiled(executable, {"x": x})
    assert_near(found, reduce(x.astype("f8"), axis=axes, keepdims=True), 5e-7)


@pytest.mark.parametrize(
    "kind", [TensorProto.UINT8, TensorProto.INT8, TensorProto.DOUBLE, TensorProto.FLOAT16]
)
def test_the_largest_of_other_kinds(kind):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = (np.random.default_rng(1).standard_normal((1, 37, 9, 9)) * 100).astype(dtype)
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    executable = native(model([node], {"x": (kind, x.shape)}, ["y"]))
    found = executable.run({"x": x})["y"]
    expected = np.zeros_like(x)
    for (a, b), seen in windows(x, (3, 3), (1, 1), (1, 1), (1, 1), (9, 9)):
        expected[:, :, a, b] = seen.max(axis=2)
    assert compiled(executable, {"x": x})
    assert found.dtype == dtype
    assert np.array_equal(found, expected)


def test_the_largest_is_nan_where_the_window_sees_one():
    x = np.random.default_rng(1).standard_normal((1, 17, 6, 6)).astype("f4")
    x[0, 3, 2, 2] = np.nan
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    found = native(model([node], {"x": (FLOAT, x.shape)}, ["y"])).run({"x": x})["y"]
    assert np.isnan(found[0, 3, 1, 1])
    assert np.isnan(found).sum() == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_with_padding_and_ceiling(batch):
    x = np.random.default_rng(1).standard_normal((batch, 4, 8, 8)).astype("f4")
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
        ceil_mode=1, count_include_pad=1,
    )  # fmt: skip
    found = native(model([node], {"x": (FLOAT, x.shape)}, ["y"])).run({"x": x})["y"]
    padded = np.pad(x.astype("f8"), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.array([[padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].mean((2, 3)) for j in range(5)]
                         for i in range(5)])  # fmt: skip
    assert_near(found, expected.transpose(2, 3, 0, 1), 1e-6)


def test_what_follows_is_done_where_the_tile_ends():
    x = np.random.default_rng(1).standard_normal((1, 40, 8, 8)).astype("f4")
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    executable = native(model(nodes, {"x": (FLOAT, x.shape)}, ["y"]))
    found = executable.run({"x": x})["y"]
    assert np.array_equal(found, np.maximum(x.reshape(1, 40, 4, 2, 4, 2).max((3, 5)), 0))
    launches = [launch for segment in executable.program({"x": x}) for launch in segment.launches]
    (pooling,) = (each for each in launches if each.kernel.template == "window")
    assert "Relu" in str(pooling.kernel)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms(p):
    x = np.random.default_rng(1).standard_normal((2, 19, 8, 8)).astype("f4")
    node = helper.make_node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], p=p)
    executable = native(model([node], {"x": (FLOAT, x.shape)}, ["y"]))
    expected = (np.abs(x.astype("f8")).reshape(2, 19, 4, 2, 4, 2) ** p).sum((3, 5)) ** (1 / p)
    assert compiled(executable, {"x": x})
    assert_near(executable.run({"x": x})["y"], expected)
