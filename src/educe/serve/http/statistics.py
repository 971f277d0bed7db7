"""What the models have done, as Prometheus asks for it, and as the Open Inference Protocol does.

Source: the protocol's extension of statistics, as Triton has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.protocol import StatisticsAnswer, stats_of
from educe.serve.snapshot import ModelSnapshot, Snapshot

_PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Statistics:
    """The routes of what was done.

    Attributes:
        inference: The models.
        snapshot: What tells all numbers of the server.
    """

    inference: Inference
    snapshot: Callable[[], Awaitable[Snapshot]]

    def routes(self) -> list[Route]:
        """Return the routes."""
        model = "/v2/models/{model}"
        return [
            Route("GET", "/metrics", self.metrics, "What the server has done, for Prometheus.", gives=_PLAIN),
            Route("GET", "/v2/models/stats", self.all, "What all models have done.", gives=StatisticsAnswer),
            *(
                Route("GET", f"{path}/stats", self.one, "What a model has done.", gives=StatisticsAnswer)
                for path in (model, f"{model}/versions/{{version}}")
            ),
        ]

    async def metrics(self, request: Request) -> Response:
        """Return all numbers in the text format of Prometheus."""
        from educe.serve.metrics import exposition

        return Response(exposition(await self.snapshot()), _PLAIN)

    async def all(self, request: Request) -> Response:
        """Return what all models have done."""
        found = await self.snapshot()
        return _answer(found.models)

    async def one(self, request: Request) -> Response:
        """Return what a model has done."""
        name, version = request.params["model"], request.params.get("version")
        self.inference.repository.entry(name, version)
        found = await self.snapshot()
        return _answer({name: found.models[name]})


def _answer(models: Mapping[str, ModelSnapshot]) -> Response:
    return json_response(StatisticsAnswer([stats_of(name, model) for name, model in models.items()]))
