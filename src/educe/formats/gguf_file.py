"""GGUF's container, versions 2 and 3: metadata and tensors, every length checked before it is believed.

The layout is that of the GGUF document in ggml's repository. The file is mapped; tensors are views of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import EduceError, ModelFileError, UnsupportedFormatError
from educe.files import open_regular, stamp
from educe.formats import gguf_blocks
from educe.formats.cursor import Cursor
from educe.formats.folder import map_file, shown
from educe.limits import Limits
from educe.model.checkpoint import Weight, size_in_bytes
from educe.model.encodings import ENCODINGS

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SMALLEST_STRING, _SMALLEST_ARRAY = 8, 12
_SMALLEST_PAIR = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_DEEPEST_ARRAY = 4
_MOST_TEXTS = 1 << 20
"""In all metadata; the largest vocabularies have 0.8 million with their merges."""
_TEXTS_OF_AN_ARRAY = 64
"""As how many texts an inner array counts."""
_MOST_PAIRS = _MOST_TENSORS = 1 << 15
_MOST_DIMENSIONS = 4
_LONGEST_KEY, _LONGEST_NAME = 65535, 64
_DEFAULT_ALIGNMENT = 32
_UNREAD = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}
_AGAIN = "download or convert the file again"


@dataclass(frozen=True, eq=False)
class GgufFile:
    """What a file holds, under GGUF's own names.

    Attributes:
        version: 2 or 3.
        metadata: Numbers, texts, and arrays: of numbers as read-only views of the file, of others as lists.
        tensors: The tensors in the order of the file, mapped, with their sizes in NumPy's order.
        content: All bytes of the file, u8[n].
        stamp: What `educe.files.stamp` says of it.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]
    content: np.ndarray
    stamp: str


def read(path: Path, limits: Limits) -> GgufFile:
    """Map the file at `path` and read all but the tensors' data.

    Raises:
        ModelFileError: the file is broken.
        UnsupportedFormatError: its version, byte order or a tensor's encoding is none that Educe reads.
        LimitError: it is larger than `limits.external_bytes`, or its metadata than `limits.tokenizer_bytes`.
    """
    try:
        with open_regular(path, error=ModelFileError) as file:
            content, mark = map_file(file), stamp(file)
        limits.check("external_bytes", content.size)
        return _Reader(content, path, limits).file(mark)
    except OSError as fault:
        raise ModelFileError(
            f"cannot be mapped: {fault.strerror}", path=path, remedy="check the disk"
        ) from None
    except EduceError as error:
        raise error.located(path) from None


