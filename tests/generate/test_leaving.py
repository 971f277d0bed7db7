"""Readers that leave, wait together, or ask from event loops; and generators that nobody holds any more."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import educe
from educe.errors import EngineError, OptionError
from educe.generate.engine import Engine
from educe.generate.generator import Generator
from educe.generate.stream import Completion, Inbox, Output, Piece, Seconds, Stream
from educe.text.tool_calls import ToolCall
from tests.stories import STORIES

PROMPT = "Once upon a time"
LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "seed": 1, "temperature": 1.0}


@pytest.fixture
def writer() -> Any:
    with educe.generator(STORIES) as generator:
        yield generator


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def all_cancelled(writer: Generator, count: int) -> None:
    wait_until(lambda: writer.statistics().num_running + writer.statistics().num_waiting == 0)
    found = writer.statistics()
    assert (found.num_cancelled, found.num_completed) == (count, 0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a text last for many seconds, unless it is cancelled."""

    def step(self: Engine) -> None:
        time.sleep(0.05)
        plain(self)

    plain = Engine._step
    monkeypatch.setattr(Engine, "_step", step)


def leave_at_once(writer: Generator) -> None:
    for _ in writer.stream(PROMPT, **LONG):
        break


def drop(writer: Generator) -> None:
    next(writer.stream(PROMPT, **LONG))


def leave_in_a_loop(writer: Generator) -> None:
    async def read() -> None:
        async for _ in writer.stream(PROMPT, **LONG):
            break

    asyncio.run(read())


def leave_a_block(writer: Generator) -> None:
    async def read() -> None:
        async with writer.stream(PROMPT, **LONG) as stream:
            kept.append(stream)

    kept: list[Stream] = []
    asyncio.run(read())


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("leave", [leave_at_once, drop, leave_in_a_loop, leave_a_block])
def test_a_reader_that_leaves_cancels_the_text(writer: Generator, leave: Callable[[Generator], None]) -> None:
    leave(writer)
    all_cancelled(writer, 1)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda writer, stream: stream.result(), 1),
        (lambda writer, stream: list(stream), 1),
        (lambda writer, stream: [stream.cancel(), list(writer.batch([PROMPT] * 40, **LONG))], 34),
    ],
)
def test_an_interrupted_reader_cancels_what_it_waits_for(
    writer: Generator,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Generator, Stream], object],
    count: int,
) -> None:
    def get(self: Inbox, timeout: float | None) -> Any:
        raise KeyboardInterrupt

    stream = writer.stream(PROMPT, **LONG)
    monkeypatch.setattr(Inbox, "get", get)
    with pytest.raises(KeyboardInterrupt):
        read(writer, stream)
    all_cancelled(writer, count)


def test_every_reader_of_a_stream_ends(writer: Generator) -> None:
    stream = writer.stream(PROMPT, max_tokens=30)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(stream.result) for _ in range(2)]
        pieces = pool.submit(list, stream)
        texts = {reader.result(20).text for reader in readers}
        pieces.result(20)

    async def read() -> set[str]:
        stream = writer.stream(PROMPT, max_tokens=30)

        async def whole() -> str:
            return (await stream).text

        return set(await asyncio.wait_for(asyncio.gather(whole(), whole(), whole()), 20))

    assert asyncio.run(read()) == texts
    assert len(texts) == 1
    assert stream.result(0).text in texts


@pytest.mark.usefixtures("slow")
def test_who_waits_for_so_long_may_wait_again(writer: Generator) -> None:
    stream = writer.stream(PROMPT, max_tokens=8, ignore_eos=True)
    with pytest.raises(TimeoutError, match="not ended"):
        stream.result(timeout=0.01)
    assert repr(stream) == "<Stream under way>"
    assert len(stream.result(timeout=20).tokens) == 8
    assert repr(stream) == "<Stream length>"


