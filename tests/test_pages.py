"""Memory that is mapped, and what is given back of it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from educe import pages


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_what_is_mapped_from_a_file_is_forgotten_and_read_again(tmp_path: Path, rng) -> None:
    content = rng.integers(0, 256, 64 << 20, dtype=np.uint8)
    path = tmp_path / "content"
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    part = mapped[4097:-3].view()
    assert int(part.sum()) == int(content[4097:-3].sum())
    before = resident_bytes()
    pages.forget(part)
    assert resident_bytes() < before - (48 << 20)
    np.testing.assert_array_equal(mapped, content)


def test_what_is_not_mapped_from_a_file_is_kept(rng) -> None:
    own = pages.empty(4 << 20, np.uint8)
    own[:] = rng.integers(0, 256, own.size, dtype=np.uint8)
    copy = own.copy()
    for array in (own, own[100:], own.view(np.float32), copy, np.zeros(0, np.uint8)):
        pages.forget(array)
    pages.trim()
    np.testing.assert_array_equal(own, copy)


def test_what_is_reserved_takes_memory_when_it_is_written() -> None:
    before = resident_bytes()
    reserved = pages.reserved((64, 1 << 20), np.uint8)
    assert resident_bytes() < before + (16 << 20)
    reserved[:32] = 1
    assert before + (30 << 20) < resident_bytes() < before + (48 << 20)
