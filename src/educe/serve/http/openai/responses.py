"""Responses, as Open Responses specifies them: items to items, nothing remembered between requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from educe.generate.options import SamplingOptions
from educe.serve.faults import BadRequest
from educe.serve.http import sse
from educe.serve.http.exchange import Request, Response
from educe.serve.http.openai import chat_types as chats
from educe.serve.http.openai import response_types as responses
from educe.serve.http.openai import types
from educe.serve.http.openai.errors import OPENAI
from educe.serve.http.openai.response_events import ResponseWriter, whole
from educe.serve.http.openai.streaming import streamed
from educe.serve.http.openai.writing import (
    Texts,
    answer_of,
    bounded,
    check_stream_options,
    own_options,
    writing,
)
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.writing import Writing

_RESPONSE = msgspec.json.Decoder(responses.ResponseRequest)
_FORMS = ("text", "regex", "choice", "grammar", "tools")
_FIELDS = {
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "json_schema": "text.format",
    "json_object": "text.format",
    "logprobs": "top_logprobs",
    "tool_calls": "input.arguments",
}
_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True)
class Responses:
    """The route of responses.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/responses",
                self.respond,
                "Respond to items; events if it is to stream.",
                takes=responses.ResponseRequest,
                gives=(responses.ResponseAnswer, sse.MEDIA_TYPE),
                family=OPENAI,
            )
        ]

    async def respond(self, request: Request) -> Response:
        """Respond to items."""
        asked = request.json(_RESPONSE)
        _check(asked, self.inference.settings.server_limits.num_inputs)
        options = {**own_options(asked, request.tenant), **_options(asked)}
        fields = {**_FIELDS, **bounded(asked, _FORMS, "input")}
        prompt = messages_of(asked)
        texts = partial(writing, self.inference, request, asked.model, [prompt], options, fields)
        if asked.stream:
            stream = _Stream(asked, texts)
            return await streamed(stream.events(), request.id, stream.failed)
        async with texts() as written:
            completion = await written.completion(written.streams[0])
            begun, tokenizer = _answer(asked, written), written.model.tokenizer
            make = partial(whole, begun, completion, tokenizer, _num_top(asked))
            return await answer_of(make, [completion])


class _Stream:
    """A response while it is written."""

    def __init__(self, asked: responses.ResponseRequest, texts: Texts) -> None:
        self._asked, self._texts = asked, texts
        self._writer: ResponseWriter | None = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with self._texts() as written:
            (stream,) = written.streams
            writer = ResponseWriter(
                _answer(self._asked, written), written.model.tokenizer, _num_top(self._asked)
            )
            self._writer = writer
            pieces = written.pieces(stream)
            is_first = True
            async for piece in pieces:
                if is_first:
                    is_first = False
                    for event in writer.begin():
                        yield event
                for event in writer.push(piece):
                    yield event
            for event in writer.finish(stream.result()):
                yield event

    def failed(self, error: types.Error) -> list[bytes]:
        assert self._writer is not None
        return self._writer.fail(error)


def messages_of(asked: responses.ResponseRequest) -> list[dict[str, Any]]:
    """Return the conversation that items are, as chat templates take it.

    Raises:
        BadRequest: an item lacks something.
    """
    found: list[dict[str, Any]] = []
    if asked.instructions is not None:
        found.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*found, {"role": "user", "content": asked.input}]
    for index, item in enumerate(asked.input):
        place = f"input[{index}]"
        if item.type == "message":
            role = _needed(item, "role", place)
            text = _text(_needed(item, "content", place))
            found.append({"role": "system" if role == "developer" else role, "content": text})
        elif item.type == "function_call_output":
            output, call_id = _text(_needed(item, "output", place)), _needed(item, "call_id", place)
            found.append({"role": "tool", "content": output, "tool_call_id": call_id})
        else:
            _add_call(found, item, place)
    return found


def _add_call(found: list[dict[str, Any]], item: responses.InputItem, place: str) -> None:
    """Add a call to the message of the model that it belongs to."""
    name, arguments, call_id = (_needed(item, each, place) for each in ("name", "arguments", "call_id"))
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)


def _needed(item: responses.InputItem, name: str, place: str) -> Any:
    value = getattr(item, name)
    if value is None:
        raise BadRequest(f"an item of the type {item.type} has no {name}", place=f"{place}.{name}")
    return value


def _text(content: str | Sequence[responses.InputPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _check(asked: responses.ResponseRequest, most: int) -> None:
    if not isinstance(asked.input, str) and len(asked.input) > most:
        raise BadRequest(f"more than {most} items", place="input")
    if asked.previous_response_id is not None:
        raise BadRequest(
            "no response is remembered", place="previous_response_id", remedy="send the conversation as input"
        )
    if asked.background:
        raise BadRequest("nothing runs in the background", place="background", remedy="leave it out")
    if asked.stream_options is not None:
        check_stream_options(asked.stream_options, asked.stream)
        if asked.stream_options.include_usage is not None:
            raise BadRequest("a response always says it", place="stream_options.include_usage")


def _num_top(asked: responses.ResponseRequest) -> int | None:
    """Return how many likely tokens come with each; None if no log-probabilities are asked for."""
    return asked.top_logprobs or 0 if asked.top_logprobs or _LOGPROBS in (asked.include or ()) else None


def _options(asked: responses.ResponseRequest) -> dict[str, Any]:
    choice = asked.tool_choice
    tools = [
        {"type": "function", "function": {**msgspec.to_builtins(tool), "type": None}}
        for tool in asked.tools or ()
    ]
    found: dict[str, Any] = {
        "max_tokens": asked.max_output_tokens,
        "logprobs": _num_top(asked),
        "tools": tools or None,
        "tool_choice": choice.name if isinstance(choice, responses.NamedFunction) else choice,
        "tool_format": asked.tool_format,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "template_options": asked.template_options,
    }
    form = None if asked.text is None else asked.text.format
    if isinstance(form, chats.ObjectForm):
        found["json_object"] = True
    elif isinstance(form, responses.SchemaForm):
        found["json_schema"] = form.schema
    return {name: value for name, value in found.items() if value is not None}


def _answer(asked: responses.ResponseRequest, written: Writing) -> responses.ResponseAnswer:
    """Return a response of which nothing is written; options that are not given are the model's."""
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    defaults = {**{name: getattr(SamplingOptions, name) for name in names}, **written.model.defaults}
    sampling = {name: defaults[name] if (own := getattr(asked, name)) is None else own for name in names}
    tools = [
        responses.ResponseTool(tool.name, tool.description, tool.parameters, bool(tool.strict))
        for tool in asked.tools or ()
    ]
    form = chats.TextForm() if asked.text is None or asked.text.format is None else asked.text.format
    return responses.ResponseAnswer(
        id=f"resp_{secrets.token_hex(12)}",
        created_at=int(time.time()),
        model=asked.model,
        instructions=asked.instructions,
        tools=tools,
        tool_choice=asked.tool_choice or "auto",
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        text=responses.TextConfig(form),
        top_logprobs=asked.top_logprobs or 0,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        user=asked.user,
        safety_identifier=asked.safety_identifier,
        prompt_cache_key=asked.prompt_cache_key,
        **sampling,
    )
