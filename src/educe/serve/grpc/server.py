"""`GrpcServer`: gRPC beside HTTP, in the same event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from educe.errors import MissingLibraryError, OptionError
from educe.files import open_regular
from educe.serve.access import tenant_of
from educe.serve.deadline import Deadline
from educe.serve.faults import BadRequest, DeadlineExceeded, Refusal, Unimplemented, logged
from educe.serve.grpc.memory import memory_bytes
from educe.serve.inference import Inference
from educe.serve.observation import GRPC, Observed, RequestIds
from educe.serve.observer import Observer
from educe.serve.room import BodyRoom, Share
from educe.serve.settings import READER_SECONDS
from educe.serve.snapshot import Snapshot
from educe.serve.sockets import bound
from educe.serve.threads import aside

if TYPE_CHECKING:
    from pathlib import Path

    from educe.serve.grpc.methods import Call, Method

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"
"""What stands beside a call's messages: names and values."""

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
        self._grpc, self._kind = grpc, Call
        self._is_ending = False
        health = Health(lambda: inference.is_ready, lambda: self._is_ending)
        methods = [*InferenceService(inference, snapshot).methods(), *health.methods()]
        methods += [method for name in REFLECTIONS for method in Reflection(name).methods()]
        self._methods = {method.path: method for method in methods}
        self._rpcs = {method.path: self._rpc(method) for method in methods}
        self._observer, self._ids, self._room = observer, RequestIds(), room
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
        method = self._methods.get(details.method)
        try:
            self._tenant(method, details.invocation_metadata)
            if method is None:
                raise Unimplemented("there is no such method", remedy="reflection lists them")
        except Refusal as fault:
            return self._refusing(fault, method)
        return self._rpcs[details.method]

    def _tenant(self, method: Method | None, metadata: Metadata) -> str:
        """Return who asks, as `tenant_of` does."""
        access = "key" if method is None else method.access
        given = [value for name, value in metadata if name == "authorization"]
        return tenant_of(self.settings, access, given[0] if len(given) == 1 else None)

    def _refusing(self, fault: Refusal, method: Method | None) -> Any:
        """Return what refuses a call without a look at its messages."""

        async def answer(contents: Any, context: Any) -> None:
            async with self._seen(method, context):
                raise fault

        return self._grpc.stream_stream_rpc_method_handler(answer)

    def _rpc(self, method: Method) -> Any:
        """Return a method as gRPC knows it: all read streams, as those alone let a message be waited for."""
        description, takes = method.description, method.takes

        async def read(content: bytes, share: Share) -> Any:
            share.charge(len(content) + memory_bytes(content, takes))
            return await aside(len(content), lambda: _read(takes, content))

        async def received(context: Any, share: Share) -> Any:
            return await read(await self._message(context), share)

        async def read_all(contents: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
            async for content in contents:
                with Share(self._room) as share:
                    yield await read(content, share)

        async def answer(contents: Any, context: Any) -> Any:
            async with self._seen(method, context):
                call = self._call(method, context)
                with Share(self._room) as share, Deadline(call.deadline()):
                    return await method.handle(await received(context, share), call)

        async def stream(contents: Any, context: Any) -> None:
            async with self._seen(method, context):
                with Share(self._room) as share:
                    responses = method.handle(await received(context, share), self._call(method, context))
                    await self._write(responses, context)

        async def converse(contents: AsyncIterator[bytes], context: Any) -> None:
            async with self._seen(method, context), aclosing(read_all(contents)) as requests:
                await self._write(method.handle(requests, self._call(method, context)), context)

        if description.client_streaming:
            return self._grpc.stream_stream_rpc_method_handler(converse, None, method.write)
        if description.server_streaming:
            return self._grpc.stream_stream_rpc_method_handler(stream, None, method.write)
        return self._grpc.stream_unary_rpc_method_handler(answer, None, method.write)

    async def _message(self, context: Any) -> bytes:
        """Wait for the message of a call that has one.

        Raises:
            BadRequest: it has none.
            DeadlineExceeded: it does not come.
        """
        seconds = self.settings.server_limits.receiving_seconds(None)
        with Deadline(asyncio.get_running_loop().time() + seconds):
            content = await context.read()
        if content is self._grpc.aio.EOF:
            raise BadRequest("the call has no message")
        found: bytes = content
        return found

    async def _write(self, responses: AsyncGenerator[Any, None], context: Any) -> None:
        """Send responses, as long as the client reads what is sent."""
        loop = asyncio.get_running_loop()
        async with aclosing(responses):
            async for response in responses:
                try:
                    with Deadline(loop.time() + READER_SECONDS):
                        await context.write(response)
                except DeadlineExceeded:
                    raise DeadlineExceeded("what was sent is not read in time") from None
                except self._grpc.aio.InternalError:  # the client has gone
                    raise asyncio.CancelledError from None

    def _call(self, method: Method, context: Any) -> Call:
        left = context.time_remaining()
        end = math.inf if left is None else asyncio.get_running_loop().time() + left
        tenant = self._tenant(method, context.invocation_metadata())
        return self._kind(end, self.settings.timeout_seconds, tenant)

    def _seen(self, method: Method | None, context: Any) -> _Seen:
        """Have a call observed."""
        observed, fields = self._observer.begin(GRPC), dict(context.invocation_metadata())
        observed.route = "" if method is None else method.path
        observed.id, observed.status = self._ids.of(fields.get("x-request-id")), "CANCELLED"
        if self._observer.is_tracing:
            observed.traceparent = fields.get("traceparent", "")
            observed.tracestate = fields.get("tracestate", "")
        return _Seen(self._observer, observed, context, self._grpc.StatusCode)


class _Seen:
    """An ``async with`` block that is a call as it is observed: what is raised in it becomes the status.

    Args:
        observer: What sees it end.
        observed: What is known of it.
        context: The call, as gRPC has it.
        codes: gRPC's statuses, by name.
    """

    __slots__ = ("_codes", "_context", "_metadata", "_observed", "_observer")

    def __init__(self, observer: Observer, observed: Observed, context: Any, codes: Any) -> None:
        self._observer, self._observed, self._context, self._codes = observer, observed, context, codes
        self._metadata: Metadata = (("x-request-id", observed.id),)

    async def __aenter__(self) -> None:
        self._context.set_trailing_metadata(self._metadata)

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        observed, metadata = self._observed, self._metadata
        del trace  # of which gRPC would keep the frames that hold the request, by those of `abort`
        try:
            if fault is None:
                observed.status = "OK"
            elif isinstance(fault, Exception):
                refused = logged(fault, f"request {observed.id}")
                observed.status = refused.grpc
                observed.error, observed.message = type(fault).__name__, str(refused)
                if refused.retry_after is not None:
                    # How long clients with a policy of retries wait, as gRPC has it.
                    milliseconds = max(1, round(refused.retry_after * 1000))
                    metadata += (("grpc-retry-pushback-ms", str(milliseconds)),)
                await self._context.abort(self._codes[refused.grpc], str(refused), metadata)
            elif isinstance(fault, asyncio.CancelledError) and self._context.time_remaining() == 0:
                observed.status = "DEADLINE_EXCEEDED"
        finally:
            self._observer.end(observed)


def _read(kind: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError:
        raise BadRequest(f"it is no {kind.DESCRIPTOR.full_name}") from None


def _content(path: Path) -> bytes:
    with open_regular(path, error=OptionError) as file:
        return file.read(_CERTIFICATE_BYTES)
