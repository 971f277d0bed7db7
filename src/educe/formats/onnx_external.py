"""Weights that an ONNX file keeps in other files: found safely, mapped, never copied.

The layout is that of the specification's External Data page: key-value pairs `location`, `offset`,
`length` and `checksum` on each tensor.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from educe.errors import ModelFileError
from educe.files import open_beneath
from educe.limits import Limits
from educe.model.walk import all_graphs

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})


@dataclass(frozen=True)
class _Extent:
    place: str
    location: str
    offset: int
    length: int | None


class ExternalWeights:
    """The external data of one model: every file opened once, every extent checked against its size.

    Attributes:
        size_bytes: The sum of all extents.
    """

    def __init__(self, proto: onnx.ModelProto, folder: Path | None, limits: Limits) -> None:
        self.size_bytes = 0
        self._folder = folder
        self._limits = limits
        self._files: dict[str, np.ndarray] = {}
        self._data: dict[str, np.ndarray] = {}
        for tensor in _external_tensors(proto):
            name = tensor.name
            if name in self._data:
                raise ModelFileError("is defined twice", place=f"initializer {name!r}")
            self._data[name] = self._map(tensor, _extent(tensor))

    def parts(self) -> list[memoryview]:
        """Return the bytes of all extents, in the order of their names."""
        return [self._data[name].data for name in sorted(self._data)]

    def attach(self, model: ir.Model) -> None:
        """Give the initializers of `model` views of the mapped files, read when used."""
        for graph in all_graphs(model):
            for name, value in graph.initializers.items():
                data = self._data.get(name)
                if data is not None and isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = tensor_over(data, value.const_value)

    def _map(self, tensor: onnx.TensorProto, extent: _Extent) -> np.ndarray:
        content = self._open(extent)
        bits = ir.DataType(tensor.data_type).bitwidth
        needed = -(-math.prod(tensor.dims) * bits // 8)
        length = needed if extent.length is None else extent.length
        if length != needed or extent.offset + length > content.size:
            raise ModelFileError(
                f"takes {needed:,} bytes, but names {length:,} from {extent.offset:,} on "
                f"in {extent.location!r}, which has {content.size:,}",
                place=extent.place,
                remedy="copy or download the data file again",
            )
        self.size_bytes += length
        self._limits.check("external_bytes", self.size_bytes)
        return content[extent.offset : extent.offset + length]

    def _open(self, extent: _Extent) -> np.ndarray:
        if self._folder is None:
            raise ModelFileError(
                f"keeps its data in {extent.location!r}, and the model did not come from a folder",
                place=extent.place,
                remedy="load the model by its path",
            )
        if extent.location not in self._files:
            try:
                with open_beneath(self._folder, extent.location) as file:
                    size = os.fstat(file.fileno()).st_size
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            except ModelFileError as error:
                error.place = error.place or extent.place
                raise
            self._files[extent.location] = np.frombuffer(mapped, np.uint8)
        return self._files[extent.location]


def _external_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        found += [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        for node in graph.node:
            for attribute in node.attribute:
                stack += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    return found


def _extent(tensor: onnx.TensorProto) -> _Extent:
    place = f"initializer {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = entries.keys() - _KEYS
    if unknown or "location" not in entries or len(entries) != len(tensor.external_data):
        raise ModelFileError(f"has malformed external data: {sorted(entries)}", place=place)
    numbers = {key: entries[key] for key in ("offset", "length") if entries.get(key)}
    for key, text in numbers.items():
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ModelFileError(f"has the {key} {text[:40]!r}, which is no size", place=place)
    length = int(numbers["length"]) if "length" in numbers else None
    return _Extent(place, entries["location"], int(numbers.get("offset", "0")), length)


def tensor_over(data: np.ndarray, like: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor of the name, type and shape of `like` whose content is the bytes of `data`."""
    dtype, shape = like.dtype, ir.Shape(like.shape.numpy())
    if dtype.bitwidth < 8:
        return ir.PackedTensor(data, dtype, shape=shape, name=like.name)
    return ir.Tensor(data.view(dtype.numpy()).reshape(like.shape.numpy()), dtype, shape=shape, name=like.name)
