"""Products of 8-bit integers against NumPy, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.compiler.code import Code
from educe.compiler.executor import Executor
from educe.compiler.library import library
from educe.compiler.runtime import runtime
from educe.compiler.target import TARGETS, host_target
from educe.engines.native import prepared
from educe.errors import OptionError
from tests.compiler.models import model
from tests.compiler.test_product import random, run

KINDS = list(itertools.product(("u1", "i1"), repeat=2))
SHAPES = [
    ((1, 1), (1, 1)),
    ((3, 5), (5, 17)),
    ((17, 63), (63, 50)),
    ((29, 64), (64, 48)),
    ((1, 130), (130, 300)),
    ((13, 3), (3, 1)),
    ((7,), (7,)),
    ((9,), (9, 40)),
    ((20, 6), (6,)),
    ((2, 5, 7), (7, 9)),
    ((3, 1, 5, 6), (4, 6, 64)),
    ((2, 1, 3, 1, 5, 6), (1, 2, 1, 4, 6, 7)),
    ((0, 4), (4, 5)),
    ((3, 0), (0, 5)),
]


def integers(shape, dtype, seed=0):
    """Return random integers of all values, the extremes among them."""
    bounds = np.iinfo(dtype)
    numbers = np.random.default_rng([seed, *shape]).integers(bounds.min, bounds.max + 1, shape)
    numbers.flat[: numbers.size // 3] = bounds.max
    numbers.flat[numbers.size // 2 : numbers.size // 2 + numbers.size // 4] = bounds.min
    return numbers.astype(dtype)


def product(a, b, a_zero=0, b_zero=0):
    exact = np.matmul(a.astype("i8") - np.asarray(a_zero, "i8"), b.astype("i8") - np.asarray(b_zero, "i8"))
    return exact.astype("i4")


def multiplied(a, b, zeros=(None, None), constant=True, threads=1):
    """Return the compiled MatMulInteger and its launches."""
    given = {"b": b}
    given |= {
        name: np.asarray(zero) for name, zero in zip(("p", "q"), zeros, strict=True) if zero is not None
    }
    names = ["a", "b", *(name if name in given else "" for name in "pq")]
    node = helper.make_node("MatMulInteger", names, ["y"])
    if constant:
        return run([node], {"a": a}, given, threads)
    return run([node], {"a": a, **given}, None, threads)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_sums_are_exact(shapes, kinds, constant):
    a, b = (integers(shape, kind) for shape, kind in zip(shapes, kinds, strict=True))
    found, _ = multiplied(a, b, constant=constant)
    assert found.dtype == np.int32
    assert np.array_equal(found, product(a, b))


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("by_line", [(False, False), (True, True)], ids=["one", "each"])
def test_zero_points_are_taken_off(kinds, constant, by_line):
    a, b = integers((13, 37), kinds[0]), integers((37, 50), kinds[1])
    p, q = (
        integers((size,) if each else (), kind, seed=5)
        for size, kind, each in zip((13, 50), kinds, by_line, strict=True)
    )
    p, q = p if by_line[0] else p.reshape(()), q
    found, _ = multiplied(a, b, (p, q), constant)
    assert np.array_equal(found, product(a, b, p.reshape(-1, 1), q))


@pytest.mark.parametrize("kinds", KINDS, ids="".join)
def test_zero_points_of_a_batch(kinds):
    a, b = integers((2, 3, 5, 9), kinds[0]), integers((2, 3, 9, 20), kinds[1])
    p, q = integers((2, 3, 5, 1), kinds[0], seed=1), integers((2, 3, 1, 20), kinds[1], seed=2)
    found, _ = multiplied(a, b, (p, q), constant=False)
    assert np.array_equal(found, product(a, b, p, q))


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 12, 13, 31])
def test_every_tile(rows):
    for depth, columns in ((33, 10), (18, 40), (9, 70), (400, 33)):
        a, b = integers((rows, depth), "u1"), integers((depth, columns), "i1")
        assert np.array_equal(multiplied(a, b)[0], product(a, b))


def test_sums_wrap():
    a, b = np.full((1, 140_000), 255, "u1"), np.full((140_000, 3), 127, "i1")
    assert np.array_equal(multiplied(a, b)[0], product(a, b))


@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_strided_matrices(kinds, order):
    shapes = (21, 30), (30, 41)
    a, b = (integers(shape, kind) for shape, kind in zip(shapes, kinds, strict=True))
    nodes = [
        helper.make_node("Transpose", ["a"], ["at"], perm=order),
        helper.make_node("Transpose", ["b"], ["bt"], perm=order),
        helper.make_node("Slice", ["at", "from", "to", "axes", "steps"], ["as"]),
        helper.make_node("Slice", ["bt", "from", "to", "axes", "steps"], ["bs"]),
        helper.make_node("MatMulInteger", ["as", "bs"], ["y"]),
    ]
    weights = {
        "from": np.array([1, 3]), "to": np.array([19, 20]), "axes": np.arange(2), "steps": np.array([2, 2])
    }  # fmt: skip
    feeds = {name: np.ascontiguousarray(each.transpose(order)) for name, each in (("a", a), ("b", b))}
    weights["to"] = np.array([19, 21])
    found, _ = run(nodes, feeds, weights)
    assert np.array_equal(found, product(a[1:19:2, 3:21:2], b[1:19:2, 3:21:2]))


@pytest.mark.parametrize("kinds", KINDS, ids="".join)
def test_threads_share_a_large_product(kinds):
    a, b = integers((150, 203), kinds[0]), integers((203, 700), kinds[1])
    found, launches = multiplied(a, b, threads=2)
    assert launches[-1].extent > launches[-1].chunk
    assert np.array_equal(found, product(a, b))


def test_products_read_and_write_only_their_own(monkeypatch):
    monkeypatch.setenv("EDUCE_GUARD", "1")
    for m, k, n in ((13, 65, 50), (1, 9, 100), (3, 2, 17), (8, 63, 48)):
        a, b = integers((m, k), "u1"), integers((k, n), "i1")
        nodes = [
            helper.make_node("Max", ["a", "a"], ["p"]),
            helper.make_node("Max", ["b", "b"], ["q"]),
            helper.make_node("MatMulInteger", ["p", "q"], ["y"]),
        ]
        assert np.array_equal(run(nodes, {"a": a, "b": b})[0], product(a, b))


def test_a_dynamically_quantised_layer_is_one_product():
    x, w = random((3, 19, 40)), integers((40, 33), "i1")
    scale, bias = np.abs(random((33,), seed=2)), random((33,), seed=3)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "p"]),
        helper.make_node("MatMulInteger", ["q", "w", "p"], ["y"]),
        helper.make_node("Cast", ["y"], ["f"], to=1),
        helper.make_node("Mul", ["s", "ws"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["z"]),
        helper.make_node("Relu", ["z"], ["r"]),
    ]
    found, launches = run(nodes, {"x": x}, {"w": w, "ws": scale, "bias": bias})
    span = np.float32(max(x.max(), 0) - min(x.min(), 0)) / np.float32(255)
    point = np.rint(-min(x.min(), 0) / span)
    q = np.clip(np.rint(x / span) + point, 0, 255).astype("u1")
    expected = np.maximum(product(q, w, point).astype("f4") * (span * scale) + bias, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert launches[-1].kernel.template == "product"


@pytest.mark.parametrize("x", [np.zeros((2, 3), "f4"), -(random((5, 7)) ** 2), random((5, 7)) ** 2], ids=len)
def test_dynamic_quantisation(x):
    for output in range(3):
        node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y0", "y1", "y2"])
        last = helper.make_node("Identity", [f"y{output}"], ["y"])
        found, _ = run([node, last], {"x": x})
        expected = dynamically_quantised(x)[output]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def dynamically_quantised(x):
    """Return ONNX's definition: the integers, their scale and zero point."""
    least, most = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = (most - least if most > least else np.float32(1)) / np.float32(255)
    point = np.clip(np.rint(-least / scale), 0, 255)
    numbers = np.clip(np.rint(x / scale) + point, 0, 255)
    return numbers.astype("u1"), np.asarray(scale, "f4"), np.asarray(point, "u1")


