"""`Supervisor`: what starts the workers, hands connections to them, and joins them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from educe.errors import EduceError, EngineError, OptionError
from educe.serve.description import Description
from educe.serve.faults import BadRequest
from educe.serve.http.acceptor import Acceptor
from educe.serve.opening import ModelSource
from educe.serve.settings import ServerSettings
from educe.serve.snapshot import Snapshot, total
from educe.serve.sockets import bound
from educe.serve.workers.messages import (
    Apply,
    Beginning,
    End,
    Failed,
    InService,
    Join,
    Joined,
    Look,
    Readiness,
    Started,
)
from educe.serve.workers.seat import Seat
from educe.serve.workers.shares import share_of

_LOG = logging.getLogger("educe.serve")
_POLL_SECONDS = 0.01
_ANSWER_SECONDS = 1.0
# A worker that ends sooner than this is replaced later each time.
_STEADY_SECONDS = 30.0
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0
# What a worker may take beyond the time that its requests have.
_END_SECONDS = 5.0


class Supervisor:
    """What starts the workers, replaces those that end, and joins them.

    Args:
        sources: The models.
        settings: The server's; bounds that are totals are divided among the workers.
        listener: The socket of HTTP, bound; it is closed when the server ends.

    Raises:
        OptionError: this system cannot have workers, or the address of gRPC cannot be listened at.
    """

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServerSettings, listener: socket.socket
    ) -> None:
        if platform.system() != "Linux":
            raise OptionError(
                "servers of several processes need Linux", place="workers", remedy="leave it out"
            )
        self._acceptor = Acceptor(listener, self._hand_over)
        self._grpc = None if settings.grpc_port is None else _reserve(settings.host, settings.grpc_port)
        self.grpc_port = None if self._grpc is None else self._grpc.getsockname()[1]
        self._sources, self._settings = share_of(sources, replace(settings, grpc_port=self.grpc_port))
        self._seats = [Seat(index) for index in range(settings.workers)]
        self._turns = itertools.cycle(self._seats)
        self._starting = len(self._seats)
        self._started, self._ending = asyncio.Event(), asyncio.Event()
        self._unloaded: set[str] = set()
        self._in_service: dict[str, Description] = {}
        self._applying = asyncio.Lock()
        self._past = Snapshot()

    async def run(self, when_started: Callable[[], object], end: asyncio.Event) -> None:
        """Have the workers serve until `end` is set and their requests have ended.

        Args:
            when_started: Called when all workers have started.
            end: Tells the end.

        Raises:
            EduceError: a worker cannot start.
        """
        keepers = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        accepting = asyncio.create_task(self._acceptor.run())
        events = [asyncio.create_task(event.wait()) for event in (self._started, end)]
        try:
            await _first([*events, accepting, *keepers])
            if self._started.is_set() and not end.is_set():
                when_started()
                await _first([events[1], accepting, *keepers])
            self._ending.set()
            self._acceptor.end()
            await asyncio.wait([accepting], timeout=_END_SECONDS)
            self._tell_all(End(False))
            await asyncio.wait(keepers, timeout=self._settings.drain_seconds + _END_SECONDS)
        finally:
            self._ending.set()
            for seat in self._seats:
                seat.kill()
            for task in (accepting, *events):
                task.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            if self._grpc is not None:
                self._grpc.close()

    def hurry(self) -> None:
        """Let no worker wait for its requests."""
        self._tell_all(End(True))

    async def _hand_over(self, connection: socket.socket) -> None:
        """Hand a connection to the next worker."""
        with connection:
            while not any(seat.take(connection) for seat in itertools.islice(self._turns, len(self._seats))):
                await asyncio.sleep(_POLL_SECONDS)

    async def _keep(self, seat: Seat) -> None:
        """Have a process in a seat as long as the server runs."""
        delay = _FIRST_DELAY
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                how = await self._sit(seat)
            except OSError as fault:  # of memory, processes or files
                how = f"could not be started: {os.strerror(fault.errno or 0).lower()}"
            if self._ending.is_set():
                return
            if not self._started.is_set():
                raise seat.error or EngineError(
                    f"worker {seat.index} {how} while it started", remedy="see what it wrote before"
                )
            delay = _FIRST_DELAY if time.monotonic() - began > _STEADY_SECONDS else delay
            _LOG.error("worker %d %s; another takes its place in %g s", seat.index, how, delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _sit(self, seat: Seat) -> str:
        """Start a process in a seat, and return how it ended."""
        beginning = Beginning(seat.index, self._sources, self._settings, _LOG.getEffectiveLevel())
        try:
            await seat.start(beginning, lambda message: self._handle(seat, message))
            if self._ending.is_set():  # and all others are told already
                seat.tell(End(False))
            watching = asyncio.create_task(self._watch(seat))
            try:
                status = await seat.ended()
            finally:
                watching.cancel()
        finally:
            seat.clear()
            seat.is_replacement = self._started.is_set()
            if seat.last is not None:
                self._past, seat.last = total([self._past, seat.last.past()]), None
            self._tell_readiness()
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    async def _watch(self, seat: Seat) -> None:
        """Kill the process in a seat when it hangs."""
        await seat.hung()
        if self._ending.is_set():  # which has its own bound
            return
        _LOG.error("worker %d hangs, and is killed", seat.index)
        seat.kill()

    async def _handle(self, seat: Seat, message: Any) -> Any:
        """Answer a worker."""
        match message:
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
            case Failed():
                seat.error = message.error
            case Join():
                seat.has_joined = True  # and is asked with the others from now on
                return Joined(tuple(self._unloaded), tuple(self._in_service.values()))
            case InService():
                self._in_service[message.description.name] = message.description
                self._tell_all(message)
            case Started():
                seat.has_started = True
                self._tell_readiness()
                if not seat.is_replacement:
                    self._starting -= 1
                    if self._starting == 0:
                        self._started.set()
            case Readiness():
                seat.is_ready = message.is_ready
                self._tell_readiness()
            case Apply():
                return await self._apply(message)
            case Look():
                return await self._look(seat, message.own)
        return None

    def _tell_readiness(self) -> None:
        found = [seat.is_ready for seat in self._seats if seat.has_started or not seat.is_replacement]
        self._tell_all(Readiness(all(found) and bool(found)))

    def _tell_all(self, message: Any) -> None:
        for seat in self._seats:
            seat.tell(message)

    async def _apply(self, message: Apply) -> None:
        """Have all workers load or unload a model; those that join meanwhile learn of it as they do.

        Raises:
            BadRequest: one could not.
        """
        async with self._applying:
            was_unloaded = message.model in self._unloaded
            if message.action == "unload":
                self._unloaded.add(message.model)
                self._in_service.pop(message.model, None)
            else:
                self._unloaded.discard(message.model)
            seats = [seat for seat in self._seats if seat.has_joined and seat.link is not None]
            asked = [seat.link.ask(message) for seat in seats if seat.link is not None]
            found = await asyncio.gather(*asked, return_exceptions=True)
            faults = {
                seat.index: fault.cause
                for seat, fault in zip(seats, found, strict=True)
                if isinstance(fault, EduceError)
            }
            if faults and message.action == "load" and was_unloaded:
                self._unloaded.add(message.model)
        if len(faults) == len(seats) and faults:
            raise BadRequest(next(iter(faults.values())))
        if faults:
            raise BadRequest("; ".join(f"worker {index}: {cause}" for index, cause in faults.items()))

    async def _look(self, asking: Seat, own: Snapshot | None) -> Snapshot:
        """Return the numbers of all workers; of one that does not answer, those that it said last."""

        async def ask(seat: Seat) -> None:
            if seat.link is not None and seat is not asking and not seat.num_silent:
                with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                    seat.last = await asyncio.wait_for(seat.link.ask(Look()), _ANSWER_SECONDS)

        asking.last = own
        await asyncio.gather(*map(ask, (seat for seat in self._seats if seat.has_joined)))
        return total([self._past, *(seat.last for seat in self._seats if seat.last is not None)])


def _reserve(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port for the workers' gRPC, and does not listen itself.

    Raises:
        OptionError: the address cannot be listened at.
    """
    # Two servers of one user would share the port without a word.
    with bound(host, port, "--grpc-port") as alone:
        port = alone.getsockname()[1]
    return bound(host, port, "--grpc-port", socket.SO_REUSEPORT)


async def _first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until one of some tasks is done, and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
