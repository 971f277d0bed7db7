"""Load on a server, open loop: requests come when they come, whatever became of those before.

Arrivals are a Poisson process. A request's time is counted from when it was to be sent, not from when a
connection was free or the client got round to it: else a server that stalls would be asked less, and look
fast (coordinated omission).
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import re
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httptools
import msgspec
import numpy as np

_TOKEN = re.compile(rb'"(?:content|text)":\s*"(?!")')
_MESSAGE = re.compile(rb'"(?:message|error)":\s*("(?:[^"\\]|\\.)*")')
_TEXT_BYTES = 1000
_REFUSALS = (429, 503)
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Target:
    """Whom to ask, and what.

    Attributes:
        host: The server's host.
        port: Its port.
        requests: Whole requests as HTTP/1.1 has them, which take turns.
        tls: What the connections are secured with; None for plain ones.
        streams: Whether answers are events whose tokens are timed.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    tls: ssl.SSLContext | None = None
    streams: bool = False


@dataclass(frozen=True)
class Plan:
    """How much, and how long.

    Attributes:
        rate: Requests a second, on average.
        seconds: How long requests are sent that count.
        warmup_seconds: How long others are sent before.
        within_seconds: The longest time of an answer that is a good one.
        timeout_seconds: After which time a request is given up.
        connections: Most connections; requests wait for one, and their time counts.
        seed: What the arrivals depend on.
    """

    rate: float
    seconds: float
    warmup_seconds: float = 0.0
    within_seconds: float = math.inf
    timeout_seconds: float = 30.0
    connections: int = 512
    seed: int = 0


class Load(msgspec.Struct, frozen=True):
    """What came of it; quantiles are seconds by their names, and of successes only.

    Attributes:
        rate: Requests a second that were intended.
        sent_rate: Those that were really sent.
        num_requests: Requests that count.
        num_ok: Those that were answered with a status of 200 to 299.
        rate_ok: These a second.
        goodput: Those of them a second that came within the bound.
        latency: Quantiles of their times.
        errors: The others by status, ``timeout`` or ``connection``.
        messages: What the server said to the first of each status.
        refusal: Quantiles of the times of answers 429 and 503.
        num_retry_after: How many of these said when to come again.
        late: Quantiles of how much later than intended requests were sent.
        first_token: Quantiles of the times to a first token.
        between_tokens: Quantiles of the times between tokens.
        num_tokens: Tokens that came.
    """

    rate: float
    sent_rate: float
    num_requests: int
    num_ok: int
    rate_ok: float
    goodput: float
    latency: dict[str, float]
    errors: dict[str, int]
    messages: dict[str, str]
    refusal: dict[str, float]
    num_retry_after: int
    late: dict[str, float]
    first_token: dict[str, float]
    between_tokens: dict[str, float]
    num_tokens: int


def run_load(target: Target, plan: Plan) -> Load:
    """Send requests as planned, and return what came of them.

    Raises:
        OSError: the server cannot be reached at all.
    """
    run: Callable[[Any], Load] = asyncio.run
    with suppress(ImportError):
        import uvloop

        run = uvloop.run
    return run(_Generator(target, plan).run())


