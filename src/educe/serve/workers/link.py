"""`Link`: what joins two processes, each of which asks and tells the other.

Messages are pickled, since both ends are one program of one user. Before each stands its length.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from educe.errors import EduceError, EngineError

_LOG = logging.getLogger("educe.serve")
_LENGTH_BYTES = 8


class Link:
    """One end of what joins two processes: each asks and tells the other.

    Args:
        reader: What the other sends.
        writer: What goes to it.
        handle: Answers its messages.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._reader, self._writer, self._handle = reader, writer, handle
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @classmethod
    async def open(cls, end: socket.socket, handle: Callable[[Any], Awaitable[Any]]) -> Link:
        """Return the link over one of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end), handle)

    def tell(self, message: Any) -> None:
        """Send a message that has no answer; one to an end that is gone is lost."""
        self._send(0, False, message)

    async def ask(self, message: Any) -> Any:
        """Send a message, and return its answer.

        Raises:
            ConnectionError: the other end is gone.
            EduceError: what the other end raised.
        """
        if self._is_closed:
            raise ConnectionResetError
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, False, message)
            return await answer
        finally:
            del self._asked[number]

    async def run(self) -> None:
        """Answer the other end until it is gone."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "little")
                number, is_answer, message = pickle.loads(await self._reader.readexactly(length))
                if is_answer:
                    self._take(number, message)
                else:
                    task = asyncio.create_task(self._answer(number, message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._is_closed = True
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError())
            self._writer.close()

    async def _answer(self, number: int, message: Any) -> None:
        try:
            found = await self._handle(message)
        except EduceError as fault:
            found = fault
        except Exception:
            _LOG.exception("a message of another process could not be answered")
            found = EngineError("it failed at it, and the log says more")
        if number:
            self._send(number, True, found)

    def _take(self, number: int, message: Any) -> None:
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return
        if isinstance(message, EduceError):
            answer.set_exception(message)
        else:
            answer.set_result(message)

    def _send(self, number: int, is_answer: bool, message: Any) -> None:
        if self._is_closed:
            return
        self._writer.write(_packed(number, is_answer, message))


def receive(end: socket.socket) -> Any:
    """Return the first message, before there is a link; it blocks.

    Raises:
        ConnectionError: the other end is gone.
    """
    _, _, message = pickle.loads(_exactly(end, int.from_bytes(_exactly(end, _LENGTH_BYTES), "little")))
    return message


def send(end: socket.socket, message: Any) -> None:
    """Send the last message, when there is no link any more; it blocks.

    Raises:
        OSError: the other end is gone.
    """
    end.setblocking(True)
    end.sendall(_packed(0, False, message))


def _packed(number: int, is_answer: bool, message: Any) -> bytes:
    content = pickle.dumps((number, is_answer, message))
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def _exactly(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = end.recv(size - len(found))
        if not part:
            raise ConnectionResetError
        found += part
    return found
