"""`ResponseWriter`: the pieces of a text as the events of a response, item by item."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from educe.generate.stream import Completion, Piece
from educe.serve.http import sse
from educe.serve.http.openai import logprobs, types
from educe.serve.http.openai import response_types as responses
from educe.serve.http.openai.chat_types import TokenLogprob
from educe.serve.http.openai.writing import lasting
from educe.text.tokenizer import Tokenizer
from educe.text.tool_calls import ToolCallDelta


class ResponseWriter:
    """Adds what is written to a response, and tells of it by events.

    Args:
        answer: The response, of which nothing is written.
        tokenizer: What spells tokens.
        num_top: How many likely ones come with each; None if no log-probabilities are asked for.
    """

    def __init__(self, answer: responses.ResponseAnswer, tokenizer: Tokenizer, num_top: int | None) -> None:
        self.answer = answer
        self._tokenizer, self._num_top = tokenizer, num_top
        self._number = 0
        self._blank = ""  # what is said only if words or nothing at all follow
        self._open: responses.OutputItem | None = None

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the text."""
        yield self._event("response.created", response=self.answer)
        yield self._event("response.in_progress", response=self.answer)

    def push(self, piece: Piece) -> Iterator[bytes]:
        """Add a piece of the text, and yield its events."""
        deltas = lasting(piece.tool_calls)
        # What belongs to a call that is open comes before the text, which ends it.
        first = next((index for index, delta in enumerate(deltas) if delta.id is not None), len(deltas))
        for delta in deltas[:first]:
            yield from self._call(delta)
        if piece.text or piece.logprobs:
            yield from self._say(piece)
        for delta in deltas[first:]:
            yield from self._call(delta)

    def finish(self, completion: Completion) -> Iterator[bytes]:
        """End the response, and yield its last events."""
        is_whole = completion.finish_reason != "length"
        if not self.answer.output and self._open is None:
            yield from self._speak(self._blank, [])
        yield from self._close("completed" if is_whole else "incomplete")
        end(self.answer, completion)
        yield self._event(f"response.{self.answer.status}", response=self.answer)

    def fail(self, error: types.Error) -> list[bytes]:
        """Return the last events of a response that fails."""
        self.answer.status = "failed"
        self.answer.error = responses.ResponseError(error.code, error.message)
        return [
            self._event("error", error=error),
            self._event("response.failed", response=self.answer),
        ]

    def _say(self, piece: Piece) -> Iterator[bytes]:
        found = []
        if self._num_top is not None:
            found = logprobs.of_chat(piece.logprobs, self._tokenizer, self._num_top).content
        if not isinstance(self._open, responses.OutputMessage) and not piece.text.strip() and not found:
            self._blank += piece.text
            return
        text, self._blank = self._blank + piece.text, ""
        yield from self._speak(text, found)

    def _speak(self, text: str, found: list[TokenLogprob]) -> Iterator[bytes]:
        """Add text to a message, which is begun if none is open."""
        if not isinstance(self._open, responses.OutputMessage):
            yield from self._add(responses.OutputMessage(_id("msg"), "in_progress", []))
        message = self._open
        assert isinstance(message, responses.OutputMessage)
        if not message.content:
            message.content = [responses.OutputText("")]
            yield self._event("response.content_part.added", **self._at(), part=message.content[0])
        part = message.content[0]
        part.text, part.logprobs = part.text + text, part.logprobs + found
        yield self._event("response.output_text.delta", **self._at(), delta=text, logprobs=found)

    def _call(self, delta: ToolCallDelta) -> Iterator[bytes]:
        if delta.withdrawn:
            yield from self._close("incomplete")
            return
        if delta.id is not None and delta.name is not None:
            call = responses.FunctionCall(_id("fc"), delta.id, delta.name, "", "in_progress")
            yield from self._add(call)
        call_open = self._open
        assert isinstance(call_open, responses.FunctionCall)
        if delta.arguments:
            call_open.arguments += delta.arguments
            yield self._event(
                "response.function_call_arguments.delta", **self._place(), delta=delta.arguments
            )

    def _add(self, item: responses.OutputItem) -> Iterator[bytes]:
        yield from self._close("completed")
        self._open = item
        yield self._event("response.output_item.added", output_index=len(self.answer.output), item=item)

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[bytes]:
        """End the item that is open, if one is."""
        item = self._open
        if item is None:
            return
        if isinstance(item, responses.FunctionCall):
            yield self._event(
                "response.function_call_arguments.done",
                **self._place(),
                name=item.name,
                arguments=item.arguments,
            )
        for part in item.content if isinstance(item, responses.OutputMessage) else ():
            told = {"text": part.text, "logprobs": part.logprobs}
            yield self._event("response.output_text.done", **self._at(), **told)
            yield self._event("response.content_part.done", **self._at(), part=part)
        item.status = status
        yield self._event("response.output_item.done", output_index=len(self.answer.output), item=item)
        self.answer.output = [*self.answer.output, item]
        self._open = None

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open.id, "output_index": len(self.answer.output)}

    def _at(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.event(data, kind)


def whole(
    answer: responses.ResponseAnswer, completion: Completion, tokenizer: Tokenizer, num_top: int | None
) -> responses.ResponseAnswer:
    """Return a response with all that was written."""
    output = completion.outputs[0]
    if output.text.strip() or not output.tool_calls:
        part = responses.OutputText(output.text)
        if num_top is not None:
            part.logprobs = logprobs.of_chat(output.logprobs, tokenizer, num_top).content
        answer.output = [responses.OutputMessage(_id("msg"), "completed", [part])]
    calls = [
        responses.FunctionCall(_id("fc"), call.id, call.name, call.arguments, "completed")
        for call in output.tool_calls
    ]
    answer.output = [*answer.output, *calls]
    if completion.finish_reason == "length":
        answer.output[-1].status = "incomplete"
    return end(answer, completion)


def end(answer: responses.ResponseAnswer, completion: Completion) -> responses.ResponseAnswer:
    """Return a response of which all items are there, with how it ended and what it took."""
    answer.usage = responses.ResponseUsage(
        completion.num_prompt_tokens,
        completion.num_tokens,
        completion.num_prompt_tokens + completion.num_tokens,
        responses.CachedTokens(completion.num_cached_tokens),
    )
    if completion.finish_reason == "length":
        answer.status, answer.incomplete_details = "incomplete", responses.Incomplete("max_output_tokens")
    else:
        answer.status, answer.completed_at = "completed", int(time.time())
    return answer


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
