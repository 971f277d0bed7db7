"""The safetensors format: a header of JSON, then the bytes of each weight, without gaps.

The layout is that of https://huggingface.co/docs/safetensors: eight bytes with the header's size, the header,
the data. Names, types, shapes and extents are all checked against the file before an array is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedFormatError
from educe.formats.folder import are_sizes, json_object, shown
from educe.limits import Limits
from educe.model.checkpoint import Weight, size_in_bytes

_LENGTH_BYTES = 8
_TYPES = {
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8",
    "BOOL",
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}
_REMEDY = "download the file again"


def read(content: np.ndarray, path: Path, limits: Limits) -> dict[str, Weight]:
    """Return the weights of a file as views of its bytes, by their names.

    Args:
        content: The file's bytes, u8[n].
        path: The file, for errors.

    Raises:
        ModelFileError: the file is broken.
        UnsupportedFormatError: a weight is of a type that Educe does not read.
        LimitError: the header is larger than `limits` allow.
    """
    header, data = _split(content, path, limits)
    header.pop("__metadata__", None)
    weights = {name: _weight(name, entry, data, path) for name, entry in header.items()}
    _check_coverage(header, data.size, path)
    return weights


def _split(content: np.ndarray, path: Path, limits: Limits) -> tuple[dict[str, Any], np.ndarray]:
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    end = _LENGTH_BYTES + length
    if content.size < _LENGTH_BYTES or end > content.size:
        raise ModelFileError(
            f"has {content.size:,} bytes, where its header alone should have {length:,} after the first 8",
            path=path,
            place="byte 0",
            remedy=_REMEDY,
        )
    limits.check("header_bytes", length, path=path)
    text = content[_LENGTH_BYTES:end].tobytes()
    return json_object(text, path=path, place="the header"), content[end:]


def _weight(name: str, entry: Any, data: np.ndarray, path: Path) -> Weight:
    encoding, shape, (begin, end) = _fields(name, entry, path)
    needed = size_in_bytes(shape, encoding)
    if needed != end - begin or end > data.size:
        raise _error(
            f"takes {needed:,} bytes as {encoding}{list(shape)}, but names those from {begin:,} to {end:,} "
            f"of {data.size:,}",
            name,
            path,
        )
    return Weight(name, shape, encoding, data[begin:end])


def _fields(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _error(f"is described by {shown(entry)}, not by {sorted(_FIELDS)}", name, path)
    shape, offsets, encoding = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not are_sizes(shape):
        raise _error(f"has the shape {shown(shape)}", name, path)
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _error(f"has the extent {shown(offsets)}", name, path)
    if not isinstance(encoding, str) or encoding not in _TYPES:
        raise UnsupportedFormatError(
            f"has the type {shown(encoding)}, which Educe does not read",
            path=path,
            place=f"weight {shown(name)}",
            remedy="save the model with float32, float16 or bfloat16 weights",
        )
    return encoding, tuple(shape), (offsets[0], offsets[1])


def _check_coverage(header: Mapping[str, Any], size_bytes: int, path: Path) -> None:
    """Raise unless the extents follow each other from the first byte to the last."""
    position = 0
    for (begin, end), name in sorted((entry["data_offsets"], name) for name, entry in header.items()):
        if begin != position:
            fault = "overlaps the weight before it" if begin < position else "leaves a gap before it"
            raise _error(f"begins at {begin:,}, which {fault}, up to {position:,}", name, path)
        position = end
    if position != size_bytes:
        raise ModelFileError(
            f"has {size_bytes:,} bytes of weights, of which its header names {position:,}",
            path=path,
            remedy=_REMEDY,
        )


def _error(cause: str, name: str, path: Path) -> ModelFileError:
    return ModelFileError(cause, path=path, place=f"weight {shown(name)}", remedy=_REMEDY)
