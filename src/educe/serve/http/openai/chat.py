"""Chats: conversations to answers, with tools and forms, whole or while they are written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from educe.generate.stream import Completion, Output, Piece
from educe.serve.faults import BadRequest
from educe.serve.http import sse
from educe.serve.http.exchange import Request, Response
from educe.serve.http.openai import chat_types as chats
from educe.serve.http.openai import logprobs, types
from educe.serve.http.openai.errors import OPENAI
from educe.serve.http.openai.streaming import streamed
from educe.serve.http.openai.writing import (
    Texts,
    answer_of,
    bounded,
    check_stream_options,
    lasting,
    own_options,
    usage_of,
    writing,
)
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.writing import Writing

_CHAT = msgspec.json.Decoder(chats.ChatRequest)
_FORMS = ("response_format", "regex", "choice", "grammar", "tools")
_FIELDS = {
    "prompt": "messages",
    "json_schema": "response_format",
    "json_object": "response_format",
    "logprobs": "top_logprobs",
    "tool_calls": "messages.tool_calls",
}


@dataclass(frozen=True)
class Chat:
    """The route of chats.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/chat/completions",
                self.chat,
                "Answer in a conversation; events if it is to stream.",
                takes=chats.ChatRequest,
                gives=(chats.ChatAnswer, sse.MEDIA_TYPE),
                family=OPENAI,
            )
        ]

    async def chat(self, request: Request) -> Response:
        """Answer in a conversation."""
        asked = request.json(_CHAT)
        _check(asked, self.inference.settings.server_limits.num_inputs)
        prompt = [message_of(message) for message in asked.messages]
        options = {**own_options(asked, request.tenant), **_options(asked)}
        fields = {**_FIELDS, **bounded(asked, _FORMS, "messages")}
        if asked.max_tokens is None:
            fields["max_tokens"] = "max_completion_tokens"
        texts = partial(writing, self.inference, request, asked.model, [prompt], options, fields)
        answer = _Answer(asked, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))
        if asked.stream:
            return await streamed(_chunks(texts, answer), request.id)
        async with texts() as written:
            completion = await written.completion(written.streams[0])
            return await answer_of(partial(answer.whole, written, completion), [completion])


@dataclass(frozen=True)
class _Answer:
    """The frame of an answer: all but what is written."""

    asked: chats.ChatRequest
    id: str
    created: int

    def whole(self, written: Writing, completion: Completion) -> chats.ChatAnswer:
        choices = [
            chats.ChatChoice(
                index, _message(output), output.finish_reason, self._logprobs(output.logprobs, written)
            )
            for index, output in enumerate(completion.outputs)
        ]
        return chats.ChatAnswer(self.id, self.created, self.asked.model, choices, usage_of([completion]))

    def first(self) -> list[chats.ChatChunk]:
        delta = chats.Delta(role="assistant", content="")
        return [self._chunk([chats.ChunkChoice(index, delta)]) for index in range(self.asked.n or 1)]

    def chunk(self, piece: Piece, written: Writing) -> chats.ChatChunk | None:
        calls = [_call_delta(delta) for delta in lasting(piece.tool_calls) if not delta.withdrawn]
        found = self._logprobs(piece.logprobs, written) if piece.logprobs else None
        if not (piece.text or calls or found or piece.finish_reason):
            return None
        delta = chats.Delta(content=piece.text or UNSET, tool_calls=calls or UNSET)
        return self._chunk([chats.ChunkChoice(piece.index, delta, piece.finish_reason, found)])

    def last(self, completion: Completion) -> chats.ChatChunk | None:
        return self._chunk([], usage_of([completion])) if self._tells_usage else None

    @property
    def _tells_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _chunk(self, choices: list[chats.ChunkChoice], usage: types.Usage | None = None) -> chats.ChatChunk:
        told = usage if self._tells_usage else UNSET
        return chats.ChatChunk(self.id, self.created, self.asked.model, choices, told)

    def _logprobs(self, choices: Sequence[Any], written: Writing) -> chats.ChatLogprobs | None:
        if not self.asked.logprobs:
            return None
        return logprobs.of_chat(choices, written.model.tokenizer, self.asked.top_logprobs or 0)


async def _chunks(texts: Texts, answer: _Answer) -> AsyncGenerator[bytes, None]:
    async with texts() as written:
        (stream,) = written.streams
        is_first = True
        async for piece in written.pieces(stream):
            if is_first:
                is_first = False
                for chunk in answer.first():
                    yield sse.event(chunk)
            if (found := answer.chunk(piece, written)) is not None:
                yield sse.event(found)
        if (last := answer.last(stream.result())) is not None:
            yield sse.event(last)


def message_of(message: chats.Message) -> dict[str, Any]:
    """Return a message as chat templates take it."""
    content = message.content
    text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
    role = type(message).__struct_config__.tag
    found = {"role": "system" if role == "developer" else role, "content": text}
    if message.name is not None:
        found["name"] = message.name
    if isinstance(message, chats.ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    if isinstance(message, chats.AssistantMessage) and message.tool_calls:
        found["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    return found


def _check(asked: chats.ChatRequest, most: int) -> None:
    if len(asked.messages) > most:
        raise BadRequest(f"more than {most} messages", place="messages")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise BadRequest("there is no logprobs: true", place="top_logprobs")
    if asked.stream_options is not None:
        check_stream_options(asked.stream_options, asked.stream)
    if None not in (asked.max_tokens, asked.max_completion_tokens):
        raise BadRequest("max_completion_tokens says the same", place="max_tokens", remedy="give one of them")
    for index, message in enumerate(asked.messages):
        if isinstance(message, chats.AssistantMessage) and message.content is None and not message.tool_calls:
            raise BadRequest("it has neither content nor tool_calls", place=f"messages[{index}].content")


def _options(asked: chats.ChatRequest) -> dict[str, Any]:
    choice = asked.tool_choice
    found: dict[str, Any] = {
        "n": asked.n,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "logprobs": (asked.top_logprobs or 0) if asked.logprobs else None,
        "tools": msgspec.to_builtins(asked.tools),
        "tool_choice": choice.function.name if isinstance(choice, chats.NamedTool) else choice,
        "tool_format": asked.tool_format,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "template_options": asked.template_options,
    }
    if isinstance(asked.response_format, chats.ObjectForm):
        found["json_object"] = True
    elif isinstance(asked.response_format, chats.SchemaForm):
        found["json_schema"] = asked.response_format.json_schema.schema
    return {name: value for name, value in found.items() if value is not None}


def _message(output: Output) -> chats.AnswerMessage:
    calls = [
        chats.ToolCall(call.id, chats.CalledFunction(call.name, call.arguments)) for call in output.tool_calls
    ]
    if not calls:
        return chats.AnswerMessage(output.text)
    return chats.AnswerMessage(output.text or None, calls)


def _call_delta(delta: Any) -> chats.ToolCallDelta:
    function = chats.FunctionDelta(delta.name or UNSET, delta.arguments)
    if delta.id is None:
        return chats.ToolCallDelta(delta.index, function=function)
    return chats.ToolCallDelta(delta.index, delta.id, "function", function)
