"""`Cursor`: reads the numbers and texts of a binary file one after the other, never past its end."""

from __future__ import annotations

import struct
from pathlib import Path

from educe.errors import ModelFileError

_REMEDY = "download the file again"


class Cursor:
    """A position in the bytes of a file.

    Attributes:
        position: The next byte to be read.
    """

    def __init__(self, content: memoryview, path: Path) -> None:
        self.position = 0
        self._content = content
        self._path = path

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._content) - self.position

    def take(self, size_bytes: int) -> memoryview:
        """Return the next `size_bytes` bytes, not copied.

        Raises:
            ModelFileError: there are not so many left.
        """
        if size_bytes > self.remaining:
            raise self.error(f"{size_bytes:,} bytes should follow, and {self.remaining:,} do")
        start = self.position
        self.position += size_bytes
        return self._content[start : self.position]

    def integer(self, layout: str) -> int:
        """Return the next whole number, whose layout is one letter of `struct` after its byte order."""
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def real(self) -> float:
        """Return the next f32, little-endian."""
        value: float = struct.unpack("<f", self.take(4))[0]
        return value

    def text(self, size_bytes: int) -> str:
        """Return the next `size_bytes` bytes as UTF-8 text."""
        try:
            return str(self.take(size_bytes), "utf-8")
        except UnicodeDecodeError as fault:
            raise self.error(f"the {size_bytes:,} bytes before are no UTF-8 text: {fault.reason}") from None

    def error(self, cause: str) -> ModelFileError:
        """Return the error that something is wrong at this position."""
        return ModelFileError(cause, path=self._path, place=f"byte {self.position:,}", remedy=_REMEDY)
