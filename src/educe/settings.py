"""Declared settings: what the environment may set, each in one place, read once when asked.

A value given in code or on the command line comes first, then the environment, then the default.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from educe.errors import OptionError


@dataclass(frozen=True)
class Setting:
    """One environment variable that Educe reads."""

    variable: str
    default: str
    meaning: str

    def value(self) -> str:
        """Return the environment's value, or the default."""
        return os.environ.get(self.variable, self.default)


ENGINE = Setting("EDUCE_ENGINE", "onnxruntime", "the engine used when none is named")
THREADS = Setting("EDUCE_THREADS", "", "threads of an engine; empty means one per usable core")
TRACEBACK = Setting("EDUCE_TRACEBACK", "", "anything but empty prints the traceback of an internal fault")

ALL = (ENGINE, THREADS, TRACEBACK)
"""Every setting."""


def usable_cores() -> int:
    """Return how many cores this process may run on: its affinity, not the machine's count."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def resolve_threads(threads: int | None) -> int:
    """Return `threads` if given, else the setting, else one per usable core.

    Raises:
        OptionError: the number is not a positive integer.
    """
    if threads is None:
        text = THREADS.value()
        if not text:
            return usable_cores()
        if not text.isdecimal() or int(text) < 1:
            raise OptionError(
                f"{THREADS.variable}={text!r} is not a positive integer",
                remedy=f"unset {THREADS.variable}, or set it to a number such as 2",
            )
        return int(text)
    if threads < 1:
        raise OptionError(f"threads={threads} is not a positive integer", remedy="use 1 or more")
    return threads
