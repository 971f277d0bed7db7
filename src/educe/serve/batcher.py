"""`Batcher`: which waiting requests of a model run together, and when. It holds no arrays and knows no clock.

A request that finds the engine idle runs at once. While a run lasts, others come; when it ends, as many of
them run together as lets those that wait end soonest on average, by what the batcher has learnt of the cost
of runs. Where it is best that short runs follow each other, and there are enough for all cores, they run
beside each other, each on a core: the last ends no later, and no core waits for another. Only with a target
for the latency may an idle engine wait, and only if what is expected to come in that time saves more than
the wait.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from educe.serve.cost import CostCurve
from educe.serve.faults import DeadlineExceeded, Overloaded

BRIEF_SECONDS = 0.0003
"""A run that is expected to be shorter costs less than what comes with any run."""

_SHARE = 0.1
# How much of a latency may be spent in the queue and the run; the rest is for receiving and sending.
_SHARE_OF_RUNS = 0.7
# What cores lose by waiting for each other is a matter of milliseconds: longer runs are better one by one.
_MOST_SECONDS_BESIDE = 0.1
# Requests never wait longer than so many times what their runs take: more is a machine that was stopped.
_MOST_PATIENCE = 4.0


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that waits for a run.

    Attributes:
        group: Requests of one group can run together.
        rows: How many rows of a run it takes.
        arrival: When it came, in seconds of the caller's clock.
        deadline: When its answer is of no use any more.
        priority: Lower numbers go first.
        expected_seconds: How long it was expected to wait when it came.
    """

    group: Hashable
    rows: int
    arrival: float
    deadline: float = math.inf
    priority: int = 0
    expected_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run together.

    Attributes:
        tickets: The requests.
        start: When their run began, in seconds of the caller's clock.
        until: When it is expected to end.
        num_runs: How many runs there were then, this one included.
    """

    tickets: list[Ticket]
    start: float
    until: float
    num_runs: int

    @property
    def rows(self) -> int:
        """How many rows the run has."""
        return sum(ticket.rows for ticket in self.tickets)


@dataclass(slots=True)
class Batcher:
    """The requests that wait for one model.

    Attributes:
        max_rows: Most rows of a run; a request that has more runs alone.
        max_waiting: Most requests that wait.
        target_seconds: Within which time answers are wanted; None if as soon as may be.
        max_runs: Most runs beside each other: the cores, if a run may use them all or be one of many.
        cost: What runs cost, in seconds in which they have the machine alone; two at once take twice as long.
        waiting: The requests, in the order in which they run.
        running: Those that run.
        num_reading: How many requests are admitted, but their inputs are still being read.
    """

    max_rows: int
    max_waiting: int
    target_seconds: float | None = None
    max_runs: int = 1
    cost: CostCurve = field(default_factory=CostCurve)
    waiting: list[Ticket] = field(default_factory=list)
    running: list[Batch] = field(default_factory=list)
    num_reading: int = 0
    _rows: Counter[int] = field(default_factory=Counter)  # that wait, by priority
    _read_seconds: float = 0.0
    _patience: float = 1.0
    _last_arrival: float | None = None
    _gap_seconds: float = math.inf

    def offer(self, ticket: Ticket, now: float) -> None:
        """Let a request wait.

        Raises:
            Overloaded: too many wait already, or those before it take longer than the target allows.
            DeadlineExceeded: its deadline will have passed before it can have run.
        """
        self._note_arrival(now)
        ticket.expected_seconds = self.admit(now, ticket.rows, ticket.deadline, ticket.priority)
        place = len(self.waiting)
        while place and self.waiting[place - 1].priority > ticket.priority:
            place -= 1
        self.waiting.insert(place, ticket)
        self._rows[ticket.priority] += ticket.rows

    def admit(self, now: float, rows: int, deadline: float = math.inf, priority: int = 0) -> float:
        """Return how long a request that came now would wait before its run.

        Raises:
            Overloaded: too many wait already, or its answer would come later than the target allows.
            DeadlineExceeded: its deadline would have passed by then.
        """
        wait = self.wait_seconds(now, priority)
        if len(self.waiting) + self.num_reading >= self.max_waiting:
            raise Overloaded(f"{self.max_waiting} requests wait for this model", retry_after=wait)
        seconds = wait + self.cost.seconds(rows) * max(1, len(self.running))
        if now + seconds > deadline:
            raise DeadlineExceeded("the request cannot be answered in its time", retry_after=wait)
        if self.target_seconds is not None and wait > 0 and seconds > _SHARE_OF_RUNS * self.target_seconds:
            raise Overloaded("requests wait longer than the target for the latency", retry_after=wait)
        return wait

    def read(self, seconds: float) -> None:
        """Take note of how much of all cores' time the reading of an input took."""
        known = self._read_seconds
        self._read_seconds = seconds if not known else known + _SHARE * (seconds - known)

    def withdraw(self, ticket: Ticket) -> bool:
        """Forget a request, and say whether it still waited."""
        if ticket not in self.waiting:
            return False
        self.waiting.remove(ticket)
        self._leave(ticket)
        return True

    def wait_seconds(self, now: float, priority: int = 0) -> float:
        """Return how long a request that came now would wait before its run."""
        rows = sum(count for level, count in self._rows.items() if level <= priority)
        running = max(0.0, min((batch.until for batch in self.running), default=now) - now)
        row_seconds = self.cost.least_row_seconds
        read = self.num_reading * (row_seconds + self._read_seconds)
        return self._patience * (running + rows * row_seconds + read)

    def start_at(self, now: float) -> float | None:
        """Return when the next run should start: now, a little later if waiting pays, None if not before."""
        if not self.waiting:
            return None
        if self.running:
            return now if self._pays_beside() else None
        first = self.waiting[0]
        rows = sum(ticket.rows for ticket in self._companions(first))
        if self.target_seconds is None or rows >= self.max_rows:
            return now
        saved = self.cost.seconds(rows) + self.cost.seconds(1) - self.cost.seconds(rows + 1)
        if self._gap_seconds >= saved:
            return now
        latest = min(first.arrival + self.target_seconds, first.deadline) - self.cost.seconds(rows + 1)
        return max(now, min(first.arrival + saved, latest))

    def take(self, now: float) -> Batch:
        """Take out the requests of the next run, which begins."""
        batch = self._following()
        if len(batch) == len(self.waiting):
            self.waiting = []
        else:
            taken = set(map(id, batch))
            self.waiting = [ticket for ticket in self.waiting if id(ticket) not in taken]
        for ticket in batch:
            self._leave(ticket)
        self._note_waits(batch, now)
        num_runs = len(self.running) + 1
        seconds = self.cost.seconds(sum(ticket.rows for ticket in batch)) * num_runs
        taken_out = Batch(batch, now, now + seconds, num_runs)
        self.running.append(taken_out)
        return taken_out

    def ended(self, batch: Batch) -> None:
        """Take note of a run's end."""
        self.running.remove(batch)

    def learn(self, batch: Batch, rows: int, seconds: float) -> None:
        """Take note of how long a run took that has just ended, and how many of its rows were answered."""
        self.cost.learn(rows, seconds * 2 / (batch.num_runs + len(self.running) + 1))

    def _leave(self, ticket: Ticket) -> None:
        self._rows[ticket.priority] -= ticket.rows
        if not self._rows[ticket.priority]:
            del self._rows[ticket.priority]

    def _pays_beside(self) -> bool:
        """Say whether a run should begin beside others, all of which it makes slower."""
        num_runs, num_waiting = len(self.running), len(self.waiting)
        if num_runs >= self.max_runs or (num_runs + num_waiting < self.max_runs and num_runs == 1):
            return False
        following = self._following()
        seconds = self.cost.seconds(sum(ticket.rows for ticket in following)) * self.max_runs
        return seconds < _MOST_SECONDS_BESIDE and (num_runs > 1 or len(following) < num_waiting)

    def _following(self) -> list[Ticket]:
        """Return the requests of the next run."""
        batch = self._companions(self.waiting[0])
        return batch[: self._best_count([ticket.rows for ticket in batch])] if len(batch) > 1 else batch

    def _companions(self, first: Ticket) -> list[Ticket]:
        """Return the first request and those that can run with it, as many as fit into a run."""
        chosen, rows = [first], first.rows
        for ticket in self.waiting:
            if ticket is first or ticket.group != first.group:
                continue
            if rows + ticket.rows > self.max_rows:
                break
            chosen.append(ticket)
            rows += ticket.rows
        return chosen

    def _best_count(self, sizes: Sequence[int]) -> int:
        """Return how many of some requests should run at once, so that all of them end soonest on average.

        If runs of n requests follow each other, the mean of their ends is the time of a run times half of
        one more than their number.
        """
        if self.cost.seconds(sum(sizes)) < BRIEF_SECONDS:
            return len(sizes)
        counts = {len(sizes)}
        counts.update(1 << power for power in range(len(sizes).bit_length()) if 1 << power < len(sizes))
        rows = sum(sizes) / len(sizes)

        def mean_end(count: int) -> float:
            return self.cost.seconds(math.ceil(count * rows)) * (math.ceil(len(sizes) / count) + 1) / 2

        return min(sorted(counts, reverse=True), key=mean_end)

    def _note_waits(self, batch: Sequence[Ticket], now: float) -> None:
        """Learn by how much requests wait longer than was expected, whatever the reason is."""
        for ticket in batch:
            if ticket.expected_seconds > BRIEF_SECONDS:
                ratio = (now - ticket.arrival) / ticket.expected_seconds * self._patience
                ratio = min(max(ratio, 1.0), _MOST_PATIENCE)
                self._patience += _SHARE * (ratio - self._patience)

    def _note_arrival(self, now: float) -> None:
        if self._last_arrival is not None:
            gap = now - self._last_arrival
            known = self._gap_seconds
            self._gap_seconds = gap if math.isinf(known) else known + _SHARE * (gap - known)
        self._last_arrival = now
