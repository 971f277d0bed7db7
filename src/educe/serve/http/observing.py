"""`Observing`: an application of which every request is seen to begin and to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from educe.serve.observation import Observer

_App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Observing:
    """What stands between the connections and the application.

    Args:
        app: The application; it leaves the route in the scope, under ``route``, and begins the header fields
            of its answer with the request's id.
        observer: What sees the requests.
    """

    def __init__(self, app: _App, observer: Observer) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        observed = self._observer.begin(scope["method"])

        def watched(message: dict[str, Any]) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                observed.status = message["status"]
                observed.id = message["headers"][0][1].decode()
            sent: Awaitable[None] = send(message)
            return sent

        try:
            await self._app(scope, receive, watched)
        finally:
            route = scope.get("route")
            if route is not None:
                observed.route = route.path
            if self._observer.is_tracing:
                headers = dict(scope["headers"])
                observed.traceparent = headers.get(b"traceparent", b"").decode("latin-1")
                observed.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
            self._observer.end(observed)
