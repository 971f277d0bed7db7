"""`Stream`: a text while it is written, for a reader in a thread or in an event loop; and what it becomes."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, TypeAlias

from educe.generate.sampling import Choice
from educe.generate.sequence import FinishReason
from educe.text.tool_calls import ToolCall, ToolCallDelta

EndReason: TypeAlias = "FinishReason | Literal['tool_calls']"
"""Why a text ends: as its sequence does, but ``tool_calls`` in place of ``stop`` if it calls tools."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step has added to a text.

    Attributes:
        text: The characters that are certain by now: neither half a character, nor what may be part of a stop
            string.
        tokens: The tokens, which may be ahead of the text.
        index: Which of the texts of one prompt it is.
        logprobs: The tokens with their log-probabilities, if they were asked for.
        tool_calls: What was written of calls of tools, which is no part of the text.
        finish_reason: Why the text ends here; None if it goes on.
    """

    text: str
    tokens: tuple[int, ...]
    index: int = 0
    logprobs: tuple[Choice, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One whole text.

    Attributes:
        text: What was written, without what ended it.
        tokens: Its tokens, the one that ended it included.
        finish_reason: Why it ends: ``stop`` at a token or string that ends it, ``length``, ``cancelled``; or
            ``tool_calls``.
        stop: The stop string that ended it, if one did.
        logprobs: The tokens with their log-probabilities, if they were asked for.
        tool_calls: The calls of tools, which are no part of the text.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: EndReason
    stop: str | None = None
    logprobs: tuple[Choice, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a request went, each from its submission on.

    Attributes:
        start: When its prompt began to be read.
        first_token: When the first token was there; equal to `total` if there was none.
        total: When it ended.
    """

    start: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of one request.

    Attributes:
        outputs: A text for each of the `n` that were asked for.
        num_prompt_tokens: Tokens of the prompt.
        num_cached_tokens: How many of those were found in the cache, and so were not read again.
        seconds: Where its time went.
    """

    outputs: tuple[Output, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    seconds: Seconds

    @property
    def text(self) -> str:
        """The first text."""
        return self.outputs[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """The first text's tokens."""
        return self.outputs[0].tokens

    @property
    def finish_reason(self) -> EndReason:
        """Why the first text ends."""
        return self.outputs[0].finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools in the first text."""
        return self.outputs[0].tool_calls

    @property
    def message(self) -> dict[str, Any]:
        """The first text and its calls as the assistant's message, to go on with in a conversation."""
        calls = [call.definition for call in self.tool_calls]
        message = {"role": "assistant", "content": self.text}
        return {**message, "tool_calls": calls} if calls else message

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, and theirs, as JSON can have them."""
        return asdict(self)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(output.tokens) for output in self.outputs)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a text is.

    Attributes:
        choices: Each of its tokens with its log-probability after all before it.
    """

    choices: tuple[Choice, ...]

    @property
    def logprob(self) -> float:
        """The natural logarithm of the text's probability."""
        return math.fsum(choice.logprob or 0.0 for choice in self.choices)

    @property
    def perplexity(self) -> float:
        """How many equally likely tokens would surprise as much, on average."""
        return math.exp(-self.logprob / len(self.choices))

    @property
    def greedy(self) -> bool:
        """Whether each token is the likeliest one."""
        return all(choice.top[0][0] == choice.token for choice in self.choices)


class Inbox:
    """What has become of a request so far: each piece goes to one of its readers, the end to all."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Piece | Completion | Exception] = SimpleQueue()
        self._wakes: set[Callable[[], object]] = set()

    def put(self, item: Piece | Completion | Exception) -> None:
        """Add a piece, or what the request ends with; from any thread."""
        self._items.put(item)
        for wake in tuple(self._wakes):
            with suppress(RuntimeError):  # the reader's event loop is closed
                wake()

    def get(self, timeout: float | None) -> Piece | Completion | Exception:
        """Wait for the next item.

        Raises:
            Empty: none has come in so many seconds.
        """
        return self._kept(self._items.get(timeout=timeout))

    async def wait(self) -> Piece | Completion | Exception:
        """Wait for the next item, in an event loop."""
        import asyncio

        came = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, came.set)
        self._wakes.add(wake)
        try:
            while True:
                came.clear()
                with suppress(Empty):
                    return self._kept(self._items.get_nowait())
                await came.wait()
        finally:
            self._wakes.discard(wake)

    def _kept(self, item: Piece | Completion | Exception) -> Piece | Completion | Exception:
        if not isinstance(item, Piece):
            self.put(item)
        return item


class Stream:
    """The pieces of a request's texts, as they are written.

    It is read by a thread, with ``for piece in stream`` and `result`, or by a coroutine, with ``async for
    piece in stream`` and ``await stream``. Of several readers each piece goes to one, and all see the end.
    It is cancelled by `cancel`, at the end of a ``with`` or ``async with`` block, when a reader is
    interrupted or its coroutine cancelled, and when nobody holds it any more.

    Args:
        inbox: Where what is written comes.
        cancel: What makes the writer stop; it must not hold the stream.
    """

    def __init__(self, inbox: Inbox, cancel: Callable[[], None]) -> None:
        self._inbox, self._cancel = inbox, cancel
        self._end: Completion | Exception | None = None
        weakref.finalize(self, cancel).atexit = False

    def cancel(self) -> None:
        """End the texts within a step; what is written so far still comes. Safe from any thread."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end.

        Args:
            timeout: Most seconds to wait; without end if absent.

        Raises:
            EduceError: the request failed.
            TimeoutError: the texts have not ended by then; they are written on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._next(None if end is None else max(0.0, end - time.monotonic())):
            pass
        return self._ended()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = self._next(None)
        if piece is None:
            self._ended()
            raise StopIteration
        return piece

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = self._take(await self._inbox.wait())
        except BaseException:
            self._cancel()
            raise
        if piece is None:
            self._ended()
            raise StopAsyncIteration
        return piece

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._whole().__await__()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    def __repr__(self) -> str:
        if self._end is None:
            return "<Stream under way>"
        return f"<Stream {'failed' if isinstance(self._end, Exception) else self._end.finish_reason}>"

    async def _whole(self) -> Completion:
        async for _ in self:
            pass
        return self._ended()

    def _next(self, timeout: float | None) -> Piece | None:
        try:
            return self._take(self._inbox.get(timeout))
        except Empty:
            raise TimeoutError("the texts have not ended; wait again, or cancel them") from None
        except BaseException:
            self._cancel()
            raise

    def _take(self, item: Piece | Completion | Exception) -> Piece | None:
        if isinstance(item, Piece):
            return item
        self._end = item
        return None

    def _ended(self) -> Completion:
        assert self._end is not None
        if isinstance(self._end, Exception):
            raise self._end
        return self._end
