"""Server-sent events: how texts come while they are written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from educe.serve.faults import logged
from educe.serve.http.exchange import Response, encode
from educe.serve.http.openai import types
from educe.serve.http.openai.errors import error_of

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """Return an event, with a name if its kind of stream has them."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (head, encode(data))


async def streamed(
    events: AsyncGenerator[bytes, None],
    request_id: str,
    on_fault: Callable[[types.Error], list[bytes]] = lambda error: [event(types.ErrorAnswer(error))],
) -> Response:
    """Return the answer that events make; what fails before the first of them is an error like any other.

    Args:
        events: The events; their end is marked.
        request_id: What names the request in the log.
        on_fault: Makes the last events of a stream that fails.
    """
    first = await anext(events)
    headers = [(b"cache-control", b"no-store")]
    return Response(_guarded(first, events, request_id, on_fault), MEDIA_TYPE, headers=headers)


async def _guarded(
    first: bytes,
    events: AsyncGenerator[bytes, None],
    request_id: str,
    on_fault: Callable[[types.Error], list[bytes]],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        yield first
        try:
            async for each in events:
                yield each
        except Exception as fault:
            for each in on_fault(error_of(logged(fault, f"request {request_id}"))):
                yield each
        yield DONE
