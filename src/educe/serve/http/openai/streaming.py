"""Streams of the OpenAI API: events whose end is marked, and whose faults are errors of the API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from educe.serve.http.exchange import Response
from educe.serve.http.openai import types
from educe.serve.http.openai.errors import error_of
from educe.serve.http.sse import MEDIA_TYPE, event, guarded

_DONE = b"data: [DONE]\n\n"


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
    parts = guarded(first, events, request_id, lambda refused: on_fault(error_of(refused)), _DONE)
    return Response(parts, MEDIA_TYPE, headers=[(b"cache-control", b"no-store")])
