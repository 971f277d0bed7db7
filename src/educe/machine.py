"""What this process may use of its machine: cores and memory, as affinity and control groups bound them.

And what outlives forking: locks, and all else that is renewed in the child.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol
from weakref import WeakSet

_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may keep busy: by its affinity, and its quota rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def quota_cores() -> float | None:
    """Return the lowest quota of this process's control group and those above it (cgroup v2, else v1)."""
    quotas = []
    for folder in _cgroup_folders():
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if quota.isdecimal() and period.strip().isdecimal():
            quotas.append(int(quota) / int(period))
    old = _CGROUP_ROOT / "cpu"
    quota, period = (
        (read_text(old / "cpu.cfs_quota_us") or "").strip(),
        (read_text(old / "cpu.cfs_period_us") or "").strip(),
    )
    if quota.isdecimal() and period.isdecimal():
        quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_bytes() -> int | None:
    """Return the memory of the machine, or the bound of a control group if that is lower."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    bounds = [read_text(folder / "memory.max") or "" for folder in _cgroup_folders()]
    sizes += [int(bound) for bound in bounds if bound.strip().isdecimal()]
    return min(sizes, default=None)


def read_text(path: Path) -> str | None:
    """Return what the file at `path` holds, or None if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return None


def _cgroup_folders() -> Iterator[Path]:
    yield _CGROUP_ROOT
    for line in (read_text(_CGROUP) or "").splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0":
            relative = PurePosixPath(path.lstrip("/"))
            for folder in (relative, *relative.parents):
                if folder.parts and ".." not in folder.parts:
                    yield _CGROUP_ROOT / folder


class Renewable(Protocol):
    """What a forked child has to make anew, because threads of its parent were part of it."""

    def renew(self) -> None:
        """Begin anew, whatever other threads were doing."""


def renew_when_forked(owner: Renewable) -> None:
    """Have `owner` renewed in every forked child, as long as it lives."""
    _RENEWABLE.add(owner)


class ForkedLock:
    """A reentrant lock that a forked child finds open, whichever thread of its parent held it.

    That thread is not in the child, so that nobody would ever open the lock.
    """

    def __init__(self) -> None:
        self.renew()
        renew_when_forked(self)

    def renew(self) -> None:
        """Have a new lock, which nobody holds."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        # The thread that forked may have held the lock of its parent.
        with suppress(RuntimeError):
            self._lock.release()


_RENEWABLE: WeakSet[Renewable] = WeakSet()


def _renew_all() -> None:
    for owner in tuple(_RENEWABLE):
        owner.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
