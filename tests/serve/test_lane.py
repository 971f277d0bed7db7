"""Where a lane runs what it is given."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import educe
from educe.errors import InputError
from educe.serve import lane as lane_module
from educe.serve.batcher import Batcher, Ticket
from educe.serve.faults import NotReady, Overloaded
from educe.serve.lane import Lane
from educe.serve.served import PredictorModel
from educe.serve.statistics import ModelStatistics
from educe.serve.threads import Held, hold
from tests.conftest import ROOT


def let_all_be_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no stall of the machine make a run long."""
    for name in ("BRIEF_SECONDS", "_TRIFLING_SECONDS"):
        monkeypatch.setattr(lane_module, name, 60.0)


@pytest.mark.parametrize("at_once", [1, 3])
def test_only_what_is_small_runs_in_the_loop(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    let_all_be_brief(monkeypatch)
    threads: dict[Any, int] = {}

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        threads.update(dict.fromkeys(contents, threading.get_ident()))
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100), pool, is_small=lambda content: content > 0)
        for content in (1, 2, 3, -1):
            await asyncio.gather(
                *(lane.submit("a", content * 10**n, 1, deadline=math.inf) for n in range(at_once))
            )

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
    assert threads[3] == threading.get_ident()
    assert threads[-1] != threading.get_ident()


def test_a_thread_runs_what_rows_of_a_new_number_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "_NUM_PROGRAMS", 4)
    let_all_be_brief(monkeypatch)
    in_loop: list[tuple[int, bool]] = []

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        in_loop.append((contents[0], threading.get_ident() == loop_thread))
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100), pool, is_small=lambda content: True)
        for rows in (1, 1, 2, 2, 3, 4, 1, 5, 1):
            await lane.submit("a", rows, rows, deadline=math.inf)

    loop_thread = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
    assert in_loop == [
        *((1, False), (1, True), (2, False), (2, True), (3, False), (4, False), (1, True)),
        *((5, False), (1, False)),  # the engine may have forgotten the others
    ]


def test_an_input_is_read_by_its_priority() -> None:
    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(lambda group, contents: contents, Batcher(8, 100, target_seconds=0.05), pool)
        lane.batcher.cost.learn(1, 0.1)
        lane.batcher.offer(Ticket("a", 4, 0.0, math.inf), 0.0)
        assert await lane.read(lambda: "read", pool, math.inf, -1) == "read"
        with pytest.raises(Overloaded):
            await lane.read(lambda: "read", pool, math.inf)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))


def test_how_long_a_run_lasts_is_known() -> None:
    may_end = threading.Event()

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        assert may_end.wait(20)
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100), pool)
        assert lane.running_seconds == 0
        asked = asyncio.create_task(lane.submit("a", 1, 1, deadline=math.inf))
        while lane.running_seconds < 0.05:
            await asyncio.sleep(0.01)
        may_end.set()
        await asked
        assert lane.running_seconds == 0

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))


def test_texts_and_long_rows_are_not_small() -> None:
    served = PredictorModel(educe.predictor(ROOT / "zoo" / "breast_cancer"))
    assert served.is_small({"features": np.zeros((8, 30), np.float32)})
    assert not served.is_small({"features": np.zeros((1, 10_000), np.float32)})
    assert not served.is_small({"features": np.array(["text"], object)})
    assert not served.is_small([])


def test_rows_of_any_length_are_not_small(tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L"])
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "any", [given], [found])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "model.onnx")
    served = PredictorModel(educe.predictor(tmp_path / "model.onnx"))
    assert not served.is_small({"x": np.zeros((1, 1), np.float32)})


