"""What faults are measured with: what is kept is weighed, trends have honest intervals, some are unkind."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks.clients import posted
from benchmarks.faults import EXPECTED, outcome, settled, trend
from benchmarks.processes import ROOT, USUAL_LIMIT, Running, serving
from benchmarks.unkind import attacked
from benchmarks.weighed import kept

from tests.serve.conftest import until

REQUESTS = np.arange(1, 21) * 16_000
HOLD = """
import sys
from benchmarks import unkind
from educe.bench.load_targets import Address

unkind.RAMP_SECONDS = 0.0
unkind.hold(Address(sys.argv[1]), 8, 60.0)
"""

needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="the C library tells nothing of its heaps",
)


@needs_glibc
def test_what_the_c_library_holds_is_kept_until_it_is_freed():
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    before = kept()["bytes"]
    held = [library.malloc(100) for _ in range(100_000)]
    during = kept()["bytes"]
    for place in held:
        library.free(place)
    del held
    assert 10_000_000 < during - before < 14_000_000
    assert abs(kept()["bytes"] - before) < 500_000


@needs_glibc
def test_what_python_holds_is_kept_until_it_is_dropped():
    before = kept()["blocks"]
    held = [object() for _ in range(100_000)]
    during = kept()["blocks"]
    del held
    assert abs(during - before - 100_000) < 10_000
    assert abs(kept()["blocks"] - before) < 10_000


@needs_glibc
def test_rings_that_nobody_holds_are_not_kept():
    before = kept()["blocks"]
    for _ in range(10_000):
        ring = []
        ring.append(ring)
    del ring
    assert abs(kept()["blocks"] - before) < 10_000


@needs_glibc
def test_tasks_are_kept_until_they_are_done():
    async def waiting():
        before = kept()["tasks"]
        task = asyncio.ensure_future(asyncio.sleep(60))
        during = kept()["tasks"]
        task.cancel()
        await asyncio.wait([task])
        return during - before, kept()["tasks"] - before

    assert asyncio.run(waiting()) == (1, 0)


@needs_glibc
def test_the_command_line_tells_what_it_keeps():
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.weighed", "serve", "zoo/breast_cancer", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(2):
            process.stdin.write(b"\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            assert found["bytes"] > 2**20
            assert found["blocks"] > 10_000
    finally:
        process.kill()
        process.communicate()


@needs_glibc
def test_bodies_that_come_slowly_and_answers_that_are_read_slowly_keep_the_server_waiting():
    with (
        serving("zoo/breast_cancer", is_weighed=True) as server,
        subprocess.Popen([sys.executable, "-c", HOLD, server.url], cwd=ROOT) as clients,
    ):
        try:
            until(lambda: server.kept()["tasks"] == 4)
            time.sleep(1.0)
            assert server.kept()["tasks"] == 4
        finally:
            clients.kill()
        until(lambda: server.kept()["tasks"] == 0)


def fail(address, count, seconds):
    os.kill(os.getpid(), signal.SIGKILL)


def end(address, count, seconds):
    pass


@pytest.mark.skipif(sys.platform != "linux", reason="clients that are unkind need Linux")
def test_clients_that_were_killed_have_failed():
    with attacked(end, "http://127.0.0.1:1", 1, 0.0):
        pass
    with pytest.raises(RuntimeError, match="failed"), attacked(fail, "http://127.0.0.1:1", 1, 0.0):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="a process' limits are read from /proc")
def test_a_server_may_have_as_many_files_as_the_system_lets_it():
    with serving("zoo/breast_cancer") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()
    assert soft == hard
    if int(hard) == USUAL_LIMIT:
        pytest.skip("no more is to be had here")


def test_connections_that_are_lost_count_and_are_not_what_a_soak_expects():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Running(None, f"http://127.0.0.1:{listener.getsockname()[1]}")
        request = posted("/v2/models/none/infer", {})

        def serve(answer):
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(answer)

        answers = {b"": "lost", b"nonsense": "lost", b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n": "404"}
        for answer, expected in answers.items():
            thread = threading.Thread(target=serve, args=[answer])
            thread.start()
            assert outcome(server, request) == expected
            thread.join(20)
    assert outcome(server, request) == "lost"
    assert EXPECTED & set(answers.values()) == {"404"}


def test_a_trend_is_the_slope_of_a_line():
    assert trend(REQUESTS, 7.0 + 3.0 * REQUESTS) == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize("bytes_each", [0.0, 0.3, 1.0])
def test_an_interval_holds_what_is_kept_of_each_request(bytes_each):
    rng = np.random.default_rng(3)
    found = [
        trend(REQUESTS, 2e8 + bytes_each * REQUESTS + rng.normal(0, 20_000, len(REQUESTS)))
        for _ in range(400)
    ]
    held = np.mean([low <= bytes_each <= high for _, low, high in found])
    assert 0.92 <= held <= 0.99
    if bytes_each:
        assert np.mean([low > 0 for _, low, _ in found]) > 0.99


def test_a_few_values_beside_the_others_move_no_trend():
    rng = np.random.default_rng(4)
    values = 2e8 + rng.normal(0, 20_000, len(REQUESTS))
    values[[5, 14]] += 5e6
    slope, low, high = trend(REQUESTS, values)
    assert low <= 0 <= high
    assert abs(slope) < 0.2


@pytest.mark.parametrize(
    ("threads", "place"), [([3, 3, 3], 0), ([3, 4, 4], 1), ([3, 4, 3, 4], 3), ([4, 3, 3, 3], 1), ([2], 0)]
)
def test_a_number_is_settled_where_it_changes_no_more(threads, place):
    assert settled(threads) == place
