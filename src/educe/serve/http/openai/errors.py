"""Errors in the words of the OpenAI API: its fields' names, its kinds and codes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from educe.errors import InputError, LimitError, UnsupportedModelError, UserError
from educe.serve.faults import BadRequest, NotFound, Refusal, Unauthorized, Unprocessable
from educe.serve.http.openai import types
from educe.serve.http.routes import Family

_TYPES = {401: "authentication_error", 403: "permission_error"}
_PLACE = re.compile(r"(?P<name>[a-z_]+)(?P<rest>.*)", re.DOTALL)


def error_of(refused: Refusal) -> types.Error:
    """Return a refusal as the API has it."""
    kind = _TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    code = "invalid_api_key" if isinstance(refused, Unauthorized) else _snake(type(refused).__name__)
    return types.Error(str(refused), kind, refused.place, code)


OPENAI = Family(types.ErrorAnswer, lambda refused: types.ErrorAnswer(error_of(refused)))
"""The errors of the OpenAI API."""


class ContextLengthExceeded(BadRequest):
    """Prompt and text do not fit into what the model reads at once."""


class ModelNotFound(NotFound):
    """No such model."""


@contextmanager
def in_words_of(fields: Mapping[str, str]) -> Iterator[None]:
    """Have what a user can mend refused as a bad request that names the request's field.

    Args:
        fields: The fields' names, by those of the package's options; and by those of limits;
            by an empty one for an input or limit that is not named.

    Raises:
        BadRequest: the code in the block raises a `UserError`.
        Unprocessable: it raises an `UnsupportedModelError`.
    """
    try:
        yield
    except Refusal:
        raise
    except UnsupportedModelError as fault:
        named = None if fault.place is None else fields.get(fault.place, fault.place)
        raise Unprocessable(fault.cause, place=named, remedy=fault.remedy) from None
    except UserError as fault:
        if isinstance(fault, LimitError):
            named = fields.get(fault.limit or "", fields.get(""))
            raise BadRequest(fault.cause, place=fault.place or named) from None
        found = _PLACE.fullmatch(fault.place or "")
        if found is not None:
            place: str | None = fields.get(found["name"], found["name"]) + found["rest"]
        else:
            place = fields.get("") if isinstance(fault, InputError) else None
        is_too_long = isinstance(fault, InputError) and fault.too_long
        kind = ContextLengthExceeded if is_too_long else BadRequest
        # What the package advises, such as more memory, is for who runs the server.
        remedy = "send less, or ask for fewer tokens" if is_too_long else fault.remedy
        raise kind(fault.cause, place=place, remedy=remedy) from None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
