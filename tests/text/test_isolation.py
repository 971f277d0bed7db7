"""The process in which a stranger's program runs: bounded in time and memory, and gone when it should be."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from educe.text import isolation
from educe.text.isolation import ExhaustedError, Worker


def maker(source: str) -> Callable[[Any], Any]:
    """Return what the workers of these tests run."""
    while source == "loop":
        pass

    def answer(request: Any) -> Any:
        if request == "loop":
            while True:
                pass
        if request == "memory":
            return len(b"x" * 2**40)
        return [source, request]

    return answer


def test_requests_are_answered_one_after_the_other() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s\n€", start_seconds=1)
    assert worker.ask({"a": [1, None, "é\n"]}, cpu_seconds=1) == ["s\n€", {"a": [1, None, "é\n"]}]
    assert worker.ask(2, cpu_seconds=1) == ["s\n€", 2]


@pytest.mark.parametrize("request_", ["loop", "memory"])
def test_what_takes_too_much_is_stopped_and_the_next_request_answered(request_: str) -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    with pytest.raises(ExhaustedError, match="takes more than"):
        worker.ask(request_, cpu_seconds=0.2)
    assert worker.ask(1, cpu_seconds=1) == ["s", 1]


def test_a_program_that_never_starts_is_stopped() -> None:
    worker = Worker("tests.text.test_isolation:maker", "loop", start_seconds=0.1)
    with pytest.raises(ExhaustedError):
        worker.ask(1, cpu_seconds=10)


def test_a_process_that_sleeps_before_it_reads_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_START", "import time; time.sleep(1000)")
    monkeypatch.setattr(isolation, "_WALL_SECONDS", 0.5)
    # No pipe holds what it is made of.
    worker = Worker("tests.text.test_isolation:maker", "s" * 2**22, start_seconds=1)
    with pytest.raises(ExhaustedError):
        worker.ask(1, cpu_seconds=1)


def test_threads_take_turns() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    answers: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: worker.ask(i, cpu_seconds=1)}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: ["s", i] for i in range(8)}


def test_what_cannot_be_sent_leaves_no_answer_behind() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    with pytest.raises(TypeError):
        worker.ask(object(), cpu_seconds=1)
    assert worker.ask(1, cpu_seconds=1) == ["s", 1]


def test_the_process_ends_with_its_worker() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    worker.ask(1, cpu_seconds=1)
    process = worker._process
    assert process is not None
    del worker
    gc.collect()
    assert process.returncode is not None


def test_a_process_that_was_ended_by_another_is_replaced() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    worker.ask(1, cpu_seconds=1)
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker.ask(2, cpu_seconds=1) == ["s", 2]


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="no groups of processes")
def test_an_interrupt_from_the_keyboard_does_not_reach_the_process() -> None:
    worker = Worker("tests.text.test_isolation:maker", "s", start_seconds=1)
    worker.ask(1, cpu_seconds=1)
    assert worker._process is not None
    assert os.getpgid(worker._process.pid) != os.getpgid(0)


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no signal of broken pipes")
def test_a_process_that_dies_while_it_is_asked_does_not_end_the_program() -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        # Its start fails, while a request waits that no pipe holds.
        worker = Worker("tests.text.test_isolation:absent", "s", start_seconds=9)
        with pytest.raises(ExhaustedError):
            worker.ask("x" * 2**22, cpu_seconds=9)
    finally:
        signal.signal(signal.SIGPIPE, before)
