"""A connection over which requests follow each other, and which does not wait for ever.

The syntax is read by httptools. Source: RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import httptools

from educe.serve.faults import logged
from educe.serve.http.body import Body
from educe.serve.http.exchange import Head, Response
from educe.serve.settings import READER_SECONDS

if TYPE_CHECKING:
    from educe.serve.http.listener import Listener

_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
# Who reads less within `READER_SECONDS` is not waited for any more.
_READER_BYTES = 2**16
_LINGER_SECONDS = 2.0
# Longer than clients keep connections that they do not use: who closes last never meets a request on its way.
_KEEP_ALIVE_SECONDS = 75.0
LAST_SECONDS = 0.5
"""How long a client may not have heard of the server's end: what it sends meanwhile is answered."""
# What the framing of a body's chunks may take, for each of its bytes.
_MOST_FRAMING = 8
_SMALL_BYTES = 2**16
_MOST_FOLLOWING = 32
# Its authority stands for the Host. Source: RFC 9112, section 3.2.2.
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_NOT_MODIFIED = 304


class _RefusedError(Exception):
    """The request is answered by the connection itself."""


class _Exchange:
    """A request and its answer.

    Attributes:
        head: What stands before the request's body.
        body: The body.
        keeps_alive: Whether another request may follow.
        is_chunked: Whether the client knows answers of a size that is not known before.
        is_asking: Whether it sends the body only if it is told to.
        is_begun: Whether the answer has begun.
    """

    __slots__ = ("body", "head", "is_asking", "is_begun", "is_chunked", "keeps_alive")

    def __init__(self, head: Head, body: Body, *, keeps_alive: bool, is_chunked: bool) -> None:
        self.head, self.body, self.keeps_alive, self.is_chunked = head, body, keeps_alive, is_chunked
        self.is_asking = is_chunked and head.fields.get(b"expect", b"").lower() == b"100-continue"
        self.is_begun = False


