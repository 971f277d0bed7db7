"""The tensors of the Open Inference Protocol's HTTP: in JSON, or as bytes behind it.

Source: the protocol's REST specification, and its binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from msgspec import UNSET

from educe.serve import tensors
from educe.serve.faults import BadRequest
from educe.serve.http.v2_types import InferInput, InferOutput, WantedOutput

_TAKES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "bools"),
    "i": ({int}, "whole numbers"),
    "u": ({int}, "whole numbers"),
    "f": ({int, float}, "numbers"),
    "V": ({int, float}, "numbers"),
    "O": ({str}, "texts"),
}


def read_inputs(inputs: Sequence[InferInput], behind: memoryview) -> dict[str, np.ndarray]:
    """Return the tensors of a request, by name.

    Args:
        inputs: What the JSON says of them.
        behind: The bytes behind the JSON.

    Raises:
        BadRequest: there are too many, one stands twice, or its elements do not fit its type and shape.
    """
    tensors.refuse_too_many(inputs, "inputs")
    feeds: dict[str, np.ndarray] = {}
    offset = 0
    for entry in inputs:
        place = f"inputs[{len(feeds)}]"
        if entry.name in feeds:
            raise BadRequest(f"the input {entry.name[:100]!r} stands twice", place=place)
        tensors.refuse_parameters(entry.parameters, ("binary_data_size",), place)
        size = entry.parameters.get("binary_data_size")
        if size is None:
            feeds[entry.name] = _from_json(entry, place)
            continue
        if type(size) is not int or size < 0 or entry.data is not UNSET:
            raise BadRequest("expected either data, or a binary_data_size of 0 or more", place=place)
        raw = behind[offset : offset + size]
        if len(raw) < size:
            raise BadRequest(f"binary_data_size is {size}, but {len(raw)} bytes are left", place=place)
        feeds[entry.name] = tensors.from_bytes(raw, entry.datatype, entry.shape, place)
        offset += size
    if offset != len(behind):
        raise BadRequest(f"{len(behind) - offset} bytes lie behind the last input", place="inputs")
    return feeds


def texts_behind_bytes(inputs: Sequence[InferInput], size_bytes: int) -> int:
    """Return about how much memory the texts take that lie in so many bytes behind the JSON."""
    found, left = 0, size_bytes
    for entry in inputs:
        size = entry.parameters.get("binary_data_size")
        if entry.datatype == "BYTES" and type(size) is int and 0 < size <= left:
            found, left = found + tensors.texts_bytes(entry.shape, size), left - size
    return found


def write_outputs(
    outputs: Mapping[str, Any], wanted: Sequence[WantedOutput], all_binary: bool
) -> tuple[list[InferOutput], list[bytes | memoryview]]:
    """Return what the JSON says of some outputs, and what lies behind it.

    Args:
        outputs: The tensors, by name.
        wanted: Those that the request names; all if it names none.
        all_binary: Whether those that it does not say it of lie behind the JSON.

    Raises:
        BadRequest: there is no such output, or too many are named.
    """
    tensors.refuse_too_many(wanted, "outputs")
    for number, each in enumerate(wanted):
        tensors.refuse_parameters(each.parameters, ("binary_data",), f"outputs[{number}]")
    binary = {each.name: each.parameters.get("binary_data", all_binary) for each in wanted}
    if not all(isinstance(each, bool) for each in binary.values()):
        raise BadRequest("binary_data is true or false", place="outputs")
    found, parts = [], []
    for name, array in tensors.chosen(outputs, [each.name for each in wanted]).items():
        entry = InferOutput(name, list(array.shape), tensors.datatype_of(array))
        if binary.get(name, all_binary):
            part = tensors.to_bytes(array)
            entry.parameters = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            entry.data = _to_json(array)
        found.append(entry)
    return found, parts


def _from_json(entry: InferInput, place: str) -> np.ndarray:
    if entry.data is UNSET:
        raise BadRequest("there is no data", place=place, remedy="give data, or binary_data_size")
    count = tensors.element_count(entry.shape, place)
    dtype = tensors.numpy_type(entry.datatype, place)
    elements = _flat(entry.data, entry.shape, f"{place}.data")
    if len(elements) != count:
        raise BadRequest(f"{len(elements)} elements, but the shape {entry.shape} has {count}", place=place)
    types, what = _TAKES[dtype.kind]
    if not types.issuperset(map(type, elements)):
        raise BadRequest(f"{entry.datatype} takes {what}", place=f"{place}.data")
    if dtype.kind == "O":
        array = np.empty(count, object)
        array[:] = elements
        return array.reshape(entry.shape)
    try:
        with np.errstate(over="raise"):
            array = np.array(elements, np.float64 if dtype.kind in "fV" else dtype)
            return array.astype(dtype, copy=False).reshape(entry.shape)
    except (OverflowError, FloatingPointError):
        raise BadRequest(f"a number is beyond {entry.datatype}", place=f"{place}.data") from None


def _flat(data: list[Any], shape: Sequence[int], place: str) -> list[Any]:
    """Return the elements of a tensor that is given flat, or as lists in lists."""
    if not data or not isinstance(data[0], list):
        return data
    if not shape or len(data) != shape[0]:
        raise BadRequest(f"the lists are not of the shape {list(shape)}", place=place)
    for size in shape[1:]:
        if not all(isinstance(each, list) and len(each) == size for each in data):
            raise BadRequest(f"the lists are not of the shape {list(shape)}", place=place)
        data = list(chain.from_iterable(data))
    return data


def _to_json(array: np.ndarray) -> list[Any]:
    if array.dtype.kind in "OUS":
        return [_text(element) for element in array.flat]
    if array.dtype.kind in "fV":
        numbers: list[Any] = array.astype(np.float64).ravel().tolist()
        return [number if math.isfinite(number) else None for number in numbers]
    return list(array.ravel().tolist())


def _text(element: Any) -> str:
    return element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)
