"""Answers that are kept: for the same content, key and model alone, within their memory, never changed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import educe
from educe.errors import OptionError
from educe.serve import ModelSource, ServerSettings
from educe.serve.cache import ModelCache, ResponseCache, is_deterministic, owned, size_bytes
from educe.serve.deadline import Deadline
from educe.serve.faults import DeadlineExceeded, Overloaded
from educe.serve.observation import Timing
from educe.serve.statistics import ModelStatistics
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.test_repository import scale

KEYS = ("the-first-key-of-all", "the-second-key-of-all")
INFER = "/v2/models/breast_cancer/infer"
PREDICT = "/v1/models/breast_cancer/predict"
ZEBRA = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()


class Runs:
    """Runs that give an array of a number each, when they are told to."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.count = self.num_cancelled = 0
        self.fault, self.may_end = fault, asyncio.Event()

    async def __call__(self) -> tuple[dict[str, np.ndarray], Timing]:
        self.count += 1
        number = self.count
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.fault is not None and number == 1:
            raise self.fault
        return {"y": np.full(100, number)}, Timing(0.0, 0.0, 1)


def a_cache(capacity_bytes: int = 2**20) -> ModelCache:
    return ModelCache(ResponseCache(capacity_bytes), ModelStatistics())


async def ask(cache: ModelCache, runs: Runs, *parts: Any, seconds: float = 60.0) -> tuple[int, str]:
    with Deadline(asyncio.get_running_loop().time() + seconds):
        answer, timing = await cache.answer(parts, 0, runs)
    return int(answer["y"][0]), timing.cache


