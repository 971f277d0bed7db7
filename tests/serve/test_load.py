"""`educe load`: an open-loop load generator, and the times that it counts."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from educe.bench.load import Plan, quantiles, run_load
from educe.bench.load_targets import Address, file, only_model, tensors, texts
from educe.cli.curves import save_curves
from educe.errors import InputError, OptionError
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.test_cli import educe

ZEBRA = ROOT / "zoo" / "images" / "zebra.jpeg"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy"

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def answering(answer: Answer) -> Iterator[Address]:
    """Serve at a free port: `answer` is called for each request, with its number."""
    loop = asyncio.new_event_loop()
    numbers = iter(range(10**9))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await answer(next(numbers), writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # the connections are closed in the loop's next rounds
        loop.stop()

    try:
        yield Address(f"http://127.0.0.1:{port}")
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(20)
        loop.close()


async def _ok(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def get(address: Address) -> Any:
    """Return what asks a server for nothing in particular."""
    return address.target([address.request("/", b"", {}, "GET")])


def test_arrivals_are_a_poisson_process_at_the_rate() -> None:
    with answering(_ok) as address:
        found = run_load(get(address), Plan(400.0, 1.0, 0.25))
    assert found.num_ok == found.num_requests
    assert abs(found.num_requests - 400) < 6 * 20
    assert found.errors == {}
    assert 0 < found.latency["p50"] <= found.latency["p99"] <= found.latency["p99.9"] <= found.latency["max"]
    assert found.sent_rate == found.rate_ok == found.goodput


def test_the_time_of_a_request_counts_from_when_it_was_to_be_sent() -> None:
    stall = 0.5

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 0:
            await asyncio.sleep(stall)
        writer.write(OK)

    with answering(answer) as address:
        found = run_load(get(address), Plan(200.0, 1.0, connections=1))
    # All that came while the only connection stalled have waited, on average for half of it.
    assert found.num_requests > 100
    assert found.latency["max"] >= 0.9 * stall
    assert found.latency["p90"] >= 0.3 * stall
    assert found.late["p90"] >= 0.3 * stall


def test_refusals_errors_and_requests_without_an_answer_are_told_apart() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        kind = number % 4
        if kind == 1:
            writer.write(BUSY)
        elif kind == 2:
            writer.close()
        elif kind == 3:
            await asyncio.sleep(30)
        else:
            writer.write(OK)

    with answering(answer) as address:
        found = run_load(get(address), Plan(100.0, 0.5, timeout_seconds=0.5))
    assert found.errors.keys() == {"503", "connection", "timeout"}
    assert sum(found.errors.values()) + found.num_ok == found.num_requests
    assert found.num_retry_after == found.errors["503"]
    assert found.messages == {"503": "busy"}
    assert found.refusal["p50"] > 0


def test_requests_without_a_connection_were_never_sent() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = Address(f"http://127.0.0.1:{listener.getsockname()[1]}")
    accepted: list[socket.socket] = []

    def accept_one() -> None:
        accepted.append(listener.accept()[0])
        listener.close()

    thread = threading.Thread(target=accept_one)
    thread.start()
    try:
        found = run_load(get(address), Plan(100.0, 1.0, timeout_seconds=0.5))
    finally:
        thread.join(20)
        accepted[0].close()
    assert found.errors == {"connection": found.num_requests - 1, "timeout": 1}
    assert found.sent_rate == 1.0
    assert found.late["p50"] == found.late["max"]


def test_goodput_is_of_answers_within_the_bound() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4 * (number % 2))
        writer.write(OK)

    with answering(answer) as address:
        found = run_load(get(address), Plan(100.0, 0.5, within_seconds=0.3))
    assert 0 < found.goodput < found.rate_ok


def test_tokens_are_timed_as_they_come() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for text in ("", "a", "b", "c"):
            event = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text.encode()
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    with answering(answer) as address:
        request = address.request("/", b"", {})
        found = run_load(address.target([request], streams=True), Plan(20.0, 0.5))
    assert found.num_tokens == 3 * found.num_ok > 0
    assert found.first_token["p50"] >= 0.04
    assert found.between_tokens["p50"] >= 0.02
    assert found.first_token["p50"] < found.latency["p50"]


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        run_load(Address("http://127.0.0.1:1").target([b""]), Plan(1.0, 0.1))
    with pytest.raises(InputError, match="cannot be reached"):
        only_model(Address("127.0.0.1:1"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "begin the URL with https://"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "--api-key-file"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n<html></html>\n", "educe serve"),
    ],
)
def test_a_server_that_does_not_answer_so_has_a_remedy(answer: bytes, expected: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(InputError) as refused:
            only_model(Address(f"127.0.0.1:{listener.getsockname()[1]}"))
        thread.join(timeout=20)
    assert expected in str(refused.value.remedy)


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a/path", "http://a:port", "/a"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="no server's URL"):
        Address(url).request("/", b"", {})


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    found = quantiles(values)
    assert found["max"] == 100
    assert set(found.values()) <= set(values)
    assert quantiles([]) == {}


@pytest.fixture(scope="module")
def own() -> Iterator[Client]:
    """A client of a server of models of three kinds."""
    with serving("breast_cancer", "mobilenet_v2", "stories260K") as client:
        yield client


@pytest.mark.parametrize("kind", ["tensors", "file", "completions"])
def test_real_models_answer_what_is_sent(own: Client, kind: str) -> None:
    address = Address(own.url)
    target = {
        "tensors": lambda: tensors(address, "breast_cancer", rows=3),
        "file": lambda: file(address, "mobilenet_v2", ZEBRA.read_bytes()),
        "completions": lambda: texts(address, "stories260K", "Tom had a", 4, is_chat=False),
    }[kind]()
    found = run_load(target, Plan(10.0, 0.5))
    assert found.num_ok == found.num_requests > 0, found.errors
    assert found.num_tokens == (4 * found.num_ok if kind == "completions" else 0)


def test_a_chat_is_asked_as_one() -> None:
    target = texts(Address("a:1"), "m", "hello", 4, is_chat=True)
    body = json.loads(target.requests[0].partition(b"\r\n\r\n")[2])
    assert body["messages"] == [{"role": "user", "content": "0 hello"}]
    assert body["stream"] is True


def test_a_key_is_sent_and_shown_nowhere(tmp_path: Path) -> None:
    key = "a-key-of-sixteen-characters"
    assert b"Authorization: Bearer " + key.encode() in Address("a:1", key).request("/", b"", {})
    assert key not in repr(Address("a:1", key))
    (tmp_path / "key").write_text(f"{key}\n")
    with serving("breast_cancer", api_keys=(key,)) as client:
        line = ("load", client.url, "--rate", "20", "--seconds", "0.2", "--warmup", "0", "--json")
        done = educe(*line, "--api-key-file", str(tmp_path / "key"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["errors"] == {}
        assert "401" in educe(*line).stderr


def test_the_command_prints_a_table_or_json_and_saves_a_chart(own: Client, tmp_path: Path) -> None:
    line = (
        "load",
        own.url,
        "--model",
        "breast_cancer",
        "--rate",
        "20,40",
        "--seconds",
        "0.3",
        "--warmup",
        "0",
    )
    chart = tmp_path / "load.svg"
    done = educe(*line, "--within-ms", "1000", "--plot", str(chart))
    assert done.returncode == 0, done.stderr
    assert "within 1000 ms/s" in done.stdout
    assert chart.read_text().count("<polyline") == 3
    rows = [json.loads(row) for row in educe(*line, "--json").stdout.splitlines()]
    assert [row["rate"] for row in rows] == [20.0, 40.0]
    assert rows[0]["latency"]["p50"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "0"), "no number of requests a second"),
        (("--rate", "ten"), "no number of requests a second"),
        (("--file", "a", "--prompt", "b"), "exclude each other"),
        (("--plot", "chart.gif"), ".svg or .png"),
        (("--model", "nothing"), "404"),
        ((), "name one"),
    ],
)
def test_options_that_are_wrong_are_named(own: Client, options: tuple[str, ...], message: str) -> None:
    done = educe("load", own.url, *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_load_without_any_success_fails_and_says_why_once(own: Client) -> None:
    line = ("load", own.url, "--seconds", "0.5", "--rate", "20", "--warmup", "0")
    done = educe(*line, "--model", "mobilenet_v2", "--file", str(ROOT / "README.md"))
    assert done.returncode == 1
    assert done.stdout.count("400 says: ") == 1
    done = educe(*line, "--model", "stories260K", "--prompt", "x", "--max-tokens", "100000")
    assert done.returncode == 1
    assert "max_tokens" in done.stdout


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("points", [[], [(10.0, 5.0)], [(1.0, 0.2), (10.0, 30.0), (500.0, 4000.0)]])
def test_curves_of_any_points_are_drawn(tmp_path: Path, suffix: str, points: list[Any]) -> None:
    path = tmp_path / f"chart{suffix}"
    save_curves(path, "a <title>", {"p50": points, "p99": []})
    if suffix == ".png":
        assert np.asarray(Image.open(path)).std() > 0
    else:
        assert "a &lt;title&gt;" in path.read_text()
        assert path.read_text().count("<circle") == len(points)


def test_a_server_of_its_own_certificate_is_asked_with_a_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-days", "1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *names, *files], check=True, capture_output=True, timeout=60)
    secret = "a-key-of-sixteen-characters"
    settings: dict[str, Any] = {"certificate": certificate, "private_key": key, "api_keys": (secret,)}
    with serving("breast_cancer", **settings) as client:
        line = ("load", client.url, "--rate", "20", "--seconds", "0.2", "--warmup", "0", "--json")
        with monkeypatch.context() as patch:
            patch.setenv("EDUCE_API_KEY", secret)
            done = educe(*line, "--tls-ca", str(certificate))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["errors"] == {}
        done = educe("top", client.url, "--once", "--tls-ca", str(certificate), "--api-key", secret)
        assert "breast_cancer" in done.stdout, done.stderr
        done = educe("top", client.url, "--once", "--tls-ca", str(ZEBRA))
        assert (done.returncode, "cannot be used as certificates" in done.stderr) == (2, True)
        assert "certificate" in educe("top", client.url, "--once").stderr
