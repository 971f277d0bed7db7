"""`Target`: the machine that code is generated for, as data."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from educe.errors import OptionError, nearest
from educe.machine import read_text
from educe.settings import TARGET


@dataclass(frozen=True)
class Tile:
    """The register tile of a matrix product: `rows` of A against `vectors` vectors of B's columns."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Dot:
    """An instruction that sums the products of a few neighbouring narrow numbers into a wider lane.

    Attributes:
        name: LLVM's function; empty where a product of vectors with widened lanes is the instruction.
        left: The kind of the numbers that all lanes share: ``u8``, ``i8``, ``i16`` or ``bf16``.
        right: The kind of those that each lane has of its own.
        total: The kind of the sums.
        group: How many neighbours a lane takes of each.
        adds: Whether the function is given the sums; what it returns is added to them if not.
        matrix_unit: LLVM's function that does the same for whole blocks of rows, where there is one.
    """

    name: str
    left: str
    right: str
    total: str
    group: int
    adds: bool = True
    matrix_unit: str = ""


@dataclass(frozen=True)
class Target:
    """An instruction set with its registers and caches; every choice that depends on them is data here.

    Attributes:
        name: The name by which users choose it.
        triple: LLVM's name of machine and system; the host's own if empty.
        cpu: LLVM's name of the processor.
        features: LLVM's features, such as ``+avx2``.
        lanes: Elements of f32 in a vector register.
        registers: Vector registers.
        tiles: Legal register tiles of the matrix product, the widest first.
        has_masks: Whether masked loads and stores are instructions.
        has_half: Whether f16 is converted by instructions.
        dots: How narrow numbers are multiplied, the fastest first; each sum is exact or, of floats, in f32.
        l2_bytes: Size of a core's second cache.
    """

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int
    tiles: tuple[Tile, ...]
    has_masks: bool
    has_half: bool
    dots: tuple[Dot, ...]
    l2_bytes: int = 1024 * 1024

    @property
    def vector_bytes(self) -> int:
        """Size of a vector register."""
        return 4 * self.lanes

    @property
    def is_arm(self) -> bool:
        """Whether it is an AArch64 machine."""
        return self.triple.startswith("aarch64")

    def dot(self, left: str) -> Dot | None:
        """Return the instruction for shared numbers of the kind `left`, None if there is none."""
        return next((each for each in self.dots if each.left == left), None)

    @property
    def integer_dot(self) -> Dot:
        """The instruction for products of 8-bit integers."""
        return next(each for each in self.dots if each.total == "i32")


_AVX512 = "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt"
_AVX512 += ",-prefer-256-bit"
_AVX2 = "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt"
_OF_AMX = ",+avx512vnni,+avx512bf16,+amx-tile,+amx-int8,+amx-bf16"
_WIDE = (Tile(6, 4), Tile(8, 3), Tile(12, 2), Tile(14, 1))
_NARROW = (Tile(4, 3), Tile(6, 2), Tile(8, 1))

_PAIRS_512 = Dot("llvm.x86.avx512.pmaddw.d.512", "i16", "i16", "i32", 2, adds=False)
_PAIRS_256 = Dot("llvm.x86.avx2.pmadd.wd", "i16", "i16", "i32", 2, adds=False)
_PAIRS_128 = Dot("llvm.x86.sse2.pmadd.wd", "i16", "i16", "i32", 2, adds=False)
_VNNI_512 = Dot("llvm.x86.avx512.vpdpbusd.512", "u8", "i8", "i32", 4)
_VNNI_256 = Dot("llvm.x86.avx512.vpdpbusd.256", "u8", "i8", "i32", 4)
_AMX = Dot("llvm.x86.avx512.vpdpbusd.512", "u8", "i8", "i32", 4, matrix_unit="llvm.x86.tdpbusd")
_AMX_BF16 = Dot(
    "llvm.x86.avx512bf16.dpbf16ps.512", "bf16", "bf16", "f32", 2, matrix_unit="llvm.x86.tdpbf16ps"
)
_BF16_512 = Dot("llvm.x86.avx512bf16.dpbf16ps.512", "bf16", "bf16", "f32", 2)
_SDOT = Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", "i8", "i8", "i32", 4)
_WIDENED = Dot("", "i16", "i16", "i32", 1)


