"""`Deadline`: a moment from which on nobody waits for what a task does."""

from __future__ import annotations

import asyncio
import math
import sys
from contextvars import ContextVar
from types import TracebackType

from educe.serve.faults import DeadlineExceeded


class Deadline:
    """A ``with`` block that ends with `DeadlineExceeded` when a moment has passed.

    What the task waits for then is cancelled. A thread cannot be: it goes on, and what it gives is dropped;
    see `educe.serve.threads`. A block inside one of the same task that ends no later costs nothing.

    Args:
        at: The moment, by the loop's clock; infinite for none.

    Raises:
        DeadlineExceeded: the moment has passed, before the block or in it.
    """

    __slots__ = ("_at", "_is_past", "_outer", "_task", "_timer")

    def __init__(self, at: float) -> None:
        self._at = at
        self._is_past = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        outer = _CURRENT.get()
        if self._at == math.inf:
            return
        self._task = asyncio.current_task()
        if outer is not None and outer._at <= self._at and outer._task is self._task:
            return
        loop = asyncio.get_running_loop()
        if self._at <= loop.time():
            raise _exceeded()
        self._outer = outer
        self._timer = loop.call_at(self._at, self._pass)
        _CURRENT.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        _CURRENT.set(self._outer)
        if self._is_past and not self._is_cancelled_by_others() and isinstance(fault, asyncio.CancelledError):
            raise _exceeded() from None

    def _pass(self) -> None:
        self._is_past = True
        assert self._task is not None
        self._task.cancel()

    def _is_cancelled_by_others(self) -> bool:
        """Take the cancellation back, and say whether it was not the only one, where Python knows."""
        assert self._task is not None
        return sys.version_info >= (3, 11) and self._task.uncancel() > 0


def as_fault(fault: BaseException) -> BaseException:
    """Return what a request has failed of: `DeadlineExceeded`, if it is cancelled since that has passed."""
    current = _CURRENT.get()
    is_late = current is not None and current._is_past and isinstance(fault, asyncio.CancelledError)
    return _exceeded() if is_late else fault


def _exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the request's time has passed")


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
