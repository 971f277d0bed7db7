"""Forms: the parts of a body of the type ``multipart/form-data``, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import multipart

from educe.serve.faults import BadRequest, WrongMediaType
from educe.serve.http.exchange import Request

FORM = "multipart/form-data"
_HEADER_BYTES = 4 * 2**10


@dataclass(frozen=True, slots=True)
class Part:
    """A field or a file of a form.

    Attributes:
        name: The field's name.
        media_type: The content's type; empty if the form does not say.
        content: The content.
    """

    name: str
    media_type: str
    content: bytes


def read_form(request: Request, most_parts: int) -> list[Part]:
    """Return a form's parts.

    Raises:
        WrongMediaType: the body is no form.
        BadRequest: the form is broken, or has too many parts.
    """
    if request.media_type != FORM:
        raise WrongMediaType(
            "the body is no form", remedy=f"send Content-Type: {FORM}, as curl does with -F file=@FILE"
        )
    _, options = multipart.parse_options_header(request.head.field(b"content-type"))
    found: list[Part] = []
    name, media_type, content = "", "", bytearray()
    try:
        parser = multipart.PushMultipartParser(
            options.get("boundary", ""), max_segment_count=most_parts, max_header_size=_HEADER_BYTES
        )
        with parser:
            for event in (*parser.parse(request.body), *parser.parse(b"")):
                if event is None:
                    found.append(Part(name, media_type, bytes(content)))
                elif isinstance(event, multipart.MultipartSegment):
                    name, media_type = event.name or "", event.content_type or ""
                    content = bytearray()
                else:
                    content += event
    except (multipart.MultipartError, ValueError) as fault:
        raise BadRequest(f"the form cannot be read: {fault}") from None
    return found
