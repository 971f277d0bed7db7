"""Reading and writing tensors: NumPy's .npy and .npz, and the .pb files of ONNX test cases."""

from __future__ import annotations

import ast
import io
import math
import os
import re
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from educe.errors import InputError, OptionError
from educe.files import open_regular
from educe.limits import Limits

if TYPE_CHECKING:
    import onnx

Tensors: TypeAlias = np.ndarray | list[Any] | dict[str, np.ndarray]
"""A nameless array, a list of them (a sequence or an optional), or arrays by name."""

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
MAX_HEADER_BYTES = 10_000
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Largest list of members in a .npz file: some ten thousand arrays."""

_LENGTH_FORMATS = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}
_DESCR = re.compile(r"[<>|=]?[biufcSU][1-9]\d{0,8}")
END_BYTES, LOCATOR_BYTES = 22, 20
"""Sizes of the record that ends a ZIP file, and of the one before it that makes it ZIP64."""
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "string_data", "double_data", "uint64_data")
_READ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError),
    *(ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError),
)


def read_tensors(source: Path | bytes, limits: Limits) -> Tensors:
    """Return the tensors in a file or in bytes, whose kind is decided by the content.

    Returns:
        An array for .npy and for an ONNX TensorProto; a list for a SequenceProto, or for an OptionalProto a
        list of one or none, which cannot be told apart; a dict by name for .npz. The arrays are of native
        byte order and belong to the caller. Text is an object array of str.

    Raises:
        InputError: the file is of another kind, broken, or holds Python objects, which are never unpickled.
        LimitError: the tensors are larger than `limits.tensor_bytes`, checked before anything is unpacked.
    """
    path = source if isinstance(source, Path) else None
    with open_regular(source) if isinstance(source, Path) else io.BytesIO(source) as file:
        limits.check("tensor_bytes", _size(file), path=path)
        head = file.read(len(NPY_MAGIC))
        file.seek(0)
        try:
            if head == NPY_MAGIC:
                return _read_npy(file, _size(file), limits)
            return (
                _read_npz(file, limits) if head.startswith(ZIP_MAGICS) else _read_proto(file.read(), limits)
            )
        except InputError as fault:
            raise (fault.located(path) if path else fault) from None


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as the .npz file `path`, complete or not at all.

    NumPy cannot store the types of ml_dtypes (bfloat16, float8, int4, …): they are written as float32,
    which holds all of their values. Text is written as fixed-width Unicode.

    Raises:
        OptionError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with part.open("xb") as file:
                _write_npz(file, arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as fault:
        raise OptionError(
            f"cannot be written: {fault.strerror}", path=path, remedy="name another file"
        ) from None


def _write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _storable(array), allow_pickle=False)


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "O":
        return array.astype(np.str_)
    # 2 marks the types that an extension has registered.
    return array.astype(np.float32) if array.dtype.isbuiltin == 2 else array


def _size(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _read_npy(file: IO[bytes], size_bytes: int, limits: Limits) -> np.ndarray:
    """Read one array that fills `file`, of `size_bytes`, from its beginning."""
    shape, fortran_order, dtype, header_bytes = _read_header(file)
    declared = math.prod(shape) * dtype.itemsize
    limits.check("tensor_bytes", declared)
    _require(declared, size_bytes - header_bytes)
    content = bytearray(declared)
    _require(declared, _read_into(file, content))
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")
    return _native(array)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order and element type of an .npy file, and the size of its header."""
    prefix = file.read(len(NPY_MAGIC) + 2)
    length_format = _LENGTH_FORMATS.get(prefix[len(NPY_MAGIC) :])
    if not prefix.startswith(NPY_MAGIC) or length_format is None:
        raise _no_npy("it does not begin as one")
    length = file.read(struct.calcsize(length_format))
    if len(length) < struct.calcsize(length_format):
        raise _no_npy("it is cut off")
    text_bytes = struct.unpack(length_format, length)[0]
    if text_bytes > MAX_HEADER_BYTES:
        raise _no_npy(f"its header has {text_bytes:,} bytes")
    text = file.read(text_bytes)
    try:
        fields = ast.literal_eval(text.decode("utf-8"))
        descr, fortran_order, shape = (fields[key] for key in ("descr", "fortran_order", "shape"))
    except (*_READ_ERRORS, LookupError):
        raise _no_npy("its header cannot be read") from None
    if not isinstance(shape, tuple) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise _no_npy(f"its shape is {str(shape)[:100]}")
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        raise InputError(
            f"holds elements of type {str(descr)[:100]!r}, not numbers or text",
            remedy="convert the array with astype",
        )
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise _no_npy(f"its element type is {descr!r}") from None
    return shape, bool(fortran_order), dtype, len(prefix) + len(length) + text_bytes


def _no_npy(reason: str) -> InputError:
    return InputError(f"is no .npy file: {reason}", remedy="save it with numpy.save")


