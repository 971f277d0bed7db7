"""Completions: texts to what follows them, whole or while it is written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from educe.generate.generator import Generator
from educe.generate.order import SPELLING_TOKENS
from educe.generate.sampling import Choice
from educe.generate.stream import Completion
from educe.serve.faults import BadRequest
from educe.serve.http import sse
from educe.serve.http.exchange import Request, Response
from educe.serve.http.openai import completion_types as completions
from educe.serve.http.openai import logprobs
from educe.serve.http.openai.errors import OPENAI, in_words_of
from educe.serve.http.openai.streaming import streamed
from educe.serve.http.openai.writing import (
    Texts,
    answer_of,
    bounded,
    check_stream_options,
    own_options,
    prompts_of,
    usage_of,
    writing,
)
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.threads import aside, in_thread
from educe.serve.writing import Writing

_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar")
_COMPLETION = msgspec.json.Decoder(completions.CompletionRequest)


@dataclass(frozen=True)
class Completions:
    """The route of completions.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/completions",
                self.complete,
                "Continue texts; events if it is to stream.",
                takes=completions.CompletionRequest,
                gives=(completions.CompletionAnswer, sse.MEDIA_TYPE),
                family=OPENAI,
            )
        ]

    async def complete(self, request: Request) -> Response:
        """Continue texts."""
        asked = request.json(_COMPLETION)
        prompts = prompts_of(asked.prompt, "prompt")
        _check(asked, len(prompts), self.inference.settings.server_limits.num_texts)
        options = {**own_options(asked, request.tenant), **_options(asked)}
        fields = bounded(asked, _FORMS, "prompt")
        texts = partial(writing, self.inference, request, asked.model, prompts, options, fields)
        answer = _Answer(self.inference, asked, f"cmpl-{secrets.token_hex(12)}", int(time.time()))
        if asked.stream:
            return await streamed(answer.chunks(texts, prompts), request.id)
        async with texts() as written:
            return await answer.whole(written, prompts)


@dataclass(frozen=True)
class _Echo:
    """What an answer begins with, and the prompt's last tokens, by which what follows is spelled."""

    text: str = ""
    told: completions.CompletionLogprobs | None = None
    before: Sequence[int] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class _Answer:
    """The frame of an answer: all but what is written."""

    inference: Inference
    asked: completions.CompletionRequest
    id: str
    created: int

    async def whole(self, written: Writing, prompts: Sequence[str | list[int]]) -> Response:
        echoes: list[_Echo] = []
        ended: list[Completion] = []
        for stream, prompt in zip(written.streams, prompts, strict=True):
            echoes.append(await self._echo(written, prompt))
            ended.append(await written.completion(stream))
        more = sum(len(done.outputs) * echo.size_bytes for echo, done in zip(echoes, ended, strict=True))
        return await answer_of(partial(self._written, written.model, echoes, ended), ended, more)

    def _written(
        self, model: Generator, echoes: Sequence[_Echo], ended: Sequence[Completion]
    ) -> completions.CompletionAnswer:
        found = self._part([])
        for echo, done in zip(echoes, ended, strict=True):
            for output in done.outputs:
                text = echo.text + output.text
                told = self._logprobs(output.logprobs, model, _behind(echo, model))
                if echo.told is not None and told is not None:
                    told = _joined(echo.told, told)
                index = len(found.choices)
                found.choices.append(completions.CompletionChoice(index, text, output.finish_reason, told))
        found.usage = usage_of(ended)
        return found

    async def chunks(self, texts: Texts, prompts: Sequence[str | list[int]]) -> AsyncGenerator[bytes, None]:
        num_each = self.asked.n or 1
        async with texts() as written:
            for number, (stream, prompt) in enumerate(zip(written.streams, prompts, strict=True)):
                echo = await self._echo(written, prompt)
                places = [_behind(echo, written.model) for _ in range(num_each)]
                for index in range(num_each if self.asked.echo else 0):
                    yield self._event(number * num_each + index, echo.text, None, echo.told)
                async for piece in written.pieces(stream):
                    if not (piece.text or piece.logprobs or piece.finish_reason):
                        continue
                    told = self._logprobs(piece.logprobs, written.model, places[piece.index])
                    yield self._event(number * num_each + piece.index, piece.text, piece.finish_reason, told)
            if self._tells_usage:
                last = self._part([])
                last.usage = usage_of([stream.result() for stream in written.streams])
                yield sse.event(last)

    async def _echo(self, written: Writing, prompt: str | list[int]) -> _Echo:
        """Return what an answer begins with; no text of it unless it is asked for."""
        text, model = "", written.model
        if self.asked.echo:
            text = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        if self.asked.logprobs is None:
            return _Echo(text)
        if not self.asked.echo:
            ids = await in_thread(self.inference.pool, partial(model.encode, prompt))
            return _Echo(before=ids[-SPELLING_TOKENS:])
        with in_words_of({}):
            choices = await written.weigh(prompt, max(1, self.asked.logprobs))
        size, places = logprobs.size_bytes(choices), logprobs.Places(model.tokenizer.stream(), 0)
        told = await aside(size, lambda: self._logprobs(choices, model, places))
        last = choices[-SPELLING_TOKENS:]
        before = [each if isinstance(each, int) else each.token for each in last]
        return _Echo(text, told, before, size)

    def _event(
        self, index: int, text: str, reason: str | None, told: completions.CompletionLogprobs | None
    ) -> bytes:
        return sse.event(self._part([completions.CompletionChoice(index, text, reason, told)]))

    def _part(self, choices: list[completions.CompletionChoice]) -> completions.CompletionAnswer:
        found = completions.CompletionAnswer(self.id, self.created, self.asked.model, choices)
        if self._tells_usage:
            found.usage = None
        return found

    @property
    def _tells_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _logprobs(
        self, choices: Sequence[Choice | int], model: Generator, places: logprobs.Places
    ) -> completions.CompletionLogprobs | None:
        if self.asked.logprobs is None:
            return None
        return logprobs.of_completion(choices, model.tokenizer, self.asked.logprobs, places)


def _behind(echo: _Echo, model: Generator) -> logprobs.Places:
    """Return where the tokens stand that follow what an answer begins with."""
    return logprobs.Places(model.tokenizer.stream(after=echo.before), len(echo.text))


def _joined(
    one: completions.CompletionLogprobs, other: completions.CompletionLogprobs
) -> completions.CompletionLogprobs:
    return completions.CompletionLogprobs(
        one.tokens + other.tokens,
        one.token_logprobs + other.token_logprobs,
        one.top_logprobs + other.top_logprobs,
        one.text_offset + other.text_offset,
    )


def _check(asked: completions.CompletionRequest, num_prompts: int, most: int) -> None:
    if num_prompts * (asked.n or 1) > most:
        raise BadRequest(f"more than {most} texts are asked for", place="prompt", remedy="ask in parts")
    if asked.best_of not in (None, asked.n or 1):
        raise BadRequest(
            "no texts are picked from more: it has to be n", place="best_of", remedy="leave it out"
        )
    if asked.suffix is not None:
        raise BadRequest("texts are continued, not filled in", place="suffix", remedy="leave it out")
    if asked.stream_options is not None:
        check_stream_options(asked.stream_options, asked.stream)


def _options(asked: completions.CompletionRequest) -> dict[str, Any]:
    found = {
        name: getattr(asked, name) for name in ("n", "max_tokens", "logprobs", "json_object", "json_schema")
    }
    return {name: value for name, value in found.items() if value is not None}
