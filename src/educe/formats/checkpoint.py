"""The files of a language model to a `Checkpoint`: the kind is decided by content, never by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from educe.errors import EduceError, ModelFileError, UnsupportedFormatError
from educe.files import open_regular
from educe.formats import charrnn, ctranslate2, gguf, huggingface, keras_translation, llama2c, tensorflowjs
from educe.formats.folder import Folder
from educe.formats.onnx import OnnxFormat
from educe.formats.sniff import HEAD_BYTES, refuse
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint

_REMEDY = (
    "Educe reads language models from folders with config.json and safetensors, GGUF files, llama2.c's .bin "
    "files, and folders of CTranslate2, TensorFlow.js and ml5's charRNN: give the whole folder"
)


def load(source: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Read a language model from its own files.

    Args:
        source: A folder as Hugging Face, CTranslate2, TensorFlow.js or ml5's charRNN lay it out; a GGUF or
            llama2.c ``.bin`` file, or the folder of one.

    Raises:
        ModelFileError: a file is missing or broken; the error says which, and how to get it.
        UnsupportedFormatError: the file is of a kind that Educe does not read.
        UnsupportedModelError: the network is of a kind that Educe does not read.
        LimitError: a file is larger than `limits` allow.
    """
    path = Path(source)
    try:
        if not os.path.isdir(path):  # noqa: PTH112
            return _load_file(path, limits)
        return _load_folder(path, limits)
    except EduceError as error:
        raise error.located(path) from None


def recognises(path: Path) -> bool:
    """Say whether `path` holds a language model's own files, sound or not, rather than an ONNX model."""
    if not os.path.isdir(path):  # noqa: PTH112
        with open_regular(path, error=ModelFileError) as file:
            return gguf.sniff(file.read(HEAD_BYTES)) or _is_llama2c(file)
    if _graphs(path):
        return False
    named = any((path / name).is_file() for name in (huggingface.CONFIG, ctranslate2.MODEL))
    described = charrnn.sniff(path) or tensorflowjs.sniff(path)
    return named or described or any(path.glob("*.safetensors")) or _single_file(path) is not None


def _load_folder(path: Path, limits: Limits) -> Checkpoint:
    folder = Folder(path, limits)
    if folder.has(ctranslate2.MODEL):
        content = folder.map(ctranslate2.MODEL)
        if ctranslate2.sniff(content[:HEAD_BYTES].tobytes()):
            return ctranslate2.load(path, limits)
    if not folder.has(huggingface.CONFIG):
        if tensorflowjs.sniff(path):
            return keras_translation.load(path, limits)
        if charrnn.sniff(path):
            return charrnn.load(path, limits)
    single = _single_file(path)
    if single is not None and not any(path.glob("*.safetensors")):
        return _load_file(single, limits)
    if not folder.has(huggingface.CONFIG) and (graphs := _graphs(path)):
        raise _is_graph(graphs[0])
    return huggingface.load(path, limits)


def _graphs(folder: Path) -> list[Path]:
    """Return the ONNX models of a folder, as Hugging Face lays them out."""
    return [*sorted(folder.glob("*.onnx")), *sorted(folder.glob("onnx/*.onnx"))]


def _is_graph(path: Path) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        "is an ONNX model, which writes no texts by itself", path=path, remedy="educe predict runs it"
    )


def _single_file(folder: Path) -> Path | None:
    """Return the only file in `folder` that holds a whole model, if there is one."""
    found = sorted(folder.glob("*.gguf"))
    for path in sorted(folder.glob("*.bin")):
        if not path.is_symlink() and path.is_file():
            with open_regular(path, error=ModelFileError) as file:
                found += [path] if _is_llama2c(file) else []
    return found[0] if len(found) == 1 else None


def _load_file(path: Path, limits: Limits) -> Checkpoint:
    with open_regular(path, error=ModelFileError) as file:
        head = file.read(HEAD_BYTES)
        if gguf.sniff(head):
            return gguf.load(path, limits)
        if _is_llama2c(file):
            return llama2c.load(path, limits)
    if len(head) == HEAD_BYTES and OnnxFormat().sniff(head):
        raise _is_graph(path)
    raise refuse(head, path, remedy=_REMEDY)


def _is_llama2c(file: BinaryIO) -> bool:
    file.seek(0)
    return llama2c.sniff(file.read(llama2c.HEADER_BYTES), file.seek(0, os.SEEK_END))
