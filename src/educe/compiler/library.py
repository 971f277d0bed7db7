"""The kernels of this process: taken from the store or made at their first use, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from educe.compiler import jit
from educe.compiler.kernel import Kernel
from educe.compiler.loader import Loader
from educe.compiler.target import Target, host_target
from educe.machine import ForkedLock
from educe.store import Key, source_hash, store


class Library:
    """Compiled kernels for one target, by name; shared by every executable of the process."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.num_made = 0
        self._loader = Loader()
        self._addresses: dict[str, int] = {}
        self._kernels: dict[str, Kernel] = {}
        self._lock = ForkedLock()

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Load every kernel that is not loaded yet, made anew if the store does not have it."""
        with self._lock:
            missing = {each.name: each for each in kernels if each.name not in self._addresses}
            if not missing:
                return
            self._loader.load([self._code(kernel) for kernel in missing.values()])
            self._kernels |= missing
            for name in missing:
                self._addresses[name] = self._loader.address(name)

    def address(self, kernel: Kernel) -> int:
        """Return the address of a kernel's code."""
        if kernel.name not in self._addresses:
            self.prepare([kernel])
        return self._addresses[kernel.name]

    def prepared(self, kernel: Kernel) -> Kernel:
        """Return the prepared kernel that is this one, so that programs hold it once."""
        return self._kernels[kernel.name]

    def _code(self, kernel: Kernel) -> bytes:
        def make() -> bytes:
            self.num_made += 1
            return jit.object_code(kernel.text(self.target), self.target)

        return stored(kernel_key(kernel, self.target), make)

    def __len__(self) -> int:
        return len(self._addresses)


def kernel_key(kernel: Kernel, target: Target) -> Key:
    """Return what the code of a kernel depends on."""
    return Key(
        "kernel",
        kernel.name,
        (
            ("template", kernel.template),
            ("choices", str(kernel)),
            ("target", repr(target)),
            *origin(),
        ),
    )


def origin() -> tuple[tuple[str, str], ...]:
    """Return what all code depends on: the compiler, of which every file may change it, and LLVM."""
    return (("compiler", source_hash(Path(__file__).parent)), ("llvm", jit.llvm_version()))


def stored(key: Key, make: Callable[[], bytes]) -> bytes:
    """Return what the store has under `key`, made and kept if it has nothing."""
    kept = store()
    found = kept.get(key) if kept else None
    if found is None:
        found = make()
        if kept:
            kept.put(key, found)
    return found


@cache
def library(target: Target | None = None) -> Library:
    """Return the process's kernels for `target`."""
    return Library(target or host_target())
