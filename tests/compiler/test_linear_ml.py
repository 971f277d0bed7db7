"""Linear models, support vectors and features of ai.onnx.ml against ONNX's evaluator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from educe import engines, formats
from educe.engines.native import NativeExecutable
from tests.compiler.test_trees import model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(19, 6)).astype(np.float32)
X[3, 2] = np.nan


def numbers(*shape: int) -> list[float]:
    return [float(each) for each in np.random.default_rng(1).normal(size=shape).astype(np.float32).ravel()]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "regressor": (
        "LinearRegressor",
        {"coefficients": numbers(6), "intercepts": [0.5], "post_transform": "NONE"},
    ),
    "targets": (
        "LinearRegressor",
        {"coefficients": numbers(18), "intercepts": numbers(3), "targets": 3, "post_transform": "NONE"},
    ),
    "scaler": ("Scaler", {"offset": numbers(6), "scale": numbers(6)}),
    "one scale": ("Scaler", {"offset": [0.25], "scale": [3.0]}),
    "max": ("Normalizer", {"norm": "MAX"}),
    "l1": ("Normalizer", {"norm": "L1"}),
    "l2": ("Normalizer", {"norm": "L2"}),
    "binarizer": ("Binarizer", {"threshold": 0.3}),
    "imputer": ("Imputer", {"imputed_value_floats": numbers(6), "replaced_value_float": float("nan")}),
    "imputer of one": ("Imputer", {"imputed_value_floats": [9.0], "replaced_value_float": float(X[0, 0])}),
    "linear support": ("SVMRegressor", {"coefficients": numbers(6), "rho": [0.1], "n_supports": 0}),
    **{
        kernel: (
            "SVMRegressor",
            {
                "coefficients": numbers(5),
                "support_vectors": numbers(30),
                "n_supports": 5,
                "kernel_type": kernel,
                "kernel_params": [0.3, 0.2, 3.0],
                "rho": [0.1],
            },
        )
        for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID")
    },
}


def both(file: bytes, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Run a model as machine code, without any part of it on the host, and by ONNX's evaluator."""
    executable = engines.compile(formats.load(file), "native")
    assert isinstance(executable, NativeExecutable)
    assert all(segment.step is None for segment in executable.program({"x": x}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ReferenceEvaluator(onnx.load_from_string(file)).run(None, {"x": x})
    return list(executable.run({"x": x}).values()), expected  # type: ignore[return-value]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 19])
def test_operator(case: str, rows: int) -> None:
    operator, attributes = CASES[case]
    x = X[:rows]
    if operator == "Normalizer":
        x = np.nan_to_num(x)
        x[rows // 2] = 0 if rows > 1 else -3
    found, expected = both(model(operator, 1, **attributes), x)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("labels", [[3, 5], [3, 9, -4]])
def test_classifier(labels: list[int], transform: str) -> None:
    classes = 1 if len(labels) == 2 else 3
    file = model(
        "LinearClassifier",
        2,
        coefficients=numbers(6 * classes),
        intercepts=numbers(classes),
        classlabels_ints=labels,
        post_transform=transform,
    )
    found, expected = both(file, np.nan_to_num(X))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_extractor_and_vectorizer() -> None:
    nodes = [
        onnx.helper.make_node("ArrayFeatureExtractor", ["x", "places"], ["some"], domain="ai.onnx.ml"),
        onnx.helper.make_node(
            "FeatureVectorizer", ["x", "some"], ["y"], domain="ai.onnx.ml", inputdimensions=[6, 2]
        ),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", 1, ["n", 6])],
        [value("y", 1, None)],
        [onnx.numpy_helper.from_array(np.array([5, 1]), "places")],
    )
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    file = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    found, expected = both(file, X)
    np.testing.assert_array_equal(found[0], expected[0])
