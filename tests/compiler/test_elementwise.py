"""Elementwise operators against NumPy, in every element type, and wherever their inputs lie."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from educe.errors import InputError
from tests.compiler.models import model, native
from tests.conftest import ROOT

BF16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float64, np.float16, BF16)
SIGNED = (np.int8, np.int16, np.int32, np.int64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
INTEGERS = (*SIGNED, *UNSIGNED)


def ran(nodes, feeds, outputs=("y",), opset=24, **options):
    """Return the outputs of nodes, of which none may run on the host."""
    inputs = {name: (helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim) for name, x in feeds.items()}
    executable = native(model(nodes, inputs, outputs, opset=opset), **options)
    found = executable.run(feeds)
    assert not [each.step for each in executable.program(feeds) if each.step is not None]
    return [found[name] for name in outputs]


def result(operator, *inputs, opset=24, **attributes):
    """Return the output of one node."""
    feeds = {f"x{place}": np.asarray(x) for place, x in enumerate(inputs) if x is not None}
    names = [f"x{place}" if x is not None else "" for place, x in enumerate(inputs)]
    return ran([helper.make_node(operator, names, ["y"], **attributes)], feeds, opset=opset)[0]


def data(dtype, shape=(7, 37), seed=0, low=-4.0, high=4.0):
    """Return random numbers, among them 0 and the integers' extremes."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        x = rng.integers(max(limits.min, -9), 10, shape).astype(dtype)
        x.ravel()[3:5] = (limits.min, limits.max)[: max(x.size - 3, 0)]
        return x
    x = rng.uniform(low, high, shape).astype(dtype)
    x.ravel()[5:6] = 0
    return x


def assert_near(y, exact, dtype, units=2, atol=0.0):
    """Compare with a reference in f64: within so many units in the last place of `dtype`."""
    assert y.dtype == dtype
    rtol = float(ml_dtypes.finfo(dtype).eps) * units
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y.astype(np.float64), exact, rtol=rtol, atol=atol)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x)


def _softplus(x):
    return np.log1p(np.exp(x))


