"""Many prompts: what one asks for, and the results in the order of the prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from educe.errors import EduceError, InputError
from educe.generate.stream import Completion, Stream
from educe.text.prompt import Prompt

Request: TypeAlias = "Prompt | Mapping[str, Any]"
"""A prompt; or one under ``prompt`` or ``messages``, with options of its own beside it."""


def split(request: Request) -> tuple[Prompt, dict[str, Any]]:
    """Return the prompt of a request, and the options that it has beside it."""
    if not isinstance(request, Mapping):
        return request, {}
    own = dict(request)
    found = [own.pop(name) for name in ("prompt", "messages") if name in own]
    if len(found) != 1:
        raise InputError(f"has {len(found)} prompts", remedy='give one, under "prompt" or "messages"')
    return found[0], own


def each_of(prompts: object) -> Iterable[Request]:
    """Return many prompts as they are.

    Raises:
        InputError: it is a single one, or none at all.
    """
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        found = "one text" if isinstance(prompts, str) else f"a {type(prompts).__name__}"
        raise InputError(f"expected many prompts, found {found}", remedy='give a list, such as ["text"]')
    return prompts


def in_order(attempts: Iterator[Stream | EduceError], most: int) -> Iterator[Completion | EduceError]:
    """Return the results of attempts, the next `most` of which run while one is waited for."""
    waiting: deque[Stream | EduceError] = deque()
    try:
        for attempt in attempts:
            waiting.append(attempt)
            if len(waiting) > most:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for attempt in waiting:
            if isinstance(attempt, Stream):
                attempt.cancel()


def _result(attempt: Stream | EduceError) -> Completion | EduceError:
    if isinstance(attempt, EduceError):
        return attempt
    try:
        return attempt.result()
    except EduceError as error:
        return error
