"""What this machine is, and what it can do at most: the scale on which times are read."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from educe.compiler.emit import F32, Function
from educe.compiler.kernel import Kernel, template
from educe.compiler.library import library
from educe.compiler.target import Target, host_target
from educe.machine import memory_bytes, quota_cores, read_text, usable_cores

_CPU_INFO = Path("/proc/cpuinfo")
_FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2"
).split()
_LIBRARIES = "educe numpy onnx onnx-ir ml-dtypes llvmlite onnxruntime openvino pillow tokenizers av".split()

_CHAINS = 12
"""Independent sums: more than the latency of an addition times the units that add."""

_ROUNDS = 4_000_000
_READ_BYTES = 256 * 2**20
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

KernelCall = Callable[[np.ndarray, int], np.ndarray]


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
    """What a number of threads reach together.

    Attributes:
        fma_gflops: Billions of f32 operations a second, in multiplications and additions from registers.
        read_gigabytes_per_second: Memory read, more of it than the caches hold.
    """

    threads: int
    fma_gflops: float
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


def measure_peaks(threads: int | None = None, seconds: float = 2.0) -> Peaks:
    """Measure for about `seconds` what `threads` reach, one on each core if absent; the best attempt counts.

    Raises:
        MissingLibraryError: LLVM is not installed.
    """
    threads = threads or usable_cores()
    target = host_target()
    multiply_add, read = _kernel("multiply_add", target), _kernel("read", target)
    data = np.ones(_read_bytes() // F32.size_bytes, np.float32)
    parts = [np.ascontiguousarray(part) for part in np.array_split(data, threads)]
    vector_bytes = _CHAINS * target.vector_bytes
    with ThreadPoolExecutor(threads) as pool:
        fma_seconds = _best_seconds(
            lambda: list(pool.map(lambda part: multiply_add(part, _ROUNDS), parts)), seconds / 2
        )
        read_seconds = _best_seconds(
            lambda: list(pool.map(lambda part: read(part, part.nbytes // vector_bytes), parts)), seconds / 2
        )
    flops = 2 * _ROUNDS * _CHAINS * target.lanes * threads
    return Peaks(threads, flops / fma_seconds / 1e9, data.nbytes / read_seconds / 1e9)


@template("multiply_add")
def _write_multiply_add(fn: Function, target: Target) -> None:
    """Multiply and add in registers, one unit of work a round.

    ::

        for unit in begin..end
            sum[k] = sum[k] * a + b for each chain k
    """
    data = fn.pointer(0)
    sums = [fn.var(fn.load(F32, data, k * target.lanes, target.lanes)) for k in range(_CHAINS)]
    a, b = (fn.load(F32, data, index * target.lanes, target.lanes) for index in range(2))
    with fn.loop(fn.begin, fn.end):
        for each in sums:
            each.set(fn.fma(each.get(), a, b))
    for k, each in enumerate(sums):
        fn.store(each.get(), fn.scratch, k * target.lanes)


@template("read")
def _write_read(fn: Function, target: Target) -> None:
    """Add up an array, as many vectors as there are chains in each unit of work.

    ::

        for unit in begin..end
            sum[k] += data[unit][k] for each chain k
    """
    data = fn.pointer(0)
    sums = [fn.var(fn.const(F32, 0.0, target.lanes)) for _ in range(_CHAINS)]
    with fn.loop(fn.begin, fn.end) as unit:
        for k, each in enumerate(sums):
            place = (unit * _CHAINS + k) * target.lanes
            each.set(each.get() + fn.load(F32, data, place, target.lanes))
    for k, each in enumerate(sums):
        fn.store(each.get(), fn.scratch, k * target.lanes)


def _kernel(name: str, target: Target) -> KernelCall:
    """Return a kernel as a function of its buffer and of the units to do, which returns the sums."""
    address = library(target).address(Kernel.of(name))
    function = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )(address)

    def call(data: np.ndarray, units: int) -> np.ndarray:
        pointers = (ctypes.c_void_p * 1)(data.ctypes.data)
        scratch = np.empty(_CHAINS * target.lanes, np.float32)
        function(ctypes.addressof(pointers), None, 0, units, scratch.ctypes.data)
        return scratch

    return call


def _read_bytes() -> int:
    """Return twice the largest cache, but at least 256 MiB and at most an eighth of the memory."""
    sizes = [read_text(path) or "" for path in _CACHE.glob("index*/size")]
    caches = [int(size[:-1]) * _UNITS[size[-1]] for size in map(str.strip, sizes) if size[-1:] in _UNITS]
    wanted = max(_READ_BYTES, 2 * max(caches, default=0))
    return min(wanted, max(_READ_BYTES, (memory_bytes() or 0) // 8))


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
    for name in _LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