async def started(cache: ModelCache, runs: Runs, count: int) -> list[asyncio.Task[tuple[int, str]]]:
    """Ask the same several times at once, and return when all wait."""
    tasks = [asyncio.create_task(ask(cache, runs, "x")) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_the_same_content_is_answered_once() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        runs.may_end.set()
        assert await ask(cache, runs, "x") == (1, "miss")
        assert await ask(cache, runs, "x") == (1, "hit")
        assert await ask(cache, runs, "y") == (2, "miss")
        assert (cache.statistics.cache_hits.count, cache.statistics.num_cache_misses) == (1, 2)
        assert cache.statistics.num_answered == 1  # the others count where they run

    asyncio.run(test())


def test_requests_that_come_at_once_share_a_run() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        tasks = await started(cache, runs, 5)
        runs.may_end.set()
        assert [await task for task in tasks] == [(1, "miss"), *[(1, "hit")] * 4]
        assert runs.count == 1

    asyncio.run(test())


def test_a_first_one_that_goes_takes_no_other_along() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        first, *others = await started(cache, runs, 3)
        first.cancel()
        await asyncio.wait({first})
        runs.may_end.set()
        assert first.cancelled()
        assert [await task for task in others] == [(1, "hit")] * 2
        assert (runs.count, runs.num_cancelled) == (1, 0)

    asyncio.run(test())


def test_a_run_that_nobody_waits_for_ends() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        tasks = await started(cache, runs, 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)
        assert runs.num_cancelled == 1
        runs.may_end.set()
        assert await ask(cache, runs, "x") == (2, "miss")

    asyncio.run(test())


def test_a_first_one_that_fails_fails_alone_and_is_not_kept() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs(Overloaded("too many"))
        first, *others = await started(cache, runs, 3)
        runs.may_end.set()
        with pytest.raises(Overloaded):
            await first
        assert {cached for _, cached in await asyncio.gather(*others)} == {"miss"}
        assert runs.count == 3

    asyncio.run(test())


def test_who_waits_for_another_has_a_deadline_of_its_own() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        (first,) = await started(cache, runs, 1)
        with pytest.raises(DeadlineExceeded):
            await ask(cache, runs, "x", seconds=0.01)
        runs.may_end.set()
        assert await first == (1, "miss")

    asyncio.run(test())


def test_a_run_outlasts_the_deadline_of_who_has_begun_it() -> None:
    async def test() -> None:
        cache, runs = a_cache(), Runs()
        first = asyncio.create_task(ask(cache, runs, "x", seconds=0.1))
        await asyncio.sleep(0)
        (second,) = await started(cache, runs, 1)
        with pytest.raises(DeadlineExceeded):
            await first
        runs.may_end.set()
        assert await second == (1, "hit")
        assert (runs.count, runs.num_cancelled) == (1, 0)

    asyncio.run(test())


def test_answers_not_asked_for_longest_make_room() -> None:
    async def test() -> None:
        cache, runs = a_cache(5000), Runs()  # three answers of 800 bytes, and what they take beside
        runs.may_end.set()
        for name in ("a", "b", "a", "c", "d"):
            await ask(cache, runs, name)
            assert cache.size_bytes <= 5000
        assert [(await ask(cache, runs, name))[1] for name in ("a", "d", "b")] == ["hit", "hit", "miss"]
        small = a_cache(100)
        assert [(await ask(small, runs, "a"))[1] for _ in range(2)] == ["miss"] * 2
        assert small.size_bytes == 0

    asyncio.run(test())


def test_a_model_that_goes_leaves_nothing() -> None:
    async def test() -> None:
        shared, runs = ResponseCache(2**20), Runs()
        cache, other = (ModelCache(shared, ModelStatistics()) for _ in range(2))
        (late,) = await started(cache, runs, 1)
        runs.may_end.set()
        await ask(cache, runs, "kept")
        await ask(other, runs, "kept")
        cache.drop()
        await late
        assert cache.size_bytes == 0
        assert (await ask(other, runs, "kept"))[1] == "hit"
        assert cache.key(["x"]) != other.key(["x"])

    asyncio.run(test())


DIFFERENT: list[Any] = [
    None, 0, 0.0, -0.0, False, "", b"", [], {}, "0", b"0", ["0"], [["0"]], ["0", "0"], ["00"], {"0": "0"},
    {"0": 0}, np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros((4, 1), np.float32),
    np.zeros(4, np.int32), np.zeros(2, np.float64), np.zeros(0, np.float32), np.zeros((0, 3), np.float32),
    np.array([0.0, 0, 0, -0.0], np.float32),
    np.array([b"ab", b"c"], object), np.array([b"a", b"bc"], object), np.array(["a", b"bc"], object),
    {"a": np.zeros(1), "b": np.ones(1)}, {"a": np.ones(1), "b": np.zeros(1)},
]  # fmt: skip


def test_no_two_contents_look_alike() -> None:
    cache = a_cache()
    keys = [cache.key([value]) for value in DIFFERENT]
    assert len(set(keys)) == len(keys)
    assert cache.key(["a", "b"]) != cache.key(["ab"]) != cache.key([["a", "b"]])
    array = np.arange(12.0).reshape(3, 4)
    assert cache.key([array.T]) == cache.key([array.T.copy()]) != cache.key([array.reshape(4, 3)])
    assert cache.key([{"a": 1, "b": 2}]) == cache.key([{"b": 2, "a": 1}])
    with pytest.raises(TypeError):
        cache.key([object()])


def test_what_is_kept_is_its_own_and_cannot_be_written() -> None:
    whole = np.arange(1000.0)
    found = owned({"part": whole[:10], "texts": np.array([b"a" * 100], object)})
    assert found["part"].base is None
    assert size_bytes(found) < 1000
    for array in found.values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert whole.flags.writeable


def write_random(path: Path) -> Path:
    """Write a model that adds noise."""
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    graph = helper.make_graph(nodes, "noise", kinds[:1], kinds[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_models_with_chance_in_them_are_left_out(tmp_path: Path) -> None:
    assert not is_deterministic(educe.load(write_random(tmp_path / "noise.onnx")))
    assert is_deterministic(educe.load(ROOT / "zoo" / "mobilenet_v2"))
    with serving(ModelSource("noise", write_random(tmp_path / "n.onnx")), cache_bytes=2**20) as client:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}
        found = [client.ask("POST", "/v2/models/noise/infer", {"inputs": [tensor]}) for _ in range(2)]
        assert found[0][2] != found[1][2]
        assert "cache" not in found[1][1]["server-timing"]


def row(value: float = 0.5) -> dict[str, Any]:
    return {"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [value] * 30}


@pytest.fixture(scope="module")
def keeping() -> Iterator[Client]:
    with serving(
        "breast_cancer", "mobilenet_v2", "stories260K", cache_bytes=2**24, api_keys=KEYS, grpc_port=0
    ) as client:
        yield client


def post(client: Client, path: str, body: Any, key: str = KEYS[0]) -> tuple[bytes, str]:
    """Return an answer's body, and whether it was there already."""
    status, fields, content = client.ask("POST", path, body, {"authorization": f"Bearer {key}"})
    assert status == 200, content
    return content, fields["server-timing"].partition("cache;desc=")[2]


def test_tensors_and_raw_input_are_kept_by_key_and_content(keeping: Client) -> None:
    first, again, other_key, other_value = (
        post(keeping, INFER, {"inputs": [row(value)]}, key)
        for value, key in ((0.5, KEYS[0]), (0.5, KEYS[0]), (0.5, KEYS[1]), (100.0, KEYS[0]))
    )
    assert [cached for _, cached in (first, again, other_key, other_value)] == ["miss", "hit", "miss", "miss"]
    assert first[0] == again[0] == other_key[0] != other_value[0]
    path = "/v1/models/mobilenet_v2/predict"
    asked = [post(keeping, path, ZEBRA), post(keeping, path, ZEBRA), post(keeping, f"{path}?top=1", ZEBRA)]
    assert [cached for _, cached in asked] == ["miss", "hit", "miss"]
    assert asked[0][0] == asked[1][0]
    assert b"zebra" in asked[0][0]
    table = [{"mean radius": number} for number in (1.0, 2.0)]
    faults = [keeping.ask("POST", PREDICT, table, {"authorization": f"Bearer {KEYS[0]}"}) for _ in range(2)]
    assert faults[0][0] == faults[1][0]


def test_an_error_is_not_kept(keeping: Client) -> None:
    for _ in range(2):
        broken = keeping.ask(
            "POST", "/v1/models/mobilenet_v2/predict", ZEBRA[:100], {"authorization": f"Bearer {KEYS[0]}"}
        )
        assert broken[0] == 400
        assert "hit" not in broken[1].get("server-timing", "")


def test_texts_are_not_kept(keeping: Client) -> None:
    prompt = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["Once"]}
    asked = {"inputs": [prompt], "parameters": {"max_tokens": 2, "temperature": 1.0}}
    assert [post(keeping, "/v2/models/stories260K/infer", asked)[1] for _ in range(2)] == ["", ""]


def test_both_interfaces_share_what_is_kept(keeping: Client) -> None:
    grpc = pytest.importorskip("grpc")
    from tests.serve.test_grpc import Request, Stub, add

    post(keeping, INFER, {"inputs": [row(0.25)]})
    request = Request(model_name="breast_cancer")
    request.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    request.raw_input_contents.append(np.full(30, 0.25, np.float32).tobytes())
    add(request, {"timing": True})
    with grpc.insecure_channel(keeping.grpc_address) as channel:
        stub = Stub(channel, (("authorization", f"Bearer {KEYS[0]}"),))
        assert stub.ask("ModelInfer", request).parameters["cache"].string_param == "hit"


def test_a_model_that_is_loaded_again_is_asked_again(tmp_path: Path) -> None:
    scale(2.0, tmp_path / "scale" / "1" / "model.onnx")
    source = ModelSource("scale", tmp_path / "scale")
    with serving(source, cache_bytes=2**20, admin=True) as client:
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]}
        load = "/v2/repository/models/scale/load"
        for version, factor in (("1", 2.0), ("2", 3.0), ("2", 3.0)):
            if version != "1":
                scale(factor, tmp_path / "scale" / version / "model.onnx")
                assert client.ask("POST", load)[0] == 200
            for wanted in ("miss", "hit"):
                content, cached = post(client, "/v2/models/scale/infer", body)
                found = json.loads(content)
                assert (found["model_version"], found["outputs"][0]["data"]) == (version, [factor] * 4)
                assert cached == wanted


