"""A model is made ready before it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import educe
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import serving


def served(tmp_path: Path, body: str) -> PredictorModel:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {body}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return PredictorModel(educe.predictor(tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", ["mnist", "yolox_nano"])
def test_the_first_request_compiles_nothing(name: str) -> None:
    model = PredictorModel(educe.predictor(ROOT / "zoo" / name))
    feeds = {name: np.ones(kind.shape, kind.numpy_dtype) for name, kind in model.signature.inputs.items()}
    executable = model.predictor.executable
    before = executable.compile_seconds()
    executable.run(feeds)
    assert executable.compile_seconds() == before


@pytest.mark.parametrize(
    ("body", "feeds", "expected"),
    [
        ("(float[2, 2] x) => (float[2, 2] y) { y = MatMul (x, x) }", np.eye(2), np.eye(2)),
        ("(float[] x) => (float[] y) { y = Abs (x) }", -3, 3),
        ("(string[1] x) => (string[1] y) { y = Identity (x) }", ["a"], ["a"]),
        ("(int64[1] x) => (float[n] y) { y = ConstantOfShape (x) }", [2], [0, 0]),
        (
            "(float[1] x) => (float[1] y) { a = Constant <value = float {1.0}> ()\n"
            "on = Constant <value = bool {1}> ()\n most = Constant <value = int64 {9223372036854775807}> ()\n"
            "y = Loop (most, on, x) <body = again (int64 i, bool on_0, float[1] b) =>\n"
            "(bool on_1, float[1] c) { c = Add (b, b)\n"
            "d = ReduceMax <keepdims = 0> (c)\n on_1 = Less (d, a) }> }",
            [0.25],
            [1],
        ),
    ],
    ids=["product", "scalar", "text", "shape", "endless for zeros"],
)
def test_inputs_of_every_kind_are_made_ready_for_or_left(
    tmp_path: Path, body: str, feeds: object, expected: object
) -> None:
    model = served(tmp_path, body)
    (kind,) = model.signature.inputs.values()
    found = model.predictor.executable.run({"x": np.array(feeds, kind.numpy_dtype)})["y"]
    np.testing.assert_array_equal(found, expected)


def test_rows_that_are_claimed_and_not_there_count_for_nothing(tmp_path: Path) -> None:
    model = PredictorModel(educe.predictor(ROOT / "zoo" / "breast_cancer"))
    group, rows = model.group({"features": np.ones((5, 30), np.float32)})
    assert (group, rows) == (model.group({"features": np.ones((7, 30), np.float32)})[0], 5)
    for array in (
        np.ones((5_000_000, 0), np.float32),
        np.ones((0, 30), np.float32),
        np.ones((5_000_000, 1), np.float32),
        np.ones(5_000_000, np.float32),
        np.ones((5000, 30), np.float64),
        np.float32(1),
    ):
        strange, rows = model.group({"features": np.asarray(array)})
        assert rows == 1
        assert strange != group
    any_size = served(tmp_path, "(float[n, m] x) => (float[n, m] y) { y = Abs (x) }")
    assert any_size.shares_runs
    assert any_size.group({"x": np.ones((9, 2), np.float32)})[1] == 9
    assert any_size.group({"x": np.ones((5_000_000, 0), np.float32)})[1] == 1


def test_who_claims_many_rows_keeps_nobody_waiting() -> None:
    row = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
    for rows in (5_000_000, 2**40):
        many = {"inputs": [{"name": "features", "shape": [rows, 0], "datatype": "FP32", "data": []}]}
        with serving("breast_cancer") as client:
            path, fields = "/v2/models/breast_cancer/infer", {"x-request-timeout-ms": "20000"}
            assert client.ask("POST", path, row, fields)[0] == 200
            found = client.ask("POST", path, many, fields)
            assert found[0] == 400, found
            assert b"expected 30 in dimension 1" in found[2]
            assert client.ask("POST", path, row, fields)[0] == 200
