"""`Supervisor` and `Worker`: a server of several processes at one address, which look like one.

The supervisor starts the workers, each a `Server` of its own, accepts the connections of HTTP, and hands
each to the next worker in turn. Left to accept for themselves, one of them would take most of those that come
at once, and what waited for one that ends would be lost. gRPC opens its own sockets, and its connections are
spread over them by the kernel (``SO_REUSEPORT``). A worker that ends is replaced.

Workers are new interpreters and no forks: threads, event loops, gRPC and OpenMP do not survive a fork, and
who starts a server from Python may have any of them, as the supervisor has when it replaces a worker. What is
large, the weights, is mapped from files, and shared in either case.

A pair of sockets joins the supervisor to each worker. What concerns all of them goes through it: loading,
unloading, readiness, numbers, log entries, the end. Its messages are pickled, since both ends are one
program of one user. A worker whose supervisor is gone ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import pickle
import platform
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from educe.errors import EduceError, EngineError, OptionError
from educe.machine import usable_cores
from educe.serve.faults import BadRequest, Refusal
from educe.serve.http.listener import BACKLOG, Listener
from educe.serve.opening import ModelSource
from educe.serve.repository import Repository
from educe.serve.settings import ServerSettings
from educe.serve.snapshot import Snapshot, total
from educe.settings import SHARE, THREADS

_LOG = logging.getLogger("educe.serve")
_LENGTH_BYTES = 8
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 1.0
# A worker that ends sooner than this is replaced later each time.
_STEADY_SECONDS = 30.0
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0
# What a worker may take beyond the time that its requests have.
_END_SECONDS = 5.0
# What a worker's process runs; its arguments are its name, the numbers of its two sockets, and the path.
_BEGIN = (
    "import sys; _, link, connections, *sys.path[:] = sys.argv[1:]; "
    "from educe.serve.workers import work; work(int(link), int(connections))"
)

Action: TypeAlias = Literal["load", "unload"]


@dataclass(frozen=True)
class _Beginning:
    """What a worker is told first."""

    index: int
    sources: tuple[ModelSource, ...]
    settings: ServerSettings
    log_level: int


@dataclass(frozen=True)
class _Join:
    """A worker asks which models were unloaded, and is asked what all are asked from now on."""


@dataclass(frozen=True)
class _Started:
    """A worker has loaded what it can."""


@dataclass(frozen=True)
class _Failed:
    """A worker cannot go on."""

    error: EduceError


@dataclass(frozen=True)
class _Readiness:
    """Whether all models answer: of a worker, and from the supervisor of all of them."""

    is_ready: bool


@dataclass(frozen=True)
class _Apply:
    """What is to be done with a model: by all, and from the supervisor by one."""

    action: Action
    model: str


@dataclass(frozen=True)
class _Look:
    """The numbers are asked for; a worker that asks for those of all brings its own."""

    own: Snapshot | None = None


@dataclass(frozen=True)
class _End:
    """The server ends, or ends at once."""

    is_hurried: bool


class Link:
    """One end of what joins two processes: each asks and tells the other.

    Args:
        reader: What the other sends.
        writer: What goes to it.
        handle: Answers its messages.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._reader, self._writer, self._handle = reader, writer, handle
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @classmethod
    async def open(cls, end: socket.socket, handle: Callable[[Any], Awaitable[Any]]) -> Link:
        """Return the link over one of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end), handle)

    def tell(self, message: Any) -> None:
        """Send a message that has no answer; one to an end that is gone is lost."""
        self._send(0, False, message)

    async def ask(self, message: Any) -> Any:
        """Send a message, and return its answer.

        Raises:
            ConnectionError: the other end is gone.
            EduceError: what the other end raised.
        """
        if self._is_closed:
            raise ConnectionResetError
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, False, message)
            return await answer
        finally:
            del self._asked[number]

    async def run(self) -> None:
        """Answer the other end until it is gone."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "little")
                number, is_answer, message = pickle.loads(await self._reader.readexactly(length))
                if is_answer:
                    self._take(number, message)
                else:
                    task = asyncio.create_task(self._answer(number, message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._is_closed = True
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError())
            self._writer.close()

    async def _answer(self, number: int, message: Any) -> None:
        try:
            found = await self._handle(message)
        except EduceError as fault:
            found = fault
        except Exception:
            _LOG.exception("a message of another process could not be answered")
            found = EngineError("it failed at it, and the log says more")
        if number:
            self._send(number, True, found)

    def _take(self, number: int, message: Any) -> None:
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return
        if isinstance(message, EduceError):
            answer.set_exception(message)
        else:
            answer.set_result(message)

    def _send(self, number: int, is_answer: bool, message: Any) -> None:
        if self._is_closed:
            return
        content = pickle.dumps((number, is_answer, message))
        self._writer.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)


