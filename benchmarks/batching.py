"""Educe's batches against those of others: photos to MobileNetV2, which come when they come.

Each peer's batcher is tuned first: of several sizes and delays the pair counts whose 99 % of the answers are
fastest at 70 % of what the best peer can do. Then, round after round, all take turns: the times at that
rate, and how many answers a second come within 50 ms at the rate at which most do. A peer that
does not start is told with the others. Peers need interpreters that have them::

    python -m benchmarks.batching --peer fastapi=/path/to/python --peer triton=/path/to/python

Server files are in `benchmarks/servers`. All run on all cores, and read the photos themselves.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection

from benchmarks.clients import PHOTO, Request, answer_of, answered_a_second, posted
from benchmarks.processes import ROOT, SilentServerError
from benchmarks.serving import SERVERS, running
from educe.bench.load import Load, Plan, run_load
from educe.bench.load_targets import Address
from educe.machine import usable_cores

MODEL = ROOT / "zoo" / "mobilenet_v2"
BOUND_SECONDS = 0.05
SHARE = 0.7
BATCHES, DELAYS_MS = (4, 16), (2, 10)
CLIENTS = 16
STEPS = (0.8, 1.0, 1.2, 1.4, 1.7, 2.1, 2.6)


def _triton() -> Request:
    size = len(PHOTO)
    photo = {"name": "photo", "shape": [1, size], "datatype": "UINT8"}
    head = json.dumps({"inputs": [{**photo, "parameters": {"binary_data_size": size}}]}).encode()
    return "/v2/models/model/infer", head + PHOTO, {"Inference-Header-Content-Length": str(len(head))}


_BASE64 = base64.b64encode(PHOTO).decode()
REQUESTS: Mapping[str, Request] = {
    "educe": ("/v1/models/model/predict", PHOTO, {"Content-Type": "image/jpeg"}),
    "fastapi": ("/classify", PHOTO, {"Content-Type": "image/jpeg"}),
    "litserve": posted("/classify", {"photo": _BASE64}),
    "bentoml": posted("/classify", {"photos": [_BASE64]}),
    "triton": _triton(),
}


@dataclass
class Server:
    """One server, as it is tuned, and what was measured of it, or why nothing was."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    shown: str = ""
    times: list[Load] = field(default_factory=list)
    goodputs: list[float] = field(default_factory=list)
    fault: str = ""

    def load(self, url: str, rate: float, seconds: float) -> Load:
        """Ask at a rate."""
        plan = Plan(rate, seconds, 1.0, BOUND_SECONDS, timeout_seconds=5.0)
        address = Address(url)
        return run_load(address.target([address.request(*REQUESTS[self.name])]), plan)

    def goodput(self, url: str, rate: float, seconds: float) -> float:
        """Return the most answers within the bound, a second, of all rates from some to more than can be."""
        found = 0.0
        for step in STEPS:
            now = self.load(url, rate * step, seconds).goodput
            if now < 0.7 * found:
                break
            found = max(found, now)
            time.sleep(0.5)
        return found

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Leave the block if it does not answer, and note why."""
        self.fault = ""
        try:
            yield
        except (SilentServerError, OSError) as fault:
            self.fault = str(fault)

    def running(self) -> AbstractContextManager[str]:
        """Run it."""
        return running(self.command, self.environment, REQUESTS[self.name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    tuned, capacities = [], []
    for peer in options.peer:
        name, _, interpreter = peer.partition("=")
        if name not in REQUESTS:
            parser.error(
                f"--peer: no server of {name!r} batches photos here; these are: {', '.join(REQUESTS)}"
            )
        settings = [(1, 1)] if name == "fastapi" else [*itertools.product(BATCHES, DELAYS_MS), (1, 1)]
        choices = [_peer(name, interpreter, *setting) for setting in settings]
        middle = choices[len(choices) // 2]
        with middle.noting(), middle.running() as url:
            capacities.append(answered_a_second(url, REQUESTS[name], CLIENTS, 5.0))
            print(f"{name}: at {CLIENTS} clients {capacities[-1]:.0f}/s")
        tuned.append([middle] if middle.fault else choices)
    if not capacities:
        sys.exit("no peer answers")
    rate = SHARE * max(capacities)
    print(f"rate: {rate:.0f}/s, of the best peer's {max(capacities):.0f}/s")
    command = [sys.executable, "-m", "educe", "serve", f"model={MODEL}"]
    servers = [
        Server("educe", [*command, "--port"], {}, "no target"),
        Server("educe", [*command, "--target-latency-ms", "50", "--port"], {}, "target 50 ms"),
        *(_best(choices, rate, options.seconds) for choices in tuned),
    ]
    for _ in range(options.rounds):
        for server in servers:
            if server.fault:
                continue
            with server.noting(), server.running() as url:
                server.load(url, rate, 2.0)
                server.times.append(server.load(url, rate, options.seconds))
                server.goodputs.append(server.goodput(url, rate, options.seconds / 2))
    _show(servers)
    _show_alone(command, options.rounds)


def _peer(name: str, interpreter: str, batch: int, delay_ms: int) -> Server:
    environment = {
        "MODEL_PATH": str(MODEL / "model.onnx"),
        "MODEL_THREADS": str(usable_cores()),
        "MAX_BATCH": str(batch),
        "DELAY_MS": str(delay_ms),
    }
    command = [interpreter, str(SERVERS / f"{name}_pictures.py")]
    shown = "" if name == "fastapi" else f"{batch} within {delay_ms} ms" if batch > 1 else "no batches"
    return Server(name, command, environment, shown)


def _best(choices: Sequence[Server], rate: float, seconds: float) -> Server:
    """Return the choice whose slowest answers are fastest; if none answers, the last."""
    found: dict[float, Server] = {}
    for choice in choices:
        slowest = math.inf
        with choice.noting(), choice.running() as url:
            choice.load(url, rate / 2, 1.0)
            load = choice.load(url, rate, seconds / 2)
            if load.num_ok >= 0.95 * load.num_requests:
                slowest = load.latency["p99"]
        found[slowest] = choice
        shown = "refuses too much" if slowest == math.inf else f"p99 {slowest * 1e3:8.1f} ms"
        print(f"  {choice.name:<10}{choice.shown:<18} {shown}")
    return found[min(found)]


def _show(servers: Sequence[Server]) -> None:
    print(f"\n{'':<30}{'p50 ms':>8}{'p99 ms  min':>13}{'median':>8}{'max':>8}{'refused':>9}{'goodput/s':>11}")
    for server in servers:
        if server.fault:
            print(f"{server.name:<12}{server.shown:<18}{server.fault}")
            continue
        slowest = [load.latency.get("p99", math.inf) * 1e3 for load in server.times]
        middle = statistics.median(load.latency.get("p50", math.inf) for load in server.times) * 1e3
        refused = sum(load.num_requests - load.num_ok for load in server.times)
        share = refused / sum(load.num_requests for load in server.times)
        print(
            f"{server.name:<12}{server.shown:<18}{middle:>8.1f}{min(slowest):>13.1f}"
            f"{statistics.median(slowest):>8.1f}{max(slowest):>8.1f}{share:>9.1%}"
            f"{statistics.median(server.goodputs):>11.0f}"
        )


def _show_alone(command: Sequence[str], rounds: int) -> None:
    """Print how long one client alone waits, with batches and without; each for some requests in its turn."""
    times: dict[str, list[float]] = {"batches": [], "none": []}
    with (
        Server("educe", [*command, "--port"], {}).running() as batches,
        Server("educe", [*command, "--max-batch", "1", "--port"], {}).running() as none,
    ):
        for turn in range(20 * rounds):
            for label, url in (("batches", batches), ("none", none)):
                found = _alone(url, 20)
                times[label] += found if turn else []
    medians = {label: statistics.median(found) for label, found in times.items()}
    shown, ratio = medians["batches"] * 1e3, medians["batches"] / medians["none"]
    print(f"\none client, median: {shown:.2f} ms with batches, {ratio:.3f}x that without")


def _alone(url: str, count: int) -> list[float]:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    found = []
    for _ in range(count):
        start = time.perf_counter()
        answer_of(connection, REQUESTS["educe"])
        found.append(time.perf_counter() - start)
    connection.close()
    return found


if __name__ == "__main__":
    main()
