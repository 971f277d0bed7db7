"""`Inference`: what all interfaces ask of the models, whatever way they were asked themselves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import LimitError
from educe.generate.generator import Generator
from educe.serve import text_tensors
from educe.serve.control import Control
from educe.serve.deadline import Deadline
from educe.serve.faults import BadRequest, Unprocessable, unknown_parameter
from educe.serve.lane import Lane
from educe.serve.observation import Timing
from educe.serve.repository import Repository
from educe.serve.room import charge
from educe.serve.served import Asked, LanguageModelServed, PredictorModel
from educe.serve.settings import ServerSettings
from educe.serve.threads import in_thread
from educe.serve.videos import is_video, store
from educe.tasks.predictor import Named, Opened, Result

_NUM_FRAMES = 16
_ROUTES = {
    "predictor": "/v1/models/{model}/predict",
    "generator": "/v1/completions, or /v1/chat/completions",
    "embedder": "/v1/embeddings",
    "translator": "/v2/models/{model}/generate",
    "transcriber": "/v1/audio/transcriptions",
}


def route_of(kind: str, model: str) -> str:
    """Return where a model of a kind is asked."""
    return _ROUTES[kind].format(model=model)


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request for tensors.

    Attributes:
        model: The model's name.
        version: Its version; None for the newest.
        feeds: The inputs, by name.
        deadline: When the answer is of no use any more, by the loop's clock.
        priority: Lower numbers go first.
        parameters: What the request says beyond its inputs; only language models take any.
        tenant: Only requests of one tenant share what is cached.
    """

    model: str
    version: str | None
    feeds: Mapping[str, np.ndarray]
    deadline: float = math.inf
    priority: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Inferred:
    """What came of it.

    Attributes:
        version: The version that answered.
        outputs: The outputs, by name.
        timing: Where the time went.
        is_last: Whether no more comes.
    """

    version: str
    outputs: Mapping[str, Any]
    timing: Timing
    is_last: bool = True


