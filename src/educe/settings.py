"""Declared settings: what the environment may set, each in one place, read once when asked.

A value given in code or on the command line comes first, then the environment, then the default.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from educe.errors import OptionError
from educe.machine import usable_cores

# As many as a number of 63 bits has.
_MOST_DIGITS = 19


@dataclass(frozen=True)
class Setting:
    """One environment variable that Educe reads."""

    variable: str
    default: str
    meaning: str

    def value(self) -> str:
        """Return the environment's value, or the default."""
        return os.environ.get(self.variable, self.default)

    def number(self, least: int, most: int, what: str, example: int) -> int:
        """Return the value as a whole number, the default's if it is empty.

        Args:
            least: The smallest number that it may be.
            most: The largest.
            what: What it is the number of, for the error.
            example: One that it may be, for the error.

        Raises:
            OptionError: the value is no such number.
        """
        text = self.value() or self.default
        if text.isdecimal() and len(text) <= _MOST_DIGITS and least <= int(text) <= most:
            return int(text)
        raise OptionError(
            f"{self.variable}={text!r} is not a number of {what}",
            remedy=f"unset {self.variable}, or set it to a number such as {example}",
        )


ENGINE = Setting("EDUCE_ENGINE", "native", "the engine used when none is named")
THREADS = Setting("EDUCE_THREADS", "", "threads of an engine; empty means one per usable core")
# More threads than this on any machine only wait for each other, and take long to start.
_MOST_THREADS = 128

TARGET = Setting(
    "EDUCE_TARGET", "", "the instruction set to compile for; empty means the best of this machine"
)
CACHE = Setting(
    "EDUCE_CACHE",
    "",
    "the folder of compiled code and packed weights; empty means the user's own, off means none",
)
CACHE_BYTES = Setting("EDUCE_CACHE_BYTES", "20000000000", "the bound on that folder's size")
SHARE = Setting(
    "EDUCE_SHARE",
    "",
    "anything but empty maps the weights of ONNX models from that folder, once for all processes",
)
GUARD = Setting("EDUCE_GUARD", "", "anything but empty ends a process whose code strays from its buffers")
TRACEBACK = Setting("EDUCE_TRACEBACK", "", "anything but empty prints the traceback of an internal fault")

ALL = (ENGINE, THREADS, TARGET, CACHE, CACHE_BYTES, SHARE, GUARD, TRACEBACK)
"""Every setting."""


def resolve_threads(threads: int | None) -> int:
    """Return `threads` if given, else the setting, else one per usable core.

    Raises:
        OptionError: the number is not a positive integer.
    """
    if threads is None:
        if not THREADS.value():
            return usable_cores()
        return THREADS.number(1, _MOST_THREADS, "threads", 2)
    if threads < 1:
        raise OptionError(f"threads={threads} is not a positive integer", remedy="use 1 or more")
    most = max(_MOST_THREADS, 4 * usable_cores())
    if threads > most:
        raise OptionError(f"threads={threads} is more than {most}", remedy="use one for each core")
    return threads
