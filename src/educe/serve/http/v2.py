"""The Open Inference Protocol over HTTP: health, metadata, inference, and the models' repository.

Source: the protocol's REST specification, its extensions of binary tensor data, model repository and
statistics, as Triton and KServe have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from educe import __version__
from educe.serve import tensors
from educe.serve.faults import BadRequest
from educe.serve.http import v2_types as types
from educe.serve.http.exchange import Request, Response, decode, encode, json_response
from educe.serve.http.routes import Route
from educe.serve.http.v2_tensors import read_inputs, texts_behind_bytes, write_outputs
from educe.serve.inference import Inference, Inferred
from educe.serve.protocol import ModelConfig, ModelMetadata, config_of, metadata_of
from educe.serve.room import charge, charge_json
from educe.serve.threads import aside

_BINARY = "application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"]

_INFER = msgspec.json.Decoder(types.InferRequest)
_INDEX = msgspec.json.Decoder(types.IndexRequest)
_LOAD = msgspec.json.Decoder(types.LoadRequest)


@dataclass(frozen=True)
class V2:
    """The protocol's routes.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        both = [
            route
            for path in (model, version)
            for route in (
                Route("GET", path, self.metadata, "A model's inputs and outputs.", gives=ModelMetadata),
                Route("GET", f"{path}/config", self.config, "A model as Triton has it.", gives=ModelConfig),
                Route(
                    "GET",
                    f"{path}/ready",
                    self.model_ready,
                    "Whether a model answers at once.",
                    gives=types.ModelReady,
                    statuses=(200, 503),
                ),
                Route(
                    "POST",
                    f"{path}/infer",
                    self.infer,
                    "Run a model.",
                    takes=types.InferRequest,
                    gives=(types.InferResponse, _BINARY),
                ),
            )
        ]
        return [
            Route("GET", "/v2", self.server, "What the server is.", gives=types.ServerMetadata),
            Route("GET", "/v2/health/live", self.live, "Whether the server runs.", gives=types.Live),
            Route(
                "GET",
                "/v2/health/ready",
                self.ready,
                "Whether all models answer at once.",
                gives=types.Ready,
                statuses=(200, 503),
            ),
            *both,
            Route(
                "POST",
                "/v2/repository/index",
                self.index,
                "The models that the server knows.",
                takes=types.IndexRequest,
                gives=list[types.IndexEntry],
            ),
            Route(
                "POST",
                "/v2/repository/models/{model}/load",
                self.load,
                "Load a model, or its newest version in place of the present one.",
                takes=types.LoadRequest,
                gives=types.Nothing,
                access="admin",
            ),
            Route(
                "POST",
                "/v2/repository/models/{model}/unload",
                self.unload,
                "Take a model out of use.",
                takes=types.LoadRequest,
                gives=types.Nothing,
                access="admin",
            ),
        ]

    async def server(self, request: Request) -> Response:
        """Say what the server is."""
        return json_response(types.ServerMetadata("educe", __version__, _EXTENSIONS))

    async def live(self, request: Request) -> Response:
        """Say that the server runs."""
        return json_response(types.Live(True))

    async def ready(self, request: Request) -> Response:
        """Say whether all models answer at once."""
        is_ready = self.inference.is_ready
        return json_response(types.Ready(is_ready), 200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Say whether a model answers at once."""
        name, version = _named(request)
        is_ready = self.inference.repository.is_ready(name, version)
        return json_response(types.ModelReady(name, is_ready), 200 if is_ready else 503)

    async def metadata(self, request: Request) -> Response:
        """Say what a model takes and gives."""
        name, version = _named(request)
        found = await self.inference.repository.describe(name, version)
        return json_response(metadata_of(found))

    async def config(self, request: Request) -> Response:
        """Say of a model what Triton's clients ask beyond its metadata."""
        name, version = _named(request)
        found = await self.inference.repository.describe(name, version)
        return json_response(config_of(found))

    async def infer(self, request: Request) -> Response:
        """Run a model."""
        size = len(request.body)
        header, behind = _parts(request)
        charge_json(header)
        asked = await aside(len(header), lambda: _read(request, header))
        charge(texts_behind_bytes(asked.inputs, len(behind)))
        feeds = await aside(size, lambda: read_inputs(asked.inputs, behind))
        tensors.refuse_too_many(asked.parameters, "parameters")
        name, version = _named(request)
        if asked.model_name not in (None, name):
            raise BadRequest("it is not the name in the path", place="model_name")
        parameters = dict(asked.parameters)
        all_binary, timed = (tensors.take_flag(parameters, each) for each in ("binary_data_output", "timing"))
        call = self.inference.call(
            name, version, feeds, parameters, latest=request.deadline, tenant=request.tenant
        )
        done = await self.inference.infer(call)
        size = sum(getattr(output, "nbytes", 0) for output in done.outputs.values())
        return await aside(size, lambda: _written(asked, name, done, all_binary, timed))

    async def index(self, request: Request) -> Response:
        """List the models."""
        asked = request.json(_INDEX) if request.body else types.IndexRequest()
        entries = self.inference.repository.listed(asked.ready)
        return json_response(
            [types.IndexEntry(each.source.name, each.version, each.state, each.reason) for each in entries]
        )

    async def load(self, request: Request) -> Response:
        """Load a model."""
        _check_nothing(request)
        await self.inference.control.load(request.params["model"])
        return json_response(types.Nothing())

    async def unload(self, request: Request) -> Response:
        """Take a model out of use."""
        _check_nothing(request)
        await self.inference.control.unload(request.params["model"])
        return json_response(types.Nothing())


def _read(request: Request, header: bytes) -> types.InferRequest:
    """Return what a request for a run says."""
    return decode(header, _INFER, "" if _HEADER_LENGTH in request.head.fields else request.media_type)


def _written(
    asked: types.InferRequest, name: str, done: Inferred, all_binary: bool, is_timed: bool
) -> Response:
    """Return what a run gave, in the form that was asked for."""
    outputs, parts = write_outputs(done.outputs, asked.outputs, all_binary)
    answer = types.InferResponse(name, done.version, outputs, asked.id)
    if is_timed:
        answer.parameters = {**done.timing.parameters()}
    content = encode(answer)
    headers = [(b"server-timing", done.timing.header())]
    if not parts:
        return Response(content, headers=headers)
    headers.append((_HEADER_LENGTH, b"%d" % len(content)))
    return Response([content, *parts], _BINARY, headers=headers)


def _named(request: Request) -> tuple[str, str | None]:
    return request.params["model"], request.params.get("version")


def _parts(request: Request) -> tuple[bytes, memoryview]:
    """Return a request's JSON, and the bytes behind it."""
    length = request.head.fields.get(_HEADER_LENGTH)
    if length is None:
        return request.body, memoryview(b"")
    if not length.isdigit() or len(length) > 12 or int(length) > len(request.body):
        raise BadRequest("it is no number of bytes of this body", place="Inference-Header-Content-Length")
    return request.body[: int(length)], memoryview(request.body)[int(length) :]


def _check_nothing(request: Request) -> None:
    asked = request.json(_LOAD) if request.body else types.LoadRequest()
    if asked.parameters.keys() - {"unload_dependents"}:
        raise BadRequest("a model is loaded as the server was started with it", place="parameters")
