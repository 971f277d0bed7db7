"""`Observer`: what counts, logs and traces the requests, whatever interface they came through."""

from __future__ import annotations

import time
from collections import Counter
from typing import TextIO

import msgspec

from educe.serve.observation import GRPC, Observed, observe
from educe.serve.statistics import Histogram
from educe.serve.tracing import Tracer


class Observer:
    """What sees every request begin and end.

    Args:
        log: Where a line for each request goes; None if nowhere.
        tracer: Where spans go; None if nowhere.

    Attributes:
        requests: How many there were, by method, route and status.
        seconds: How long they took, by whether they came by gRPC, and by route.
    """

    def __init__(self, log: TextIO | None = None, tracer: Tracer | None = None) -> None:
        self.requests: Counter[tuple[str, str, int | str]] = Counter()
        self.seconds: dict[tuple[bool, str], Histogram] = {}
        self._log, self._tracer = log, tracer

    @property
    def is_tracing(self) -> bool:
        """Whether spans are wanted."""
        return self._tracer is not None

    def begin(self, method: str) -> Observed:
        """Begin a request, in the context in which it is answered."""
        observed = Observed(method)
        observe(observed)
        return observed

    def end(self, observed: Observed) -> None:
        """End a request."""
        seconds = time.perf_counter() - observed.began
        # A method that no route has may be any word, and there would be no end of them.
        is_grpc = observed.method == GRPC
        method = observed.method if observed.route or is_grpc else ""
        self.requests[method, observed.route, observed.status] += 1
        histogram = self.seconds.get((is_grpc, observed.route))
        if histogram is None:
            histogram = self.seconds[is_grpc, observed.route] = Histogram()
        histogram.add(seconds)
        if self._log is not None:
            self._write(self._log, observed, seconds)
        if self._tracer is not None:
            self._tracer.trace(observed, seconds)

    def _write(self, log: TextIO, observed: Observed, seconds: float) -> None:
        try:
            line = _readable if log.isatty() else _json_line
            log.write(line(observed, seconds) + "\n")
            log.flush()
        except (OSError, ValueError):  # nobody reads it any more, which is no fault of the requests
            self._log = None

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
        "error": observed.error or None,
        "message": observed.message or None,
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
    line = " ".join(word for word in (*words, observed.id, observed.message) if word)
    return "".join(map(_printable, line))


def _printable(character: str) -> str:
    """Return a character, escaped if a terminal would do something: in messages is what clients send."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()
