"""The models as an ASGI application answer as the server does, whatever runs them."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from educe.errors import OptionError
from educe.serve import AsgiApp, ModelSource, ServerLimits, ServerSettings
from tests.conftest import ROOT

SECONDS = 30
SOURCES = [ModelSource(name, ROOT / "zoo" / name) for name in ("breast_cancer", "stories260K")]
KEY = "k" * 16
TEXT = b'{"model": "stories260K", "prompt": "Once", "max_tokens": %d, "temperature": 0, "stream": %s}'


class Asked:
    """A request as an ASGI server hands it over, and what has come back.

    Attributes:
        gone: Set when the client goes.
        events: What the application has sent.
    """

    def __init__(self, app: AsgiApp, method: str, path: str, *parts: bytes, **fields: str) -> None:
        headers = {"host": "localhost", **fields}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), each.encode()) for name, each in headers.items()],
        }
        self.app, self.gone, self.events = app, asyncio.Event(), []
        self._parts = [*parts] or [b""]

    async def run(self, when_sent: Callable[[], None] = lambda: None) -> tuple[int, dict[str, str], bytes]:
        async def send(event: Any) -> None:
            self.events.append(event)
            when_sent()
            await asyncio.sleep(0)

        await asyncio.wait_for(self.app(self.scope, self._receive, send), SECONDS)
        start, *bodies = self.events
        headers = {name.decode(): each.decode() for name, each in start["headers"]}
        return start["status"], headers, b"".join(each.get("body", b"") for each in bodies)

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_answers_are_those_of_the_server(serve):
    asked = [
        ("GET", "/readyz"),
        ("GET", "/v2/models/breast_cancer"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("PUT", "/v2"),
        ("POST", "/v1/completions", b"{", b"}"),
        ("HEAD", "/v2"),
    ]

    async def answers() -> list[Any]:
        async with AsgiApp(SOURCES, ServerSettings()) as app:
            assert app.is_ready
            return [await Asked(app, *each).run() for each in asked]

    with serve(*SOURCES) as client:
        for (method, path, *parts), (status, headers, body) in zip(
            asked, asyncio.run(answers()), strict=True
        ):
            expected = client.ask(method, path, b"".join(parts) or None)
            assert (status, body) == (expected[0], expected[2]), path
            assert headers["content-type"] == expected[1]["content-type"]
            assert headers["content-length"] == expected[1]["content-length"]


def test_text_streams_part_by_part():
    async def run() -> None:
        async with AsgiApp(SOURCES) as app:
            whole = await Asked(app, "POST", "/v1/completions", TEXT % (12, b"false")).run()
            asked = Asked(app, "POST", "/v1/completions", TEXT % (12, b"true"))
            used: list[int] = []
            status, headers, body = await asked.run(lambda: used.append(app._core.room.used_bytes))
            assert status == 200
            assert used[0] >= len(TEXT % (12, b"true"))  # which the text is still made of
            assert app._core.room.used_bytes == 0
            assert headers["content-type"].startswith("text/event-stream")
            assert "content-length" not in headers
            assert len(asked.events) > 10
            lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
            text = "".join(each["text"] for line in lines for each in json.loads(line)["choices"])
            assert text == json.loads(whole[2])["choices"][0]["text"]

    asyncio.run(run())


def test_a_client_that_goes_ends_its_answer():
    async def run() -> None:
        async with AsgiApp(SOURCES) as app:
            asked = Asked(app, "POST", "/v1/completions", TEXT % (400, b"true"))
            await asked.run(asked.gone.set)
            assert 1 <= len(asked.events) < 100
            assert asked.events[-1].get("more_body", True)
            assert b',status="499"' in (await Asked(app, "GET", "/metrics").run())[2]

    asyncio.run(run())


def test_keys_hosts_and_the_size_of_bodies_are_checked():
    limits = ServerLimits(body_bytes=100)

    async def run() -> None:
        async with AsgiApp(SOURCES, ServerSettings(api_keys=(KEY,), server_limits=limits)) as app:
            assert (await Asked(app, "GET", "/v2").run())[0] == 401
            known = {"authorization": f"Bearer {KEY}"}
            assert (await Asked(app, "GET", "/v2", **known).run())[0] == 200
            assert (await Asked(app, "GET", "/v2", **{**known, "host": "evil.example"}).run())[0] == 421
            path = "/v1/completions"
            assert (await Asked(app, "POST", path, b"x" * 60, b"x" * 60, **known).run())[0] == 413
            assert (await Asked(app, "POST", path, content_length="101", **known).run())[0] == 413
            assert app._core.room.used_bytes == 0

    asyncio.run(run())


def test_lifespan_loads_and_drains():
    app = pickle.loads(pickle.dumps(AsgiApp(SOURCES)))
    sent: list[str] = []

    async def run() -> None:
        ends = asyncio.Event()
        events = iter(("startup", "shutdown"))

        async def receive() -> dict[str, Any]:
            event = next(events)
            if event == "shutdown":
                await ends.wait()
            return {"type": f"lifespan.{event}"}

        async def send(event: Any) -> None:
            sent.append(event["type"])

        with pytest.raises(OptionError, match="not loaded"):
            await Asked(app, "GET", "/livez").run()
        living = asyncio.create_task(app({"type": "lifespan"}, receive, send))
        while not sent:
            await asyncio.sleep(0.01)
        assert app.is_ready
        asked = Asked(app, "POST", "/v1/completions", TEXT % (50, b"true"))
        status, _, body = await asked.run(ends.set)
        assert status == 200
        assert body.endswith(b"data: [DONE]\n\n")
        await asyncio.wait_for(living, SECONDS)
        assert not app.is_ready

    asyncio.run(run())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_names_are_distinct():
    with pytest.raises(OptionError, match="two models"):
        AsgiApp([SOURCES[0], SOURCES[0]])


def test_a_server_that_fails_to_receive_ends_the_answer():
    async def receive() -> Any:
        raise RuntimeError("the server's connection is broken")

    async def run() -> None:
        async with AsgiApp(SOURCES) as app:
            scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
            scope["headers"] = [(b"host", b"localhost")]
            with pytest.raises(RuntimeError, match="broken"):
                await asyncio.wait_for(app(scope, receive, None), 20)

    asyncio.run(run())


def test_a_start_that_is_given_up_leaves_nothing():
    async def run() -> None:
        app = AsgiApp(SOURCES)
        starting = asyncio.create_task(app.__aenter__())
        while app._core is None:
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        with pytest.raises(OptionError, match="not loaded"):
            await Asked(app, "GET", "/livez").run()

    asyncio.run(run())