@pytest.mark.parametrize("is_small", [True, False])
def test_what_failed_is_no_run(is_small: bool) -> None:
    statistics = ModelStatistics()

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        return [InputError("bad") if content < 0 else content for content in contents]

    async def ask(pool: ThreadPoolExecutor) -> list[Any]:
        lane = Lane(run, Batcher(8, 100), pool, is_small=lambda content: is_small, statistics=statistics)
        with pytest.raises(InputError):
            await lane.submit("a", -1, 5, deadline=math.inf)
        assert (statistics.num_rows, statistics.batches, lane.batcher.cost.seconds(1)) == (0, {}, 0)
        assert lane.is_idle
        asked = [lane.submit("a", content, 2, deadline=math.inf) for content in (1, -1, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        first, fault, second = asyncio.run(ask(pool))
    assert (first[0], second[0], type(fault)) == (1, 2, InputError)
    assert (statistics.num_rows, statistics.num_answered, statistics.queue.count) == (4, 2, 2)


def test_a_thread_begins_the_next_run_while_the_loop_is_busy() -> None:
    started, may_end, has_begun = (threading.Event() for _ in range(3))

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        if group == "first":
            started.set()
            assert may_end.wait(20)
        else:
            has_begun.set()
        return contents

    async def ask(pool: ThreadPoolExecutor) -> list[Any]:
        lane = Lane(run, Batcher(8, 100), pool)
        first = asyncio.create_task(lane.submit("first", 1, 1, deadline=math.inf))
        second = asyncio.create_task(lane.submit("second", 2, 1, deadline=math.inf))
        assert await asyncio.to_thread(started.wait, 20)
        time.sleep(0.01)  # a run that is over at once is followed by the loop
        may_end.set()
        assert has_begun.wait(20)  # while this holds the loop
        found = await asyncio.gather(first, second)
        assert lane.is_idle
        return [content for content, _ in found]

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(ask(pool)) == [1, 2]


def test_runs_beside_each_other_are_told_and_all_are_answered() -> None:
    most, beside, lock = [0], [0], threading.Lock()
    both, crowd = threading.Barrier(2), list[int]()

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        with lock:
            beside[0] += 1
            most[0] = max(most[0], beside[0])
        if group < 2:
            both.wait(20)
        time.sleep(0.001)
        with lock:
            beside[0] -= 1
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100, max_runs=2), pool, crowd=crowd.append)
        asked = [lane.submit(number, number, 1, deadline=math.inf) for number in range(40)]
        found = await asyncio.gather(*asked)
        assert [content for content, _ in found] == list(range(40))
        assert lane.is_idle
        assert lane.num_running == lane.running_seconds == 0

    with ThreadPoolExecutor(4) as pool:
        asyncio.run(ask(pool))
    assert most == [2]
    assert sum(crowd) == 0
    assert set(crowd) == {1, -1}


def test_who_leaves_holds_what_it_uses_until_its_run_has_ended() -> None:
    may_end, given_back = threading.Event(), threading.Event()

    class Body(Held):
        def give_back(self) -> None:
            given_back.set()

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        assert may_end.wait(20)
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100, max_runs=2), pool)
        body = Body()
        hold(body)
        asked = [asyncio.create_task(lane.submit(name, 1, 1, deadline=math.inf)) for name in "abc"]
        while lane.num_running < 2:
            await asyncio.sleep(0.001)
        asked[1].cancel()
        await asyncio.sleep(0.01)
        body.let_go()
        assert not given_back.is_set()
        may_end.set()
        await asyncio.gather(asked[0], asked[2])
        assert await asyncio.to_thread(given_back.wait, 20)

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_what_the_end_of_the_threads_drops_is_told_and_no_run_any_more() -> None:
    started, may_end, crowd = threading.Event(), threading.Event(), list[int]()

    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        started.set()
        assert may_end.wait(20)
        return contents

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100, max_runs=2), pool, crowd=crowd.append)
        asked = [asyncio.create_task(lane.submit(name, 1, 1, deadline=math.inf)) for name in "abcd"]
        assert await asyncio.to_thread(started.wait, 20)
        while len(lane.batcher.running) < 2:
            await asyncio.sleep(0.001)
        pool.shutdown(wait=False, cancel_futures=True)  # which drops the second, and refuses the others
        may_end.set()
        first, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert first[0] == 1
        assert [type(each) for each in others] == [NotReady] * 3
        assert lane.is_idle

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
    assert sum(crowd) == 0


@pytest.mark.parametrize("fault", [SystemExit(3), None])
def test_whatever_a_run_does_its_requests_are_answered(fault: BaseException | None) -> None:
    def run(group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        if fault is not None:
            raise fault
        return []

    async def ask(pool: ThreadPoolExecutor) -> None:
        lane = Lane(run, Batcher(8, 100), pool)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="SystemExit" if fault else "gave 0 results"):
                await lane.submit("a", 1, 1, deadline=math.inf)
        assert lane.is_idle

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
