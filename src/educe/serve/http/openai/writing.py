"""Texts that a request of the OpenAI API has written: its options, and what comes with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from msgspec import Struct

from educe.generate.generator import Generator
from educe.generate.stream import Completion
from educe.serve.deployment import Deployment
from educe.serve.faults import BadRequest, NotFound
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.openai import logprobs, types
from educe.serve.http.openai.errors import ModelNotFound, in_words_of
from educe.serve.inference import Inference, route_of
from educe.serve.observation import Timing
from educe.serve.served import LanguageModelServed
from educe.serve.threads import aside
from educe.serve.writing import Writing, salt_of
from educe.text.prompt import Prompt
from educe.text.tool_calls import ToolCallDelta

Texts: TypeAlias = "Callable[[], AbstractAsyncContextManager[Writing]]"
"""Begins the texts of a request."""

_OWN_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("seed", "min_tokens", "ignore_eos", "regex", "choice", "grammar", "priority"),
)


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
        BadRequest: the model is of another kind.
    """
    served = deployment.served
    if not isinstance(served, LanguageModelServed) or served.kind != kind:
        raise BadRequest(
            f"the model {deployment.name!r} is no {kind}: its kind is {served.kind}",
            place="model",
            remedy=f"POST to {route_of(served.kind, deployment.name)}",
        )
    return served.model


def prompts_of(given: str | Sequence[Any], place: str) -> list[str | list[int]]:
    """Return the texts or tokens that a text, its tokens, or a list of one of these are.

    Raises:
        BadRequest: they are of several kinds, or one has no tokens.
    """
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) > 1:
        raise BadRequest("texts, tokens and lists of tokens do not go together", place=place)
    if kinds == {list} and not all(given):
        raise BadRequest("a list of tokens is empty", place=place)
    return [[*given]] if kinds == {int} else [*given]


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
    options["salt"] = salt_of(tenant, asked.prompt_cache_key)
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


async def answer_of(
    make: Callable[[], Struct], completions: Sequence[Completion], more_bytes: int = 0
) -> Response:
    """Return what was written as JSON, with where the time went.

    Args:
        make: Makes the answer; called in a thread if that takes long.
        completions: What was written.
        more_bytes: About how large the answer is beyond that.
    """
    outputs = [output for each in completions for output in each.outputs]
    size = sum(len(output.text) + logprobs.size_bytes(output.logprobs) for output in outputs)
    response = await aside(size + more_bytes, lambda: json_response(make()))
    queue = max(each.seconds.start for each in completions)
    total = max(each.seconds.total for each in completions)
    timing = Timing(queue, total - queue, len(outputs))
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


@asynccontextmanager
async def writing(
    inference: Inference,
    request: Request,
    name: str,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    fields: Mapping[str, str],
) -> AsyncIterator[Writing]:
    """Have texts written as long as the block lasts.

    Args:
        inference: The models.
        request: Who asks, and until when.
        name: The model's name.
        prompts: What to write after.
        options: Those of `Generator.stream`.
        fields: The names of the request's fields, by those of these options.

    Raises:
        BadRequest: prompt or options are not what the model takes, as some options show only later.
        Overloaded: too many texts wait.
    """
    most = inference.settings.max_waiting
    with await deployed(inference, name) as deployment:
        model: Generator = language_model(deployment, "generator")
        with Writing(model, request.deadline, most, inference.pool) as written, in_words_of(fields):
            for prompt in prompts:
                await written.begin(prompt, **options)
            yield written
