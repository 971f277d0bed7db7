"""Clients that are unkind to a server: they hold their connections, or give them up. Linux only."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from benchmarks.clients import PHOTO, posted, together
from educe.bench.load_targets import Address
from educe.serve.sockets import raise_descriptors

RAMP_SECONDS, SLOW_SECONDS = 6.0, 3.0
THREADS = 8
# Of a client behind a narrow network: little lies in the system's buffers, the rest waits in the server.
WINDOW_BYTES, FRAME_BYTES = 4096, 1460
# As many as a server takes of one connection beside the one that it answers.
FOLLOWING = 32
PREDICT = "/v1/models/mobilenet_v2/predict"
INFER = "/v2/models/breast_cancer/infer"
STORY = "/v1/completions"
PHASES = ("connected", "header", "body", "queued", "running", "stream")

Attack = Callable[[Address, int, float], None]
"""What is unkind to a server, with so many connections, for some seconds."""


@contextmanager
def attacked(attack: Attack, url: str, count: int, seconds: float) -> Iterator[None]:
    """Let clients in another process attack a server meanwhile, until the seconds and this are over.

    Raises:
        RuntimeError: they have failed, or do not end.
    """
    arguments = (Address(url), count, seconds)
    process = multiprocessing.get_context("spawn").Process(target=attack, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(timeout=seconds + 60)
        process.kill()
        process.join()
    if process.exitcode != 0:
        raise RuntimeError("the clients have failed, or did not end")


def hold(address: Address, count: int, seconds: float) -> None:
    """Hold connections of four kinds for some seconds; those that are closed are opened again.

    By turns they send nothing, a header slowly, a body slowly, and requests whose answers they read slowly.
    """
    raise_descriptors()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % INFER.encode()
    read = address.request("/openapi.json", b"", {}, "GET")
    starts = (b"", head, head + b"Content-Length: 1000\r\n\r\n", read * FOLLOWING)

    async def again(kind: int) -> None:
        await asyncio.sleep(random.random() * RAMP_SECONDS)
        while True:
            try:
                reader, writer = await _connected(address)
                try:
                    writer.write(starts[kind])
                    while not writer.is_closing():
                        await asyncio.sleep(SLOW_SECONDS)
                        if kind in (1, 2):
                            writer.write(b"a")
                        elif not await reader.read(WINDOW_BYTES):
                            break
                finally:
                    writer.transport.abort()
            except OSError:
                await asyncio.sleep(SLOW_SECONDS)

    async def all_of_them() -> None:
        everyone = asyncio.gather(*(again(index % 4) for index in range(count)))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(everyone, seconds)

    asyncio.run(all_of_them())


async def _connected(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, FRAME_BYTES)
    await asyncio.get_running_loop().sock_connect(connection, (address.host, address.port))
    return await asyncio.open_connection(sock=connection, limit=WINDOW_BYTES)


def abort(address: Address, count: int, seconds: float) -> None:
    """Give up connections at every phase, by turns with and without a reset, spread over some seconds."""
    photo = address.request(*posted(PREDICT, PHOTO))
    story = {"model": "stories260K", "prompt": "Once", "max_tokens": 200, "stream": True}
    contents = {
        "connected": b"",
        "header": photo[:40],
        "body": photo[:5000],
        "queued": photo,
        "running": photo,
        "stream": address.request(*posted(STORY, story)),
    }
    start = time.monotonic()

    def some(worker: int) -> None:
        for index in range(worker, count, THREADS):
            time.sleep(max(0.0, start + seconds * index / count - time.monotonic()))
            phase = PHASES[index % len(PHASES)]
            place = (address.host, address.port)
            with suppress(OSError), socket.create_connection(place, timeout=30) as connection:
                if (index // len(PHASES)) % 2:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(contents[phase])
                if phase == "running":
                    time.sleep(0.01)
                elif phase == "stream":
                    connection.recv(100)

    together(some, THREADS)
