"""The ONNX format: protobuf bytes to a verified `Model`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
import onnx_ir.passes.common
from google.protobuf.message import DecodeError

from educe.errors import ModelFileError
from educe.formats.base import Format
from educe.formats.onnx_external import ExternalWeights, tensor_over
from educe.formats.onnx_types import detach_maps, read_signature
from educe.formats.onnx_verify import verify
from educe.formats.onnx_weights import LARGE_BYTES, read
from educe.limits import Limits
from educe.model import Model
from educe.model.digest import Digest

# onnx_ir reports through logging what `verify` has already refused with a typed error.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

_VARINT, _LENGTH_DELIMITED = 0, 2
# The wire type of every field of ModelProto (onnx.proto).
_MODEL_FIELDS = {
    1: _VARINT, 2: _LENGTH_DELIMITED, 3: _LENGTH_DELIMITED, 4: _LENGTH_DELIMITED, 5: _VARINT,
    6: _LENGTH_DELIMITED, 7: _LENGTH_DELIMITED, 8: _LENGTH_DELIMITED, 14: _LENGTH_DELIMITED,
    20: _LENGTH_DELIMITED, 25: _LENGTH_DELIMITED, 26: _LENGTH_DELIMITED,
}  # fmt: skip


class OnnxFormat(Format):
    """Models of the Open Neural Network Exchange (onnx.ai), as one protobuf message."""

    name = "onnx"

    def sniff(self, head: bytes) -> bool:
        """Say whether `head` is a run of fields that ModelProto has, up to the graph or the end."""
        position = 0
        while position < len(head):
            tag, position = _varint(head, position)
            field, wire = tag >> 3, tag & 7
            if _MODEL_FIELDS.get(field) != wire:
                return False
            if field == 7:
                return True
            value, position = _varint(head, position)
            if wire == _LENGTH_DELIMITED:
                position += value
        return position > 0

    def load(self, file: BinaryIO, path: Path | None, limits: Limits) -> Model:
        """Read and verify an ONNX model; see `Format.load`."""
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        content = read(file, size_bytes)
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(content.message)
        except DecodeError:
            raise ModelFileError(
                f"is broken ONNX: its {size_bytes:,} bytes end early or were altered",
                remedy="download or export it again",
            ) from None
        verify(proto, limits, content.weights)
        signature = read_signature(proto.graph)
        detach_maps(proto.graph)
        external = ExternalWeights(proto, None if path is None else path.parent, limits)
        digest = Digest([*content.parts, *external.parts()])
        graph = _deserialize(proto)
        for number, data in content.weights.items():
            value = graph.graph.initializers[proto.graph.initializer[number].name]
            assert value.const_value is not None
            value.const_value = tensor_over(data, value.const_value)
        _detach_weights(graph)
        external.attach(graph)
        graph = _without_overridable_initializers(graph)
        return Model(
            graph=graph,
            signature=signature,
            name=path.stem if path else proto.graph.name or "model",
            path=path,
            digest=digest,
            size_bytes=size_bytes + external.size_bytes,
            file_opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        )


def _varint(head: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(head) and shift < 64:
        byte = head[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position


def _deserialize(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, RecursionError) as fault:
        root: BaseException = fault
        while root.__cause__ is not None:
            root = root.__cause__
        raise ModelFileError(f"is not valid ONNX: {root}", remedy="export it again") from None


def _detach_weights(graph: ir.Model) -> None:
    """Let large weights be arrays of their own: a message copies its content whenever it is looked at."""
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.TensorProtoTensor) and tensor.nbytes >= LARGE_BYTES:
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _without_overridable_initializers(graph: ir.Model) -> ir.Model:
    """Make every initializer a constant: files before IR version 4 list them as inputs, too."""
    result: ir.Model = onnx_ir.passes.common.RemoveInitializersFromInputsPass()(graph).model
    return result