SELU = 1.67326319217681884765625, 1.05070102214813232421875
UNARY = {
    "Abs": ({}, np.abs),
    "Acos": ({}, lambda x: np.arccos(x)),
    "Asin": ({}, np.arcsin),
    "Asinh": ({}, np.arcsinh),
    "Acosh": ({}, np.arccosh),
    "Atan": ({}, np.arctan),
    "Atanh": ({}, np.arctanh),
    "Ceil": ({}, np.ceil),
    "Celu": ({"alpha": 0.75}, lambda x: np.maximum(x, 0) + np.minimum(0.75 * np.expm1(x / 0.75), 0)),
    "Cos": ({}, np.cos),
    "Cosh": ({}, np.cosh),
    "Elu": ({"alpha": 2.0}, lambda x: np.where(x < 0, 2 * np.expm1(x), x)),
    "Erf": ({}, _erf),
    "Exp": ({}, np.exp),
    "Floor": ({}, np.floor),
    "HardSigmoid": ({"alpha": 0.25, "beta": 0.5}, lambda x: np.clip(x * 0.25 + 0.5, 0, 1)),
    "HardSwish": ({}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "LeakyRelu": ({"alpha": 0.125}, lambda x: np.where(x < 0, x / 8, x)),
    "Log": ({}, np.log),
    "Mish": ({}, lambda x: x * np.tanh(_softplus(x))),
    "Neg": ({}, np.negative),
    "Reciprocal": ({}, lambda x: 1 / x),
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "Round": ({}, np.rint),
    "Selu": ({}, lambda x: SELU[1] * np.where(x > 0, x, SELU[0] * np.expm1(x))),
    "Shrink": (
        {"bias": 0.5, "lambd": 1.5},
        lambda x: np.where(x < -1.5, x + 0.5, np.where(x > 1.5, x - 0.5, 0)),
    ),
    "Sigmoid": ({}, _sigmoid),
    "Sign": ({}, np.sign),
    "Sin": ({}, np.sin),
    "Sinh": ({}, np.sinh),
    "Softplus": ({}, _softplus),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "Sqrt": ({}, np.sqrt),
    "Swish": ({"alpha": 1.5}, lambda x: x * _sigmoid(1.5 * x)),
    "Tan": ({}, np.tan),
    "Tanh": ({}, np.tanh),
    "ThresholdedRelu": ({"alpha": 1.5}, lambda x: np.where(x > 1.5, x, 0)),
}
_LARGER_ERROR = {"Selu": 6}
_SUMS = ("HardSigmoid", "HardSwish")


def _allowed(operator, dtype):
    if not onnx.defs.has(operator):
        return True
    schema = onnx.defs.get_schema(operator)
    name = (
        "bfloat16"
        if dtype is BF16
        else np.dtype(dtype).name.replace("float32", "float").replace("float64", "double")
    )
    return f"tensor({name})" in schema.type_constraints[0].allowed_type_strs


@pytest.mark.parametrize("operator", UNARY)
def test_floats(operator):
    attributes, function = UNARY[operator]
    for dtype in FLOATS:
        if not _allowed(operator, dtype):
            continue
        x = data(dtype)
        x.flat[-1] = np.nan
        with np.errstate(all="ignore"):
            exact = function(x.astype(np.float64))
        units = _LARGER_ERROR.get(operator, 4)
        # Next to where it becomes 0 a sum of two numbers is off by a last place of theirs.
        atol = float(ml_dtypes.finfo(dtype).eps) if operator in _SUMS else 0
        assert_near(result(operator, x, **attributes), exact, dtype, units, atol)
    for shape in ((0, 3), (), (1,), (5,)):
        x = np.full(shape, 0.5, np.float32)
        y = result(operator, x, **attributes)
        assert y.shape == shape
        with np.errstate(all="ignore"):
            assert_near(y, function(x.astype(np.float64)), np.float32, 4)


def test_the_function_that_the_documents_show_is_an_operator():
    found = re.search(r"```python\n(.*?CubedRelu.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert found
    use = """
import numpy as np
from tests.compiler.test_elementwise import data, result
x = data(np.float32)
np.testing.assert_allclose(result("CubedRelu", x, scale=2.0), 2 * np.maximum(x, 0) ** 3, rtol=1e-6)
"""
    subprocess.run([sys.executable, "-c", found[1] + use], cwd=ROOT, check=True)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    x = data(np.float32, low=-6, high=6)
    wide = x.astype(np.float64)
    inner = (
        wide * math.sqrt(0.5)
        if approximate == "none"
        else math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    )
    exact = wide / 2 * (1 + (_erf(inner) if approximate == "none" else np.tanh(inner)))
    assert_near(result("Gelu", x, approximate=approximate), exact, np.float32, 4, 3e-7)


def test_what_is_not_finite_passes_through():
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1.0], np.float32)
    nan = np.nan
    for operator, expected in {
        "Relu": [nan, np.inf, 0, 0, 1],
        "Sigmoid": [nan, 1, 0, 0.5, None],
        "Tanh": [nan, 1, -1, -0.0, None],
        "Softplus": [nan, np.inf, 0, np.float32(math.log(2)), None],
        "Sign": [nan, 1, -1, 0, 1],
        "Round": [nan, np.inf, -np.inf, -0.0, 1],
        "Elu": [nan, np.inf, -1, 0, 1],
    }.items():
        y = result(operator, x)
        known = [place for place, value in enumerate(expected) if value is not None]
        np.testing.assert_array_equal(
            y[known], np.array([expected[at] for at in known], np.float32), operator
        )
    clipped = result("Clip", x, np.float32(-1), np.float32(1))
    np.testing.assert_array_equal(clipped, np.array([nan, 1, -1, 0, 1], np.float32))
    for operator in ("Max", "Min"):
        both = result(operator, x, x[::-1].copy())
        np.testing.assert_array_equal(np.isnan(both), [True, False, False, False, True])
    flags = {(0, 0): [], (0, 1): [1], (1, 0): [2], (1, 1): [1, 2]}
    for (negative, positive), places in flags.items():
        y = result("IsInf", x, detect_negative=negative, detect_positive=positive)
        assert np.flatnonzero(y).tolist() == places
    assert np.flatnonzero(result("IsNaN", x)).tolist() == [0]


