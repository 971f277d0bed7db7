"""Models come, are replaced, make room and go, while requests are answered."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from educe import store
from educe.errors import OptionError
from educe.generate.engine import Engine
from educe.serve import ModelSource, ServerSettings, opening, repository
from educe.serve.deadline import Deadline
from educe.serve.deployment import Deployment
from educe.serve.faults import BadRequest, DeadlineExceeded, NotReady, Overloaded
from educe.serve.inference import Inference
from educe.serve.repository import Repository
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import Client, Hang, serving, until

SECONDS = 30


def scale(factor: float, path: Path, feed: str = "x") -> None:
    """Write a model that multiplies by `factor`."""
    weight = numpy_helper.from_array(np.array([factor], np.float32), "factor")
    node = helper.make_node("Mul", [feed, "factor"], ["y"])
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in (feed, "y")]
    graph = helper.make_graph([node], "scale", kinds[:1], kinds[1:], [weight])
    path.parent.mkdir(parents=True, exist_ok=True)
    opsets = [helper.make_opsetid("", 21)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def within(seconds: float) -> Deadline:
    return Deadline(asyncio.get_running_loop().time() + seconds)


def infer(client: Client, model: str, path: str = "infer") -> tuple[int, Any]:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    status, _, content = client.ask("POST", f"/v2/models/{model}/{path}", body)
    return status, json.loads(content)


class Opened:
    """Counts how often models are opened, and lets that take until it is told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num, self.may_end = 0, threading.Event()
        self._open = opening.open_model
        monkeypatch.setattr(repository, "open_model", self)

    def __call__(self, *arguments: Any) -> Any:
        self.num += 1
        assert self.may_end.wait(SECONDS)
        return self._open(*arguments)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def test_the_newest_version_answers_until_there_is_a_newer_one(tmp_path: Path) -> None:
    folder = tmp_path / "scale"
    scale(2, folder / "2" / "model.onnx")
    scale(1, folder / "1" / "model.onnx")
    with serving(ModelSource("scale", folder), admin=True) as client:
        _, found = infer(client, "scale")
        assert (found["model_version"], found["outputs"][0]["data"]) == ("2", [2, 4, 6, 8])
        assert infer(client, "scale", "versions/2/infer")[0] == 200
        assert infer(client, "scale", "versions/1/infer")[0] == 404
        scale(10, folder / "10" / "model.onnx")
        client.json("POST", "/v2/repository/models/scale/load", {})
        _, found = infer(client, "scale")
        assert (found["model_version"], found["outputs"][0]["data"]) == ("10", [10, 20, 30, 40])


def test_a_version_that_takes_other_inputs_does_not_take_the_place(tmp_path: Path) -> None:
    folder = tmp_path / "scale"
    scale(1, folder / "1" / "model.onnx")
    with serving(ModelSource("scale", folder), admin=True) as client:
        scale(2, folder / "2" / "model.onnx", feed="z")
        status, _, content = client.ask("POST", "/v2/repository/models/scale/load", {})
        assert status == 400
        assert b"other inputs" in content
        assert infer(client, "scale")[1]["model_version"] == "1"
        client.json("POST", "/v2/repository/models/scale/unload", {})
        client.json("POST", "/v2/repository/models/scale/load", {})
        assert client.json("GET", "/v2/models/scale")["inputs"][0]["name"] == "z"


def test_no_request_fails_or_mixes_versions_while_models_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "scale"
    scale(1, folder / "1" / "model.onnx")
    faults: list[Any] = []
    counts = [0]
    with serving(ModelSource("scale", folder), admin=True) as client:
        ended = threading.Event()

        def load_it() -> None:
            while not ended.is_set():
                status, found = infer(client, "scale")
                factor = float(found.get("model_version", "nan"))
                if status != 200 or found["outputs"][0]["data"] != [factor * x for x in (1, 2, 3, 4)]:
                    faults.append(found)
                counts[0] += 1

        threads = [threading.Thread(target=load_it) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 12):
            path = folder / str(version) / "model.onnx"
            if version % 3 == 0:
                path.parent.mkdir()
                path.write_bytes(b"\x08\x0aneither sound nor small"[: version + 5])
                status, _, body = client.ask("POST", "/v2/repository/models/scale/load", {})
                assert status == 400, body
                shutil.rmtree(path.parent)
            else:
                scale(version, path)
                client.json("POST", "/v2/repository/models/scale/load", {})
        ended.set()
        for thread in threads:
            thread.join(SECONDS)
        assert infer(client, "scale")[1]["model_version"] == "11"
    assert not faults
    assert counts[0] > 10


