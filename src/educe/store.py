"""The store: what was computed once and is kept on disk, found by the content of its key.

An entry is one file: a line of JSON with the key and the checksum of the content, then the content. It is
written beside its place and moved there, so that other processes see all of it or nothing. Entries that are
damaged count as missing. When the store grows over its bound, those not used for longest go.

Small content, such as machine code, is read and has a SHA-256. Large content, such as packed weights, is
mapped, and shared by all processes that use it. Its checksum is the sum of its 64-bit words, which takes no
longer than reading them does: it finds lost pages and altered bits, whatever a disk or a crash does. Neither
checksum keeps out who can write to the folder, who could as well exchange the code; it is the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, TypeAlias

import msgspec

from educe.settings import CACHE, CACHE_BYTES

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger("educe.store")

Write: TypeAlias = "Callable[[int, np.ndarray], None]"
"""Writes an array into content, from a byte on; several threads may at once."""

_PAGE = 4096
_OFF = "off"
# The folder is measured when another such part of its bound was written.
_CHECKS = 50
_MAX_HEADER_BYTES = 64 * 1024
# The checksum's.
_WORD_BYTES = 8


@dataclass(frozen=True)
class Key:
    """What an entry depends on, as a named list.

    Attributes:
        kind: What sort of thing it is, such as ``kernel``.
        name: What it is called, for people; entries of one name differ in their ingredients.
        ingredients: Everything that decides the content, by name.
    """

    kind: str
    name: str
    ingredients: tuple[tuple[str, str], ...]

    @cached_property
    def digest(self) -> str:
        """The hash of kind, name and ingredients."""
        return hashlib.sha256(json.dumps([self.kind, self.name, self.ingredients]).encode()).hexdigest()[:32]


class _Header(msgspec.Struct):
    """The first line of an entry."""

    kind: str
    name: str
    ingredients: tuple[tuple[str, str], ...]
    digest: str
    sha256: str = ""
    sum64: str = ""

    @classmethod
    def of(cls, line: bytes) -> _Header:
        """Return what `line` says; `ValueError` if it is no header."""
        try:
            return msgspec.json.decode(line, type=cls)
        except RecursionError:
            raise ValueError("nested too deeply") from None


@dataclass(frozen=True)
class Entry:
    """One file of the store."""

    path: Path
    key: Key
    size_bytes: int


class Store:
    """A folder of entries, safe to share between processes.

    Args:
        root: The folder; it is made when the first entry is written.
        max_bytes: The bound on the size of all entries together.

    Attributes:
        num_missing: How often this process asked any store for what it did not have whole.
    """

    num_missing: ClassVar[int] = 0

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._unchecked_bytes = max_bytes
        self._is_refused = False

    def get(self, key: Key) -> bytes | None:
        """Return the content under `key`, or None if there is none, or none that is whole."""
        path = self._path(key)
        try:
            line, _, content = path.read_bytes().partition(b"\n")
            header = _Header.of(line)
            if header.digest != key.digest or header.sha256 != hashlib.sha256(content).hexdigest():
                raise ValueError("damaged")
        except (FileNotFoundError, NotADirectoryError):
            LOG.debug("miss %s %s: %s", key.kind, key.name, dict(key.ingredients))
            Store.num_missing += 1
            return None
        except (OSError, ValueError) as fault:
            LOG.warning("%s is not usable and is made again: %s", path, fault)
            Store.num_missing += 1
            return None
        LOG.debug("hit %s %s", key.kind, key.name)
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, key: Key, content: bytes) -> None:
        """Keep `content` under `key`; a store that cannot be written is left as it is, with a log entry."""
        checksum = hashlib.sha256(content).hexdigest()
        header = _Header(key.kind, key.name, key.ingredients, key.digest, checksum)
        try:
            with _replacing(self._path(key)) as file:
                file.write(msgspec.json.encode(header) + b"\n" + content)
            self._count(len(content))
        except OSError as fault:
            self._refuse(fault)

    def mapped(self, key: Key, size_bytes: int, make: Callable[[Write], None]) -> np.ndarray | None:
        """Return the content under `key`, u8[size_bytes], mapped; it is made first if there is none whole.

        Args:
            key: The key.
            size_bytes: Its size, a multiple of 8.
            make: Writes all of it; what it does not write is 0.

        Returns:
            The content, whose first byte begins a page; None if it cannot be kept.
        """
        path = self._path(key)
        found = _mapped(path, key, size_bytes)
        if found is not None:
            LOG.debug("hit %s %s", key.kind, key.name)
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
        if size_bytes > self.max_bytes:
            LOG.info("%s %s is larger than the store, and not kept", key.kind, key.name)
            return None
        try:
            with _alone(path.parent):
                found = _mapped(path, key, size_bytes)
                if found is not None:  # another process has made it
                    return found
                Store.num_missing += 1
                with _replacing(path) as file:
                    _write_mapped(file, key, size_bytes, make)
            self._count(size_bytes)
            return _mapped(path, key, size_bytes)
        except OSError as fault:
            self._refuse(fault)
            return None

    def interned(self, array: np.ndarray) -> np.ndarray | None:
        """Return an array like `array` that is mapped, and in memory once for all processes that intern it.

        It is found by its own content, read-only, and begins a page. None is returned if it cannot be kept.
        """
        import numpy as np

        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        ingredients = (
            ("sha256", hashlib.sha256(content.data).hexdigest()),
            ("dtype", str(array.dtype)),
            ("shape", str(array.shape)),
        )
        size_bytes = -(-content.nbytes // _WORD_BYTES) * _WORD_BYTES
        key = Key("constant", f"{array.dtype}{list(array.shape)}", ingredients)
        found = self.mapped(key, size_bytes, lambda write: write(0, content))
        return None if found is None else found[: content.nbytes].view(array.dtype).reshape(array.shape)

    def _count(self, written_bytes: int) -> None:
        """Keep to the bound after so much was written."""
        self._unchecked_bytes += written_bytes
        if self._unchecked_bytes > self.max_bytes // _CHECKS:
            self._shrink()
            self._unchecked_bytes = 0

    def _refuse(self, fault: OSError) -> None:
        if not self._is_refused:
            name = CACHE.variable
            LOG.warning("what was made cannot be kept: %s; set %s to a folder, or off", fault, name)
        self._is_refused = True

    def entries(self) -> list[Entry]:
        """Return every entry, the one used last first."""
        found = []
        for path, size, _ in sorted(self._files(), key=lambda file: -file[2]):
            with contextlib.suppress(OSError, ValueError):
                key = _key(path)
                if path.name == key.digest:
                    found.append(Entry(path, key, size))
        return found

    def clear(self) -> int:
        """Remove every entry and return how many there were."""
        removed = 0
        for path, _, _ in self._files():
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        return removed

    def explain(self, key: Key) -> str:
        """Say in one sentence whether `key` is there, and if not, what differs from the nearest entry."""
        if self._path(key).exists():
            return "stored"
        wanted = dict(key.ingredients)
        nearest: dict[str, str] | None = None
        for entry in self.entries():
            if (entry.key.kind, entry.key.name) == (key.kind, key.name):
                other = dict(entry.key.ingredients)
                changed = {name: other.get(name, "") for name in wanted if other.get(name) != wanted[name]}
                if nearest is None or len(changed) < len(nearest):
                    nearest = changed
        if nearest is None:
            return "never made"
        changes = (f"{name} was {old!r}, is {wanted[name]!r}" for name, old in nearest.items())
        return f"made again: {'; '.join(changes)}"

    def _path(self, key: Key) -> Path:
        return self.root / key.kind / key.digest[:2] / key.digest

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Yield the path, size and time of last use of each entry."""
        for path in self.root.glob("*/??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                yield path, status.st_size, status.st_mtime

    def _shrink(self) -> None:
        files = sorted(self._files(), key=lambda file: file[2])
        total = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have no other process make large content in a folder, so that all map the one that is made first."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, which is moved to `path` when all went well, and removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        written = Path(file.name)
        try:
            yield file.file
            file.close()
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise


def _write_mapped(file: IO[bytes], key: Key, size_bytes: int, make: Callable[[Write], None]) -> None:
    """Write an entry whose content begins a page."""
    header = _Header(key.kind, key.name, key.ingredients, key.digest, sum64=f"{0:016x}")
    first = -(-(len(msgspec.json.encode(header)) + 1) // _PAGE) * _PAGE
    lock = threading.Lock()

    def write(place: int, array: np.ndarray) -> None:
        with lock:
            file.seek(first + place)
            file.write(array.data)

    file.truncate(first + size_bytes)
    make(write)
    file.flush()
    header.sum64 = _sum64(_map(file, first, size_bytes))
    file.seek(0)
    file.write(msgspec.json.encode(header).ljust(first - 1) + b"\n")


def _mapped(path: Path, key: Key, size_bytes: int) -> np.ndarray | None:
    """Return the content of an entry that was written so, or None if it is missing or not whole."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MAX_HEADER_BYTES)
            header = _Header.of(line)
            if header.digest != key.digest or os.fstat(file.fileno()).st_size != len(line) + size_bytes:
                raise ValueError("damaged")
            content = _map(file, len(line), size_bytes)
        if header.sum64 != _sum64(content):
            raise ValueError("damaged")
    except (FileNotFoundError, NotADirectoryError):
        LOG.debug("miss %s %s: %s", key.kind, key.name, dict(key.ingredients))
        return None
    except (OSError, ValueError) as fault:
        LOG.warning("%s is not usable and is made again: %s", path, fault)
        return None
    return content


def _map(file: IO[bytes], first: int, size_bytes: int) -> np.ndarray:
    import numpy as np

    content = mmap.mmap(file.fileno(), first + size_bytes, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.uint8, size_bytes, first)


def _sum64(content: np.ndarray) -> str:
    import numpy as np

    return f"{int(np.add.reduce(content.view(np.uint64))):016x}"


def _key(path: Path) -> Key:
    with path.open("rb") as file:
        header = _Header.of(file.readline(_MAX_HEADER_BYTES))
    return Key(header.kind, header.name, header.ingredients)


@cache
def source_hash(*places: Path) -> str:
    """Return the hash of Python sources: of files, and of all files below folders.

    It is an ingredient of the keys of what these sources make, so that an edit of them has it made again.
    """
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def store() -> Store | None:
    """Return the store that the settings choose, or None if they choose none.

    Raises:
        OptionError: the bound is not a number of bytes.
    """
    root = folder()
    return None if root is None else _opened(root, max_bytes())


def folder() -> Path | None:
    """Return the folder that the settings choose, or None if they choose none, or the user has no home."""
    chosen = CACHE.value()
    if chosen == _OFF:
        return None
    return Path(chosen) if chosen else _user_folder()


def max_bytes() -> int:
    """Return the bound on the size of the store that the settings choose.

    Raises:
        OptionError: it is not a number of bytes.
    """
    return CACHE_BYTES.number(0, 2**63 - 1, "bytes", 10**9)


def is_writable(root: Path) -> bool:
    """Say whether entries can be written to `root`, which may have to be made."""
    whole = root.absolute()
    existing = next(path for path in (whole, *whole.parents) if os.access(path, os.F_OK))
    return existing.is_dir() and os.access(existing, os.W_OK)


@cache
def _opened(root: Path, max_bytes: int) -> Store:
    return Store(root, max_bytes)


def _user_folder() -> Path | None:
    """Return the folder of the user's own, or None if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "educe"
    try:
        return Path.home() / ".cache" / "educe"
    except RuntimeError:
        _warn_of_no_home()
        return None


@cache
def _warn_of_no_home() -> None:
    LOG.warning("nothing is kept on disk: there is no home folder; set %s to a folder", CACHE.variable)
