"""`Observed`: what is known of a request, for those who count, log and trace it.

A request's `Observed` is in a context variable while it is answered, so that what answers it can add what
it knows, however deep it lies: `note_model`, `note_timing`, `note_text` and `note_error`.
"""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from educe.serve.statistics import ModelStatistics

if TYPE_CHECKING:
    from educe.generate.stream import Completion

GRPC = "gRPC"
"""What stands in the place of HTTP's method for a call of gRPC."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """What names requests in answers and in the log."""

    def __init__(self) -> None:
        self._prefix, self._numbers = secrets.token_hex(6), count()

    def of(self, given: str | None) -> str:
        """Return the name that a request has given itself, if it is a decent one, else a new one."""
        if given is not None and _ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers)}"


@dataclass(slots=True)
class Timing:
    """Where a request's time went, in seconds.

    Attributes:
        queue: Until its run began.
        run: Its run.
        rows: Rows of its run, those of other requests included.
        cache: Whether its answer was there already: ``hit`` or ``miss``; empty if answers are not kept.
    """

    queue: float
    run: float
    rows: int
    cache: str = ""

    def parameters(self) -> dict[str, int | str]:
        """Return it as the parameters of an answer of the Open Inference Protocol, in microseconds."""
        found: dict[str, int | str] = {
            "queue_us": round(self.queue * 1e6),
            "run_us": round(self.run * 1e6),
            "batch_rows": self.rows,
        }
        if self.cache:
            found["cache"] = self.cache
        return found

    def header(self) -> bytes:
        """Return it as a ``Server-Timing`` header has it, in milliseconds."""
        found = b"queue;dur=%.3f, run;dur=%.3f, rows;desc=%d" % (self.queue * 1e3, self.run * 1e3, self.rows)
        return found + b", cache;desc=" + self.cache.encode() if self.cache else found


@dataclass(slots=True)
class Observed:
    """What is known of a request.

    Attributes:
        method: Its method in HTTP, or `GRPC`.
        route: Its route, with names in braces, or the method in gRPC; empty if there is none.
        id: What names it in answers and in the log.
        status: The status of the answer, in gRPC by its name; 499 and ``CANCELLED`` if the client went before
            its end.
        error: The kind of the error that it ended with; empty if there was none.
        message: What the client was told of it.
        model: The model that it has used; empty if none.
        version: The model's version.
        statistics: Where what the model does is counted; None if it has used none.
        timing: Where the time of its run went; None if there was none.
        timing_end_ns: When that run ended, in nanoseconds since 1970.
        num_prompt_tokens: Tokens of the prompts of its texts.
        num_tokens: Tokens that were written.
        traceparent: The span that it belongs to, as the W3C writes it; empty if none.
        tracestate: What belongs to that.
        start_ns: When it began, in nanoseconds since 1970.
        began: The same, by the clock of `time.perf_counter`.
    """

    method: str
    route: str = ""
    id: str = ""
    status: int | str = 499
    error: str = ""
    message: str = ""
    model: str = ""
    version: str = ""
    statistics: ModelStatistics | None = None
    timing: Timing | None = None
    timing_end_ns: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    traceparent: str = ""
    tracestate: str = ""
    start_ns: int = field(default_factory=time.time_ns)
    began: float = field(default_factory=time.perf_counter)


_CURRENT: ContextVar[Observed | None] = ContextVar("observed", default=None)


def observe(observed: Observed) -> None:
    """Make a request the present one, in the context in which it is answered."""
    _CURRENT.set(observed)


def note_model(name: str, version: str, statistics: ModelStatistics) -> None:
    """Say which model answers the present request, whether an `Observer` sees it or not."""
    observed = _CURRENT.get()
    if observed is None:
        observed = Observed("")
        _CURRENT.set(observed)
    observed.model, observed.version, observed.statistics = name, version, statistics


def note_timing(timing: Timing) -> None:
    """Say where the time of the present request went, right after its run."""
    if (observed := _CURRENT.get()) is not None:
        observed.timing, observed.timing_end_ns = timing, time.time_ns()


def note_error(fault: Exception, message: str) -> None:
    """Say of what the present request has failed, and what the client is told of it."""
    if (observed := _CURRENT.get()) is not None:
        observed.error, observed.message = type(fault).__name__, message


def note_text(completion: Completion) -> None:
    """Say that the present request's text is written, right after its end."""
    observed = _CURRENT.get()
    if observed is None or observed.statistics is None:
        return
    observed.statistics.wrote(completion)
    observed.num_prompt_tokens += completion.num_prompt_tokens
    observed.num_tokens += completion.num_tokens
    seconds = completion.seconds
    note_timing(Timing(seconds.start, seconds.total - seconds.start, len(completion.outputs)))
