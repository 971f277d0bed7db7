"""Measuring engines side by side: interleaved in one run, after their answers were compared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from educe.bench.compare import differences_of
from educe.engines.base import Executable
from educe.errors import EduceError

DEFAULT_TOLERANCE = 1e-2
"""Largest relative difference from the first engine at which another is still timed."""

_BLOCK_SECONDS = 0.05


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was measured of one executable.

    Attributes:
        name: The caller's name for it.
        engine: The engine that compiled it.
        difference: Largest relative difference from the outputs of the first one.
        error: Why it was not timed: it failed, or its answers are others.
        runs: How many runs were timed.
        min_seconds: The fastest run.
        median_seconds: The run in the middle.
        p99_seconds: The run that 99 of 100 were not slower than.
        items_per_second: Items of a run over `median_seconds`.
        ratio: `median_seconds` over that of the first executable timed.
    """

    name: str
    engine: str
    difference: float | None = None
    error: str | None = None
    runs: int = 0
    min_seconds: float | None = None
    median_seconds: float | None = None
    p99_seconds: float | None = None
    items_per_second: float | None = None
    ratio: float | None = None


def measure(
    executables: Mapping[str, Executable],
    feeds: Mapping[str, Any],
    *,
    batch: int = 1,
    seconds: float = 2.0,
    warmup_seconds: float = 0.2,
    tolerance: float = DEFAULT_TOLERANCE,
) -> list[Measurement]:
    """Time executables of one model on the same inputs, in turns of a twentieth of a second.

    The turns make a slow moment of the machine fall on all of them; who begins changes with every round.
    An executable that fails, or whose answers are not those of the first, is reported and not timed.

    Args:
        executables: Each by the caller's name; the first is the baseline of `ratio` and of the answers.
        batch: How many items the inputs hold.
        seconds: Time for each executable; each gets at least one run.
        warmup_seconds: Time that each runs beforehand, untimed; at least one run.
    """
    checked = _checked(executables, feeds, tolerance)
    timed = {name: executables[name] for name, found in checked.items() if found.error is None}
    for executable in timed.values():
        _turn(executable, feeds, warmup_seconds)
    times = _interleaved(timed, feeds, seconds)
    baseline = next((float(np.median(each)) for each in times.values()), None)
    return [
        _settled(found, np.array(times[name]), batch, baseline) if name in times else found
        for name, found in checked.items()
    ]


def _checked(
    executables: Mapping[str, Executable], feeds: Mapping[str, Any], tolerance: float
) -> dict[str, Measurement]:
    checked = {}
    baseline: tuple[str, dict[str, Any]] | None = None
    for name, executable in executables.items():
        found = Measurement(name, executable.engine)
        try:
            outputs = executable.run(feeds)
        except EduceError as fault:
            checked[name] = msgspec.structs.replace(found, error=str(fault))
            continue
        first, expected = baseline = baseline or (name, outputs)
        worst = max(differences_of(outputs, expected), key=lambda each: each.max_relative)
        error = None
        if not worst.max_relative <= tolerance:
            reason = worst.reason or f"it differs by {worst.max_relative:.2g} of the largest value"
            error = f"its output {worst.output!r} is not that of {first}: {reason}"
        checked[name] = msgspec.structs.replace(found, difference=worst.max_relative, error=error)
    return checked


def _interleaved(
    executables: Mapping[str, Executable], feeds: Mapping[str, Any], seconds: float
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in executables}
    spent = dict.fromkeys(executables, 0.0)
    order = list(executables)
    while waiting := [name for name in order if spent[name] < seconds or not times[name]]:
        for name in waiting:
            turn = _turn(executables[name], feeds, min(_BLOCK_SECONDS, max(seconds - spent[name], 0.0)))
            times[name].extend(turn)
            spent[name] += sum(turn)
        order = [*order[1:], order[0]]
    return times


def _turn(executable: Executable, feeds: Mapping[str, Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        executable.run(feeds)
        now = time.perf_counter()
        times.append(now - begin)
        if now >= end:
            return times


def _settled(found: Measurement, times: np.ndarray, batch: int, baseline: float | None) -> Measurement:
    median = float(np.median(times))
    return msgspec.structs.replace(
        found,
        runs=len(times),
        min_seconds=float(times.min()),
        median_seconds=median,
        p99_seconds=float(np.percentile(times, 99, method="higher")),
        items_per_second=batch / median,
        ratio=None if baseline is None else median / baseline,
    )
