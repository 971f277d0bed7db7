"""The list of models."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from educe.serve.deployment import Entry
from educe.serve.faults import NotFound
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.openai import types
from educe.serve.http.openai.errors import OPENAI, ModelNotFound
from educe.serve.http.routes import Route
from educe.serve.inference import Inference


@dataclass(frozen=True)
class Models:
    """The routes of the models.

    Attributes:
        inference: What runs the models.
        created: When the server was started, in seconds since 1970.
    """

    inference: Inference
    created: int = field(default_factory=lambda: int(time.time()))

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "GET",
                "/v1/models",
                self.index,
                "The models that the server knows.",
                gives=types.ModelList,
                family=OPENAI,
            ),
            Route(
                "GET",
                "/v1/models/{model}",
                self.model,
                "A model that the server knows.",
                gives=types.Model,
                family=OPENAI,
            ),
        ]

    async def index(self, request: Request) -> Response:
        """List the models."""
        return json_response(
            types.ModelList(
                [self._model(name, entry) for name, entry in self.inference.repository.entries.items()]
            )
        )

    async def model(self, request: Request) -> Response:
        """Tell of a model."""
        name = request.params["model"]
        try:
            entry = self.inference.repository.entry(name)
        except NotFound as fault:
            raise ModelNotFound(fault.cause, place="model", remedy="GET /v1/models lists them") from None
        return json_response(self._model(name, entry))

    def _model(self, name: str, entry: Entry) -> types.Model:
        task = None if entry.description is None else entry.description.task
        return types.Model(name, self.created, "educe", task=task)
