"""How long a thread's turns at the processor are."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The numbers of sched_setattr and, behind it, sched_getattr.
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_USUAL_POLICY = 0
_RESET_ON_FORK = 1
_SHORT_NS = 100_000  # the shortest that there are


class _Attributes(ctypes.Structure):
    """How a thread is scheduled; `runtime` is how long its turns are, in nanoseconds."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


@contextmanager
def short_turns() -> Iterator[None]:
    """Have this thread's turns at the processor be short meanwhile, but not those of threads that it begins.

    Who asks for less at a time is served sooner where more threads compute than there are processors; its
    share is the same. So an event loop does not wait for a turn of each thread that runs models. Linux 6.12
    and later take the wish, of any user; nothing is done where it is not known. Source: Stoica and
    Abdel-Wahab, Earliest Eligible Virtual Deadline First, 1995; sched_setattr(2).

    Threads that it begins later do not inherit how it is scheduled either: only root could take that back.
    """
    machine = os.uname().machine if sys.platform == "linux" else ""
    if machine not in _CALLS:
        yield
        return
    change, read = _CALLS[machine]
    system, this_thread = ctypes.CDLL(None).syscall, 0
    attributes = _Attributes()
    found = system(read, this_thread, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if found != 0 or attributes.policy != _USUAL_POLICY:
        yield
        return
    attributes.flags |= _RESET_ON_FORK
    before, attributes.runtime = attributes.runtime, _SHORT_NS
    system(change, this_thread, ctypes.byref(attributes), 0)
    try:
        yield
    finally:
        attributes.runtime = before
        system(change, this_thread, ctypes.byref(attributes), 0)