@dataclass(slots=True, eq=False)
class _Sent:
    """A request: when it was to be sent, and what has come of it."""

    intended: float
    content: bytes
    counts: bool
    connection: _Connection | None = None
    sent: float = 0.0
    end: float = 0.0
    status: int = 0
    fault: str = ""
    retry_after: bool = False
    text: bytes = b""
    first_token: float = 0.0
    last_token: float = 0.0
    gaps: list[float] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One connection, over which requests follow each other."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None
        self._request: _Sent | None = None
        self._parser: Any = None
        self._num_tokens = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def send(self, request: _Sent) -> None:
        assert self._transport is not None
        self._request, self._parser = request, httptools.HttpResponseParser(self)
        request.connection, request.sent = self, time.monotonic()
        self._transport.write(request.content)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("connection")
        self._time_tokens()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is not None and name.lower() == b"retry-after":
            self._request.retry_after = True

    def on_body(self, body: bytes) -> None:
        if self._generator.target.streams:
            self._num_tokens += len(_TOKEN.findall(body))
        request, status = self._request, self._parser.get_status_code()
        if request is not None and not _is_ok(status) and status not in self._generator.texts:
            request.text += body[: _TEXT_BYTES - len(request.text)]

    def _time_tokens(self) -> None:
        """Take note of when the tokens came that are new; several that came at once share the time."""
        request, count = self._request, self._num_tokens
        self._num_tokens = 0
        if request is None or not count:
            return
        now = time.monotonic()
        if request.first_token:
            request.gaps += [(now - request.last_token) / count] * count
        else:
            request.first_token = now
            request.gaps += [0.0] * (count - 1)
        request.last_token = now

    def on_message_complete(self) -> None:
        self._time_tokens()
        request, parser = self._request, self._parser
        if request is None:
            return
        request.status, request.end = parser.get_status_code(), time.monotonic()
        if request.text:
            self._generator.texts.setdefault(request.status, request.text)
        self._request = self._parser = None
        if parser.should_keep_alive():
            self._generator.ended(request, self)
        else:
            self.close()
            self._generator.ended(request, None)

    def connection_lost(self, fault: Exception | None) -> None:
        self._generator.lost(self)
        self._fail("connection")

    def give_up(self, request: _Sent) -> None:
        """End a request that has not been answered in its time, and the connection with it."""
        if self._request is request:
            self._fail("timeout")

    def _fail(self, reason: str) -> None:
        request, self._request, self._parser = self._request, None, None
        self.close()
        if request is not None:
            request.fault, request.end = reason, time.monotonic()
            self._generator.ended(request, None)


class _Generator:
    """What sends the requests of one plan."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.texts: dict[int, bytes] = {}
        self._idle: list[_Connection] = []
        self._waiting: deque[_Sent] = deque()
        self._requests: list[_Sent] = []
        self._num_open = 0
        self._num_pending = 0
        self._next = 0
        self._done: asyncio.Event = asyncio.Event()

    async def run(self) -> Load:
        self._loop = asyncio.get_running_loop()
        await self._probe()
        arrivals = self._arrivals()
        clock = _Clock(self._loop)
        start = time.monotonic() + 0.01
        first_counted = start + self.plan.warmup_seconds
        try:
            for index, offset in enumerate(arrivals):
                intended = start + offset
                if intended > time.monotonic():
                    await clock.wait_until(intended)
                content = self.target.requests[index % len(self.target.requests)]
                self._offer(_Sent(intended, content, intended >= first_counted))
                if not index % 64:
                    self._expire()
                    await asyncio.sleep(0)
            while self._num_pending:
                self._expire()
                self._done.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._done.wait(), 0.05)
        finally:
            clock.close()
            for connection in self._idle:
                connection.close()
        return summary([each for each in self._requests if each.counts], self.plan, self.texts)

    async def _probe(self) -> None:
        """Open a first connection, so that a server that is not there is an error and not a result."""
        self._idle.append(await self._connected())

    def _arrivals(self) -> list[float]:
        """Return the seconds from the start at which requests are to be sent."""
        rng = np.random.default_rng(self.plan.seed)
        end = self.plan.warmup_seconds + self.plan.seconds
        count = rng.poisson(self.plan.rate * end)
        # Given their number, the arrivals of a Poisson process lie anywhere with the same probability.
        moments: list[float] = np.sort(rng.uniform(0.0, end, max(int(count), 1))).tolist()
        return moments

    def _offer(self, request: _Sent) -> None:
        self._requests.append(request)
        self._num_pending += 1
        if self._idle:
            self._idle.pop().send(request)
        else:
            self._waiting.append(request)
            if self._num_open < self.plan.connections:
                self._open()

    def _open(self) -> None:
        self._num_open += 1
        task = self._loop.create_task(self._connected(counted=True))
        task.add_done_callback(self._opened)

    async def _connected(self, counted: bool = False) -> _Connection:
        if not counted:
            self._num_open += 1
        target = self.target
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), target.host, target.port, ssl=target.tls
        )
        return connection

    def _opened(self, task: asyncio.Task[_Connection]) -> None:
        if task.exception() is None:
            self._use(task.result())
            return
        self._num_open -= 1
        if self._waiting:
            request = self._waiting.popleft()
            request.end = time.monotonic()
            request.fault = "connection"
            self.ended(request, None)
        if self._waiting and self._num_open < self.plan.connections:
            self._open()

    def _use(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def ended(self, request: _Sent, connection: _Connection | None) -> None:
        """Take note of a request's end; its connection is free for another, or None if it is gone."""
        self._num_pending -= 1
        if connection is not None:
            self._use(connection)
        if not self._num_pending:
            self._done.set()

    def lost(self, connection: _Connection) -> None:
        """Take note of a connection that is gone."""
        self._num_open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting and self._num_open < self.plan.connections:
            self._open()

    def _expire(self) -> None:
        """Give up the requests whose time has passed; they were sent in the order of their times."""
        end = time.monotonic() - self.plan.timeout_seconds
        while self._next < len(self._requests):
            request = self._requests[self._next]
            if not request.end:
                if request.intended > end:
                    return
                self._give_up(request)
            self._next += 1

    def _give_up(self, request: _Sent) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
            request.fault, request.end = "timeout", time.monotonic()
            self.ended(request, None)
        elif request.connection is not None:
            request.connection.give_up(request)


