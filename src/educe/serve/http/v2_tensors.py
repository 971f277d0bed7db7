"""The tensors of the Open Inference Protocol's HTTP: in JSON, or as bytes behind it.

Source: the protocol's REST specification, and its binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from educe.serve import tensors
from educe.serve.faults import BadRequest
from educe.serve.http.v2_types import InferInput, InferOutput, WantedOutput

_KINDS = {"b": "bools", "i": "whole numbers", "u": "whole numbers", "f": "numbers", "V": "numbers"}


def read_inputs(inputs: Sequence[InferInput], behind: memoryview) -> dict[str, np.ndarray]:
    """Return the tensors of a request, by name.

    Args:
        inputs: What the JSON says of them.
        behind: The bytes behind the JSON.

    Raises:
        BadRequest: a tensor stands twice, or its elements do not fit its type and shape.
    """
    feeds: dict[str, np.ndarray] = {}
    offset = 0
    for entry in inputs:
        place = f"inputs[{len(feeds)}]"
        if entry.name in feeds:
            raise BadRequest(f"the input {entry.name[:100]!r} stands twice", place=place)
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


def write_outputs(
    outputs: Mapping[str, Any], wanted: Sequence[WantedOutput], all_binary: bool
) -> tuple[list[InferOutput], list[bytes | memoryview]]:
    """Return what the JSON says of some outputs, and what lies behind it.

    Args:
        outputs: The tensors, by name.
        wanted: Those that the request names; all if it names none.
        all_binary: Whether those that it does not say it of lie behind the JSON.

    Raises:
        BadRequest: there is no such output.
    """
    named = {entry.name: entry.parameters.get("binary_data", all_binary) for entry in wanted}
    found, parts = [], []
    for name, is_binary in (named or dict.fromkeys(outputs, all_binary)).items():
        if name not in outputs:
            raise BadRequest(f"the model has no output {name[:100]!r}", place="outputs")
        array = outputs[name]
        entry = InferOutput(name, list(array.shape), tensors.datatype_of(array))
        if is_binary:
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
    if dtype.kind == "O":
        return _texts(entry, count, place)
    try:
        given = np.array(entry.data if entry.data else [], dtype=None if entry.data else dtype)
    except (ValueError, OverflowError):
        raise BadRequest("data is not of one shape", place=place) from None
    if given.size != count:
        raise BadRequest(f"{given.size} elements, but the shape {entry.shape} has {count}", place=place)
    wanted = _KINDS[dtype.kind]
    if _KINDS.get(given.dtype.kind) != wanted and not (wanted == "numbers" and given.dtype.kind in "iu"):
        raise BadRequest(f"{entry.datatype} takes {wanted}", place=f"{place}.data")
    if dtype.kind in "iu" and given.size:
        bounds = np.iinfo(dtype)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise BadRequest(f"a number is beyond {entry.datatype}", place=f"{place}.data")
    with np.errstate(over="ignore"):
        return given.astype(dtype).reshape(entry.shape)


def _texts(entry: InferInput, count: int, place: str) -> np.ndarray:
    assert entry.data is not UNSET
    flat: list[str] = []
    waiting = [iter(entry.data)]
    while waiting:
        for element in waiting[-1]:
            if isinstance(element, list) and len(waiting) <= len(entry.shape):
                waiting.append(iter(element))
                break
            if not isinstance(element, str):
                raise BadRequest("BYTES takes texts", place=f"{place}.data")
            flat.append(element)
        else:
            waiting.pop()
    if len(flat) != count:
        raise BadRequest(f"{len(flat)} elements, but the shape {entry.shape} has {count}", place=place)
    array = np.empty(count, object)
    array[:] = flat
    return array.reshape(entry.shape)


def _to_json(array: np.ndarray) -> list[Any]:
    if array.dtype.kind in "OUS":
        return [_text(element) for element in array.flat]
    if array.dtype.kind in "fV":
        numbers: list[Any] = array.astype(np.float64).ravel().tolist()
        return [number if math.isfinite(number) else None for number in numbers]
    return list(array.ravel().tolist())


def _text(element: Any) -> str:
    return element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)
