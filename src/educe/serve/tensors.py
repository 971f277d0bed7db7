"""Tensors as the Open Inference Protocol has them: its types' names, and shapes with -1 for what varies."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from educe.model import TensorType, ValueType
from educe.model.signature import NUMPY_TYPES
from educe.serve.faults import BadRequest, Unprocessable
from educe.serve.room import ELEMENT_BYTES

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "u8",
    "UINT16": "u16",
    "UINT32": "u32",
    "UINT64": "u64",
    "INT8": "i8",
    "INT16": "i16",
    "INT32": "i32",
    "INT64": "i64",
    "FP16": "f16",
    "BF16": "bf16",
    "FP32": "f32",
    "FP64": "f64",
    "BYTES": "str",
}
"""The protocol's name of each element type, and Educe's."""

_NAMES = {short: name for name, short in DATATYPES.items()}
_DATATYPES = {NUMPY_TYPES[short]: name for name, short in DATATYPES.items()}
_LENGTH_BYTES = 4
MOST_AXES = 64
"""The most axes of a tensor, which are as many as NumPy has."""

MOST_NAMED = 1024
"""The most inputs, wanted outputs and parameters of a request, of each."""

# More would not have a number of bytes that NumPy can count, even if another size is 0.
_MOST_ELEMENTS_BITS = 58


def datatype_of(array: Any) -> str:
    """Return the protocol's name of an output's element type.

    Raises:
        Unprocessable: it is no array, or of a type that the protocol lacks.
    """
    if not isinstance(array, np.ndarray):
        raise Unprocessable(f"the Open Inference Protocol has no type for a {type(array).__name__}")
    if array.dtype.kind in "OUS":
        return "BYTES"
    name = _DATATYPES.get(array.dtype)
    if name is None:
        raise Unprocessable(f"the Open Inference Protocol has no type for {array.dtype}")
    return name


def numpy_type(datatype: str, place: str) -> np.dtype:
    """Return the NumPy type of the protocol's `datatype`.

    Raises:
        BadRequest: there is no such type.
    """
    short = DATATYPES.get(datatype)
    if short is None:
        raise BadRequest(
            f"there is no datatype {datatype[:20]!r}", place=place, remedy=f"use {', '.join(DATATYPES)}"
        )
    return NUMPY_TYPES[short]


def describe(kind: ValueType) -> tuple[str, list[int]]:
    """Return the protocol's datatype and shape of an input or output.

    Raises:
        Unprocessable: it is no tensor, or of a type that the protocol lacks.
    """
    if not isinstance(kind, TensorType) or kind.dtype not in _NAMES:
        raise Unprocessable(f"the Open Inference Protocol has no type for {kind}")
    shape = [-1] if kind.shape is None else [dim if isinstance(dim, int) else -1 for dim in kind.shape]
    return _NAMES[kind.dtype], shape


def chosen(outputs: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Return the outputs of some names, in their order; all if there are none.

    Raises:
        BadRequest: there is no such output, or it is named twice.
    """
    if not names:
        return outputs
    for number, name in enumerate(names):
        if name not in outputs or name in names[:number]:
            cause = "is named twice" if name in outputs else "is none of the model's"
            known = f"the model gives {', '.join(outputs)}"
            raise BadRequest(f"{name[:100]!r} {cause}", place=f"outputs[{number}]", remedy=known)
    return {name: outputs[name] for name in names}


def refuse_too_many(named: Sized, place: str) -> None:
    """Raise BadRequest if a request has more inputs, outputs or parameters than are looked at."""
    if len(named) > MOST_NAMED:
        raise BadRequest(f"there are {len(named):,}", place=place, remedy=f"send at most {MOST_NAMED:,}")


def refuse_parameters(given: Iterable[str], known: Collection[str], place: str) -> None:
    """Raise BadRequest if a tensor has parameters that are not known, such as those of shared memory."""
    for name in given:
        if name not in known:
            remedy = f"known: {', '.join(known)}" if known else "send none"
            raise BadRequest(f"unknown parameter {name[:50]!r}", place=f"{place}.parameters", remedy=remedy)


def take_flag(parameters: dict[str, Any], name: str) -> bool:
    """Take a bool out of a request's parameters; false if it has none.

    Raises:
        BadRequest: it is no bool.
    """
    value = parameters.pop(name, False)
    if not isinstance(value, bool):
        raise BadRequest("expected true or false", place=f"parameters.{name}")
    return value


def element_count(shape: list[int], place: str) -> int:
    """Return how many elements a tensor of `shape` has.

    Raises:
        BadRequest: a size is negative, or there are too many axes or elements.
    """
    if len(shape) > MOST_AXES:
        raise BadRequest(f"the shape has more than {MOST_AXES} axes", place=place)
    count = 1
    for size in shape:
        if size < 0:
            raise BadRequest(f"the shape has the size {size}", place=place, remedy="use 0 or more")
        count *= size or 1
        if count.bit_length() > _MOST_ELEMENTS_BITS:
            raise BadRequest("the shape has too many elements", place=place)
    return 0 if 0 in shape else count


def from_bytes(raw: bytes | memoryview, datatype: str, shape: list[int], place: str) -> np.ndarray:
    """Return the tensor whose elements lie in `raw`, little-endian and in C order; a view where it can be.

    Elements of ``BYTES`` follow each other, each with its length before it as a number of four bytes.

    Raises:
        BadRequest: there are more or fewer elements than the shape says.
    """
    count = element_count(shape, place)
    if datatype == "BYTES":
        return _split(raw, count, place).reshape(shape)
    dtype = numpy_type(datatype, place)
    if len(raw) != count * dtype.itemsize:
        raise BadRequest(f"{len(raw)} bytes, but {datatype}{shape} has {count * dtype.itemsize}", place=place)
    return np.frombuffer(raw, dtype).reshape(shape)


def texts_bytes(shape: Sequence[int], size_bytes: int) -> int:
    """Return about how much memory the elements of ``BYTES`` take that lie in so many bytes."""
    return ELEMENT_BYTES * min(max(0, math.prod(shape[:MOST_AXES])), size_bytes // _LENGTH_BYTES)


def to_bytes(array: np.ndarray) -> bytes | memoryview:
    """Return the elements of a tensor as `from_bytes` reads them; no copy where they lie so already."""
    if array.dtype.kind in "OUS":
        parts = [element if isinstance(element, bytes) else str(element).encode() for element in array.flat]
        return b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _split(raw: bytes | memoryview, count: int, place: str) -> np.ndarray:
    content = bytes(raw)
    if count > len(content) // _LENGTH_BYTES:
        raise BadRequest(f"{len(content)} bytes cannot hold {count} elements of BYTES", place=place)
    elements = np.empty(count, object)
    offset = 0
    for index in range(count):
        end = offset + _LENGTH_BYTES
        size = int.from_bytes(content[offset:end], "little")
        if end + size > len(content):
            raise BadRequest(f"element {index} ends beyond the tensor's bytes", place=place)
        elements[index] = content[end : end + size]
        offset = end + size
    if offset != len(content):
        raise BadRequest(f"{len(content) - offset} bytes lie behind the last element", place=place)
    return elements
