"""TensorFlow.js layers models: ``model.json`` with Keras's description of the layers, and shards of weights.

Each group of the weights' manifest is a list of files that are one after the other its arrays. The format:
https://www.tensorflow.org/js/guide/save_load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedFormatError
from educe.files import open_regular
from educe.formats.folder import Folder, are_sizes, json_object, shown
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Weight, size_in_bytes

MODEL = "model.json"
_MANIFEST, _TOPOLOGY = "weightsManifest", "modelTopology"
_TYPES = {"float32": "F32", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
_MAX_FILES = 10_000
_MAX_WEIGHTS = 100_000


@dataclass(frozen=True)
class LayersModel:
    """What a model.json and its shards hold.

    Attributes:
        topology: Keras's description of the model.
        weights: The arrays, under Keras's names.
    """

    topology: dict[str, Any]
    weights: dict[str, Weight]


def sniff(path: Path) -> bool:
    """Say whether the folder `path` has a model.json that speaks of shards of weights."""
    file = path / MODEL
    if not file.is_file():
        return False
    with open_regular(file, error=ModelFileError) as content:
        return f'"{_MANIFEST}"'.encode() in content.read(DEFAULT_LIMITS.card_bytes)


def read(folder: Folder, limits: Limits) -> LayersModel:
    """Read a model.json and its shards.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedFormatError: it is no layers model, or has a weight of a type that Educe does not read.
        LimitError: a file is larger than `limits` allow.
    """
    path = folder.path / MODEL
    content = json_object(folder.read(MODEL, "card_bytes"), path=path)
    topology = content.get(_TOPOLOGY)
    if content.get("format", "layers-model") != "layers-model" or not isinstance(topology, dict):
        raise UnsupportedFormatError(
            f"is a {shown(content.get('format', 'model without layers'))} of TensorFlow.js, no layers model",
            path=path,
            remedy="convert the original to ONNX, or with tensorflowjs_converter to a tfjs_layers_model",
        )
    weights: dict[str, Weight] = {}
    files: set[str] = set()
    for group in _list(content.get(_MANIFEST), _MANIFEST, path):
        fields = group if isinstance(group, dict) else {}
        paths = _list(fields.get("paths"), "paths", path)
        entries = _list(fields.get("weights"), "weights", path)
        for each in paths:
            if not isinstance(each, str) or each in files:
                raise _error(f"names the file {shown(each)} twice, or it is none", path)
            files.add(each)
        if len(files) > _MAX_FILES or len(weights) + len(entries) > _MAX_WEIGHTS:
            raise _error(f"names more than {_MAX_FILES:,} files or {_MAX_WEIGHTS:,} weights", path)
        _read_group(folder, paths, entries, weights)
    return LayersModel(topology, weights)


def _read_group(
    folder: Folder, paths: Sequence[str], entries: Sequence[Any], weights: dict[str, Weight]
) -> None:
    """Add the weights of a group, once the files have exactly their size."""
    path = folder.path / MODEL
    known = [_entry(each, path) for each in entries]
    sizes = [size_in_bytes(shape, encoding) for _, shape, encoding in known]
    shards = [folder.map(each) for each in paths]
    if sum(sizes) != sum(shard.size for shard in shards):
        found = sum(shard.size for shard in shards)
        raise ModelFileError(
            f"has {sum(sizes):,} bytes of weights in files of {found:,} bytes: {shown(paths)}",
            path=path,
            remedy="download all files again",
        )
    content = shards[0] if len(shards) == 1 else np.concatenate([*shards, np.empty(0, np.uint8)])
    position = 0
    for (name, shape, encoding), size in zip(known, sizes, strict=True):
        if name in weights:
            raise _error(f"has the weight {shown(name)} twice", path)
        weights[name] = Weight(name, shape, encoding, content[position : position + size])
        position += size


def _entry(entry: Any, path: Path) -> tuple[str, tuple[int, ...], str]:
    fields = entry if isinstance(entry, dict) else {}
    name, shape, kind = (fields.get(field) for field in ("name", "shape", "dtype"))
    if not isinstance(name, str) or not are_sizes(shape):
        raise _error(f"describes a weight by {shown(entry)}", path)
    if "quantization" in fields or not isinstance(kind, str) or kind not in _TYPES:
        found = "is quantized" if "quantization" in fields else f"has the type {shown(kind)}"
        raise UnsupportedFormatError(
            f"{found}, which Educe does not read",
            path=path,
            place=f"weight {shown(name)}",
            remedy="convert the model again, without quantization",
        )
    return name, tuple(shape), _TYPES[kind]


def _list(value: Any, name: str, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    raise _error(f"has {shown(value)} for {name}, where a list is expected", path)


def _error(cause: str, path: Path) -> ModelFileError:
    return ModelFileError(cause, path=path, place=_MANIFEST, remedy="download the file again")
