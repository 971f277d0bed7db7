"""What is tried of a model before it is ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import educe
from educe.serve.served import PredictorModel
from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["mnist", "yolox_nano", "breast_cancer"])
def test_the_first_request_compiles_nothing(name: str) -> None:
    model = PredictorModel(educe.predictor(ROOT / "zoo" / name))
    feeds = {
        name: np.ones([dim if isinstance(dim, int) else 1 for dim in kind.shape], kind.numpy_dtype)
        for name, kind in model.signature.inputs.items()
    }
    executable = model.predictor.executable
    before = executable.compile_seconds()
    executable.run(feeds)
    assert executable.compile_seconds() == before


@pytest.mark.parametrize(
    "body",
    [
        "(float[2, 2] x) => (float[2, 2] y) { y = MatMul (x, x) }",
        "(float[] x) => (float[] y) { y = Sin (x) }",
        "(string[1] x) => (string[1] y) { y = Identity (x) }",
        "(int64[1] x) => (float[n] y) { y = ConstantOfShape (x) }",
        "() => (float[1] y) { y = Constant <value = float[1] {1.0}> () }",
    ],
)
def test_inputs_of_every_kind_are_tried_or_left(tmp_path: Path, body: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {body}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    assert not PredictorModel(educe.predictor(tmp_path / "model.onnx")).shares_runs


def test_what_fails_at_once_fails_where_it_is_asked_for(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (int64[1] x) => (float[n] y) { y = Reshape (w, x) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(6, np.float32), "w"))
    onnx.save(model, tmp_path / "model.onnx")
    served = PredictorModel(educe.predictor(tmp_path / "model.onnx"))
    with pytest.raises(educe.EduceError):
        served.predictor.executable.run({"x": np.array([5])})
    assert served.predictor.executable.run({"x": np.array([6])})["y"].tolist() == [1] * 6