def test_many_at_once_have_one_run() -> None:
    with serving("mobilenet_v2", cache_bytes=2**24) as client:
        found: list[tuple[bytes, str]] = []

        def ask_once() -> None:
            found.append(post(client, "/v1/models/mobilenet_v2/predict", ZEBRA))

        threads = [threading.Thread(target=ask_once) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len({content for content, _ in found}) == 1
        assert sorted(cached for _, cached in found) == [*["hit"] * 7, "miss"]
        (stats,) = client.json("GET", "/v2/models/mobilenet_v2/stats")["model_stats"]
        assert stats["execution_count"] == 1
        assert stats["inference_stats"]["success"]["count"] == 8
        assert stats["inference_stats"]["cache_hit"]["count"] == 7
        assert stats["inference_stats"]["cache_miss"]["count"] == 1
        text = client.ask("GET", "/metrics")[2].decode()
        assert 'educe_response_cache_hits_total{model="mobilenet_v2"} 7' in text
        assert 'educe_response_cache_misses_total{model="mobilenet_v2"} 1' in text
        assert float(text.split('educe_response_cache_bytes{model="mobilenet_v2"}')[1].split()[0]) > 100


def test_nothing_is_kept_if_nobody_asks_for_it(client: Client) -> None:
    for _ in range(2):
        assert post(client, INFER, {"inputs": [row()]})[1] == ""
    with pytest.raises(OptionError):
        ServerSettings(cache_bytes=0)
