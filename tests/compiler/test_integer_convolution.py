"""Convolutions of 8-bit integers against a plain sum over taps, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from tests.compiler.test_convolution import CASES, convolved
from tests.compiler.test_integer_product import KINDS, integers
from tests.compiler.test_product import run

WIDE = [
    ((1, 64, 9, 10), (70, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 37, 12, 11), (33, 37, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((1, 132, 12, 11), (50, 66, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),
]
ATTRIBUTES = ("strides", "pads", "dilations", "group")


def exact(x, w, x_zero, w_zero, case):
    """Return the sums, taps outside of the input seeing the zero point."""
    ones = (1,) * (x.ndim - 1)
    by_channel = np.asarray(w_zero, "i8").reshape(-1, *ones)
    return convolved(x.astype("i8") - int(x_zero), w.astype("i8") - by_channel, None, *case[2:])


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("case", [*CASES, *WIDE], ids=str)
def test_sums_are_exact(case, kinds, constant):
    x, w = integers(case[0], kinds[0]), integers(case[1], kinds[1])
    names = {"w": w, "p": integers((3,), kinds[0], seed=4)[2]}
    if kinds[1] == "i1":
        names["q"] = np.zeros((), "i1")
    else:
        names["q"] = np.array(128, "u1")
    weights = {name: np.asarray(each) for name, each in names.items()}
    attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
    node = helper.make_node("ConvInteger", ["x", *weights], ["y"], **attributes)
    found, _ = run([node], {"x": x}, weights) if constant else run([node], {"x": x, **weights})
    assert found.dtype == np.int32
    assert np.array_equal(found, exact(x, w, weights["p"], weights["q"], case))


@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[7], WIDE[0]], ids=str)
def test_zero_points_of_every_channel(case, kinds):
    x, w = integers(case[0], kinds[0]), integers(case[1], kinds[1])
    weights = {"w": w, "p": integers((), kinds[0], seed=4), "q": integers(case[1][:1], kinds[1], seed=1)}
    attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
    node = helper.make_node("ConvInteger", ["x", *weights], ["y"], **attributes)
    for threads in (1, 2):
        found, _ = run([node], {"x": x}, weights, threads)
        assert np.array_equal(found, exact(x, w, weights["p"], weights["q"], case))


def test_without_zero_points():
    case = WIDE[0]
    for kinds in KINDS:
        x, w = integers(case[0], kinds[0]), integers(case[1], kinds[1])
        attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
        node = helper.make_node("ConvInteger", ["x", "w"], ["y"], **attributes)
        found, _ = run([node], {"x": x}, {"w": w})
        assert np.array_equal(found, exact(x, w, 0, 0, case))


def test_convolutions_read_and_write_only_their_own(monkeypatch):
    monkeypatch.setenv("EDUCE_GUARD", "1")
    for case in (CASES[0], CASES[2], CASES[3], CASES[6], WIDE[1]):
        x, w = integers(case[0], "u1"), integers(case[1], "i1")
        attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
        nodes = [
            helper.make_node("Max", ["x", "x"], ["s"]),
            helper.make_node("ConvInteger", ["s", "w"], ["y"], **attributes),
        ]
        assert np.array_equal(run(nodes, {"x": x}, {"w": w})[0], exact(x, w, 0, 0, case))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("kinds", "to"), list(itertools.product(KINDS, ["u1", "i1"])))
def test_quantised_convolutions_are_one_launch_each(kinds, to, threads):
    case = ((1, 48, 9, 10), (64, 48, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    x, w = integers(case[0], kinds[0]), integers(case[1], kinds[1])
    weights = {
        "xs": np.float32(0.5), "xp": integers((), kinds[0], seed=4), "w": w,
        "ws": np.float32(2) ** -(8 + np.arange(64, dtype="f4") % 9),
        "wp": np.array(128 if kinds[1] == "u1" else 0, kinds[1]),
        "ys": np.float32(4), "yp": np.array(9, to), "b": np.arange(-32, 32, dtype="i4") * 5000,
    }  # fmt: skip
    attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
    node = helper.make_node("QLinearConv", ["x", *weights], ["y"], **attributes)
    found, launches = run(
        [node], {"x": x}, {name: np.asarray(each) for name, each in weights.items()}, threads
    )
    sums = exact(x, w, weights["xp"], weights["wp"], case) + weights["b"].reshape(-1, 1, 1)
    scaled = sums * (weights["xs"] * weights["ws"] / weights["ys"]).reshape(-1, 1, 1)
    bounds = np.iinfo(to)
    assert found.dtype == to
    assert np.array_equal(found, np.clip(np.rint(scaled.astype("f4")) + 9, bounds.min, bounds.max))
    assert sum(launch.kernel.template == "product" for launch in launches) == 1