def _read_into(file: IO[bytes], content: bytearray) -> int:
    found = 0
    view = memoryview(content)
    while found < len(content):
        part = file.read(min(2**20, len(content) - found))
        if not part:
            break
        view[found : found + len(part)] = part
        found += len(part)
    return found


def _require(declared: int, found: int) -> None:
    if declared != found:
        raise InputError(
            f"expected {declared:,} bytes as its header declares, found {found:,}",
            remedy="copy the file again",
        )


def _native(array: np.ndarray) -> np.ndarray:
    """Return `array` in native byte order, and text as objects."""
    if array.dtype.kind not in "SU":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        if array.dtype.kind == "S":
            return np.char.decode(array, "utf-8").astype(object)
    except UnicodeDecodeError as fault:
        raise InputError(f"holds text that is not UTF-8 ({fault.reason})") from None
    codes = array.ravel().view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if np.any(codes > sys.maxunicode):
        raise InputError("holds text that is not Unicode")
    return array.astype(object)


def _read_npz(file: BinaryIO, limits: Limits) -> dict[str, np.ndarray]:
    _bound_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            limits.check("tensor_bytes", sum(member.file_size for member in members))
            names = [_member_name(member) for member in members]
            if len(set(names)) < len(names):
                raise InputError("holds two arrays of one name", remedy="save it again with numpy.savez")
            return {
                name: _read_member(archive, member, limits)
                for name, member in zip(names, members, strict=True)
            }
    except _READ_ERRORS as fault:
        raise InputError(
            f"is no .npz file: {_first_line(fault)}", remedy="save it again with numpy.savez"
        ) from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits) -> np.ndarray:
    try:
        with archive.open(member) as content:
            return _read_npy(content, member.file_size, limits)
    except InputError as fault:
        fault.place = f"array {member.filename!r}"
        raise


def _member_name(member: zipfile.ZipInfo) -> str:
    if not member.filename.endswith(".npy") or member.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):
        raise InputError(
            f"holds {member.filename!r}, which is no array", remedy="save the arrays with numpy.savez"
        )
    return member.filename.removesuffix(".npy")


def _bound_directory(file: BinaryIO) -> None:
    """Refuse a list of members that would fill the memory, which zipfile reads whole."""
    size = _size(file)
    file.seek(max(0, size - END_BYTES - LOCATOR_BYTES))
    tail = file.read()
    file.seek(0)
    end = tail[-END_BYTES:]
    if len(end) < END_BYTES or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise InputError("is cut off, or no .npz file", remedy="save it again with numpy.savez")
    directory_bytes = struct.unpack_from("<I", end, 12)[0]
    if directory_bytes > MAX_DIRECTORY_BYTES or tail.startswith(b"PK\x06\x07"):
        raise InputError(
            "holds too many arrays, or is a ZIP64 archive", remedy="save fewer arrays in one file"
        )


def _read_proto(content: bytes, limits: Limits) -> np.ndarray | list[Any]:
    import onnx
    from google.protobuf.message import DecodeError

    for kind in (onnx.TensorProto, onnx.SequenceProto):
        proto = kind()
        try:
            proto.ParseFromString(content)
            return _from_tensor(proto, limits) if kind is onnx.TensorProto else _from_sequence(proto, limits)
        except (DecodeError, *_READ_ERRORS, KeyError):
            continue
    raise InputError(
        "is no .npy, .npz or ONNX .pb file", remedy="save an array with numpy.save, several with numpy.savez"
    )


def _from_tensor(proto: onnx.TensorProto, limits: Limits) -> np.ndarray:
    """Return the array of `proto`; ValueError if it is not whole, as when it was another kind of message."""
    from onnx_ir import serde

    entries = 8 * len(proto.raw_data) + 4 * sum(len(getattr(proto, name)) for name in _DATA_FIELDS)
    size = math.prod(proto.dims)
    if proto.HasField("segment") or proto.external_data or min(proto.dims, default=0) < 0 or size > entries:
        raise ValueError("no whole tensor")
    if proto.data_type == proto.STRING:
        texts = np.empty(len(proto.string_data), object)
        texts[:] = [text.decode("utf-8") for text in proto.string_data]
        return texts.reshape(tuple(proto.dims))
    array = np.array(serde.deserialize_tensor(proto).numpy())
    limits.check("tensor_bytes", array.nbytes)
    return array


def _from_sequence(proto: onnx.SequenceProto, limits: Limits) -> list[Any]:
    """Return the list of `proto`; ValueError if it is another kind of message, or holds maps."""
    size = proto.ByteSize()
    proto.DiscardUnknownFields()
    others = proto.map_values or proto.sparse_tensor_values or proto.optional_values
    if not size or proto.ByteSize() != size or others:
        raise ValueError("no sequence of tensors")
    found: list[Any] = [_from_tensor(tensor, limits) for tensor in proto.tensor_values]
    return found + [_from_sequence(inner, limits) for inner in proto.sequence_values]


def _first_line(fault: BaseException) -> str:
    return f"{type(fault).__name__} {fault}".splitlines()[0][:200]
