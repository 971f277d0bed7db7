"""The Open Inference Protocol over gRPC: health, metadata, inference, streams, and the models' repository.

Source: the protocol's gRPC specification, and its extensions as Triton and KServe have them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from educe import __version__
from educe.serve import tensors
from educe.serve.deadline import Deadline
from educe.serve.faults import BadRequest, NotFound, logged
from educe.serve.grpc.contents import (
    bytes_to_read,
    read_inputs,
    read_parameters,
    refuse_too_many,
    texts_bytes,
    write_outputs,
    write_parameters,
)
from educe.serve.grpc.messages import INFERENCE, inference
from educe.serve.grpc.methods import Call, Method
from educe.serve.inference import InferCall, Inference, Inferred
from educe.serve.protocol import config_of, metadata_of, stats_of
from educe.serve.room import charge
from educe.serve.snapshot import Snapshot
from educe.serve.threads import aside

_EXTENSIONS = ("model_configuration", "model_repository", "parameters", "statistics")
_FINAL = "triton_final_response"
_EMPTY_FINAL = "triton_enable_empty_final_response"
_UNLOAD = "unload_dependents"


@dataclass(frozen=True)
class InferenceService:
    """The protocol's methods.

    Attributes:
        models: What runs the models.
        snapshot: What tells all numbers of the server.
    """

    models: Inference
    snapshot: Callable[[], Awaitable[Snapshot]]

    def methods(self) -> list[Method]:
        """Return the methods."""
        key = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }
        admin = {
            "RepositoryModelLoad": self.repository_model_load,
            "RepositoryModelUnload": self.repository_model_unload,
        }
        return [
            *(Method(INFERENCE, name, handle) for name, handle in key.items()),
            *(Method(INFERENCE, name, handle, "admin") for name, handle in admin.items()),
            Method(INFERENCE, "ModelStreamInfer", self.model_stream_infer),
        ]

    async def server_live(self, request: Any, call: Call) -> Any:
        """Say that the server runs."""
        return inference("ServerLiveResponse")(live=True)

    async def server_ready(self, request: Any, call: Call) -> Any:
        """Say whether all models answer at once."""
        return inference("ServerReadyResponse")(ready=self.models.is_ready)

    async def model_ready(self, request: Any, call: Call) -> Any:
        """Say whether a model answers at once."""
        try:
            is_ready = self.models.repository.is_ready(request.name, request.version or None)
        except NotFound:  # which is a status of HTTP's answer, and no fault of the call, as Triton has it
            is_ready = False
        return inference("ModelReadyResponse")(ready=is_ready)

    async def server_metadata(self, request: Any, call: Call) -> Any:
        """Say what the server is."""
        return inference("ServerMetadataResponse")(name="educe", version=__version__, extensions=_EXTENSIONS)

    async def model_metadata(self, request: Any, call: Call) -> Any:
        """Say what a model takes and gives."""
        found = await self.models.repository.describe(request.name, request.version or None)
        return inference("ModelMetadataResponse")(**to_builtins(metadata_of(found)))

    async def model_config(self, request: Any, call: Call) -> Any:
        """Say of a model what Triton's clients ask beyond its metadata."""
        found = await self.models.repository.describe(request.name, request.version or None)
        return inference("ModelConfigResponse")(config=to_builtins(config_of(found)))

    async def model_infer(self, request: Any, call: Call) -> Any:
        """Run a model."""
        refuse_too_many(request)
        parameters = read_parameters(request.parameters)
        is_timed = tensors.take_flag(parameters, "timing")
        done = await self.models.infer(await self._asked(request, parameters, call, call.deadline()))
        response = await _response(request, done)
        if is_timed:
            write_parameters(response.parameters, done.timing.parameters())
        return response

    async def model_stream_infer(self, requests: AsyncIterator[Any], call: Call) -> AsyncGenerator[Any, None]:
        """Run a model for each request of a stream, one after the other; one that fails ends no other."""
        kind = inference("ModelStreamInferResponse")
        async for request in requests:
            try:
                refuse_too_many(request)
                parameters = read_parameters(request.parameters)
                tensors.take_flag(parameters, _EMPTY_FINAL)
                is_timed = tensors.take_flag(parameters, "timing")
                latest = call.deadline()
                with Deadline(latest):
                    asked = await self._asked(request, parameters, call, latest)
                async with aclosing(self.models.stream(asked)) as pieces:
                    async for done in pieces:
                        response = await _response(request, done)
                        told = done.timing.parameters() if is_timed and done.is_last else {}
                        write_parameters(response.parameters, {_FINAL: done.is_last, **told})
                        yield kind(infer_response=response)
            except Exception as fault:
                refused = logged(fault, f"request {request.id[:128]!r}")
                failed = inference("ModelInferResponse")(id=request.id, model_name=request.model_name)
                write_parameters(failed.parameters, {_FINAL: True})
                yield kind(error_message=str(refused), infer_response=failed)

    async def model_statistics(self, request: Any, call: Call) -> Any:
        """Say what a model has done, or what all have done."""
        if request.name:
            self.models.repository.entry(request.name, request.version or None)
        models = (await self.snapshot()).models
        names = [request.name] if request.name else models
        found = [to_builtins(stats_of(name, models[name])) for name in names]
        return inference("ModelStatisticsResponse")(model_stats=found)

    async def repository_index(self, request: Any, call: Call) -> Any:
        """List the models."""
        kind = inference("RepositoryIndexResponse")
        models = [
            kind.ModelIndex(name=each.source.name, version=each.version, state=each.state, reason=each.reason)
            for each in self.models.repository.listed(request.ready)
        ]
        return kind(models=models)

    async def repository_model_load(self, request: Any, call: Call) -> Any:
        """Load a model."""
        _check_nothing(request)
        await self.models.control.load(request.model_name)
        return inference("RepositoryModelLoadResponse")(model_name=request.model_name, isLoaded=True)

    async def repository_model_unload(self, request: Any, call: Call) -> Any:
        """Take a model out of use."""
        _check_nothing(request)
        await self.models.control.unload(request.model_name)
        return inference("RepositoryModelUnloadResponse")(model_name=request.model_name, isUnloaded=True)

    async def _asked(self, request: Any, parameters: dict[str, Any], call: Call, latest: float) -> InferCall:
        charge(texts_bytes(request))
        feeds = await aside(bytes_to_read(request), lambda: read_inputs(request))
        version = request.model_version or None
        return self.models.call(
            request.model_name, version, feeds, parameters, latest=latest, tenant=call.tenant
        )


async def _response(request: Any, done: Inferred) -> Any:
    response = inference("ModelInferResponse")(
        model_name=request.model_name, model_version=done.version, id=request.id
    )
    is_raw = len(request.raw_input_contents) > 0
    size = 0 if is_raw else sum(getattr(output, "nbytes", 0) for output in done.outputs.values())
    await aside(size, lambda: write_outputs(done.outputs, request.outputs, is_raw, response))
    return response


def _check_nothing(request: Any) -> None:
    if request.repository_name:
        raise BadRequest("the server has one repository, without a name", place="repository_name")
    if any(name != _UNLOAD for name in request.parameters):
        raise BadRequest("a model is loaded as the server was started with it", place="parameters")