def _trunc_div(a, b):
    with np.errstate(all="ignore"):
        quotient = np.floor_divide(a, b)
        exact = quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(b == 0, 0, exact)


BINARY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Max": np.maximum,
    "Min": np.minimum,
}


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: np.dtype(dtype).name)
def test_binary_operators(dtype):
    a, b = data(dtype), data(dtype, (37,), seed=1)
    nodes = [helper.make_node(operator, ["a", "b"], [operator]) for operator in BINARY]
    for name, y in zip(BINARY, ran(nodes, {"a": a, "b": b}, tuple(BINARY)), strict=True):
        with np.errstate(all="ignore"):
            expected = BINARY[name](a, b)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected, name)


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).name)
def test_integers_are_divided_toward_zero(dtype):
    a, b = data(dtype), data(dtype, seed=1)
    b.flat[3:5] = b.dtype.type(-1 if np.dtype(dtype).kind == "i" else 1), 3
    np.testing.assert_array_equal(result("Div", a, b), _trunc_div(a, b))
    with np.errstate(all="ignore"):
        for fmod, function in ((0, np.mod), (1, np.fmod)):
            np.testing.assert_array_equal(result("Mod", a, b, fmod=fmod), np.where(b == 0, 0, function(a, b)))


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: np.dtype(dtype).name
)
def test_floats_have_a_rest(dtype):
    a, b = data(dtype, low=-50, high=50), data(dtype, seed=1)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result("Mod", a, b, fmod=1), np.fmod(a, b))
        np.testing.assert_array_equal(result("Mod", a, b, fmod=0), np.mod(a, b))


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).name)
def test_integers_of_one_input(dtype):
    x = data(dtype)
    with np.errstate(all="ignore"):
        for operator, function in {"Abs": np.abs, "Sign": np.sign}.items():
            np.testing.assert_array_equal(result(operator, x), function(x))
        if np.dtype(dtype).kind == "i":
            np.testing.assert_array_equal(result("Neg", x), -x)
            np.testing.assert_array_equal(result("Relu", x), np.maximum(x, 0))
            wide = x.astype(np.float64)
            expected = np.where(wide < -1.5, x + 1, np.where(wide > 1.5, x - 1, 0)).astype(dtype)
            np.testing.assert_array_equal(result("Shrink", x, bias=1.0, lambd=1.5), expected)
    low, high = dtype(2), dtype(5)
    np.testing.assert_array_equal(result("Clip", x, low, high), np.clip(x, low, high))
    np.testing.assert_array_equal(result("Clip", x, None, high), np.minimum(x, high))
    np.testing.assert_array_equal(result("Clip", x, low), np.maximum(x, low))
    np.testing.assert_array_equal(result("Clip", x, high, low), np.full_like(x, low))
    np.testing.assert_array_equal(result("BitwiseNot", x), ~x)
    for operator, function in (("And", np.bitwise_and), ("Or", np.bitwise_or), ("Xor", np.bitwise_xor)):
        np.testing.assert_array_equal(result(f"Bitwise{operator}", x, x[::-1].copy()), function(x, x[::-1]))


