"""What the models of a server have done: counts, and how often what took how long.

All of it belongs to the event loop. A number is added to where what it counts happens: runs and what
waited for them in `Lane`, texts where they end, failures where a request leaves a model.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from educe.generate.stream import Completion

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""The upper bounds of the classes of times."""

ROWS = tuple(float(1 << power) for power in range(11))
"""The upper bounds of the classes of rows."""


# Numbers of rows beyond this one share a place with others of their power of two.
_EXACT_ROWS = 64


class Histogram:
    """How many values lie in each of some classes.

    Args:
        bounds: The upper bounds of the classes but the last, which has none; a bound belongs to its class.

    Attributes:
        bounds: The same.
        counts: How many values each class has.
        sum: The values' sum.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, several times if it came so often."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def absorb(self, other: Histogram) -> None:
        """Count what another histogram of the same classes has counted."""
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class ModelStatistics:
    """What a model has done in all its versions since the server began.

    Attributes:
        num_answered: Requests that were answered.
        num_rows: Rows of runs that they had.
        failures: Requests that were not, by the kind of the error, or ``Cancelled``.
        queue: Seconds that requests waited for their run.
        run: Seconds of the runs, for each request in them.
        whole: Seconds from a request's being there to its answer.
        batch_rows: Rows of each run.
        batches: For each number of rows how many runs there were, and their seconds; numbers beyond 64
            count as the next power of two.
        first_token: Seconds until a text's first token.
        between_tokens: Seconds between a text's tokens, by their mean of each request.
        cache_hits: Seconds of requests whose answers were there already.
        num_cache_misses: Requests whose answers were not, of those that are kept.
        last_answer: When the last request was answered, in seconds since 1970; 0 if none was.
    """

    def __init__(self) -> None:
        self.num_answered = 0
        self.num_rows = 0
        self.failures: Counter[str] = Counter()
        self.queue, self.run, self.whole = Histogram(), Histogram(), Histogram()
        self.batch_rows = Histogram(ROWS)
        self.batches: dict[int, tuple[int, float]] = {}
        self.first_token, self.between_tokens = Histogram(), Histogram()
        self.cache_hits = Histogram()
        self.num_cache_misses = 0
        self.last_answer = 0.0

    def answered(self, queue: float, run: float) -> None:
        """Count a request that was answered after so many seconds in the queue and in its run."""
        self.num_answered += 1
        self.queue.add(queue)
        self.run.add(run)
        self.whole.add(queue + run)

    def found(self, seconds: float) -> None:
        """Count a request whose answer was there already."""
        self.num_answered += 1
        self.whole.add(seconds)
        self.cache_hits.add(seconds)
        self.last_answer = time.time()

    def missed(self) -> None:
        """Count a request whose answer is kept from now on."""
        self.num_cache_misses += 1

    def ran(self, rows: int, seconds: float) -> None:
        """Count a run of so many rows and seconds."""
        self.num_rows += rows
        self.batch_rows.add(rows)
        place = rows if rows <= _EXACT_ROWS else 1 << (rows - 1).bit_length()
        count, sum_seconds = self.batches.get(place, (0, 0.0))
        self.batches[place] = count + 1, sum_seconds + seconds
        self.last_answer = time.time()

    def wrote(self, completion: Completion) -> None:
        """Count a request of a generator that was answered."""
        seconds = completion.seconds
        self.answered(seconds.start, seconds.total - seconds.start)
        self.last_answer = time.time()
        if not completion.num_tokens:
            return
        self.first_token.add(seconds.first_token)
        gaps = max(len(output.tokens) for output in completion.outputs) - 1
        if gaps:
            self.between_tokens.add((seconds.total - seconds.first_token) / gaps, gaps)

    def failed(self, fault: BaseException) -> None:
        """Count a request that ended with an error, or because nobody waits for it any more."""
        self.failures[type(fault).__name__ if isinstance(fault, Exception) else "Cancelled"] += 1

    def absorb(self, other: ModelStatistics) -> None:
        """Count what another process of the server has counted."""
        self.num_answered += other.num_answered
        self.num_rows += other.num_rows
        self.failures.update(other.failures)
        self.num_cache_misses += other.num_cache_misses
        names = ("queue", "run", "whole", "batch_rows", "first_token", "between_tokens", "cache_hits")
        for name in names:
            getattr(self, name).absorb(getattr(other, name))
        for rows, (count, seconds) in other.batches.items():
            mine, my_seconds = self.batches.get(rows, (0, 0.0))
            self.batches[rows] = mine + count, my_seconds + seconds
        self.last_answer = max(self.last_answer, other.last_answer)
