"""`GrpcServer`: gRPC beside HTTP, in the same event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from educe.errors import MissingLibraryError, OptionError
from educe.files import open_regular
from educe.serve.access import tenant_of
from educe.serve.faults import BadRequest, logged
from educe.serve.inference import Inference

if TYPE_CHECKING:
    from pathlib import Path

    from educe.serve.grpc.methods import Call, Method

_CERTIFICATE_BYTES = 2**20
# A client that has gone without a word is noticed within so long.
_PING_MILLISECONDS = 20_000
# More pings of a client that sends nothing else than one in so long are too many.
_LEAST_PING_MILLISECONDS = 5_000


class GrpcServer:
    """The models behind gRPC.

    Args:
        inference: What runs the models.

    Attributes:
        methods: All that is answered.
        port: The port; 0 before it is listened at.

    Raises:
        MissingLibraryError: gRPC is not installed.
    """

    def __init__(self, inference: Inference) -> None:
        try:
            import grpc.aio

            from educe.serve.grpc.messages import REFLECTIONS
        except ImportError:
            raise MissingLibraryError("grpcio", extra="grpc", purpose="gRPC") from None
        from educe.serve.grpc.service import InferenceService
        from educe.serve.grpc.standard import Health, Reflection

        self.settings = inference.settings
        self.port = 0
        self._is_ending = False
        health = Health(lambda: inference.is_ready, lambda: self._is_ending)
        reflections = [Reflection(service) for service in REFLECTIONS]
        self.methods: list[Method] = [*InferenceService(inference).methods(), *health.methods()]
        for reflection in reflections:
            self.methods += reflection.methods()
        self._grpc = grpc
        self._server = grpc.aio.server(
            options=self._options(), maximum_concurrent_rpcs=self.settings.server_limits.num_connections
        )
        services: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            services.setdefault(method.service, {})[method.name] = self._rpc(method)
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, rpcs) for name, rpcs in services.items())
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            OptionError: the address cannot be listened at, or the certificate cannot be read.
        """
        settings = self.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.certificate is None:
                self.port = self._server.add_insecure_port(address)
            else:
                assert settings.private_key is not None
                pair = (_content(settings.private_key), _content(settings.certificate))
                self.port = self._server.add_secure_port(address, self._grpc.ssl_server_credentials([pair]))
        except RuntimeError:
            raise OptionError(
                f"cannot listen at {address}",
                remedy="give another --grpc-port, or end what listens there; check the certificate, if any",
            ) from None
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls, let those that are there end within some seconds, and close."""
        self._is_ending = True
        await self._server.stop(seconds)

    def _options(self) -> list[tuple[str, int]]:
        bounds = self.settings.server_limits
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", bounds.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", bounds.header_bytes),
            ("grpc.absolute_max_metadata_size", bounds.header_bytes),
            ("grpc.server_handshake_timeout_ms", math.ceil(bounds.header_seconds * 1000)),
            ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _PING_MILLISECONDS),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MILLISECONDS),
        ]

    def _rpc(self, method: Method) -> Any:
        """Return a method as gRPC knows it; what a message says is read when it is known who sends it."""
        description, gives = method.description, method.gives.SerializeToString
        if not description.server_streaming:
            return self._grpc.unary_unary_rpc_method_handler(self._unary(method), None, gives)
        if not description.client_streaming:
            return self._grpc.unary_stream_rpc_method_handler(self._stream(method), None, gives)
        return self._grpc.stream_stream_rpc_method_handler(self._stream(method), None, gives)

    def _unary(self, method: Method) -> Any:
        takes = method.takes

        async def answer(content: bytes, context: Any) -> Any:
            try:
                call = self._call(method, context)
                return await method.handle(_read(takes, content), call)
            except Exception as fault:
                await self._refuse(fault, context, method)

        return answer

    def _stream(self, method: Method) -> Any:
        takes = method.takes

        async def read(contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for content in contents:
                yield _read(takes, content)

        async def answer(given: Any, context: Any) -> AsyncIterator[Any]:
            try:
                call = self._call(method, context)
                asked = _read(takes, given) if isinstance(given, bytes) else read(given)
                async for response in method.handle(asked, call):
                    yield response
            except Exception as fault:
                await self._refuse(fault, context, method)

        return answer

    def _call(self, method: Method, context: Any) -> Call:
        from educe.serve.grpc.methods import Call

        settings = self.settings
        authorization = None
        for name, value in context.invocation_metadata():
            if name == "authorization":
                authorization = value
        tenant = tenant_of(settings, method.access, authorization)
        left = context.time_remaining()
        end = math.inf if left is None else asyncio.get_running_loop().time() + left
        return Call(end, settings.timeout_seconds, tenant)

    async def _refuse(self, fault: Exception, context: Any, method: Method) -> None:
        refused = logged(fault, f"a call of {method.path}")
        metadata: tuple[tuple[str, str], ...] = ()
        if refused.retry_after is not None:
            # How long clients with a policy of retries wait, as gRPC has it.
            metadata = (("grpc-retry-pushback-ms", str(max(1, round(refused.retry_after * 1000)))),)
        await context.abort(self._grpc.StatusCode[refused.grpc], str(refused), metadata)


def _read(kind: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError:
        raise BadRequest(f"it is no {kind.DESCRIPTOR.full_name}") from None


def _content(path: Path) -> bytes:
    with open_regular(path, error=OptionError) as file:
        return file.read(_CERTIFICATE_BYTES)
