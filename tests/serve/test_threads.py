"""Work in threads: what it holds is given back when it ends, not when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from educe.serve.threads import Held, aside, hold, in_thread

SECONDS = 60
LARGE = 2**30


async def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


class Work:
    """What a thread does until it may end."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.has_begun, self.may_end, self.fault = threading.Event(), threading.Event(), fault

    def __call__(self) -> str:
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        if self.fault is not None:
            raise self.fault
        return "done"


class Thing(Held):
    """What says when it is given back."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__()
        self.found = found

    def give_back(self) -> None:
        self.found.append("given back")


def run(test: Callable[[Executor, list[Any]], Awaitable[None]]) -> None:
    """Run a test, which appends what happens; the request that it is holds something."""
    found: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        hold(Thing(found))
        await test(pool, found)
        gc.collect()
        await asyncio.sleep(0.01)
        assert not faults

    faults: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(main())


@pytest.mark.parametrize("is_large", [True, False])
def test_what_is_large_is_done_in_a_thread(is_large: bool) -> None:
    async def test(pool: Executor, found: list[Any]) -> None:
        ident = await aside(LARGE if is_large else 1, threading.get_ident)
        assert (ident != threading.get_ident()) == is_large

    run(test)


@pytest.mark.parametrize("fault", [None, ValueError("wrong")])
def test_what_a_thread_gives_or_raises_comes(fault: Exception | None) -> None:
    async def test(pool: Executor, found: list[Any]) -> None:
        work = Work(fault)
        work.may_end.set()
        if fault is None:
            assert await in_thread(pool, work, lambda: found.append("end")) == "done"
        else:
            with pytest.raises(ValueError, match="wrong"):
                await in_thread(pool, work, lambda: found.append("end"))
        assert found == ["end"]

    run(test)


@pytest.mark.parametrize("is_aside", [True, False])
@pytest.mark.parametrize("fault", [None, ValueError("wrong")])
def test_what_is_held_is_held_until_the_thread_ends(is_aside: bool, fault: Exception | None) -> None:
    async def test(pool: Executor, found: list[Any]) -> None:
        held = Thing(found)
        work = Work(fault)

        async def ask() -> None:
            hold(held)
            try:
                await (aside(LARGE, work) if is_aside else in_thread(pool, work, lambda: found.append("end")))
            finally:
                held.let_go()

        task = asyncio.create_task(ask())
        await until(work.has_begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert not found
        work.may_end.set()
        await until(lambda: "given back" in found)
        assert found == ["given back"] if is_aside else ["end", "given back"]

    run(test)


def test_what_has_not_begun_is_not_done_for_nobody() -> None:
    async def test(pool: Executor, found: list[Any]) -> None:
        first, second = Work(), Work()
        running = asyncio.create_task(in_thread(pool, first))
        await until(first.has_begun.is_set)
        waiting = asyncio.create_task(in_thread(pool, second, lambda: found.append("end")))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await until(lambda: found == ["end"])
        assert not running.done()
        first.may_end.set()
        assert await running == "done"
        assert not second.has_begun.is_set()

    run(test)