def _avx512(name: str, features: str, *dots: Dot) -> Target:
    return Target(name, "", "skylake-avx512", _AVX512 + features, 16, 32, _WIDE, True, True, dots)


def _avx2(name: str, features: str, *dots: Dot) -> Target:
    return Target(name, "", "haswell", _AVX2 + features, 8, 16, _NARROW, False, True, dots)


def _neon(name: str, features: str, *dots: Dot) -> Target:
    return Target(name, "aarch64-linux-gnu", "generic", "+neon" + features, 4, 32, _WIDE, False, True, dots)


TARGETS = {
    target.name: target
    for target in (
        _avx512("avx512-amx", _OF_AMX, _AMX, _AMX_BF16, _PAIRS_512),
        _avx512("avx512-bf16", ",+avx512vnni,+avx512bf16", _VNNI_512, _BF16_512, _PAIRS_512),
        _avx512("avx512-vnni", ",+avx512vnni", _VNNI_512, _PAIRS_512),
        _avx512("avx512", "", _PAIRS_512),
        _avx2("avx2-vnni", ",+avxvnni", _VNNI_256, _PAIRS_256),
        _avx2("avx2", "", _PAIRS_256),
        Target("x86-64", "", "x86-64", "", 4, 16, _NARROW, False, False, (_PAIRS_128,)),
        _neon("neon-dot", ",+dotprod", _SDOT, _WIDENED),
        _neon("neon", "", _WIDENED),
    )
}
"""Every target, by its name; of those that a machine runs, the first is the best."""

_OF_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd", "fma", "f16c", "bmi2")
_OF_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_NEEDED = {
    "avx512-amx": (*_OF_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "avx512-bf16": (*_OF_AVX512, "avx512_vnni", "avx512_bf16"),
    "avx512-vnni": (*_OF_AVX512, "avx512_vnni"),
    "avx512": _OF_AVX512,
    "avx2-vnni": (*_OF_AVX2, "avx_vnni"),
    "avx2": _OF_AVX2,
    "x86-64": (),
    "neon-dot": ("asimddp",),
    "neon": (),
}


@cache
def host_target(name: str | None = None) -> Target:
    """Return the best target that this machine runs, or the one called `name` or chosen by the settings.

    Raises:
        OptionError: there is no such target, or this machine does not run it.
    """
    name = name or TARGET.value()
    able = _runnable()
    if not name:
        return TARGETS[able[0]]
    if name not in TARGETS:
        raise OptionError(f"{TARGET.variable}={name!r} is no target", remedy=nearest(name, TARGETS))
    if name not in able:
        raise OptionError(f"this machine does not run {name!r} code", remedy=f"it runs: {', '.join(able)}")
    return TARGETS[name]


@cache
def _runnable() -> tuple[str, ...]:
    is_arm, features = platform.machine() in ("aarch64", "arm64"), _host_features()
    return tuple(
        name
        for name, needed in _NEEDED.items()
        if TARGETS[name].is_arm == is_arm
        and features.issuperset(needed)
        and ("amx_tile" not in needed or _may_use_tiles())
    )


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of AMX, which a process does not have before; say whether it has them."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    if platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data)) == 0


def _host_features() -> set[str]:
    """Return the instruction sets of this machine, by Linux's names."""
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    import llvmlite.binding as llvm

    return {_LINUX_NAMES.get(name, name) for name, has in llvm.get_host_cpu_features().items() if has}


_LINUX_NAMES = {
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avxvnni": "avx_vnni",
    "dotprod": "asimddp",
}
"""Linux's names of instruction sets that LLVM calls otherwise."""
