"""Recognising what a file is by its first bytes, to refuse the wrong ones by name."""

from __future__ import annotations

from pathlib import Path

from educe.errors import ModelFileError, UnsupportedFormatError

HEAD_BYTES = 4096

CHECKPOINT_REMEDY = (
    "a language model is run by educe generate and educe chat, and in Python by educe.generator; "
    "export any other to ONNX"
)
_REMEDY = "Educe reads ONNX models: export it to ONNX"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras saves"),
    (0, b"PK\x03\x04", "a zip file, such as PyTorch or Keras saves"),
    (0, b"\x80\x02", "a Python pickle, which can run code and is never opened"),
    (0, b"\x80\x03", "a Python pickle, which can run code and is never opened"),
    (0, b"\x80\x04", "a Python pickle, which can run code and is never opened"),
    (0, b"\x80\x05", "a Python pickle, which can run code and is never opened"),
    (0, b"tree\n", "a LightGBM text model"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"RIFF", "a RIFF file (WAV, WebP or AVI)"),
    (0, b"%PDF", "a PDF file"),
)
_GGUF = b"GGUF"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse(
    head: bytes, path: Path | None, *, remedy: str = _REMEDY
) -> ModelFileError | UnsupportedFormatError:
    """Return the error for a file that no format recognises: what it is instead, and what to do.

    Args:
        remedy: What can be read instead, for a file that is sound in itself.
    """
    if not head:
        return ModelFileError("the file is empty", path=path, remedy="download or export it again")
    if head.startswith(_LFS_POINTER):
        return ModelFileError(
            "is a Git LFS pointer, not the model itself", path=path, remedy="run git lfs pull"
        )
    start = head.lstrip()[:256].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return ModelFileError(
            "is a web page, not a model: the download went wrong",
            path=path,
            remedy="open the file to see what the server said, then download it again",
        )
    if head.startswith(_GGUF):
        return UnsupportedFormatError(
            "is a GGUF model: a language model, without a graph",
            path=path,
            remedy=CHECKPOINT_REMEDY,
        )
    for offset, magic, what in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return UnsupportedFormatError(f"is {what}", path=path, remedy=remedy)
    if _is_safetensors(head):
        return UnsupportedFormatError(
            "is a safetensors file: weights without a graph",
            path=path,
            remedy=remedy,
        )
    return ModelFileError(
        f"is no model that Educe knows; it begins with {head[:8]!r}", path=path, remedy=remedy
    )


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
