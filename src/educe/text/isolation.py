"""`Worker`: a process of its own for what a stranger's file makes of a text, stopped when it takes too much.

A chat template is a program, and a regular expression can take time exponential in its text. Neither can be
interrupted from within, so both run in a child process whose processor time and memory the kernel bounds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from educe.machine import ForkedLock

MEMORY_BYTES = 2 * 2**30
"""Address space of the child."""

# A machine under load may leave a process without a processor for long; this only catches what sleeps.
_WALL_SECONDS = 60.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from educe.text.isolation import serve; serve()"
)


class ExhaustedError(Exception):
    """The child took more processor time or memory than it may; the text says so, without a subject."""


class Worker:
    """A child process that answers requests with one function, started by the first of them.

    Args:
        maker: Which function makes that function of `source`, as ``module:name``.
        source: The stranger's text.
        start_seconds: Processor time of making it.
    """

    def __init__(self, maker: str, source: str, *, start_seconds: float) -> None:
        self._setup = (maker, source, start_seconds)
        self._lock = ForkedLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Any]

    def ask(self, request: Any, *, cpu_seconds: float) -> Any:
        """Return the function's answer to `request`; both are what JSON can say.

        Raises:
            ExhaustedError: it took more than `cpu_seconds`, or too much memory.
        """
        with self._lock:
            line = b""
            try:
                with contextlib.suppress(BrokenPipeError):
                    line = self._exchange({"request": request, "cpu_seconds": cpu_seconds})
            finally:
                # What was not read to its end would be taken for the answer to the next request.
                if not line.endswith(b"\n"):
                    self._stop()
            if not line:
                raise ExhaustedError(
                    f"takes more than {cpu_seconds:.1f} seconds of a processor, or {MEMORY_BYTES >> 30} GiB"
                )
            return json.loads(line)

    def _exchange(self, message: dict[str, Any]) -> bytes:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        is_new = self._process is None
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_WALL_SECONDS, process.kill)
        timer.start()
        try:
            with _broken_pipes_are_errors():
                for each in (*((sys.path, self._setup) if is_new else ()), message):
                    process.stdin.write(json.dumps(each).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
            return line if line.endswith(b"\n") else b""
        finally:
            timer.cancel()

    def _stop(self) -> None:
        if self._process is not None:
            self._process = None
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
            # An interrupt from the keyboard is the parent's alone.
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, process)
        self._process = process
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError), _broken_pipes_are_errors():
                pipe.close()
    process.wait()


@contextlib.contextmanager
def _broken_pipes_are_errors() -> Iterator[None]:
    """Make a write that nobody reads raise BrokenPipeError, even in a program that SIGPIPE ends."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve() -> None:
    """Answer requests on standard input until it ends: the child's side."""
    _bound_memory()
    maker, source, start_seconds = json.loads(sys.stdin.buffer.readline())
    module, _, name = maker.partition(":")
    make: Callable[[str], Callable[[Any], Any]] = getattr(importlib.import_module(module), name)
    _bound_time(start_seconds)
    answer = make(source)
    for line in iter(sys.stdin.buffer.readline, b""):
        message = json.loads(line)
        _bound_time(message["cpu_seconds"])
        reply = answer(message["request"])
        _bound_time(0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def _bound_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(cpu_seconds: float) -> None:
    """Have the kernel end this process after so much processor time; 0 takes that back."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
