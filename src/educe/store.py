"""The store: what was computed once and is kept on disk, found by the content of its key.

An entry is one file: a line of JSON with the key and the checksum of the content, then the content. It is
written beside its place and moved there, so that other processes see all of it or nothing. Entries that are
damaged count as missing. When the store grows over its bound, those not used for longest go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from educe.errors import OptionError
from educe.settings import CACHE, CACHE_BYTES

LOG = logging.getLogger("educe.store")
_OFF = "off"
# The folder is measured when another such part of its bound was written.
_CHECKS = 50
_MAX_HEADER_BYTES = 64 * 1024


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
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._unchecked_bytes = max_bytes
        self._is_refused = False

    def get(self, key: Key) -> bytes | None:
        """Return the content under `key`, or None if there is none, or none that is whole."""
        path = self._path(key)
        try:
            header, _, content = path.read_bytes().partition(b"\n")
            fields = json.loads(header)
            if fields["digest"] != key.digest or fields["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError("damaged")
        except (FileNotFoundError, NotADirectoryError):
            LOG.debug("miss %s %s: %s", key.kind, key.name, dict(key.ingredients))
            return None
        except (OSError, ValueError, KeyError, TypeError) as fault:
            LOG.warning("%s is not usable and is made again: %s", path, fault)
            return None
        LOG.debug("hit %s %s", key.kind, key.name)
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, key: Key, content: bytes) -> None:
        """Keep `content` under `key`; a store that cannot be written is left as it is, with a log entry."""
        header = {
            "kind": key.kind,
            "name": key.name,
            "ingredients": key.ingredients,
            "digest": key.digest,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
                file.write(json.dumps(header).encode() + b"\n" + content)
            Path(file.name).replace(path)
            self._unchecked_bytes += len(content)
            if self._unchecked_bytes > self.max_bytes // _CHECKS:
                self._shrink()
                self._unchecked_bytes = 0
        except OSError as fault:
            if not self._is_refused:
                name = CACHE.variable
                LOG.warning("compiled code cannot be kept: %s; set %s to a folder, or off", fault, name)
            self._is_refused = True

    def entries(self) -> list[Entry]:
        """Return every entry, the one used last first."""
        found = []
        for path, size, _ in sorted(self._files(), key=lambda file: -file[2]):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(Entry(path, _key(path), size))
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


def _key(path: Path) -> Key:
    with path.open("rb") as file:
        fields = json.loads(file.readline(_MAX_HEADER_BYTES))
    return Key(fields["kind"], fields["name"], tuple((name, value) for name, value in fields["ingredients"]))


def store() -> Store | None:
    """Return the store that the settings choose, or None if they choose none.

    Raises:
        OptionError: the bound is not a number of bytes.
    """
    chosen = CACHE.value()
    if chosen == _OFF:
        return None
    bound = CACHE_BYTES.value()
    if not bound.isdecimal():
        raise OptionError(
            f"{CACHE_BYTES.variable}={bound!r} is not a number of bytes",
            remedy=f"unset {CACHE_BYTES.variable}, or set it to a number such as 1000000000",
        )
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _opened(Path(chosen) if chosen else base / "educe", int(bound))


@cache
def _opened(root: Path, max_bytes: int) -> Store:
    return Store(root, max_bytes)
