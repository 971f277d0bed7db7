"""Models come, are replaced, make room and go, while requests are answered."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from educe.errors import OptionError
from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

SECONDS = 30


def scale(factor: float, path: Path) -> None:
    """Write a model that multiplies by `factor`."""
    weight = numpy_helper.from_array(np.array([factor], np.float32), "factor")
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph([node], "scale", kinds[:1], kinds[1:], [weight])
    path.parent.mkdir(parents=True, exist_ok=True)
    opsets = [helper.make_opsetid("", 21)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def infer(client: Client, model: str, path: str = "infer") -> tuple[int, Any]:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    status, _, content = client.ask("POST", f"/v2/models/{model}/{path}", body)
    return status, json.loads(content)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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
        assert infer(client, "b")[1]["outputs"][0]["data"] == [2, 4, 6, 8]


def test_a_model_that_never_fits_is_refused_and_told(tmp_path: Path) -> None:
    scale(1, tmp_path / "model.onnx")
    with serving(ModelSource("a", tmp_path), memory_bytes=10) as client:
        status, found = infer(client, "a")
        assert status == 503
        assert "memory" in found["error"]


def test_unloaded_models_are_loaded_when_they_are_wanted(tmp_path: Path) -> None:
    scale(1, tmp_path / "model.onnx")
    with serving(ModelSource("a", tmp_path), admin=True) as client:
        client.json("POST", "/v2/repository/models/a/unload", {})
        assert client.ask("GET", "/v2/models/a/ready")[0] == 503
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
