"""`aside` and `in_thread`: long work beside the event loop, and what a request holds until it has ended.

A thread cannot be stopped. When nobody waits for its work any more, what it gives is dropped; but what it
uses, such as the request's body, takes memory until it has ended, and so counts until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Any, TypeVar

_LARGE_BYTES = 2**18
T = TypeVar("T")


class Held:
    """Something that is held until a request has let it go, and so have the threads that work for it."""

    __slots__ = ("_num_holders",)

    def __init__(self) -> None:
        self._num_holders = 1

    def hold_until(self, work: asyncio.Future[Any]) -> None:
        """Hold it until a work has ended, too, unless it has been given back."""
        if self._num_holders:
            self._num_holders += 1
            work.add_done_callback(lambda ended: self.let_go())

    def let_go(self) -> None:
        """Hold it once less, and give it back if nobody else does."""
        self._num_holders -= 1
        if not self._num_holders:
            self.give_back()

    def give_back(self) -> None:
        """Give it back."""
        raise NotImplementedError


_HELD: ContextVar[Held | None] = ContextVar("held", default=None)


def hold(held: Held) -> None:
    """Let the present request hold something, in the context in which it is answered."""
    _HELD.set(held)


def held_now() -> Held | None:
    """Return what the present request holds; None if nothing."""
    return _HELD.get()


def hold_until(work: asyncio.Future[Any]) -> None:
    """Hold what the present request holds until a work for it has ended, too."""
    held = held_now()
    if held is not None:
        held.hold_until(work)


async def in_thread(pool: Executor, work: Callable[[], T], at_end: Callable[[], object] = lambda: None) -> T:
    """Return what `work` gives in a thread of `pool`.

    Args:
        pool: The threads.
        work: What one of them does, unless nobody waits for it any more when it is its turn.
        at_end: Called in the loop when it has ended, or will not begin, whether anybody waits for it or not.
    """
    try:
        submitted = pool.submit(work)
    except RuntimeError:  # there are no threads any more
        at_end()
        raise
    waited = asyncio.wrap_future(submitted)
    waited.add_done_callback(lambda ended: at_end())
    try:
        return await _outlasted(waited)
    except asyncio.CancelledError:
        submitted.cancel()
        raise


async def aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Return what `work` makes of so many bytes: in a thread, if others would have to wait for it long."""
    if size_bytes < _LARGE_BYTES:
        return work()
    return await _outlasted(asyncio.get_running_loop().run_in_executor(None, work))


async def _outlasted(work: asyncio.Future[T]) -> T:
    """Return what a thread's work gives, which may last longer than anybody waits for it."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        hold_until(work)
        # Nobody else looks at what it raises.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
