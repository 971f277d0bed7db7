"""Memory beside that of NumPy and the C library: large arrays of their own, and what is given back."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

ALIGNMENT = 64
"""The first byte of an array is on a cache line."""

_OWN_BYTES = 1024 * 1024


def empty(shape: int | Sequence[int], dtype: np.dtype[Any] | type) -> np.ndarray:
    """Return a new contiguous array, whose content is whatever it is.

    NumPy has the system make large arrays of huge pages. Where memory is scarce or shared, making one costs
    several times what it saves, so that a weight would take longer to move than to read: large arrays lie on
    ordinary pages here, which the system gives all at once.

    Raises:
        MemoryError: the system gives no such memory.
    """
    return _empty(shape, dtype, getattr(mmap, "MAP_POPULATE", 0))


def reserved(shape: int | Sequence[int], dtype: np.dtype[Any] | type) -> np.ndarray:
    """Return an array as `empty` does, of which the system gives each page when it is first written.

    Raises:
        MemoryError: the system gives no such addresses.
    """
    return _empty(shape, dtype, getattr(mmap, "MAP_NORESERVE", 0))


def _empty(shape: int | Sequence[int], dtype: np.dtype[Any] | type, flags: int) -> np.ndarray:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    size_bytes = math.prod(sizes) * dtype.itemsize
    if size_bytes < _OWN_BYTES:
        memory = np.empty(size_bytes + ALIGNMENT, np.uint8)
        start = -memory.__array_interface__["data"][0] % ALIGNMENT
        return memory[start : start + size_bytes].view(dtype).reshape(sizes)
    flags |= mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return np.frombuffer(mmap.mmap(-1, size_bytes, flags=flags), dtype).reshape(sizes)
    except (OSError, OverflowError) as fault:
        raise MemoryError(f"{size_bytes} bytes: {fault}") from None


def trim() -> None:
    """Give memory that was freed back to the system, where the C library would keep it for later."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def forget(array: np.ndarray) -> None:
    """Let the system have the memory of an array that is mapped from a file; it is read again when used.

    Nothing happens to any other array.
    """
    owner: Any = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not (isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and memoryview(owner).readonly):
        return
    first = np.frombuffer(owner, np.uint8).ctypes.data
    start = (array.ctypes.data - first) // mmap.PAGESIZE * mmap.PAGESIZE
    stop = min(array.ctypes.data - first + array.nbytes, len(owner))
    owner.madvise(mmap.MADV_DONTNEED, start, stop - start)
