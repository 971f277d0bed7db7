"""Raw input over HTTP: a picture, video, sound, text, table or file to what `educe predict --json` prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from educe.errors import InputError, LimitError
from educe.model.card import TaskName
from educe.serve.faults import BadRequest, refusal
from educe.serve.http.exchange import WEB_FORM, Request, Response, decode, encode
from educe.serve.http.forms import FORM, read_form
from educe.serve.http.openai.errors import OPENAI
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.room import charge_json
from educe.serve.threads import aside
from educe.tasks.answer import MAX_VALUES, Answer
from educe.tasks.predictor import Result

_LINES = "application/x-ndjson"
_ANY_JSON = msgspec.json.Decoder(Any)
_ANY_FILE = "file-type"
_TEXTS = "text-classification"
_TABLES = ("tabular-classification", "tabular-regression")
_JSON = "application/json"
# Of others JSON is a file like any, or what their own route takes.
_TASKS_OF_JSON = frozenset(get_args(TaskName)) - {_ANY_FILE}
_ANSWER_BYTES, _VALUE_BYTES = 350, 50
_MAYBE_JSON = re.compile(rb"\s*[{[]")
_JSON_OF_TEXTS = re.compile(rb"\s*[{[]\s*\"")


class PredictOptions(msgspec.Struct, frozen=True):
    """What may be asked of answers, and of the way to them."""

    top: Annotated[int, Meta(ge=1, description="Most predictions in an answer.")] | UnsetType = UNSET
    threshold: Annotated[float, Meta(ge=0, le=1, description="Lowest score of a prediction.")] | UnsetType = (
        UNSET
    )
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31, description="Lower numbers go first.")] = 0


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
                queries=PredictOptions,
                family=OPENAI,
            )
        ]

    async def predict(self, request: Request) -> Response:
        """Answer about a raw input."""
        options = msgspec.to_builtins(request.options(PredictOptions))
        priority = options.pop("priority")
        name = request.params["model"]
        most_parts, size = self.inference.settings.server_limits.num_parts, len(request.body)
        content, media_type = await aside(size, lambda: _content(request, most_parts))
        if not content:
            raise BadRequest("the body is empty", remedy="send a file's content, or a form with one file")
        source: Any = content
        if media_type in (_JSON, WEB_FORM, ""):
            task = await self.inference.task(name)
            may_be_json = _may_be_json(task, content, media_type)
            if may_be_json:
                charge_json(content)
            source = await aside(size, lambda: _source(task, content, media_type, may_be_json))
        try:
            results, timing = await self.inference.answer(
                name, source, request.deadline, options, request.tenant, size_bytes=size, priority=priority
            )
        except (InputError, LimitError) as fault:
            refused = refusal(fault)
            refused.place = "the body" + (f": {fault.place}" if fault.place else "")
            raise refused from None
        written = await aside(_size_bytes(results), lambda: b"\n".join(map(_line, results)))
        kind = _JSON if len(results) == 1 else _LINES
        return Response(written, kind, headers=[(b"server-timing", timing.header())])


def _size_bytes(results: Sequence[Result]) -> int:
    """Return about how large answers are as JSON."""
    return sum(_ANSWER_BYTES + _VALUE_BYTES * _num_values(result.answer) for result in results)


def _num_values(answer: Answer | None) -> int:
    if answer is None:
        return 0
    outputs = (answer.outputs or {}).values()
    return len(answer.predictions or ()) + sum(min(output.size, MAX_VALUES) for output in outputs)


def _line(result: Result) -> bytes:
    return encode(_plain(result))


def _plain(result: Result) -> dict[str, Any]:
    if result.answer is not None:
        return result.answer.to_dict()
    assert result.error is not None
    refused = refusal(result.error)
    fault = {"kind": result.error.kind, "cause": refused.cause, "place": refused.place}
    return {"input": result.input, "error": fault}


def _may_be_json(task: str, content: bytes, media_type: str) -> bool:
    """Say whether a body may be JSON: it is for some tasks where its type says nothing."""
    if media_type == _JSON:
        return task in _TASKS_OF_JSON
    return task in (*_TABLES, _TEXTS) and _MAYBE_JSON.match(content) is not None


def _source(task: str, content: bytes, media_type: str, is_json: bool) -> Any:
    """Return what a body says; where its type says nothing, what looks like JSON may be a text."""
    if task == _ANY_FILE:
        return content
    if is_json and task == _TEXTS and media_type != _JSON:
        # What begins so is meant as JSON, and is said to be none, if it is broken.
        is_json = _JSON_OF_TEXTS.match(content) is not None or _decodes(content)
    if is_json:
        return _json_source(task, content)
    if task in _TABLES and media_type == WEB_FORM and b"\n" not in content.rstrip():
        raise BadRequest(
            "the table is one line: curl's -d takes line ends out", remedy="send it with --data-binary @FILE"
        )
    return content


def _decodes(content: bytes) -> bool:
    try:
        _ANY_JSON.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _json_source(task: str, content: bytes) -> Any:
    """Return what a body of JSON says: rows of a table, or texts."""
    if task not in (*_TABLES, _TEXTS):
        raise BadRequest(
            "the model takes no JSON", remedy="send a file's content, as curl does with --data-binary @FILE"
        )
    value = decode(content, _ANY_JSON)
    if task in _TABLES:
        if not isinstance(value, dict | list):
            raise BadRequest("expected a row as an object, or a list of rows")
        if isinstance(value, list) and not all(isinstance(row, dict) for row in value):
            raise BadRequest("a row is no object", remedy="give each as {column: value, …}")
        if not value:
            kind = "object" if isinstance(value, dict) else "list"
            raise BadRequest(f"the {kind} is empty", remedy="give a value for each column")
        return value
    if isinstance(value, dict) and value.keys() == {"text"}:
        value = value["text"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest('expected a text, a list of texts, or {"text": …}')
    if not all(text.strip() for text in texts):
        raise BadRequest("a text is empty")
    return texts


def _content(request: Request, most_parts: int) -> tuple[bytes, str]:
    """Return the content and its media type: of the body, or of the one file or field in a form."""
    if request.media_type != FORM:
        return request.body, request.media_type
    parts = read_form(request, most_parts)
    if len(parts) != 1:
        raise BadRequest(f"the form has {len(parts)} parts", remedy="send one file or text")
    return parts[0].content, parts[0].media_type
