"""`memory_bytes`: how much memory a message takes when it is read, told before it is.

A number of one byte becomes one of eight, and an empty message in a message an object; so what has come says
little. The descriptions of the messages say which bytes are what. Source: the specification of Protocol
Buffers' encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from educe.serve.room import ELEMENT_BYTES

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
# Arrays grow by doubling, and are then copied to NumPy's.
_GROWTH = 3
_NUMBER_BYTES = 8
# For each byte of what is not looked at: two are enough for an object.
_MOST = ELEMENT_BYTES // 2
_SMALL_BYTES = 2**12
_MOST_LOOKS = 2**12
_TEXTS = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
_FIXED = (
    *(FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32),
    *(FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64),
)


def memory_bytes(content: bytes, message: Any) -> int:
    """Return about how much memory `content` takes when it is read as a message, beside `content`.

    It errs to more: of what is small, and of all behind some thousand fields, by the worst that may be.

    Args:
        content: A message, as it came.
        message: The message's class.
    """
    if len(content) < _SMALL_BYTES:
        return _MOST * len(content)
    return _Reader(content).memory_bytes(message.DESCRIPTOR, 0, len(content))


@dataclass
class _Reader:
    content: bytes
    num_looks: int = 0

    def memory_bytes(self, kind: Any, start: int, end: int) -> int:
        """Return how much memory a message takes that lies there."""
        found, seen = ELEMENT_BYTES, start
        for number, wire, first, last in self._fields(start, end):
            field, size, seen = kind.fields_by_number.get(number), last - first, last
            if field is None:  # is kept as it came
                found += _GROWTH * size
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                found += self.memory_bytes(field.message_type, first, last)
            elif field.type in _TEXTS:
                found += ELEMENT_BYTES + size
            elif wire != _DELIMITED or field.type in _FIXED:
                found += _GROWTH * max(size, _NUMBER_BYTES)
            else:
                found += _GROWTH * _NUMBER_BYTES * size
        return found + _MOST * (end - seen)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the number, wire type, begin and end of the fields there, until one is none."""
        offset = start
        while offset < end and self.num_looks < _MOST_LOOKS:
            self.num_looks += 1
            tag, offset = self._varint(offset)
            wire, first = tag & 7, offset
            if wire == _VARINT:
                _, offset = self._varint(offset)
            elif wire == _DELIMITED:
                size, first = self._varint(offset)
                offset = first + size
            elif wire in (_FIXED32, _FIXED64):
                offset += 4 if wire == _FIXED32 else 8
            else:  # a group, which is read no further
                return
            if offset > end:  # which is no message, and is refused where it is read
                return
            yield tag >> 3, wire, first, offset

    def _varint(self, offset: int) -> tuple[int, int]:
        """Return the number that lies there, and where it ends; one that has no end lies beyond all."""
        found = shift = 0
        for byte in self.content[offset : offset + 10]:
            offset += 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found, offset
        return found, len(self.content) + 1
