"""`Listener`: all connections of a server, from the first that is accepted to the last that is closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from email.utils import formatdate
from typing import Any

from educe.serve.http.acceptor import BACKLOG, waiting
from educe.serve.http.app import App
from educe.serve.http.connection import LAST_SECONDS, Connection
from educe.serve.room import BodyRoom

_TICK_SECONDS = 0.1
# In as many ticks each connection is looked at once: all of 5,000 at one time would take some milliseconds.
_ROUND_TICKS = 10


class Listener:
    """The connections of a server.

    Args:
        app: What answers.
        room: The room for the bodies of all requests that are there.
        tls: How connections are encrypted; None if they are not.

    Attributes:
        app: The same.
        room: The same.
        limits: The bounds on what clients may send.
        scheme: ``http`` or ``https``.
        connections: Those that are open.
        date: The ``date`` field of answers.
        is_draining: Whether connections are closed behind the answers that they wait for.
    """

    def __init__(self, app: App, room: BodyRoom, tls: ssl.SSLContext | None = None) -> None:
        self.app, self.room, self.limits = app, room, room.limits
        self.scheme = "http" if tls is None else "https"
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.date = b""
        self._tls = tls
        self._server: asyncio.Server | None = None
        # The same socket, which is left when the server has closed its own, with what waits in it.
        self._socket: socket.socket | None = None
        self._adopting: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._is_hurried = False
        self._unlooked: list[Connection] = []
        self._num_looked = 1

    async def start(self, listener: socket.socket | None) -> None:
        """Accept connections at a bound socket, which is closed with this; None if all are adopted."""
        self._tick()
        loop = asyncio.get_running_loop()
        self._ticking = loop.create_task(self._tick_on())
        if listener is not None:
            self._socket = listener.dup()
            self._server = await loop.create_server(
                lambda: Connection(loop, self), sock=listener, backlog=BACKLOG, **self._secured()
            )

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted, here or by another process."""
        task = asyncio.get_running_loop().create_task(self._adopt(connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def stop(self, seconds: float) -> None:
        """Accept no more, and return when all connections are closed, some seconds later, or by `hurry`."""
        self.is_draining = True
        if self._ticking is None:
            return
        end = time.monotonic() + seconds
        if self._server is not None and self._socket is not None:
            self._server.close()
            with self._socket:
                for accepted in waiting(self._socket):
                    self.adopt(accepted)
        for connection in list(self.connections):
            connection.drain()
        if self._adopting:
            await asyncio.wait(self._adopting, timeout=min(seconds, LAST_SECONDS))
        while self.connections and time.monotonic() < end and not self._is_hurried:
            await asyncio.sleep(_TICK_SECONDS / 10)
        for connection in list(self.connections):
            connection.abandon()
        self._ticking.cancel()

    async def _adopt(self, connection: socket.socket) -> None:
        """Make what serves a connection; one that has gone is dropped."""
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: Connection(loop, self), connection, **self._secured())
        except OSError:
            connection.close()

    def _secured(self) -> dict[str, Any]:
        """Return how connections are encrypted, as event loops take it."""
        if self._tls is None:
            return {}
        return {"ssl": self._tls, "ssl_handshake_timeout": self.limits.header_seconds}

    def hurry(self) -> None:
        """Let `stop` wait for nothing."""
        self._is_hurried = True

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tick()

    def _tick(self) -> None:
        """Tell the time, and end what has waited for its client for too long."""
        self.date = b"date: " + formatdate(time.time(), usegmt=True).encode() + b"\r\n"
        if not self._unlooked:
            self._unlooked = list(self.connections)
            self._num_looked = -(-len(self._unlooked) // _ROUND_TICKS) or 1
        now = asyncio.get_running_loop().time()
        looked = self._unlooked[-self._num_looked :]
        del self._unlooked[-self._num_looked :]
        for connection in looked:
            if connection.deadline < now and connection in self.connections:
                connection.expire()
