"""The Open Inference Protocol over HTTP, asked by hand: what is right, and what clients never send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import educe
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

INFER = "/v2/models/breast_cancer/infer"


def features(rows: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": "features", "shape": [rows, 30], "datatype": "FP32", "data": [0.5] * 30 * rows, **more}


def own(array: np.ndarray) -> np.ndarray:
    executable = educe.predictor(str(ROOT / "zoo" / "breast_cancer")).executable
    return executable.run({"features": array})["probabilities"]


@pytest.fixture(scope="module")
def managed() -> Iterator[Client]:
    with serving("breast_cancer", admin=True) as found:
        yield found


def test_answers_are_those_of_the_model(client) -> None:
    # KServe's client says the model's name once more.
    body = {
        "id": "7",
        "inputs": [features(2)],
        "outputs": [{"name": "probabilities"}],
        "model_name": "breast_cancer",
    }
    answer = client.json("POST", INFER, body)
    assert answer["id"] == "7"
    assert (answer["model_name"], answer["model_version"]) == ("breast_cancer", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("probabilities", [2, 2], "FP32")
    wanted = own(np.full((2, 30), 0.5, np.float32))
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(2, 2), wanted)


@pytest.mark.parametrize("padding", range(8))
def test_binary_tensors_may_lie_at_any_address(client, padding) -> None:
    tensor = {key: value for key, value in features(3).items() if key != "data"}
    tensor["parameters"] = {"binary_data_size": 360}
    header = (
        json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode() + b" " * padding
    )
    array = np.random.default_rng(padding).normal(size=(3, 30)).astype(np.float32)
    fields = {"inference-header-content-length": str(len(header))}
    status, found, content = client.ask("POST", INFER, header + array.tobytes(), fields)
    assert status == 200, content
    size = int(found["inference-header-content-length"])
    (output,) = json.loads(content[:size])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    assert "data" not in output
    np.testing.assert_array_equal(np.frombuffer(content[size:], np.float32).reshape(3, 2), own(array))


@pytest.mark.parametrize("length", ["-1", "abc", "999999", "1.0", "", "1" * 30, "0", "2"])
def test_a_header_length_that_lies_is_refused(client, length) -> None:
    body = json.dumps({"inputs": [features()]})
    status, _, content = client.ask("POST", INFER, body, {"inference-header-content-length": length})
    assert status == 400, content


def test_json_of_a_length_may_have_nothing_behind_it(client) -> None:
    body = json.dumps({"inputs": [features()], "parameters": {"binary_data_output": True}}).encode()
    fields = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(body)),
    }
    assert client.ask("POST", INFER, body, fields)[0] == 200
    del fields["inference-header-content-length"]
    assert client.ask("POST", INFER, body, fields)[0] == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"inputs": []}',
        b'{"inputs": [{}]}',
        b'{"inputs": {"features": [1]}}',
        b'{"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [NaN]}]}',
        b'{"inputs": [{"name": "features", "shape": [1.0, 30], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "features", "shape": "1", "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "features", "shape": [1e3], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "features", "shape": [18446744073709551616], "datatype": "FP32"}]}',
        b'{"inputs": [], "extra": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:60]),
)
def test_a_body_that_is_no_request_is_refused(client, body) -> None:
    status, fields, content = client.ask("POST", INFER, body, {"content-type": "application/json"})
    assert status == 400, content
    assert fields["content-type"] == "application/json"
    assert isinstance(json.loads(content)["error"], str)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [features(), features()]},
        {"inputs": [{**features(), "name": "other"}]},
        {"inputs": [{**features(), "shape": [30]}]},
        {"inputs": [{**features(), "shape": [1, 15, 2]}]},
        {"inputs": [{**features(), "datatype": "FP64"}]},
        {"inputs": [features()], "outputs": [{"name": "nothing"}]},
        {"inputs": [features()], "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]},
        {"inputs": [features()], "parameters": {"binary_data_output": "yes"}},
        {"inputs": [features()], "parameters": {"sequence_id": 3}},
        {"inputs": [features()], "parameters": {"timeout": 1e3}},
        {"inputs": [features()], "parameters": {"timeout": -5}},
        {"inputs": [features()], "parameters": {"priority": 2**63}},
        {"inputs": [features()], "parameters": {"nested": {}}},
        {"inputs": [features()], "model_name": "mobilenet_v2"},
    ],
)
def test_a_request_that_does_not_fit_is_refused(client, change) -> None:
    status, _, content = client.ask("POST", INFER, change)
    assert status == 400, content


def test_more_parameters_than_are_looked_at_are_refused(client) -> None:
    given = {str(number): number for number in range(2000)}
    status, _, content = client.ask("POST", INFER, {"inputs": [features()], "parameters": given})
    assert status == 400
    assert b"there are 2,000" in content


def test_rows_may_be_none(client) -> None:
    for _ in range(2):
        (output,) = client.json("POST", INFER, {"inputs": [features(0)]})["outputs"]
        assert (output["shape"], output["data"]) == ([0, 2], [])
    assert client.json("POST", INFER, {"inputs": [features(1)]})["outputs"][0]["shape"] == [1, 2]


def test_models_are_loaded_and_unloaded_by_admins_alone(client, managed) -> None:
    for action in ("load", "unload"):
        status, _, _ = client.ask("POST", f"/v2/repository/models/breast_cancer/{action}", {})
        assert status == 404
    unload = "/v2/repository/models/breast_cancer/unload"
    managed.json("POST", unload, {"parameters": {"unload_dependents": False}})
    assert managed.json("POST", "/v2/repository/index", {}) == [
        {"name": "breast_cancer", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
    ]
    assert managed.json("POST", "/v2/repository/index", {"ready": True}) == []
    status, _, content = managed.ask("GET", "/v2/models/breast_cancer/ready")
    assert (status, json.loads(content)) == (503, {"name": "breast_cancer", "ready": False})
    managed.json("POST", "/v2/repository/models/breast_cancer/load")
    assert managed.json("GET", "/v2/models/breast_cancer/versions/1/ready")["ready"]
    body = {"parameters": {"config": "{}"}}
    assert managed.ask("POST", "/v2/repository/models/breast_cancer/load", body)[0] == 400
    assert managed.ask("POST", "/v2/repository/models/nothing/load", {})[0] == 404
