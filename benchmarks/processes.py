"""Servers that run in processes of their own until they were measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.clients import Request, answer_of

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60
# Of open files: what a server is started with, whatever its clients have.
USUAL_LIMIT = 1024


class SilentServerError(RuntimeError):
    """A server that does not answer."""


@contextmanager
def started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, all of which ends with this.

    Args:
        command: The command.
        folder: Where it runs.
        environment: Of its environment, beside this process'.
        streams: Its input, output and errors, as `subprocess.Popen` takes them.

    Raises:
        OSError: there is no such command.
    """
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment}, start_new_session=True, **streams
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def when_ready(process: subprocess.Popen[bytes], ask: Callable[[], str]) -> str:
    """Return what it is that can be asked of a server once it is ready; until then that raises `OSError`.

    Raises:
        SilentServerError: it ends, or is not ready in time.
    """
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return ask()
        except OSError as fault:
            if process.poll() is not None or time.monotonic() > end:
                command = " ".join(map(str, process.args))  # type: ignore[arg-type]
                raise SilentServerError(f"{command} does not answer: {fault}") from None
            time.sleep(0.1)


@dataclass(frozen=True)
class Running:
    """A process of `educe serve`.

    Attributes:
        process: The process.
        url: Its URL.
    """

    process: subprocess.Popen[bytes]
    url: str

    @property
    def descriptors(self) -> int:
        """How many files and connections are open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/task").iterdir())

    @property
    def rss_mib(self) -> float:
        """The memory, in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def cpu_seconds(self) -> float:
        """How long it has computed."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connection(self) -> HTTPConnection:
        """Return a connection, which is made with the first request."""
        return HTTPConnection(self.url.removeprefix("http://"), timeout=60)

    def ask(self, request: Request) -> tuple[int, bytes]:
        """Return the status and the body of an answer, over a connection of its own."""
        connection = self.connection()
        try:
            return answer_of(connection, request)
        finally:
            connection.close()

    def kept(self) -> dict[str, int]:
        """Return what is kept, of a server that is weighed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        found: dict[str, int] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def serving(*arguments: str, is_weighed: bool = False) -> Iterator[Running]:
    """Run `educe serve` until it was measured, at a port that it chooses.

    Raises:
        SilentServerError: it ends, or is not ready in time.
    """
    module, environment = "educe", dict[str, str]()
    if is_weighed:
        # What threads keep for later would count as in use: it grows until each has met all sizes.
        module, environment["GLIBC_TUNABLES"] = "benchmarks.weighed", "glibc.malloc.tcache_count=0"
    bounded = ("sh", "-c", f'ulimit -S -n {USUAL_LIMIT} && exec "$@"', "sh")
    command = [*bounded, sys.executable, "-m", module, "serve", *arguments, "--port", "0"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        started(command, ROOT, environment, stdin=pipe, stdout=pipe, stderr=log) as process,
    ):

        def url() -> str:
            words = os.pread(log.fileno(), 2**16, 0).decode().split()
            if found := [word for word in words if word.startswith("http://")]:
                return found[0]
            raise ConnectionError("it tells no URL")

        yield Running(process, when_ready(process, url))
