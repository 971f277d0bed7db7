"""`Inference`: what all interfaces ask of the models, whatever way they were asked themselves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from educe.model import ValueType
from educe.serve.faults import BadRequest, DeadlineExceeded, Unprocessable
from educe.serve.lane import Timing
from educe.serve.repository import Deployment, Repository
from educe.serve.served import PredictorModel
from educe.serve.settings import ServerSettings
from educe.tasks.predictor import Named, Result


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request for tensors.

    Attributes:
        model: The model's name.
        version: Its version; None for the newest.
        feeds: The inputs, by name.
        deadline: When the answer is of no use any more, by the loop's clock.
        priority: Lower numbers go first.
    """

    model: str
    version: str | None
    feeds: Mapping[str, np.ndarray]
    deadline: float = math.inf
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Inferred:
    """What came of it.

    Attributes:
        version: The version that answered.
        outputs: The outputs, by name.
        timing: Where the time went.
    """

    version: str
    outputs: Mapping[str, Any]
    timing: Timing


@dataclass(frozen=True)
class Inference:
    """The models at work.

    Attributes:
        repository: The models.
        settings: The server's.
        pool: Threads for what is neither loading nor a run, such as the decoding of pictures.
    """

    repository: Repository
    settings: ServerSettings
    pool: Executor

    @property
    def is_ready(self) -> bool:
        """Whether all models are loaded, but those that were unloaded on purpose."""
        return all(
            entry.state == "READY" or not entry.is_wanted for entry in self.repository.entries.values()
        )

    def deadline(self, latest: float, timeout_us: int | None) -> float:
        """Return the earlier of a deadline, and one that is so many microseconds from now."""
        if not timeout_us:
            return latest
        return min(latest, asyncio.get_running_loop().time() + timeout_us / 1e6)

    def kinds(self, deployment: Deployment) -> tuple[Mapping[str, ValueType], Mapping[str, ValueType]]:
        """Return the inputs and outputs of a model, by name."""
        served = deployment.served
        if not isinstance(served, PredictorModel):
            raise Unprocessable(f"the model {deployment.name!r} takes no tensors")
        return served.signature.inputs, served.signature.outputs

    async def infer(self, call: InferCall) -> Inferred:
        """Run a model on tensors, together with others' if they come at once.

        Raises:
            NotFound: there is no such model or version.
            InputError: the tensors are not what the model takes.
            Overloaded: too many requests wait.
            DeadlineExceeded: the deadline has passed.
        """
        with await self.repository.use(call.model, call.version) as deployment:
            served, lane = deployment.served, deployment.lane
            if not isinstance(served, PredictorModel) or lane is None:
                raise Unprocessable(f"the model {call.model!r} takes no tensors")
            group, rows = served.group(call.feeds)
            outputs, timing = await lane.submit(
                group, call.feeds, rows, deadline=call.deadline, priority=call.priority
            )
            return Inferred(deployment.version, outputs, timing)

    async def task(self, model: str) -> str:
        """Return the name of a model's task."""
        return (await self.repository.use(model)).served.task

    async def answer(self, model: str, source: Any, deadline: float) -> tuple[list[Result], Timing]:
        """Return the answers about a raw input: one for each item in it.

        Args:
            model: The model's name.
            source: The content of a file; or of a table a row, or a list of rows. Never a str, which would
                be taken for the name of a file.
            deadline: When the answer is of no use any more.

        Raises:
            InputError: the input cannot be read.
            Unprocessable: the model takes no such input.
        """
        with await self.repository.use(model) as deployment:
            served, lane = deployment.served, deployment.lane
            if not isinstance(served, PredictorModel) or lane is None:
                raise Unprocessable(f"the model {model!r} answers to text, not to files")
            loop = asyncio.get_running_loop()
            most = self.settings.server_limits.num_items
            items = await loop.run_in_executor(self.pool, served.open, Named("input", source), most)
            if loop.time() > deadline:
                raise DeadlineExceeded("the request's time passed while its input was read")
            if not items:
                raise BadRequest("the input holds nothing to answer about")
            return await lane.submit(served.item_group(), items, len(items), deadline=deadline)
