"""Running programs: arenas, base addresses, and the walk from segment to segment."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from educe.compiler.code import Code
from educe.compiler.memory import ALIGNMENT, PAGE
from educe.compiler.program import HostObject, HostStep, Segment
from educe.compiler.runtime import Runtime
from educe.compiler.tensor import Tensor, dtype_of

MAX_PROGRAMS = 64
"""Sets of input shapes whose programs an executor keeps."""

_KEPT_ARENAS = 8


class Arenas:
    """Memory that runs lend from each other; a larger one takes the place of a smaller one."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size_bytes: int) -> np.ndarray:
        """Return memory of at least `size_bytes`, which is the caller's until given back."""
        try:
            arena = self._free.pop()
        except IndexError:
            arena = None
        if arena is None or arena.nbytes < size_bytes:
            del arena
            return _aligned(size_bytes)
        return arena

    def give_back(self, arena: np.ndarray) -> None:
        """Let another run have `arena`."""
        if len(self._free) < _KEPT_ARENAS:
            self._free.append(arena)


def _aligned(size_bytes: int) -> np.ndarray:
    memory = np.empty(size_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size_bytes]


class Executor:
    """Runs a `Code`: thread-safe, and the same for every call.

    Args:
        code: What to run.
        runtime: The process's threads.
        keep_arenas: Whether memory is kept between runs.
    """

    def __init__(self, code: Code, runtime: Runtime, keep_arenas: bool = True) -> None:
        self.code = code
        self._runtime = runtime
        self._arenas = Arenas()
        self._keep_arenas = keep_arenas
        self._programs: OrderedDict[Any, Segment] = OrderedDict()
        self._lock = threading.RLock()

    def program(self, inputs: Sequence[Any]) -> Segment:
        """Return the program for inputs of these shapes, lowered at their first use."""
        key = tuple(_key(value) for value in inputs)
        found = self._programs.get(key)
        if found is not None:
            return found
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self.code.lower(inputs)
                while len(self._programs) > MAX_PROGRAMS:
                    self._programs.popitem(last=False)
            return self._programs[key]

    def run(self, inputs: Sequence[Any], clocks: list[tuple[Segment, np.ndarray]] | None = None) -> list[Any]:
        """Return the outputs of the code for `inputs`, which are not modified.

        Args:
            inputs: Arrays and objects, in the code's order.
            clocks: Receives each segment with the time stamps of its launches.
        """
        values = [_contiguous(value) for value in inputs]
        segment = self.program(values)
        frame = _Frame(values)
        try:
            while True:
                outputs = self._launch(segment, frame, clocks)
                if segment.step is None:
                    return outputs
                found = self._host(segment.step, frame)
                segment = self._successor(segment, found)
        finally:
            if self._keep_arenas:
                for arena in frame.arenas.values():
                    self._arenas.give_back(arena)

    def _launch(
        self, segment: Segment, frame: _Frame, clocks: list[tuple[Segment, np.ndarray]] | None
    ) -> list[Any]:
        outputs = [
            np.empty(each.shape, dtype_of(each.kind)) if isinstance(each, Tensor) else frame.host_value(each)
            for each in segment.outputs
        ]
        if not segment.launches:
            return outputs
        runtime = self._runtime
        stride = segment.scratch_bytes
        total = segment.arena_bytes + stride * runtime.num_threads
        arena = _guarded(segment, total) if segment.guards else self._arenas.take(total)
        frame.arenas[segment.number] = arena
        bases = (ctypes.c_int64 * len(segment.bases))(
            *(frame.address(slot, number, outputs) for slot, number in segment.bases)
        )
        clock = None
        if clocks is not None:
            clock = np.zeros(len(segment.launches) + 1, np.int64)
            clocks.append((segment, clock))
        assert segment.table is not None
        runtime.run(
            segment.table.ctypes.data,
            len(segment.launches),
            ctypes.addressof(bases),
            arena.ctypes.data + segment.arena_bytes,
            stride,
            runtime.pool,
            self.code.threads,
            None if clock is None else clock.ctypes.data,
        )
        return outputs

    def _host(self, step: HostStep, frame: _Frame) -> list[Any]:
        given = [None if each is None else frame.content(each) for each in step.inputs]
        if step.call is None:
            return given
        found = [_owned(value) for value in step.call(given)]
        frame.host += found
        return found

    def _successor(self, segment: Segment, found: list[Any]) -> Segment:
        step = segment.step
        assert step is not None
        assert segment.resume is not None
        if step.call is None:
            key: Any = tuple((value.shape, value.tobytes()) for value in found)
        else:
            key = tuple(_key(value) for value in found)
        following = segment.successors.get(key)
        if following is None:
            with self._lock:
                while len(segment.successors) >= MAX_PROGRAMS:
                    segment.successors.pop(next(iter(segment.successors)))
                following = segment.resume(key, found)
                segment.successors[key] = following
        return following


class _Frame:
    """What one run holds: its inputs, its arenas, and the values that the host gave."""

    def __init__(self, inputs: list[Any]) -> None:
        self.inputs = inputs
        self.arenas: dict[int, np.ndarray] = {}
        self.host: list[Any] = []

    def address(self, slot: str, number: int, outputs: list[Any]) -> int:
        """Return the base address of a slot."""
        if slot == "none":
            return 0
        array = self._array(slot, number, outputs)
        return int(array.__array_interface__["data"][0])

    def _array(self, slot: str, number: int, outputs: list[Any]) -> np.ndarray:
        if slot == "arena":
            return self.arenas[number]
        if slot == "output":
            return outputs[number]  # type: ignore[no-any-return]
        return self._listed(slot)[number - (len(self.inputs) if slot == "host" else 0)]  # type: ignore[no-any-return]

    def _listed(self, slot: str) -> list[Any]:
        return self.inputs if slot == "input" else self.host

    def host_value(self, value: HostObject) -> Any:
        """Return an object that kernels do not take."""
        if value.slot == "constant":
            return value.value
        return self._listed(value.slot)[value.number - (len(self.inputs) if value.slot == "host" else 0)]

    def content(self, value: Tensor | HostObject) -> Any:
        """Return what a host step is given: an array of its own, or an object."""
        if isinstance(value, HostObject):
            return self.host_value(value)
        buffer = value.buffer
        assert buffer is not None
        if buffer.constant is not None:
            memory = buffer.constant
        elif buffer.slot == "arena":
            memory = self.arenas[buffer.segment][buffer.offset : buffer.offset + buffer.size_bytes]
        else:
            memory = self._array(buffer.slot, buffer.number, [])
        flat = memory.reshape(-1).view(np.uint8)
        start = value.offset * value.kind.size_bytes
        size = value.size * value.kind.size_bytes
        return flat[start : start + size].view(dtype_of(value.kind)).reshape(value.shape).copy()


def _guarded(segment: Segment, total: int) -> np.ndarray:
    """Return memory in which touching a page of `segment.guards` ends the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, total + PAGE)
    arena = np.frombuffer(memory, np.uint8)
    for offset in segment.guards:
        address = ctypes.c_void_p(arena.ctypes.data + offset)
        if libc.mprotect(address, ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return arena


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape)
    return type(value)


def _contiguous(value: Any) -> Any:
    if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
        return np.ascontiguousarray(value)
    return value


def _owned(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value if value.flags.c_contiguous else np.ascontiguousarray(value)
    return value
