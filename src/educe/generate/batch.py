"""Many prompts: what one asks for, and the results in the order of the prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
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


class Batch(Iterator["Completion | EduceError"]):
    """The results of many requests, in their order: for a thread, or with ``async for``.

    Args:
        attempts: The requests, which are taken as they are needed.
        most: How many further ones run while one is waited for.
    """

    def __init__(self, attempts: Iterator[Stream | EduceError], most: int) -> None:
        self._attempts, self._most = attempts, most
        self._waiting: deque[Stream | EduceError] = deque()

    def close(self) -> None:
        """Cancel what is under way; there are no further results."""
        self._attempts = iter(())
        while self._waiting:
            attempt = self._waiting.popleft()
            if isinstance(attempt, Stream):
                attempt.cancel()

    def __next__(self) -> Completion | EduceError:
        try:
            attempt = self._first()
            return attempt.result() if isinstance(attempt, Stream) else attempt
        except EduceError as error:
            return error
        except BaseException:
            self.close()
            raise

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> Completion | EduceError:
        try:
            attempt = self._first()
            return await attempt if isinstance(attempt, Stream) else attempt
        except EduceError as error:
            return error
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:
            self.close()
            raise

    def _first(self) -> Stream | EduceError:
        """Start as many as may run, and return the next in order; StopIteration if none is left."""
        self._waiting.extend(islice(self._attempts, self._most + 1 - len(self._waiting)))
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft()
