"""Which of grpcio's servers answers a tiny model soonest: one in an event loop, or one of threads.

`python -m benchmarks.grpc_servers`; each server is a process of its own, and its clients are in two others.
The server's own time on the processor for each request is what other work on the machine changes least.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.clients import together
from educe.serve.grpc import messages

SERVERS = ("event loop, uvloop", "event loop, asyncio", "threads", "threads, model in an event loop")
CLIENTS = (1, 32)
SECONDS = 4.0
ROUNDS = 3
METHOD = "ModelInfer"


def serve(kind: str, ready: Any) -> None:
    """Answer with a model of a table, until the process is ended."""
    import grpc
    import uvloop

    import educe

    executable = educe.predictor("zoo/breast_cancer").executable
    takes, gives = (messages.inference(f"{METHOD}{kind}") for kind in ("Request", "Response"))

    def answer(request: Any) -> Any:
        features = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(1, 30)
        response = gives(model_name=request.model_name)
        for name, array in executable.run({"features": features}).items():
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    async def answer_in_loop(request: Any, context: Any = None) -> Any:
        return answer(request)

    def add(server: Any, handle: Any) -> None:
        rpc = grpc.unary_unary_rpc_method_handler(handle, takes.FromString, gives.SerializeToString)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(messages.INFERENCE, {METHOD: rpc}),)
        )

    async def run() -> None:
        server = grpc.aio.server()
        add(server, answer_in_loop)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.put(port)
        await server.wait_for_termination()

    if kind.startswith("event loop"):
        (uvloop.run if "uvloop" in kind else asyncio.run)(run())
    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(16))
    if kind == "threads":
        add(server, lambda request, context: answer(request))
    else:
        add(
            server,
            lambda request, context: asyncio.run_coroutine_threadsafe(answer_in_loop(request), loop).result(),
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.put(port)
    server.wait_for_termination()


def ask(port: int, clients: int, found: Any) -> None:
    """Ask again and again, as several clients, and give the seconds that each answer took."""
    import grpc

    takes, gives = (messages.inference(f"{METHOD}{kind}") for kind in ("Request", "Response"))
    request = takes(model_name="breast_cancer", raw_input_contents=[bytes(120)])
    request.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    seconds: list[float] = []

    def one(_: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(
                f"/{messages.INFERENCE}/{METHOD}", takes.SerializeToString, gives.FromString
            )
            infer(request)
            end = time.monotonic() + SECONDS
            while (start := time.monotonic()) < end:
                infer(request)
                seconds.append(time.monotonic() - start)

    together(one, clients)
    found.put(seconds)


def measure(context: Any, kind: str) -> list[tuple[float, float, float]]:
    """Return requests a second, the median of their seconds, and the server's seconds each, by clients."""
    ready = context.Queue()
    server = context.Process(target=serve, args=(kind, ready))
    server.start()
    port, rows = ready.get(), []
    try:
        for clients in CLIENTS:
            found, processes = context.Queue(), min(2, clients)
            before = sum(psutil.Process(server.pid).cpu_times()[:2])
            askers = [
                context.Process(target=ask, args=(port, clients // processes, found))
                for _ in range(processes)
            ]
            for each in askers:
                each.start()
            seconds = [each for _ in askers for each in found.get()]
            used = sum(psutil.Process(server.pid).cpu_times()[:2]) - before
            for each in askers:
                each.join()
            rows.append((len(seconds) / SECONDS, median(seconds), used / len(seconds)))
    finally:
        server.terminate()
        server.join()
    return rows


def main() -> None:
    """Print a table."""
    context = multiprocessing.get_context("spawn")
    rounds: dict[str, list[list[tuple[float, float, float]]]] = {kind: [] for kind in SERVERS}
    for _ in range(ROUNDS):
        for kind in SERVERS:
            rounds[kind].append(measure(context, kind))
    print("| server | clients | requests/s | p50 ms | server µs/request |\n|---|---|---|---|---|")
    for kind, found in rounds.items():
        for number, clients in enumerate(CLIENTS):
            rate, middle, used = (median(row[number][part] for row in found) for part in range(3))
            print(f"| {kind} | {clients} | {rate:.0f} | {middle * 1e3:.2f} | {used * 1e6:.0f} |")


if __name__ == "__main__":
    main()
