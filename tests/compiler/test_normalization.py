"""Normalisations, orderings and losses against NumPy in f64."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_topk import topk_sorted_implementation

from tests.compiler.test_reduction import BF16, data, ran, result, results

SHAPES = [(3, 5, 37), (2, 128), (1, 1000), (4, 21, 7, 9), (3, 1), (1,), (0, 3)]


def cases(*dtypes):
    """Every shape in f32, and one in the other types."""
    shapes = [(3, 5, 37), (2, 200), (70,), (4, 1)]
    return [(shape, np.float32) for shape in shapes] + [((3, 70), dtype) for dtype in dtypes]


def softmax(x, axis):
    x = x.astype(np.float64)
    e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis, keepdims=True)


def standard(x, axes, epsilon=1e-5):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_along_every_axis(shape):
    x = data(shape) * 5
    for axis in range(-1, len(shape)):
        expected = softmax(x, axis)
        np.testing.assert_allclose(result("Softmax", x, axis=axis), expected, rtol=3e-6, atol=1e-30)
        y = result("LogSoftmax", x, axis=axis)
        np.testing.assert_allclose(y, np.log(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, BF16])
def test_softmax_of_other_types(dtype):
    x = data((4, 5, 37), dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    for axis in range(3):
        np.testing.assert_allclose(
            result("Softmax", x, axis=axis).astype(np.float64), softmax(x, axis), rtol=max(eps, 1e-14)
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_what_is_not_finite(axis):
    x = data((5, 40)) if axis else data((40, 5))
    rows = x if axis else x.T
    rows[0, ::2] = -np.inf
    rows[1, :] = -np.inf
    rows[2, 7] = np.inf
    rows[3, 9:10].view(np.uint32)[0] = 0x7FC00001
    rows[4, :5] = [-1e38, 3e38, -200, 88, -88]
    y = result("Softmax", x, axis=axis)
    y = y if axis else y.T
    assert np.isnan(y[1:4]).all()
    assert (y[0, ::2] == 0).all()
    np.testing.assert_allclose(y[[0, 4]], softmax(rows[[0, 4]], 1), rtol=1e-6)


def test_softmax_of_an_expression():
    x, mask = data((2, 3, 5, 37)), np.where(data((2, 1, 1, 37), seed=1) > 0, 0, -np.inf).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    (y,) = ran(nodes, {"x": x, "mask": mask}, {"scale": np.array(0.125, np.float32)})
    np.testing.assert_allclose(y, softmax(x * 0.125 + mask, -1), rtol=3e-6)


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 37), -1), ((3, 5, 37), 1), ((4, 768), 1), ((2, 3, 1), 2)]
)
def test_rows_are_normalized(shape, axis):
    x = data(shape) + 5
    row = x.shape[axis:]
    scale, bias = data(row, seed=1), data(row, seed=2)
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(np.float64)
    expected = standard(x, axes)
    y, mean, inverse = results("LayerNormalization", x, scale, bias, outputs=3, axis=axis)
    np.testing.assert_allclose(y, expected * scale + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, wide.mean(axes, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(wide.var(axes, keepdims=True) + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(
        result("LayerNormalization", x, scale, axis=axis), expected * scale, rtol=1e-5, atol=1e-5
    )
    root = np.sqrt((wide * wide).mean(axes, keepdims=True) + 1e-5)
    y = result("RMSNormalization", x, scale, axis=axis, opset=23)
    np.testing.assert_allclose(y, wide / root * scale, rtol=1e-5)


def test_a_mean_far_from_zero_does_not_hurt_the_variance():
    x = data((3, 1000)) + 10_000
    y = result("LayerNormalization", x, np.ones(1000, np.float32))
    np.testing.assert_allclose(y, standard(x, 1), atol=2e-3)


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_halves_are_normalized_in_f32(dtype):
    x = data((3, 5, 37), dtype)
    scale = data((37,), dtype, seed=1)
    y = result("LayerNormalization", x, scale).astype(np.float64)
    expected = standard(x, -1) * scale.astype(np.float64)
    np.testing.assert_allclose(y, expected, rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_are_normalized(channels_last):
    x, scale, bias = data((2, 6, 7, 9)), data((6,), seed=1), data((6,), seed=2)
    weights = {"s": scale, "b": bias}
    wide = lambda each: each[:, None, None]  # noqa: E731
    groups = standard(x.reshape(2, 2, 3, 7, 9), (2, 3, 4)).reshape(x.shape)
    for operator, expected, attributes in (
        ("InstanceNormalization", standard(x, (2, 3)), {}),
        ("GroupNormalization", groups, {"num_groups": 2}),
    ):
        nodes = [helper.make_node(operator, ["t", "s", "b"], ["y"], **attributes)]
        given = x.transpose(0, 2, 3, 1).copy() if channels_last else x
        order = [0, 3, 1, 2] if channels_last else range(4)
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["t"], perm=order))
        (y,) = ran(nodes, {"x": given}, weights)
        np.testing.assert_allclose(y, expected * wide(scale) + wide(bias), rtol=1e-5, atol=1e-5)


def test_other_norms():
    x = data((3, 6, 7, 9))
    x[1, 2] = 0
    for axis, p in itertools.product(range(4), (1, 2)):
        norm = np.linalg.norm(x.astype(np.float64), p, axis, keepdims=True)
        expected = np.divide(x, norm, where=norm != 0, out=np.zeros(x.shape))
        np.testing.assert_allclose(result("LpNormalization", x, axis=axis, p=p), expected, rtol=2e-6)
    y = result("MeanVarianceNormalization", x)
    np.testing.assert_allclose(y, standard(x, (0, 2, 3), 0), rtol=1e-5, atol=1e-6)
    for size in (1, 3, 4):
        sums = np.zeros(x.shape)
        for c in range(6):
            first = max(0, c - (size - 1) // 2)
            sums[:, c] = (x[:, first : c + size // 2 + 1].astype(np.float64) ** 2).sum(1)
        y = result("LRN", x, size=size, alpha=0.3, beta=0.6, bias=1.5)
        np.testing.assert_allclose(y, x / (1.5 + 0.3 / size * sums) ** 0.6, rtol=3e-6)
    y = result("GlobalLpPool", x, p=3)
    expected = (np.abs(x.astype(np.float64)) ** 3).sum((2, 3), keepdims=True) ** (1 / 3)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_row_is_the_same_in_every_batch():
    x, scale = data((9, 333)), data((333,), seed=1)
    for operator, weights in (("Softmax", ()), ("LogSoftmax", ()), ("LayerNormalization", (scale,))):
        whole = result(operator, x, *weights)
        for row in (0, 8):
            np.testing.assert_array_equal(result(operator, x[row : row + 1], *weights), whole[row : row + 1])


@pytest.mark.parametrize(("shape", "dtype"), cases(np.float64, np.float16, np.int8, np.int32, np.uint64))
def test_places_of_extremes(shape, dtype):
    x = np.random.default_rng(1).integers(0, 9, shape).astype(dtype)
    if np.dtype(dtype).kind == "f" and x.size > 50:
        x.reshape(-1)[20::13] = np.nan
        x.reshape(-1)[:20] = -np.inf
    for axis, (operator, function) in itertools.product(
        range(len(shape)), (("ArgMax", np.argmax), ("ArgMin", np.argmin))
    ):
        y = result(operator, x, axis=axis, keepdims=0)
        np.testing.assert_array_equal(y, function(x, axis=axis))
        y = result(operator, x, axis=axis, keepdims=0, select_last_index=1)
        np.testing.assert_array_equal(y, shape[axis] - 1 - function(np.flip(x, axis), axis=axis))
        if operator == "ArgMax" and np.dtype(dtype).kind == "f":
            y = result("Hardmax", x, axis=axis)
            np.testing.assert_array_equal(y.argmax(axis), function(x, axis=axis))
            np.testing.assert_array_equal(y.sum(axis), 1)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 0), np.float32), *cases(np.float64, np.int32, np.int64)])
def test_running_totals(shape, dtype):
    x = data(shape, dtype)
    for axis, reverse, exclusive in itertools.product(range(len(shape)), (0, 1), (0, 1)):
        seen = np.flip(x, axis) if reverse else x
        expected = np.cumsum(seen, axis, dtype=dtype) - (seen if exclusive else 0)
        expected = np.flip(expected, axis) if reverse else expected
        y = result("CumSum", x, np.array(axis), reverse=reverse, exclusive=exclusive)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    y = result("CumProd", x, np.array(0), opset=26)
    np.testing.assert_allclose(y, np.cumprod(x, 0, dtype=dtype), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), cases(np.float64, np.float16, np.int8, np.uint32, np.int64, np.uint64)
)
def test_the_first_k(shape, dtype):
    x = np.random.default_rng(1).integers(0, 40, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        x[x == 3], x[x == 4], x[x == 5], x[x == 6] = np.nan, -np.inf, -0.0, 0.0
    else:
        x[x == 3] = np.iinfo(dtype).max
        x[x == 4] = np.iinfo(dtype).min
    for axis, largest in itertools.product(range(len(shape)), (0, 1)):
        for k in {0, 1, min(17, shape[axis]), shape[axis]}:
            values, places = results("TopK", x, np.array([k]), outputs=2, axis=axis, largest=largest)
            expected = topk_sorted_implementation(x, k, axis, largest)
            np.testing.assert_array_equal(values, expected[0])
            np.testing.assert_array_equal(places, expected[1])


def test_wrong_numbers_are_refused():
    x = data((2, 5))
    for k in (-1, 6):
        with pytest.raises(Exception, match="has no"):
            result("TopK", x, np.array([k]))
    with pytest.raises(Exception, match="axis"):
        result("Softmax", x, axis=2)
    with pytest.raises(Exception, match="scale"):
        result("LayerNormalization", x, data((4,)))
    with pytest.raises(Exception, match="no element"):
        result("ArgMax", np.zeros((3, 0), np.float32), axis=1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 2, -7])
def test_losses(reduction, weighted, ignored):
    x = data((4, 5, 6, 3))
    rng = np.random.default_rng(2)
    target = rng.integers(0, 5, (4, 6, 3))
    if ignored == -7:
        target[0] = -7
    attributes = {"reduction": reduction} | ({} if ignored is None else {"ignore_index": ignored})
    weights = [rng.random(5).astype(np.float32)] if weighted else []
    for operator in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        names = ["x", "target", *(["w"] if weighted else [])]
        node = helper.make_node(operator, names, ["y"], **attributes)
        (y,) = ran([node], {"x": x, "target": target}, {"w": weights[0]} if weighted else {})
        (expected,) = ReferenceEvaluator(node).run(None, {"x": x, "target": target} | (
            {"w": weights[0]} if weighted else {}
        ))  # fmt: skip
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
