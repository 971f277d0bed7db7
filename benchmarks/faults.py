"""What a server does beside a normal load when clients, models or its end are unkind.

Each prints a table, and ends with status 1 if it misses a bar::

    python -m benchmarks.faults slow       # connections that send or read slowly, or nothing
    python -m benchmarks.faults aborted    # connections that are given up at every phase
    python -m benchmarks.faults reloads    # new versions under load, broken ones among them
    python -m benchmarks.faults ending     # SIGTERM under load
    python -m benchmarks.faults soak       # memory over minutes of mixed requests
    python -m benchmarks.faults overload   # four times of what can be answered

Clients that are unkind have a process of their own; Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import ROOT
from educe.bench.load import Load, Plan, run_load
from educe.bench.load_targets import Address, file

PHOTO = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()
PREDICT = "/v1/models/mobilenet_v2/predict"
INFER = "/v2/models/breast_cancer/infer"
ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
MODELS = ("zoo/mobilenet_v2", "zoo/breast_cancer", "zoo/stories260K")
MOST_RATIO = 1.5
BOUND_SECONDS = 0.05
CLIENTS = 8
ROUNDS, REST_SECONDS = 40, 2.0
MOST_GROWTH = 1.01
RAMP_SECONDS, SLOW_SECONDS = 6.0, 3.0
MOST_MORE_DESCRIPTORS = 8
PHASES = ("connected", "header", "body", "queued", "running", "stream")


@dataclass(frozen=True)
class Running:
    """A server's process.

    Attributes:
        process: The process.
        url: Its URL.
    """

    process: subprocess.Popen[bytes]
    url: str

    @property
    def host(self) -> str:
        """The host and the port."""
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.host.rpartition(":")[2])

    @property
    def descriptors(self) -> int:
        """How many files and connections are open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def rss_mib(self) -> float:
        """The memory, in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def cpu_seconds(self) -> float:
        """How long it has computed."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kept(self) -> dict[str, int]:
        """Return what memory is kept, of a server that is weighed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        found: dict[str, int] = json.loads(self.process.stdout.readline())
        return found

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        connection = HTTPConnection(self.host, timeout=60)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body)
            kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
            connection.request(method, path, content, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def serving(*arguments: str, is_weighed: bool = False) -> Iterator[Running]:
    """Run `educe serve` until it was measured."""
    module, environment = "educe", dict(os.environ)
    if is_weighed:
        # What threads keep for later would count as in use: it grows until each has met all sizes.
        module, environment["GLIBC_TUNABLES"] = "benchmarks.weighed", "glibc.malloc.tcache_count=0"
    command = [sys.executable, "-m", module, "serve", *arguments, "--port", "0"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=log) as process,
    ):
        try:
            yield Running(process, _url(process, log))
        finally:
            process.kill()


def _url(process: subprocess.Popen[bytes], log: Any) -> str:
    while process.poll() is None:
        text = os.pread(log.fileno(), 2**16, 0).decode()
        if found := [word for word in text.split() if word.startswith("http://")]:
            return found[0]
        time.sleep(0.05)
    raise RuntimeError("the server did not start")


@contextmanager
def unkind(attack: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run clients in another process meanwhile, which ends by itself or with this."""
    process = multiprocessing.get_context("spawn").Process(target=attack, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(timeout=60)
        process.kill()
        process.join()


def capacity(server: Running) -> float:
    """Return how many photos a second are answered if some clients always wait for one, once all is warm."""
    _asked(server, 6.0)
    return _asked(server, 4.0)


def _asked(server: Running, seconds: float) -> float:
    end, counts = time.monotonic() + seconds, [0] * CLIENTS

    def ask(index: int) -> None:
        connection = HTTPConnection(server.host, timeout=60)
        while time.monotonic() < end:
            with suppress(HTTPException, OSError):
                connection.request("POST", PREDICT, PHOTO, {"Content-Type": "application/octet-stream"})
                answer = connection.getresponse()
                answer.read()
                counts[index] += answer.status == 200
        connection.close()

    _together(ask, CLIENTS)
    return sum(counts) / seconds


def photos(server: Running, rate: float, seconds: float) -> Load:
    """Return what comes of photos that are sent at a rate."""
    plan = Plan(rate, seconds, warmup_seconds=1.0, within_seconds=BOUND_SECONDS)
    return run_load(file(Address(server.url), "mobilenet_v2", PHOTO), plan)


def slow(options: argparse.Namespace) -> dict[str, Any]:
    """Measure beside connections that hold what they get."""
    return _beside(options, _hold, "slow")


def aborted(options: argparse.Namespace) -> dict[str, Any]:
    """Measure beside connections that are given up."""
    return _beside(options, _abort, "aborted")


def _beside(options: argparse.Namespace, attack: Callable[..., None], name: str) -> dict[str, Any]:
    with serving(*MODELS) as server:
        rate = capacity(server) / 2
        photos(server, rate, 2.0)
        alone = photos(server, rate, options.seconds)
        descriptors, rss = server.descriptors, server.rss_mib
        with unkind(attack, server.port, options.connections, options.seconds + RAMP_SECONDS + 2):
            time.sleep(RAMP_SECONDS + 2)
            most = server.descriptors
            beside = photos(server, rate, options.seconds)
            most = max(most, server.descriptors)
        left = _until(lambda: server.descriptors, descriptors + MOST_MORE_DESCRIPTORS, 60.0)
        before = server.cpu_seconds
        time.sleep(1.0)
        busy = server.cpu_seconds - before
        ratio = beside.latency["p99"] / alone.latency["p99"]
        return {
            "photos a second": round(rate, 1),
            "p99 alone, ms": alone.latency["p99"] * 1e3,
            f"p99 beside {name} connections, ms": beside.latency["p99"] * 1e3,
            "ratio": ratio,
            "failed": sum(beside.errors.values()),
            "descriptors before": descriptors,
            "descriptors, most seen": most,
            "descriptors after": left,
            "MiB before": rss,
            "MiB after": server.rss_mib,
            "busy afterwards, of a second": busy,
            "missed": _missed(
                ratio=ratio <= MOST_RATIO,
                failed=not beside.errors,
                descriptors=left <= descriptors + MOST_MORE_DESCRIPTORS,
                idle=busy < 0.2,
            ),
        }


def _hold(port: int, count: int, seconds: float) -> None:
    """Hold connections of four kinds for some seconds; those that are closed are opened again."""
    _raise_descriptors()

    async def one(index: int, end: float) -> None:
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % INFER.encode()
        starts = (b"", head, head + b"Content-Length: 1000\r\n\r\n", _get("/openapi.json"))
        await asyncio.sleep(random.random() * RAMP_SECONDS)
        while time.monotonic() < end:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
                with suppress(OSError):
                    writer.write(starts[index % 4])
                    while time.monotonic() < end and not (reader.at_eof() or writer.is_closing()):
                        if index % 4 in (1, 2):
                            writer.write(b"a")
                        await asyncio.sleep(SLOW_SECONDS)
                writer.transport.abort()

    async def all_of_them() -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(one(index, end) for index in range(count)))

    asyncio.run(all_of_them())


