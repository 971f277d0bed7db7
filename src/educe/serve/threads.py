"""`aside`: long work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_LARGE_BYTES = 2**18
T = TypeVar("T")


async def aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Return what `work` makes of so many bytes: in a thread, if others would have to wait for it long."""
    return work() if size_bytes < _LARGE_BYTES else await asyncio.to_thread(work)
