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
import json
import math
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clients import PHOTO, Request, answer_of, answered_a_second, posted, together
from benchmarks.processes import Running, serving
from benchmarks.unkind import (
    INFER,
    PREDICT,
    RAMP_SECONDS,
    STORY,
    Attack,
    abort,
    attacked,
    hold,
)
from educe.bench.load import Load, Plan, run_load
from educe.bench.load_targets import Address, file
from educe.serve.sockets import raise_descriptors

ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
MODELS = ("zoo/mobilenet_v2", "zoo/breast_cancer", "zoo/stories260K")
MOST_RATIO = 1.5
BOUND_SECONDS = 0.05
CLIENTS = 8
CLIENTS_AT_FIRST = 64
ROUNDS_BESIDE = 3
ROUNDS, LEAST_ROUNDS, REST_SECONDS = 40, 10, 2.0
# What becomes of a soak's requests, if no connection is lost.
EXPECTED = {"200", "400", "404", "422", "OK", "NOT_FOUND"}
MOST_GROWTH = 1.01
MOST_MORE_DESCRIPTORS = 8
# For each connection: a leak of one object is a block, or more bytes if it is too large for one.
MOST_MORE_BLOCKS, MOST_MORE_BYTES = 0.8, 512.0


def capacity(server: Running) -> float:
    """Return how many photos a second are answered if some clients always wait for one, once all is warm."""
    request = posted(PREDICT, PHOTO)
    answered_a_second(server.url, request, CLIENTS, 6.0)
    return answered_a_second(server.url, request, CLIENTS, 4.0)


def photos(server: Running, rate: float, seconds: float) -> Load:
    """Return what comes of photos that are sent at a rate."""
    plan = Plan(rate, seconds, warmup_seconds=1.0, within_seconds=BOUND_SECONDS)
    return run_load(file(Address(server.url), "mobilenet_v2", PHOTO), plan)


def _p99(load: Load) -> float:
    """Return within which time almost all were answered; infinite if none was."""
    return load.latency.get("p99", math.inf)


def slow(options: argparse.Namespace) -> dict[str, Any]:
    """Measure beside connections that hold what they get."""
    return _beside(options, hold, "slow", asks_work=False)


def aborted(options: argparse.Namespace) -> dict[str, Any]:
    """Measure beside connections that are given up."""
    return _beside(options, abort, "aborted", asks_work=True)


def _beside(options: argparse.Namespace, attack: Attack, name: str, *, asks_work: bool) -> dict[str, Any]:
    """Measure alone and beside an attack, in turns, and weigh what another leaves.

    The attackers compute on the same machine. What they cost by that is told by the same attack of another
    server, which is compared with; unless they ask for work, which would take the machine from both. The
    attacks of the rounds fill what is kept for later. The server is weighed, which makes it a little slower,
    whatever is beside it.
    """
    seconds = options.seconds / ROUNDS_BESIDE
    count = options.connections // ROUNDS_BESIDE if asks_work else options.connections
    is_compared = nullcontext() if asks_work else serving(*MODELS)
    with serving(*MODELS, is_weighed=True) as server, is_compared as other:
        rate = capacity(server) / 2
        photos(server, rate, 2.0)
        descriptors, idle = server.descriptors, server.kept()

        def measured(target: Running | None) -> Load:
            if target is None:
                return photos(server, rate, seconds)
            with attacked(attack, target.url, count, RAMP_SECONDS + seconds + 4):
                time.sleep(RAMP_SECONDS + 2)
                found = photos(server, rate, seconds)
            _rest(target, descriptors)
            return found

        rounds = [[measured(each) for each in (None, other, server)] for _ in range(ROUNDS_BESIDE)]
        before, rss = server.kept(), server.rss_mib
        with attacked(attack, server.url, options.connections, RAMP_SECONDS + options.seconds):
            time.sleep(RAMP_SECONDS + 2)
            most, tasks = server.descriptors, server.kept()["tasks"]
        left = _rest(server, descriptors)
        after = server.kept()
        busy_before = server.cpu_seconds
        time.sleep(1.0)
        busy = server.cpu_seconds - busy_before
        p99 = np.array([[_p99(load) for load in each] for each in rounds])
        ratios = p99[:, 2] / p99[:, 1]
        ratio = float(np.median(ratios))
        alone, base, beside = np.median(p99, axis=0) * 1e3
        failed = sum(sum(load.errors.values()) for _, _, load in rounds)
        more = {key: (after[key] - before[key]) / options.connections for key in ("blocks", "bytes")}
        return {
            "photos a second": round(rate, 1),
            "p99 alone, ms": float(alone),
            "p99 to compare with, ms": float(base),
            f"p99 beside {name} connections, ms": float(beside),
            "ratio, least of the rounds": float(ratios.min()),
            "ratio, median": ratio,
            "ratio, most": float(ratios.max()),
            "failed": failed,
            "descriptors before": descriptors,
            "descriptors, most seen": most,
            "descriptors after": left,
            "tasks before": idle["tasks"],
            "tasks meanwhile": tasks,
            "tasks after": after["tasks"],
            **{f"{key} more, of each connection": value for key, value in more.items()},
            "resident MiB before": rss,
            "resident MiB after": server.rss_mib,
            "busy afterwards, of a second": busy,
            "missed": _missed(
                attack=asks_work or most >= descriptors + 0.9 * options.connections,
                ratio=ratio <= MOST_RATIO,
                failed=not failed,
                descriptors=left <= descriptors + MOST_MORE_DESCRIPTORS,
                tasks=max(before["tasks"], after["tasks"]) <= idle["tasks"],
                blocks=more["blocks"] <= MOST_MORE_BLOCKS,
                bytes=more["bytes"] <= MOST_MORE_BYTES,
                idle=busy < 0.2,
            ),
        }


