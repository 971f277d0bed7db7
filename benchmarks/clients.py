"""Clients of a server that wait for an answer before they ask again, and what they ask."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

Request = tuple[str, bytes, Mapping[str, str]]
"""A path, a body, and header fields."""

PHOTO = (Path(__file__).parents[1] / "zoo" / "images" / "zebra.jpeg").read_bytes()


def posted(path: str, content: Any) -> Request:
    """Return a request of bytes, or of JSON."""
    if isinstance(content, bytes):
        return path, content, {"Content-Type": "application/octet-stream"}
    return path, json.dumps(content).encode(), {"Content-Type": "application/json"}


def answer_of(connection: HTTPConnection, request: Request) -> tuple[int, bytes]:
    """Return the status and the body of an answer; after a fault, the next comes over a new connection.

    Raises:
        OSError: the connection is lost.
        HTTPException: the answer is none of HTTP.
    """
    try:
        connection.request("POST", *request)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (HTTPException, OSError):
        connection.close()
        raise


def together(ask: Callable[[int], None], count: int) -> None:
    """Run as many threads, each with its number, until all end; a fault of one is raised then."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, range(count)))


def answered_a_second(url: str, request: Request, count: int, seconds: float) -> float:
    """Return how many requests a second succeed if so many clients always wait for one."""
    end, counts = time.monotonic() + seconds, [0] * count

    def ask(index: int) -> None:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
        while time.monotonic() < end:
            with suppress(HTTPException, OSError):
                counts[index] += answer_of(connection, request)[0] == 200
        connection.close()

    together(ask, count)
    return sum(counts) / seconds