@pytest.mark.parametrize("dtype", UNSIGNED, ids=lambda dtype: np.dtype(dtype).name)
def test_bits_are_shifted(dtype):
    x, bits = data(dtype), 8 * np.dtype(dtype).itemsize
    amount = np.random.default_rng(2).integers(0, bits + 9, x.shape).astype(dtype)
    kept, inside = np.minimum(amount, bits - 1).astype(dtype), amount < bits
    for direction, function in (("LEFT", np.left_shift), ("RIGHT", np.right_shift)):
        expected = np.where(inside, function(x, kept), 0)
        np.testing.assert_array_equal(result("BitShift", x, amount, direction=direction), expected)


def test_truth():
    a, b = np.random.default_rng(0).integers(0, 2, (2, 67)).astype(bool)
    for operator, function in (("And", np.logical_and), ("Or", np.logical_or), ("Xor", np.logical_xor)):
        np.testing.assert_array_equal(result(operator, a, b), function(a, b))
    np.testing.assert_array_equal(result("Not", a), ~a)
    np.testing.assert_array_equal(result("Equal", a, b), a == b)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, bool], ids=lambda dtype: np.dtype(dtype).name)
def test_a_choice_takes_elements_of_any_type(dtype):
    c = np.random.default_rng(3).integers(0, 2, (5, 1, 37)).astype(bool)
    a = data(np.int8, (7, 37)).astype(dtype)
    b = data(np.int8, (5, 7, 1), seed=1).astype(dtype)
    np.testing.assert_array_equal(result("Where", c, a, b), np.where(c, a, b))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, bool], ids=lambda dtype: np.dtype(dtype).name)
