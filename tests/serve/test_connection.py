"""Clients that are slow, rude or gone, each over a socket of its own."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from educe.serve import ServerLimits
from educe.serve.http.body import Body
from educe.serve.http.connection import Connection
from educe.serve.http.exchange import Head, Response
from educe.serve.room import BodyRoom
from educe.serve.served import PredictorModel
from tests.serve.conftest import Client, serving

SECONDS = 30
HOST = b"Host: localhost\r\n"
PATIENT = ServerLimits(
    header_bytes=2000, num_headers=20, header_seconds=0.4, body_bytes=5000, body_seconds=0.4
)
ROW = json.dumps(
    {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
).encode()


@pytest.fixture(scope="module")
def bounded() -> Iterator[Client]:
    with serving("breast_cancer", server_limits=PATIENT) as found:
        yield found


@contextmanager
def raw(client: Client) -> Iterator[socket.socket]:
    address = urlsplit(client.url)
    with socket.create_connection((address.hostname, address.port), timeout=SECONDS) as found:
        yield found


def received(connection: socket.socket) -> bytes:
    content = b""
    while part := connection.recv(65536):
        content += part
    return content


def reply(client: Client, *parts: bytes) -> bytes:
    """Return all that the server says to some bytes, until it closes."""
    with raw(client) as connection:
        for part in parts:
            connection.sendall(part)
        return received(connection)


def answer_to_parts(client: Client, head: bytes, part: bytes) -> bytes:
    """Return what the server says to a head, and to a part that is sent again and again until then."""
    with raw(client) as connection:
        connection.sendall(head)
        for _ in range(1000):
            connection.sendall(part)
            if select.select([connection], [], [], 0.005)[0]:
                break
        return connection.recv(65536)


def test_a_header_that_does_not_come_is_not_waited_for(bounded: Client) -> None:
    assert reply(bounded).startswith(b"HTTP/1.1 408 ")
    assert reply(bounded, b"GET /livez HTTP/1.1\r\nHost: loc").startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("count", [9, 10, 25])
def test_of_many_that_send_nothing_each_is_ended(bounded: Client, count: int) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(raw(bounded)) for _ in range(count)]
        for connection in connections:
            assert received(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_does_not_come_is_not_waited_for(bounded: Client) -> None:
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST
    assert reply(bounded, head + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408 ")
    chunked = b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    assert reply(bounded, head + chunked).startswith(b"HTTP/1.1 408 ")


def test_a_second_request_has_its_own_time(bounded: Client) -> None:
    with raw(bounded) as connection:
        for _ in range(3):
            connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.3)
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert received(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 3000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 30 + b"\r\n", 431),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
        (b"GET http:///livez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET ftp://localhost/livez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://localhost/livez HTTP/1.1\r\n\r\n", 400),
        (b"GET http://evil.example/livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 421),
        (b"GET http://a@localhost/livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 421),
        (b"GET http://localhost/livez HTTP/1.1\r\n" + HOST + HOST + b"Connection: close\r\n\r\n", 421),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
        (b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", 421),
        (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"Connection: close\r\n\r\n", 421),
        (b"GET /livez HTTP/1.1\r\nHost: localhost?x\r\nConnection: close\r\n\r\n", 421),
        (b"GET /livez HTTP/1.1\r\nHost: a@localhost\r\nConnection: close\r\n\r\n", 421),
        (b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: 6000\r\n"
         b"Connection: close\r\n\r\n", 413),
        (b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n"
         b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(bounded: Client, request_bytes: bytes, status: int) -> None:
    assert reply(bounded, request_bytes).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://localhost/v2/health/live", b"/v2/health/live"),
        (b"HTTPS://LOCALHOST:1/v2/health/live?a=http://b", b"/v2/health/live"),
        (b"http://localhost", b"/"),
        (b"http://localhost?a", b"/"),
    ],
)
def test_a_target_may_name_the_host(bounded: Client, target: bytes, path: bytes) -> None:
    plain, named = (
        reply(bounded, b"GET " + each + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        for each, host in ((path, b"localhost"), (target, b"evil.example"))
    )
    assert named.startswith(b"HTTP/1.1 200 ")
    assert named.partition(b"\r\n\r\n")[2] == plain.partition(b"\r\n\r\n")[2]


def test_a_chunked_body_is_bounded_too(bounded: Client) -> None:
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    said = reply(bounded, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 8)
    assert said.startswith(b"HTTP/1.1 413 ")


def test_bodies_that_nobody_reads_take_no_room_from_others() -> None:
    limits = ServerLimits(body_bytes=5000, bodies_bytes=12_000)
    row = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
    length = b"Content-Length: 4000\r\n\r\n"
    with serving("breast_cancer", server_limits=limits) as client:
        for _ in range(4):
            with raw(client) as connection:
                connection.sendall(b"POST /no/such/route HTTP/1.1\r\n" + HOST + length)
                assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
                connection.sendall(b" " * 4000 + b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        one = b"POST /v1/models/breast_cancer/predict HTTP/1.1\r\n" + HOST + length + b"x" * 4000
        for _ in range(4):
            with raw(client) as connection:
                connection.sendall(one * 4)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end = time.monotonic() + SECONDS
        while client.ask("POST", "/v2/models/breast_cancer/infer", row)[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.parametrize("end", [b"\r\nZZZ\r\n", b"", b"Trailer"], ids=["nonsense", "late", "in its middle"])
def test_a_body_that_is_refused_behind_another_request_is_forgotten(end: bytes) -> None:
    limits = ServerLimits(body_bytes=5000, bodies_bytes=9000, body_seconds=0.4, header_seconds=0.4)
    path = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST
    good = path + b"Content-Length: %d\r\n\r\n" % len(ROW) + ROW
    bad = path + b"Transfer-Encoding: chunked\r\n\r\nfa0\r\n" + b" " * 4000 + end
    with serving("breast_cancer", server_limits=limits) as client:
        for _ in range(3):
            with raw(client) as connection:
                connection.sendall(good + bad)
                said = received(connection)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert said.count(b"HTTP/1.1 ") == 2
            assert (b"HTTP/1.1 408 " if end == b"" else b"HTTP/1.1 400 ") in said
        filled = client.ask("POST", "/v2/models/breast_cancer/infer", b"[" + b" " * 4000)
        assert filled[0] == 400, filled


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_the_request_has_time(client: Client) -> None:
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n"
    for milliseconds, status in ((b"200", b"504"), (b"soon", b"400")):
        with raw(client) as connection:
            connection.sendall(head + b"X-Request-Timeout-Ms: " + milliseconds + b"\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 %b " % status)
            connection.sendall(b"nullGET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_old_clients_are_told_that_another_request_may_follow(client: Client) -> None:
    request = b"GET /livez HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n"
    with raw(client) as connection:
        for _ in range(2):
            connection.sendall(request)
            said = connection.recv(65536)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert b"connection: keep-alive\r\n" in said


def test_fields_behind_a_body_are_no_header_fields(bounded: Client) -> None:
    head = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    said = reply(bounded, head + body + b"X-Request-Id: behind\r\nHost: evil.example\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"behind" not in said
    assert b" 431 " in reply(bounded, head + body + b"A: " + b"b" * 3000 + b"\r\n\r\n")


def test_the_server_answers_after_all_that(bounded: Client) -> None:
    for _ in range(200):
        with raw(bounded) as connection:
            connection.sendall(b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    body = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
    assert bounded.json("POST", "/v2/models/breast_cancer/infer", body)["outputs"][0]["shape"] == [1, 2]


def test_requests_may_follow_each_other_before_the_answers(bounded: Client) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\n" + HOST
    said = reply(bounded, (one + b"\r\n") * 4 + one + b"Connection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 5
    assert said.count(json.dumps({"live": True}, separators=(",", ":")).encode()) == 5


def test_requests_that_wait_are_bounded_and_the_others_told(bounded: Client) -> None:
    said = reply(bounded, (b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n") * 1000)
    assert 32 <= said.count(b"HTTP/1.1 200 OK") < 200
    assert said.count(b"HTTP/1.1 503 ") == 1
    assert b"wait on this connection" in said.rpartition(b"HTTP/1.1 ")[2]


@pytest.mark.parametrize("sent", [10, -20])
def test_what_the_server_does_not_read_yet_is_not_late(monkeypatch: pytest.MonkeyPatch, sent: int) -> None:
    may_end = threading.Event()
    run = PredictorModel.run

    def wait(served: PredictorModel, group: Any, contents: Any) -> Any:
        assert may_end.wait(SECONDS)
        return run(served, group, contents)

    monkeypatch.setattr(PredictorModel, "run", wait)
    monkeypatch.setattr(PredictorModel, "is_small", lambda served, content: False)
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % len(ROW)
    first = head + b"\r\n" + ROW + b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
    last = head + b"Connection: close\r\n\r\n" + ROW
    with serving("breast_cancer", server_limits=PATIENT) as client, raw(client) as connection:
        connection.sendall(first + last[:sent])
        time.sleep(0.1)
        connection.sendall(last[sent:])
        time.sleep(3 * PATIENT.header_seconds)
        may_end.set()
        assert received(connection).count(b"HTTP/1.1 200 ") == 3


def test_who_still_sends_can_read_why_it_is_refused(bounded: Client) -> None:
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: 4000000\r\n\r\n"
    with raw(bounded) as connection:
        connection.sendall(head + b"x" * 1_000_000)
        time.sleep(0.5)
        with suppress(OSError):  # how much the server takes that it does not want is its own matter
            connection.sendall(b"x" * 100_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_is_mostly_framing_is_refused(client: Client) -> None:
    head = b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert answer_to_parts(client, head, b"1;" + b"e" * 1000 + b"\r\n{\r\n").startswith(b"HTTP/1.1 400 ")


def test_bodies_that_follow_each_other_in_pieces_are_kept_apart(bounded: Client) -> None:
    head = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Content-Length: 14\r\n\r\n"
    whole = (head + b'{"ready":true}') * 3 + b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    said = reply(bounded, *(whole[first : first + 7] for first in range(0, len(whole), 7)))
    assert said.count(b"HTTP/1.1 200 OK") == 4
    assert said.count(b'"state":"READY"') == 3


def test_a_client_is_told_to_send_only_what_is_wanted(bounded: Client) -> None:
    head = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n"
    with raw(bounded) as connection:
        connection.sendall(head + b"Content-Length: 2\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert reply(bounded, head + b"Content-Length: 6000\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_another_protocol_is_not_spoken(bounded: Client) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    said = reply(bounded, b"GET /livez HTTP/1.1\r\n" + HOST + upgrade)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in said


def test_old_clients_read_until_the_end(client: Client) -> None:
    for path in (b"/livez", b"/v2/models/breast_cancer"):
        said = reply(client, b"GET " + path + b" HTTP/1.0\r\n" + HOST + b"\r\n")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in said


def test_a_stream_is_chunked_only_for_who_knows_it() -> None:
    body = b'{"text_input": "Once upon a time", "parameters": {"max_tokens": 4}}'
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with serving("stories260K") as client:
        path = b"POST /v2/models/stories260K/generate_stream HTTP/1."
        new, old = (reply(client, path + minor + b"\r\n" + HOST + length + body) for minor in (b"1", b"0"))
    assert b"transfer-encoding: chunked" in new
    assert new.endswith(b"0\r\n\r\n")
    assert b"transfer-encoding" not in old
    assert old.count(b"data: ") == new.count(b"data: ") > 1


def test_too_many_connections_are_told_so() -> None:
    with serving("breast_cancer", server_limits=ServerLimits(num_connections=3)) as client:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(raw(client)).sendall(b"GET /livez HTTP/1.1\r\n")
            time.sleep(0.3)
            assert reply(client, b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 503 ")
        end = time.monotonic() + SECONDS
        while client.ask("GET", "/livez")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_too_much_behind_a_body_is_refused_before_it_ends(client: Client) -> None:
    head = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    head += b"400\r\n" + b" " * 1024 + b"\r\n0\r\nA: "
    assert answer_to_parts(client, head, b"b" * 1000).startswith(b"HTTP/1.1 400 ")


def test_who_does_not_read_is_not_waited_for_whatever_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("educe.serve.http.connection.READER_SECONDS", 0.5)
    with serving("breast_cancer", server_limits=ServerLimits(num_connections=2)) as client:
        for _ in range(3):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(client.url)
            connection.connect((address.hostname, address.port))
            connection.sendall((b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 100)
            time.sleep(0.1)
            with suppress(OSError):
                connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            with suppress(OSError):
                connection.settimeout(SECONDS)
                while connection.recv(1024):  # it is slow, and then it is gone
                    time.sleep(0.7)
            connection.close()
        assert client.ask("GET", "/livez")[0] == 200


def test_a_body_that_does_not_come_has_no_second_answer(bounded: Client) -> None:
    assert (
        reply(bounded, b"GET /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n").count(b"HTTP/1.1 ")
        == 1
    )


def test_a_bad_request_leaves_the_answer_before_it(bounded: Client) -> None:
    good = (
        b"POST /v2/models/breast_cancer/infer HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(ROW)
    )
    said = reply(bounded, good + ROW + b"nonsense\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 400 ") == 1
    said = reply(bounded, good + ROW + b"GET /livez HTTP/1.1\r\n" + HOST)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 408 ") == 1


def test_what_came_before_a_head_is_not_counted_as_it(bounded: Client) -> None:
    head = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Content-Length: 4000\r\n\r\n"
    with raw(bounded) as connection:
        connection.sendall(head + b"{}".ljust(4000) + b"GET /livez HTTP/1.1\r\n")
        time.sleep(0.1)
        connection.sendall(HOST + b"Connection: close\r\n\r\n")
        assert received(connection).count(b"HTTP/1.1 200 ") == 2


def test_small_parts_of_a_body_take_no_more_room_than_they_have() -> None:
    loop = asyncio.new_event_loop()
    body = Body(loop, BodyRoom(ServerLimits()))
    tracemalloc.start()
    for _ in range(200_000):
        body.add(b"12")
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    body.end()
    assert loop.run_until_complete(body.whole()) == b"12" * 200_000
    assert used < 1_000_000
    loop.close()


class Line:
    """A transport that a client reads as slowly as the test says, with a clock of its own."""

    def __init__(self, answer: bytes = b"") -> None:
        self.now, self.unread, self.read = 0.0, bytearray(), bytearray()
        self.is_paused = self.is_aborted = False
        loop = asyncio.get_running_loop()
        clock = SimpleNamespace(
            time=lambda: self.now, create_future=loop.create_future, create_task=loop.create_task
        )
        limits = ServerLimits()

        async def app(head: Head, body: Body, send: Callable[[Response], Awaitable[None]]) -> None:
            await send(Response(answer))

        listener = SimpleNamespace(
            app=app,
            limits=limits,
            room=BodyRoom(limits),
            connections=set(),
            date=b"date: now\r\n",
            scheme="http",
            is_draining=False,
        )
        self.connection = Connection(clock, listener)  # type: ignore[arg-type]
        self.connection.connection_made(self)  # type: ignore[arg-type]

    def write(self, content: bytes) -> None:
        self.unread += content
        if len(self.unread) > 2**16 and not self.is_paused:
            self.is_paused = True
            self.connection.pause_writing()

    def writelines(self, contents: tuple[bytes, ...]) -> None:
        self.write(b"".join(contents))

    def take(self, size_bytes: int) -> None:
        self.read += self.unread[:size_bytes]
        del self.unread[:size_bytes]
        if len(self.unread) <= 2**14 and self.is_paused:
            self.is_paused = False
            self.connection.resume_writing()

    def tick(self) -> None:
        if self.connection.deadline < self.now:
            self.connection.expire()

    def abort(self) -> None:
        self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return len(self.unread)

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def ignore(self) -> None:
        pass

    write_eof = resume_reading = pause_reading = close = ignore


GET = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"


def test_who_reads_steadily_gets_all_however_long_it_takes() -> None:
    async def read() -> None:
        answer = bytes(range(256)) * 2**13
        line = Line(answer)
        line.connection.data_received(GET)
        for _ in range(len(answer) // 2**17 + 1):
            await asyncio.sleep(0.001)
            line.now += 29.0
            line.tick()
            assert not line.is_aborted
            line.take(2**17)
        assert line.now > 400.0
        assert bytes(line.read).endswith(b"\r\n\r\n" + answer)

    asyncio.run(read())


def test_who_reads_next_to_nothing_is_cut_off() -> None:
    async def read() -> None:
        line = Line(bytes(2**21))
        line.connection.data_received(GET)
        await asyncio.sleep(0.001)
        for _ in range(31):
            assert not line.is_aborted
            line.now += 1.0
            line.take(1)
            line.tick()
        assert line.is_aborted

    asyncio.run(read())


def test_what_has_expired_is_lingered_for() -> None:
    async def wait() -> None:
        line = Line()
        line.connection.data_received(GET[:20])
        line.now = ServerLimits().header_seconds + 0.1
        line.tick()
        assert line.unread.startswith(b"HTTP/1.1 408 ")
        line.now += 1.9
        line.tick()
        assert not line.is_aborted
        line.now += 0.2
        line.tick()
        assert line.is_aborted

    asyncio.run(wait())
