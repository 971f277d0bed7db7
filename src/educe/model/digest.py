"""`Digest`: the hash of a model's content, computed while others go on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

# Less is hashed sooner than a thread is started.
_AT_ONCE_BYTES = 1024 * 1024


class Digest:
    """The SHA-256 (FIPS 180-4) of parts of content, one after the other.

    Much content is hashed by a thread of its own, which lets that of the caller go on.

    Args:
        parts: What nobody modifies; it is held until it is hashed.
    """

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = parts
        self._found = ""
        self._thread: threading.Thread | None = None
        if sum(memoryview(part).nbytes for part in parts) < _AT_ONCE_BYTES:
            self._compute()
        else:
            self._thread = threading.Thread(target=self._compute, name="educe-digest", daemon=True)
            self._thread.start()

    def hexdigest(self) -> str:
        """Return the hash as hexadecimal digits, once it is known."""
        if self._thread is not None:
            self._thread.join()
        # A forked child has the parent's thread no longer.
        return self._found or self._compute()

    def _compute(self) -> str:
        parts = self._parts
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        if not self._found:
            self._found = digest.hexdigest()
            self._parts = ()
        return self._found
