"""The files of a model's folder: opened beneath it, mapped or read within limits, parsed as strict JSON."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from educe.errors import ModelFileError
from educe.files import open_beneath, stamp
from educe.limits import Limits

_MAX_RANK = 32
_MAX_SIZE = 2**63 - 1


class Folder:
    """A folder whose files are opened by name; nothing outside of it is ever read.

    Links are followed nowhere but in the cache of the Hugging Face Hub; see `educe.files.open_beneath`.

    Attributes:
        path: The folder.
        content: The bytes of the files read so far, by their names.
        stamps: What `educe.files.stamp` says of the files mapped so far, by their names.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.content: dict[str, bytes | memoryview] = {}
        self.stamps: dict[str, str] = {}
        self._limits = limits
        self._mapped_bytes = 0

    def has(self, name: str) -> bool:
        """Say whether there is something called `name`; a dangling link counts."""
        return os.path.lexists(self.path / name)

    def map(self, name: str) -> np.ndarray:
        """Return the bytes of a weight file, u8[n], read-only; they are read when used."""
        with open_beneath(self.path, name) as file:
            content = map_file(file)
            self.stamps[name] = stamp(file)
        self._mapped_bytes += content.size
        self._limits.check("external_bytes", self._mapped_bytes, path=self.path / name)
        self.content[name] = content.data
        return content

    def read(self, name: str, limit: str) -> bytes:
        """Return the content of a small file, which the field of `Limits` called `limit` bounds."""
        with open_beneath(self.path, name) as file:
            self._limits.check(limit, os.fstat(file.fileno()).st_size, path=self.path / name)
            content = file.read()
        self.content[name] = content
        return content

    def read_object(self, name: str, limit: str = "card_bytes") -> dict[str, Any]:
        """Return the JSON object in the file `name`; an empty one if there is no such file."""
        if not self.has(name):
            return {}
        return json_object(self.read(name, limit), path=self.path / name)

    def ordered_content(self) -> list[bytes | memoryview]:
        """Return the bytes of the files read so far, in the order of their names."""
        return [self.content[name] for name in sorted(self.content)]

    def ordered_stamps(self) -> tuple[str, ...]:
        """Return the stamps of the files mapped so far, in the order of their names."""
        return tuple(self.stamps[name] for name in sorted(self.stamps))


def map_file(file: BinaryIO) -> np.ndarray:
    """Return the bytes of an open file, u8[n], read-only, mapped."""
    size_bytes = os.fstat(file.fileno()).st_size
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_bytes else b""
    return np.frombuffer(content, np.uint8)


def json_object(text: bytes, *, path: Path, place: str | None = None) -> dict[str, Any]:
    """Return the JSON object that `text` is, in which no name stands twice.

    Raises:
        ModelFileError: it is no JSON, no object, nested too deeply, or has a name twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        cause = "is nested too deeply"
    except ValueError as fault:
        cause = f"is broken JSON: {str(fault)[:200]}"
    else:
        if isinstance(found, dict):
            return found
        cause = f"is a JSON {type(found).__name__}, not an object"
    raise ModelFileError(cause, path=path, place=place, remedy="download the file again")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {shown(twice)} stands there twice")
    return found


def shown(name: object) -> str:
    """Return a name from a file as an error shows it: quoted, escaped, cut."""
    text = ascii(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Say whether a value from a file is a list of whole numbers that may be sizes."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_RANK
        and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in value)
    )


def integer(fields: Mapping[str, Any], name: str, path: Path, *, most: int = 2**31 - 1) -> int:
    """Return the positive whole number that a configuration has under `name`.

    Raises:
        ModelFileError: there is none, or it is out of range.
    """
    value = fields.get(name)
    if type(value) is not int or not 0 < value <= most:
        raise ModelFileError(
            f"is {shown(value)}, not a whole number from 1 to {most:,}",
            path=path,
            place=f"field {name!r}",
            remedy="use the configuration that came with the weights",
        )
    return value
