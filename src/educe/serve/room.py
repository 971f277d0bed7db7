"""`BodyRoom` and `Share`: the memory for what all requests have sent, and what one takes of it.

What is made of a body, such as the pixels of a picture, may be a thousand times as large, and counts, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from educe.serve.faults import Overloaded, TooLarge
from educe.serve.settings import ServerLimits
from educe.serve.threads import Held, held_now, hold

ELEMENT_BYTES = 80
"""What Python takes for an element of JSON, such as an empty list, or for a short text."""


@dataclass(slots=True)
class BodyRoom:
    """The room that a server has for the bodies of all requests that are there.

    Attributes:
        limits: How large one may be, and all together.
        used_bytes: How large they are now.
    """

    limits: ServerLimits
    used_bytes: int = 0


class Share(Held):
    """What a request takes of the room, until it is released and no thread works for the request any more.

    As a ``with`` block it is what the present request holds, and is released at the end.

    Args:
        room: The room that it shares with others.
    """

    __slots__ = ("_is_released", "_room", "_room_bytes")

    def __init__(self, room: BodyRoom) -> None:
        super().__init__()
        self._room, self._room_bytes = room, 0
        self._is_released = False

    def __enter__(self) -> Share:
        hold(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def charge(self, size_bytes: int) -> None:
        """Take room for more bytes that last as long as it does, such as what is made of a body.

        Raises:
            Overloaded: there is no room for them.
        """
        if self._is_released:
            return
        self._room_bytes += size_bytes
        self._room.used_bytes += size_bytes
        if self._room.used_bytes > self._room.limits.bodies_bytes:
            raise Overloaded("the requests that are there fill the memory for them", retry_after=1.0)

    def charge_json(self, content: bytes) -> None:
        """Take room for what JSON becomes when it is read.

        Raises:
            TooLarge: it is larger than one may be.
            Overloaded: there is no room for it.
        """
        most = self._room.limits.json_bytes
        if len(content) > most:
            raise TooLarge(
                f"the JSON has {len(content):,} bytes, and may have {most:,}",
                remedy="send it in parts; or tensors as binary data, texts and tables as files",
            )
        self.charge(ELEMENT_BYTES * content.count(b","))

    def release(self) -> None:
        """Let the room be given back."""
        if not self._is_released:
            self._is_released = True
            self.let_go()

    def give_back(self) -> None:
        """Give the room back."""
        self._room.used_bytes -= self._room_bytes


def charge(size_bytes: int) -> None:
    """Count what is made of the body of the present request, until it has ended.

    Raises:
        Overloaded: there is no room for it.
    """
    share = held_now()
    if isinstance(share, Share):
        share.charge(size_bytes)


def charge_json(content: bytes) -> None:
    """Count what JSON in the body of the present request becomes, before it is read.

    Raises:
        TooLarge: it is larger than one may be.
        Overloaded: there is no room for it.
    """
    share = held_now()
    if isinstance(share, Share):
        share.charge_json(content)
