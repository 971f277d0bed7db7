"""`Seat`: the place of a worker, and the process that has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from educe.errors import EduceError
from educe.machine import usable_cores
from educe.serve.snapshot import Snapshot
from educe.serve.workers.link import Link
from educe.serve.workers.messages import Beginning, Live
from educe.settings import SHARE, THREADS

# What a worker's process runs; its arguments are its name, the numbers of its two sockets, and the path.
_BEGIN = (
    "import sys; _, link, connections, *sys.path[:] = sys.argv[1:]; "
    "from educe.serve.workers.process import work; work(int(link), int(connections))"
)


_ASK_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
# A process is killed when it has not said that it lives after so many looks in a row. They are many, since
# all of a machine may have stood still, and then the first look says nothing.
_MOST_SILENT = 10


@dataclass(eq=False)
class Seat:
    """The place of a worker, which one process after the other has.

    Attributes:
        index: The worker's number.
        link: What joins the process to the supervisor; None while there is none.
        connections: Where the process takes connections from; None while there is no link.
        process: The process, or the one that was.
        has_joined: Whether it is asked what all are asked.
        has_started: Whether it has loaded what it can.
        is_ready: Whether all of its models answer.
        num_silent: At how many looks in a row it had not said that it lives.
        is_replacement: Whether another had the place before.
        error: Why it cannot go on.
        last: The numbers that it said last.
    """

    index: int
    link: Link | None = None
    connections: socket.socket | None = None
    process: asyncio.subprocess.Process | None = None
    has_joined: bool = False
    has_started: bool = False
    is_ready: bool = False
    num_silent: int = 0
    is_replacement: bool = False
    error: EduceError | None = None
    last: Snapshot | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes connections: in place of another only when it has loaded the models."""
        return not self.num_silent and (self.has_started if self.is_replacement else self.has_joined)

    def take(self, connection: socket.socket) -> bool:
        """Hand a connection to the process, and say whether it could be."""
        if not self.is_open or self.connections is None:
            return False
        try:
            socket.send_fds(self.connections, [b"\0"], [connection.fileno()])
        except OSError:  # it is gone, or too many wait for it
            return False
        return True

    def tell(self, message: Any) -> None:
        """Tell the process something, if there is one."""
        if self.link is not None:
            self.link.tell(message)

    async def start(self, beginning: Beginning, handle: Callable[[Any], Awaitable[Any]]) -> None:
        """Start a process, and tell it what it is told first.

        Args:
            beginning: That.
            handle: Answers its messages.

        Raises:
            OSError: memory, processes or files do not suffice.
        """
        own, other = socket.socketpair()
        giving, taking = socket.socketpair(type=socket.SOCK_SEQPACKET)
        giving.setblocking(False)
        try:
            with other, taking:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _BEGIN,
                    f"educe worker {self.index}",
                    *(str(each.fileno()) for each in (other, taking)),
                    *sys.path,
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(other.fileno(), taking.fileno()),
                    env=_environment(beginning.settings.workers),
                    # What a terminal tells all of its processes is for the supervisor alone.
                    start_new_session=True,
                )
            self.link = await Link.open(own, handle)
        except BaseException:
            own.close()
            giving.close()
            raise
        self.connections = giving
        self.link.tell(beginning)

    async def ended(self) -> int:
        """Return the status of the process when it has ended; until then its messages are answered."""
        assert self.link is not None
        assert self.process is not None
        await self.link.run()
        return await self.process.wait()

    async def hung(self) -> None:
        """Return when the process has not said for long that it lives; until then it is asked."""
        asked: asyncio.Task[bool] | None = None
        try:
            while self.num_silent < _MOST_SILENT:
                await asyncio.sleep(_ASK_SECONDS)
                if not self.has_joined:
                    continue
                asked = asked or asyncio.create_task(self._lives())
                await asyncio.wait([asked], timeout=_ANSWER_SECONDS)
                self.num_silent = 0 if asked.done() and asked.result() else self.num_silent + 1
                asked = None if asked.done() else asked
        finally:
            if asked is not None:
                asked.cancel()

    async def _lives(self) -> bool:
        """Return whether the process says that it lives, when it says so."""
        assert self.link is not None
        with contextlib.suppress(ConnectionError, EduceError):
            return bool(await self.link.ask(Live()))
        return False

    def clear(self) -> None:
        """Make room for another process; one that is there is killed."""
        self.kill()
        if self.connections is not None:
            self.connections.close()
        self.link, self.connections = None, None
        self.has_joined, self.has_started, self.is_ready, self.num_silent = False, False, False, 0

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


def _environment(workers: int) -> dict[str, str]:
    """Return the variables of a worker, which has its share of the cores, and shares its models' weights."""
    threads = THREADS.value() or str(max(1, usable_cores() // workers))
    return {**os.environ, SHARE.variable: "1", THREADS.variable: threads}
