"""One row for each run of rows, against NumPy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from educe.errors import InputError
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.digest import Digest
from tests.compiler.models import FLOAT, native


def model(operator: str, features: int, words: int = 2) -> Model:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "runs"], ["y"], domain="educe")],
        "segments",
        [
            helper.make_tensor_value_info("x", FLOAT, ["T", features]),
            helper.make_tensor_value_info("runs", TensorProto.INT64, ["S", words]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, ["S", features])],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("educe", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Model(ir.from_proto(proto), read_signature(proto.graph), "segments", None, Digest([]), 0, {})


@pytest.mark.parametrize("features", [1, 16, 37])
@pytest.mark.parametrize("operator", ["SegmentMean", "SegmentMax"])
def test_runs_of_rows_become_one(rng, operator, features) -> None:
    x = rng.standard_normal((60, features)).astype(np.float32) - 3
    runs = np.array([[0, 1], [1, 24], [30, 30], [25, 5], [59, 1]], np.int64)
    how = np.mean if operator == "SegmentMean" else np.max
    expected = [how(x[first : first + count], axis=0) for first, count in runs]
    bits = [native(model(operator, features), threads=n).run({"x": x, "runs": runs})["y"] for n in (1, 2)]
    np.testing.assert_allclose(bits[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bits[0], bits[1])
    alone = native(model(operator, features)).run({"x": x[1:25], "runs": np.array([[0, 24]])})["y"]
    np.testing.assert_array_equal(alone[0], bits[0][1])


def test_runs_that_are_not_there_are_zeros(rng) -> None:
    x = rng.standard_normal((8, 20)).astype(np.float32)
    top = 2**63 - 1
    runs = np.array([[0, 0], [-1, 3], [7, 2], [8, 1], [top, 1], [0, top], [top, top], [2, -2]], np.int64)
    for operator in ("SegmentMean", "SegmentMax"):
        assert not native(model(operator, 20)).run({"x": x, "runs": runs})["y"].any()


def test_a_table_of_other_words_is_an_error(rng) -> None:
    x = rng.standard_normal((8, 20)).astype(np.float32)
    with pytest.raises(InputError, match="runs"):
        native(model("SegmentMean", 20, 3)).run({"x": x, "runs": np.zeros((1, 3), np.int64)})
