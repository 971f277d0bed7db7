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
_ANY_FILE = "file-type"
_TEXTS = "text-classification"
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
        for option in request.queries():
            raise BadRequest("unknown query parameter", place=option[:50], remedy="this route takes none")
        name = request.params["model"]
        most_parts, size = self.inference.settings.server_limits.num_parts, len(request.body)
        content, media_type = await aside(size, lambda: _content(request, most_parts))
        if not content:
            raise BadRequest("the body is empty", remedy="send a file's content, or a form with one file")
        source: Any = content
        num_texts = 1
        if media_type == "application/json":
            task = await self.inference.task(name)
            if task != _ANY_FILE:
                source = await aside(size, lambda: _json_source(task, content))
                num_texts = source.count(b"\n") + 1 if task == _TEXTS and content.lstrip()[:1] == b"[" else 1
        results, timing = await self.inference.answer(name, source, request.deadline)
        if num_texts > 1 and len(results) != num_texts:
            raise BadRequest("the model takes one text at a time", remedy="send each in a request")
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


def _json_source(task: str, content: bytes) -> Any:
    """Return what a body of JSON says: rows of a table, or texts as the lines of a file."""
    if task not in (*_TABLES, _TEXTS):
        raise BadRequest("the model takes no JSON", remedy="send a file's content and its own media type")
    value = decode(content, _ANY_JSON)
    if task in _TABLES:
        if not isinstance(value, dict | list) or not value:
            raise BadRequest("expected a row as an object, or a list of rows")
        return value
    if isinstance(value, dict) and value.keys() == {"text"}:
        value = value["text"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest('expected a text, a list of texts, or {"text": …}')
    if not all(text.strip() for text in texts):
        raise BadRequest("a text is empty")
    if isinstance(value, str):
        return value.encode()
    return "\n".join(" ".join(text.splitlines()) for text in texts).encode()


def _content(request: Request, most_parts: int) -> tuple[bytes, str]:
    """Return the content and its media type: of the body, or of the one file or field in a form."""
    if request.media_type != FORM:
        return request.body, request.media_type
    parts = read_form(request, most_parts)
    if len(parts) != 1:
        raise BadRequest(f"the form has {len(parts)} parts", remedy="send one file or text")
    return parts[0].content, parts[0].media_type
