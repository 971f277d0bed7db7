"""`GrpcServer`: gRPC beside HTTP, in the same event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from educe.errors import MissingLibraryError, OptionError
from educe.files import open_regular
from educe.serve.access import tenant_of
from educe.serve.deadline import Deadline
from educe.serve.faults import BadRequest, Refusal, Unimplemented, logged
from educe.serve.inference import Inference
from educe.serve.observation import GRPC, RequestIds
from educe.serve.observer import Observer
from educe.serve.room import BodyRoom, Share
from educe.serve.snapshot import Snapshot
from educe.serve.sockets import bound
from educe.serve.threads import aside, hold

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
        observer: What sees every call begin and end.
        snapshot: What tells all numbers of the server.
        room: The room for the messages of all calls that are there.

    Attributes:
        port: The port; 0 before it is listened at.

    Raises:
        MissingLibraryError: gRPC is not installed.
    """

    def __init__(
        self,
        inference: Inference,
        observer: Observer,
        snapshot: Callable[[], Awaitable[Snapshot]],
        room: BodyRoom,
    ) -> None:
        try:
            import grpc.aio

            from educe.serve.grpc.messages import REFLECTIONS
        except ImportError:
            raise MissingLibraryError("grpcio", extra="grpc", purpose="gRPC") from None
        from educe.serve.grpc.methods import Call
        from educe.serve.grpc.service import InferenceService
        from educe.serve.grpc.standard import Health, Reflection

        self.settings = inference.settings
        self.port = 0
        self._is_ending = False
        health = Health(lambda: inference.is_ready, lambda: self._is_ending)
        methods = [*InferenceService(inference, snapshot).methods(), *health.methods()]
        methods += [method for name in REFLECTIONS for method in Reflection(name).methods()]
        self._methods = {method.path: method for method in methods}
        self._observer, self._ids, self._room = observer, RequestIds(), room
        self._grpc, self._kind = grpc, Call
        self._server = grpc.aio.server(
            options=self._options(), maximum_concurrent_rpcs=self.settings.server_limits.num_connections
        )
        self._server.add_generic_rpc_handlers((self,))

    async def start(self) -> None:
        """Listen.

        Raises:
            OptionError: the address cannot be listened at, or the certificate cannot be read.
        """
        settings = self.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        assert settings.grpc_port is not None
        if settings.workers == 1:  # else the supervisor has
            # What the system says, gRPC writes elsewhere.
            bound(settings.host, settings.grpc_port, "--grpc-port").close()
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
            ("grpc.so_reuseport", int(self.settings.workers > 1)),
            ("grpc.max_receive_message_length", bounds.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", bounds.header_bytes),
            ("grpc.absolute_max_metadata_size", bounds.header_bytes),
            ("grpc.server_handshake_timeout_ms", math.ceil(bounds.header_seconds * 1000)),
            ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _PING_MILLISECONDS),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MILLISECONDS),
        ]

    def service(self, details: Any) -> Any:
        """Return what answers a call, as gRPC asks for it before it reads the call's message."""
        method, fields = self._methods.get(details.method), dict(details.invocation_metadata)
        try:
            authorization = fields.get("authorization")
            if sum(name == "authorization" for name, _ in details.invocation_metadata) > 1:
                authorization = None
            access = "key" if method is None else method.access
            tenant = tenant_of(self.settings, access, authorization)
            if method is None:
                raise Unimplemented("there is no such method", remedy="reflection lists them")
        except Refusal as fault:
            return self._refusing(fault, method, fields)
        return self._answering(method, tenant, fields)

    def _refusing(self, fault: Refusal, method: Method | None, fields: Mapping[str, str]) -> Any:
        """Return what refuses a call without a look at its messages."""

        async def answer(contents: Any, context: Any) -> None:
            async with self._seen(context, method, fields):
                raise fault

        return self._grpc.stream_stream_rpc_method_handler(answer)

    def _answering(self, method: Method, tenant: str, fields: Mapping[str, str]) -> Any:
        """Return a method as gRPC knows it, for one call."""
        description, takes = method.description, method.takes

        async def read(content: bytes) -> Any:
            return await aside(len(content), lambda: _read(takes, content))

        async def read_all(contents: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
            async for content in contents:
                with self._holding(content):
                    yield await read(content)

        async def answer(content: bytes, context: Any) -> Any:
            async with self._seen(context, method, fields):
                call = self._call(context, tenant)
                with self._holding(content), Deadline(call.deadline()):
                    return await method.handle(await read(content), call)

        async def stream(content: bytes, context: Any) -> None:
            async with self._seen(context, method, fields):
                with self._holding(content):
                    await _write(method.handle(await read(content), self._call(context, tenant)), context)

        async def converse(contents: AsyncIterator[bytes], context: Any) -> None:
            async with self._seen(context, method, fields), aclosing(read_all(contents)) as requests:
                await _write(method.handle(requests, self._call(context, tenant)), context)

        if description.client_streaming:
            return self._grpc.stream_stream_rpc_method_handler(converse, None, method.write)
        if description.server_streaming:
            return self._grpc.unary_stream_rpc_method_handler(stream, None, method.write)
        return self._grpc.unary_unary_rpc_method_handler(answer, None, method.write)

    def _call(self, context: Any, tenant: str) -> Call:
        left = context.time_remaining()
        end = math.inf if left is None else asyncio.get_running_loop().time() + left
        return self._kind(end, self.settings.timeout_seconds, tenant)

    @contextmanager
    def _holding(self, content: bytes) -> Iterator[None]:
        """Count a message that has come, until it is answered.

        Raises:
            Overloaded: the messages that are there fill the memory for them.
        """
        share = Share(self._room)
        hold(share)
        try:
            share.charge(len(content))
            yield
        finally:
            share.release()

    @asynccontextmanager
    async def _seen(
        self, context: Any, method: Method | None, fields: Mapping[str, str]
    ) -> AsyncIterator[None]:
        """Have a call observed; what is raised becomes its status."""
        observed = self._observer.begin(GRPC)
        observed.route = "" if method is None else method.path
        observed.id, observed.status = self._ids.of(fields.get("x-request-id")), "CANCELLED"
        if self._observer.is_tracing:
            observed.traceparent = fields.get("traceparent", "")
            observed.tracestate = fields.get("tracestate", "")
        metadata: tuple[tuple[str, str], ...] = (("x-request-id", observed.id),)
        context.set_trailing_metadata(metadata)
        try:
            yield
            observed.status = "OK"
        except asyncio.CancelledError:
            if context.time_remaining() == 0:
                observed.status = "DEADLINE_EXCEEDED"
            raise
        except Exception as fault:
            refused = logged(fault, f"request {observed.id}")
            observed.status = refused.grpc
            observed.error, observed.message = type(fault).__name__, str(refused)
            if refused.retry_after is not None:
                # How long clients with a policy of retries wait, as gRPC has it.
                milliseconds = max(1, round(refused.retry_after * 1000))
                metadata += (("grpc-retry-pushback-ms", str(milliseconds)),)
            await context.abort(self._grpc.StatusCode[refused.grpc], str(refused), metadata)
        finally:
            self._observer.end(observed)


async def _write(responses: AsyncGenerator[Any, None], context: Any) -> None:
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


def _read(kind: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError:
        raise BadRequest(f"it is no {kind.DESCRIPTOR.full_name}") from None


def _content(path: Path) -> bytes:
    with open_regular(path, error=OptionError) as file:
        return file.read(_CERTIFICATE_BYTES)
