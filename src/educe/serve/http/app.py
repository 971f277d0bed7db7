"""`App`: a request's way through the server: who asks, what is asked, and the answer."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import Any

from educe.serve.access import tenant_of
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
from educe.serve.http.connection import Body, body_too_large
from educe.serve.http.exchange import Request, Response, aside, encode
from educe.serve.http.routes import Family, Route, Router
from educe.serve.settings import ServerSettings

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SAFE_METHODS = ("GET", "HEAD")
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    # A star would leave out the key.
    (b"access-control-allow-headers", b"authorization, *"),
    (b"access-control-max-age", b"600"),
)


class App:
    """The server as ASGI knows it.

    Args:
        routes: What it answers.
        settings: Who may ask, and how much.
    """

    def __init__(self, routes: Iterable[Route], settings: ServerSettings) -> None:
        self.router = Router(routes)
        self.settings = settings
        self.is_draining = False
        self._prefix, self._numbers = secrets.token_hex(6), count()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer one request; any fault becomes an answer, too."""
        scope["connection"].task = asyncio.current_task()
        try:
            await self._answer(scope, send)
        except asyncio.CancelledError:
            return  # the client has gone, and nobody reads an answer
        finally:
            scope["connection"].task = None

    async def _answer(self, scope: MutableMapping[str, Any], send: Any) -> None:
        headers = dict(scope["headers"])
        request_id = self._request_id(headers)
        cross: list[tuple[bytes, bytes]] = []
        try:
            self._check_host(scope["headers"], scope["scheme"])
            cross = self._cross_origin(headers)
            if cross and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                response = Response(b"", "", headers=[*_PREFLIGHT])
            else:
                response = await self._routed(scope, headers, request_id)
        except Exception as fault:
            route: Route | None = scope.get("route")
            family = self.router.family(scope["path"]) if route is None else route.family
            response = self._failure(fault, family, request_id)
        finally:
            scope["body"].release()
        response.headers += cross
        await self._send(response, request_id, send, scope)

    async def _routed(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], request_id: str
    ) -> Response:
        route, params = self.router.find(scope["method"], scope["path"])
        scope["route"] = route
        tenant = self._tenant(route, headers)
        body = b"" if scope["method"] in _SAFE_METHODS else await self._body(headers, scope["body"])
        request = Request(
            scope["method"],
            scope["path"],
            scope["query_string"],
            headers,
            body,
            request_id,
            self._deadline(headers),
            tenant,
            params,
        )
        return await route.handle(request)

    async def _send(self, response: Response, request_id: str, send: Any, scope: Mapping[str, Any]) -> None:
        fields = [(b"x-request-id", request_id.encode()), *response.headers]
        if response.media_type:
            fields.append((b"content-type", response.media_type.encode()))
        if self.is_draining:
            fields.append((b"connection", b"close"))
        body = response.body
        if scope["method"] != "HEAD" and isinstance(body, bytes | list | tuple):
            scope["connection"].hold_head()
        if isinstance(body, bytes):
            fields.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": response.status, "headers": fields})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
            return
        if isinstance(body, list | tuple):
            fields.append((b"content-length", b"%d" % sum(map(len, body))))
            await send({"type": "http.response.start", "status": response.status, "headers": fields})
            for part in body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        assert isinstance(body, AsyncGenerator)
        async with aclosing(body) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _failure(self, fault: Exception, family: Family, request_id: str) -> Response:
        refused = logged(fault, f"request {request_id}")
        response = Response(encode(family.body_of(refused)), status=refused.status)
        if refused.retry_after is not None:
            response.headers.append((b"retry-after", b"%d" % max(1, round(refused.retry_after))))
        if isinstance(refused, Unauthorized):
            response.headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(refused, TooLarge):
            response.headers.append((b"connection", b"close"))
        if isinstance(refused, MethodNotAllowed):
            response.headers.append((b"allow", ", ".join(refused.allowed).encode()))
        return response

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers)}"

    def _check_host(self, fields: Iterable[tuple[bytes, bytes]], scheme: str) -> None:
        """Refuse requests that a page of another origin has made, or that were meant for another host."""
        hosts = [value for name, value in fields if name == b"host"]
        if len(hosts) != 1 or not self.settings.accepts_host(host := hosts[0].decode("latin-1")):
            raise WrongHost(
                "this server does not go by the name in the Host header", remedy="add it with --host-name"
            )
        for name, value in fields:
            if name == b"origin":
                origin = value.decode("latin-1")
                if origin != f"{scheme}://{host}" and origin not in self.settings.origins:
                    raise Forbidden("pages of this origin may not call this server")

    def _cross_origin(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return the header fields that let a page of another origin read the answer, if it may."""
        origin = headers.get(b"origin")
        if origin is None or origin.decode("latin-1") not in self.settings.origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"origin"),
        ]

    def _tenant(self, route: Route, headers: Mapping[bytes, bytes]) -> str:
        authorization = headers.get(b"authorization")
        text = None if authorization is None else authorization.decode("latin-1")
        return tenant_of(self.settings, route.access, text)

    def _deadline(self, headers: Mapping[bytes, bytes]) -> float:
        seconds = self.settings.timeout_seconds
        given = headers.get(b"x-request-timeout-ms")
        if given is None and seconds == math.inf:
            return math.inf
        if given is not None:
            if not given.isdigit() or len(given) > 9 or int(given) == 0:
                raise BadRequest("expected a number of milliseconds", place="x-request-timeout-ms")
            seconds = min(seconds, int(given) / 1000)
        return asyncio.get_running_loop().time() + seconds

    async def _body(self, headers: Mapping[bytes, bytes], body: Body) -> bytes:
        """Return the body, decompressed, within the limits."""
        content = await body.whole()
        coding = headers.get(b"content-encoding")
        if coding is None or coding.lower() == b"identity":
            return content
        most = self.settings.server_limits.body_bytes
        return await aside(len(content), partial(_decompressed, content, coding.lower(), most))


def _decompressed(body: bytes, coding: bytes, most: int) -> bytes:
    windows = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
    if coding not in windows:
        raise WrongMediaType("the body is compressed in an unknown way", remedy="use gzip or deflate")
    stream = zlib.decompressobj(windows[coding])
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error:
        raise BadRequest("the body is not compressed as it says") from None
    if len(content) > most:
        raise body_too_large(most)
    if not stream.eof or stream.unused_data:
        raise BadRequest("the compressed body is cut off, or something lies behind it")
    return content