@pytest.mark.parametrize("to", ["u1", "i1"])
@pytest.mark.parametrize("kinds", KINDS, ids="".join)
def test_quantised_products_are_rounded_half_to_even_within_bounds(kinds, to):
    a, b = integers((9, 14), kinds[0]), integers((14, 35), kinds[1])
    numbers = {
        "as": np.float32(0.5), "az": integers((1,), kinds[0])[0],
        "bs": np.float32(2) ** -np.arange(35, dtype="f4"), "bz": integers((35,), kinds[1], seed=3),
        "ys": np.float32(4), "yz": np.array(7, to),
    }  # fmt: skip
    weights = {name: np.asarray(each) for name, each in numbers.items()}
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    found, _ = run([node], {"a": a}, {"b": b, **weights})
    # Powers of two leave the scaled sums exact, ties among them.
    scaled = product(a, b, weights["az"], weights["bz"]) * (weights["as"] * weights["bs"] / weights["ys"])
    bounds = np.iinfo(to)
    assert found.dtype == to
    assert np.array_equal(found, np.clip(np.rint(scaled.astype("f4")) + 7, bounds.min, bounds.max))


X86 = [name for name, target in TARGETS.items() if not target.is_arm]


@pytest.mark.parametrize("name", X86)
def test_every_instruction_set_of_this_machine_gives_the_same_sums(name):
    try:
        target = host_target(name)
    except OptionError:
        pytest.skip(f"this machine does not run {name} code")
    a, b, p, q = integers((19, 70), "i1"), integers((70, 35), "u1"), np.array(-7, "i1"), np.array(3, "u1")
    node = helper.make_node("MatMulInteger", ["a", "b", "p", "q"], ["y"])
    made = prepared(
        model([node], {"a": (TensorProto.INT8, a.shape)}, ["y"], {"b": b, "p": p, "q": q}), "none"
    )
    code = Code(made.graph, made.opset_imports, target, 1, library(target), refused)
    (found,) = Executor(code, runtime()).run([a])
    assert np.array_equal(found, product(a, b, p, q))


def refused(code):
    raise AssertionError(f"a body with outputs {code.outputs}")