def _abort(port: int, count: int, seconds: float) -> None:
    """Give up connections at every phase, by turns with and without a reset, spread over some seconds."""
    body = json.dumps({"model": "stories260K", "prompt": "Once", "max_tokens": 200, "stream": True}).encode()
    photo = _post(PREDICT, PHOTO, "application/octet-stream")
    contents = {
        "connected": b"",
        "header": photo[:40],
        "body": photo[:5000],
        "queued": photo,
        "running": photo,
        "stream": _post("/v1/completions", body, "application/json"),
    }
    start = time.monotonic()

    def some(worker: int) -> None:
        for index in range(worker, count, CLIENTS):
            time.sleep(max(0.0, start + seconds * index / count - time.monotonic()))
            phase = PHASES[index % len(PHASES)]
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                if (index // len(PHASES)) % 2:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(contents[phase])
                if phase == "running":
                    time.sleep(0.01)
                elif phase == "stream":
                    connection.recv(100)

    _together(some, CLIENTS)


def reloads(options: argparse.Namespace) -> dict[str, Any]:
    """Replace a model's versions while clients ask; each answer has to be of the version that it names."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name) / "constant", Counter[str]()
        folder.mkdir()
        _put(folder, 1, "good")
        with serving(str(folder), "--admin") as server:
            is_over = threading.Event()

            def ask(index: int) -> None:
                connection = HTTPConnection(server.host, timeout=60)
                rows = index + 1
                tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [1.0] * rows}
                body = json.dumps({"inputs": [tensor]})
                while not is_over.is_set():
                    connection.request(
                        "POST", "/v2/models/constant/infer", body, {"Content-Type": "application/json"}
                    )
                    answer = connection.getresponse()
                    content = json.loads(answer.read())
                    found["answers"] += 1
                    if answer.status != 200:
                        found["failed"] += 1
                    elif content["outputs"][0]["data"] != [float(content["model_version"])] * rows:
                        found["mixed"] += 1
                connection.close()

            clients = threading.Thread(target=_together, args=(ask, 4))
            clients.start()
            for version in range(2, options.reloads + 2):
                kinds = ("garbage", "truncated", "missing", "other inputs")
                kind = kinds[version // 4 % 4] if version % 4 == 0 else "good"
                _put(folder, version, kind)
                status, _ = server.ask("POST", "/v2/repository/models/constant/load", {})
                found[f"{kind}: {status}"] += 1
                found["wrong status"] += (status == 200) != (kind == "good")
                if kind != "good":
                    shutil.rmtree(folder / str(version))
            is_over.set()
            clients.join()
        good = {name: not found[name] for name in ("failed", "mixed", "wrong status")}
        return {**{key: found[key] for key in (*good, *found)}, "missed": _missed(**good)}


def _put(folder: Path, version: int, kind: str) -> None:
    """Put a version into a model's folder, at once."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    name = "z" if kind == "other inputs" else "x"
    nodes = [helper.make_node("Mul", [name, "factor"], ["y"])]
    kinds = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", 1]) for each in (name, "y")]
    factor = numpy_helper.from_array(np.array([version], np.float32), "factor")
    graph = helper.make_graph(nodes, "constant", kinds[:1], kinds[1:], [factor])
    content = onnx.ModelProto.SerializeToString(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    broken = {"garbage": b"nonsense" * 20, "truncated": content[: len(content) // 2]}
    hidden = folder / f".{version}"
    hidden.mkdir()
    if kind != "missing":
        (hidden / "model.onnx").write_bytes(broken.get(kind, content))
    hidden.rename(folder / str(version))


def ending(options: argparse.Namespace) -> dict[str, Any]:
    """End the server while it is asked: what was sent whole before has to be answered."""
    found = Counter[str]()
    for _ in range(options.rounds):
        with serving(*MODELS) as server:
            told, sent = [float("inf")], list[tuple[float, bool]]()

            def ask(index: int, server: Running = server, sent: list[tuple[float, bool]] = sent) -> None:
                connection = HTTPConnection(server.host, timeout=60)
                path, body = (PREDICT, PHOTO) if index % 2 else (INFER, json.dumps(ROW).encode())
                kind = "application/octet-stream" if index % 2 else "application/json"
                while True:
                    moment = float("inf")
                    try:
                        connection.request("POST", path, body, {"Content-Type": kind})
                        moment = time.monotonic()
                        answer = connection.getresponse()
                        answer.read()
                        sent.append((moment, answer.status == 200))
                    except (HTTPException, OSError):
                        connection.close()
                        sent.append((moment, False))
                        return

            clients = threading.Thread(target=_together, args=(ask, CLIENTS))
            clients.start()
            time.sleep(2.0)
            told[0] = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            found["status not 0"] += server.process.wait(60) != 0
            found["slowest end, ms"] = max(
                found["slowest end, ms"], round((time.monotonic() - told[0]) * 1e3)
            )
            clients.join()
            found["answered"] += sum(is_ok for _, is_ok in sent)
            found["lost"] += sum(moment < told[0] and not is_ok for moment, is_ok in sent)
    good = {"lost": not found["lost"], "status": not found["status not 0"]}
    return {"rounds": options.rounds, "lost": 0, "status not 0": 0, **found, "missed": _missed(**good)}


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for minutes, rightly, wrongly and without waiting; the memory may not grow.

    It is weighed at rests between rounds, by what the C library and Python have in use: so a byte of each
    request shows, where the resident memory has holes between what is kept, of which there are the more the
    longer it runs, though ever more slowly. It shows in turn what was never theirs. The first half of the
    rounds fills what is kept for later.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    with serving(*MODELS, "--grpc-port", str(grpc_port), is_weighed=True) as server:
        seconds, found = 60 * options.minutes / ROUNDS, Counter[str]()
        story = {"model": "stories260K", "max_tokens": 20, "stream": True}
        requests: Sequence[tuple[str, Any]] = (
            (INFER, ROW),
            (PREDICT, PHOTO),
            ("/v1/chat/completions", {**story, "messages": [{"role": "user", "content": "Once"}]}),
            ("/v1/completions", {**story, "prompt": "Once"}),
            (INFER, {"inputs": []}),
            (PREDICT, b"no picture"),
            ("/v2/models/none/infer", ROW),
        )
        calls = [_caller(grpc_port) for _ in range(3)]

        def ask(index: int) -> None:
            call, end = calls[index], time.monotonic() + seconds
            while time.monotonic() < end:
                found[call(("breast_cancer", "none")[index % 2])] += 1
                path, body = requests[index % len(requests)]
                index += 1
                with suppress(OSError, HTTPException):
                    found[str(server.ask("POST", path, body)[0])] += 1

        asked, kept, resident = list[float](), list[dict[str, int]](), list[float]()
        for _ in range(ROUNDS):
            with unkind(_abort, server.port, int(20 * seconds), seconds):
                _together(ask, len(calls))
            time.sleep(REST_SECONDS)
            asked.append(found.total())
            kept.append(server.kept())
            resident.append(server.rss_mib)
        half = ROUNDS // 2
        trends = {name: trend(asked[half:], [each[name] for each in kept[half:]]) for name in kept[0]}
        bounds = ("", ", 2.5 %", ", 97.5 %")
        return {
            **{f"answers {status}": count for status, count in sorted(found.items())},
            "resident MiB after half": resident[half],
            "resident MiB at the end": resident[-1],
            **{
                f"{name} a request{bound}": value
                for name, values in trends.items()
                for bound, value in zip(bounds, values, strict=True)
            },
            "missed": _missed(
                **{name: low <= 0 for name, (_, low, _) in trends.items()},
                resident=resident[-1] <= MOST_GROWTH * resident[half],
                answers=found.keys() <= {"200", "400", "404", "422", "OK", "NOT_FOUND"},
            ),
        }


def _caller(port: int) -> Callable[[str], str]:
    """Return what asks a model of tables over gRPC, and returns the status."""
    import grpc

    from educe.serve.grpc import messages

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def call(model: str) -> str:
        request = messages.inference("ModelInferRequest")(model_name=model)
        tensor = request.inputs.add(name="features", datatype="FP32", shape=[1, 30])
        tensor.contents.fp32_contents.extend([0.5] * 30)
        try:
            method(request.SerializeToString())
        except grpc.RpcError as fault:
            return str(fault.code().name)
        return "OK"

    return call


def trend(places: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of values over ascending places, and the bounds of its 95 % interval.

    It is the median of the slopes between any two, which a few values beside the others do not move (Sen
    1968); its interval supposes that what lies beside the line is independent.
    """
    x, y = np.asarray(places, float), np.asarray(values, float)
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    reach = 1.96 * math.sqrt(len(x) * (len(x) - 1) * (2 * len(x) + 5) / 18)
    low = max(0, math.floor((len(slopes) - reach) / 2))
    return float(np.median(slopes)), float(slopes[low]), float(slopes[-1 - low])


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Ask four times what can be answered."""
    with serving("zoo/mobilenet_v2", "--target-latency-ms", str(BOUND_SECONDS * 1e3)) as server:
        most = capacity(server)
        photos(server, most / 2, 2.0)
        peak = max(photos(server, share * most, 6.0).goodput for share in (0.7, 0.85, 1.0, 1.2))
        before = photos(server, 0.8 * most, 10.0)
        during = photos(server, 4 * most, options.seconds)
        time.sleep(4.0)
        after = photos(server, 0.8 * most, 10.0)
        refused = sum(during.errors.get(status, 0) for status in ("429", "503"))
        return {
            "capacity, photos a second": most,
            "peak goodput a second": peak,
            "goodput a second": during.goodput,
            "p99 at 80 %, ms": before.latency["p99"] * 1e3,
            "p99 of the admitted, ms": during.latency["p99"] * 1e3,
            "p99 of refusals, ms": during.refusal.get("p99", 0.0) * 1e3,
            "refused": refused,
            "with Retry-After": during.num_retry_after,
            "p99 afterwards, ms": after.latency["p99"] * 1e3,
            "p99 of late sending, ms": during.late["p99"] * 1e3,
            "missed": _missed(
                goodput=during.goodput >= 0.9 * peak,
                admitted=during.latency["p99"] <= 2 * before.latency["p99"],
                refusals=during.refusal.get("p99", 0.0) <= 0.02,
                retry_after=during.num_retry_after == refused,
                others=sum(during.errors.values()) == refused,
                afterwards=after.latency["p99"] <= MOST_RATIO * before.latency["p99"],
            ),
        }


def _together(ask: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _until(measure: Callable[[], int], most: int, seconds: float) -> int:
    """Return a number as soon as it is small enough, or after some seconds."""
    end = time.monotonic() + seconds
    while (found := measure()) > most and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _missed(**good: bool) -> list[str]:
    return [name for name, is_good in good.items() if not is_good]


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _post(path: str, body: bytes, kind: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _raise_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Print a table."""
    scenarios = (slow, aborted, reloads, ending, soak, overload)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenario", choices=[each.__name__ for each in scenarios])
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--reloads", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    _raise_descriptors()
    found = {each.__name__: each for each in scenarios}[options.scenario](options)
    for name, value in found.items():
        shown = (
            f"{value:.3f}" if isinstance(value, float) else ", ".join(value) if name == "missed" else value
        )
        print(f"{name:<42}{shown or 'nothing' if name == 'missed' else shown:>14}")
    if options.json is not None:
        options.json.write_text(json.dumps({options.scenario: found}, indent=1))
    sys.exit(bool(found["missed"]))


if __name__ == "__main__":
    main()
