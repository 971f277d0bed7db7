"""The graph of a checkpoint to what runs it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from educe.engines.base import Options
from educe.engines.native import NativeEngine, NativeExecutable
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.checkpoint import Checkpoint
from educe.model.digest import Digest


def compiled(graph: ir.Model, checkpoint: Checkpoint, threads: int | None = None) -> NativeExecutable:
    """Return the machine code of a graph that was made of a checkpoint.

    The weights are neither copied nor read; nor is the checkpoint's digest asked for, which reads all files.
    The graph is made of the operators that passes would leave, so that none runs, and nobody else has it.
    """
    inputs, outputs = (
        [ir.serde.serialize_value(value) for value in values]
        for values in (graph.graph.inputs, graph.graph.outputs)
    )
    signature = read_signature(onnx.GraphProto(input=inputs, output=outputs))
    model = Model(graph, signature, checkpoint.model_type, checkpoint.path, Digest(()), 0, {})
    return NativeEngine().compile_prepared(model, graph, Options(threads=threads))
