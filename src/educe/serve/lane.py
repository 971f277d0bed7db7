"""`Lane`: the way of requests to one model: they wait, run together, and each has its own answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from educe.machine import usable_cores
from educe.serve.batcher import BRIEF_SECONDS, Batch, Batcher, Ticket
from educe.serve.faults import NotReady
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
    """The requests of one model.

    It belongs to one event loop. Only the next run is also begun by the thread that has ended one, under
    the lane's lock: the loop may have other things to do, and the machine would be idle until it comes.

    Attributes:
        batcher: What plans the runs.

    Args:
        run: What runs them; called in a thread of `pool`, or in the loop if it is known to take no time.
        batcher: What plans the runs.
        pool: The threads.
        crowd: Told by how many more runs there are beside another, so that each stays on its core.
        compile_seconds: How long a thread's runs so far have compiled, which is no cost of a run.
        is_small: Says whether a content is so small, and so shaped, that its rows tell how long it takes.
        statistics: Where requests and runs are counted; if absent, nobody reads them.
    """

    def __init__(
        self,
        run: Run,
        batcher: Batcher,
        pool: Executor,
        crowd: Callable[[int], object] = lambda by: None,
        compile_seconds: Callable[[], float] = lambda: 0.0,
        is_small: Callable[[Any], bool] = lambda content: False,
        statistics: ModelStatistics | None = None,
    ) -> None:
        self.batcher = batcher
        self._statistics = statistics or ModelStatistics()
        self._run, self._pool, self._compile_seconds = run, pool, compile_seconds
        self._crowd, self._is_small = crowd, is_small
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()  # of the batcher
        self._ends: dict[Batch, asyncio.Future[None]] = {}
        self._num_cores = usable_cores()
        self._run_seconds: dict[int, float] = {}  # of the last run of so many rows
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        with self._lock:
            return not self.batcher.running and not self.batcher.waiting

    @property
    def num_running(self) -> int:
        """How many requests run."""
        with self._lock:
            return sum(len(batch.tickets) for batch in self.batcher.running)

    @property
    def running_seconds(self) -> float:
        """For how long the longest of the present runs has lasted; 0 if there is none."""
        with self._lock:
            now = self._loop.time()
            return max([0.0, *(now - batch.start for batch in self.batcher.running)])

    def end_of_runs(self) -> asyncio.Future[Any] | None:
        """Return what is done when all present runs have ended, whoever waits for them; None without any."""
        with self._lock:
            ends = [
                self._ends.setdefault(batch, self._loop.create_future()) for batch in self.batcher.running
            ]
        return asyncio.gather(*ends) if ends else None

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
        with self._lock:
            self.batcher.offer(ticket, now)
        self._wake()
        try:
            found = await ticket.future
        except asyncio.CancelledError:
            with self._lock:
                is_withdrawn = self.batcher.withdraw(ticket)
            ends = None if is_withdrawn else self.end_of_runs()
            if ends is not None:
                hold_until(ends)
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
        with self._lock:
            self.batcher.admit(self._loop.time(), 1, deadline, priority)
            self.batcher.num_reading += 1
        found, seconds = await in_thread(pool, partial(_with_cpu_seconds, read), self._end_reading)
        with self._lock:
            self.batcher.read(seconds / self._num_cores)
        return found

    def _end_reading(self) -> None:
        with self._lock:
            self.batcher.num_reading -= 1

    def _run_alone(self, group: Hashable, content: Any, rows: int) -> tuple[Any, Timing]:
        """Run a request at once, in the loop."""
        (result,), seconds = self._timed(group, [content])
        if isinstance(result, Exception):
            raise result
        with self._lock:
            self._note_rows(rows, seconds)
            self.batcher.cost.learn(rows, seconds)
        self._statistics.ran(rows, seconds)
        self._statistics.answered(0.0, seconds)
        timing = Timing(0.0, seconds, rows)
        note_timing(timing)
        return result, timing

    def _wake(self) -> None:
        """Have the next run planned when all requests that have come by now are known."""
        if not self._is_due and len(self.batcher.running) < self.batcher.max_runs:
            self._is_due = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin the next run, if it is time, from the loop."""
        self._is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        with self._lock:
            start = self.batcher.start_at(now)
            if start is None:
                return
            if start > now:
                self._timer = self._loop.call_later(start - now, self._next)
                return
            batch = self._take(now)
            contents = _contents(batch)
            is_brief = self._is_brief(batch.rows, contents, BRIEF_SECONDS)
        if is_brief:  # not worth a thread's waking
            results, seconds = self._timed(batch.tickets[0].group, contents)
            with self._lock:
                rows = self._ended(batch, results, seconds)
            self._answer(batch, results, seconds, rows)
        else:
            self._submit(batch, time.perf_counter())
            if self.batcher.waiting:
                self._wake()

    def _work(self, batch: Batch, began: float) -> None:
        """Do a run in a thread, and begin the next.

        Args:
            batch: What runs.
            began: When it began by `time.perf_counter`, which a thread can read, unlike the loop's clock.
        """
        with self._lock:
            if batch not in self.batcher.running:
                return
        results, seconds = self._timed(batch.tickets[0].group, _contents(batch))
        following: Batch | None = None
        with self._lock:
            end = time.perf_counter()
            rows = self._ended(batch, results, seconds)
            now = batch.start + end - began
            start = self.batcher.start_at(now) if seconds >= BRIEF_SECONDS else None
            if start is not None and start <= now:
                following = self._take(now)
        if following is not None:
            self._submit(following, end)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._answer, batch, results, seconds, rows)

    def _take(self, now: float) -> Batch:
        batch = self.batcher.take(now)
        if len(self.batcher.running) > 1:
            self._crowd(1)
        return batch

    def _submit(self, batch: Batch, began: float) -> None:
        """Have a thread do a run; if none does, as at the server's end, its requests are told."""

        def drop() -> None:
            with self._lock:
                if batch not in self.batcher.running:
                    return
                self._leave(batch)
            fault = NotReady("no thread of the server is left to run the model")
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._answer, batch, [fault] * len(batch.tickets), 0.0, 0)

        try:
            submitted = self._pool.submit(self._work, batch, began)
        except RuntimeError:
            drop()
        else:
            submitted.add_done_callback(lambda done: drop() if done.cancelled() else None)

    def _is_brief(self, rows: int, contents: Sequence[Any], seconds: float) -> bool:
        """Say whether a run takes less than some seconds for sure, so that it may be done in the loop.

        It does if a thread has done one of so many rows, and has compiled what it needs.
        """
        is_known = self._run_seconds.get(rows, math.inf) < seconds
        is_known = is_known and 0 < self.batcher.cost.seconds(rows) < seconds
        return is_known and all(map(self._is_small, contents))

    def _note_rows(self, rows: int, seconds: float) -> None:
        if len(self._run_seconds) == _NUM_PROGRAMS and rows not in self._run_seconds:
            self._run_seconds.clear()
        self._run_seconds[rows] = seconds

    def _ended(self, batch: Batch, results: Sequence[Any], seconds: float) -> int:
        """Take note of a run's end, and return how many of its rows were answered."""
        self._leave(batch)
        self._note_rows(batch.rows, seconds)
        pairs = zip(batch.tickets, results, strict=True)
        rows = sum(ticket.rows for ticket, result in pairs if not isinstance(result, Exception))
        if rows:  # else it was no run
            self.batcher.learn(batch, rows, seconds)
        return rows

    def _leave(self, batch: Batch) -> None:
        self.batcher.ended(batch)
        if self.batcher.running:
            self._crowd(-1)

    def _answer(self, batch: Batch, results: Sequence[Any], seconds: float, rows: int) -> None:
        """Give all requests of a run their answers."""
        if rows:
            self._statistics.ran(rows, seconds)
        tickets: Sequence[Any] = batch.tickets
        for ticket, result in zip(tickets, results, strict=True):
            if isinstance(result, Exception):
                _fail(ticket, result)
            elif not ticket.future.done():
                waited = max(0.0, batch.start - ticket.arrival)  # an event loop's clock may be coarse
                self._statistics.answered(waited, seconds)
                ticket.future.set_result((result, Timing(waited, seconds, rows)))
        end = self._ends.pop(batch, None)
        if end is not None:
            end.set_result(None)
        if self.batcher.waiting:
            self._wake()

    def _timed(self, group: Hashable, contents: Sequence[Any]) -> tuple[Sequence[Any], float]:
        """Return the results of a run, a fault of it as that of each, and its seconds."""
        compiled, start = self._compile_seconds(), time.perf_counter()
        try:
            results = self._run(group, contents)
            if len(results) != len(contents):
                raise RuntimeError(f"a run of {len(contents)} requests gave {len(results)} results")
        except KeyboardInterrupt:
            raise
        except BaseException as fault:  # a library's panic is no `Exception`
            told = fault if isinstance(fault, Exception) else RuntimeError(repr(fault))
            results = [told] * len(contents)
        return results, time.perf_counter() - start - (self._compile_seconds() - compiled)


def _with_cpu_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call gives, and the seconds that it computed."""
    start = time.thread_time()
    found = call()
    return found, time.thread_time() - start


def _contents(batch: Batch) -> list[Any]:
    tickets: Sequence[Any] = batch.tickets
    return [ticket.content for ticket in tickets]


def _fail(ticket: Any, error: Exception) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
