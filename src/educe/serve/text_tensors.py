"""Language models as the Open Inference Protocol has models: texts and sounds in, texts and vectors out.

| kind | takes | gives | parameters |
|---|---|---|---|
| generator | ``text_input`` BYTES[N] | ``text_output`` BYTES[N] | `SAMPLING` |
| embedder | ``text_input`` BYTES[N] | ``embedding`` FP32[N,D] | ``truncate`` |
| translator | ``text_input`` BYTES[N] | ``text_output`` BYTES[N] | ``source``, ``target``, ``num_beams`` |
| transcriber | ``audio`` BYTES[N] | ``text`` BYTES[N] | ``language``, ``task``, ``num_beams`` |

An input may have more axes behind the first, of size 1; the texts that are given have them, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from educe.errors import EduceError, each_or_error
from educe.generate.embedding import Embedder
from educe.generate.generator import Generator
from educe.generate.stream import Stream
from educe.generate.transcription import Transcriber
from educe.model import TensorType, ValueType
from educe.serve.faults import BadRequest, TooLarge, unknown_parameter
from educe.serve.lane import Lane
from educe.serve.observation import Timing
from educe.serve.served import LanguageModelServed
from educe.serve.writing import Writing, salt_of

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "regex",
    "grammar",
    "json_schema",
    "json_object",
)
"""The parameters of a generator, as `Generator.stream` has them; ``stop`` may be one text."""

_NAMES = {
    "generator": ("text_input", "text_output"),
    "embedder": ("text_input", "embedding"),
    "translator": ("text_input", "text_output"),
    "transcriber": ("audio", "text"),
}
_PARAMETERS = {
    "generator": SAMPLING,
    "embedder": ("truncate",),
    "translator": ("source", "target", "num_beams"),
    "transcriber": ("language", "task", "num_beams"),
}
_TYPES = {
    "truncate": (bool, "true or false"),
    "source": (str, "a text"),
    "target": (str, "a text"),
    "language": (str, "a text"),
    "task": (str, "a text"),
    "num_beams": (int, "a whole number"),
}
_TEXTS = TensorType("str", (None,))


@dataclass(frozen=True)
class Work:
    """Texts or sounds for a model that runs those of several requests together.

    Attributes:
        items: The texts, or the contents of the sounds' files.
        options: Keywords of what makes results of them.
        method: What makes results of the model, items and options; requests of one group have one.
    """

    items: Sequence[Any]
    options: Mapping[str, Any]
    method: Callable[..., Any] | None = None


@dataclass(frozen=True)
class TextCall:
    """What a language model is asked.

    Attributes:
        feeds: The inputs, by name.
        parameters: What the request says beyond them.
        deadline: When the answer is of no use any more, by the loop's clock.
        priority: Lower numbers go first.
        tenant: Only requests of one tenant share what is cached.
        most: Most texts or sounds.
        most_waiting: Most texts that wait for a generator.
    """

    feeds: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any]
    deadline: float = math.inf
    priority: int = 0
    tenant: str = ""
    most: int = 10_000
    most_waiting: int = 1024


def kinds(served: LanguageModelServed) -> tuple[dict[str, ValueType], dict[str, ValueType]]:
    """Return the inputs and outputs of a language model, by name."""
    given, found = _NAMES[served.kind]
    output = (
        TensorType("f32", (None, served.model.dimensions)) if isinstance(served.model, Embedder) else _TEXTS
    )
    return {given: _TEXTS}, {found: output}


async def infer(
    served: LanguageModelServed, lane: Lane | None, call: TextCall, pool: Executor
) -> tuple[dict[str, np.ndarray], Timing]:
    """Return what a language model gives, and where the time went.

    Args:
        served: The model.
        lane: The way of requests to it; None for a generator, which plans its own runs.
        call: What it is asked.
        pool: Threads for what comes before a generator's runs.

    Raises:
        BadRequest: the inputs or parameters are not what the model takes.
        DeadlineExceeded: the deadline has passed.
        Overloaded: too many requests wait.
    """
    options = _options(served.kind, call.parameters)
    items, shape = _items(served.kind, call)
    _, name = _NAMES[served.kind]
    if lane is None:
        assert isinstance(served.model, Generator)
        written, timing = await _write(served.model, items, options, call, pool)
        return {name: _texts(written, shape)}, timing
    found, timing = await lane.submit(
        group(served.kind, options),
        Work(items, options),
        max(1, len(items)),
        deadline=call.deadline,
        priority=call.priority,
    )
    return {name: found if isinstance(found, np.ndarray) else _texts(found, shape)}, timing


async def stream(
    model: Generator, call: TextCall, pool: Executor
) -> AsyncGenerator[tuple[dict[str, np.ndarray], Timing, bool], None]:
    """Yield the pieces of a text as they are written, and whether each is the last; `infer` has the rest.

    Raises:
        BadRequest: there is not one text.
    """
    items, shape = _items("generator", call)
    if len(items) != 1:
        raise BadRequest(f"{len(items)} texts", place="text_input", remedy="stream one text a request")
    options = _options("generator", call.parameters)
    loop = asyncio.get_running_loop()
    start = loop.time()
    with Writing(model, call.deadline, call.most_waiting, pool) as written:
        text, last = await _begun(written, items[0], options, call), ""
        async for piece in written.pieces(text):
            if piece.finish_reason is not None:
                last = piece.text
            elif piece.text:
                yield {"text_output": _texts([piece.text], shape)}, Timing(0.0, loop.time() - start, 1), False
        queue = text.result().seconds.start
        timing = Timing(queue, loop.time() - start - queue, 1)
        yield {"text_output": _texts([last], shape)}, timing, True


def group(kind: str, options: Mapping[str, Any]) -> Hashable:
    """Return what requests have in common that can run together."""
    return object() if kind == "transcriber" else tuple(sorted(options.items()))


def run(served: LanguageModelServed, requests: Sequence[Work]) -> list[Any]:
    """Return the results of some requests of one group, an error in the place of one that has none."""
    return each_or_error(partial(_run_together, served.model), requests, EduceError)


def _run_together(model: Any, requests: Sequence[Work]) -> list[Any]:
    items = [item for request in requests for item in request.items]
    found = (requests[0].method or _run)(model, items, **requests[0].options)
    ends = np.cumsum([len(request.items) for request in requests])
    return [found[end - len(request.items) : end] for request, end in zip(requests, ends, strict=True)]


def _run(model: Any, items: Sequence[Any], **options: Any) -> Any:
    if isinstance(model, Embedder):
        return model.embed(items, **options)
    if isinstance(model, Transcriber):
        return [model.transcribe(sound, **options).text for sound in items]
    return model.translate(items, **options)


async def _write(
    model: Generator, texts: Sequence[str], options: Mapping[str, Any], call: TextCall, pool: Executor
) -> tuple[list[str], Timing]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    with Writing(model, call.deadline, call.most_waiting, pool) as written:
        for text in texts:
            await _begun(written, text, options, call)
        done = [await written.completion(stream) for stream in written.streams]
    queue = max(each.seconds.start for each in done)
    return [each.text for each in done], Timing(queue, loop.time() - start - queue, len(texts))


async def _begun(written: Writing, text: str, options: Mapping[str, Any], call: TextCall) -> Stream:
    return await written.begin(text, priority=call.priority, salt=salt_of(call.tenant), **options)


def _items(kind: str, call: TextCall) -> tuple[list[Any], tuple[int, ...]]:
    """Return the texts or sounds of a request, and the shape in which they came."""
    name, _ = _NAMES[kind]
    if call.feeds.keys() != {name}:
        raise BadRequest(f"the model takes one input, {name!r}", place="inputs")
    array = call.feeds[name]
    if array.dtype.kind not in "OUS":
        raise BadRequest("expected BYTES", place=name)
    if array.ndim < 1 or array.size != array.shape[0]:
        raise BadRequest(f"the shape is {list(array.shape)}", place=name, remedy="use [N]")
    if not 0 < array.size <= call.most:
        kind_of = TooLarge if array.size else BadRequest
        raise kind_of(f"{array.size} elements", place=name, remedy=f"use 1 to {call.most}")
    read = _content if kind == "transcriber" else _text
    return [read(element, name) for element in array.flat], array.shape


def _text(element: Any, place: str) -> str:
    try:
        text = element.decode() if isinstance(element, bytes) else str(element)
        text.encode()
    except UnicodeError:
        raise BadRequest("a text is not encoded as UTF-8", place=place) from None
    return text


def _content(element: Any, place: str) -> bytes:
    if not isinstance(element, bytes):
        raise BadRequest("a sound is no text", place=place, remedy="send the bytes of its file, binary")
    return element


def _options(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's parameters as keywords."""
    known = _PARAMETERS[kind]
    if unknown := parameters.keys() - set(known):
        raise unknown_parameter(unknown, known)
    for name, value in parameters.items():
        wanted, what = _TYPES.get(name, (object, ""))
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise BadRequest(f"expected {what}", place=f"parameters.{name}")
    options = dict(parameters)
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    return options


def _texts(found: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(found), object)
    array[:] = found
    return array.reshape(shape)
