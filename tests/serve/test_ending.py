"""A server that is told to end answers what it was asked, and no more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from educe.errors import OptionError
from educe.serve import ModelSource, Server, ServerSettings
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.ends import lost_at_the_end, sent, status

SECONDS = 60
INFER = "/v2/models/breast_cancer/infer"
ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    command = [sys.executable, "-m", "educe", "serve", *arguments, "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ})
    try:
        assert running.stderr is not None
        line = next(line for line in running.stderr if "http://" in line)
        yield running, Client(line.split()[0])
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(SECONDS)
        assert running.stderr is not None
        running.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_request_that_was_taken_is_lost(number: signal.Signals) -> None:
    picture = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()
    asked = [("/v1/models/mobilenet_v2/predict", picture), (INFER, ROW), (INFER, ROW)]
    with process("zoo/breast_cancer", "zoo/mobilenet_v2") as (running, client):
        assert not lost_at_the_end(client, asked, lambda: running.send_signal(number))
        assert running.wait(SECONDS) == 0


def test_requests_that_are_not_read_yet_are_answered_at_the_end() -> None:
    with process("zoo/breast_cancer") as (running, client):
        kept = [sent(client, INFER, ROW) for _ in range(4)]
        for connection in kept:
            assert status(connection) == 200
        running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        for connection in kept:
            connection.request("POST", INFER, json.dumps(ROW))
        asked = [*kept, *(sent(client, INFER, ROW) for _ in range(40))]
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGCONT)
        assert {status(connection) for connection in asked} == {200}
        for connection in asked:
            connection.close()
        assert running.wait(SECONDS) == 0


def test_who_stops_a_server_before_it_runs_is_heard() -> None:
    server = Server([ModelSource("breast_cancer", ROOT / "zoo" / "breast_cancer")], ServerSettings(port=0))
    server.stop()
    running = threading.Thread(target=server.run, daemon=True)
    running.start()
    running.join(20)
    assert not running.is_alive()


def test_signals_are_the_programs_own_after_the_end() -> None:
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    before = {number: signal.getsignal(number) for number in taken}
    own = {number: lambda *_: None for number in taken}
    server = Server([ModelSource("breast_cancer", ROOT / "zoo" / "breast_cancer")], ServerSettings(port=0))
    during = []
    try:
        for number, does in own.items():
            signal.signal(number, does)

        def ready(url: str) -> None:
            during.extend(signal.getsignal(number) is does for number, does in own.items())
            server.stop()

        server.run(ready)
        assert {number: signal.getsignal(number) for number in taken} == own
        assert during == [False] * 3
    finally:
        for number, does in before.items():
            signal.signal(number, does)


def test_a_client_that_says_nothing_does_not_delay_the_end() -> None:
    with process("zoo/breast_cancer") as (running, client):
        host, _, port = client.address.partition(":")
        kept = sent(client, INFER, ROW)
        assert status(kept) == 200
        with socket.create_connection((host, int(port))) as new:
            time.sleep(0.2)
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0  # requests would have 30 seconds
            assert new.recv(1) == b""
        assert kept.sock.recv(1) == b""
        kept.close()


def test_a_request_that_outlasts_the_end_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, began, found = threading.Event(), threading.Event(), list[Any]()

    def hang(served: PredictorModel, group: Any, contents: Any) -> Any:
        began.set()
        assert may_end.wait(SECONDS)
        return [{}] * len(contents)

    monkeypatch.setattr(PredictorModel, "run", hang)
    with serving("breast_cancer", drain_seconds=0.2) as client:

        def ask() -> None:
            found.append(client.ask("POST", "/v2/models/breast_cancer/infer", ROW))

        thread = threading.Thread(target=ask)
        thread.start()
        assert began.wait(SECONDS)
        client.stop()
        thread.join(SECONDS)
        may_end.set()
    status, _, content = found[0]
    assert status == 503
    assert b"the server ends" in content


def test_a_second_signal_ends_calls_of_grpc_too() -> None:
    grpc = pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        process("zoo/breast_cancer", "--grpc-port", str(port)) as (running, _),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        ended = threading.Event()
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            ended.wait() for _ in range(1)
        )
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        next(watch)  # the call before it is there as well
        running.send_signal(signal.SIGTERM)
        assert len(list(watch)) <= 1
        running.send_signal(signal.SIGTERM)
        assert running.wait(25) == 0  # at the first signal, requests have 30 seconds to end
        call.cancel()
        ended.set()


def test_a_broken_certificate_is_said(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "private_key")}
    with pytest.raises(OptionError, match="certificate"), serving("breast_cancer", **files):
        pass
    for path in files.values():
        path.write_text("no certificate")
    with pytest.raises(OptionError, match="certificate"), serving("breast_cancer", **files):
        pass


def test_clients_that_go_do_not_end_the_server() -> None:
    with process("zoo/mobilenet_v2") as (running, client):
        host, _, port = client.address.partition(":")
        for _ in range(30):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b"POST /v1/models/mobilenet_v2/predict HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Length: 3\r\n\r\nabc"
                )
        assert client.ask("GET", "/livez")[0] == 200
        assert running.poll() is None


def test_a_port_that_is_taken_is_said(tmp_path: object) -> None:
    with process("zoo/breast_cancer") as (_, client):
        port = client.address.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "educe", "serve", "zoo/breast_cancer", "--port", port]
        second = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=SECONDS, check=False
        )
        assert second.returncode == 2
        assert "--port" in second.stderr
        assert json.loads(client.ask("GET", "/v2/health/live")[2]) == {"live": True}
