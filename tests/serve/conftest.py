"""Real servers, each in a thread of its own, at a port that is free."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import pytest

from educe.serve import ModelSource, Server, ServerSettings
from tests.conftest import ROOT

SECONDS = 60
# Models that no store has are compiled first.
START_SECONDS = 300


class Client:
    """A plain client of one server, which opens a connection for each request."""

    def __init__(
        self, url: str, grpc_port: int | None = None, stop: Callable[[], None] = lambda: None
    ) -> None:
        self.url, self.stop = url, stop
        self.address = urlsplit(url).netloc
        self.grpc_address = f"127.0.0.1:{grpc_port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the header fields in small letters, and the body."""
        connection = HTTPConnection(self.address, timeout=SECONDS)
        try:
            fields = dict(headers or {})
            if body is not None and not isinstance(body, bytes | str):
                body = json.dumps(body)
                fields.setdefault("content-type", "application/json")
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **fields: str) -> Any:
        """Return the body as JSON; the status has to be 200."""
        status, _, content = self.ask(method, path, body, fields)
        assert status == 200, content
        return json.loads(content)


@contextmanager
def serving(*models: str | ModelSource, **settings: Any) -> Iterator[Client]:
    """Serve some of the zoo's models, by their folders' names, or others."""
    sources = [
        each if isinstance(each, ModelSource) else ModelSource(each, ROOT / "zoo" / each) for each in models
    ]
    server = Server(sources, ServerSettings(**{"port": 0, **settings}))
    ready: Queue[Any] = Queue()

    def run() -> None:
        try:
            server.run(ready.put)
        except BaseException as fault:
            ready.put(fault)

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        url = ready.get(timeout=START_SECONDS)
        if isinstance(url, BaseException):
            raise url
        yield Client(url, server.grpc_port, server.stop)
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> set[str]:
    """Return the names of the threads in which a function of `owner` is called from now on."""
    call, found = getattr(owner, name), set[str]()

    def noted(*arguments: Any) -> Any:
        found.add(threading.current_thread().name)
        return call(*arguments)

    monkeypatch.setattr(owner, name, noted)
    return found


class Hang:
    """Something that threads do, which lasts until it may end.

    Args:
        monkeypatch: What puts it in place.
        owner: What has it: a class or a module.
        name: Its name.
        num_before: How often it does not last first.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, num_before: int = 0) -> None:
        self.may_end, self.num_before = threading.Event(), num_before
        self._call, self._lock = getattr(owner, name), threading.Lock()
        self.num_begun = self.num_ended = 0
        monkeypatch.setattr(owner, name, self.method if isinstance(owner, type) else self.call)

    @property
    def method(self) -> Any:
        def method(this: Any, *arguments: Any, **options: Any) -> Any:
            return self.call(this, *arguments, **options)

        return method

    def call(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.num_begun += 1
            hangs = self.num_begun > self.num_before
        try:
            assert not hangs or self.may_end.wait(SECONDS)
            return self._call(*arguments, **options)
        finally:
            with self._lock:
                self.num_ended += 1

    def end(self) -> None:
        """Let it end, and wait until it has."""
        self.may_end.set()
        until(lambda: self.num_ended == self.num_begun)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hang]]:
    """What makes a function hang."""
    made: list[Hang] = []

    def make(owner: Any, name: str, num_before: int = 0) -> Hang:
        made.append(Hang(monkeypatch, owner, name, num_before))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """What starts a server."""
    return serving


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of a server with a table's, a picture's and a text's model."""
    with serving("breast_cancer", "mobilenet_v2", "comment_spam") as found:
        yield found
