"""The types of an ONNX graph's inputs and outputs, as Educe's."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from educe.errors import ModelFileError
from educe.model import Dim, MapType, OptionalType, SequenceType, Signature, TensorType, ValueType

_DTYPES = {
    "FLOAT16": "f16", "FLOAT": "f32", "DOUBLE": "f64", "BFLOAT16": "bf16",
    "INT8": "i8", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64",
    "BOOL": "bool", "COMPLEX64": "c64", "COMPLEX128": "c128", "STRING": "str",
    "FLOAT8E4M3FN": "f8e4m3fn", "FLOAT8E4M3FNUZ": "f8e4m3fnuz", "FLOAT8E5M2": "f8e5m2",
    "FLOAT8E5M2FNUZ": "f8e5m2fnuz", "FLOAT8E8M0": "f8e8m0", "FLOAT4E2M1": "f4e2m1",
    "INT4": "i4", "UINT4": "u4", "INT2": "i2", "UINT2": "u2",
}  # fmt: skip
_MAX_NESTING = 8


def read_signature(graph: onnx.GraphProto) -> Signature:
    """Return the signature of `graph`; an initializer that is listed as an input is none.

    Raises:
        ModelFileError: an input or output has no type, or one that Educe does not know.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = (value for value in graph.input if value.name not in initializers)
    return Signature(_types(inputs, "input"), _types(graph.output, "output"))


def detach_maps(graph: onnx.GraphProto) -> None:
    """Clear the types of values that are maps, in place: the graph in memory has no such type.

    Engines infer them again from the operators that make them.
    """
    for value in (*graph.output, *graph.value_info):
        if "map_type" in str(value.type):
            value.ClearField("type")


def _types(values: Iterable[onnx.ValueInfoProto], side: str) -> dict[str, ValueType]:
    return {value.name: _convert(value.type, f"{side} {value.name!r}", _MAX_NESTING) for value in values}


def _convert(kind: onnx.TypeProto, place: str, nesting: int) -> ValueType:
    which = kind.WhichOneof("value")
    if which is None or nesting == 0:
        raise ModelFileError(
            "has no type" if which is None else "has a type nested too deeply",
            place=place,
            remedy="export the model with types for its inputs and outputs",
        )
    if which == "sequence_type":
        return SequenceType(_convert(kind.sequence_type.elem_type, place, nesting - 1))
    if which == "optional_type":
        return OptionalType(_convert(kind.optional_type.elem_type, place, nesting - 1))
    if which == "map_type":
        value = _convert(kind.map_type.value_type, place, nesting - 1)
        return MapType(_dtype(kind.map_type.key_type, place), value)
    if which != "tensor_type":
        raise ModelFileError(f"is a {which}, which Educe does not take", place=place)
    tensor = kind.tensor_type
    shape = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorType(_dtype(tensor.elem_type, place), shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.WhichOneof("value") == "dim_value":
        # Exporters write 0 or -1 for a size that they do not know.
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


def _dtype(number: int, place: str) -> str:
    name = (
        onnx.TensorProto.DataType.Name(number)
        if number in onnx.TensorProto.DataType.values()
        else str(number)
    )
    if name not in _DTYPES:
        raise ModelFileError(f"has the element type {name}, which Educe does not know", place=place)
    return _DTYPES[name]
