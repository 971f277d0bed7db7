"""`Writing`: what a generator writes for one request, until its deadline, as long as somebody waits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from typing import Any

from educe.errors import EduceError
from educe.generate.generator import Generator
from educe.generate.stream import Completion, Piece, Stream
from educe.serve.faults import DeadlineExceeded, NotReady, Overloaded
from educe.serve.observation import note_text
from educe.text.prompt import Prompt

_RETRY_SECONDS = 1.0


class Writing:
    """The texts of one request, inside a ``with`` block: what is not finished at its end is cancelled.

    Args:
        model: What writes them.
        deadline: When they are of no use any more, by the loop's clock.
        most_waiting: Most texts that wait for the model.
        pool: Threads for what comes before the model's runs.

    Attributes:
        model: What writes them.
        streams: Those that were begun.
    """

    def __init__(self, model: Generator, deadline: float, most_waiting: int, pool: Executor) -> None:
        self.model = model
        self.streams: list[Stream] = []
        self._most_waiting, self._pool = most_waiting, pool
        self._is_late = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self._expire) if math.isfinite(deadline) else None

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *fault: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for stream in self.streams:
            stream.cancel()

    async def begin(self, prompt: Prompt, **options: Any) -> Stream:
        """Return a stream that a thread begins, since it renders and cuts the prompt, and compiles schemas.

        Args:
            prompt: What to write after.
            **options: Those of `Generator.stream`.

        Raises:
            UserError: prompt or options are not what the model takes.
            Overloaded: too many texts wait.
            DeadlineExceeded: the deadline has passed.
        """
        begun = self._pool.submit(self._begun, prompt, options)
        try:
            stream = await asyncio.wrap_future(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(_abandon)
            raise
        self.streams.append(stream)
        if self._is_late:
            raise DeadlineExceeded("the request's time passed before its text was begun")
        return stream

    async def pieces(self, stream: Stream) -> AsyncIterator[Piece]:
        """Yield the pieces of a stream.

        Raises:
            DeadlineExceeded: the deadline has passed.
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

    def _begun(self, prompt: Prompt, options: dict[str, Any]) -> Stream:
        if self.model.statistics().num_waiting >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} texts wait for this model", retry_after=_RETRY_SECONDS)
        return self.model.stream(prompt, **options)

    def _expire(self) -> None:
        self._is_late = True
        for stream in self.streams:
            stream.cancel()

    def _interrupted(self) -> EduceError:
        if self._is_late:
            return DeadlineExceeded("the request's time has passed")
        return NotReady("the model is being taken out of use", retry_after=_RETRY_SECONDS)


def _abandon(begun: Future[Stream]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().cancel()
