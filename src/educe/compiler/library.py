"""The kernels of this process: made at their first use, and kept."""

from __future__ import annotations

import threading
from functools import cache

from educe.compiler import jit
from educe.compiler.kernel import Kernel
from educe.compiler.target import Target, host_target


class Library:
    """Compiled kernels for one target, by name; shared by every executable of the process."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._loader = jit.Loader(target)
        self._addresses: dict[str, int] = {}
        self._lock = threading.Lock()

    def address(self, kernel: Kernel) -> int:
        """Return the address of a kernel's code."""
        name = kernel.name
        known = self._addresses.get(name)
        if known is not None:
            return known
        with self._lock:
            if name not in self._addresses:
                self._loader.load({name: jit.object_code(kernel.text(self.target), self.target)})
                self._addresses[name] = self._loader.address(name)
            return self._addresses[name]

    def __len__(self) -> int:
        return len(self._addresses)


@cache
def library(target: Target | None = None) -> Library:
    """Return the process's kernels for `target`."""
    return Library(target or host_target())
