"""Reading an ONNX file once: large weights into memory of their own, the rest into a message to parse.

A parser of protobuf messages copies every weight, and hands out another copy whenever it is looked at. What
is needed here of the encoding (protobuf.dev, Encoding) is to walk over fields: a tag, then a number, or a
length and as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np

from educe.pages import empty

LARGE_BYTES = 16 * 1024
"""The size from which the data of an initializer is kept apart."""

# Fields of ModelProto, GraphProto and TensorProto (onnx.proto).
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}

Part: TypeAlias = "bytes | memoryview"


@dataclass(frozen=True)
class Content:
    """An ONNX file, read.

    Attributes:
        message: The file's message without the data of large initializers, which is empty.
        weights: This data, by the number of the initializer in the main graph.
        parts: The bytes of the whole file, in order.
    """

    message: bytes
    weights: dict[int, np.ndarray]
    parts: list[Part]


def read(file: BinaryIO, size_bytes: int) -> Content:
    """Read a file of `size_bytes`; one that is not encoded as it should be is returned as it is."""
    reader = _Reader(file)
    try:
        return reader.model(size_bytes)
    except _IrregularError:
        file.seek(0)
        content = file.read()
        return Content(content, {}, [content])


class _IrregularError(Exception):
    """The bytes are no message, or one that no writer makes."""


@dataclass(frozen=True)
class _Field:
    """One field: number, wire type, bytes of tag and number or length, and how many bytes follow."""

    number: int
    wire: int
    start: bytes
    length: int


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self._small = bytearray()
        self._parts: list[Part] = []
        self._weights: dict[int, np.ndarray] = {}
        self._num_initializers = 0

    def model(self, size_bytes: int) -> Content:
        message = [
            self._graph(field)
            if (field.number, field.wire) == (_GRAPH, _LENGTH_DELIMITED)
            else self._whole(field)
            for field in self._fields(size_bytes)
        ]
        return Content(b"".join(message), self._weights, [*self._parts, bytes(self._small)])

    def _graph(self, field: _Field) -> bytes:
        body = []
        for inner in self._fields(self._position + field.length):
            if (inner.number, inner.wire) == (_INITIALIZER, _LENGTH_DELIMITED):
                body.append(self._initializer(inner))
                self._num_initializers += 1
            else:
                body.append(self._whole(inner))
        return _message(_GRAPH, body)

    def _initializer(self, field: _Field) -> bytes:
        if field.length < LARGE_BYTES:
            return self._whole(field)
        body, times = [], 0
        for inner in self._fields(self._position + field.length):
            times += inner.number == _RAW_DATA
            is_large = inner.number == _RAW_DATA and inner.length >= LARGE_BYTES
            body.append(self._data(inner) if is_large else self._whole(inner))
        if times > 1:
            raise _IrregularError
        return _message(_INITIALIZER, body)

    def _data(self, field: _Field) -> bytes:
        data = empty(field.length, np.uint8)
        if self._file.readinto(data.data) != field.length:  # type: ignore[attr-defined]
            raise _IrregularError
        self._position += field.length
        self._parts += [bytes(self._small), data.data]
        self._small.clear()
        self._weights[self._num_initializers] = data
        return _message(_RAW_DATA, [])

    def _fields(self, end: int) -> Iterator[_Field]:
        """Yield each field up to `end`; the caller reads what follows its start."""
        while self._position < end:
            tag, start = self._varint()
            wire, length = tag & 7, _FIXED_BYTES.get(tag & 7, 0)
            if wire in (_VARINT, _LENGTH_DELIMITED):
                number, more = self._varint()
                start += more
                length = number if wire == _LENGTH_DELIMITED else 0
            elif wire not in _FIXED_BYTES:
                raise _IrregularError
            if self._position + length > end:
                raise _IrregularError
            yield _Field(tag >> 3, wire, start, length)
        if self._position != end:
            raise _IrregularError

    def _whole(self, field: _Field) -> bytes:
        return field.start + self._take(field.length)

    def _varint(self) -> tuple[int, bytes]:
        value = shift = 0
        taken = b""
        while shift < 64:
            byte = self._take(1)
            taken += byte
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value, taken
            shift += 7
        raise _IrregularError

    def _take(self, length: int) -> bytes:
        content = self._file.read(length)
        if len(content) != length:
            raise _IrregularError
        self._position += length
        self._small += content
        return content


def _message(number: int, body: list[bytes]) -> bytes:
    content = b"".join(body)
    return _encoded(number << 3 | _LENGTH_DELIMITED) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
