"""`Observer`: what is counted, logged and traced of each request, whatever interface it came through.

A request's `Observed` is in a context variable while it is answered, so that what answers it can add what
it knows, however deep it lies: `note_model`, `note_timing` and `note_text`.
"""

from __future__ import annotations

import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

import msgspec

from educe.serve.statistics import Histogram, ModelStatistics

if TYPE_CHECKING:
    from educe.generate.stream import Completion
    from educe.serve.tracing import Tracer


@dataclass(slots=True)
class Timing:
    """Where a request's time went, in seconds.

    Attributes:
        queue: Until its run began.
        run: Its run.
        rows: Rows of its run, those of other requests included.
    """

    queue: float
    run: float
    rows: int

    def parameters(self) -> dict[str, int]:
        """Return it as the parameters of an answer of the Open Inference Protocol, in microseconds."""
        return {
            "queue_us": round(self.queue * 1e6),
            "run_us": round(self.run * 1e6),
            "batch_rows": self.rows,
        }

    def header(self) -> bytes:
        """Return it as a ``Server-Timing`` header has it, in milliseconds."""
        return b"queue;dur=%.3f, run;dur=%.3f, rows;desc=%d" % (self.queue * 1e3, self.run * 1e3, self.rows)


@dataclass(slots=True)
class Observed:
    """What is known of a request.

    Attributes:
        method: Its method.
        route: Its route, with names in braces; empty if there is none.
        id: What names it in answers and in the log.
        status: The status of the answer; 499 if the client went before.
        model: The model that it has used; empty if none.
        version: The model's version.
        statistics: Where what the model does is counted; None if it has used none.
        timing: Where the time of its run went; None if there was none.
        timing_end_ns: When that run ended, in nanoseconds since 1970.
        traceparent: The span that it belongs to, as the W3C writes it; empty if none.
        tracestate: What belongs to that.
        start_ns: When it began, in nanoseconds since 1970.
        began: The same, by the clock of `time.perf_counter`.
    """

    method: str
    route: str = ""
    id: str = ""
    status: int = 499
    model: str = ""
    version: str = ""
    statistics: ModelStatistics | None = None
    timing: Timing | None = None
    timing_end_ns: int = 0
    traceparent: str = ""
    tracestate: str = ""
    start_ns: int = field(default_factory=time.time_ns)
    began: float = field(default_factory=time.perf_counter)


_CURRENT: ContextVar[Observed | None] = ContextVar("observed", default=None)


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


def note_text(completion: Completion) -> None:
    """Say that the present request's text is written, right after its end."""
    observed = _CURRENT.get()
    if observed is None or observed.statistics is None:
        return
    observed.statistics.wrote(completion)
    seconds = completion.seconds
    note_timing(Timing(seconds.start, seconds.total - seconds.start, len(completion.outputs)))


class Observer:
    """What sees every request begin and end.

    Args:
        log: Where a line for each request goes; None if nowhere.
        tracer: Where spans go; None if nowhere.

    Attributes:
        requests: How many there were, by method, route and status.
        seconds: How long they took, by route.
    """

    def __init__(self, log: TextIO | None = None, tracer: Tracer | None = None) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self._log, self._tracer = log, tracer

    @property
    def is_tracing(self) -> bool:
        """Whether spans are wanted."""
        return self._tracer is not None

    def begin(self, method: str) -> Observed:
        """Begin a request, in the context in which it is answered."""
        observed = Observed(method)
        _CURRENT.set(observed)
        return observed

    def end(self, observed: Observed) -> None:
        """End a request."""
        seconds = time.perf_counter() - observed.began
        # A method that no route has may be any word, and there would be no end of them.
        method = observed.method if observed.route else ""
        self.requests[method, observed.route, observed.status] += 1
        histogram = self.seconds.get(observed.route)
        if histogram is None:
            histogram = self.seconds[observed.route] = Histogram()
        histogram.add(seconds)
        if self._log is not None:
            write = _readable if self._log.isatty() else _json_line
            self._log.write(write(observed, seconds) + "\n")
            self._log.flush()
        if self._tracer is not None:
            self._tracer.trace(observed, seconds)

    def close(self) -> None:
        """Send what is not sent yet."""
        if self._tracer is not None:
            self._tracer.close()


def _json_line(observed: Observed, seconds: float) -> str:
    timing = observed.timing
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(observed.start_ns / 1e9))
        + f".{observed.start_ns // 1_000_000 % 1000:03}Z",
        "id": observed.id,
        "method": observed.method,
        "route": observed.route,
        "model": observed.model or None,
        "version": observed.version or None,
        "status": observed.status,
        "seconds": round(seconds, 6),
        "queue_seconds": None if timing is None else round(timing.queue, 6),
        "run_seconds": None if timing is None else round(timing.run, 6),
        "batch_rows": None if timing is None else timing.rows,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None}).decode()


def _readable(observed: Observed, seconds: float) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(observed.start_ns / 1e9))
    words = [moment, str(observed.status), observed.method, observed.route or "-", observed.model]
    words.append(f"{seconds * 1e3:.2f} ms")
    if observed.timing is not None:
        words.append(f"(queue {observed.timing.queue * 1e3:.2f}, run {observed.timing.run * 1e3:.2f})")
    return " ".join(word for word in (*words, observed.id) if word)
