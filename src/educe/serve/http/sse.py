"""Server-sent events: how answers come while they are made.

Source: the HTML standard, chapter on server-sent events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from educe.serve.faults import Refusal, logged
from educe.serve.http.exchange import encode
from educe.serve.observation import note_error

MEDIA_TYPE = "text/event-stream"


def event(data: Any, name: str | None = None) -> bytes:
    """Return an event, with a name if its kind of stream has them."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (head, encode(data))


async def guarded(
    first: bytes,
    rest: AsyncGenerator[bytes, None],
    request_id: str,
    on_fault: Callable[[Refusal], Iterable[bytes]],
    end: bytes = b"",
) -> AsyncGenerator[bytes, None]:
    """Yield events; a fault among them becomes events, too.

    Args:
        first: The first, which was waited for: what is wrong with a request is answered as an error.
        rest: The others, which are closed when nobody reads on.
        request_id: What names the request in the log.
        on_fault: Makes the last events of a stream that fails.
        end: What marks the end.
    """
    async with aclosing(rest):
        yield first
        try:
            async for each in rest:
                yield each
        except Exception as fault:
            refused = logged(fault, f"request {request_id}")
            note_error(fault, str(refused))
            for each in on_fault(refused):
                yield each
        if end:
            yield end
