"""Clients of a server that ends while they ask."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any

from tests.serve.conftest import Client

SECONDS = 60


def lost_at_the_end(client: Client, asked: Sequence[tuple[str, Any]], end: Callable[[], object]) -> list[Any]:
    """Ask again and again until the server is gone, and return what became of the requests that it lost.

    Those are all that were sent whole before it was told to end, and were not answered with 200.

    Args:
        client: Tells the server's address.
        asked: Paths and bodies, each of two clients: one keeps its connection, one makes a new one each time.
        end: Tells the server to end.
    """
    told, num_answers, lost = math.inf, 0, list[Any]()

    def ask(path: str, body: Any, keeps: bool) -> None:
        nonlocal num_answers
        connection = HTTPConnection(client.address, timeout=SECONDS)
        while True:
            sent = math.inf
            try:
                connection.request("POST", path, body)
                sent = time.monotonic()
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException) as fault:
                if sent < told:
                    lost.append(fault)
                return
            finally:
                if not keeps or sent == math.inf:
                    connection.close()
            if answer.status != 200:
                lost.append(answer.status)
            num_answers += 1

    threads = [
        threading.Thread(
            target=ask, args=(path, body if isinstance(body, bytes) else json.dumps(body), keeps)
        )
        for path, body in asked
        for keeps in (True, False)
    ]
    for thread in threads:
        thread.start()
    while num_answers < 10 * len(threads) and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    told = time.monotonic()
    end()
    for thread in threads:
        thread.join(2 * SECONDS)
        assert not thread.is_alive()
    return lost


def sent(client: Client, path: str, body: Any) -> HTTPConnection:
    """Return a connection over which a request was sent, and not answered yet."""
    connection = HTTPConnection(client.address, timeout=SECONDS)
    connection.request("POST", path, json.dumps(body))
    return connection


def status(connection: HTTPConnection) -> int:
    """Return the status of the answer, which is read."""
    with connection.getresponse() as answer:
        answer.read()
        return answer.status
