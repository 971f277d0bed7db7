"""What this machine is, and what it can do at most: the scale on which times are read."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from educe.machine import memory_bytes, quota_cores, read_text, usable_cores

_CPU_INFO = Path("/proc/cpuinfo")
_FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2"
).split()
_LIBRARIES = ("educe", "numpy", "onnx", "onnx-ir", "ml-dtypes", "onnxruntime", "pillow", "tokenizers", "av")
_MATRIX_SIZE = 1024
_READ_BYTES = 256 * 2**20


class Machine(msgspec.Struct, frozen=True):
    """The machine as this process sees it.

    Attributes:
        cpu: The processor's name.
        features: Its instruction sets that matter for inference.
        cores: Cores that this process may run on.
        quota_cores: How much processor time its control group gets, in cores; None if there is no bound.
        memory_bytes: The machine's memory, or the control group's bound if that is lower.
        libraries: Versions of the libraries that are installed.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    quota_cores: float | None
    memory_bytes: int | None
    system: str
    python: str
    libraries: dict[str, str]


class Peaks(msgspec.Struct, frozen=True):
    """What NumPy reaches on this machine: less than the hardware's peak, and measured.

    Attributes:
        matmul_gflops: Billions of f32 operations a second in a matrix product of 1024 x 1024.
        read_gigabytes_per_second: Memory read in dot products of 256 MiB, one thread for each core.
    """

    matmul_gflops: float
    read_gigabytes_per_second: float


def machine() -> Machine:
    """Return the facts of this machine; what it does not tell is absent."""
    fields = _cpu_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        features=tuple(feature for feature in _FEATURES if feature in flags),
        cores=usable_cores(),
        quota_cores=quota_cores(),
        memory_bytes=memory_bytes(),
        system=platform.platform(),
        python=platform.python_version(),
        libraries=dict(_versions()),
    )


def measure_peaks(seconds: float = 2.0) -> Peaks:
    """Measure for about `seconds` what NumPy reaches; the best of several attempts counts."""
    return Peaks(_matmul_gflops(seconds / 2), _read_speed(seconds / 2))


def _matmul_gflops(seconds: float) -> float:
    a, b = np.random.default_rng(0).random((2, _MATRIX_SIZE, _MATRIX_SIZE), np.float32)
    out = np.empty_like(a)
    return 2 * _MATRIX_SIZE**3 / _best_seconds(lambda: np.matmul(a, b, out=out), seconds) / 1e9


def _read_speed(seconds: float) -> float:
    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), usable_cores())
    with ThreadPoolExecutor(len(parts)) as pool:
        best = _best_seconds(lambda: list(pool.map(lambda part: np.dot(part, part), parts)), seconds)
    return _READ_BYTES / best / 1e9


def _best_seconds(work: Callable[[], object], seconds: float) -> float:
    best = float("inf")
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end or best == float("inf"):
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _cpu_fields() -> dict[str, str]:
    text = read_text(_CPU_INFO) or ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
