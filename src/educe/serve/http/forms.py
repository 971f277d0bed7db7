"""Forms: the parts of a body of the type ``multipart/form-data``, within bounds."""

from __future__ import annotations

import multipart

from educe.serve.faults import BadRequest, WrongMediaType
from educe.serve.http.exchange import Request

FORM = "multipart/form-data"
_HEADER_BYTES = 4 * 2**10


def read_form(request: Request, most_parts: int) -> list[tuple[str, bytes]]:
    """Return the names and contents of a form's parts.

    Raises:
        WrongMediaType: the body is no form.
        BadRequest: the form is broken, or has too many parts.
    """
    if request.media_type != FORM:
        raise WrongMediaType("the body is no form", remedy=f"send {FORM}")
    _, options = multipart.parse_options_header(request.headers[b"content-type"].decode("latin-1"))
    parser = multipart.PushMultipartParser(
        options.get("boundary", ""), max_segment_count=most_parts, max_header_size=_HEADER_BYTES
    )
    found: list[tuple[str, bytes]] = []
    name, content = "", bytearray()
    try:
        with parser:
            for event in (*parser.parse(request.body), *parser.parse(b"")):
                if event is None:
                    found.append((name, bytes(content)))
                elif isinstance(event, multipart.MultipartSegment):
                    name, content = event.name or "", bytearray()
                else:
                    content += event
    except (multipart.MultipartError, ValueError) as fault:
        raise BadRequest(f"the form cannot be read: {fault}") from None
    return found