class _Clock:
    """What waits to the microsecond where the system lets it; an event loop's own timers are coarser."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._fd = loop, -1
        self._came: asyncio.Future[None] | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._fired)

    async def wait_until(self, moment: float) -> None:
        """Wait until `time.monotonic` is `moment`."""
        if self._fd < 0:
            await asyncio.sleep(moment - time.monotonic())
            return
        whole, part = divmod(round(moment * 1e9), 10**9)
        self._came = self._loop.create_future()
        setting = (ctypes.c_long * 4)(0, 0, whole, max(part, 1))
        absolute = 1
        self._libc.timerfd_settime(self._fd, absolute, setting, None)
        await self._came

    def close(self) -> None:
        """Give back the system's timer."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._came is not None and not self._came.done():
            self._came.set_result(None)


def summary(requests: Sequence[_Sent], plan: Plan, texts: Mapping[int, bytes]) -> Load:
    """Return what came of requests that have all ended.

    Args:
        requests: The requests.
        plan: What was planned.
        texts: What the server said to the first of each status.
    """
    good = [each for each in requests if not each.fault and _is_ok(each.status)]
    refused = [each for each in requests if not each.fault and each.status in _REFUSALS]
    times = [each.end - each.intended for each in good]
    errors: Counter[str] = Counter()
    for each in requests:
        if each.fault or not _is_ok(each.status):
            errors[each.fault or str(each.status)] += 1
    sent = [each for each in requests if each.sent]
    return Load(
        rate=plan.rate,
        sent_rate=len(sent) / plan.seconds,
        num_requests=len(requests),
        num_ok=len(good),
        rate_ok=len(good) / plan.seconds,
        goodput=sum(seconds <= plan.within_seconds for seconds in times) / plan.seconds,
        latency=quantiles(times),
        errors=dict(errors.most_common()),
        messages={str(status): _message(text) for status, text in texts.items() if errors[str(status)]},
        refusal=quantiles([each.end - each.intended for each in refused]),
        num_retry_after=sum(each.retry_after for each in refused),
        late=quantiles([each.sent - each.intended for each in sent]),
        first_token=quantiles([each.first_token - each.intended for each in good if each.first_token]),
        between_tokens=quantiles([gap for each in good for gap in each.gaps]),
        num_tokens=sum(len(each.gaps) + bool(each.first_token) for each in good),
    )


def _is_ok(status: int) -> bool:
    return 200 <= status < 300


def _message(text: bytes) -> str:
    """Return what an error's body says, without the JSON of the two protocols around it."""
    found = _MESSAGE.search(text)
    try:
        return str(msgspec.json.decode(found[1])) if found else text.decode("utf-8", "replace")
    except msgspec.DecodeError:
        return text.decode("utf-8", "replace")


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of some values, each a value that is there; empty if there are none."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values), list(_QUANTILES.values()), method="higher")
    return {**dict(zip(_QUANTILES, map(float, found), strict=True)), "max": float(max(values))}
