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
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

SECONDS = 60
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
    answered, refused, faults = [0], [0], list[Any]()
    with process("zoo/breast_cancer", "zoo/mobilenet_v2") as (running, client):
        picture = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()

        def ask(is_picture: bool) -> None:
            while True:
                try:
                    if is_picture:
                        found = client.ask("POST", "/v1/models/mobilenet_v2/predict", picture)
                    else:
                        found = client.ask("POST", "/v2/models/breast_cancer/infer", ROW)
                except ConnectionError:  # it does not listen any more
                    refused[0] += 1
                    return
                if found[0] != 200:
                    faults.append(found)
                answered[0] += 1

        threads = [threading.Thread(target=ask, args=(index % 2 == 0,)) for index in range(6)]
        for thread in threads:
            thread.start()
        while answered[0] < 20:
            time.sleep(0.01)
        running.send_signal(number)
        assert running.wait(SECONDS) == 0
        for thread in threads:
            thread.join(SECONDS)
    assert not faults
    assert refused[0] == len(threads)


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
