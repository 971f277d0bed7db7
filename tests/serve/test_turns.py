"""How long a thread's turns at the processor are."""

from __future__ import annotations

import platform
import re
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, create_string_buffer

import pytest

from educe.serve.turns import short_turns
from tests.serve.conftest import serving

ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
READ = {"x86_64": 315, "aarch64": 275}.get(platform.machine(), 0)  # sched_getattr


def _takes_wishes() -> bool:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return sys.platform == "linux" and bool(READ and found and (int(found[1]), int(found[2])) >= (6, 12))


def turn_ns(thread: int = 0) -> int:
    """Return how long the turns of a thread are; of this one if it is 0."""
    content = create_string_buffer(48)
    assert CDLL(None).syscall(READ, thread, content, 48, 0) == 0
    runtime: int = struct.unpack_from("=Q", content.raw, 24)[0]
    return runtime


@pytest.mark.skipif(not _takes_wishes(), reason="Linux takes wishes for short turns from 6.12 on")
def test_the_turns_of_one_thread_are_short_meanwhile() -> None:
    def look() -> tuple[int, ...]:
        before = turn_ns()
        with short_turns():
            during = turn_ns()
            with ThreadPoolExecutor(1) as pool:
                of_another = pool.submit(turn_ns).result()
        return before, during, of_another, turn_ns()

    with ThreadPoolExecutor(1) as pool:
        before, during, of_another, after = pool.submit(look).result()
    assert during == 100_000 < before
    assert of_another == after == before


@pytest.mark.skipif(not _takes_wishes(), reason="Linux takes wishes for short turns from 6.12 on")
def test_those_of_a_server_are_short_where_it_answers_and_not_where_models_run() -> None:
    with serving("breast_cancer") as client:
        client.json("POST", "/v2/models/breast_cancer/infer", ROW)
        threads = {each.name: each.native_id for each in threading.enumerate()}
        assert turn_ns(threads["server"] or 0) == 100_000
        others = [number for name, number in threads.items() if name.startswith("educe-")]
        assert others
        assert 100_000 not in [turn_ns(number or 0) for number in others]


def test_without_the_system_s_help_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("educe.serve.turns._CALLS", {})
    with short_turns():
        pass
