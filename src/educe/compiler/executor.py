"""Running programs: arenas, base addresses, and the walk from segment to segment."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np

from educe.compiler.calling import CONTEXT_FIELDS, Answer, builtin
from educe.compiler.code import Code
from educe.compiler.memory import PAGE
from educe.compiler.program import HostObject, HostStep, Segment, estimated_ns
from educe.compiler.runtime import Runtime
from educe.compiler.target import Target
from educe.compiler.tensor import Tensor, dtype_of
from educe.errors import EngineError
from educe.machine import ForkedLock, memory_bytes
from educe.pages import empty

MAX_PROGRAMS = 64
"""Sets of input shapes whose programs an executor keeps."""

MAX_VALUES = 8
"""Values that one node looks at for which programs are made; for others the host runs the node."""

_KEPT_ARENAS = 8
# A run that is expected to be shorter does not let other Python threads go on meanwhile.
_BRIEF_NS = 10_000.0
# How long a core reads from its second cache, to reading from memory.
_MEMORY_PER_CACHE = 0.25
_OBJECTS, _SCRATCH, _CLOCK, _INPUTS, _TYPES = (
    CONTEXT_FIELDS.index(name) for name in ("objects", "scratch", "clock", "inputs", "types")
)


class _Stopwatch(threading.local):
    """The seconds that each thread has spent on making programs."""

    seconds = 0.0


_STOPWATCH = _Stopwatch()


@contextmanager
def _compiling() -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _STOPWATCH.seconds += time.perf_counter() - start


def compile_seconds() -> float:
    """Return how long this thread has been making programs during runs."""
    return _STOPWATCH.seconds


class Arena:
    """Aligned memory for one run at a time."""

    __slots__ = ("address", "memory", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        most = _memory_bytes()
        if most is not None and size_bytes > most:
            raise MemoryError(f"a run needs {size_bytes} bytes, and this machine has {most}")
        self.memory = empty(size_bytes, np.uint8)
        self.address = int(self.memory.ctypes.data)
        self.size_bytes = size_bytes


@cache
def _memory_bytes() -> int | None:
    return memory_bytes()


def _is_brief(segment: Segment, target: Target) -> bool:
    """Say whether a run is expected to take microseconds, its buffers being in the second cache."""
    flops = sum(launch.flops for launch in segment.launches)
    num_bytes = sum(launch.bytes for launch in segment.launches)
    time_ns = estimated_ns(flops, num_bytes * _MEMORY_PER_CACHE)
    return num_bytes < target.l2_bytes and time_ns < _BRIEF_NS


class Arenas:
    """Memory that runs lend from each other; a larger one takes the place of a smaller one."""

    def __init__(self) -> None:
        self._free: list[Arena] = []

    def take(self, size_bytes: int) -> Arena:
        """Return memory of at least `size_bytes`, which is the caller's until given back."""
        try:
            arena = self._free.pop()
        except IndexError:
            return Arena(size_bytes)
        if arena.size_bytes < size_bytes:
            del arena
            return Arena(size_bytes)
        return arena

    def give_back(self, arena: Arena) -> None:
        """Let another run have `arena`."""
        if len(self._free) < _KEPT_ARENAS:
            self._free.append(arena)


class Ready:
    """A program of one segment with nothing left to decide: what a run of it needs, filled in beforehand.

    Args:
        segment: The program, whose inputs and outputs are all arrays.
        inputs: Arrays like those that it was made for.
        runtime: The process's threads.
        threads: Threads that a run may use.

    Attributes:
        answer: The program as a builtin function; None if it is none.
    """

    def __init__(
        self, segment: Segment, inputs: Sequence[np.ndarray], runtime: Runtime, threads: int
    ) -> None:
        self.segment = segment
        self._dtypes = [value.dtype for value in inputs]
        words = [word for value in inputs for word in (id(value.dtype), value.ndim, *value.shape)]
        self.types = (ctypes.c_int64 * (1 + len(words)))(id(np.ndarray), *words)
        self.num_inputs = len(inputs)
        self.outputs = [(each.shape, dtype_of(each.kind)) for each in segment.outputs]  # type: ignore[union-attr]
        self.has_arena = ("arena", 0) in segment.bases or bool(segment.scratch_bytes)
        self.is_brief = _is_brief(segment, runtime.target)
        self.call = runtime.call_briefly if self.is_brief else runtime.call
        self.free: list[Context] = []
        self.answer: Answer | None = None
        self.memory_bytes = segment.arena_bytes + segment.scratch_bytes * threads
        self._runtime, self._threads = runtime, threads

    def context(self) -> Context:
        """Return a context that no run uses."""
        try:
            return self.free.pop()
        except IndexError:
            context = Context(self.segment, self._runtime, self._threads)
            context.words[_INPUTS], context.words[_TYPES] = self.num_inputs, ctypes.addressof(self.types)
            return context

    def builtin(self, inputs: Sequence[str], outputs: Sequence[str]) -> Answer | None:
        """Return a builtin function that runs a brief program for a dict; None for another program.

        Args:
            inputs: Names of the inputs.
            outputs: Names of the outputs.
        """
        if not self.is_brief:
            return None
        context = self.context()
        arena = Arena(self.memory_bytes)
        context.lend(arena, self.segment.arena_bytes)
        made = [(name, *each) for name, each in zip(outputs, self.outputs, strict=True)]
        held = (context, arena, self.types, self._dtypes, self.segment)
        return builtin(self._runtime.answer, context.address, context.status, inputs, made, held)


