"""Educe's server against others, on one small model: requests each second and their times.

Each server runs alone in its process; they take turns, round after round, under a client that keeps 1 or 32
connections busy (wrk; h2load for gRPC, which MLServer and Triton speak as well). Peers need interpreters that
have them::

    python -m benchmarks.serving --peer fastapi=/path/to/python --peer litserve=/path/to/python
    python -m benchmarks.serving --grpc --peer triton=/path/to/python

Server files are in `benchmarks/servers`. Minimum, median and maximum over the rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.clients import Request, posted
from benchmarks.processes import ROOT, started, when_ready

SERVERS = Path(__file__).parent / "servers"
MODEL = ROOT / "zoo" / "breast_cancer" / "model.onnx"
NUM_FEATURES = 30
BODY = {
    "inputs": [
        {
            "name": "features",
            "shape": [1, NUM_FEATURES],
            "datatype": "FP32",
            "data": [index / 10 for index in range(NUM_FEATURES)],
        }
    ]
}
PATH = "/v2/models/model/infer"
REQUEST = posted(PATH, BODY)
# A server's port of gRPC lies as far above that of HTTP; in a command, the word stands for it.
GRPC_PORT, GRPC_ABOVE = "GRPC_PORT", 1000
METHOD = "/inference.GRPCInferenceService/ModelInfer"
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass
class Run:
    """What was measured of one server with one number of clients."""

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    failed: int = 0


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--grpc", action="store_true", help="ask over gRPC")
    options = parser.parse_args()
    client, package = ("h2load", "nghttp2-client") if options.grpc else ("wrk", "wrk")
    if shutil.which(client) is None:
        sys.exit(f"this needs {client}: apt-get install {package}")
    educe = [sys.executable, "-m", "educe", "serve", f"model={MODEL}"]
    if options.grpc:
        educe += ["--grpc-port", GRPC_PORT]
    commands = {"educe": [*educe, "--port"], "educe, 2 workers": [*educe, "--workers", "2", "--port"]}
    for peer in options.peer:
        name, _, interpreter = peer.partition("=")
        commands[name] = [interpreter, str(SERVERS / f"{name}_server.py")]
    runs = {(name, clients): Run() for name in commands for clients in options.clients}
    with tempfile.TemporaryDirectory() as folder:
        measure = _calls(Path(folder)) if options.grpc else _requests(Path(folder))
        for _ in range(options.rounds):
            for name, command in commands.items():
                with running(command) as url:
                    for clients in options.clients:
                        measure(runs[name, clients], url, clients, options.seconds)
    for clients in options.clients:
        print(
            f"\n{clients} clients           requests/s  min  median     max     p50 ms    p99 ms   to educe"
        )
        ours = statistics.median(runs["educe", clients].rates)
        for name in commands:
            run = runs[name, clients]
            middle = statistics.median(run.rates)
            print(
                f"{name:<20}{min(run.rates):>16,.0f}{middle:>8,.0f}{max(run.rates):>8,.0f}"
                f"{statistics.median(run.p50) * 1e3:>11.2f}{statistics.median(run.p99) * 1e3:>10.2f}"
                f"{ours / middle:>10.2f}x" + (f"   {run.failed} failed" if run.failed else "")
            )


Measure = Callable[[Run, str, int, int], None]
"""Keep so many connections to a server busy for some seconds, and take note of what came of it."""


def _requests(folder: Path) -> Measure:
    """Return what measures HTTP; the folder holds what wrk sends."""
    script, body = folder / "post.lua", json.dumps(BODY)
    script.write_text(
        f'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\nwrk.body=\'{body}\'\n'
    )

    def measure(run: Run, url: str, clients: int, seconds: int) -> None:
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(script), url + PATH]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        run.rates.append(float(re.search(r"Requests/sec: +([\d.]+)", output)[1]))  # type: ignore[index]
        for share, times in (("50%", run.p50), ("99%", run.p99)):
            number, unit = re.search(rf"{share} +([\d.]+)(us|ms|s)", output).groups()  # type: ignore[union-attr]
            times.append(float(number) * UNITS[unit])
        failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
        run.failed += int(failed[1]) if failed else 0
        if lost := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output):
            run.failed += sum(map(int, lost.groups()))

    return measure


def _calls(folder: Path) -> Measure:
    """Return what measures gRPC; the folder holds what h2load sends and writes.

    It counts answers by their HTTP status, which is 200 for errors as well: those have no message, so what
    all answers hold together tells how many there are.
    """
    import grpc

    from educe.serve.grpc import messages

    request = messages.inference("ModelInferRequest")(model_name="model")
    request.inputs.add(name="features", datatype="FP32", shape=[1, NUM_FEATURES])
    request.raw_input_contents.append(np.arange(NUM_FEATURES, dtype=np.float32).tobytes())
    message = request.SerializeToString()
    sent, log = folder / "message", folder / "log"
    sent.write_bytes(struct.pack(">BI", 0, len(message)) + message)

    def measure(run: Run, url: str, clients: int, seconds: int) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        address = f"{host}:{int(port) + GRPC_ABOVE}"
        with grpc.insecure_channel(address) as channel:
            answer = channel.unary_unary(METHOD)(message, timeout=5)
        log.unlink(missing_ok=True)
        output = subprocess.run(
            [
                *("h2load", "-t1", f"-c{clients}", f"-D{seconds}", "--log-file", str(log), "-d", str(sent)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{METHOD}"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        times = np.loadtxt(log, usecols=2) / 1e6
        run.rates.append(len(times) / seconds)
        run.p50.append(float(np.median(times)))
        run.p99.append(float(np.quantile(times, 0.99)))
        held = int(re.search(r"\((\d+)\) data", output)[1])  # type: ignore[index]
        run.failed += max(0, len(times) - held // (5 + len(answer)))

    return measure


def _free_port() -> int:
    """Return a port that is free, below those that the system gives to clients."""
    for port in random.sample(range(10_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("there is no free port")


@contextmanager
def running(
    command: Sequence[str],
    more: Mapping[str, str] | None = None,
    request: Request = REQUEST,
) -> Iterator[str]:
    """Run a server until it was measured.

    Args:
        command: What starts it, but for the port; `GRPC_PORT` is a port beside it.
        more: Of its environment, beside this process'.
        request: What it answers when it is ready: a path, a body, and header fields.

    Raises:
        SilentServerError: it ends, or is not ready in time.
        OSError: there is no such command.
    """
    port = _free_port()
    environment = {"MODEL_PATH": str(MODEL), "MODEL_SIZES": f"{NUM_FEATURES},2", **(more or {})}
    folder = ROOT if "educe" in command else SERVERS
    silent = subprocess.DEVNULL
    words = [str(port + GRPC_ABOVE) if word == GRPC_PORT else word for word in command]
    with started([*words, str(port)], folder, environment, stdout=silent, stderr=silent) as process:
        url = f"http://127.0.0.1:{port}"
        path, body, fields = request

        def answered() -> str:
            asked = urllib.request.Request(url + path, body, dict(fields))
            urllib.request.urlopen(asked, timeout=5).read()
            return url

        yield when_ready(process, answered)


if __name__ == "__main__":
    main()
