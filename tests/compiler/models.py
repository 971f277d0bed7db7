"""Small models for the compiler's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from educe import engines, formats
from educe.engines.native import NativeExecutable
from educe.model import Model

FLOAT = onnx.TensorProto.FLOAT


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any] | None]],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 21,
) -> Model:
    """Return a model of `nodes`; inputs are given as (element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, *declared) for name, declared in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    for value in graph.output:
        value.type.tensor_type.elem_type = FLOAT
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return formats.load(proto.SerializeToString())


def native(made: Model, **options: Any) -> NativeExecutable:
    """Compile a model with the engine `native`."""
    executable = engines.compile(made, "native", **options)
    assert isinstance(executable, NativeExecutable)
    return executable
