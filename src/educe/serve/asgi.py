"""`AsgiApp`: the models as an application that other servers than ours can run, or other applications mount.

Source: the ASGI specification, versions 2.0 to 3.0.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

from educe.errors import OptionError
from educe.serve.core import Core
from educe.serve.http.body import Body
from educe.serve.http.exchange import Head, Response
from educe.serve.opening import ModelSource, distinct
from educe.serve.settings import ServerSettings

Message: TypeAlias = "MutableMapping[str, Any]"
"""A scope or an event, as ASGI has them."""

Receive: TypeAlias = "Callable[[], Awaitable[Message]]"
Send: TypeAlias = "Callable[[Message], Awaitable[None]]"


class AsgiApp:
    """Models as an ASGI application: every route of the server but gRPC, with the same checks.

    The models are loaded, and requests are drained, by ASGI's lifespan events, or by ``async with`` where
    those do not come, as in an application that is mounted. Until it is started it can be pickled.

    Of `ServerSettings`, what concerns sockets is of no effect: the address, TLS, workers, gRPC, and the
    bounds on header fields, connections and time to receive are those of the server that runs it.

    Args:
        sources: The models.
        settings: All else; that of a local server if None.

    Raises:
        OptionError: two models have one name.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ServerSettings | None = None) -> None:
        self.sources = distinct(sources)
        self.settings = ServerSettings() if settings is None else settings
        self._answering: set[asyncio.Task[None]] = set()
        self._core: Core | None = None

    @property
    def is_ready(self) -> bool:
        """Whether all models answer at once."""
        return self._core is not None and self._core.inference.is_ready

    @property
    def is_stuck(self) -> bool:
        """Whether a run of a model has lasted longer than any request may."""
        return self._core is not None and self._core.repository.is_stuck

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or load and drain.

        Raises:
            OptionError: a request comes before the models are loaded.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await receive()
            await send({"type": f"{scope['type']}.close"})

    async def __aenter__(self) -> AsgiApp:
        """Load the models; what is wrong with one that cannot be loaded is logged."""
        self._core = core = Core(self.sources, self.settings)
        try:
            await core.repository.load_all()
        except BaseException:
            self._core = None
            core.close()
            raise
        return self

    async def __aexit__(self, *fault: object) -> None:
        """Let the requests that are there end, and forget the models."""
        core = self._core
        assert core is not None
        try:
            if self._answering:
                _, late = await asyncio.wait(self._answering, timeout=self.settings.drain_seconds)
                for task in late:
                    task.cancel()
        finally:
            self._core = None
            core.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.__aenter__()
        except Exception as fault:
            await send({"type": "lifespan.startup.failed", "message": str(fault)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.__aexit__()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._core is None:
            raise OptionError(
                "the models are not loaded",
                remedy="have the server send ASGI's lifespan events, or hold the application by `async with`",
            )
        loop = asyncio.get_running_loop()
        head, body = _head(scope), Body(loop, self._core.room)
        if (size_bytes := head.declared_bytes) is not None:
            body.expect(size_bytes)
        answering = loop.create_task(self._core.app(head, body, partial(_send, send, head.method == "HEAD")))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        receiving = loop.create_task(_receive(receive, body, answering))
        try:
            await answering
        except asyncio.CancelledError:
            if not receiving.done():
                raise
            receiving.result()
        finally:
            receiving.cancel()
            body.release()


def _head(scope: Message) -> Head:
    fields: dict[bytes, bytes] = {}
    repeated: set[bytes] = set()
    for name, value in scope["headers"]:
        if name in fields:
            repeated.add(name)
        fields[name] = value
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    scheme = scope.get("scheme", "http")
    return Head(scope["method"], path, scope.get("query_string", b""), fields, scheme, frozenset(repeated))


async def _receive(receive: Receive, body: Body, answering: asyncio.Task[None]) -> None:
    """Take the body, and cancel the answer when the client goes, or `receive` fails."""
    try:
        while (message := await receive())["type"] == "http.request":
            body.add(message.get("body", b""))
            if not message.get("more_body", False):
                body.end()
    finally:
        answering.cancel()


async def _send(send: Send, is_head: bool, response: Response) -> None:
    """Send an answer; a body that is made meanwhile part by part."""
    start = {"type": "http.response.start", "status": response.status, "headers": response.headers}
    if isinstance(response.body, AsyncGenerator):
        async with aclosing(response.body) as parts:
            await send(start)
            if not is_head:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
        return
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    start["headers"] = [*response.headers, (b"content-length", b"%d" % len(body))]
    await send(start)
    await send({"type": "http.response.body", "body": b"" if is_head else body})
