"""`Writing`: what a generator writes for one request, until its deadline, as long as somebody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from functools import partial
from typing import Any

from educe.generate.generator import Generator
from educe.generate.sampling import Choice
from educe.generate.stream import Completion, Piece, Stream
from educe.serve.deadline import Deadline
from educe.serve.faults import NotReady, Overloaded
from educe.serve.observation import note_text
from educe.serve.threads import in_thread
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
        self._deadline, self._most_waiting, self._pool = deadline, most_waiting, pool

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *fault: object) -> None:
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
        with Deadline(self._deadline):
            # A stream that nobody takes is cancelled with its last reference.
            stream = await in_thread(self._pool, partial(self._begun, prompt, options))
        self.streams.append(stream)
        return stream

    async def weigh(self, prompt: str | list[int], top: int) -> list[Choice | int]:
        """Return the tokens of a prompt with their log-probabilities, which the first one has not.

        Args:
            prompt: A prompt of one of the texts, which has been admitted.
            top: How many of the likeliest tokens come with each.

        Raises:
            UserError: the prompt is not what the model takes.
            DeadlineExceeded: the deadline has passed.
            NotReady: the model is taken out of use.
        """
        with Deadline(self._deadline):
            ids = await in_thread(self._pool, partial(self.model.encode, prompt))
            if len(ids) < 2:
                return [*ids]
            stream, scoring = await in_thread(self._pool, partial(self.model.begin_score, ids, top=top))
            await stream
        if len(scoring.choices) < len(ids) - 1:
            raise _taken_out_of_use()
        return [ids[0], *scoring.choices]

    async def pieces(self, stream: Stream) -> AsyncIterator[Piece]:
        """Yield the pieces of a stream.

        Raises:
            DeadlineExceeded: the deadline has passed.
            NotReady: the model is taken out of use.
            EduceError: the engine failed.
        """
        while (piece := await self._next(stream)) is not None:
            if piece.finish_reason == "cancelled":
                raise _taken_out_of_use()
            yield piece
        note_text(stream.result())

    async def completion(self, stream: Stream) -> Completion:
        """Return the whole of a stream; see `pieces` for what it raises."""
        with Deadline(self._deadline):
            found = await stream
        if any(output.finish_reason == "cancelled" for output in found.outputs):
            raise _taken_out_of_use()
        note_text(found)
        return found

    async def _next(self, stream: Stream) -> Piece | None:
        with Deadline(self._deadline):
            return await anext(stream, None)

    def _begun(self, prompt: Prompt, options: dict[str, Any]) -> Stream:
        if self.model.statistics().num_waiting >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} texts wait for this model", retry_after=_RETRY_SECONDS)
        return self.model.stream(prompt, **options)


def salt_of(tenant: str, key: str | None = None) -> str:
    """Return what prompts have in common that may be found again: a tenant, and a key of its own."""
    return f"{tenant}:{key or ''}"


def _taken_out_of_use() -> NotReady:
    return NotReady("the model is being taken out of use", retry_after=_RETRY_SECONDS)
