"""`Target`: the machine that code is generated for, as data."""

from __future__ import annotations

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
    l2_bytes: int = 1024 * 1024

    @property
    def vector_bytes(self) -> int:
        """Size of a vector register."""
        return 4 * self.lanes


_AVX512 = "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt"
_AVX2 = "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt"
_WIDE = (Tile(6, 4), Tile(8, 3), Tile(12, 2), Tile(14, 1))
_NARROW = (Tile(4, 3), Tile(6, 2), Tile(8, 1))

TARGETS = {
    target.name: target
    for target in (
        Target("avx512", "", "skylake-avx512", _AVX512 + ",-prefer-256-bit", 16, 32, _WIDE, True, True),
        Target("avx2", "", "haswell", _AVX2, 8, 16, _NARROW, False, True),
        Target("x86-64", "", "x86-64", "", 4, 16, _NARROW, False, False),
        Target("neon", "aarch64-linux-gnu", "generic", "+neon", 4, 32, _WIDE, False, True),
    )
}
"""Every target, by its name."""

_NEEDED = {
    "avx512": ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd", "fma", "f16c", "bmi2"),
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
    "x86-64": (),
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
    if platform.machine() in ("aarch64", "arm64"):
        return ("neon",)
    features = _host_features()
    return tuple(name for name, needed in _NEEDED.items() if features.issuperset(needed))


def _host_features() -> set[str]:
    """Return the instruction sets of this machine, by Linux's names, which are LLVM's as well."""
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    import llvmlite.binding as llvm

    return {name for name, has in llvm.get_host_cpu_features().items() if has}