@dataclass(eq=False)
class _Seat:
    """The place of a worker, which one process after the other has."""

    index: int
    link: Link | None = None
    connections: socket.socket | None = None
    process: asyncio.subprocess.Process | None = None
    has_joined: bool = False
    has_started: bool = False
    is_ready: bool = False
    is_replacement: bool = False
    error: EduceError | None = None
    last: Snapshot | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes connections: in place of another only when it has loaded the models."""
        return self.has_started if self.is_replacement else self.has_joined

    def take(self, connection: socket.socket) -> bool:
        """Hand a connection to the process, and say whether it could be."""
        if not self.is_open or self.connections is None:
            return False
        try:
            socket.send_fds(self.connections, [b"\0"], [connection.fileno()])
        except OSError:  # it is gone, or too many wait for it
            return False
        return True


class Supervisor:
    """What starts the workers, replaces those that end, and joins them.

    Args:
        sources: The models.
        settings: The server's; bounds that are totals are divided among the workers.
        listener: The socket of HTTP, bound; it is closed when the server ends.

    Raises:
        OptionError: this system cannot have workers, or the address of gRPC cannot be listened at.
    """

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServerSettings, listener: socket.socket
    ) -> None:
        if platform.system() != "Linux":
            raise OptionError(
                "servers of several processes need Linux", place="workers", remedy="leave it out"
            )
        self._listener = listener
        self._grpc = None if settings.grpc_port is None else _reserve(settings.host, settings.grpc_port)
        self.grpc_port = None if self._grpc is None else self._grpc.getsockname()[1]
        self._sources, self._settings = _shares(sources, replace(settings, grpc_port=self.grpc_port))
        self._seats = [_Seat(index) for index in range(settings.workers)]
        self._starting = len(self._seats)
        self._started, self._ending = asyncio.Event(), asyncio.Event()
        self._unloaded: set[str] = set()
        self._applying = asyncio.Lock()
        self._past = Snapshot()

    async def run(self, when_started: Callable[[], object], end: asyncio.Event) -> None:
        """Have the workers serve until `end` is set and their requests have ended.

        Args:
            when_started: Called when all workers have started.
            end: Tells the end.

        Raises:
            EduceError: a worker cannot start.
        """
        keepers = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        accepting = asyncio.create_task(self._accept())
        events = [asyncio.create_task(event.wait()) for event in (self._started, end)]
        try:
            await _first([*events, accepting, *keepers])
            if self._started.is_set() and not end.is_set():
                when_started()
                await _first([events[1], accepting, *keepers])
            accepting.cancel()
            self._listener.close()
            self._ending.set()
            self._tell_all(_End(False))
            await asyncio.wait(keepers, timeout=self._settings.drain_seconds + _END_SECONDS)
        finally:
            self._ending.set()
            for seat in self._seats:
                _kill(seat.process)
            for task in (accepting, *events):
                task.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            if self._grpc is not None:
                self._grpc.close()

    def hurry(self) -> None:
        """Let no worker wait for its requests."""
        self._tell_all(_End(True))

    async def _accept(self) -> None:
        """Hand each connection to a worker."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        turns = itertools.cycle(self._seats)
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:  # too many files are open, or the client has gone
                await asyncio.sleep(_POLL_SECONDS)
                continue
            with connection:
                while not any(seat.take(connection) for seat in itertools.islice(turns, len(self._seats))):
                    await asyncio.sleep(_POLL_SECONDS / 10)

    async def _keep(self, seat: _Seat) -> None:
        """Have a process in a seat as long as the server runs."""
        delay = _FIRST_DELAY
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                how = await self._sit(seat)
            except OSError as fault:  # of memory, processes or files
                how = f"could not be started: {os.strerror(fault.errno or 0).lower()}"
            if self._ending.is_set():
                return
            if not self._started.is_set():
                raise seat.error or EngineError(
                    f"worker {seat.index} {how} while it started", remedy="see what it wrote before"
                )
            delay = _FIRST_DELAY if time.monotonic() - began > _STEADY_SECONDS else delay
            _LOG.error("worker %d %s; another takes its place in %g s", seat.index, how, delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _sit(self, seat: _Seat) -> str:
        """Start a process in a seat, and return how it ended."""
        own, other = socket.socketpair()
        giving, taking = socket.socketpair(type=socket.SOCK_SEQPACKET)
        giving.setblocking(False)
        try:
            with other, taking:
                seat.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _BEGIN,
                    f"educe worker {seat.index}",
                    *(str(each.fileno()) for each in (other, taking)),
                    *sys.path,
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(other.fileno(), taking.fileno()),
                    env=_environment(len(self._seats)),
                    # What a terminal tells all of its processes is for the supervisor alone.
                    start_new_session=True,
                )
            seat.link = await Link.open(own, lambda message: self._handle(seat, message))
            seat.connections = giving
            seat.link.tell(_Beginning(seat.index, self._sources, self._settings, _LOG.getEffectiveLevel()))
            if self._ending.is_set():  # and all others are told already
                seat.link.tell(_End(False))
            await seat.link.run()
            status = await seat.process.wait()
        finally:
            _kill(seat.process)
            if seat.link is None:
                own.close()
            giving.close()
            seat.link, seat.connections, seat.is_replacement = None, None, self._started.is_set()
            seat.has_joined, seat.has_started, seat.is_ready = False, False, False
            if seat.last is not None:
                self._past, seat.last = total([self._past, seat.last.past()]), None
            self._tell_readiness()
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    async def _handle(self, seat: _Seat, message: Any) -> Any:
        """Answer a worker."""
        match message:
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
            case _Failed():
                seat.error = message.error
            case _Join():
                async with self._applying:
                    seat.has_joined = True
                    return set(self._unloaded)
            case _Started():
                seat.has_started = True
                self._tell_readiness()
                if not seat.is_replacement:
                    self._starting -= 1
                    if self._starting == 0:
                        self._started.set()
            case _Readiness():
                seat.is_ready = message.is_ready
                self._tell_readiness()
            case _Apply():
                return await self._apply(message)
            case _Look():
                return await self._look(seat, message.own)
        return None

    def _tell_readiness(self) -> None:
        found = [seat.is_ready for seat in self._seats if seat.is_open or not seat.is_replacement]
        self._tell_all(_Readiness(all(found) and bool(found)))

    def _tell_all(self, message: Any) -> None:
        for seat in self._seats:
            if seat.link is not None:
                seat.link.tell(message)

    async def _apply(self, message: _Apply) -> None:
        """Have all workers load or unload a model.

        Raises:
            BadRequest: one could not.
        """
        async with self._applying:
            seats = [seat for seat in self._seats if seat.has_joined and seat.link is not None]
            asked = [seat.link.ask(message) for seat in seats if seat.link is not None]
            found = await asyncio.gather(*asked, return_exceptions=True)
            faults = {
                seat.index: fault.cause
                for seat, fault in zip(seats, found, strict=True)
                if isinstance(fault, EduceError)
            }
            if not faults or message.action == "unload":
                (self._unloaded.add if message.action == "unload" else self._unloaded.discard)(message.model)
        if len(faults) == len(seats) and faults:
            raise BadRequest(next(iter(faults.values())))
        if faults:
            raise BadRequest("; ".join(f"worker {index}: {cause}" for index, cause in faults.items()))

    async def _look(self, asking: _Seat, own: Snapshot | None) -> Snapshot:
        """Return the numbers of all workers; of one that does not answer, those that it said last."""

        async def ask(seat: _Seat) -> None:
            if seat.link is not None and seat is not asking:
                with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                    seat.last = await asyncio.wait_for(seat.link.ask(_Look()), _ANSWER_SECONDS)

        asking.last = own
        await asyncio.gather(*map(ask, (seat for seat in self._seats if seat.has_joined)))
        return total([self._past, *(seat.last for seat in self._seats if seat.last is not None)])


