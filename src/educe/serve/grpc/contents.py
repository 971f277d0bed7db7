"""The tensors of the Open Inference Protocol's gRPC: typed contents, or raw bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from educe.serve import tensors
from educe.serve.faults import BadRequest

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of each datatype; half floats have none."""

_ELEMENT_BYTES = 8
# So many elements are copied at once: in between, other threads come to their turn.
_PART = 2**16

_OF_HTTP = ("binary_data", "binary_data_size")
"""What tensors have over HTTP, and KServe's client sends over gRPC, too, where it says nothing."""


def refuse_too_many(request: Any) -> None:
    """Raise BadRequest if a `ModelInferRequest` has more inputs, outputs or parameters than are looked at."""
    tensors.refuse_too_many(request.inputs, "inputs")
    tensors.refuse_too_many(request.outputs, "outputs")
    tensors.refuse_too_many(request.parameters, "parameters")


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's parameters.

    Raises:
        BadRequest: one has no value.
    """
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest("there is no value", place=f"parameters.{name[:50]}")
        found[name] = getattr(parameter, choice)
    return found


def write_parameters(target: Any, parameters: Mapping[str, bool | int | str]) -> None:
    """Add parameters to a message's."""
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else None
        setattr(target[name], kind or "string_param", value)


def bytes_to_read(request: Any) -> int:
    """Return about how many bytes `read_inputs` has to look at; numbers that are raw it takes as they lie."""
    is_raw, count = len(request.raw_input_contents) > 0, 0
    for entry in request.inputs:
        if not is_raw or entry.datatype == "BYTES":
            count += max(0, math.prod(entry.shape[: tensors.MOST_AXES]))
    return _ELEMENT_BYTES * count


def texts_bytes(request: Any) -> int:
    """Return about how much memory the texts take that are raw."""
    raw = zip(request.inputs, request.raw_input_contents, strict=False)
    return sum(tensors.texts_bytes(each.shape, len(part)) for each, part in raw if each.datatype == "BYTES")


def read_inputs(request: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a `ModelInferRequest`, by name.

    Raises:
        BadRequest: a tensor stands twice, or its elements do not fit its type and shape.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(
            f"{len(raw)} for {len(request.inputs)} inputs",
            place="raw_input_contents",
            remedy="send all inputs raw, or none",
        )
    feeds: dict[str, np.ndarray] = {}
    for number, entry in enumerate(request.inputs):
        place = f"inputs[{number}]"
        if entry.name in feeds:
            raise BadRequest(f"the input {entry.name[:100]!r} stands twice", place=place)
        tensors.refuse_parameters(entry.parameters, _OF_HTTP, place)
        shape = list(entry.shape[: tensors.MOST_AXES + 1])  # of which one more is refused
        if not raw:
            feeds[entry.name] = _typed(entry, shape, place)
            continue
        if entry.HasField("contents"):
            raise BadRequest("contents come beside raw_input_contents", place=place)
        feeds[entry.name] = tensors.from_bytes(raw[number], entry.datatype, shape, place)
    return feeds


def write_outputs(outputs: Mapping[str, Any], wanted: Sequence[Any], is_raw: bool, response: Any) -> None:
    """Add outputs to a `ModelInferResponse`.

    Args:
        outputs: The tensors, by name.
        wanted: Those that the request names; all if it names none.
        is_raw: Whether their elements go raw; half floats always do, and all others beside them.
        response: The response.

    Raises:
        BadRequest: there is no such output.
    """
    for number, entry in enumerate(wanted):
        tensors.refuse_parameters(entry.parameters, _OF_HTTP, f"outputs[{number}]")
    chosen = tensors.chosen(outputs, [entry.name for entry in wanted])
    described = [(name, array, tensors.datatype_of(array)) for name, array in chosen.items()]
    is_raw = is_raw or any(datatype not in _FIELDS for _, _, datatype in described)
    for name, array, datatype in described:
        entry = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(bytes(tensors.to_bytes(array)))
        else:
            _fill(getattr(entry.contents, _FIELDS[datatype]), array)


def _typed(entry: Any, shape: list[int], place: str) -> np.ndarray:
    count = tensors.element_count(shape, place)
    dtype = tensors.numpy_type(entry.datatype, place)
    field = _FIELDS.get(entry.datatype)
    if field is None:
        raise BadRequest(f"{entry.datatype} has no contents", place=place, remedy="use raw_input_contents")
    for other, _ in entry.contents.ListFields():
        if other.name != field:
            raise BadRequest(f"{other.name} for {entry.datatype}", place=place, remedy=f"use {field}")
    elements = getattr(entry.contents, field)
    if len(elements) != count:
        raise BadRequest(f"{len(elements)} elements, but the shape {shape} has {count}", place=place)
    array = np.empty(count, dtype)
    try:
        for start in range(0, count, _PART):
            array[start : start + _PART] = elements[start : start + _PART]
    except OverflowError:
        raise BadRequest(f"a number is beyond {entry.datatype}", place=place) from None
    return array.reshape(shape)


def _fill(field: Any, array: np.ndarray) -> None:
    if array.dtype.kind in "OUS":
        field.extend(each if isinstance(each, bytes) else str(each).encode() for each in array.flat)
    else:
        flat = array.ravel()
        for start in range(0, flat.size, _PART):
            field.extend(flat[start : start + _PART].tolist())