def test_models_not_used_for_longest_make_room_and_come_back(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    for factor, name in enumerate(names, 1):
        scale(factor, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name / "model.onnx") for name in names]
    with serving(*sources, memory_bytes=2 * size + size // 2) as client:
        states = {entry["name"]: entry["state"] for entry in client.json("POST", "/v2/repository/index")}
        assert states == {"a": "READY", "b": "READY", "c": "UNAVAILABLE"}
        assert client.ask("GET", "/readyz")[0] == 200
        assert infer(client, "a")[0] == 200
        assert infer(client, "c")[1]["outputs"][0]["data"] == [3, 6, 9, 12]
        states = {entry["name"]: entry["state"] for entry in client.json("POST", "/v2/repository/index")}
        assert states == {"a": "READY", "b": "UNAVAILABLE", "c": "READY"}
        reasons = {
            entry["name"]: entry.get("reason") for entry in client.json("POST", "/v2/repository/index")
        }
        assert reasons["b"] == "evicted: loads when it is asked for"
        assert infer(client, "b")[1]["outputs"][0]["data"] == [2, 4, 6, 8]


def test_a_model_that_never_fits_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.onnx"
    scale(1, path)
    size = path.stat().st_size
    message = rf"'a': it needs {size} bytes, and memory_bytes is 10 bytes"
    with pytest.raises(OptionError, match=message), serving(ModelSource("a", tmp_path), memory_bytes=10):
        pass
    with serving(ModelSource("a", tmp_path), memory_bytes=size, admin=True) as client:
        status, _, content = client.ask("POST", "/v2/repository/models/a/load", {})
        assert status == 400
        assert (
            f"it needs {size} bytes beside the {served_bytes(client)} bytes of the version".encode()
            in content
        )
        assert infer(client, "a")[0] == 200


def served_bytes(client: Client) -> int:
    (stats,) = client.json("GET", "/v2/models/a/stats")["model_stats"]
    size: int = stats["memory_usage"][0]["byte_size"]
    return size


def test_the_newest_version_that_fits_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scale(1, tmp_path / "1" / "model.onnx")
    size = (tmp_path / "1" / "model.onnx").stat().st_size
    scale(2, tmp_path / "2" / "model.onnx")
    (tmp_path / "2" / "large.txt").write_bytes(bytes(size))
    with serving(ModelSource("a", tmp_path), memory_bytes=size) as client:
        assert infer(client, "a")[1]["model_version"] == "1"
    assert f"version 2 cannot be loaded: it needs {2 * size} bytes, and memory_bytes is {size}" in caplog.text


def broken(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"nonsense")


def index_of(client: Client) -> dict[str, dict[str, str]]:
    return {entry["name"]: entry for entry in client.json("POST", "/v2/repository/index")}


def test_at_the_start_the_newest_version_that_can_be_loaded_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scale(1, tmp_path / "a" / "1" / "model.onnx")
    broken(tmp_path / "a" / "2" / "model.onnx")
    (tmp_path / "a" / "3").mkdir()
    (source,) = ModelSource.find(str(tmp_path / "a"))
    with serving(source) as client:
        assert infer(client, "a")[1]["model_version"] == "1"
        assert client.ask("GET", "/readyz")[0] == 200
        told = index_of(client)["a"]
        assert (told["version"], told["state"]) == ("1", "READY")
        assert told["reason"].startswith("version 3 cannot be loaded: ")
    for text in (
        "model a version 2 cannot be loaded",
        "model a version 3 cannot be loaded",
        "model a is served in version 1",
    ):
        assert text in caplog.text


def test_an_unloaded_model_is_loaded_in_the_newest_version_that_can_be(tmp_path: Path) -> None:
    scale(1, tmp_path / "1" / "model.onnx")
    with serving(ModelSource("a", tmp_path), admin=True) as client:
        client.json("POST", "/v2/repository/models/a/unload", {})
        broken(tmp_path / "2" / "model.onnx")
        client.json("POST", "/v2/repository/models/a/load", {})
        assert infer(client, "a")[1]["model_version"] == "1"
        assert index_of(client)["a"]["reason"].startswith("version 2 cannot be loaded: ")
        assert client.ask("POST", "/v2/repository/models/a/load", {})[0] == 400  # one is in service


def test_errors_of_loading_name_the_version_and_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    scale(1, folder / "1" / "model.onnx")
    with serving(ModelSource("a", folder), admin=True) as client:
        broken(folder / "3" / "model.onnx")
        status, _, content = client.ask("POST", "/v2/repository/models/a/load", {})
        assert status == 400
        assert b"the model 'a': version 3 cannot be loaded: " in content
        assert str(tmp_path).encode() not in content
        told = index_of(client)["a"]
        assert (told["version"], told["state"]) == ("1", "READY")
        assert told["reason"].startswith("version 3 cannot be loaded: ")


def test_the_version_in_service_is_what_comes_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scale(1, tmp_path / name / "1" / "model.onnx")
    size = (tmp_path / "a" / "1" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "ab"]
    with serving(*sources, memory_bytes=size + size // 2, admin=True) as client:

        def version_that_comes_back() -> str:
            assert infer(client, "b")[0] == 200
            assert index_of(client)["a"]["state"] == "UNAVAILABLE"
            version: str = infer(client, "a")[1]["model_version"]
            return version

        assert version_that_comes_back() == "1"
        scale(7, tmp_path / "a" / "7" / "model.onnx")
        broken(tmp_path / "a" / "8" / "model.onnx")
        assert version_that_comes_back() == "1"
        assert infer(client, "b")[0] == 200
        assert client.ask("POST", "/v2/repository/models/a/load", {})[0] == 400
        assert client.ask("GET", "/readyz")[0] == 200
        assert version_that_comes_back() == "1"
        shutil.rmtree(tmp_path / "a" / "8")
        assert infer(client, "b")[0] == 200
        client.json("POST", "/v2/repository/models/a/load", {})
        assert version_that_comes_back() == "7"

        # What cannot come back is missed.
        assert infer(client, "b")[0] == 200
        shutil.rmtree(tmp_path / "a" / "7")
        status, found = infer(client, "a")
        assert status == 503
        assert "not there any more" in found["error"]
        assert client.ask("GET", "/readyz")[0] == 503
        client.json("POST", "/v2/repository/models/a/load", {})
        assert infer(client, "a")[1]["model_version"] == "1"
        assert client.ask("GET", "/readyz")[0] == 200


def test_a_newer_version_that_fails_does_not_keep_the_one_in_service_from_coming_back(
    tmp_path: Path, opened: Opened
) -> None:
    for name in ("a", "b"):
        scale(1, tmp_path / name / "1" / "model.onnx")
    size = (tmp_path / "a" / "1" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "ab"]
    opened.may_end.set()

    async def ask(pool: Executor) -> None:
        models = Repository(sources, ServerSettings(memory_bytes=size + size // 2), pool)
        await models.use("a")
        await models.use("b")
        broken(tmp_path / "a" / "2" / "model.onnx")
        opened.may_end.clear()
        loading = asyncio.create_task(models.load("a"))
        await asyncio.sleep(0.1)
        asked = asyncio.create_task(models.use("a"))
        await asyncio.sleep(0.1)
        opened.may_end.set()
        with pytest.raises(BadRequest, match="version 2"):
            await loading
        assert (await asked).version == "1"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_only_requests_for_answers_load_what_made_room(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        scale(1, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "abc"]
    with serving(*sources, memory_bytes=size + size // 2, admin=True) as client:
        paths = [
            f"/v2/models/a{version}{path}"
            for version in ("", "/versions/1")
            for path in ("", "/config", "/ready", "/stats")
        ]
        before = {path: client.json("GET", path) for path in paths}
        assert infer(client, "b")[0] == 200
        for path in paths:
            told = client.json("GET", path)
            assert told == before[path] or path.endswith("stats")
        assert client.ask("GET", "/v2/models/a/versions/2")[0] == 404
        (page,) = [each for each in client.json("GET", "/page/models")["models"] if each["name"] == "a"]
        assert (page["kind"], page["version"], page["state"]) == ("predictor", "1", "UNAVAILABLE")
        # Nothing is known of what was never loaded.
        for path in ("", "/config"):
            status, _, content = client.ask("GET", f"/v2/models/c{path}")
            assert status == 503
            assert b"there was no room" in content
        assert client.ask("GET", "/v2/models/c/ready")[0] == 200
        assert {name: told["state"] for name, told in index_of(client).items()} == {
            "a": "UNAVAILABLE",
            "b": "READY",
            "c": "UNAVAILABLE",
        }
        client.json("POST", "/v2/repository/models/a/unload", {})
        for path in ("", "/config", "/ready"):
            assert client.ask("GET", f"/v2/models/a{path}")[0] == 503


def test_the_metadata_of_a_model_that_failed_does_not_load_it_again(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    opened.may_end.set()
    with serving(ModelSource("a", tmp_path)) as client:
        for _ in range(2):
            status, _, content = client.ask("GET", "/v2/models/a")
            assert status == 503
            assert b"version 1 cannot be loaded" in content
        assert opened.num == 1


def test_models_that_need_each_others_room_both_make_progress(tmp_path: Path) -> None:
    for factor, name in enumerate("ab", 1):
        scale(factor, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "ab"]
    seen: dict[str, list[Any]] = {"a": [], "b": []}
    with serving(*sources, memory_bytes=size + size // 2) as client:
        ended = time.monotonic() + 4

        def ask(name: str) -> None:
            while time.monotonic() < ended:
                status, found = infer(client, name)
                seen[name].append(found["outputs"][0]["data"][0] if status == 200 else found)

        threads = [threading.Thread(target=ask, args=[name]) for name in "aaaab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert set(map(str, seen["a"])) == {"1"} or set(map(str, seen["a"])) == {"1.0"}
    assert set(map(str, seen["b"])) == {"2"} or set(map(str, seen["b"])) == {"2.0"}
    assert len(seen["a"]) > 5
    assert len(seen["b"]) > 5


def test_who_needs_the_room_of_models_in_use_waits_in_order(tmp_path: Path) -> None:
    for name in "abc":
        scale(1, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "abc"]

    async def ask(pool: Executor) -> None:
        models = Repository(sources, ServerSettings(memory_bytes=size), pool)
        answered: list[str] = []
        may_end = {name: asyncio.Event() for name in "abc"}

        async def answer(name: str) -> None:
            with await models.use(name) as deployment:
                deployment.memory_bytes = size  # what a file takes may be more than its weights
                answered.append(name)
                await may_end[name].wait()

        asked = []
        for name in "abcaab":
            asked.append(asyncio.create_task(answer(name)))
            while name == "a" and not answered:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
        # Nobody gets in while a model is in use that has to go, and nobody is refused.
        await asyncio.sleep(0.2)
        assert answered == ["a"]
        with pytest.raises(DeadlineExceeded), within(0.05):
            await models.use("a")
        for count, name in ((3, "a"), (4, "b"), (6, "c")):
            may_end[name].set()
            while len(answered) < count:
                await asyncio.sleep(0.01)
            if name != "c":
                may_end[name].clear()
        may_end["a"].set()
        await asyncio.wait_for(asyncio.gather(*asked), SECONDS)
        assert answered == ["a", "b", "b", "c", "a", "a"]

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_no_more_models_make_room_than_needed(tmp_path: Path) -> None:
    for name in ("small", "tiny", "large", "wanted"):
        scale(1, tmp_path / name / "model.onnx")
    size = (tmp_path / "small" / "model.onnx").stat().st_size
    for name in ("large", "wanted"):
        (tmp_path / name / "notes.txt").write_bytes(bytes(9 * size))
    names = ("small", "tiny", "large", "wanted")
    sources = [ModelSource(name, tmp_path / name) for name in names]

    async def ask(pool: Executor) -> None:
        models = Repository(sources, ServerSettings(memory_bytes=12 * size), pool)
        for name in names[:3]:
            (await models.use(name)).memory_bytes = 10 * size if name == "large" else size
        await models.use("wanted")
        assert [name for name in names if models.entry(name).deployment] == ["small", "tiny", "wanted"]

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_only_so_many_requests_wait_for_a_load(tmp_path: Path, opened: Opened) -> None:
    scale(1, tmp_path / "model.onnx")

    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", tmp_path)], ServerSettings(max_waiting=2), pool)
        asked = [asyncio.create_task(models.use("a")) for _ in range(3)]
        await asyncio.sleep(0.1)
        opened.may_end.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in found] == [Deployment, Deployment, Overloaded]

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_a_model_that_does_not_take_an_option_ends_the_server(tmp_path: Path) -> None:
    scale(1, tmp_path / "model.onnx")
    sources = [ModelSource("bad", tmp_path / "none"), ModelSource("a", tmp_path, {"engine": "natve"})]
    with pytest.raises(OptionError, match="the model 'a': there is no engine") as caught, serving(*sources):
        pass
    assert caught.value.place == "engine"


def test_unloaded_models_stay_so_until_they_are_loaded(tmp_path: Path) -> None:
    scale(1, tmp_path / "model.onnx")
    with serving(ModelSource("a", tmp_path), admin=True) as client:
        client.json("POST", "/v2/repository/models/a/unload", {})
        assert client.ask("GET", "/v2/models/a/ready")[0] == 503
        assert infer(client, "a")[0] == 503
        (told,) = client.json("POST", "/v2/repository/index")
        assert (told["state"], told["reason"]) == ("UNAVAILABLE", "unloaded")
        client.json("POST", "/v2/repository/models/a/load", {})
        assert infer(client, "a")[0] == 200
        assert client.ask("GET", "/v2/models/a/ready")[0] == 200
        assert client.ask("POST", "/v2/repository/models/nix/load", {})[0] == 404


def test_a_model_that_cannot_be_loaded_does_not_keep_others_from_it(tmp_path: Path) -> None:
    scale(1, tmp_path / "good" / "model.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    with serving(ModelSource("bad", bad), ModelSource("good", tmp_path / "good")) as client:
        assert infer(client, "good")[0] == 200
        status, found = infer(client, "bad")
        assert status == 503
        assert str(tmp_path) not in found["error"]
        assert client.ask("GET", "/readyz")[0] == 503


def test_statistics_load_no_model(tmp_path: Path) -> None:
    scale(1, tmp_path / "model.onnx")
    with serving(ModelSource("a", tmp_path), admin=True) as client:
        assert client.ask("GET", "/v2/models/a/versions/1/stats")[0] == 200
        assert client.ask("GET", "/v2/models/a/versions/2/stats")[0] == 404
        client.json("POST", "/v2/repository/models/a/unload", {})
        assert client.ask("GET", "/v2/models/a/versions/1/stats")[0] == 404
        assert client.ask("GET", "/v2/models/a/stats")[0] == 200
        assert client.ask("GET", "/v2/models/a/ready")[0] == 503


def test_a_load_outlasts_who_asked_for_it(tmp_path: Path, opened: Opened) -> None:
    scale(1, tmp_path / "model.onnx")

    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", tmp_path)], ServerSettings(), pool)
        first, second = (asyncio.create_task(models.use("a")) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.wait({first})
        assert models.entry("a").state == "LOADING"
        opened.may_end.set()
        assert (await second).version == "1"
        assert models.entry("a").state == "READY"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))
    assert opened.num == 1


def test_loads_do_not_keep_models_from_running(tmp_path: Path, opened: Opened) -> None:
    names = [f"m{number}" for number in range(9)]
    for name in names:
        scale(1, tmp_path / name / "model.onnx")

    async def ask(pool: Executor) -> None:
        sources = [ModelSource(name, tmp_path / name) for name in names]
        models = Repository(sources, ServerSettings(), pool)
        opened.may_end.set()
        ready = await models.use(names[0])
        opened.may_end.clear()
        loads = [asyncio.create_task(models.use(name)) for name in names[1:]]
        await asyncio.sleep(0.1)
        assert ready.lane is not None
        feeds = {"x": np.ones((1, 4), np.float32)}
        await asyncio.wait_for(ready.lane.submit("a", feeds, 1, deadline=math.inf), SECONDS)
        assert not any(load.done() for load in loads)
        opened.may_end.set()
        await asyncio.gather(*loads)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))


def test_who_has_no_more_time_does_not_wait_for_a_load(tmp_path: Path, opened: Opened) -> None:
    scale(1, tmp_path / "model.onnx")

    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", tmp_path)], ServerSettings(), pool)
        with pytest.raises(DeadlineExceeded), within(0.05):
            await models.use("a")
        opened.may_end.set()
        assert (await models.use("a")).version == "1"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))
    assert opened.num == 1


def test_the_task_of_a_model_that_made_room_is_known(tmp_path: Path) -> None:
    for name in "ab":
        scale(1, tmp_path / name / "model.onnx")
    settings = ServerSettings(memory_bytes=(tmp_path / "a" / "model.onnx").stat().st_size)
    sources = [ModelSource(name, tmp_path / name) for name in "ab"]

    async def ask(pool: Executor) -> None:
        models = Repository(sources, settings, pool)
        inference = Inference(models, settings, pool, models)
        (await models.use("a")).memory_bytes = settings.memory_bytes or 0
        task = await inference.task("a")
        await models.use("b")
        assert await inference.task("a") == task
        assert models.entry("a").state == "UNAVAILABLE"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


@pytest.mark.parametrize("is_out_of_use", [False, True])
@pytest.mark.parametrize("name", ["breast_cancer", "stories260K"])
def test_a_run_that_hangs_makes_the_server_say_so(
    hang: Callable[..., Hang], name: str, is_out_of_use: bool
) -> None:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1000, 30], "data": [0.5] * 30_000}
    asked: dict[str, Any] = {"text_input": "Once"}
    path, owner, function = f"/v2/models/{name}/generate", Engine, "_step"
    if name == "breast_cancer":
        asked, path = {"inputs": [tensor]}, f"/v2/models/{name}/infer"
        owner, function = PredictorModel, "_infer"
    with serving(name, timeout_seconds=2.0, admin=True) as client:
        hanging = hang(owner, function)
        assert client.ask("POST", path, asked)[0] == 504
        assert hanging.num_ended == 0 < hanging.num_begun
        if is_out_of_use:  # and is not closed in the event loop, which answers
            assert client.ask("POST", f"/v2/repository/models/{name}/unload")[0] == 200
        until(lambda: client.ask("GET", "/livez")[0] == 503)
        assert client.ask("GET", "/readyz")[0] == 200
        hanging.end()
        until(lambda: client.ask("GET", "/livez")[0] == 200)


def test_a_run_that_nobody_waits_for_still_uses_its_model(hang: Callable[..., Hang]) -> None:
    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", ROOT / "zoo" / "breast_cancer")], ServerSettings(), pool)
        deployment = await models.use("a")
        hanging = hang(PredictorModel, "_infer")
        inference = Inference(models, ServerSettings(), pool, models)
        feeds = {"features": np.zeros((1000, 30), np.float32)}
        task = asyncio.create_task(inference.infer(inference.call("a", None, feeds, {})))
        while not hanging.num_begun:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})
        await models.unload("a")
        assert deployment.num_users == 1
        hanging.end()
        while deployment.num_users:
            await asyncio.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_all_who_wait_share_a_load_that_fails(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")

    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", tmp_path)], ServerSettings(), pool)
        asked = [asyncio.create_task(models.use("a")) for _ in range(5)]
        await asyncio.sleep(0.1)
        opened.may_end.set()
        assert {type(each) for each in await asyncio.gather(*asked, return_exceptions=True)} == {NotReady}
        assert models.entry("a").state == "UNAVAILABLE"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))
    assert opened.num == 1


