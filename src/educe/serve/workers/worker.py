"""`Worker`: what joins the server of a process to those of the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from educe.serve.collecting import collect_at_rest
from educe.serve.faults import BadRequest, Refusal
from educe.serve.http.listener import Listener
from educe.serve.repository import Repository
from educe.serve.snapshot import Snapshot
from educe.serve.workers.link import Link
from educe.serve.workers.messages import Action, Apply, End, InService, Join, Live, Look, Readiness, Started

_LOG = logging.getLogger("educe.serve")
_POLL_SECONDS = 0.1
_PAUSE_SECONDS = 0.1


class Worker:
    """A worker's side of what joins it to the others.

    Args:
        index: Its number.
        end: Its socket to the supervisor.
        connections: Where connections come from.
    """

    def __init__(self, index: int, end: socket.socket, connections: socket.socket) -> None:
        self._index, self._end, self._connections = index, end, connections
        self._are_all_ready = False
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def join(
        self,
        repository: Repository,
        own: Callable[[], Snapshot],
        end: Callable[[], object],
        hurry: Callable[[], object],
    ) -> None:
        """Belong to the others from now on.

        Args:
            repository: The models of this process.
            own: Returns the numbers of this process.
            end: Called when the server ends.
            hurry: Called when it ends at once.
        """
        self._repository, self._own, self._told, self._hurry = repository, own, end, hurry
        self._link = await Link.open(self._end, self._handle)
        logging.getLogger("educe").addHandler(_Forwarding(self._link, self._index))
        self._tasks = [asyncio.create_task(each) for each in (self._run(), self._watch())]
        repository.when_in_service = lambda description: self._link.tell(InService(description))
        with contextlib.suppress(ConnectionError):
            joined = await self._link.ask(Join())
            for description in joined.in_service:
                repository.put_in_service(description)
            for name in joined.unloaded:
                await repository.unload(name)

    def accept(self, listener: Listener) -> None:
        """Let a listener have the connections that this worker is handed."""
        self._listener = listener
        self._connections.setblocking(False)
        self._take_on()

    def started(self) -> None:
        """Say that the models are loaded."""
        collect_at_rest()
        self._link.tell(Started())

    @property
    def are_ready(self) -> bool:
        """Whether all models of all workers answer at once."""
        return self._repository.are_ready and self._are_all_ready

    async def load(self, name: str) -> None:
        """Have all workers load a model, this one among them; see `Repository.load`."""
        await self._ask_all("load", name)

    async def unload(self, name: str) -> None:
        """Have all workers take a model out of use, this one among them; see `Repository.unload`."""
        await self._ask_all("unload", name)

    async def whole(self, own: Snapshot) -> Snapshot:
        """Return the numbers of all workers, of which this one's are given."""
        try:
            found: Snapshot = await self._link.ask(Look(self._counted(own)))
        except ConnectionError:
            return own
        return found

    async def _ask_all(self, action: Action, name: str) -> None:
        self._repository.entry(name)
        try:
            await self._link.ask(Apply(action, name))
        except ConnectionError:
            raise BadRequest("the server ends") from None

    def _counted(self, own: Snapshot) -> Snapshot:
        own.workers[self._index] = own.requests.total()
        return own

    async def _handle(self, message: Any) -> Any:
        match message:
            case Apply():
                act = self._repository.load if message.action == "load" else self._repository.unload
                try:
                    await act(message.model)
                except Refusal as fault:
                    raise BadRequest(fault.cause) from None
            case Live():
                return not self._repository.is_stuck
            case Look():
                return self._counted(self._own())
            case InService():
                self._repository.put_in_service(message.description)
            case Readiness():
                self._are_all_ready = message.is_ready
            case End():
                if self._listener is not None:
                    self._take()
                (self._hurry if message.is_hurried else self._told)()
        return None

    def _take_on(self) -> None:
        """Take connections from now on."""
        asyncio.get_running_loop().add_reader(self._connections, self._take)
        self._take()

    def _take(self) -> None:
        """Take the connections that this worker was handed."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            while (handed := socket.recv_fds(self._connections, 1, 1))[0]:
                if not handed[1]:  # the system has closed what would be one file too many
                    _LOG.error("a connection is lost: too many files are open")
                    loop.call_later(_PAUSE_SECONDS, self._take_on)
                    break
                self._listener.adopt(socket.socket(fileno=handed[1][0]))
            loop.remove_reader(self._connections)

    async def _run(self) -> None:
        await self._link.run()
        self._told()  # the supervisor is gone

    async def _watch(self) -> None:
        """Tell of each change of this process's readiness."""
        said = None
        while True:
            is_ready = self._repository.are_ready
            if is_ready != said:
                self._link.tell(Readiness(is_ready))
                said = is_ready
            await asyncio.sleep(_POLL_SECONDS)


class _Forwarding(logging.Handler):
    """Has the supervisor log what a worker logs."""

    def __init__(self, link: Link, index: int) -> None:
        super().__init__()
        self._link, self._index = link, index
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"worker {self._index}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        sent = logging.makeLogRecord({**record.__dict__, "msg": text, "args": None, "exc_info": None})
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._link.tell, sent)
