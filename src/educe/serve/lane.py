"""`Lane`: the way of requests to one model: they wait, run together, and each has its own answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from educe.machine import usable_cores
from educe.serve.batcher import BRIEF_SECONDS, Batcher, Ticket
from educe.serve.observation import Timing, note_timing
from educe.serve.statistics import ModelStatistics
from educe.serve.threads import hold_until, in_thread

Run = Callable[[Hashable, Sequence[Any]], Sequence[Any]]
"""Runs requests of one group: their contents to their results, each of which may be an exception."""

T = TypeVar("T")


# A run that is expected to be shorter costs less than waiting for companions.
_TRIFLING_SECONDS = 0.00005
# For so many numbers of rows an engine keeps what it has compiled.
_NUM_PROGRAMS = 64


@dataclass(slots=True, eq=False)
class _Waiting(Ticket):
    content: Any = None
    future: asyncio.Future[tuple[Any, Timing]] = field(kw_only=True)


class Lane:
    """The requests of one model, of which one batch runs at a time. It belongs to one event loop.

    Attributes:
        batcher: What plans the runs.
        num_running: How many requests run.
        work: The present run, if a thread does it; it goes on when nobody waits for it any more.

    Args:
        run: What runs them; called in a thread of `pool`, or in the loop if it is known to take no time.
        batcher: What plans the runs.
        pool: The threads.
        compile_seconds: How long a thread's runs so far have compiled, which is no cost of a run.
        is_small: Says whether a content is so small, and so shaped, that its rows tell how long it takes.
        statistics: Where requests and runs are counted; if absent, nobody reads them.
    """

    def __init__(
        self,
        run: Run,
        batcher: Batcher,
        pool: Executor,
        compile_seconds: Callable[[], float] = lambda: 0.0,
        is_small: Callable[[Any], bool] = lambda content: False,
        statistics: ModelStatistics | None = None,
    ) -> None:
        self.batcher = batcher
        self.num_running = 0
        self._statistics = statistics or ModelStatistics()
        self._run, self._pool, self._compile_seconds = run, pool, compile_seconds
        self._is_small = is_small
        self._loop = asyncio.get_running_loop()
        self._run_rows: set[int] = set()
        self._is_due = False
        self._began: float | None = None
        self.work: asyncio.Future[tuple[Sequence[Any], float]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._began is None and not self.batcher.waiting

    @property
    def running_seconds(self) -> float:
        """For how long the present run has lasted; 0 if there is none."""
        return 0.0 if self._began is None else self._loop.time() - self._began

    async def submit(
        self, group: Hashable, content: Any, rows: int, *, deadline: float, priority: int = 0
    ) -> tuple[Any, Timing]:
        """Return the result of a request, with where its time went.

        Args:
            group: Requests of one group can run together.
            content: What the run takes.
            rows: Its rows.
            deadline: When its answer is of no use any more, by the loop's clock; `Deadline` ends it then.
            priority: Lower numbers go first.

        Raises:
            Overloaded: too many requests wait.
            DeadlineExceeded: the deadline would pass before its run.
        """
        now = self._loop.time()
        if self.is_idle and self._is_brief(rows, [content], _TRIFLING_SECONDS):
            return self._run_alone(group, content, rows)
        ticket = _Waiting(
            group, rows, now, deadline, priority, content=content, future=self._loop.create_future()
        )
        self.batcher.offer(ticket, now)
        self._wake()
        try:
            found = await ticket.future
        except asyncio.CancelledError:
            if not self.batcher.withdraw(ticket) and self.work is not None:
                hold_until(self.work)
            raise
        note_timing(found[1])
        return found

    async def read(self, read: Callable[[], T], pool: Executor, deadline: float, priority: int = 0) -> T:
        """Return what the reading of a request's input gives, which takes a place in the queue until it ends.

        Args:
            read: Reads it; called in a thread.
            pool: The threads.
            deadline: When the answer is of no use any more.
            priority: The request's; lower numbers go first.

        Raises:
            Overloaded: too many requests wait; nothing is read.
            DeadlineExceeded: the deadline would pass before its run.
        """
        self.batcher.admit(self._loop.time(), 1, deadline, priority)
        self.batcher.num_reading += 1
        found, seconds = await in_thread(pool, partial(_with_cpu_seconds, read), self._end_reading)
        self.batcher.read(seconds / usable_cores())
        return found

    def _end_reading(self) -> None:
        self.batcher.num_reading -= 1

    def _run_alone(self, group: Hashable, content: Any, rows: int) -> tuple[Any, Timing]:
        """Run a request at once, in the loop."""
        (result,), seconds = self._timed(group, [content])
        if isinstance(result, Exception):
            raise result
        self._count(rows, seconds)
        self._statistics.answered(0.0, seconds)
        timing = Timing(0.0, seconds, rows)
        note_timing(timing)
        return result, timing

    def _wake(self) -> None:
        """Have the next run planned when all requests that have come by now are known."""
        if not self._is_due and self._began is None:
            self._is_due = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._began is not None:
            return
        now = self._loop.time()
        start = self.batcher.start_at(now)
        if start is None:
            return
        if start > now:
            self._timer = self._loop.call_later(start - now, self._next)
            return
        self._begin(self.batcher.take(now), now)

    def _begin(self, batch: Sequence[Any], now: float) -> None:
        self._began = now
        self.num_running = len(batch)
        rows = sum(ticket.rows for ticket in batch)
        contents = [ticket.content for ticket in batch]
        if self._is_brief(rows, contents, BRIEF_SECONDS):  # not worth a thread's waking
            self._end(batch, now, rows, *self._timed(batch[0].group, contents))
            return
        self._note_rows(rows)
        self.work = self._loop.run_in_executor(self._pool, self._timed, batch[0].group, contents)
        self.work.add_done_callback(lambda done: self._end(batch, now, rows, *done.result()))

    def _is_brief(self, rows: int, contents: Sequence[Any], seconds: float) -> bool:
        """Say whether a run takes less than some seconds for sure, so that it may be done in the loop."""
        is_known = rows in self._run_rows and 0 < self.batcher.cost.seconds(rows) < seconds
        return is_known and all(map(self._is_small, contents))

    def _note_rows(self, rows: int) -> None:
        """Know that a thread runs so many rows, and compiles what they need."""
        if len(self._run_rows) == _NUM_PROGRAMS:
            self._run_rows.clear()
        self._run_rows.add(rows)

    def _end(
        self, batch: Sequence[_Waiting], start: float, rows: int, results: Sequence[Any], seconds: float
    ) -> None:
        self._began = self.work = None
        self.num_running = 0
        failed = [isinstance(result, Exception) for result in results]
        rows -= sum(ticket.rows for ticket, has_failed in zip(batch, failed, strict=True) if has_failed)
        self._count(rows, seconds)
        for ticket, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                _fail(ticket, result)
            elif not ticket.future.done():
                self._statistics.answered(start - ticket.arrival, seconds)
                ticket.future.set_result((result, Timing(start - ticket.arrival, seconds, rows)))
        if self.batcher.waiting:
            self._wake()

    def _count(self, rows: int, seconds: float) -> None:
        """Take note of a run that has ended, by the rows that were answered: none are no run."""
        if not rows:
            self.batcher.running_until = None
            return
        self.batcher.ended(rows, seconds)
        self._statistics.ran(rows, seconds)

    def _timed(self, group: Hashable, contents: Sequence[Any]) -> tuple[Sequence[Any], float]:
        """Return the results of a run, a fault of it as that of each, and its seconds."""
        compiled, start = self._compile_seconds(), time.perf_counter()
        try:
            results = self._run(group, contents)
        except Exception as fault:
            results = [fault] * len(contents)
        return results, time.perf_counter() - start - (self._compile_seconds() - compiled)


def _with_cpu_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call gives, and the seconds that it computed."""
    start = time.thread_time()
    found = call()
    return found, time.thread_time() - start


def _fail(ticket: Any, error: Exception) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
