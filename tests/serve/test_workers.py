"""A server of several processes looks like one, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeAlias

import onnx.parser
import pytest

from educe.errors import EduceError, EngineError, MissingLibraryError, OptionError
from educe.generate.statistics import Statistics as GeneratorStatistics
from educe.serve import ModelSource, Server, ServerSettings
from educe.serve.faults import Overloaded
from educe.serve.snapshot import ModelSnapshot, Snapshot, total
from educe.serve.statistics import Histogram
from educe.serve.workers.seat import Seat
from educe.serve.workers.shares import share_of
from educe.serve.workers.supervisor import Supervisor
from educe.serve.workers.worker import Worker
from tests.conftest import ROOT
from tests.serve.conftest import Client, until
from tests.serve.ends import lost_at_the_end, sent, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

UntilHolds: TypeAlias = Callable[[Callable[[], bool]], Awaitable[None]]

SECONDS = 60
THREADS = 4
ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
INFER = "/v2/models/spam/infer"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one version of a model."""
    folder = tmp_path_factory.mktemp("versions") / "spam"
    shutil.copytree(ROOT / "zoo" / "breast_cancer", folder / "1")
    return folder


@contextmanager
def workers(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    command = [sys.executable, "-m", "educe", "serve", f"spam={model}", "--workers", "2", *arguments]
    running = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stderr is not None
    try:
        line = next(line for line in running.stderr if "http://" in line)
        port = re.search(r"gRPC at port (\d+)", line)
        yield running, Client(line.split()[0], int(port[1]) if port else None)
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait(SECONDS)
        running.stderr.close()


@asynccontextmanager
async def supervised(model: Path, num: int) -> AsyncIterator[tuple[list[Seat], UntilHolds]]:
    """Have some workers serve a model, and yield their seats, and what waits until something holds."""
    end, started = asyncio.Event(), asyncio.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        supervisor = Supervisor([ModelSource("spam", model)], ServerSettings(workers=num), listener)
        running = asyncio.create_task(supervisor.run(started.set, end))

        async def until_holds(is_true: Callable[[], bool]) -> None:
            wait_until = time.monotonic() + SECONDS
            while not is_true():
                assert not running.done()
                assert time.monotonic() < wait_until
                await asyncio.sleep(0.02)

        await asyncio.wait_for(started.wait(), SECONDS)
        yield supervisor._seats, until_holds
        end.set()
        await asyncio.wait_for(running, SECONDS)


def children(running: subprocess.Popen[str]) -> list[int]:
    return [
        int(each) for each in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    ]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def halt(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    state = Path(f"/proc/{process}/stat")
    until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def counted(client: Client, metric: str) -> dict[str, float]:
    """Return the values of a metric by their labels."""
    text = client.ask("GET", "/metrics")[2].decode()
    return {labels: float(value) for labels, value in re.findall(rf"^{metric}({{.*}})? (\S+)$", text, re.M)}


def answered(client: Client) -> float:
    return counted(client, "educe_requests_total")['{model="spam",outcome="ok"}']


def both_answer(client: Client) -> bool:
    before = counted(client, "educe_worker_requests_total")
    for _ in range(2):
        client.ask("GET", "/livez")
    after = counted(client, "educe_worker_requests_total")
    return all(after[worker] - before[worker] >= 1 for worker in before) and len(before) == 2


@contextmanager
def asking(client: Client, method: str, path: str, body: Any = None) -> Iterator[list[int]]:
    """Ask again and again from several threads, and collect the statuses; 0 is a connection that was lost."""
    seen: list[int] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                seen.append(client.ask(method, path, body)[0])
            except (ConnectionError, HTTPException):
                seen.append(0)
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        for thread in threads:
            thread.join(SECONDS)


def test_one_that_takes_anothers_place_serves_the_version_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "spam"
    shutil.copytree(ROOT / "zoo" / "breast_cancer", folder / "1")

    def versions() -> set[str]:
        return {client.json("POST", INFER, ROW)["model_version"] for _ in range(6)}

    with workers(folder, "--admin") as (running, client):

        def replace_one() -> None:
            os.kill(children(running)[0], signal.SIGKILL)
            until(lambda: len(children(running)) == 2 and is_whole())

        def is_whole() -> bool:
            try:
                return both_answer(client)
            except (ConnectionError, HTTPException):  # the connection was given to the one that was killed
                return False

        shutil.copytree(folder / "1", folder / "2")
        (folder / "3").mkdir()
        (folder / "3" / "model.onnx").write_bytes(b"nonsense")
        replace_one()
        assert versions() == {"1"}
        until(lambda: client.ask("GET", "/readyz")[0] == 200)
        shutil.rmtree(folder / "3")
        client.json("POST", "/v2/repository/models/spam/load", {})
        shutil.copytree(folder / "1", folder / "4")
        replace_one()
        assert versions() == {"2"}


def test_options_that_a_model_does_not_take_end_a_server_of_several(model: Path) -> None:
    command = [sys.executable, "-m", "educe", "serve", str(model), "--workers", "2", "--port", "0"]
    done = subprocess.run([*command, "--engine", "natve"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--engine: the model 'spam': there is no engine 'natve'" in " ".join(done.stderr.split())


def test_workers_look_like_one_server(model: Path) -> None:
    with workers(model, "--admin", "--grpc-port", "0") as (running, client):
        for _ in range(20):
            client.json("POST", INFER, ROW)
        assert client.ask("GET", "/readyz")[0] == 200
        by_worker = counted(client, "educe_worker_requests_total")
        assert set(by_worker) == {'{worker="0"}', '{worker="1"}'}
        assert min(by_worker.values()) >= 10
        for _ in range(2):  # whichever answers
            assert answered(client) == 20
            stats = client.json("GET", "/v2/models/spam/stats")["model_stats"][0]
            assert stats["inference_stats"]["success"]["count"] == 20

        # What is done with a model is done by all.
        client.json("POST", "/v2/repository/models/spam/unload", {})
        assert {client.ask("POST", INFER, ROW)[0] for _ in range(4)} == {503}

        # One that takes another's place knows of it, and of what that one has counted.
        first, other = children(running)
        with asking(client, "GET", "/livez") as seen:
            until(lambda: len(seen) > 50)
            os.kill(first, signal.SIGKILL)
            until(lambda: len(children(running)) == 2 and first not in children(running))
            until(lambda: both_answer(client))
        assert set(seen) <= {200, 0}
        assert seen.count(0) <= THREADS
        assert other in children(running)
        assert answered(client) == 20
        assert {client.ask("POST", INFER, ROW)[0] for _ in range(4)} == {503}

        client.json("POST", "/v2/repository/models/spam/load", {})
        assert {client.ask("POST", INFER, ROW)[0] for _ in range(4)} == {200}
        shutil.copytree(model / "1", model / "2")
        client.json("POST", "/v2/repository/models/spam/load", {})
        assert {client.json("POST", INFER, ROW)["model_version"] for _ in range(4)} == {"2"}

        # A version that none can load is refused, and changes nothing.
        (model / "3").mkdir()
        status, _, content = client.ask("POST", "/v2/repository/models/spam/load", {})
        assert status == 400, content
        assert {client.json("POST", INFER, ROW)["model_version"] for _ in range(4)} == {"2"}
        for version in "23":
            shutil.rmtree(model / version)
        assert_grpc(client)

        # Without the supervisor, none goes on.
        processes = children(running)
        running.kill()
        running.wait(SECONDS)
        until(lambda: not any(map(lives, processes)))


def assert_grpc(client: Client) -> None:
    grpc = pytest.importorskip("grpc")
    for _ in range(4):
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(client.grpc_address, options) as channel:
            found = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=SECONDS)
            assert found == b"\x08\x01"
    # What one of them is told to do with a model is done by all, whatever way it was told.
    name = b"\x12\x04spam"  # field 2, model_name
    with grpc.insecure_channel(client.grpc_address) as channel:
        for action, status in (("Unload", 503), ("Load", 200)):
            ask = channel.unary_unary(f"/inference.GRPCInferenceService/RepositoryModel{action}")
            ask(name, timeout=SECONDS)
            assert {client.ask("POST", INFER, ROW)[0] for _ in range(4)} == {status}


def test_no_request_that_was_taken_is_lost(model: Path) -> None:
    with workers(model) as (running, client):
        processes = children(running)

        def end() -> None:
            for process in (*processes, running.pid):  # as service managers do, who tell all
                os.kill(process, signal.SIGTERM)

        assert not lost_at_the_end(client, [(INFER, ROW)] * 3, end)
        assert running.wait(SECONDS) == 0
        assert not any(map(lives, processes))


def test_requests_that_are_not_read_yet_are_answered_at_the_end(model: Path) -> None:
    with workers(model) as (running, client):
        processes = children(running)
        kept = [sent(client, INFER, ROW) for _ in range(4)]
        for connection in kept:
            assert status(connection) == 200
        for each in processes:
            halt(each)
        for connection in kept:
            connection.request("POST", INFER, json.dumps(ROW))
        handed_over = [sent(client, INFER, ROW) for _ in range(20)]
        time.sleep(0.2)
        halt(running.pid)
        waiting = [sent(client, INFER, ROW) for _ in range(20)]
        running.send_signal(signal.SIGTERM)
        for each in (running.pid, *processes):
            os.kill(each, signal.SIGCONT)
        asked = [*kept, *handed_over, *waiting]
        assert {status(connection) for connection in asked} == {200}
        for connection in asked:
            connection.close()
        assert running.wait(SECONDS) == 0


def test_a_second_signal_ends_workers_at_once(model: Path) -> None:
    with workers(model) as (running, client):
        host, _, port = client.address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v2/models/spam/infer HTTP/1.1\r\nHost: localhost\r\n")
            connection.sendall(b"Content-Length: 9\r\n\r\n")
            time.sleep(0.2)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0


def test_workers_that_cannot_start_end_the_server(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**os.environ, "PYTHONHOME": str(model)}
    monkeypatch.setattr("educe.serve.workers.seat._environment", lambda workers: broken)
    with pytest.raises(EngineError, match=r"worker \d ended with status 1 while it started"):
        Server([ModelSource("spam", model)], ServerSettings(port=0, workers=2)).run()


def test_an_address_that_is_taken_is_said(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options in ({"port": port}, {"port": 0, "grpc_port": port}):
            server = Server([ModelSource("spam", model)], ServerSettings(workers=2, **options))
            with pytest.raises(OptionError, match="in use"):
                server.run()


def test_totals_are_divided(model: Path) -> None:
    limits = ServerSettings().server_limits
    settings = ServerSettings(workers=4, max_waiting=100, memory_bytes=2**30, cache_bytes=2**20)
    sources = [ModelSource("spam", model, {"memory_bytes": 2**20}), ModelSource("other", model)]
    shared, each = share_of(sources, settings)
    assert (each.max_waiting, each.memory_bytes, each.cache_bytes) == (25, 2**28, 2**18)
    assert each.server_limits.num_connections == limits.num_connections // 4
    assert each.server_limits.bodies_bytes == limits.bodies_bytes // 4
    assert [source.options for source in shared] == [{"memory_bytes": 2**18}, {}]
    with pytest.raises(OptionError, match="workers"):
        ServerSettings(workers=0)
    with pytest.raises(OptionError, match="9999 processes"):
        ServerSettings(workers=9999)


def test_numbers_of_processes_are_added() -> None:
    def one(worker: int) -> Snapshot:
        generator = GeneratorStatistics(
            num_running=1, num_waiting=2, num_blocks=8, num_used_blocks=4, block_size=16, num_tokens=5
        )
        found = ModelSnapshot("1", True, 100, 2, 1, generator=generator)
        found.statistics.answered(0.1, 0.2)
        found.statistics.ran(2, 0.2)
        found.statistics.failed(ValueError())
        times = Histogram()
        times.add(0.5)
        process = {"process_start_time_seconds": 10.0 + worker, "process_cpu_seconds_total": 3.0, "rss": 7.0}
        return Snapshot(
            {"spam": found},
            Counter({("GET", "/livez", 200): 2}),
            {(False, "/livez"): times},
            Counter({worker: 2}),
            process,
        )

    whole = total([one(0), one(1), one(0).past()])
    spam = whole.models["spam"]
    assert (spam.version, spam.is_ready, spam.memory_bytes) == ("1", True, 100)
    assert (spam.num_waiting, spam.num_running) == (4, 2)
    assert spam.statistics.num_answered == spam.statistics.whole.count == 3
    assert spam.statistics.failures == {"ValueError": 3}
    assert spam.statistics.batches == {2: (3, pytest.approx(0.6))}
    assert spam.generator is not None
    assert (spam.generator.num_tokens, spam.generator.num_blocks, spam.generator.block_size) == (15, 16, 16)
    assert whole.requests == {("GET", "/livez", 200): 6}
    assert whole.seconds[False, "/livez"].count == 3
    assert whole.workers == {0: 4, 1: 2}
    assert whole.process == {
        "process_start_time_seconds": 10.0,
        "process_cpu_seconds_total": 9.0,
        "rss": 14.0,
    }


@pytest.mark.parametrize(
    "error",
    [
        OptionError("no", path="a", place="b", remedy="c"),
        MissingLibraryError("grpcio", extra="grpc", purpose="gRPC"),
        Overloaded("full", retry_after=2.0),
    ],
)
def test_errors_go_from_process_to_process(error: EduceError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.__dict__ == error.__dict__


def test_a_worker_that_cannot_be_started_is_tried_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, num_starts = asyncio.create_subprocess_exec, 0

    async def failing(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal num_starts
        num_starts += 1
        if num_starts == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)

    async def run() -> None:
        async with supervised(model, 1) as ((seat,), until_holds):
            assert seat.process is not None
            assert b"educe worker 0" in Path(f"/proc/{seat.process.pid}/cmdline").read_bytes()
            seat.process.kill()
            await until_holds(lambda: num_starts >= 3 and seat.has_started)

    asyncio.run(run())


def test_a_worker_that_is_silent_takes_no_connections_and_is_replaced_at_last(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.serve.workers.seat._ASK_SECONDS", 0.1)
    monkeypatch.setattr("educe.serve.workers.seat._ANSWER_SECONDS", 0.5)

    async def run() -> None:
        async with supervised(model, 2) as ((halted, other), until_holds):
            first = halted.process
            assert first is not None
            halt(first.pid)
            await until_holds(lambda: not halted.is_open)
            await until_holds(lambda: other.is_open)
            os.kill(first.pid, signal.SIGCONT)
            await until_holds(lambda: halted.is_open)
            assert halted.process is first
            halt(first.pid)
            await until_holds(lambda: halted.process is not first and halted.is_open)
            assert not lives(first.pid)

    asyncio.run(run())


def test_a_worker_in_which_a_run_hangs_is_replaced(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        endless (int64[n] count, float[n] x) => (float[n] y) {
            most = ReduceMax <keepdims = 0> (count)
            on = Constant <value = bool {1}> ()
            y = Loop (most, on, x) <body = again (int64 i, bool on_0, float[n] a) => (bool on_1, float[n] b) {
                on_1 = Identity (on_0)
                b = Sin (a)
            }>
        }"""
    )
    onnx.save(graph, tmp_path / "model.onnx")

    def asked(count: int) -> dict[str, Any]:
        count_of = {"name": "count", "shape": [1], "datatype": "INT64", "data": [count]}
        return {"inputs": [count_of, {"name": "x", "shape": [1], "datatype": "FP32", "data": [0.5]}]}

    with workers(tmp_path, "--timeout-s", "3") as (running, client):
        before = children(running)
        until(lambda: client.ask("POST", INFER, asked(2))[0] == 200)
        assert client.ask("POST", INFER, asked(2**62))[0] == 504
        until(lambda: not set(before) <= set(children(running)))
        until(lambda: client.ask("GET", "/readyz")[0] == 200 and both_answer(client))
        for _ in range(4):
            until(lambda: client.ask("POST", INFER, asked(2))[0] == 200)
        assert len(set(before) & set(children(running))) == 1


def test_a_connection_that_is_one_file_too_many_leaves_those_that_follow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[socket.socket] = []

    async def take() -> None:
        giving, taking = socket.socketpair(type=socket.SOCK_SEQPACKET)
        lost, found = socket.socketpair()
        link = socket.socket()
        worker = Worker(0, link, taking)
        adopted = asyncio.Event()

        class Taking:
            def adopt(self, connection: socket.socket) -> None:
                taken.append(connection)
                adopted.set()

        free = os.dup(lost.fileno())
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with giving, taking, lost, found, link:
            socket.send_fds(giving, [b"\0"], [lost.fileno()])
            socket.send_fds(giving, [b"\0"], [found.fileno()])
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                worker.accept(Taking())  # type: ignore[arg-type]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert not taken
            await asyncio.wait_for(adopted.wait(), SECONDS)
            asyncio.get_running_loop().remove_reader(taking)
            for each in taken:
                assert each.getsockname() == found.getsockname()
                each.close()

    asyncio.run(take())
    assert len(taken) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "a connection is lost: too many files are open"
    ]
