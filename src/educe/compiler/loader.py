"""Object files into memory: sections are placed, addresses are written into them, and code may run.

Kernels are small, and need four things of the format (System V ABI, ELF-64 object files): sections, symbols,
relocations relative to their own place, and calls of a few functions of the C library. Doing this here rather
than by LLVM means that a model whose code is stored starts without loading LLVM.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from dataclasses import dataclass
from functools import cache

from educe.errors import InternalError
from educe.machine import ForkedLock

_PAGE = mmap.PAGESIZE
_ALLOC, _NOBITS, _RELA, _SYMTAB = 0x2, 8, 4, 2
_READ_EXECUTE = 5
_STUB_BYTES = 16
_LOW12 = 0xFFF
_LOW26 = 0x3FFFFFF


@dataclass(frozen=True)
class Section:
    """One section of an object file, as its header says."""

    type: int
    flags: int
    offset: int
    size: int
    link: int
    target: int
    alignment: int


class ObjectFile:
    """An object file's sections, symbols and relocations."""

    def __init__(self, content: bytes) -> None:
        if content[:5] != b"\x7fELF\x02":
            raise InternalError("compiled code is not an object file")
        self.content = content
        (start,) = struct.unpack_from("<Q", content, 40)
        size, count = struct.unpack_from("<HH", content, 58)
        self.sections = [self._section(start + index * size) for index in range(count)]
        symbols = next(section for section in self.sections if section.type == _SYMTAB)
        strings = self.sections[symbols.link].offset
        self.symbols = []
        for place in range(symbols.offset, symbols.offset + symbols.size, 24):
            name, _, _, index, value, _ = struct.unpack_from("<IBBHQQ", content, place)
            end = content.index(b"\0", strings + name)
            self.symbols.append((content[strings + name : end].decode(), index, value))

    def _section(self, place: int) -> Section:
        fields = struct.unpack_from("<IIQQQQIIQQ", self.content, place)
        return Section(fields[1], fields[2], fields[4], fields[5], fields[6], fields[7], max(fields[8], 1))

    def relocations(self) -> list[tuple[int, int, int, int, int]]:
        """Return section, offset, type, symbol and addend of every address to write."""
        found = []
        for section in self.sections:
            if section.type != _RELA or not self.sections[section.target].flags & _ALLOC:
                continue
            for place in range(section.offset, section.offset + section.size, 24):
                offset, kind, addend = struct.unpack_from("<QQq", self.content, place)
                found.append((section.target, offset, kind & 0xFFFFFFFF, kind >> 32, addend))
        return found


class Loader:
    """Loaded code, which stays where it is until the process ends: a thread may be in it to the last."""

    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}
        self._lock = ForkedLock()

    def load(self, contents: list[bytes]) -> None:
        """Load object files; their global functions are found by `address`.

        Raises:
            InternalError: a file needs what a kernel never does.
            OSError: the system gives no memory that may be run.
        """
        files = [ObjectFile(content) for content in contents]
        places: list[dict[int, int]] = []
        size = 0
        for file in files:
            own = {}
            for index, section in enumerate(file.sections):
                if section.flags & _ALLOC:
                    size = -(-size // section.alignment) * section.alignment
                    own[index] = size
                    size += section.size
            places.append(own)
        stubs = -(-size // _STUB_BYTES) * _STUB_BYTES
        outside = sorted({name for file in files for name, index, _ in file.symbols if name and index == 0})
        region = mmap.mmap(-1, stubs + _STUB_BYTES * len(outside) + _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(region))
        called = {name: base + stubs + _STUB_BYTES * number for number, name in enumerate(outside)}
        for name, address in called.items():
            place = address - base
            region[place : place + _STUB_BYTES] = _stub(_outside(name))
        for file, own in zip(files, places, strict=True):
            _place(file, own, region, base, called)
        _protect(base, len(region))
        keep(region)
        with self._lock:
            for file, own in zip(files, places, strict=True):
                for name, index, value in file.symbols:
                    if name and index in own:
                        self._addresses[name] = base + own[index] + value

    def address(self, name: str) -> int:
        """Return the address of a loaded function."""
        return self._addresses[name]


def keep(thing: object) -> None:
    """Never let `thing` be freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _place(
    file: ObjectFile, own: dict[int, int], region: mmap.mmap, base: int, called: dict[str, int]
) -> None:
    """Copy a file's sections into `region` and write the addresses into them."""
    for index, place in own.items():
        section = file.sections[index]
        if section.type != _NOBITS:
            region[place : place + section.size] = file.content[
                section.offset : section.offset + section.size
            ]
    for index, offset, kind, symbol, addend in file.relocations():
        name, home, value = file.symbols[symbol]
        address = called[name] if home == 0 else base + own[home] + value
        place = own[index] + offset
        _write(region, place, base + place, kind, address + addend)


def _write(region: mmap.mmap, place: int, here: int, kind: int, address: int) -> None:
    """Write `address` at `place` in the way that a relocation of `kind` says; `here` is that place's own."""
    (old,) = struct.unpack_from("<I", region, place)
    if kind in _RELATIVE_32:
        struct.pack_into("<i", region, place, address - here)
    elif kind in _BRANCHES:
        struct.pack_into("<I", region, place, old | (address - here >> 2 & _LOW26))
    elif kind == _PAGE_OF:
        pages = (address & ~_LOW12) - (here & ~_LOW12) >> 12
        struct.pack_into("<I", region, place, old | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5)
    elif kind in _WITHIN_PAGE:
        struct.pack_into("<I", region, place, old | ((address & _LOW12) >> _WITHIN_PAGE[kind]) << 10)
    else:
        raise InternalError(f"compiled code has an address of the unknown kind {kind}")


# Relocation types: R_X86_64_PC32 and _PLT32, R_AARCH64_PREL32; R_AARCH64_CALL26 and _JUMP26;
# R_AARCH64_ADR_PREL_PG_HI21; R_AARCH64_ADD_ABS_LO12_NC and _LDST8 ... _LDST128_ABS_LO12_NC.
_RELATIVE_32 = (2, 4, 261)
_BRANCHES = (283, 282)
_PAGE_OF = 275
_WITHIN_PAGE = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


def _stub(address: int) -> bytes:
    """Return code that jumps to `address`, which may be too far for a call."""
    if platform.machine() in ("aarch64", "arm64"):
        return struct.pack("<IIQ", 0x58000050, 0xD61F0200, address)  # ldr x16, .+8; br x16
    return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", address) + b"\x90\x90"  # jmp [rip]


@cache
def _outside(name: str) -> int:
    """Return the address of a function of the C library."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise InternalError(f"compiled code calls {name!r}, which the C library lacks") from None
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _protect(address: int, size: int) -> None:
    """Let the pages be read and run, and no longer written."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), _READ_EXECUTE):
        raise OSError(ctypes.get_errno(), "memory cannot be made executable")
