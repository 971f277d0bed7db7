"""Triton's extension of the Open Inference Protocol for texts: `generate`, and `generate_stream` by events.

Source: the generate extension in the documents of the Triton Inference Server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from educe.serve.faults import BadRequest
from educe.serve.http import sse
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.openai.types import Natural, Penalty, Positive, Priority, Seed, Share, StopText
from educe.serve.http.routes import Route
from educe.serve.inference import InferCall, Inference, Inferred

_TEXT, _WRITTEN = "text_input", "text_output"


class GenerateOptions(Struct, forbid_unknown_fields=True):
    """How a text is written or translated; what a model does not take is an error."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | UnsetType = UNSET
    top_k: Natural | UnsetType = UNSET
    top_p: Share | UnsetType = UNSET
    min_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    typical_p: Share | UnsetType = UNSET
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | UnsetType = UNSET
    presence_penalty: Penalty | UnsetType = UNSET
    frequency_penalty: Penalty | UnsetType = UNSET
    seed: Seed | UnsetType = UNSET
    stop: StopText | Annotated[list[StopText], Meta(max_length=64)] | UnsetType = UNSET
    max_tokens: Natural | UnsetType = UNSET
    min_tokens: Natural | UnsetType = UNSET
    ignore_eos: bool | UnsetType = UNSET
    regex: str | UnsetType = UNSET
    grammar: str | UnsetType = UNSET
    json_schema: dict[str, Any] | UnsetType = UNSET
    json_object: bool | UnsetType = UNSET
    source: str | UnsetType = UNSET
    target: str | UnsetType = UNSET
    num_beams: Positive | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    timeout: Annotated[int, Meta(ge=0, lt=2**62)] | UnsetType = UNSET
    stream: bool | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """Return the options that a request gives."""
        values = ((name, getattr(self, name)) for name in GenerateOptions.__struct_fields__)
        return {name: value for name, value in values if value is not UNSET}


class GenerateRequest(GenerateOptions, kw_only=True, forbid_unknown_fields=True):
    """A text to continue or to translate; options stand beside it, or among the parameters."""

    text_input: str
    id: str = ""
    parameters: GenerateOptions | None = None


class GenerateResponse(Struct, omit_defaults=True):
    """What was written: all, or a piece of it."""

    model_name: str
    model_version: str
    text_output: str
    id: str = ""


_GENERATE = msgspec.json.Decoder(GenerateRequest)


@dataclass(frozen=True)
class Generate:
    """The extension's routes.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route
            for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
            for route in (
                Route(
                    "POST",
                    f"{path}/generate",
                    self.generate,
                    "Continue or translate a text.",
                    takes=GenerateRequest,
                    gives=GenerateResponse,
                ),
                Route(
                    "POST",
                    f"{path}/generate_stream",
                    self.generate_stream,
                    "Continue a text, and send it in pieces as server-sent events.",
                    takes=GenerateRequest,
                    gives=sse.MEDIA_TYPE,
                ),
            )
        ]

    async def generate(self, request: Request) -> Response:
        """Continue or translate a text."""
        asked = request.json(_GENERATE)
        call, streams = await self._call(asked, request)
        if streams:
            raise BadRequest("this route does not stream", place="stream", remedy="use generate_stream")
        done = await self.inference.infer(call)
        response = json_response(_response(asked, call.model, done))
        response.headers.append((b"server-timing", done.timing.header()))
        return response

    async def generate_stream(self, request: Request) -> Response:
        """Continue a text, in pieces."""
        asked = request.json(_GENERATE)
        call, _ = await self._call(asked, request)
        events = _events(asked, call.model, self.inference.stream(call))
        # What is wrong with the request is answered as such, not as an event.
        first = await anext(events)
        parts = sse.guarded(first, events, request.id, lambda refused: [sse.event({"error": str(refused)})])
        return Response(parts, sse.MEDIA_TYPE, headers=[(b"cache-control", b"no-cache")])

    async def _call(self, asked: GenerateRequest, request: Request) -> tuple[InferCall, bool]:
        name, version = request.params["model"], request.params.get("version")
        with await self.inference.repository.use(name, version) as deployment:
            if _WRITTEN not in deployment.description.outputs:
                raise BadRequest("the model writes no text", remedy="use infer")
        beside, among = asked.given(), asked.parameters.given() if asked.parameters else {}
        if twice := beside.keys() & among.keys():
            raise BadRequest("it stands beside the parameters, too", place=f"parameters.{min(twice)}")
        parameters = beside | among
        streams = parameters.pop("stream", False)
        call = self.inference.call(
            name,
            version,
            {_TEXT: np.array([asked.text_input], object)},
            parameters,
            latest=request.deadline,
            tenant=request.tenant,
        )
        return call, streams


def _response(asked: GenerateRequest, model: str, done: Inferred) -> GenerateResponse:
    return GenerateResponse(model, done.version, str(done.outputs[_WRITTEN].item()), asked.id)


async def _events(
    asked: GenerateRequest, model: str, pieces: AsyncGenerator[Inferred, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for each in pieces:
            yield sse.event(_response(asked, model, each))