def test_loads_at_once_stay_within_the_memory(tmp_path: Path, opened: Opened) -> None:
    for name in "ab":
        scale(1, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size
    sources = [ModelSource(name, tmp_path / name) for name in "ab"]

    async def ask(pool: Executor) -> None:
        models = Repository(sources, ServerSettings(memory_bytes=size + size // 2), pool)
        asked = [asyncio.create_task(models.use(name)) for name in "ab"]
        await asyncio.sleep(0.1)
        opened.may_end.set()
        assert [each.name for each in await asyncio.gather(*asked)] == ["a", "b"]
        assert models.entry("a").deployment is None

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_what_fails_in_an_unforeseen_way_keeps_nothing_from_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        scale(1, tmp_path / name / "model.onnx")

    def open_model(path: Path, *arguments: Any) -> Any:
        if path.name == "bad":
            raise RuntimeError("a secret")
        return opening.open_model(path, *arguments)

    monkeypatch.setattr(repository, "open_model", open_model)
    with serving(*(ModelSource(name, tmp_path / name) for name in ("bad", "good"))) as client:
        assert infer(client, "good")[0] == 200
        status, found = infer(client, "bad")
        assert status == 503
        assert "secret" not in found["error"]
        states = {entry["name"]: entry["state"] for entry in client.json("POST", "/v2/repository/index")}
        assert states == {"bad": "UNAVAILABLE", "good": "READY"}
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zoo/mnist", "mnist"),
        ("zoo/mnist/model.onnx", "mnist"),
        ("a/b/digits.onnx", "digits"),
        ("x=zoo/mnist", "x"),
        ("zoo/mnist/", "mnist"),
    ],
)
def test_names_come_from_paths(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert ModelSource.parse(text).name == name


@pytest.mark.parametrize("text", ["=zoo/mnist", "a b=zoo/mnist", "../x=zoo/mnist", "a/b=c"])
def test_names_that_no_url_can_have_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        ModelSource.parse(text)


def test_two_models_need_two_names() -> None:
    with pytest.raises(OptionError), serving("mnist", "mnist"):
        pass


def test_sequences_of_rows_do_not_share_runs(tmp_path: Path) -> None:
    """A model whose rows see each other must not run others' rows with them."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph([node], "columns", kinds[:1], kinds[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with serving(ModelSource("columns", tmp_path)) as client:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(infer(client, "columns"))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert [each[1]["outputs"][0]["data"] for each in found] == [[1, 1, 1, 1]] * 20


def test_only_a_model_that_is_compiled_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scale(1, tmp_path / "model.onnx")
    monkeypatch.setattr(repository, "_NOTICED_SECONDS", 0.0)
    monkeypatch.setattr(repository, "_LOOK_SECONDS", 0.01)
    caplog.set_level("INFO", "educe.serve")

    is_new = False

    def open_model(*arguments: Any) -> Any:
        if is_new:
            store.Store(tmp_path / "store", 1000).get(store.Key("kernel", "k", ()))
        time.sleep(0.2)
        return opening.open_model(*arguments)

    monkeypatch.setattr(repository, "open_model", open_model)
    with serving(ModelSource("a", tmp_path)):
        pass  # what a real store lacks is made
    for is_new in (False, True):
        caplog.clear()
        with serving(ModelSource("a", tmp_path)):
            pass
        assert ("model a is compiling" in caplog.text) == is_new
    assert "model a version 1 is ready after" in caplog.text


def test_a_model_that_somebody_asked_for_is_not_loaded_again(tmp_path: Path, opened: Opened) -> None:
    scale(1, tmp_path / "model.onnx")
    opened.may_end.set()

    async def ask(pool: Executor) -> None:
        models = Repository([ModelSource("a", tmp_path)], ServerSettings(), pool)
        await models.use("a")
        await models.load_all()

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))
    assert opened.num == 1


def test_a_model_that_is_unloaded_counts_until_its_last_request_has_ended(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scale(1, tmp_path / name / "model.onnx")
    size = (tmp_path / "a" / "model.onnx").stat().st_size

    async def ask(pool: Executor) -> None:
        sources = [ModelSource(name, tmp_path / name) for name in ("a", "b")]
        models = Repository(sources, ServerSettings(memory_bytes=size + size // 2), pool)
        held = await models.use("a")
        # What a file takes may be more than its weights.
        held.memory_bytes = size
        with held:
            await models.unload("a")
            with pytest.raises(DeadlineExceeded), within(0.2):
                await models.use("b")
        assert (await models.use("b")).version == "1"

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))


def test_a_load_that_fails_when_nobody_waits_is_no_fault_of_the_loop(tmp_path: Path) -> None:
    faults: list[Any] = []

    async def ask(pool: Executor) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        models = Repository([ModelSource("a", tmp_path / "none")], ServerSettings(), pool)
        asked = asyncio.create_task(models.use("a"))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
        while models.entry("a").loading is not None:
            await asyncio.sleep(0.01)
        gc.collect()

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(ask(pool))
    assert not faults