@dataclass(frozen=True)
class Inference:
    """The models at work.

    Attributes:
        repository: The models.
        settings: The server's.
        pool: Threads for what is neither loading nor a run, and may take long: the decoding of pictures and
            sounds, prompts, constraints. A request holds one at a time.
        control: What loads and unloads models.
    """

    repository: Repository
    settings: ServerSettings
    pool: Executor
    control: Control

    @property
    def is_ready(self) -> bool:
        """Whether all models answer, but those that were unloaded on purpose."""
        return self.control.are_ready

    def call(
        self,
        model: str,
        version: str | None,
        feeds: Mapping[str, np.ndarray],
        parameters: Mapping[str, Any],
        *,
        latest: float = math.inf,
        tenant: str = "",
    ) -> InferCall:
        """Return a request for tensors as `infer` takes it.

        Args:
            model: The model's name.
            version: Its version; None for the newest.
            feeds: The inputs, by name.
            parameters: The protocol's: ``timeout`` in microseconds, ``priority``, and the model's own.
            latest: When the answer is of no use any more, by the loop's clock.
            tenant: Only requests of one tenant share what is cached.

        Raises:
            BadRequest: a parameter is no whole number.
        """
        own = dict(parameters)
        timeout, priority = _integer(own, "timeout", 0), _integer(own, "priority", -(2**31))
        if timeout > 0:
            latest = min(latest, asyncio.get_running_loop().time() + timeout / 1e6)
        return InferCall(model, version, feeds, latest, priority, own, tenant)

    async def infer(self, call: InferCall) -> Inferred:
        """Run a model on tensors, together with others' if they come at once.

        Raises:
            NotFound: there is no such model or version.
            InputError: the tensors are not what the model takes.
            BadRequest: it takes no such parameter.
            Overloaded: too many requests wait.
            DeadlineExceeded: the deadline has passed.
        """
        with (
            Deadline(call.deadline),
            await self.repository.use(call.model, call.version) as deployment,
        ):
            served, lane = deployment.served, deployment.lane
            if not isinstance(served, PredictorModel):
                found, timing = await text_tensors.infer(
                    served, lane, self._text_call(call, served), self.pool
                )
                return Inferred(deployment.version, found, timing)
            assert lane is not None
            if call.parameters:
                raise unknown_parameter(call.parameters)
            group, rows = served.group(call.feeds)
            run = partial(
                lane.submit, group, call.feeds, rows, deadline=call.deadline, priority=call.priority
            )
            if deployment.cache is None:
                outputs, timing = await run()
            else:
                size = sum(feed.nbytes for feed in call.feeds.values())
                asked = ("tensors", call.tenant, call.feeds)
                outputs, timing = await deployment.cache.answer(asked, size, run)
            return Inferred(deployment.version, outputs, timing)

    async def stream(self, call: InferCall) -> AsyncGenerator[Inferred, None]:
        """Yield what comes of a request: a generator's text in pieces, else all at once; see `infer`."""
        with Deadline(call.deadline):
            deployment = await self.repository.use(call.model, call.version)
        with deployment:
            served = deployment.served
            if isinstance(served, LanguageModelServed) and isinstance(served.model, Generator):
                asked = self._text_call(call, served)
                async with aclosing(text_tensors.stream(served.model, asked, self.pool)) as pieces:
                    async for found, timing, is_last in pieces:
                        yield Inferred(deployment.version, found, timing, is_last)
                return
        yield await self.infer(call)

    def _text_call(self, call: InferCall, served: LanguageModelServed) -> text_tensors.TextCall:
        limits = self.settings.server_limits
        return text_tensors.TextCall(
            call.feeds,
            call.parameters,
            call.deadline,
            call.priority,
            call.tenant,
            limits.num_texts if served.kind == "generator" else limits.num_items,
            self.settings.max_waiting,
        )

    async def task(self, model: str) -> str:
        """Return the name of a model's task; one that was never loaded is loaded."""
        description = self.repository.entry(model).description
        if description is not None:
            return description.task
        return (await self.repository.use(model)).served.task

    async def answer(
        self,
        model: str,
        source: Any,
        deadline: float,
        options: Mapping[str, Any],
        tenant: str = "",
        *,
        size_bytes: int,
        priority: int = 0,
    ) -> tuple[Sequence[Result], Timing]:
        """Return the answers about a raw input: one for each item in it, of which some may be errors.

        Args:
            model: The model's name.
            source: The content of a file; or of a table a row, or a list of rows. Never a str, which would
                be taken for the name of a file.
            deadline: When the answer is of no use any more.
            options: What is asked of the answers, in place of the model's own: `TaskOptions` by name.
            tenant: Only requests of one tenant share what is cached.
            size_bytes: About how large the input is.
            priority: Lower numbers go first.

        Raises:
            EduceError: no item has an answer; the first one's error.
            InputError: the input cannot be read.
            OptionError: an option does not take its value.
            Unprocessable: the model takes no such input.
        """
        with await self.repository.use(model) as deployment:
            served, lane = deployment.served, deployment.lane
            if not isinstance(served, PredictorModel) or lane is None:
                raise Unprocessable(
                    f"the model {model!r} is a language model, which has another route",
                    remedy=f"POST to {route_of(served.kind, model)}",
                )
            asked = Asked(served.options(options), (), priority)
            run = partial(self._answer, served, lane, source, asked, deadline)
            if deployment.cache is None:
                return await run()
            parts = ("raw", tenant, repr(asked.options), source)
            return await deployment.cache.answer(parts, size_bytes, run)

    async def _answer(
        self, served: PredictorModel, lane: Lane, source: Any, asked: Asked, deadline: float
    ) -> tuple[Sequence[Result], Timing]:
        """Return the answers about a raw input, by a run."""
        if is_video(served.task, source):
            return await self._video(served, lane, source, asked, deadline)
        most = self.settings.server_limits.num_items
        opened = partial(served.open, Named("input", source), most)
        items = await lane.read(opened, self.pool, deadline, asked.priority)
        if not items:
            raise BadRequest("the input holds nothing to answer about")
        charge(_size_bytes(items))
        return await self._run(served, lane, replace(asked, items=items), deadline)

    async def _run(
        self, served: PredictorModel, lane: Lane, asked: Asked, deadline: float
    ) -> tuple[Sequence[Result], Timing]:
        """Return the answers about items, of which those run that could be read."""
        failed = [item.error for item in asked.items if isinstance(item, Result) and item.error]
        if failed and len(failed) == len(asked.items):
            raise failed[0]
        rows = len(asked.items) - len(failed)
        return await lane.submit(
            served.asked_group(asked), asked, rows, deadline=deadline, priority=asked.priority
        )

    async def _video(
        self, served: PredictorModel, lane: Lane, content: bytes, asked: Asked, deadline: float
    ) -> tuple[list[Result], Timing]:
        """Return the answers about a video's frames, of which some are in memory at once."""
        most = self.settings.server_limits.num_items
        found: list[Result] = []
        total = Timing(0.0, 0.0, 0)
        with await in_thread(self.pool, partial(store, content)) as file:
            opened = served.predictor.open(Named("input", Path(file.name)))
            while items := await in_thread(self.pool, lambda: list(islice(opened, _NUM_FRAMES))):
                if len(found) + len(items) > most:
                    raise LimitError(f"the video has more than {most:,} frames", remedy="send it in parts")
                if not found:
                    charge(_size_bytes(items))  # as large as those that come in their place
                unread = [item for item in items if isinstance(item, Result)]
                if found and len(unread) == len(items):
                    return found + unread, total
                results, timing = await self._run(served, lane, replace(asked, items=items), deadline)
                found += results
                total = Timing(total.queue + timing.queue, total.run + timing.run, timing.rows)
        return found, total


def _size_bytes(items: Sequence[Opened | Result]) -> int:
    """Return about how much memory is taken by what was read."""
    return sum(_content_bytes(item.item.content) for item in items if isinstance(item, Opened))


def _content_bytes(content: Any) -> int:
    from PIL.Image import Image

    if isinstance(content, Image):
        return content.width * content.height * (1 if content.mode == "L" else 4)
    return content.nbytes if isinstance(content, np.ndarray) else 0


def _integer(parameters: dict[str, Any], name: str, least: int) -> int:
    """Take a whole number out of a request's parameters; 0 if it has none."""
    value = parameters.pop(name, 0)
    if type(value) is not int or not least <= value < 2**63:
        raise BadRequest(f"expected a whole number from {least:,}", place=f"parameters.{name}")
    return value