def test_casts(dtype):
    x = np.array([0, 1, 2, 3.5, 100.25, -3.5, -0.25, 77] * 6)
    x = np.abs(x).astype(dtype) if np.dtype(dtype).kind == "u" else x.astype(dtype)
    targets = [*FLOATS, *INTEGERS, bool]
    nodes = [
        helper.make_node("Cast", ["x"], [np.dtype(to).name], to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))
        for to in targets
    ]
    names = tuple(np.dtype(to).name for to in targets)
    for to, y in zip(targets, ran(nodes, {"x": x}, names), strict=True):
        source = x
        if np.dtype(to).kind == "u" and np.dtype(dtype).kind not in "iub":
            y, source = y[x >= 0], x[x >= 0]
        np.testing.assert_array_equal(y, source.astype(to))
    like = result("CastLike", x, np.zeros(3, np.float16))
    np.testing.assert_array_equal(like, x.astype(np.float16))


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).name)
def test_floats_beyond_an_integer_type_become_its_nearest(dtype):
    limits = np.iinfo(dtype)
    powers = [
        sign * 2.0**k + more
        for k in (7, 8, 15, 16, 31, 32, 63, 64)
        for sign in (-1, 1)
        for more in (-1, 0, 1)
    ]
    for source in (np.float32, np.float64):
        x = np.array([*powers, 3e38, -3e38], source)
        x = np.concatenate([x, np.nextafter(x, source(0)), np.array([np.inf, -np.inf, np.nan], source)])
        expected = [min(max(int(value), limits.min), limits.max) for value in x[:-3].tolist()]
        y = result("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        np.testing.assert_array_equal(y, np.array([*expected, limits.max, limits.min, 0], dtype))


def test_a_cast_to_f16_is_rounded_once():
    x = np.array([1 + 2**-11 + 2**-40, 1 + 2**-11, 65519.999999999, 65520.0, 2.0**-25 + 2.0**-60, 1e300])
    y = result("Cast", np.tile(x, 5), to=onnx.TensorProto.FLOAT16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, np.tile(x, 5).astype(np.float16))


def test_powers():
    x = np.abs(data(np.float32)) + 0.25
    y = data(np.float32, seed=1)
    wide = x.astype(np.float64)
    assert_near(result("Pow", x, y), wide**y, np.float32, 1)
    for exponent in (2, 3, 0.5, 1, 0, -1, -2.5):
        feeds = {"x": x - (2 if exponent in (2, 3) else 0)}
        nodes = [
            helper.make_node("Constant", [], ["e"], value_float=float(exponent)),
            helper.make_node("Pow", ["x", "e"], ["y"]),
        ]
        (found,) = ran(nodes, feeds)
        assert_near(found, feeds["x"].astype(np.float64) ** exponent, np.float32, 2)
    whole = np.arange(-6, 7)
    for dtype in (np.int32, np.int64):
        bases = np.repeat(np.arange(-4, 5), 13).astype(dtype)
        exponents = np.tile(np.abs(whole), 9).astype(np.int32)
        np.testing.assert_array_equal(result("Pow", bases, exponents), bases**exponents)
        np.testing.assert_array_equal(
            result("Pow", np.abs(bases), exponents.astype(np.float32)), np.abs(bases) ** exponents
        )
    mixed = result("Pow", x, np.array([3, -2], np.int64)[:, None, None])
    assert_near(mixed, np.stack([wide**3, wide**-2.0]), np.float32, 1)
    negative = result("Pow", np.array([1, -1, -1, 2, -3], np.int64), np.array([-5, -3, -2, -1, -1], np.int64))
    np.testing.assert_array_equal(negative, [1, -1, 1, 0, 0])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_many_inputs(count):
    values = [
        data(np.float32, shape, seed)
        for seed, shape in enumerate([(7, 37), (37,), (1, 1), (7, 1), ()][:count])
    ]
    wide = np.broadcast_arrays(*(each.astype(np.float64) for each in values))
    for operator, function in {"Sum": np.sum, "Mean": np.mean, "Max": np.max, "Min": np.min}.items():
        exact = function(np.stack(wide), axis=0)
        assert_near(result(operator, *values), exact, np.float32, 4, 1e-6)


def test_slopes():
    x = data(np.float32, (2, 5, 9))
    for shape in ((5, 1), (1,), (), (2, 5, 9)):
        slope = data(np.float32, shape or (1,), 1).reshape(shape)
        np.testing.assert_array_equal(result("PRelu", x, slope), np.where(x < 0, x * slope, x))
    with pytest.raises(InputError, match="slope"):
        result("PRelu", x, data(np.float32, (3, 1, 1, 1)))


def test_inputs_of_other_types_are_refused():
    x = data(np.float32)
    for operator, inputs in {
        "Add": (x, x.astype(np.int32)),
        "And": (x, x),
        "Sigmoid": (x.astype(np.int32),),
    }.items():
        with pytest.raises(InputError, match=operator):
            result(operator, *inputs)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, np.int8, np.int64], ids=lambda dtype: np.dtype(dtype).name
)
def test_inputs_lie_anywhere(dtype):
    """Broadcast, transposed and reversed inputs of odd sizes, as rows too short for a vector as well."""
    rng = np.random.default_rng(5)
    for _ in range(12):
        shape = rng.integers(1, 20, rng.integers(1, 5))
        a = data(dtype, shape[rng.permutation(shape.size)]) if shape.prod() > 5 else np.ones(shape, dtype)
        b_shape = [size if rng.random() < 0.6 else 1 for size in a.T.shape][int(rng.integers(0, a.ndim)) :]
        b = rng.integers(-9, 10, b_shape).astype(dtype)
        nodes = [
            helper.make_node("Transpose", ["a"], ["t"]),
            helper.make_node("Add", ["t", "b"], ["s"]),
            helper.make_node("Slice", ["s", "start", "end", "axis", "step"], ["r"]),
            helper.make_node("Sub", ["r", "b"], ["y"]),
        ]
        nodes[:0] = [
            helper.make_node("Constant", [], [name], value_ints=[value])
            for name, value in (("start", -1), ("end", -(2**31)), ("axis", 0), ("step", -1))
        ]
        (y,) = ran(nodes, {"a": a, "b": b})
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(y, (a.T + b)[::-1] - b)


