"""`App`: a request's way through the server: who asks, what is asked, and the answer."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

from educe.serve.access import tenant_of
from educe.serve.deadline import Deadline
from educe.serve.faults import (
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    TooLarge,
    Unauthorized,
    WrongHost,
    WrongMediaType,
    logged,
)
from educe.serve.http.body import Body, body_too_large
from educe.serve.http.exchange import Head, Request, Response, encode
from educe.serve.http.routes import Family, Route, Router
from educe.serve.observation import Observed, RequestIds
from educe.serve.observer import Observer
from educe.serve.settings import ServerSettings
from educe.serve.threads import aside, hold

_SAFE_METHODS = ("GET", "HEAD")
_CLIENT_GONE = 499
_MOST_KNOWN_HOSTS = 100
# A few bytes may become many.
_INFLATED_BYTES = 2**23
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    # A star would leave out the key.
    (b"access-control-allow-headers", b"authorization, *"),
    (b"access-control-max-age", b"600"),
)


class App:
    """What answers requests, whatever brings them.

    Args:
        routes: What it answers.
        settings: Who may ask, and how much.
        observer: What sees every request begin and end.
    """

    def __init__(self, routes: Iterable[Route], settings: ServerSettings, observer: Observer) -> None:
        self.router = Router(routes)
        self.settings = settings
        self._observer = observer
        self._known_hosts: set[bytes] = set()
        self._ids = RequestIds()

    async def __call__(self, head: Head, body: Body, send: Callable[[Response], Awaitable[None]]) -> None:
        """Answer one request; any fault becomes an answer, too.

        Args:
            head: What stands before its body.
            body: The body, while it comes.
            send: Takes the answer, and returns when all of it is sent.
        """
        observed = self._observer.begin(head.method)
        given = head.fields.get(b"x-request-id")
        observed.id = self._ids.of(None if given is None else given.decode("latin-1"))
        hold(body)
        try:
            response = await self._response(head, body, observed)
            observed.status = response.status
            await send(response)
        except asyncio.CancelledError:
            observed.status = _CLIENT_GONE
            raise
        finally:
            if self._observer.is_tracing:
                observed.traceparent = head.field(b"traceparent")
                observed.tracestate = head.field(b"tracestate")
            self._observer.end(observed)

    async def _response(self, head: Head, body: Body, observed: Observed) -> Response:
        cross: list[tuple[bytes, bytes]] = []
        family: Family | None = None
        try:
            self._check_host(head)
            cross = self._cross_origin(head)
            if cross and head.method == "OPTIONS" and b"access-control-request-method" in head.fields:
                response = Response(b"", "", headers=[*_PREFLIGHT])
            else:
                route, params = self.router.find(head.method, head.path)
                observed.route, family = route.path, route.family
                tenant = tenant_of(self.settings, route.access, _authorization(head))
                latest = self._deadline(head)
                with Deadline(latest):
                    content = b"" if head.method in _SAFE_METHODS else await self._body(head, body)
                    response = await route.handle(Request(head, content, observed.id, latest, tenant, params))
        except Exception as fault:
            response = self._failure(fault, family or self.router.family(head.path), observed)
        if not isinstance(response.body, AsyncGenerator):  # which is made of the request's body
            body.release()
        response.headers = [(b"x-request-id", observed.id.encode()), *response.headers, *cross]
        if response.media_type:
            response.headers.append((b"content-type", response.media_type.encode()))
        return response

    def _failure(self, fault: Exception, family: Family, observed: Observed) -> Response:
        refused = logged(fault, f"request {observed.id}")
        observed.error, observed.message = type(fault).__name__, str(refused)
        response = Response(encode(family.body_of(refused)), status=refused.status)
        if refused.retry_after is not None:
            response.headers.append((b"retry-after", b"%d" % max(1, round(refused.retry_after))))
        if isinstance(refused, Unauthorized):
            response.headers.append((b"www-authenticate", refused.challenge.encode()))
        if isinstance(refused, TooLarge):
            response.closes = True
        if isinstance(refused, MethodNotAllowed):
            response.headers.append((b"allow", ", ".join(refused.allowed).encode()))
        return response

    def _check_host(self, head: Head) -> None:
        """Refuse requests that a page of another origin has made, or that were meant for another host."""
        host = head.fields.get(b"host", b"")
        if host not in self._known_hosts or b"host" in head.repeated:
            if b"host" in head.repeated or not self.settings.accepts_host(host.decode("latin-1")):
                raise WrongHost(
                    "this server does not go by the name in the Host header", remedy="add it with --host-name"
                )
            if len(self._known_hosts) < _MOST_KNOWN_HOSTS:
                self._known_hosts.add(host)
        if b"origin" in head.fields:
            origin = head.field(b"origin")
            own = f"{head.scheme}://{head.field(b'host')}"
            if b"origin" in head.repeated or (origin != own and origin not in self.settings.origins):
                raise Forbidden("pages of this origin may not call this server")

    def _cross_origin(self, head: Head) -> list[tuple[bytes, bytes]]:
        """Return the header fields that let a page of another origin read the answer, if it may."""
        if b"origin" not in head.fields or head.field(b"origin") not in self.settings.origins:
            return []
        return [
            (b"access-control-allow-origin", head.fields[b"origin"]),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"origin"),
        ]

    def _deadline(self, head: Head) -> float:
        seconds = self.settings.timeout_seconds
        given = head.fields.get(b"x-request-timeout-ms")
        if given is None and seconds == math.inf:
            return math.inf
        if given is not None:
            if not given.isdigit() or len(given) > 9 or int(given) == 0:
                raise BadRequest(
                    "expected a whole number of milliseconds, from 1 to 999,999,999",
                    place="x-request-timeout-ms",
                )
            seconds = min(seconds, int(given) / 1000)
        return asyncio.get_running_loop().time() + seconds

    async def _body(self, head: Head, body: Body) -> bytes:
        """Return the body, decompressed, within the limits."""
        content = await body.whole()
        coding = head.fields.get(b"content-encoding")
        if coding is None or coding.lower() == b"identity":
            return content
        return await _decompressed(content, coding.lower(), body, self.settings.server_limits.body_bytes)


def _authorization(head: Head) -> str | None:
    if b"authorization" not in head.fields or b"authorization" in head.repeated:
        return None
    return head.field(b"authorization")


async def _decompressed(content: bytes, coding: bytes, body: Body, most: int) -> bytes:
    """Return a body's content, decompressed, after room is taken for each part of it."""
    windows = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
    if coding not in windows:
        raise WrongMediaType("the body is compressed in an unknown way", remedy="use gzip or deflate")
    stream, parts, left = zlib.decompressobj(windows[coding]), [], most + 1
    while not stream.eof:
        try:
            most_part = min(left, _INFLATED_BYTES)
            part = await aside(most_part, partial(stream.decompress, content, most_part))
        except zlib.error:
            raise BadRequest("the body is not compressed as it says") from None
        body.charge(len(part))
        parts.append(part)
        content, left = stream.unconsumed_tail, left - len(part)
        if left == 0:
            raise body_too_large(most)
        if not part and not stream.eof:
            break
    if not stream.eof or stream.unused_data:
        raise BadRequest("the compressed body is cut off, or something lies behind it")
    return b"".join(parts)