class Worker:
    """A worker's side of what joins it to the others.

    Args:
        index: Its number.
        end: Its socket to the supervisor.
        connections: Where connections come from.

    Attributes:
        are_ready: Whether all models of all workers answer at once.
    """

    def __init__(self, index: int, end: socket.socket, connections: socket.socket) -> None:
        self._index, self._end, self._connections = index, end, connections
        self.are_ready = False
        self._adopting: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def repository(
        self, sources: Sequence[ModelSource], settings: ServerSettings, pool: Executor
    ) -> Repository:
        """Return the models of this process, which are loaded and unloaded with those of all others."""
        self._repository = SharedRepository(sources, settings, pool, self)
        return self._repository

    async def join(
        self, own: Callable[[], Snapshot], end: Callable[[], object], hurry: Callable[[], object]
    ) -> None:
        """Belong to the others from now on.

        Args:
            own: Returns the numbers of this process.
            end: Called when the server ends.
            hurry: Called when it ends at once.
        """
        self._own, self._told, self._hurry = own, end, hurry
        self._link = await Link.open(self._end, self._handle)
        logging.getLogger("educe").addHandler(_Forwarding(self._link, self._index))
        self._tasks = [asyncio.create_task(each) for each in (self._run(), self._watch())]
        with contextlib.suppress(ConnectionError):
            for name in await self._link.ask(_Join()):
                await Repository.unload(self._repository, name)

    def accept(self, listener: Listener) -> None:
        """Let a listener have the connections that this worker is handed."""
        loop = asyncio.get_running_loop()
        self._connections.setblocking(False)

        def take() -> None:
            try:
                content, found, *_ = socket.recv_fds(self._connections, 1, 1)
            except BlockingIOError:
                return
            if not content:
                loop.remove_reader(self._connections)
            for descriptor in found:
                task = loop.create_task(listener.adopt(socket.socket(fileno=descriptor)))
                self._adopting.add(task)
                task.add_done_callback(self._adopting.discard)

        loop.add_reader(self._connections, take)

    def started(self) -> None:
        """Say that the models are loaded."""
        gc.collect()
        gc.freeze()  # collections need not look at what the models are made of again and again
        self._link.tell(_Started())

    async def apply(self, action: Action, model: str) -> None:
        """Have all workers load or unload a model, this one among them.

        Raises:
            BadRequest: one of them cannot.
        """
        try:
            await self._link.ask(_Apply(action, model))
        except ConnectionError:
            raise BadRequest("the server ends") from None

    async def whole(self, own: Snapshot) -> Snapshot:
        """Return the numbers of all workers, of which this one's are given."""
        try:
            found: Snapshot = await self._link.ask(_Look(self._counted(own)))
        except ConnectionError:
            return own
        return found

    def _counted(self, own: Snapshot) -> Snapshot:
        own.workers[self._index] = own.requests.total()
        return own

    async def _handle(self, message: Any) -> Any:
        match message:
            case _Apply():
                act = Repository.load if message.action == "load" else Repository.unload
                try:
                    await act(self._repository, message.model)
                except Refusal as fault:
                    raise BadRequest(fault.cause) from None
            case _Look():
                return self._counted(self._own())
            case _Readiness():
                self.are_ready = message.is_ready
            case _End():
                (self._hurry if message.is_hurried else self._told)()
        return None

    async def _run(self) -> None:
        await self._link.run()
        self._told()  # the supervisor is gone

    async def _watch(self) -> None:
        """Tell of each change of this process's readiness."""
        said = None
        while True:
            is_ready = self._repository.are_ready_here
            if is_ready != said:
                self._link.tell(_Readiness(is_ready))
                said = is_ready
            await asyncio.sleep(_POLL_SECONDS)