def test_a_fault_is_every_readers() -> None:
    inbox = Inbox()
    stream = Stream(inbox, lambda: None)
    inbox.put(Piece("a", (1,)))
    inbox.put(EngineError("broken"))
    for _ in range(2):
        with pytest.raises(EngineError, match="broken"):
            stream.result()
    assert repr(stream) == "<Stream failed>"


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_dropped_generator_gives_thread_and_model_back(is_idle: bool) -> None:
    writer = educe.generator(STORIES)
    writer.generate(PROMPT, max_tokens=3)
    if is_idle:
        writer.prepare()
    held, thread = weakref.ref(writer._engine._runner), writer._engine._thread
    assert thread is not None
    del writer
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    gc.collect()
    assert held() is None


def test_a_stream_outlives_its_generator(writer: Generator) -> None:
    expected = writer.generate(PROMPT, max_tokens=30).text
    assert educe.generator(STORIES).stream(PROMPT, max_tokens=30).result(20).text == expected


def test_a_prepared_generator_has_no_program_to_make() -> None:
    writer = educe.generator(STORIES)
    writer.prepare()
    assert not writer._engine._runner.prepare()
    writer.prepare()
    writer.close()
    with pytest.raises(OptionError, match="closed"):
        writer.prepare()


def test_event_loops_read_batches(writer: Generator) -> None:
    prompts = [PROMPT, {"prompt": "Ben", "temperature": -1}, "Lily"]

    async def read() -> list[Any]:
        return [result async for result in writer.batch(prompts, max_tokens=5)]

    there, here = asyncio.run(read()), list(writer.batch(prompts, max_tokens=5))
    assert [str(result) for result in there] == [str(result) for result in here]
    assert isinstance(there[1], OptionError)


@pytest.mark.usefixtures("slow")
def test_a_closed_batch_has_no_further_results(writer: Generator) -> None:
    batch = writer.batch([PROMPT] * 3, **{**LONG, "max_tokens": 4})
    next(batch)
    batch.close()
    assert list(batch) == []


def test_a_completion_is_a_message_and_json() -> None:
    seconds = Seconds(0.0, 0.5, 1.0)
    plain = Completion((Output("Hi.", (1, 2), "stop"),), 3, 1, seconds)
    assert plain.message == {"role": "assistant", "content": "Hi."}
    call = ToolCall("a", "weather", "{}")
    caller = Completion((Output("", (1,), "tool_calls", tool_calls=(call,)),), 3, 1, seconds)
    function = {"name": "weather", "arguments": "{}"}
    assert caller.message["tool_calls"] == [{"id": "a", "type": "function", "function": function}]
    found = json.loads(json.dumps(caller.to_dict()))
    assert found["outputs"][0]["tool_calls"] == [{"id": "a", "name": "weather", "arguments": "{}"}]
    assert found["seconds"]["total"] == 1.0


INTERRUPTED = """
import sys, threading, time
import educe

generator = educe.generator(sys.argv[1])
busy = threading.Thread(target=lambda: [generator.generate("Tom", max_tokens=40) for _ in range(3)])
busy.start()
try:
    while True:
        print("writing", flush=True)
        if sys.argv[2] == "generate":
            generator.generate("Once upon a time", max_tokens=400, ignore_eos=True)
        else:
            for piece in generator.stream("Once upon a time", max_tokens=400, ignore_eos=True):
                pass
except KeyboardInterrupt:
    busy.join()
    end = time.monotonic() + 20
    while (found := generator.statistics()).num_running and time.monotonic() < end:
        time.sleep(0.01)
    print("left", found.num_running, found.num_used_blocks, flush=True)
"""


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_a_signal_of_the_keyboard_ends_what_it_interrupts(way: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(STORIES), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, restore_signals=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[-1] == "left 0 0"


def test_requests_that_end_with_their_generator_are_cancelled_ones() -> None:
    generator = educe.generator(STORIES)
    stream = generator.stream("Once upon a time", max_tokens=400, ignore_eos=True)
    next(stream)
    generator.close()
    assert stream.result().finish_reason == "cancelled"
    found = generator.statistics()
    assert (found.num_cancelled, found.num_completed, found.num_running) == (1, 0, 0)