class _Reader(Cursor):
    """A place in a file, and the steps that read on from there."""

    def __init__(self, content: np.ndarray, path: Path, limits: Limits) -> None:
        super().__init__(content.data, path)
        self._array_of_all = content
        self._limits = limits
        self._what = "header"
        self._num_texts = 0

    def take(self, size_bytes: int) -> memoryview:
        """Return the next bytes, which the limit of a tokenizer bounds too."""
        self._limits.check("tokenizer_bytes", self.position + min(size_bytes, self.remaining))
        return super().take(size_bytes)

    def error(self, cause: str) -> ModelFileError:
        """Return the error that something is wrong with what is being read."""
        error = super().error(cause)
        error.place = f"{self._what}, {error.place}"
        return error

    def file(self, mark: str) -> GgufFile:
        version, num_tensors, num_pairs = self._header()
        metadata = self._metadata(num_pairs)
        tensors = self._tensors(num_tensors, _alignment(metadata))
        return GgufFile(version, metadata, tensors, self._array_of_all, mark)

    def _header(self) -> tuple[int, int, int]:
        if bytes(self.take(4)) != MAGIC:
            raise self.error("does not begin with 'GGUF'")
        version = self.integer("<I")
        if version not in _VERSIONS:
            raise self._wrong_version(version)
        return version, self.integer("<Q"), self.integer("<Q")

    def _wrong_version(self, version: int) -> EduceError:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in _VERSIONS:
            return UnsupportedFormatError(
                "is a GGUF file for big-endian machines",
                remedy="convert it with gguf-convert-endian, of the Python package gguf",
            )
        return UnsupportedFormatError(
            f"is GGUF version {version:,}, where Educe reads {' and '.join(map(str, _VERSIONS))}",
            remedy="convert the model again with a current converter",
        )

    def _metadata(self, num_pairs: int) -> dict[str, Any]:
        self._refuse_count(num_pairs, "metadata pairs", _SMALLEST_PAIR, _MOST_PAIRS)
        metadata: dict[str, Any] = {}
        for index in range(num_pairs):
            self._what = f"metadata {index}"
            key = self._key()
            if key in metadata:
                raise self.error(f"has the key {shown(key)}, which another has too")
            with self._reading(key):
                metadata[key] = self._value(self.integer("<I"), depth=0)
        return metadata

    def _key(self) -> str:
        key = self._text(_LONGEST_KEY)
        if not key or not key.isascii():
            raise self.error(f"has the key {shown(key)}, where ASCII characters are expected")
        return key

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array(depth)
        return self._numbers(kind, 1)[0].item()

    def _array(self, depth: int) -> Any:
        if depth == _DEEPEST_ARRAY:
            raise self.error(f"has arrays in arrays more than {_DEEPEST_ARRAY} deep")
        kind, count = self.integer("<I"), self.integer("<Q")
        if kind not in (_STRING, _ARRAY):
            return self._numbers(kind, count)
        smallest = _SMALLEST_STRING if kind == _STRING else _SMALLEST_ARRAY
        self._refuse_count(count, "array elements", smallest)
        self._num_texts += count * (1 if kind == _STRING else _TEXTS_OF_AN_ARRAY)
        if self._num_texts > _MOST_TEXTS:
            raise self.error(f"has too many texts and arrays: more than {_MOST_TEXTS:,} with those before it")
        if kind == _STRING:
            return self._texts(count)
        return [self._array(depth + 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        dtype = _NUMBERS.get(kind)
        if dtype is None:
            raise self.error(f"has the value type {kind:,}, which GGUF does not define")
        self._refuse_count(count, "numbers", dtype.itemsize)
        data = np.frombuffer(self.take(count * dtype.itemsize), np.uint8)
        if kind == _BOOL and data.size and int(data.max()) > 1:
            raise self.error(f"has a truth value of {int(data.max())}, where 0 or 1 is expected")
        return np.frombuffer(data, dtype)

    def _texts(self, count: int) -> list[str]:
        """Return `count` texts, in a loop of its own: there may be a million of them."""
        content, at, unpack = self._array_of_all.data, self.position, struct.Struct("<Q").unpack_from
        end = min(len(content), self._limits.tokenizer_bytes)
        texts = []
        for _ in range(count):
            start = at + 8
            length = unpack(content, at)[0] if start <= end else 0
            at = start + length
            if at > end:
                self.take(at - self.position)
            try:
                texts.append(str(content[start:at], "utf-8"))
            except UnicodeDecodeError:
                raise self.error(f"has an element {len(texts):,} that is no UTF-8 text") from None
        self.position = at
        return texts

    def _text(self, longest: int | None = None) -> str:
        length = self.integer("<Q")
        if longest is not None and length > longest:
            raise self.error(f"has a name of {length:,} bytes, where {longest:,} are allowed")
        return self.text(length)

    def _tensors(self, count: int, alignment: int) -> dict[str, Weight]:
        self._what = "header"
        self._refuse_count(count, "tensors", _SMALLEST_TENSOR, _MOST_TENSORS)
        found: dict[str, tuple[tuple[int, ...], str, int]] = {}
        for index in range(count):
            self._what = f"tensor {index}"
            name = self._text(_LONGEST_NAME)
            if not name or name in found:
                raise self.error(f"has the name {shown(name)}, which is empty or another's too")
            self._what = f"tensor {shown(name)}"
            found[name] = self._tensor(alignment)
        start = -(-self.position // alignment) * alignment
        _refuse_overlaps(found)
        return {name: self._weight(name, start, *fields) for name, fields in found.items()}

    def _tensor(self, alignment: int) -> tuple[tuple[int, ...], str, int]:
        rank = self.integer("<I")
        if not 1 <= rank <= _MOST_DIMENSIONS:
            raise self.error(f"has {rank:,} dimensions, where 1 to {_MOST_DIMENSIONS} are expected")
        shape = tuple(int(size) for size in np.frombuffer(self.take(rank * 8), "<u8")[::-1])
        if 0 in shape:
            raise self.error(f"has a dimension of 0: {list(shape)}")
        encoding = self._encoding(self.integer("<I"))
        if shape[-1] % ENCODINGS[encoding].block_elements:
            raise self.error(
                f"has rows of {shape[-1]:,} elements, where {encoding} has blocks of "
                f"{ENCODINGS[encoding].block_elements}"
            )
        offset = self.integer("<Q")
        if offset % alignment:
            raise self.error(f"lies at the offset {offset:,}, which is no multiple of {alignment:,}")
        return shape, encoding, offset

    def _encoding(self, code: int) -> str:
        if code in gguf_blocks.NAMES:
            return gguf_blocks.NAMES[code]
        if code in _UNREAD:
            raise UnsupportedFormatError(
                f"is written as {_UNREAD[code]}, which Educe does not read",
                place=self._what,
                remedy=f"quantise the model to one of {', '.join(gguf_blocks.NAMES.values())}",
            )
        raise self.error(f"has the type {code:,}, which GGUF does not define")

    def _weight(self, name: str, start: int, shape: tuple[int, ...], encoding: str, offset: int) -> Weight:
        size, first, end = size_in_bytes(shape, encoding), start + offset, self._array_of_all.size
        if first + size > end:
            raise ModelFileError(
                f"takes {size:,} bytes from byte {first:,} on, but the file ends at {end:,}",
                place=f"tensor {shown(name)}",
                remedy=_AGAIN,
            )
        return Weight(name, shape, encoding, self._array_of_all[first : first + size])

    def _refuse_count(self, count: int, what: str, smallest: int, most: int | None = None) -> None:
        """Refuse a count of things of at least `smallest` bytes that the rest of the file cannot hold."""
        possible = self.remaining // smallest
        if count > possible:
            raise self.error(f"has {count:,} {what}, but the rest of the file holds at most {possible:,}")
        if most is not None and count > most:
            raise self.error(f"has {count:,} {what}, where at most {most:,} are read")

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        outer, self._what = self._what, f"metadata {shown(key)}"
        yield
        self._what = outer


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise ModelFileError(
            f"is {shown(alignment)}, where a power of two from 8 on is expected",
            place="metadata 'general.alignment'",
            remedy=_AGAIN,
        )
    return alignment


def _refuse_overlaps(found: Mapping[str, tuple[tuple[int, ...], str, int]]) -> None:
    end, before = 0, ""
    for name, (shape, encoding, offset) in sorted(found.items(), key=lambda item: item[1][2]):
        if offset < end:
            raise ModelFileError(
                f"begins at the offset {offset:,}, inside tensor {shown(before)}, which ends at {end:,}",
                place=f"tensor {shown(name)}",
                remedy=_AGAIN,
            )
        end, before = offset + size_in_bytes(shape, encoding), name
