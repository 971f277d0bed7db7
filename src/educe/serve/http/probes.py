"""Probes: whether the process lives, and whether its models answer; open to anyone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from educe.serve.http.exchange import Request, Response
from educe.serve.http.routes import Route
from educe.serve.inference import Inference

_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Probes:
    """The probes' routes.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        ready = Route(
            "GET",
            "/readyz",
            self.ready,
            "Whether all models answer at once.",
            gives=_PLAIN,
            access="open",
            statuses=(200, 503),
        )
        return [
            Route(
                "GET",
                "/livez",
                self.live,
                "Whether the process lives, and no run of a model hangs.",
                gives=_PLAIN,
                access="open",
                statuses=(200, 503),
            ),
            ready,
            # By the name that vLLM's clients know; but the probes alone are open to anyone.
            replace(ready, path="/health", access="key"),
        ]

    async def live(self, request: Request) -> Response:
        """Say whether the process lives, and no run of a model hangs."""
        is_stuck = self.inference.repository.is_stuck
        return Response(b"a model hangs" if is_stuck else b"ok", _PLAIN, 503 if is_stuck else 200)

    async def ready(self, request: Request) -> Response:
        """Say whether all models answer at once."""
        is_ready = self.inference.is_ready
        return Response(b"ok" if is_ready else b"not ready", _PLAIN, 200 if is_ready else 503)
