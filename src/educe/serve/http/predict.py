"""Raw input over HTTP: a picture, video, sound, text, table or file to what `educe predict --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from educe.serve.faults import BadRequest, refusal
from educe.serve.http.exchange import Request, Response, aside, decode, encode
from educe.serve.http.forms import FORM, read_form
from educe.serve.http.openai.errors import OPENAI
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.tasks.answer import Answer
from educe.tasks.predictor import Result

_LINES = "application/x-ndjson"
_ANY_JSON = msgspec.json.Decoder(Any)
_TABLES = ("tabular-classification", "tabular-regression")


@dataclass(frozen=True)
class Predict:
    """The route of raw input.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/models/{model}/predict",
                self.predict,
                "Answer about a picture, video, sound, text, table or any file; a line for each item in it.",
                takes=("application/octet-stream", FORM, "application/json", "text/plain", "text/csv"),
                gives=(Answer, _LINES),
                family=OPENAI,
            )
        ]

    async def predict(self, request: Request) -> Response:
        """Answer about a raw input."""
        name = request.params["model"]
        most_parts, size = self.inference.settings.server_limits.num_parts, len(request.body)
        content, media_type = await aside(size, lambda: _content(request, most_parts))
        if not content:
            raise BadRequest("the body is empty", remedy="send a file's content, or a form with one file")
        source: Any = content
        if media_type == "application/json" and await self.inference.task(name) in _TABLES:
            source = await aside(size, lambda: decode(content, _ANY_JSON))
            if not isinstance(source, dict | list) or not source:
                raise BadRequest("expected a row as an object, or a list of rows")
        results, timing = await self.inference.answer(name, source, request.deadline)
        headers = [(b"server-timing", timing.header())]
        if len(results) == 1:
            (result,) = results
            if result.error is not None:
                raise result.error
            return Response(encode(_plain(result)), headers=headers)
        return Response(b"\n".join(encode(_plain(result)) for result in results), _LINES, headers=headers)


def _plain(result: Result) -> dict[str, Any]:
    if result.answer is not None:
        return result.answer.to_dict()
    assert result.error is not None
    refused = refusal(result.error)
    fault = {"kind": result.error.kind, "cause": refused.cause, "place": refused.place}
    return {"input": result.input, "error": fault}


def _content(request: Request, most_parts: int) -> tuple[bytes, str]:
    """Return the content and its media type: of the body, or of the one file or field in a form."""
    if request.media_type != FORM:
        return request.body, request.media_type
    parts = read_form(request, most_parts)
    if len(parts) != 1:
        raise BadRequest(f"the form has {len(parts)} parts", remedy="send one file or text")
    return parts[0].content, parts[0].media_type