def test_a_row_is_the_same_in_every_batch_and_with_any_threads():
    x = data(np.float32, (64, 1023))
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        helper.make_node("Softplus", ["g"], ["s"]),
        helper.make_node("Sin", ["s"], ["y"]),
    ]
    (one,) = ran(nodes, {"x": x}, threads=1)
    (two,) = ran(nodes, {"x": x}, threads=2)
    assert one.tobytes() == two.tobytes()
    for rows in (1, 3):
        (some,) = ran(nodes, {"x": x[5 : 5 + rows]})
        assert some.tobytes() == one[5 : 5 + rows].tobytes()


def reference(node, feeds, opset=24):
    graph = helper.make_graph(
        [node],
        "reference",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
            for name, x in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(made).run(None, feeds)[0]


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.int16], ids=lambda dtype: np.dtype(dtype).name
)
@pytest.mark.parametrize("source", [np.float32, np.float16], ids=lambda dtype: np.dtype(dtype).name)
def test_quantization(dtype, source):
    rng = np.random.default_rng(0)
    x = data(source, (3, 8, 10), low=-300, high=300)
    x.flat[:3] = -0.75, 0.25, 16000
    cases = [((), {}), ((8,), {"axis": 1}), ((10,), {"axis": -1}), ((3, 2, 10), {"axis": 1, "block_size": 4})]
    for (shape, attributes), has_zero in itertools.product(cases, (False, True)):
        scale = rng.choice([0.25, 0.5, 1.5], shape).astype(source)
        feeds = {"x": x, "scale": scale}
        if has_zero:
            feeds["zero"] = rng.integers(0, 100, shape).astype(dtype)
        else:
            attributes = {**attributes, "output_dtype": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
        node = helper.make_node("QuantizeLinear", list(feeds), ["y"], **attributes)
        (y,) = ran([node], feeds)
        expected = reference(node, feeds)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected)
        attributes.pop("output_dtype", None)
        feeds = {**feeds, "x": y}
        node = helper.make_node("DequantizeLinear", list(feeds), ["y"], **attributes)
        (back,) = ran([node], feeds)
        np.testing.assert_array_equal(back, reference(node, feeds))


def test_quantized_bias():
    x = data(np.int32, (4, 9))
    node = helper.make_node("DequantizeLinear", ["x", "scale"], ["y"], axis=0)
    feeds = {"x": x, "scale": np.array([0.5, 0.25, 1, 3], np.float32)}
    np.testing.assert_array_equal(ran([node], feeds)[0], reference(node, feeds))


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (4, 5), (3, 5, 0)])
def test_batch_normalization(shape):
    x = data(np.float32, shape) if 0 not in shape else np.zeros(shape, np.float32)
    rng = np.random.default_rng(1)
    parameters = [rng.uniform(0.5, 2, 5).astype(np.float32) for _ in range(4)]
    names = ["scale", "bias", "mean", "variance"]
    feeds = dict(zip(["x", *names], [x, *parameters], strict=True))
    node = helper.make_node("BatchNormalization", list(feeds), ["y"], epsilon=1e-3)
    axis = (5, *[1] * (len(shape) - 2))
    scale, bias, mean, variance = (each.astype(np.float64).reshape(axis) for each in parameters)
    exact = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
    (y,) = ran([node], feeds)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=2e-6)
    constants = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in zip(names, parameters, strict=True)
    ]
    (known,) = ran([*constants, node], {"x": x})
    np.testing.assert_allclose(known, exact, rtol=1e-5, atol=2e-6)


def test_dropout_changes_nothing():
    x = data(np.float32)
    y, mask = ran([helper.make_node("Dropout", ["x"], ["y", "mask"])], {"x": x}, ("y", "mask"))
    np.testing.assert_array_equal(y, x)
    assert mask.dtype == bool
    assert mask.shape == x.shape
    assert mask.all()
