"""A file to a `Model`: the kind is decided by content, the reading stays within limits."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from educe.errors import EduceError, ModelFileError, UnsupportedFormatError
from educe.files import open_regular
from educe.formats import checkpoint
from educe.formats.base import Format
from educe.formats.onnx import OnnxFormat
from educe.formats.sniff import CHECKPOINT_REMEDY, HEAD_BYTES, refuse
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Model

_MOST_NAMED = 5

FORMATS: tuple[Format, ...] = (OnnxFormat(),)


def load(
    source: str | os.PathLike[str] | bytes, limits: Limits = DEFAULT_LIMITS, *, folder: Path | None = None
) -> Model:
    """Read a model file.

    Args:
        source: The file's path; or its content, which then must not name other files unless `folder` says
            where they are.

    Raises:
        ModelFileError: the file is missing or broken.
        UnsupportedFormatError: the file is of a kind that Educe does not read.
        LimitError: the file is larger than `limits` allow.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), None if folder is None else folder / "model", limits)
    path = Path(source)
    # Unlike the path's own method, this one answers for names that no file can have.
    if os.path.isdir(path):  # noqa: PTH112
        path = _only_model(path)
    with open_regular(path, error=ModelFileError) as file:
        return _read(file, path, limits)


def _read(file: BinaryIO, path: Path | None, limits: Limits) -> Model:
    try:
        limits.check("model_bytes", file.seek(0, os.SEEK_END))
        file.seek(0)
        head = file.read(HEAD_BYTES)
        file.seek(0)
        for format_ in FORMATS:
            if format_.sniff(head):
                return format_.load(file, path, limits)
    except EduceError as error:
        raise (error if path is None else error.located(path)) from None
    except OSError as fault:
        raise ModelFileError(
            f"cannot be read: {fault.strerror}", path=path, remedy="check the disk"
        ) from None
    refusal = refuse(head, path)
    if path is not None and isinstance(refusal, ModelFileError) and checkpoint.recognises(path):
        refusal = _without_graph(path)
    raise refusal


def _without_graph(path: Path) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        "holds weights and a configuration, without a graph", path=path, remedy=CHECKPOINT_REMEDY
    )


def _only_model(folder: Path) -> Path:
    """Return the model file in `folder`, or in its folder ``onnx``, as Hugging Face lays them out."""
    found = sorted(folder.glob("*.onnx")) or sorted((folder / "onnx").glob("*.onnx"))
    named = [path for path in found if path.name == "model.onnx"]
    if len(found) == 1 or named:
        return named[0] if named else found[0]
    if not found and checkpoint.recognises(folder):
        raise _without_graph(folder)
    names = ", ".join(path.name for path in found[:_MOST_NAMED])
    raise ModelFileError(
        f"the folder holds {len(found)} .onnx files{': ' if names else ''}{names}, where one is expected",
        path=folder,
        remedy="name the file",
    )


__all__ = ["FORMATS", "Format", "load"]
