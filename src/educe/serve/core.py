"""`Core`: all of a server but the ways to it: the models, the routes, and what counts, logs and traces."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from educe.machine import usable_cores
from educe.serve.http.app import App
from educe.serve.http.openai.family import OpenAI
from educe.serve.http.openapi import OpenApi
from educe.serve.http.page import Page
from educe.serve.http.predict import Predict
from educe.serve.http.probes import Probes
from educe.serve.http.routes import Route
from educe.serve.http.statistics import Statistics
from educe.serve.http.v2 import V2
from educe.serve.http.v2_generate import Generate
from educe.serve.inference import Inference
from educe.serve.observer import Observer
from educe.serve.opening import ModelSource
from educe.serve.repository import Repository
from educe.serve.room import BodyRoom
from educe.serve.settings import ServerSettings
from educe.serve.snapshot import Snapshot
from educe.serve.tracing import tracer_from_environment

if TYPE_CHECKING:
    from educe.serve.workers.worker import Worker


class Core:
    """All of a server but the ways to it. It belongs to the event loop in which it is made.

    Args:
        sources: The models.
        settings: All else.
        worker: What joins this process to the others of a server of several; None if it is the only one.

    Attributes:
        repository: The models.
        observer: What sees every request begin and end.
        inference: The models at work.
        room: The room for what all requests have sent, over HTTP and gRPC.
        app: What answers over HTTP.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        settings: ServerSettings,
        worker: Worker | None = None,
    ) -> None:
        self._worker = worker
        # What strangers can make long has threads of its own, of which a request holds one at a time: runs
        # and loads never wait for it.
        count = max(4, 2 * usable_cores())
        self._reading = ThreadPoolExecutor(count, thread_name_prefix="educe-serve-reading")
        # One model alone may have runs on all cores.
        self._pool = ThreadPoolExecutor(2 * count, thread_name_prefix="educe-serve")
        self.repository = Repository(sources, settings, self._pool)
        self.observer = Observer(sys.stderr if settings.log_requests else None, tracer_from_environment())
        control = self.repository if worker is None else worker
        self.inference = Inference(self.repository, settings, self._reading, control)
        self.room = BodyRoom(settings.server_limits)
        self.app = App(routes(self.inference, self.snapshot), settings, self.observer)

    def own_snapshot(self) -> Snapshot:
        """Return the numbers of this process."""
        return Snapshot.of(self.repository, self.observer)

    async def snapshot(self) -> Snapshot:
        """Return the numbers of the whole server."""
        own = self.own_snapshot()
        return own if self._worker is None else await self._worker.whole(own)

    def close(self) -> None:
        """Take all models out of use, and send what is not sent yet."""
        self.repository.close()
        self.observer.close()
        for pool in (self._pool, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)


def routes(inference: Inference, snapshot: Callable[[], Awaitable[Snapshot]]) -> list[Route]:
    """Return all routes of HTTP.

    Args:
        inference: What they ask.
        snapshot: What tells all numbers of the server.
    """
    families = (
        Probes(inference),
        V2(inference),
        Generate(inference),
        Predict(inference),
        OpenAI(inference),
        Statistics(inference, snapshot),
        Page(inference),
    )
    found = [route for family in families for route in family.routes()]
    return [*found, *OpenApi(found, inference.settings).routes()]
