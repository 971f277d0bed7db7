"""The command line `educe`, which tells what it keeps whenever a line comes to its input::

    python -m benchmarks.weighed serve zoo/breast_cancer

Linux with glibc only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
import threading


class _Mallinfo2(ctypes.Structure):
    """What the C library tells of its heaps."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def kept() -> dict[str, int]:
    """Return what is kept, after what is free went back to the system.

    Returns:
        ``bytes`` of the C library that are in use, and ``blocks`` of Python that are; Python's small blocks
        are none of the library's. ``tasks`` of event loops that are not done, but for those that a server
        begins with.
    """
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo2
    gc.collect()
    tasks = sum(type(each) is asyncio.Task and not each.done() for each in gc.get_objects())
    library.malloc_trim(0)
    found = library.mallinfo2()
    return {"bytes": found.uordblks + found.hblkhd, "blocks": sys.getallocatedblocks(), "tasks": tasks}


def _tell() -> None:
    for _ in sys.stdin:
        print(json.dumps(kept()), flush=True)


def main() -> None:
    """Run the command line."""
    from educe.cli.main import run

    threading.Thread(target=_tell, daemon=True).start()
    run()


if __name__ == "__main__":
    main()
