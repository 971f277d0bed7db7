"""Addresses that the loader writes into AArch64 code are those that the system's linker writes."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from educe.compiler import loader
from educe.compiler.jit import object_code
from educe.compiler.target import TARGETS

LINKER, COPIER = "aarch64-linux-gnu-ld", "aarch64-linux-gnu-objcopy"
pytestmark = pytest.mark.skipif(
    not (shutil.which(LINKER) and shutil.which(COPIER)), reason=f"needs {LINKER} and {COPIER}"
)

BASE = 0x7F12_3456_7000
OUTSIDE = BASE + 0x12_3450
CODE = """
@bytes = internal constant [5000 x i8] c"\\01{zeros}", align 1
@table = internal constant [3 x i8] c"abc", align 1
@halves = internal global [3 x i16] [i16 1, i16 2, i16 3], align 2
@words = internal global [3 x i32] [i32 1, i32 2, i32 3], align 4
@longs = internal global [3 x i64] [i64 1, i64 2, i64 3], align 8
@vectors = internal global [2 x <4 x i32>] [<4 x i32> splat (i32 1), <4 x i32> splat (i32 2)], align 16
@here = constant i32 trunc (i64 sub (i64 ptrtoint (ptr @code to i64), i64 ptrtoint (ptr @here to i64)) to i32)
declare void @outer(ptr)
define void @code(ptr %to) #0 {{
  %byte = load volatile i8, ptr getelementptr (i8, ptr @bytes, i64 4321)
  %half = load volatile i16, ptr getelementptr (i16, ptr @halves, i64 1)
  %word = load volatile i32, ptr getelementptr (i32, ptr @words, i64 1)
  %long = load volatile i64, ptr getelementptr (i64, ptr @longs, i64 1)
  %vector = load volatile <4 x i32>, ptr getelementptr (<4 x i32>, ptr @vectors, i64 1)
  store ptr @table, ptr %to
  call void @outer(ptr %to)
  tail call void @outer(ptr %to)
  ret void
}}
"""


def test_addresses_are_those_of_the_linker(tmp_path: Path):
    content = object_code(CODE.format(zeros="\\00" * 4999), TARGETS["neon"])
    file = loader.ObjectFile(content)
    kinds = {kind for _, _, kind, _, _ in file.relocations()}
    assert kinds == {*loader._BRANCHES, loader._PAGE_OF, *loader._WITHIN_PAGE, 261}

    own, end = {}, 0x1230
    for index, section in enumerate(file.sections):
        if section.flags & loader._ALLOC:
            own[index] = -(-end // section.alignment) * section.alignment
            end = own[index] + section.size
    region = bytearray(end)
    loader._place(file, own, region, BASE, {"outer": OUTSIDE})
    first = min(own.values())
    assert bytes(region[first:]) == linked(file, own, tmp_path)[: end - first]


def linked(file: loader.ObjectFile, own: dict[int, int], folder: Path) -> bytes:
    """Return the memory of `file` as the linker fills it, with its sections where `own` says."""
    (folder / "code.o").write_bytes(file.content)
    parts = [f".s{index} {BASE + place:#x} : {{ *({name(file, index)}) }}" for index, place in own.items()]
    (folder / "script").write_text(f"SECTIONS {{ {' '.join(parts)} }}")
    options = ["--no-relax", f"--defsym=outer={OUTSIDE:#x}", "--entry=code", "-T", "script"]
    subprocess.run([LINKER, *options, "-o", "program", "code.o"], check=True, cwd=folder)
    subprocess.run([COPIER, "-O", "binary", "program", "memory"], check=True, cwd=folder)
    return (folder / "memory").read_bytes()


def name(file: loader.ObjectFile, index: int) -> str:
    """Return the name of a section."""
    headers, size, names = struct.unpack_from("<Q10xH2xH", file.content, 40)
    (start,) = struct.unpack_from("<I", file.content, headers + index * size)
    start += file.sections[names].offset
    return file.content[start : file.content.index(b"\0", start)].decode()
