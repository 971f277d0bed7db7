"""`Server`: the models behind HTTP, from the first that is loaded to the last request that is answered."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from typing import TYPE_CHECKING

from educe.errors import OptionError
from educe.serve.core import Core
from educe.serve.http.listener import Listener
from educe.serve.opening import ModelSource, distinct
from educe.serve.settings import ServerSettings
from educe.serve.signals import ENDING, signals_kept
from educe.serve.sockets import bound, raise_descriptors
from educe.serve.turns import short_turns

if TYPE_CHECKING:
    from educe.serve.grpc.server import GrpcServer
    from educe.serve.workers.worker import Worker


class Server:
    """Models behind HTTP.

    Args:
        sources: The models.
        settings: All else.
        worker: What joins this process to the others of a server of several; None if it is the only one.

    Attributes:
        grpc_port: The port at which gRPC is listened at, from when the server answers; None without gRPC.
    """

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServerSettings, worker: Worker | None = None
    ) -> None:
        self.sources, self.settings = distinct(sources), settings
        self._worker = worker
        self.grpc_port: int | None = None
        self._is_stopped = False
        self._end: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, when_ready: Callable[[str], object] = lambda url: None) -> None:
        """Serve until the process is told to end, by SIGINT or SIGTERM, or `stop` is called.

        The process may have as many open files as its hard limit allows from then on. What it did at
        signals, it does again after.

        Args:
            when_ready: Called with the server's URL when it answers.

        Raises:
            OptionError: an address cannot be listened at, the certificate cannot be used, or a model does
                not take an option, or never fits into the memory.
            MissingLibraryError: gRPC is wanted, and not installed.
            EngineError: a worker ended while it started.
        """
        raise_descriptors()
        settings, is_alone = self.settings, self._worker is None
        listening = bound(settings.host, settings.port, "--port") if is_alone else nullcontext()
        with signals_kept(), short_turns(), listening as listener:
            if listener is not None and settings.workers > 1:
                serving = self._supervise(listener, when_ready)
            else:
                serving = self._serve(listener, when_ready)
            try:
                import uvloop
            except ImportError:
                asyncio.run(serving)
            else:
                uvloop.run(serving)

    def stop(self) -> None:
        """Let the requests that are there end, and return from `run`; safe from any thread, at any time."""
        self._is_stopped = True
        if self._loop is not None and self._end is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end.set)

    def _begin(self) -> None:
        """Let `stop` reach the loop."""
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        if self._is_stopped:
            self._end.set()

    async def _supervise(self, listener: socket.socket, when_ready: Callable[[str], object]) -> None:
        """Have workers serve."""
        from educe.serve.workers.supervisor import Supervisor

        self._begin()
        self._tls()
        supervisor = Supervisor(self.sources, self.settings, listener)
        self.grpc_port = supervisor.grpc_port
        self._listen_to_signals(supervisor.hurry)
        url = self._url(listener)
        assert self._end is not None
        await supervisor.run(lambda: when_ready(url), self._end)

    async def _serve(self, listener: socket.socket | None, when_ready: Callable[[str], object]) -> None:
        self._begin()
        with closing(Core(self.sources, self.settings, self._worker)) as core:
            await self._answer(core, listener, when_ready)

    async def _answer(
        self, core: Core, listener: socket.socket | None, when_ready: Callable[[str], object]
    ) -> None:
        """Answer requests until the end is told and those that are there are answered."""
        assert self._end is not None
        worker = self._worker
        http = Listener(core.app, core.room, self._tls())
        grpc = self._grpc(core)
        hurrying: list[asyncio.Task[None]] = []

        def hurry() -> None:
            http.hurry()
            if grpc is not None:
                hurrying.append(asyncio.ensure_future(grpc.stop(0)))

        if worker is None:
            self._listen_to_signals(hurry)
        else:
            await worker.join(core.repository, core.own_snapshot, self._end.set, hurry)
        loading = asyncio.create_task(core.repository.load_all())
        ending = asyncio.create_task(self._end.wait())
        try:
            await http.start(listener)
            if worker is not None:
                worker.accept(http)
            if grpc is not None:
                await grpc.start()
                self.grpc_port = grpc.port
            await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                when_ready("" if listener is None else self._url(listener))
            await ending
        finally:
            loading.cancel()
            ending.cancel()
            drain = self.settings.drain_seconds
            await asyncio.gather(http.stop(drain), *([grpc.stop(drain)] if grpc else []))

    def _listen_to_signals(self, hurry: Callable[[], object]) -> None:
        """End at the first signal when all requests have ended, at the second one at once, by `hurry`."""
        assert self._loop is not None
        assert self._end is not None
        loop, end = self._loop, self._end

        def told() -> None:
            if end.is_set():
                hurry()
            end.set()

        with suppress(ValueError, NotImplementedError, RuntimeError):  # not in the main thread
            # Else a client that goes while it is answered would end the process.
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            for number in ENDING:
                loop.add_signal_handler(number, told)

    def _url(self, listener: socket.socket) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        scheme = "http" if self.settings.certificate is None else "https"
        return f"{scheme}://{host}:{listener.getsockname()[1]}"

    def _tls(self) -> ssl.SSLContext | None:
        settings = self.settings
        if settings.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.certificate, settings.private_key)
        except OSError:  # which a fault of TLS is, too
            raise OptionError(
                "the certificate or its private key cannot be used",
                path=settings.certificate,
                place="certificate",
                remedy="give both as PEM files that belong together",
            ) from None
        return context

    def _grpc(self, core: Core) -> GrpcServer | None:
        if self.settings.grpc_port is None:
            return None
        from educe.serve.grpc.server import GrpcServer

        return GrpcServer(core.inference, core.observer, core.snapshot, core.room)
