"""Reductions, normalisations and orderings against NumPy in f64."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.compiler.models import model, native

BF16 = ml_dtypes.bfloat16


def result(operator, x, *more, outputs=1, opset=21, host=False, **attributes):
    """Run one node on `x` and constants, all compiled."""
    return results(operator, x, *more, outputs=outputs, opset=opset, host=host, **attributes)[0]


def results(operator, x, *more, outputs=1, opset=21, host=False, **attributes):
    names = ["x", *(f"w{index}" if array is not None else "" for index, array in enumerate(more))]
    node = helper.make_node(operator, names, [f"y{index}" for index in range(outputs)], **attributes)
    weights = {name: array for name, array in zip(names[1:], more, strict=True) if name}
    return ran([node], {"x": x}, weights, opset=opset, host=host)


def ran(nodes, feeds, weights=None, opset=21, host=False):
    """Run nodes, whose last one's outputs are the model's; assert that all are compiled."""
    inputs = {name: (helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim) for name, x in feeds.items()}
    executable = native(model(nodes, inputs, nodes[-1].output, weights, opset))
    found = list(executable.run(feeds).values())
    calls = [each.step for each in executable.program(feeds) if each.step is not None and each.step.call]
    assert bool(calls) == host, calls
    return found


def data(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iub":
        return rng.integers(0 if dtype.kind != "i" else -9, 10, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


NUMPY = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceL1": lambda x, **how: np.sum(np.abs(x), **how),
    "ReduceL2": lambda x, **how: np.sqrt(np.sum(x * x, **how)),
    "ReduceSumSquare": lambda x, **how: np.sum(x * x, **how),
    "ReduceLogSum": lambda x, **how: np.log(np.sum(x, **how)),
    "ReduceLogSumExp": lambda x, **how: np.log(np.sum(np.exp(x), **how)),
}


@pytest.mark.parametrize("operator", NUMPY)
def test_every_choice_of_axes_is_reduced(operator):
    x = np.abs(data((3, 5, 37, 21))) + 0.5
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            given = np.array(axes, np.int64)
            y = result(operator, x, given, keepdims=count % 2, noop_with_empty_axes=1)
            with np.errstate(over="ignore"):
                expected = NUMPY[operator](x.astype(np.float64), axis=axes, keepdims=bool(count % 2))
                np.testing.assert_allclose(y, expected.astype(np.float32), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, BF16, np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1"])
def test_every_type_is_reduced(operator, dtype):
    x = data((7, 19, 35), dtype)
    wide = x.astype(np.float64)
    for axis in range(3):
        y = result(operator, x, np.array([axis]))
        expected = NUMPY[operator](wide, axis=axis, keepdims=True)
        if np.dtype(dtype).kind in "iu":
            np.testing.assert_array_equal(y, np.trunc(expected))
        else:
            eps = float(ml_dtypes.finfo(dtype).eps) * (64 if dtype is np.float64 else 1)
            np.testing.assert_allclose(y.astype(np.float64), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool])
def test_extremes_of_small_types(dtype):
    x = data((6, 70), dtype) if dtype is not bool else data((6, 70), np.uint8) > 8
    for axis, (operator, function) in itertools.product(
        [0, 1], [("ReduceMax", np.max), ("ReduceMin", np.min)]
    ):
        np.testing.assert_array_equal(
            result(operator, x, np.array([axis]), keepdims=0), function(x, axis=axis)
        )


def test_long_rows_and_columns_keep_their_precision():
    x = np.random.default_rng(3).random((1, 1_000_003), np.float32)
    exact = x.astype(np.float64).mean()
    for seen, axis in ((x, 1), (x.T, 0), (x[:, :1_000_000].reshape(250_000, 4), 0)):
        y = result("ReduceMean", np.ascontiguousarray(seen), np.array([axis]))
        np.testing.assert_allclose(y, seen.astype(np.float64).mean(axis, keepdims=True), rtol=5e-7)
    assert abs(result("ReduceMean", x, keepdims=0) / exact - 1) < 5e-7


def test_nan_and_nothing():
    x = data((4, 50))
    x[1, 3], x[2, 49], x[3, 16] = np.nan, np.nan, np.inf
    for axis in (0, 1):
        np.testing.assert_array_equal(result("ReduceMax", x, np.array([axis])), x.max(axis, keepdims=True))
        np.testing.assert_array_equal(result("ReduceMin", x, np.array([axis])), x.min(axis, keepdims=True))
    empty = np.zeros((3, 0, 4), np.float32)
    for operator, value in (
        ("ReduceSum", 0), ("ReduceProd", 1), ("ReduceMax", -np.inf), ("ReduceMin", np.inf),
        ("ReduceMean", np.nan), ("ReduceL2", 0), ("ReduceLogSum", -np.inf), ("ReduceLogSumExp", -np.inf),
    ):  # fmt: skip
        y = result(operator, empty, np.array([1]))
        np.testing.assert_array_equal(y, np.full((3, 1, 4), value, np.float32))
        assert result(operator, empty, np.array([0])).shape == (1, 0, 4)
    assert result("ReduceSum", np.array(3, np.float32)) == 3


def test_log_sum_exp_of_large_and_infinite():
    x = np.array([[1000, 1001, 999], [-np.inf, 0, 1], [-np.inf, -np.inf, -np.inf]], np.float32)
    y = result("ReduceLogSumExp", x, np.array([1]), keepdims=0)
    np.testing.assert_allclose(y, np.logaddexp.reduce(x.astype(np.float64), axis=1), rtol=1e-6)


def test_an_expression_is_reduced_without_a_temporary():
    x, bias = data((6, 33, 40)), data((40,), seed=1)
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axes"], ["y"]),
    ]
    for axis in range(3):
        (y,) = ran(nodes, {"x": x}, {"b": bias, "axes": np.array([axis])})
        expected = (1 / (1 + np.exp(-(x + bias).astype(np.float64)))).sum(axis, keepdims=True)
        np.testing.assert_allclose(y, expected, rtol=2e-6)


def test_views_are_reduced_where_they_lie():
    x = data((9, 34, 50))
    for perm in itertools.permutations(range(3)):
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=perm),
            helper.make_node("Slice", ["t", "starts", "ends", "all", "steps"], ["s"]),
            helper.make_node("ReduceSum", ["s", "axes"], ["y"], keepdims=0),
        ]
        given = {"starts": np.array([-1, 1, 0]), "ends": np.array([-99, 99, 99]), "all": np.arange(3)}
        for axes in ([0], [1], [2], [0, 2]):
            more = {"steps": np.array([-1, 2, 1]), "axes": np.array(axes)}
            (y,) = ran(nodes, {"x": x}, {**given, **more})
            seen = x.transpose(perm)[::-1, 1::2]
            np.testing.assert_allclose(y, seen.astype(np.float64).sum(tuple(axes)), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours():
    x = data((37, 1003))
    for operator in ("ReduceSum", "ReduceL2"):
        whole = result(operator, x, np.array([1]))
        np.testing.assert_array_equal(result(operator, x[5:6], np.array([1])), whole[5:6])
        columns = result(operator, x, np.array([0]))
        np.testing.assert_array_equal(result(operator, x[:, 900:], np.array([0])), columns[:, 900:])


def test_axes_that_do_not_exist_are_refused():
    for axes in ([3], [0, 0], [-4]):
        with pytest.raises(Exception, match=r"axis|axes"):
            result("ReduceSum", data((2, 3, 4)), np.array(axes))
