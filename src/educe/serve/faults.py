"""Why a request is refused: each reason with its status in HTTP and in gRPC.

A refusal's text is written for a stranger: it names nothing of this machine but the models that are served.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import ClassVar

from educe.errors import EduceError, InternalError, LimitError, MissingLibraryError, UserError

_LOG = logging.getLogger("educe.serve")
_TEXT_CHARACTERS, _PLACE_CHARACTERS = 1000, 200


class Refusal(EduceError):  # noqa: N818
    """The base of all refusals.

    Args:
        cause: What is wrong.
        place: Where in the request.
        remedy: What the client can do.
        retry_after: After how many seconds another attempt may succeed; None if it cannot.

    Attributes:
        status: The status in HTTP.
        grpc: The name of the status in gRPC.
    """

    status: ClassVar[int] = 400
    grpc: ClassVar[str] = "INVALID_ARGUMENT"

    def __init__(
        self,
        cause: str,
        *,
        place: str | None = None,
        remedy: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            _brief(cause), place=place and _brief(place, _PLACE_CHARACTERS), remedy=remedy and _brief(remedy)
        )
        self.retry_after = retry_after


def _brief(text: str, most: int = _TEXT_CHARACTERS) -> str:
    """Return a text, or its begin: what a client has sent stands in it, and may be long."""
    return text if len(text) <= most else text[: most - 1] + "…"


class BadRequest(Refusal):
    """A request that is not what the route takes."""


class Unauthorized(Refusal):
    """No key, or a wrong one.

    Attributes:
        challenge: How HTTP asks for one.
    """

    status = 401
    grpc = "UNAUTHENTICATED"

    def __init__(self, cause: str, *, remedy: str | None = None, challenge: str = "Bearer") -> None:
        super().__init__(cause, remedy=remedy)
        self.challenge = challenge


class Forbidden(Refusal):
    """A page of an origin that may not call this server."""

    status = 403
    grpc = "PERMISSION_DENIED"


class NotFound(Refusal):
    """No such route, model or version."""

    status = 404
    grpc = "NOT_FOUND"


class MethodNotAllowed(Refusal):
    """A route that does not take this method.

    Attributes:
        allowed: The methods that it takes.
    """

    status = 405
    grpc = "UNIMPLEMENTED"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__("this route does not take the method", remedy=f"use {' or '.join(allowed)}")
        self.allowed = allowed


class Unimplemented(Refusal):
    """A method of gRPC that there is not."""

    status = 404
    grpc = "UNIMPLEMENTED"


class TooLarge(Refusal):
    """A body beyond the limits."""

    status = 413
    grpc = "RESOURCE_EXHAUSTED"


class WrongMediaType(Refusal):
    """A body of a kind that the route does not take."""

    status = 415


class Unprocessable(Refusal):
    """A request that is sound, of a model that cannot serve it."""

    status = 422
    grpc = "FAILED_PRECONDITION"


class LibraryMissing(Refusal):
    """A request that needs a library which the server is without."""

    status = 501
    grpc = "UNIMPLEMENTED"


class WrongHost(Refusal):
    """A request for a host that this server is not."""

    status = 421
    grpc = "PERMISSION_DENIED"


class Overloaded(Refusal):
    """More requests than can be answered in time."""

    status = 503
    grpc = "UNAVAILABLE"


class NotReady(Refusal):
    """A model that is being loaded, or a server that is being shut down."""

    status = 503
    grpc = "UNAVAILABLE"


class DeadlineExceeded(Refusal):
    """A request that cannot be answered in its time."""

    status = 504
    grpc = "DEADLINE_EXCEEDED"


class Failed(Refusal):
    """A fault of ours; what it is stands in the log."""

    status = 500
    grpc = "INTERNAL"


def unknown_parameter(given: Collection[str], known: Collection[str] = ()) -> BadRequest:
    """Return the refusal of parameters of the Open Inference Protocol that a model does not take.

    Args:
        given: Those that it does not take.
        known: Those that it takes, beside those of all models.
    """
    # Clients send three for a sequence, of which their users give one.
    name = "sequence_id" if "sequence_id" in given else min(given)
    return BadRequest(
        f"unknown parameter {name[:50]!r}",
        place="parameters",
        remedy=f"known: {', '.join((*known, 'priority', 'timeout', 'timing'))}",
    )


def logged(fault: Exception, asked: str) -> Refusal:
    """Return a fault as a client may see it; one of ours goes into the log, with what was asked.

    Then the fault forgets where it came from: those frames hold the request and what was made of it, and
    refer to the fault by what they waited for, so that all of it would stay until garbage is looked for.
    """
    refused = refusal(fault)
    if isinstance(refused, Failed):
        _LOG.error("%s failed", asked, exc_info=fault)
    forgetful: list[BaseException | None] = [fault]
    while forgetful:
        each = forgetful.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            forgetful += each.__cause__, each.__context__
    return refused


def refusal(error: Exception) -> Refusal:
    """Return an error as a client may see it: no path, and nothing of faults of ours."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, LimitError):
        return TooLarge(error.cause, place=error.place)
    if isinstance(error, EduceError) and not isinstance(error, InternalError):
        kind: type[Refusal] = BadRequest if isinstance(error, UserError) else Unprocessable
        if isinstance(error, MissingLibraryError):
            kind = LibraryMissing
        return kind(error.cause, place=error.place, remedy=error.remedy)
    return Failed("the server failed at this request", remedy="its log says more, by the request's id")