class Context:
    """What the compiled runtime is told of one run."""

    __slots__ = ("address", "arena_base", "bases", "checks", "status", "words")

    def __init__(self, segment: Segment, runtime: Runtime, threads: int) -> None:
        assert segment.table is not None
        self.bases = (ctypes.c_int64 * max(len(segment.bases), 1))()
        self.words = (ctypes.c_int64 * len(CONTEXT_FIELDS))(
            segment.table.ctypes.data,
            len(segment.launches),
            ctypes.addressof(self.bases),
            sum(slot in ("input", "output") for slot, _ in segment.bases) if segment.has_objects else 0,
            0,
            segment.scratch_bytes,
            runtime.pool,
            threads,
            0,
            0,
            0,
        )
        arena = ("arena", segment.number)
        self.arena_base = segment.bases.index(arena) if arena in segment.bases else -1
        self.address = ctypes.addressof(self.words)
        self.checks = segment.checks
        self.status = bytearray(len(self.checks))
        if ("status", 0) in segment.bases:
            index = segment.bases.index(("status", 0))
            self.bases[index] = ctypes.addressof(ctypes.c_char.from_buffer(self.status))

    def lend(self, arena: Arena, arena_bytes: int) -> None:
        """Let the run use `arena`, with the threads' scratch memory after the first `arena_bytes`."""
        if self.arena_base >= 0:
            self.bases[self.arena_base] = arena.address
        self.words[_SCRATCH] = arena.address + arena_bytes

    def check(self) -> None:
        """Raise EngineError if the run met an index out of range; no other run may use this context then."""
        if 1 in self.status:
            raise EngineError(
                "an index is out of range",
                place=self.checks[self.status.index(1)],
                remedy="the inputs name an element that a table does not have: check them",
            )


