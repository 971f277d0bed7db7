"""`Program`: the launches of one set of input shapes, over planned memory.

A program is a sequence of segments. A segment is a table of launches that the compiled runtime runs without
Python; it ends the program, or in a `HostStep`: work that only Python does, or a look at values on which
later sizes depend. What follows a host step depends on what it gave, so that segments form a tree, whose
branches are made when they are first taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from educe.compiler.kernel import Kernel
from educe.compiler.library import Library
from educe.compiler.memory import Life, guard_pages, plan
from educe.compiler.runtime import HEADER_WORDS, MAX_POINTERS
from educe.compiler.tensor import Buffer, Tensor

Slot: TypeAlias = tuple[str, int]
"""Whence a base address comes: ``("input", 0)``, ``("arena", 2)``, ``("none", 0)`` for absolute ones.

``("status", 0)`` is that of a run's own bytes, one for each of `Segment.checks`.
"""


# What a core does in a nanosecond, roughly: to judge how much work is worth sharing.
_FLOPS_PER_NS = 50.0
_BYTES_PER_NS = 10.0


def estimated_ns(flops: float, bytes: float) -> float:
    """Return a rough guess of the time that one core takes for so much work."""
    return max(flops / _FLOPS_PER_NS, bytes / _BYTES_PER_NS)


@dataclass(eq=False)
class Launch:
    """One call of a kernel.

    Attributes:
        kernel: What is called.
        tensors: Those whose addresses it gets, the ones it writes first.
        num_outputs: How many of `tensors` it writes.
        sizes: Its numbers.
        extent: Units of work, which may be shared between threads in any way.
        flops: Floating-point operations, all units together.
        bytes: Bytes read and written at least.
        scratch_bytes: Memory that each thread needs.
        node: The node of the graph that it comes from.
        in_place: Whether the first output may lie where the first input was.
        chunk: Units that a thread takes at once.
    """

    kernel: Kernel
    tensors: tuple[Tensor, ...]
    num_outputs: int
    sizes: tuple[int, ...]
    extent: int
    flops: int
    bytes: int
    scratch_bytes: int
    node: str
    in_place: bool = False
    chunk: int = 1

    @property
    def time_ns(self) -> float:
        """A rough guess of the time that one core takes."""
        return estimated_ns(self.flops, self.bytes)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensors that it writes."""
        return self.tensors[: self.num_outputs]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that it reads."""
        return self.tensors[self.num_outputs :]


@dataclass(frozen=True, eq=False)
class HostObject:
    """A value that kernels do not take: a sequence, text, or nothing.

    Attributes:
        slot: Where a run finds it: ``input``, ``host``, or ``constant``.
        number: Which of these it is.
        value: The value itself, for constants.
    """

    slot: str
    number: int
    value: Any = None


@dataclass(frozen=True, eq=False)
class HostStep:
    """Work between two segments.

    Attributes:
        node: The node of the graph that it comes from.
        operator: The node's operator.
        inputs: What `call` is given, in order; None where the node leaves an input out.
        call: Takes NumPy arrays and objects, returns as many of them as `num_outputs`. If None, the values
            of the inputs themselves are what the next segment depends on.
        num_outputs: How many values it gives.
        first: The number of its first value among the run's host values.
        names: The graph's names of the inputs whose values are looked at, where `call` is None.
        can_call: Whether the host can run the node that looks at them.
    """

    node: str
    operator: str
    inputs: tuple[Tensor | HostObject | None, ...]
    call: Callable[[list[Any]], Sequence[Any]] | None
    num_outputs: int
    first: int
    names: tuple[str, ...] = ()
    can_call: bool = False


@dataclass(eq=False)
class Segment:
    """A table of launches over an arena, and what comes after it.

    Attributes:
        number: Its place on the way from the root.
        launches: The launches in order.
        checks: The nodes whose launches check indices, as messages name them, in order.
        arena_bytes: Size of its arena.
        scratch_bytes: Memory that each thread needs.
        table: The launches as the runtime reads them.
        bases: Whence each base address comes.
        step: The host step after it, or None if the program ends.
        outputs: What the program returns, if it ends here.
        successors: The segments that were made to follow, by what the host step gave.
        otherwise: The segment that follows values that were not met before, once there were many.
        resume: Makes another successor: for what the host step gave, or, given None, the one for any values.
        guards: Offsets of the pages that nobody may touch, in a guarded plan.
        buffers: The buffers of the arena.
        expected: Kernels that programs for other sizes would launch, until they are prepared.
        ready: What the executor keeps for runs of a whole program.
        has_objects: Whether it is a whole program between arrays: its bases then start with every input and
            every output, so that a run can name the arrays themselves.
    """

    number: int
    launches: list[Launch]
    checks: list[str] = field(default_factory=list)
    arena_bytes: int = 0
    scratch_bytes: int = 0
    table: np.ndarray | None = None
    bases: list[Slot] = field(default_factory=list)
    step: HostStep | None = None
    outputs: tuple[Tensor | HostObject, ...] = ()
    successors: dict[Any, Segment] = field(default_factory=dict)
    otherwise: Segment | None = None
    resume: Callable[[list[Any] | None], Segment] | None = None
    guards: list[int] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    expected: list[Kernel] = field(default_factory=list)
    ready: Any = None
    has_objects: bool = False


def finish(
    segment: Segment,
    kept: Iterable[Tensor],
    library: Library,
    guarded: bool = False,
    bases: Sequence[Slot] = (),
) -> None:
    """Plan the memory of a segment and write its table.

    Args:
        segment: Its launches are there; the rest is filled in.
        kept: Tensors that are needed after its last launch.
        library: Where kernels are found or made.
        guarded: Whether buffers get pages of their own.
        bases: The bases to start with.
    """
    lives = _lives(segment, kept, share=not guarded)
    segment.arena_bytes = plan([life for life, _ in lives], guarded)
    for life, aliases in lives:
        for alias in aliases:
            alias.offset = life.buffer.offset
    if guarded:
        segment.guards = guard_pages(life.buffer for life, _ in lives)
    segment.buffers = [life.buffer for life, _ in lives]
    segment.scratch_bytes = max((launch.scratch_bytes for launch in segment.launches), default=0)
    segment.bases = list(bases)
    words: list[int] = []
    library.prepare([*(launch.kernel for launch in segment.launches), *segment.expected])
    segment.expected.clear()
    for launch in segment.launches:
        launch.kernel = library.prepared(launch.kernel)
        words += _words(launch, library.address(launch.kernel), segment)
    segment.table = np.array(words or [0], np.int64)


def _lives(segment: Segment, kept: Iterable[Tensor], share: bool) -> list[tuple[Life, list[Buffer]]]:
    """Return the life of each buffer of the segment's own, with the buffers that lie where it lies."""
    lives: dict[Buffer, Life] = {}
    end = len(segment.launches)

    def touch(tensor: Tensor, time: int) -> None:
        buffer = tensor.buffer
        if buffer is not None and buffer.slot == "arena" and buffer.segment == segment.number:
            life = lives.setdefault(buffer, Life(buffer, time, time))
            life.last = max(life.last, time)

    for time, launch in enumerate(segment.launches):
        for tensor in launch.tensors:
            touch(tensor, time)
    for tensor in kept:
        touch(tensor, end)
    merged: dict[Buffer, list[Buffer]] = {buffer: [] for buffer in lives}
    if share:
        _share_in_place(segment, lives, merged)
    return [(lives[buffer], aliases) for buffer, aliases in merged.items()]


