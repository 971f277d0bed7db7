"""Products and convolutions of 8-bit integers as AArch64 code, with and without dot instructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.compiler.target import TARGETS
from tests.aarch64.emulator import COMPILER, EMULATOR, IS_INSTALLED, run
from tests.compiler.models import model
from tests.compiler.test_convolution import CASES
from tests.compiler.test_integer_convolution import ATTRIBUTES, exact
from tests.compiler.test_integer_product import integers, product
from tests.compiler.test_quantized import linear, random_weight
from tests.compiler.test_quantized import product as quantized_product

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason=f"needs {COMPILER} and {EMULATOR}")
TYPES = {"u1": TensorProto.UINT8, "i1": TensorProto.INT8}


@pytest.mark.parametrize("target", ["neon", "neon-dot"])
@pytest.mark.parametrize("kinds", ["u1 i1", "i1 i1", "u1 u1", "i1 u1"])
def test_products_are_exact(target: str, kinds: str, tmp_path: Path):
    of_a, of_b = kinds.split()
    a, b = integers((13, 37), of_a), integers((37, 50), of_b)
    p, q = integers((13,), of_a, seed=5), integers((50,), of_b, seed=5)
    for constant in (True, False):
        weights = {"p": p, "q": q} | ({"b": b} if constant else {})
        inputs = {"a": (TYPES[of_a], a.shape)} | ({} if constant else {"b": (TYPES[of_b], b.shape)})
        node = helper.make_node("MatMulInteger", ["a", "b", "p", "q"], ["y"])
        made = model([node], inputs, ["y"], weights)
        found = run(made, {"a": a, "b": b}, tmp_path, TARGETS[target])["y"]
        assert np.array_equal(found, product(a, b, p.reshape(-1, 1), q))


@pytest.mark.parametrize("target", ["neon", "neon-dot"])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6]], ids=str)
def test_convolutions_are_exact(target: str, case: tuple, tmp_path: Path):
    x, w = integers(case[0], "u1"), integers(case[1], "i1")
    point = np.array(131, "u1")
    attributes = dict(zip(ATTRIBUTES, case[2:], strict=True))
    node = helper.make_node("ConvInteger", ["x", "w", "p"], ["y"], **attributes)
    made = model([node], {"x": (TYPES["u1"], x.shape)}, ["y"], {"w": w, "p": point})
    found = run(made, {"x": x}, tmp_path, TARGETS[target])["y"]
    assert np.array_equal(found, exact(x, w, point, 0, case))


@pytest.mark.parametrize("target", ["neon", "neon-dot"])
@pytest.mark.parametrize("name", ["int8", "int4", "Q4_1"])
def test_products_with_quantised_weights_are_exact(target: str, name: str, tmp_path: Path, rng):
    weight, bias = random_weight(name, 37, 160), np.zeros(37, np.float32)
    x = rng.standard_normal((11, 160), np.float32)
    expected = quantized_product(x, weight)
    found = run(linear(weight, bias), {"x": x}, tmp_path, TARGETS[target])["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * np.abs(expected).max())
