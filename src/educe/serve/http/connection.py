"""A connection that does not wait for ever: bounds on headers, on the time of a request, and of its reader.

What uvicorn's own connection leaves open: it has no bound on header fields, none on the time that a request
takes to come or its answer to be read, and it does not tell the application at once when a client has gone.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from educe.serve.faults import Overloaded, Refusal, TooLarge
from educe.serve.settings import ServerLimits

_BYTES_PER_SECOND = 2**20
_READER_SECONDS = 30.0


class _Corked:
    """A transport that sends an answer's header fields together with what follows them, in one packet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """Keep what is written next until something follows it."""
        self._head = b""

    def write(self, content: bytes | memoryview) -> None:
        """Write, or keep."""
        head = self._head
        if head is None:
            self._transport.write(content)
        elif not head:
            self._head = bytes(content)
        else:
            self._head = None
            self._transport.writelines((head, content))

    def close(self) -> None:
        """Write what is kept, and close."""
        head, self._head = self._head, None
        if head:
            self._transport.write(head)
        self._transport.close()


class Body:
    """The body of a request, while it comes.

    Args:
        loop: The server's event loop.
        server: The connections of one server, whose bodies are bounded together.
    """

    __slots__ = (
        *("_content", "_is_released", "_loop", "_parts"),
        *("_refused", "_server", "_size_bytes", "_waiter"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, server: type[Connection]) -> None:
        self._loop, self._server = loop, server
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._is_released = False
        self._content: bytes | None = None
        self._refused: Refusal | None = None
        self._waiter: asyncio.Future[None] | None = None

    def expect(self, size_bytes: int) -> None:
        """Know how large it is said to be."""
        if size_bytes > self._server.bounds.body_bytes:
            self._refuse(body_too_large(self._server.bounds.body_bytes))

    def add(self, part: bytes) -> None:
        """Take a part of it, unless nobody wants it any more."""
        if self._is_released:
            return
        self._parts.append(part)
        self._size_bytes += len(part)
        self._server.bodies_bytes += len(part)
        if self._size_bytes > self._server.bounds.body_bytes:
            self._refuse(body_too_large(self._server.bounds.body_bytes))
        elif self._server.bodies_bytes > self._server.bounds.bodies_bytes:
            self._refuse(Overloaded("the requests that are there fill the memory for them", retry_after=1.0))

    def end(self) -> None:
        """Know that all of it has come."""
        self._content = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._wake()

    def release(self) -> None:
        """Forget it, with what is still to come of it."""
        self._is_released = True
        self._server.bodies_bytes -= self._size_bytes
        self._size_bytes, self._parts, self._content = 0, [], None

    async def whole(self) -> bytes:
        """Return it, when all of it has come.

        Raises:
            TooLarge: it is larger than the limit.
            Overloaded: the bodies of all requests are.
        """
        if self._content is None and self._refused is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._refused is not None:
            raise self._refused
        return self._content or b""

    def _refuse(self, reason: Refusal) -> None:
        self.release()
        self._refused = reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def body_too_large(most: int) -> TooLarge:
    """Return the error of a body that has more bytes than it may have."""
    return TooLarge(f"the body has more than {most} bytes")


class Connection(HttpToolsProtocol):
    """One client's connection, over which requests follow each other.

    Attributes:
        bounds: The bounds on what the client may send; a subclass has a server's own.
        bodies_bytes: The bodies of all requests that are there now, of all connections.
        task: What answers the present request; it is cancelled when the client goes.
    """

    bounds: ClassVar[ServerLimits] = ServerLimits()
    bodies_bytes: ClassVar[int] = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.task: asyncio.Task[Any] | None = None
        self._head_bytes = 0
        self._is_receiving = False
        self._has_head = False
        self._is_refused = False
        self._body = Body(self.loop, type(self))
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time until the first request has come."""
        self._corked = _Corked(transport)
        super().connection_made(cast("asyncio.Transport", self._corked))
        if len(self.connections) > self.bounds.num_connections:
            self._refuse(503, b"too many connections")
            return
        self._is_receiving = True
        self._expect(self.bounds.header_seconds)

    def hold_head(self) -> None:
        """Send the header fields of the answer, which are written next, together with its body."""
        self._corked.hold()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what the client does not wait for any more."""
        for timer in (self._timer, self._reader_timer):
            if timer is not None:
                timer.cancel()
        for cycle, _ in self.pipeline:
            cycle.scope["body"].release()  # type: ignore[typeddict-item]
        task, self.task = self.task, None
        unanswered = self.cycle is not None and not self.cycle.response_complete
        super().connection_lost(exc)
        if task is not None and unanswered:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and note how much of a request is still to come."""
        if self._is_refused:
            return
        super().data_received(data)
        if self._head_bytes > self.bounds.header_bytes:
            self._refuse(431, b"the header fields are too large")
        elif self._is_receiving and self._timer is None and not self._is_refused:
            self._expect(self._seconds_left())

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_bytes = 0
        self._is_receiving, self._has_head = True, False

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; of one behind the body only its size."""
        self._head_bytes += len(name) + len(value) + 4
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the answer, unless the header is refused."""
        self._settle()
        self._has_head = True
        if self._head_bytes > self.bounds.header_bytes or len(self.headers) > self.bounds.num_headers:
            self._refuse(431, b"the header fields are too many or too large")
        elif not self.url.startswith(b"/") and self.url != b"*":
            self._refuse(400, b"the request's target is no path")
        if self._is_refused:
            return
        self._body = Body(self.loop, type(self))
        self.scope["connection"], self.scope["body"] = self, self._body  # type: ignore[typeddict-unknown-key]
        if (size_bytes := self._declared_bytes()) is not None:
            self._body.expect(size_bytes)
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expect_100_continue = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._is_refused:
            self._body.add(body)

    def on_message_complete(self) -> None:
        """Know that the request has come."""
        self._settle()
        self._is_receiving = False
        if not self._is_refused:
            self._body.end()
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Begin to count the time that the client takes to read."""
        super().pause_writing()
        self._reader_timer = self.loop.call_later(_READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Know that the client reads."""
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _seconds_left(self) -> float:
        if not self._has_head:
            return self.bounds.header_seconds
        size, most = self._declared_bytes(), self.bounds.body_bytes
        return self.bounds.body_seconds + min(most if size is None else size, most) / _BYTES_PER_SECOND

    def _declared_bytes(self) -> int | None:
        """Return the size that the request says its body has; None if it says none."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return int(length[:19]) if length.isdigit() else None

    def _expect(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._refuse, 408, b"the request did not come in time")

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, reason: bytes) -> None:
        """Answer in place of the application, unless it has begun to, and close."""
        self._is_refused = True
        self._settle()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = b'{"error":"' + reason + b'"}'
            fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + fields % len(body) + body)
        self.transport.close()