def _share_in_place(segment: Segment, lives: dict[Buffer, Life], merged: dict[Buffer, list[Buffer]]) -> None:
    """Let the output of a launch lie where its first input ends its life."""
    root: dict[Buffer, Buffer] = {}
    for time, launch in enumerate(segment.launches):
        if not launch.in_place:
            continue
        output, source = launch.outputs[0].buffer, launch.inputs[0].buffer
        while source in root:
            source = root[source]
        if output not in merged or source not in merged or output is source:
            continue
        assert output is not None
        assert source is not None
        old, new = lives[source], lives[output]
        if old.last == time and new.first == time and output.size_bytes <= source.size_bytes:
            old.last = new.last
            merged[source] += [output, *merged.pop(output)]
            root[output] = source


def _words(launch: Launch, address: int, segment: Segment) -> Iterator[int]:
    assert len(launch.tensors) <= MAX_POINTERS, launch.kernel
    count = HEADER_WORDS + 2 * len(launch.tensors) + len(launch.sizes)
    yield from (address, count, len(launch.tensors), len(launch.sizes), launch.extent, launch.chunk)
    for tensor in launch.tensors:
        slot, offset = _place(tensor)
        if slot not in segment.bases:
            segment.bases.append(slot)
        yield from (segment.bases.index(slot), offset)
    yield from launch.sizes


def _place(tensor: Tensor) -> tuple[Slot, int]:
    buffer = tensor.buffer
    assert buffer is not None
    offset = tensor.offset * tensor.kind.size_bytes
    if buffer.slot == "constant":
        assert buffer.constant is not None
        return ("none", 0), buffer.constant.ctypes.data + offset
    if buffer.slot == "arena":
        assert buffer.offset >= 0
        return ("arena", buffer.segment), buffer.offset + offset
    return (buffer.slot, buffer.number), offset
