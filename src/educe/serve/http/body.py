"""`Body`: the body of a request, while it comes."""

from __future__ import annotations

import asyncio

from educe.limits import format_bytes
from educe.serve.faults import Overloaded, Refusal, TooLarge
from educe.serve.room import BodyRoom, Share


class Body(Share):
    """The body of a request, while it comes.

    Args:
        loop: The server's event loop.
        room: The room that it shares with others.

    Attributes:
        size_bytes: How much of it has come.
    """

    __slots__ = (
        "_content",
        "_is_whole",
        "_loop",
        "_refused",
        "_waiter",
        "size_bytes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, room: BodyRoom) -> None:
        super().__init__(room)
        self.size_bytes = 0
        self._loop = loop
        self._content: bytes | bytearray = b""
        self._is_whole = False
        self._refused: Refusal | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether what is still to come of it is of use."""
        return not self._is_released

    def expect(self, size_bytes: int) -> None:
        """Know how large it is said to be."""
        if size_bytes > self._room.limits.body_bytes:
            self._refuse(body_too_large(self._room.limits.body_bytes))

    def add(self, part: bytes) -> None:
        """Take a part of it, unless nobody wants it any more."""
        self.size_bytes += len(part)
        if self._is_released:
            return
        if not self._content:
            self._content = part
        else:
            if isinstance(self._content, bytes):
                self._content = bytearray(self._content)
            self._content += part
        if self.size_bytes > self._room.limits.body_bytes:
            self._refuse(body_too_large(self._room.limits.body_bytes))
            return
        try:
            self.charge(len(part))
        except Overloaded as reason:
            self._refuse(reason)

    def end(self) -> None:
        """Know that all of it has come."""
        if not self._is_released:
            self._content, self._is_whole = bytes(self._content), True
            self._wake()

    def release(self) -> None:
        """Forget it, with what is still to come of it."""
        super().release()
        self._content = b""

    async def whole(self) -> bytes:
        """Return it, when all of it has come.

        Raises:
            TooLarge: it is larger than the limit.
            Overloaded: the bodies of all requests are.
        """
        if not self._is_whole and self._refused is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._refused is not None:
            raise self._refused
        return bytes(self._content)

    def _refuse(self, reason: Refusal) -> None:
        self.release()
        self._refused = reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def body_too_large(most: int) -> TooLarge:
    """Return the error of a body that has more bytes than it may have."""
    return TooLarge(f"the body has more than {format_bytes(most)}", remedy="send it in parts")
