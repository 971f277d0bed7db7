"""Where a run spends its time: kernel by kernel, as a share of what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from educe.compiler.program import Segment
from educe.engines.native import NativeExecutable


class KernelTime(msgspec.Struct, frozen=True):
    """The time of one launch.

    Attributes:
        node: The node of the graph that it comes from.
        kernel: The kernel's template.
        seconds: The median over the runs.
        start_seconds: When it starts in the run, the median likewise.
        flops: Floating-point operations.
        bytes: Bytes read and written at least.
    """

    node: str
    kernel: str
    seconds: float
    start_seconds: float
    flops: int
    bytes: int


class Profile(msgspec.Struct, frozen=True):
    """The times of a run.

    Attributes:
        kernels: Every launch, in order.
        host_steps: What runs between launches in Python: operators and nodes.
        total_seconds: The median of whole runs, as a caller sees them.
        runs: How many runs there were.
    """

    kernels: tuple[KernelTime, ...]
    host_steps: tuple[str, ...]
    total_seconds: float
    runs: int

    @property
    def kernel_seconds(self) -> float:
        """The time of all kernels together."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def outside_seconds(self) -> float:
        """What a run takes beyond its kernels."""
        return max(0.0, self.total_seconds - self.kernel_seconds)


def profile(executable: NativeExecutable, feeds: Mapping[str, Any], seconds: float = 2.0) -> Profile:
    """Run `feeds` again and again for about `seconds`, and time every launch of every other run.

    The processor's time stamp is read before each launch; its rate is taken from the runs themselves. The
    runs between are as they always are, and give the time of the whole.
    """
    segments: list[Segment] = []
    for _ in range(2):
        executable.run(feeds)
    totals: list[float] = []
    starts: list[float] = []
    stamps: list[np.ndarray] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(totals) < _FEWEST_RUNS:
        clocks: list[tuple[Segment, np.ndarray]] = []
        start = time.perf_counter()
        executable.timed(feeds, clocks)
        way = [segment for segment, _ in clocks]
        segments = segments or way
        # A run whose sizes or branches are drawn by chance may take another way.
        if way == segments:
            stamps.append(_stamps(clocks))
            starts.append(start)
        start = time.perf_counter()
        executable.run(feeds)
        totals.append(time.perf_counter() - start)
    times = np.array(stamps, np.float64)
    times /= _stamps_per_second(times[:, 0], starts)
    steps = tuple(f"{segment.step.operator} {segment.step.node}" for segment in segments if segment.step)
    return Profile(_kernels(segments, times), steps, float(np.median(totals)), len(totals))


def _stamps(clocks: list[tuple[Segment, np.ndarray]]) -> np.ndarray:
    """Return the time stamps of the segments that have launches; each has one more than those."""
    return np.concatenate([clock for segment, clock in clocks if segment.launches] or [np.zeros(2, np.int64)])


def _stamps_per_second(stamps: np.ndarray, starts: list[float]) -> float:
    passed = starts[-1] - starts[0]
    return max(1.0, float(stamps[-1] - stamps[0]) / passed) if passed else 1.0


_FEWEST_RUNS = 5


def _kernels(segments: list[Segment], times: np.ndarray) -> tuple[KernelTime, ...]:
    """Return the launches with their times; each segment has one time stamp more than launches."""
    found = []
    place = 0
    for segment in segments:
        if not segment.launches:
            continue
        for launch in segment.launches:
            spent = np.median(times[:, place + 1] - times[:, place])
            begun = np.median(times[:, place] - times[:, 0])
            found.append(
                KernelTime(
                    launch.node,
                    launch.kernel.template,
                    float(spent),
                    float(begun),
                    launch.flops,
                    launch.bytes,
                )
            )
            place += 1
        place += 1
    return tuple(found)


def chrome_trace(found: Profile, name: str) -> dict[str, Any]:
    """Return a profile in the Trace Event Format, which ``chrome://tracing`` and Perfetto show."""
    events = [
        {
            "name": f"{kernel.kernel} {kernel.node}",
            "cat": kernel.kernel,
            "ph": "X",
            "ts": kernel.start_seconds * 1e6,
            "dur": kernel.seconds * 1e6,
            "pid": 0,
            "tid": 0,
            "args": {"flops": kernel.flops, "bytes": kernel.bytes},
        }
        for kernel in found.kernels
    ]
    start = {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": name}}
    return {"traceEvents": [start, *events], "displayTimeUnit": "ns"}
