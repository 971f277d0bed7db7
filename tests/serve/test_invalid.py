"""Errors about requests name what is known in the place of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import Client, serving

CHAT: dict[str, Any] = {"model": "stories260K", "messages": [{"role": "user", "content": "x"}]}
ROW = {"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}


@pytest.fixture(scope="module")
def own() -> Iterator[Client]:
    with serving("breast_cancer", "stories260K") as client:
        yield client


def message(client: Client, path: str, body: Any) -> str:
    status, _, found = client.ask("POST", path, body, {"content-type": "application/json"})
    assert status == 400, found
    error = json.loads(found)["error"]
    return error["message"] if isinstance(error, dict) else error


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"servic_tier": "auto"},
            "servic_tier: Object contains unknown field `servic_tier` (did you mean 'service_tier'?)",
        ),
        ({"service_tier": "x"}, "known: 'auto', 'default', 'flex', 'priority', 'scale'"),
        ({"messages": [{"role": "sytem", "content": "x"}]}, "'system', 'tool', 'user'"),
        ({"response_format": {"type": "x"}}, "known: 'json_object', 'json_schema', 'text'"),
        ({"stream_options": {"include_usge": True}}, "did you mean 'include_usage'?"),
        ({"modalities": ["x"]}, "modalities[0]: Invalid enum value 'x' (known: 'text')"),
    ],
)
def test_what_is_known_is_named(own: Client, body: dict[str, Any], expected: str) -> None:
    assert expected in message(own, "/v1/chat/completions", {**CHAT, **body})


def test_a_body_of_another_type_is_told_the_header(own: Client) -> None:
    fields = {"content-type": "application/x-www-form-urlencoded"}
    status, _, found = own.ask("POST", "/v1/chat/completions", json.dumps(CHAT), fields)
    assert (status, b"send Content-Type: application/json" in found) == (415, True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"inputs":[,]}', "invalid character (byte 11)"),
        (b'{"inputs":[', "truncated"),
        (b'{"inputs":[{"data":' + b"[" * 100_000, "nested too deep"),
        ({"inputs": [{"name": "features"}]}, "inputs[0].shape: Object missing required field `shape`"),
        ({"inputs": [{**ROW, "name": "feature"}]}, "'features' is missing, and the model has no 'feature'"),
        ({"inputs": [ROW], "outputs": [{"name": "x"}]}, "the model gives probabilities"),
        ({"inputs": [{**ROW, "datatype": "FP3"}]}, "use BOOL, UINT8"),
    ],
)
def test_what_is_wrong_with_tensors_is_said(own: Client, body: Any, expected: str) -> None:
    assert expected in message(own, "/v2/models/breast_cancer/infer", body)
