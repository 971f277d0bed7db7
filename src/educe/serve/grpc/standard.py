"""The services that gRPC's own tools ask for: health, whose `Check` is open to anyone, and reflection.

Source: https://grpc.io/docs/guides/health-checking and https://grpc.io/docs/guides/reflection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from educe.serve.faults import NotFound
from educe.serve.grpc.messages import HEALTH, INFERENCE, REFLECTIONS, message, pool
from educe.serve.grpc.methods import Call, Method

_SERVING, _NOT_SERVING, _UNKNOWN = 1, 2, 3
_NOT_FOUND, _UNIMPLEMENTED = 5, 12
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Health:
    """Whether the server's services answer.

    Attributes:
        is_ready: Says whether they do.
        is_ending: Says whether the server ends, and no one waits for a change any more.
    """

    is_ready: Callable[[], bool]
    is_ending: Callable[[], bool]

    def methods(self) -> list[Method]:
        """Return the methods."""
        return [Method(HEALTH, "Check", self.check, "open"), Method(HEALTH, "Watch", self.watch)]

    async def check(self, request: Any, call: Call) -> Any:
        """Say whether a service answers."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            raise NotFound("there is no such service")
        return message("grpc.health.v1.HealthCheckResponse")(status=status)

    async def watch(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """Say whether a service answers, and again at each change."""
        said = None
        while True:
            is_last, status = self.is_ending(), self._status(request.service)
            if status != said:
                yield message("grpc.health.v1.HealthCheckResponse")(status=status)
                said = status
            if is_last:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _status(self, service: str) -> int:
        if service not in ("", INFERENCE, HEALTH, *REFLECTIONS):
            return _UNKNOWN
        return _SERVING if self.is_ready() and not self.is_ending() else _NOT_SERVING


@dataclass(frozen=True)
class Reflection:
    """What the server's services are, in one version of the protocol.

    Attributes:
        service: The service's full name.
    """

    service: str

    def methods(self) -> list[Method]:
        """Return the methods."""
        return [Method(self.service, "ServerReflectionInfo", self.describe)]

    async def describe(self, requests: AsyncIterator[Any], call: Call) -> AsyncGenerator[Any, None]:
        """Describe services and messages, one request after the other."""
        kind = message(f"{self.service.rpartition('.')[0]}.ServerReflectionResponse")
        async for request in requests:
            response = kind(valid_host=request.host, original_request=request)
            self._fill(request, response)
            yield response

    def _fill(self, request: Any, response: Any) -> None:
        asked = request.WhichOneof("message_request")
        if asked == "list_services":
            for name in (INFERENCE, HEALTH, *REFLECTIONS):
                response.list_services_response.service.add(name=name)
            return
        if asked not in ("file_by_filename", "file_containing_symbol"):
            response.error_response.error_code = _UNIMPLEMENTED
            response.error_response.error_message = "the messages have no extensions"
            return
        find = pool().FindFileByName if asked == "file_by_filename" else pool().FindFileContainingSymbol
        try:
            file = find(getattr(request, asked))
        except KeyError:
            response.error_response.error_code = _NOT_FOUND
            response.error_response.error_message = "there is no such file or symbol"
            return
        response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
