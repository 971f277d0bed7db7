"""`ResponseCache`: answers that need no run, since the same was asked before, or is being asked."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from educe.model import Model
from educe.model.walk import RANDOM_OPERATORS, all_nodes
from educe.serve.observation import Timing, note_timing
from educe.serve.statistics import ModelStatistics
from educe.serve.threads import aside, hold_until
from educe.tasks.answer import Answer
from educe.tasks.predictor import Result

Run = Callable[[], Awaitable[tuple[Any, Timing]]]
"""Answers a request by running its model."""

# What an answer takes beside its arrays and texts, by its number of values.
_VALUE_BYTES = 64
_ENTRY_BYTES = 512


@dataclass(frozen=True)
class _Kept:
    owner: ModelCache
    answer: Any
    size_bytes: int


@dataclass(eq=False)
class _Flight:
    task: asyncio.Task[tuple[Any, Timing]]
    num_waiting: int = 0


class ResponseCache:
    """Answers by the content of what was asked; those not asked for longest make room.

    It belongs to one event loop. What it gives is shared: its arrays cannot be written to.

    Args:
        capacity_bytes: The most that all answers may take.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes, self._size_bytes = capacity_bytes, 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}

    def drop(self, owner: ModelCache) -> None:
        """Forget the answers of a model that is loaded no more."""
        for key in [key for key, kept in self._kept.items() if kept.owner is owner]:
            self._forget(key)

    async def answer(self, key: bytes, owner: ModelCache, run: Run) -> tuple[Any, Timing]:
        """Return a model's answer to what has a key; `ModelCache` has the rest."""
        start = time.perf_counter()
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept.answer, _hit(owner, start)
        flight = self._flights.get(key)
        is_first = flight is None
        if flight is None:
            flight = self._begin(key, owner, run)
        task = flight.task
        await self._wait(key, flight)
        if not is_first and not task.cancelled() and task.exception() is None:
            return task.result()[0], _hit(owner, start)
        answer, timing = task.result() if is_first else await run()
        timing.cache = "miss"
        owner.statistics.missed()
        return answer, timing

    def _begin(self, key: bytes, owner: ModelCache, run: Run) -> _Flight:
        async def fly() -> tuple[Any, Timing]:
            answer, timing = await run()
            answer = owned(answer)
            if not any(isinstance(each, Result) and each.error is not None for each in answer):
                self._keep(key, owner, answer)
            return answer, timing

        flight = self._flights[key] = _Flight(asyncio.create_task(fly()))
        flight.task.add_done_callback(lambda task: self._land(key, flight))
        return flight

    async def _wait(self, key: bytes, flight: _Flight) -> None:
        flight.num_waiting += 1
        try:
            await asyncio.wait({flight.task})
        except asyncio.CancelledError:
            hold_until(flight.task)
            raise
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                flight.task.cancel()
                self._flights.pop(key)

    def _land(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.cancelled():
            flight.task.exception()  # which nobody may be left to look at

    def _keep(self, key: bytes, owner: ModelCache, answer: Any) -> None:
        size = _ENTRY_BYTES + size_bytes(answer)
        if owner.is_gone or size > self._capacity_bytes:
            return
        if key in self._kept:
            self._forget(key)
        self._kept[key] = _Kept(owner, answer, size)
        self._size_bytes += size
        owner.size_bytes += size
        while self._size_bytes > self._capacity_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self._size_bytes -= kept.size_bytes
        kept.owner.size_bytes -= kept.size_bytes


class ModelCache:
    """The answers of one model, as long as it is loaded.

    Args:
        shared: What keeps the answers of all models.
        statistics: Where hits and misses are counted.

    Attributes:
        statistics: The same.
        size_bytes: What its answers take.
        is_gone: Whether the model is loaded no more, and nothing of it is kept.
    """

    def __init__(self, shared: ResponseCache, statistics: ModelStatistics) -> None:
        self.statistics = statistics
        self.size_bytes, self.is_gone = 0, False
        # No other model, version or loading of it has the same: their keys have nothing in common.
        self._shared, self._secret = shared, secrets.token_bytes(32)

    async def answer(self, parts: Sequence[Any], size_bytes: int, run: Run) -> tuple[Any, Timing]:
        """Return an answer: one that is kept, that of the same request which runs now, or one of a run.

        A run goes on as long as anyone waits for it. If it fails, only who has begun it fails with it: the
        deadline and the place in the queue were that one's alone.

        Args:
            parts: All that the answer depends on beside the model: arrays, bytes, texts, numbers, bools and
                None, and lists, tuples and mappings of such.
            size_bytes: About how large they are.
            run: Runs the model.
        """
        key = await aside(size_bytes, lambda: self.key(parts))
        return await self._shared.answer(key, self, run)

    def key(self, parts: Sequence[Any]) -> bytes:
        """Return what a request is known by: a keyed hash of its content."""
        digest = blake2b(key=self._secret, digest_size=32)
        _add(digest, parts)
        return digest.digest()

    def drop(self) -> None:
        """Forget all, and keep no more."""
        self.is_gone = True
        self._shared.drop(self)


def is_deterministic(model: Model) -> bool:
    """Say whether a model gives the same answer each time."""
    return not any(
        node.op_type in RANDOM_OPERATORS or (node.op_type == "Dropout" and len(node.inputs) > 2)
        for node in all_nodes(model.graph)
    )


def _add(digest: Any, value: Any) -> None:
    """Hash a value, its type and its length before it, so that no two values look alike."""
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.dtype.name} {value.shape};".encode())
        if value.dtype.kind in "OUS":
            for element in value.flat:
                _add(digest, element)
        else:
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, bytes | bytearray | memoryview):
        digest.update(b"bytes %d;" % len(value))
        digest.update(value)
    elif isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
        digest.update(b"text %d;" % len(content))
        digest.update(content)
    elif isinstance(value, Mapping):
        digest.update(b"mapping %d;" % len(value))
        for name in sorted(value):
            _add(digest, name)
            _add(digest, value[name])
    elif isinstance(value, list | tuple):
        digest.update(b"list %d;" % len(value))
        for each in value:
            _add(digest, each)
    elif value is None or isinstance(value, bool | int | float):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"no content of a request: {type(value).__name__}")