class Connection(asyncio.Protocol):
    """One client's connection.

    What takes too long is ended by the listener, which calls `expire` when `deadline` has passed.

    Args:
        loop: The server's event loop.
        listener: What has accepted it.

    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._send_by = math.inf  # until when the client has to have sent what it is about to send
        self._read_by = math.inf  # until when it has to have read what was written
        self._unread_bytes = 0  # what waited to be read when that time began
        self._loop, self._listener, self._limits = loop, listener, listener.limits
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._repeated: set[bytes] = set()
        self._num_fields = 0
        self._chunk_bytes = self._head_bytes = self._framing_bytes = self._bodiless_bytes = 0
        self._is_in_head = False
        self._is_head_begun = self._is_body_continued = False
        self._receiving: _Exchange | None = None
        self._answering: _Exchange | None = None
        self._following: deque[_Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._refusal: tuple[int, bytes] | None = None
        self._is_deaf = False
        self._is_closing = False

    @property
    def deadline(self) -> float:
        """Until when it is waited for the client, by the loop's clock; infinite while it waits for us."""
        return min(self._send_by, self._read_by)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._listener.connections.add(self)
        self._await_client()
        if len(self._listener.connections) > self._limits.num_connections:
            self._refuse(503, b"too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """End what the client does not wait for any more."""
        self._is_closing = True
        self._listener.connections.discard(self)
        del self._parser  # which refers to this
        if self._task is not None:
            self._task.cancel()
        for exchange in (*self._following, self._receiving):
            if exchange is not None:
                exchange.body.release()
        self._resume()

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless nobody listens any more."""
        if self._is_closing or self._is_deaf:
            return
        self._chunk_bytes = len(data)
        self._is_head_begun = self._is_body_continued = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # which is not offered: the answer is the last
            self._is_deaf = True
        except httptools.HttpParserError:
            if not (self._is_closing or self._is_deaf):
                self._refuse(400, b"the request is no HTTP")
            return
        if self._is_in_head:
            self._head_bytes += 0 if self._is_head_begun else len(data)
            if self._head_bytes > self._limits.header_bytes:
                self._refuse(431, b"the header fields are too large")
        elif self._receiving is not None:
            self._check_framing()

    def _check_framing(self) -> None:
        """Refuse a body of which too little is body."""
        self._framing_bytes += self._chunk_bytes
        self._bodiless_bytes = 0 if self._is_body_continued else self._bodiless_bytes + self._chunk_bytes
        assert self._receiving is not None
        most = self._limits.header_bytes + (1 + _MOST_FRAMING) * self._receiving.body.size_bytes
        if self._framing_bytes > most + self._chunk_bytes or self._bodiless_bytes > self._limits.header_bytes:
            self._refuse(400, b"the body is in too many parts, or too much lies behind it")

    def pause_writing(self) -> None:
        """Write no more until the client has read what waits, for which it has some time."""
        self._drained = self._loop.create_future()
        self._await_reader()

    def resume_writing(self) -> None:
        """Know that the client reads."""
        self._resume()
        if not self._is_closing:
            self._read_by = math.inf

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._target, self._fields, self._num_fields = b"", {}, 0
        self._head_bytes, self._is_in_head, self._is_head_begun = 0, True, True
        self._await_client()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; none of those that stand behind a body."""
        if self._is_in_head:
            name = name.lower()
            if name in self._fields:
                self._repeated.add(name)
                self._head_bytes += len(name) + len(value) + 4
            self._fields[name] = value
            self._num_fields += 1
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(431, b"the fields behind the body are too large")
            raise _RefusedError

    def on_headers_complete(self) -> None:
        """Start the answer, unless the header is refused."""
        target, fields, limits = self._target, self._fields, self._limits
        self._is_in_head = False
        if self._num_fields > limits.num_headers or self._is_head_large():
            self._refuse(431, b"the header fields are too many or too large")
            raise _RefusedError
        if b"host" in fields and (absolute := _ABSOLUTE.match(target)) is not None:
            fields[b"host"], target = absolute[1], absolute[2]
            if not target.startswith(b"/"):
                target = b"/" + target
        if not target.isascii() or b"#" in target or not (target.startswith(b"/") or target == b"*"):
            self._refuse(400, b"the request's target is no path")
            raise _RefusedError
        if len(self._following) == _MOST_FOLLOWING:
            self._refuse(503, b"too many requests wait on this connection")
            raise _RefusedError
        path, _, query = target.partition(b"?")
        name = path.decode("ascii")
        head = Head(
            self._parser.get_method().decode("ascii"),
            unquote(name) if "%" in name else name,
            query,
            fields,
            self._listener.scheme,
            frozenset(self._repeated) if self._repeated else frozenset(),
        )
        if self._repeated:
            self._repeated = set()
        body = Body(self._loop, self._listener.room)
        exchange = _Exchange(
            head,
            body,
            keeps_alive=self._parser.should_keep_alive() and not self._parser.should_upgrade(),
            is_chunked=self._parser.get_http_version() != "1.0",
        )
        self._receiving, self._framing_bytes, self._bodiless_bytes = exchange, 0, 0
        size_bytes = head.declared_bytes
        if size_bytes is not None:
            body.expect(size_bytes)
        if self._answering is None:
            self._start(exchange)
        else:
            self._following.append(exchange)
        self._await_client()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        assert self._receiving is not None
        self._is_body_continued = True
        self._receiving.body.add(body)

    def on_message_complete(self) -> None:
        """Know that the request has come."""
        assert self._receiving is not None
        exchange, self._receiving = self._receiving, None
        exchange.body.end()
        self._await_client()
        if self._is_full:
            self._transport.pause_reading()

    def expire(self) -> None:
        """End what the client has left waiting."""
        if self._is_closing or self._drained is not None:
            if self._unread_bytes - self._transport.get_write_buffer_size() >= _READER_BYTES:
                self._await_reader()
            else:
                self._transport.abort()
        elif self._is_idle and (self._target or self._listener.is_draining):
            self._close()
        else:
            self._refuse(408, b"the request did not come in time")

    def drain(self) -> None:
        """Close behind the answers that are waited for, and those to requests that are on their way."""
        if self._is_idle and not self._is_closing:
            self._await_client()

    def abandon(self) -> None:
        """Close at once; an answer that has not begun is one that says so."""
        if self._is_idle:
            self._close()
        else:
            self._end_with(503, b"the server ends")

    @property
    def _is_idle(self) -> bool:
        """Whether no request is there, not even a part of one."""
        return self._answering is None and self._receiving is None and not self._is_in_head

    @property
    def _is_full(self) -> bool:
        """Whether a whole request waits for the answer before its own, so that no more is read."""
        return bool(self._following) and self._following[0] is not self._receiving

    def _await_client(self) -> None:
        """Give the client the time for what it is to send next."""
        limits = self._limits
        if self._is_full:
            seconds = math.inf
        elif self._is_in_head:
            seconds = limits.header_seconds
        elif self._receiving is not None:
            seconds = self._limits.receiving_seconds(self._receiving.head.declared_bytes)
        elif self._answering is not None:
            seconds = math.inf
        elif self._listener.is_draining:
            seconds = LAST_SECONDS
        else:
            seconds = _KEEP_ALIVE_SECONDS if self._target else limits.header_seconds
        self._send_by = self._loop.time() + seconds

    def _await_reader(self, seconds: float | None = None) -> None:
        """Give the client the time to read some of what waits for it."""
        self._unread_bytes = self._transport.get_write_buffer_size()
        self._read_by = self._loop.time() + (READER_SECONDS if seconds is None else seconds)

    def _start(self, exchange: _Exchange) -> None:
        self._answering = exchange
        if exchange.is_asking and exchange is self._receiving and exchange.body.is_wanted:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._task = self._loop.create_task(self._answer(exchange))

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            await self._listener.app(exchange.head, exchange.body, partial(self._send, exchange))
        except asyncio.CancelledError:
            return  # nobody reads the answer
        except Exception as fault:
            logged(fault, "an answer")
            self._task = None
            self._end_with(500, b"internal error")
        finally:
            self._task = self._answering = None
            exchange.body.release()
        self._go_on(exchange)

    def _go_on(self, exchange: _Exchange) -> None:
        """Take up the next request, or close."""
        if self._is_closing:
            return
        if not exchange.keeps_alive:
            self._close()
        elif self._following:
            self._start(self._following.popleft())
            if not self._is_full:
                self._transport.resume_reading()
                self._await_client()
        elif self._refusal is not None:
            self._end_with(*self._refusal)
        elif self._is_idle:
            self._await_client()

    async def _send(self, exchange: _Exchange, response: Response) -> None:
        """Send an answer; a body that is made meanwhile part by part."""
        body = response.body
        if isinstance(body, AsyncGenerator):
            await self._stream(exchange, response, body)
            return
        parts = (body,) if isinstance(body, bytes) else tuple(body)
        size_bytes = sum(map(len, parts))
        framing = b"content-length: %d\r\n" % size_bytes if response.status != _NOT_MODIFIED else b""
        head = self._head(exchange, response, framing)
        if exchange.head.method == "HEAD":
            self._write(head)
        elif size_bytes < _SMALL_BYTES:
            self._write(b"".join((head, *parts)))
        elif not self._is_closing:
            self._transport.writelines((head, *parts))
        await self._written()

    async def _stream(
        self, exchange: _Exchange, response: Response, body: AsyncGenerator[bytes, None]
    ) -> None:
        is_chunked = exchange.is_chunked
        exchange.keeps_alive = exchange.keeps_alive and is_chunked
        framing = b"transfer-encoding: chunked\r\n" if is_chunked else b""
        async with aclosing(body) as parts:
            self._write(self._head(exchange, response, framing))
            if exchange.head.method == "HEAD":
                return
            try:
                async for part in parts:
                    if part:
                        self._write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
                        await self._written()
            except Exception:
                self._transport.abort()  # so that the client does not take it for the whole
                raise
        if is_chunked:
            self._write(b"0\r\n\r\n")

    def _head(self, exchange: _Exchange, response: Response, framing: bytes) -> bytes:
        """Return the status and the header fields of an answer."""
        if response.closes or self._listener.is_draining:
            exchange.keeps_alive = False
        lines = [_STATUS_LINES[response.status], self._listener.date]
        for name, value in response.headers:
            lines += (name, b": ", value, b"\r\n")
        persistence = b""  # which is what HTTP/1.1 takes for granted
        if not exchange.keeps_alive:
            persistence = b"connection: close\r\n"
        elif not exchange.is_chunked:
            persistence = b"connection: keep-alive\r\n"
        lines += (persistence, framing, b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != 3 + len(response.headers) + bool(persistence) + bool(framing):
            raise ValueError("a header field holds the end of a line")
        exchange.is_begun = True
        return head

    def _write(self, content: bytes) -> None:
        if not self._is_closing:
            self._transport.write(content)

    async def _written(self) -> None:
        """Wait until the client has read enough."""
        if self._drained is not None:
            await self._drained

    def _resume(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _refuse(self, status: int, reason: bytes) -> None:
        """Answer in place of the application, after the requests that came before, and close."""
        if self._is_closing or self._is_deaf:
            return
        if self._answering is not None and self._receiving is not self._answering:
            if self._receiving is not None:  # the last of those that follow, which never becomes whole
                self._following.pop().body.release()
                self._receiving = None
            self._refusal, self._is_deaf, self._send_by = (status, reason), True, math.inf
        else:
            self._end_with(status, reason)

    def _end_with(self, status: int, reason: bytes) -> None:
        """Answer what is being answered in place of the application, unless it has begun to, and close."""
        if self._is_closing:
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        exchange = self._answering or self._receiving
        if exchange is not None and exchange.is_begun:
            if exchange is self._answering:  # so that the client does not take it for the whole
                self._is_closing = True
                self._transport.abort()
            else:
                self._close()
            return
        body = b'{"error":"%b"}' % reason
        fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        head = (_STATUS_LINES[status], self._listener.date, fields % len(body))
        self._transport.write(b"".join((*head, body)))
        self._close()

    def _close(self) -> None:
        """Close; if the client still sends, not before it has had time to read the answer."""
        self._is_closing, self._send_by = True, math.inf
        is_new = not self._target
        is_sending = self._receiving is not None or self._is_in_head or is_new or self._is_deaf
        if is_sending and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._await_reader(_LINGER_SECONDS)
            self._transport.resume_reading()
        else:
            self._await_reader()
            self._transport.close()

    def _is_head_large(self) -> bool:
        most = self._limits.header_bytes
        if self._head_bytes + self._chunk_bytes <= most:
            return False
        size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._fields.items())
        return size > most or self._head_bytes > most