class Executor:
    """Runs a `Code`: thread-safe, and the same for every call.

    Args:
        code: What to run.
        runtime: The process's threads.
        keep_arenas: Whether memory is kept between runs.

    Attributes:
        runtime: The process's threads.
        answer: Runs the last program for a dict of inputs if that is a matter of microseconds, else None. It
            returns the dict of outputs, or None for inputs of another shape or type.
    """

    def __init__(self, code: Code, runtime: Runtime, keep_arenas: bool = True) -> None:
        self.code = code
        self.runtime = runtime
        self._arenas = Arenas()
        self._keep_arenas = keep_arenas
        self._programs: OrderedDict[Any, Segment] = OrderedDict()
        self._last: Ready | None = None
        self.answer: Answer | None = None
        self._lock = ForkedLock()

    def program(self, inputs: Sequence[Any]) -> Segment:
        """Return the program for inputs of these shapes, lowered at their first use."""
        key = tuple(_key(value) for value in inputs)
        found = self._programs.get(key)
        if found is not None:
            # Another thread may have dropped it meanwhile.
            with suppress(KeyError):
                self._programs.move_to_end(key)
            return found
        with self._lock:
            if key not in self._programs:
                with _compiling():
                    self._programs[key] = self.code.lower(inputs)
                while len(self._programs) > MAX_PROGRAMS:
                    self._programs.popitem(last=False)
            return self._programs[key]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs of the code for `inputs`, which are not modified.

        Args:
            inputs: Arrays and objects, in the code's order, of the types that the code was made for.
        """
        found = self.run_again(inputs)
        if found is not None:
            return found
        values = [_contiguous(value) for value in inputs]
        segment = self.program(values)
        if segment.has_objects:
            ready = segment.ready
            if ready is None:
                ready = Ready(segment, values, self.runtime, self.code.threads)
                if self._keep_arenas:
                    ready.answer = ready.builtin(self.code.inputs, self.code.outputs)
                segment.ready = ready
            self._last, self.answer = ready, ready.answer
            found = self.run_again(values)
            if found is not None:
                return found
        return self.walk(values)

    def run_again(self, inputs: Sequence[Any]) -> list[Any] | None:
        """Return the outputs if `inputs` are arrays like those of the last run, else None.

        This is all the Python that stands between a call and machine code.
        """
        ready = self._last
        if ready is None or len(inputs) != ready.num_inputs:
            return None
        outputs: list[Any] = [np.empty(shape, dtype) for shape, dtype in ready.outputs]
        context = ready.context()
        bases = context.bases
        index = 0
        for value in inputs:
            bases[index] = id(value)
            index += 1
        for value in outputs:
            bases[index] = id(value)
            index += 1
        if not ready.has_arena:
            passed = ready.call(context.address)
        else:
            arena = self._arenas.take(ready.memory_bytes)
            context.lend(arena, ready.segment.arena_bytes)
            passed = ready.call(context.address)
            if self._keep_arenas:
                self._arenas.give_back(arena)
        if context.checks:
            context.check()
        ready.free.append(context)
        return outputs if passed else None

    def walk(
        self, inputs: Sequence[Any], clocks: list[tuple[Segment, np.ndarray]] | None = None
    ) -> list[Any]:
        """Return the outputs of the code for `inputs`, segment by segment.

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
                for arena in frame.lent:
                    self._arenas.give_back(arena)

    def _launch(
        self, segment: Segment, frame: _Frame, clocks: list[tuple[Segment, np.ndarray]] | None
    ) -> list[Any]:
        outputs = [
            np.empty(each.shape, dtype_of(each.kind)) if isinstance(each, Tensor) else frame.host_value(each)
            for each in segment.outputs
        ]
        if clocks is not None:
            clock = np.zeros(len(segment.launches) + 1, np.int64)
            clocks.append((segment, clock))
        if not segment.launches:
            frame.arenas[segment.number] = np.empty(0, np.uint8)
            return outputs
        arena_bytes = segment.arena_bytes
        total = arena_bytes + segment.scratch_bytes * self.code.threads
        if segment.guards:
            arena = _guarded(segment, total)
        else:
            arena = self._arenas.take(total)
            frame.lent.append(arena)
        frame.arenas[segment.number] = arena.memory
        context = Context(segment, self.runtime, self.code.threads)
        context.words[_OBJECTS] = 0
        for index, (slot, number) in enumerate(segment.bases):
            if slot != "status":
                context.bases[index] = frame.address(slot, number, outputs)
        context.lend(arena, arena_bytes)
        if clocks is not None:
            context.words[_CLOCK] = clock.ctypes.data
        self.runtime.run(context.address)
        context.check()
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
                if key in segment.successors:
                    return segment.successors[key]
                if step.can_call and len(segment.successors) >= MAX_VALUES:
                    with _compiling():
                        segment.otherwise = segment.otherwise or segment.resume(None)
                    return segment.otherwise
                while len(segment.successors) >= MAX_PROGRAMS:
                    segment.successors.pop(next(iter(segment.successors)))
                with _compiling():
                    following = segment.resume(found)
                segment.successors[key] = following
        return following


class _Frame:
    """What one run holds: its inputs, its arenas, and the values that the host gave."""

    def __init__(self, inputs: list[Any]) -> None:
        self.inputs = inputs
        self.arenas: dict[int, np.ndarray] = {}
        self.lent: list[Arena] = []
        self.host: list[Any] = []

    def address(self, slot: str, number: int, outputs: list[Any]) -> int:
        """Return the base address of a slot."""
        # A segment without launches has no arena: what lies there has no elements.
        if slot == "none" or (slot == "arena" and number not in self.arenas):
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
        if not value.size:
            return np.empty(value.shape, dtype_of(value.kind))
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


def _guarded(segment: Segment, total: int) -> Arena:
    """Return memory in which touching a page of `segment.guards` ends the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    arena = Arena(0)
    arena.memory = np.frombuffer(mmap.mmap(-1, total + PAGE), np.uint8)
    arena.address = int(arena.memory.ctypes.data)
    for offset in segment.guards:
        if libc.mprotect(ctypes.c_void_p(arena.address + offset), ctypes.c_size_t(PAGE), 0):
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