def owned(value: Any) -> Any:
    """Return an answer without its input; its arrays are its own, and cannot be written to."""
    if isinstance(value, np.ndarray):
        array = value if value.base is None else value.copy()
        array.flags.writeable = False
        return array
    if isinstance(value, dict):
        return {name: owned(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(owned(each) for each in value)
    if isinstance(value, Result):
        return replace(value, item=None, answer=owned(value.answer))
    if isinstance(value, Answer):
        return msgspec.structs.replace(value, outputs=owned(value.outputs))
    return value


def size_bytes(value: Any) -> int:
    """Return about how much memory an answer takes."""
    if isinstance(value, np.ndarray):
        elements = value.flat if value.dtype.kind == "O" else ()
        return _VALUE_BYTES + value.nbytes + sum(map(size_bytes, elements))
    if isinstance(value, bytes | str):
        return _VALUE_BYTES + len(value) * (1 if isinstance(value, bytes) else 4)
    if isinstance(value, dict):
        return _VALUE_BYTES + sum(size_bytes(name) + size_bytes(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return _VALUE_BYTES + sum(map(size_bytes, value))
    if isinstance(value, Result):
        return _VALUE_BYTES + size_bytes(value.input) + size_bytes(value.answer)
    if isinstance(value, msgspec.Struct):
        return _VALUE_BYTES + sum(size_bytes(getattr(value, name)) for name in value.__struct_fields__)
    return _VALUE_BYTES


def _hit(owner: ModelCache, start: float) -> Timing:
    seconds = time.perf_counter() - start
    owner.statistics.found(seconds)
    timing = Timing(seconds, 0.0, 0, "hit")
    note_timing(timing)
    return timing
