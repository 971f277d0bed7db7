"""`Method`: what the server's gRPC answers, each method with who may ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from educe.serve.access import Access
from educe.serve.grpc.messages import message, pool


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of a call beyond its message.

    Attributes:
        end: When the client gives up, by the loop's clock.
        timeout_seconds: Longest time for a request.
        tenant: What tells clients apart who must not learn from each other's caches.
    """

    end: float
    timeout_seconds: float
    tenant: str

    def deadline(self) -> float:
        """Return when the answer to a request that comes now is of no use any more."""
        if self.timeout_seconds == math.inf:
            return self.end
        return min(self.end, asyncio.get_running_loop().time() + self.timeout_seconds)


@dataclass(frozen=True)
class Method:
    """A method of a service.

    Attributes:
        service: The service's full name.
        name: The method's name.
        handle: What answers: a message and a `Call` to a message, or iterators of such in streams.
        access: Who may ask.
    """

    service: str
    name: str
    handle: Callable[[Any, Call], Any]
    access: Access = "key"

    @property
    def path(self) -> str:
        """The method as requests name it."""
        return f"/{self.service}/{self.name}"

    @cached_property
    def description(self) -> Any:
        """The method's description."""
        return pool().FindServiceByName(self.service).methods_by_name[self.name]

    @cached_property
    def takes(self) -> Any:
        """The class of its requests."""
        return message(self.description.input_type.full_name)

    @cached_property
    def write(self) -> Callable[[Any], bytes]:
        """What makes bytes of its responses."""
        write: Callable[[Any], bytes] = message(self.description.output_type.full_name).SerializeToString
        return write
