"""Memory: where every buffer of a segment lies in its arena, and copies of constants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from educe.compiler.tensor import Buffer
from educe.machine import usable_cores
from educe.pages import ALIGNMENT, empty
from educe.store import store

PAGE = 4096

# Smaller arrays are copied sooner than threads are started.
_COPIED_ALONE_BYTES = 2 * 1024 * 1024
# Smaller arrays are not worth a file.
_SHARED_BYTES = 64 * 1024


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of `array` that starts on a cache line; a large one is made by all cores."""
    copy = empty(array.shape, array.dtype)
    cores = 1 if array.nbytes < _COPIED_ALONE_BYTES else usable_cores()
    if cores == 1:
        copy[...] = array
        return copy
    axis = int(np.argmax(array.shape))
    parts = [np.array_split(each, cores, axis) for each in (copy, array)]
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(np.copyto, *parts))
    return copy


def shared(array: np.ndarray) -> np.ndarray:
    """Return a copy of `array` as `aligned` does; a large one is in memory once for all processes."""
    found = interned(array)
    return aligned(array) if found is None else found


def interned(array: np.ndarray) -> np.ndarray | None:
    """Return a large array as all processes have it in memory once; None if it is small or not kept."""
    kept = store() if array.nbytes >= _SHARED_BYTES else None
    return None if kept is None else kept.interned(array)


@dataclass
class Life:
    """A buffer with the first and last launch that touch it."""

    buffer: Buffer
    first: int
    last: int


def plan(lives: Sequence[Life], guarded: bool = False) -> int:
    """Give each buffer its offset and return the size of the arena.

    The largest buffers are placed first, each at the lowest offset where it meets no buffer that lives at
    the same time (greedy by size; Pisarchyk and Lee, 2020, arxiv.org/abs/2001.03288).

    Args:
        lives: The buffers, with their times.
        guarded: Give each buffer pages of its own, ended by a page that nobody may touch; see `guard_pages`.
    """
    if guarded:
        return _plan_guarded(lives)
    placed: list[Life] = []
    total = 0
    for life in sorted(lives, key=lambda life: (-life.buffer.size_bytes, life.first)):
        needed = _rounded(life.buffer.size_bytes, ALIGNMENT)
        offset = 0
        for other in placed:
            if other.first > life.last or life.first > other.last:
                continue
            if offset + needed <= other.buffer.offset:
                break
            offset = max(offset, other.buffer.offset + _rounded(other.buffer.size_bytes, ALIGNMENT))
        life.buffer.offset = offset
        total = max(total, offset + needed)
        index = len(placed)
        while index and placed[index - 1].buffer.offset > offset:
            index -= 1
        placed.insert(index, life)
    return total


def _plan_guarded(lives: Iterable[Life]) -> int:
    offset = PAGE
    for life in lives:
        pages = _rounded(max(life.buffer.size_bytes, 1), PAGE)
        life.buffer.offset = offset + pages - life.buffer.size_bytes
        offset += pages + PAGE
    return offset


def guard_pages(buffers: Iterable[Buffer]) -> list[int]:
    """Return the offsets of the pages around the buffers of a guarded plan."""
    return [0, *(buffer.offset + buffer.size_bytes for buffer in buffers)]


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