class SharedRepository(Repository):
    """The models of a worker, which are loaded and unloaded with those of all others."""

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServerSettings, pool: Executor, worker: Worker
    ) -> None:
        super().__init__(sources, settings, pool)
        self._worker = worker

    @property
    def are_ready_here(self) -> bool:
        """Whether the models of this process answer at once."""
        return super().are_ready

    @property
    def are_ready(self) -> bool:
        """Whether all models of all workers answer at once."""
        return self.are_ready_here and self._worker.are_ready

    async def load(self, name: str) -> None:
        """Have all workers load a model; see `Repository.load`."""
        self.entry(name)
        await self._worker.apply("load", name)

    async def unload(self, name: str) -> None:
        """Have all workers take a model out of use; see `Repository.unload`."""
        self.entry(name)
        await self._worker.apply("unload", name)


class _Forwarding(logging.Handler):
    """Has the supervisor log what a worker logs."""

    def __init__(self, link: Link, index: int) -> None:
        super().__init__()
        self._link, self._index = link, index
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"worker {self._index}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        sent = logging.makeLogRecord({**record.__dict__, "msg": text, "args": None, "exc_info": None})
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._link.tell, sent)


def work(link: int, connections: int) -> None:
    """Be a worker; `Supervisor` starts a process with this.

    Args:
        link: The number of the socket to the supervisor.
        connections: The number of the socket from which connections come.
    """
    # The supervisor tells the end; what a service manager sends to all processes would end requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from educe.serve.server import Server

    end = socket.socket(fileno=link)
    with end.makefile("rb", buffering=0) as file:
        length = int.from_bytes(_exactly(file, _LENGTH_BYTES), "little")
        _, _, beginning = pickle.loads(_exactly(file, length))
    logging.getLogger("educe.serve").setLevel(beginning.log_level)
    try:
        worker = Worker(beginning.index, end, socket.socket(fileno=connections))
        Server(beginning.sources, beginning.settings, worker).run(lambda url: worker.started())
    except EduceError as error:
        content = pickle.dumps((0, False, _Failed(error)))
        with contextlib.suppress(OSError):
            end.setblocking(True)
            end.sendall(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
        sys.exit(error.exit_status)


def _exactly(file: Any, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = file.read(size - len(found))
        if not part:
            sys.exit(0)  # the supervisor is gone
        found += part
    return found


def _environment(workers: int) -> dict[str, str]:
    """Return the variables of a worker, which has its share of the cores, and shares its models' weights."""
    threads = THREADS.value() or str(max(1, usable_cores() // workers))
    return {**os.environ, SHARE.variable: "1", THREADS.variable: threads}


def _shares(
    sources: Sequence[ModelSource], settings: ServerSettings
) -> tuple[tuple[ModelSource, ...], ServerSettings]:
    """Return what one of the workers is to serve, and its share of what is bounded in all."""

    def share(whole: int) -> int:
        return max(1, whole // settings.workers)

    def with_share(source: ModelSource) -> ModelSource:
        whole = source.options.get("memory_bytes")
        if whole is None:
            return source
        return replace(source, options={**source.options, "memory_bytes": share(whole)})

    bounds = settings.server_limits
    return tuple(map(with_share, sources)), replace(
        settings,
        max_waiting=share(settings.max_waiting),
        memory_bytes=None if settings.memory_bytes is None else share(settings.memory_bytes),
        cache_bytes=None if settings.cache_bytes is None else share(settings.cache_bytes),
        server_limits=replace(
            bounds,
            bodies_bytes=max(bounds.body_bytes, share(bounds.bodies_bytes)),
            num_connections=share(bounds.num_connections),
        ),
    )


def _reserve(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port for the workers' gRPC, and does not listen itself.

    Raises:
        OptionError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            # Two servers of one user would share the port without a word.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = alone.getsockname()[1]
        kept = socket.socket(family, socket.SOCK_STREAM)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind((host, port))
    except OSError as fault:
        raise OptionError(
            f"cannot listen at {host}:{port}: {os.strerror(fault.errno or 0).lower()}",
            remedy="give another --grpc-port, or end what listens there",
        ) from None
    return kept


def _kill(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until one of some tasks is done, and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
