"""`Acceptor` and `waiting`: the connections that come to a socket, to the last that is there at the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import islice

BACKLOG = 2048
"""Connections that wait to be accepted."""

_MOST_AT_ONCE = 16  # between which what is connected is served
_PAUSE_SECONDS = 0.1


class Acceptor:
    """What accepts the connections that come to a socket.

    Args:
        listener: The socket, bound; it is listened at from now on, and closed when `run` ends.
        take: Takes each connection. While it is waited for, the others wait in the socket.
    """

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], Awaitable[object]]) -> None:
        self._listener, self._take = listener, take
        self._stirred, self._is_ending = asyncio.Event(), False
        listener.setblocking(False)
        listener.listen(BACKLOG)

    async def run(self) -> None:
        """Accept connections until `end`, and those that wait then: they may have asked already."""
        with self._listener:
            while not self._is_ending:
                await self._wait()
                await self._accept()
            for connection in waiting(self._listener):
                await self._take(connection)

    def end(self) -> None:
        """Let `run` end."""
        self._is_ending = True
        self._stirred.set()

    async def _wait(self) -> None:
        """Wait for a connection, or the end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener, self._stirred.set)
        try:
            await self._stirred.wait()
        finally:
            loop.remove_reader(self._listener)
        self._stirred.clear()

    async def _accept(self) -> None:
        """Take some of the connections that wait."""
        try:
            for connection in islice(_accepted(self._listener), _MOST_AT_ONCE):
                await self._take(connection)
        except OSError:  # too many files are open, or the client has gone
            await asyncio.sleep(_PAUSE_SECONDS)


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept what waits in a socket, which does not block, at the end: all, but not all that ever come."""
    with suppress(OSError):
        yield from islice(_accepted(listener), BACKLOG + 1)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        yield connection
