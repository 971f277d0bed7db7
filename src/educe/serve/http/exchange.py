"""What a route is asked, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from educe.serve.faults import BadRequest, WrongMediaType
from educe.serve.http.invalid import invalid
from educe.serve.room import charge_json

_JSON = "application/json"
WEB_FORM = "application/x-www-form-urlencoded"
"""What curl says of any body that it is told nothing of."""
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


@dataclass(slots=True)
class Head:
    """What stands before a request's body.

    Attributes:
        method: The method.
        path: The path, decoded.
        query: What follows the question mark, undecoded.
        fields: The header fields, their names in small letters; of those that stand twice the last.
        scheme: ``http`` or ``https``.
        repeated: The names of those that stand twice.
    """

    method: str
    path: str
    query: bytes
    fields: dict[bytes, bytes]
    scheme: str
    repeated: frozenset[bytes] = frozenset()

    @property
    def declared_bytes(self) -> int | None:
        """How large it says the body is; None if it does not say."""
        length = self.fields.get(b"content-length", b"")
        return int(length[:19]) if length.isdigit() else None

    def field(self, name: bytes) -> str:
        """Return a header field; empty if there is none."""
        return self.fields.get(name, b"").decode("latin-1")


@dataclass(slots=True)
class Request:
    """A request, received whole.

    Attributes:
        head: What stands before its body.
        body: The body, decompressed.
        id: What names it in answers and in the log.
        deadline: When its answer is of no use any more, by the loop's clock.
        tenant: What tells clients apart who must not learn from each other's caches.
        params: What the path has in the places of the route's names.
    """

    head: Head
    body: bytes
    id: str
    deadline: float
    tenant: str = ""
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """The body's type, without its parameters; empty if the request does not say."""
        return self.head.field(b"content-type").split(";")[0].strip().lower()

    def queries(self) -> dict[str, str]:
        """Return what follows the question mark, by name.

        Raises:
            BadRequest: there are too many, one stands twice, or they are not encoded as UTF-8.
        """
        try:
            pairs = parse_qsl(self.head.query.decode("ascii"), True, errors="strict", max_num_fields=50)
        except ValueError:
            raise BadRequest("what follows the question mark is not encoded as it should be") from None
        found = dict(pairs)
        if len(found) < len(pairs):
            raise BadRequest("a query parameter stands twice")
        return found

    def options(self, kind: type[S]) -> S:
        """Return what follows the question mark as what a Struct's fields say.

        Raises:
            BadRequest: it names none of them, or one does not take its value.
        """
        given, known = self.queries(), kind.__struct_fields__
        for name in given:
            if name not in known:
                raise BadRequest(
                    "unknown query parameter", place=name[:50], remedy=f"known: {', '.join(known)}"
                )
        try:
            return msgspec.convert(given, kind, strict=False)
        except msgspec.ValidationError as fault:
            raise invalid(fault, kind) from None

    def json(self, decoder: msgspec.json.Decoder[T]) -> T:
        """Return the body as what `decoder` makes of it.

        Raises:
            WrongMediaType: it is said to be of another type.
            BadRequest: it is no JSON, or not of the form that the route takes.
            TooLarge: it is larger than JSON may be.
            Overloaded: there is no room for what it becomes.
        """
        charge_json(self.body)
        return decode(self.body, decoder, self.media_type)


@dataclass(slots=True)
class Response:
    """An answer.

    Attributes:
        body: What it says: one buffer, or several that follow each other, or what yields them one by one.
        media_type: The body's type; empty if there is no body.
        status: The status.
        headers: More header fields, their names in small letters.
        closes: Whether no other request can follow on the same connection.
    """

    body: bytes | Sequence[bytes | memoryview] | AsyncGenerator[bytes, None] = b""
    media_type: str = _JSON
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    closes: bool = False


_ENCODER = msgspec.json.Encoder(decimal_format="number")


def json_response(value: Any, status: int = 200) -> Response:
    """Return a value as JSON; what is no number of JSON's, such as infinity, becomes null."""
    return Response(_ENCODER.encode(value), status=status)


def encode(value: Any) -> bytes:
    """Return a value as JSON."""
    return _ENCODER.encode(value)


def decode(content: bytes, decoder: msgspec.json.Decoder[T], media_type: str = _JSON) -> T:
    """Return JSON as what `decoder` makes of it.

    Raises:
        WrongMediaType: it is said to be of another type.
        BadRequest: it is no JSON, or not of the form that is wanted; the error says where.
    """
    if media_type not in (_JSON, WEB_FORM, "") and not media_type.endswith("+json"):
        raise WrongMediaType(f"the body is {media_type[:100]}", remedy=f"send Content-Type: {_JSON}")
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as fault:
        raise invalid(fault, decoder.type) from None
    except RecursionError:
        raise BadRequest("the body is JSON that is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        where = str(fault).removeprefix("JSON is malformed: ")
        raise BadRequest(f"the body is no JSON: {where}", remedy="check its syntax") from None