def _rest(server: Running, descriptors: int) -> int:
    """Return the descriptors that are open, once they are as few as they were, or after some time."""
    end = time.monotonic() + 60.0
    while (found := server.descriptors) > descriptors + MOST_MORE_DESCRIPTORS and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(REST_SECONDS)
    return found


def reloads(options: argparse.Namespace) -> dict[str, Any]:
    """Replace a model's versions while clients ask; each answer has to be of the version that it names."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name) / "constant", Counter[str]()
        folder.mkdir()
        _put(folder, 1, "good")
        with ThreadPoolExecutor(1) as pool, serving(str(folder), "--admin") as server:
            is_over = threading.Event()

            def ask(index: int) -> None:
                connection, rows = server.connection(), index + 1
                tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [1.0] * rows}
                request = posted("/v2/models/constant/infer", {"inputs": [tensor]})
                while not is_over.is_set():
                    found["answers"] += 1
                    status = 0
                    with suppress(HTTPException, OSError):
                        status, body = answer_of(connection, request)
                    if status != 200:
                        found["failed"] += 1
                        continue
                    content = json.loads(body)
                    if content["outputs"][0]["data"] != [float(content["model_version"])] * rows:
                        found["mixed"] += 1
                connection.close()

            clients = pool.submit(together, ask, 4)
            try:
                for version in range(2, options.reloads + 2):
                    kinds = ("garbage", "truncated", "missing", "other inputs")
                    kind = kinds[version // 4 % 4] if version % 4 == 0 else "good"
                    _put(folder, version, kind)
                    status, _ = server.ask(posted("/v2/repository/models/constant/load", {}))
                    found[f"{kind}: {status}"] += 1
                    found["wrong status"] += (status == 200) != (kind == "good")
                    if kind != "good":
                        shutil.rmtree(folder / str(version))
            finally:
                is_over.set()
            clients.result()
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
        with ThreadPoolExecutor(1) as pool, serving(*MODELS) as server:
            sent = list[tuple[float, bool]]()

            def ask(index: int, server: Running = server, sent: list[tuple[float, bool]] = sent) -> None:
                connection = server.connection()
                request = posted(PREDICT, PHOTO) if index % 2 else posted(INFER, ROW)
                while True:
                    moment = float("inf")
                    try:
                        connection.request("POST", *request)
                        moment = time.monotonic()
                        answer = connection.getresponse()
                        answer.read()
                        sent.append((moment, answer.status == 200))
                    except (HTTPException, OSError):
                        connection.close()
                        sent.append((moment, False))
                        return

            clients = pool.submit(together, ask, CLIENTS)
            time.sleep(2.0)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            found["status not 0"] += server.process.wait(60) != 0
            found["slowest end, ms"] = max(found["slowest end, ms"], round((time.monotonic() - told) * 1e3))
            clients.result()
            found["answered"] += sum(is_ok for _, is_ok in sent)
            found["lost"] += sum(moment < told and not is_ok for moment, is_ok in sent)
    good = {"lost": not found["lost"], "status": not found["status not 0"]}
    return {"rounds": options.rounds, "lost": 0, "status not 0": 0, **found, "missed": _missed(**good)}


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for minutes, rightly, wrongly and without waiting; the memory may not grow.

    It is weighed at rests between rounds, by what the C library and Python have in use: so a byte of each
    request shows, where the resident memory has holes between what is kept, of which there are the more the
    longer it runs, though ever more slowly. It shows in turn what was never theirs. What is kept for later is
    filled by many clients at once, and by the first half of the rounds. A thread that a pool starts later yet
    is a step: what counts are the rounds behind it, of which there have to be enough.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    with serving(*MODELS, "--grpc-port", str(grpc_port), is_weighed=True) as server:
        seconds, found = 60 * options.minutes / ROUNDS, Counter[str]()
        story = {"model": "stories260K", "max_tokens": 20, "stream": True}
        requests = (
            posted(INFER, ROW),
            posted(PREDICT, PHOTO),
            posted("/v1/chat/completions", {**story, "messages": [{"role": "user", "content": "Once"}]}),
            posted(STORY, {**story, "prompt": "Once"}),
            posted(INFER, {"inputs": []}),
            posted(PREDICT, b"no picture"),
            posted("/v2/models/none/infer", ROW),
        )
        calls = [_caller(grpc_port) for _ in range(3)]

        def ask(index: int) -> None:
            call, end = calls[index], time.monotonic() + seconds
            while time.monotonic() < end:
                found[call(("breast_cancer", "none")[index % 2])] += 1
                request = requests[index % len(requests)]
                index += 1
                found[outcome(server, request)] += 1

        def fill(index: int) -> None:
            for request in requests * 3:
                server.ask(request)
                calls[index % len(calls)]("breast_cancer")

        together(fill, CLIENTS_AT_FIRST)
        asked, kept, resident, threads = list[float](), list[dict[str, int]](), list[float](), list[int]()
        for _ in range(ROUNDS):
            with attacked(abort, server.url, int(20 * seconds), seconds):
                together(ask, len(calls))
            time.sleep(REST_SECONDS)
            asked.append(found.total())
            kept.append(server.kept())
            resident.append(server.rss_mib)
            threads.append(server.threads)
        first = max(ROUNDS // 2, settled(threads))
        trends = {name: trend(asked[first:], [each[name] for each in kept[first:]]) for name in kept[0]}
        bounds = ("", ", 2.5 %", ", 97.5 %")
        return {
            **{f"answers {status}": count for status, count in sorted(found.items())},
            "rounds that count": ROUNDS - first,
            "bytes after each of them, more than before": " ".join(
                str(each["bytes"] - kept[first]["bytes"]) for each in kept[first:]
            ),
            "threads after each round": " ".join(map(str, threads)),
            "resident MiB after the first of them": resident[first],
            "resident MiB at the end": resident[-1],
            **{
                f"{name} a request{bound}": value
                for name, values in trends.items()
                for bound, value in zip(bounds, values, strict=True)
            },
            "missed": _missed(
                **{name: low <= 0 for name, (_, low, _) in trends.items()},
                rounds=ROUNDS - first >= LEAST_ROUNDS,
                resident=resident[-1] <= MOST_GROWTH * resident[first],
                answers=found.keys() <= EXPECTED,
            ),
        }


def settled(values: Sequence[int]) -> int:
    """Return the place from which on all values are as the last is."""
    return next(place for place in range(len(values)) if len(set(values[place:])) == 1)


def outcome(server: Running, request: Request) -> str:
    """Return the status of an answer, or ``lost`` if the connection was before it came."""
    try:
        return str(server.ask(request)[0])
    except (OSError, HTTPException):
        return "lost"


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
    """Ask four times what can be answered.

    What it is compared with is measured for as long: half before and half after, since machines change.
    """
    with serving("zoo/mobilenet_v2") as server:  # with a target, clients that ask again at once are refused
        most = capacity(server)
    with serving("zoo/mobilenet_v2", "--target-latency-ms", str(BOUND_SECONDS * 1e3)) as server:
        photos(server, most / 2, 2.0)
        shares = {share: photos(server, share * most, 6.0).goodput for share in (0.7, 0.85, 1.0, 1.2)}
        best = max(shares, key=lambda share: shares[share]) * most
        peaks = [photos(server, best, options.seconds / 2).goodput]
        before = photos(server, 0.8 * most, 10.0)
        during = photos(server, 4 * most, options.seconds)
        time.sleep(4.0)
        after = photos(server, 0.8 * most, 10.0)
        peaks.append(photos(server, best, options.seconds / 2).goodput)
        peak = sum(peaks) / 2
        refused = sum(during.errors.get(status, 0) for status in ("429", "503"))
        return {
            "capacity, photos a second": most,
            "peak goodput a second, before": peaks[0],
            "peak goodput a second, after": peaks[1],
            "goodput a second": during.goodput,
            "share of the peak": during.goodput / peak,
            "answered a second": during.rate_ok,
            "p99 at 80 %, ms": _p99(before) * 1e3,
            "p99 of the admitted, ms": _p99(during) * 1e3,
            "p99 of refusals, ms": during.refusal.get("p99", 0.0) * 1e3,
            "refused": refused,
            "with Retry-After": during.num_retry_after,
            "p99 afterwards, ms": _p99(after) * 1e3,
            "p99 of late sending, ms": during.late["p99"] * 1e3,
            "missed": _missed(
                goodput=during.goodput >= 0.9 * peak,
                admitted=_p99(during) <= 2 * _p99(before),
                refusals=during.refusal.get("p99", 0.0) <= 0.02,
                retry_after=during.num_retry_after == refused,
                others=sum(during.errors.values()) == refused,
                afterwards=_p99(after) <= MOST_RATIO * _p99(before),
            ),
        }


def _missed(**good: bool) -> list[str]:
    return [name for name, is_good in good.items() if not is_good]


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
    raise_descriptors()
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
