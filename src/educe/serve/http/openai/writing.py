"""Texts that a request has written: begun off the event loop, ended when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from educe.errors import EduceError
from educe.generate.generator import Generator
from educe.generate.stream import Completion, Piece, Stream
from educe.serve.faults import BadRequest, DeadlineExceeded, NotFound, NotReady, Overloaded, Unprocessable
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.openai import types
from educe.serve.http.openai.errors import ModelNotFound, in_words_of
from educe.serve.inference import Inference
from educe.serve.observation import Timing, note_text
from educe.serve.repository import Deployment
from educe.serve.served import LanguageModelServed
from educe.text.prompt import Prompt
from educe.text.tool_calls import ToolCallDelta

_OWN_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("seed", "min_tokens", "ignore_eos", "regex", "choice", "grammar", "priority"),
)
_RETRY_SECONDS = 1.0


async def deployed(inference: Inference, name: str) -> Deployment:
    """Return a model for a request, which has to hold it at once.

    Raises:
        ModelNotFound: there is no such model.
        NotReady: it cannot be loaded now.
    """
    try:
        return await inference.repository.use(name)
    except NotFound as fault:
        raise ModelNotFound(fault.cause, place="model", remedy="GET /v1/models lists them") from None


def language_model(deployment: Deployment, kind: str) -> Any:
    """Return the language model of a kind that is deployed.

    Raises:
        Unprocessable: the model is of another kind.
    """
    served = deployment.served
    if not isinstance(served, LanguageModelServed) or served.kind != kind:
        raise Unprocessable(f"the model {deployment.name!r} is no {kind}, but a {served.kind}", place="model")
    return served.model


def own_options(asked: types.TextRequest, tenant: str) -> dict[str, Any]:
    """Return the options that have one name here and in the package.

    Raises:
        BadRequest: the text is to be stored.
    """
    if asked.store:
        raise BadRequest("nothing is stored here", place="store", remedy="leave it out, or say false")
    options = {name: value for name in _OWN_NAMES if (value := getattr(asked, name)) is not None}
    if asked.stop is not None:
        options["stop"] = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    options["salt"] = f"{tenant}:{asked.prompt_cache_key or ''}"
    return options


def check_stream_options(options: types.StreamOptions, stream: bool | None) -> None:
    """Raise `BadRequest` for options of a stream where there is none, or that are not known here."""
    if not stream:
        raise BadRequest("there is no stream: true", place="stream_options")
    if options.include_obfuscation:
        raise BadRequest(
            "streams have no obfuscation", place="stream_options.include_obfuscation", remedy="leave it out"
        )


def usage_of(completions: Sequence[Completion]) -> types.Usage:
    """Return how many tokens some requests to a generator took."""
    prompt = sum(each.num_prompt_tokens for each in completions)
    written = sum(each.num_tokens for each in completions)
    cached = sum(each.num_cached_tokens for each in completions)
    return types.Usage(prompt, prompt + written, written, types.PromptDetails(cached))


def lasting(deltas: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """Return the deltas of a piece without those of calls that both begin and are withdrawn in it."""
    begun = {delta.index for delta in deltas if delta.id is not None}
    brief = begun & {delta.index for delta in deltas if delta.withdrawn}
    return [delta for delta in deltas if delta.index not in brief]


def answer_of(value: Struct, completions: Sequence[Completion]) -> Response:
    """Return what was written as JSON, with where the time went."""
    queue = max(each.seconds.start for each in completions)
    total = max(each.seconds.total for each in completions)
    timing = Timing(queue, total - queue, sum(len(each.outputs) for each in completions))
    response = json_response(value)
    response.headers.append((b"server-timing", timing.header()))
    return response


def bounded(asked: types.TextRequest, forms: Sequence[str], text: str) -> dict[str, str]:
    """Return the names of the fields that go beyond limits, by those of the limits.

    Args:
        asked: The request.
        forms: The fields that say what a text has to be, of which it has one.
        text: The field of the text.
    """
    form = next((name for name in forms if getattr(asked, name) is not None), text)
    return {"": text, "grammar_bytes": form, "grammar_depth": form, "grammar_rules": form}


@dataclass(frozen=True)
class Written:
    """Texts that are being written.

    Attributes:
        model: What writes them.
        streams: One for each prompt.
        is_late: Says whether the time for them has passed.
    """

    model: Generator
    streams: Sequence[Stream]
    is_late: Sequence[bool]

    async def pieces(self, stream: Stream) -> AsyncIterator[Piece]:
        """Yield the pieces of a stream.

        Raises:
            DeadlineExceeded: the time has passed.
            NotReady: the model is taken out of use.
            EduceError: the engine failed.
        """
        async for piece in stream:
            if piece.finish_reason == "cancelled":
                raise self._interrupted()
            yield piece
        note_text(stream.result())

    async def completion(self, stream: Stream) -> Completion:
        """Return the whole of a stream; see `pieces` for what it raises."""
        found = await stream
        if any(output.finish_reason == "cancelled" for output in found.outputs):
            raise self._interrupted()
        note_text(found)
        return found

    def _interrupted(self) -> EduceError:
        if self.is_late:
            return DeadlineExceeded("the request's time has passed")
        return NotReady("the model is being taken out of use", retry_after=_RETRY_SECONDS)


@asynccontextmanager
async def writing(
    inference: Inference,
    request: Request,
    name: str,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    fields: Mapping[str, str],
) -> AsyncIterator[Written]:
    """Have texts written as long as the block lasts; what is not finished then is cancelled.

    Args:
        inference: The models.
        request: Who asks, and until when.
        name: The model's name.
        prompts: What to write after.
        options: Those of `Generator.stream`.
        fields: The names of the request's fields, by those of these options.

    Raises:
        BadRequest: prompt or options are not what the model takes.
        Overloaded: too many texts wait.
    """
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    late: list[bool] = []

    def expire() -> None:
        late.append(True)
        for stream in streams:
            stream.cancel()

    with await deployed(inference, name) as deployment:
        model: Generator = language_model(deployment, "generator")
        timer = loop.call_at(request.deadline, expire) if math.isfinite(request.deadline) else None
        try:
            with in_words_of(fields):
                for prompt in prompts:
                    streams.append(await _begun(inference, model, prompt, options))
                    if late:
                        raise DeadlineExceeded("the request's time passed before its text was begun")
            yield Written(model, streams, late)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()


async def _begun(
    inference: Inference, model: Generator, prompt: Prompt, options: Mapping[str, Any]
) -> Stream:
    """Return a stream that a thread begins, since it renders and cuts the prompt, and compiles schemas."""
    most = inference.settings.max_waiting

    def begin() -> Stream:
        if model.statistics().num_waiting >= most:
            raise Overloaded(f"{most} texts wait for this model", retry_after=_RETRY_SECONDS)
        return model.stream(prompt, **options)

    future = inference.pool.submit(begin)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(_abandon)
        raise


def _abandon(begun: Future[Stream]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().cancel()
