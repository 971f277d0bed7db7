"""Errors about requests name what is known in the place of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from educe.errors import MissingLibraryError
from educe.serve import ServerLimits
from educe.serve.faults import refusal
from educe.serve.http.openai.errors import error_of
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


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "stories260K", "prompt": "a", "x" * 1_000_000: 1}),
        ("/v1/completions", {"model": "stories260K", "prompt": "a", "tool_choice": "x" * 1_000_000}),
        ("/v1/chat/completions", {**CHAT, "service_tier": "x" * 1_000_000}),
        ("/v2/models/breast_cancer/infer", {"inputs": [ROW], "y" * 1_000_000: 1}),
    ],
)
def test_what_is_wrong_is_said_in_short(own: Client, path: str, body: dict[str, Any]) -> None:
    status, _, found = own.ask("POST", path, body)
    assert (status, len(found) < 5000) == (400, True)


def test_json_has_a_bound_of_its_own() -> None:
    limits = ServerLimits(json_bytes=100_000)
    with serving("breast_cancer", "comment_spam", "magika", server_limits=limits) as client:
        table, infer = "/v1/models/breast_cancer/predict", "/v2/models/breast_cancer/infer"
        spam = "/v1/models/comment_spam/predict"
        for path in (table, infer, spam, "/v1/embeddings", "/v2/models/breast_cancer/generate"):
            status, _, found = client.ask("POST", path, ["x" * 100_000])
            assert (status, b"100,004 bytes" in found) == (413, True)
        rows = [ROW["data"]] * 1000
        tensor = {**ROW, "shape": [1000, 30], "parameters": {"binary_data_size": 120_000}}
        del tensor["data"]
        header = json.dumps({"inputs": [tensor]}).encode()
        fields = {"inference-header-content-length": str(len(header))}
        content = header + np.array(rows, np.float32).tobytes()
        assert client.ask("POST", infer, content, fields)[0] == 200
        lines = "a line of some length\n" * 6000
        assert client.ask("POST", spam, lines, {"content-type": "text/plain"})[0] == 200
        assert client.ask("POST", "/v1/models/magika/predict", ["x" * 100_000])[0] == 200  # a file like any


def test_what_json_becomes_takes_room() -> None:
    limits = ServerLimits(bodies_bytes=10_000_000)
    with serving("breast_cancer", server_limits=limits) as client:
        path = "/v2/models/breast_cancer/infer"
        status, fields, found = client.ask("POST", path, "[" + "[]," * 200_000 + "[]]")
        assert (status, fields["retry-after"]) == (503, "1"), found
        assert client.ask("POST", path, {"inputs": [ROW]})[0] == 200


def test_a_body_of_another_type_is_told_the_header(own: Client) -> None:
    status, _, found = own.ask(
        "POST", "/v1/chat/completions", json.dumps(CHAT), {"content-type": "text/plain"}
    )
    assert (status, b"send Content-Type: application/json" in found) == (415, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v2/repository/index"])
def test_a_body_may_be_of_the_type_that_curl_declares(own: Client, path: str) -> None:
    fields = {"content-type": "application/x-www-form-urlencoded"}
    body = CHAT if "chat" in path else {}
    assert own.ask("POST", path, json.dumps(body), fields)[0] != 415


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


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/v1/chat/completions",
            {**CHAT, "model": "breast_cancer"},
            "is no generator: its kind is predictor",
        ),
        ("/v1/completions", {"model": "stories260K", "prompt": "a", "max_tokens": 10**6}, "max_tokens: "),
        ("/v1/completions", {"model": "stories260K", "prompt": "a", "temperature": 3}, "temperature: "),
        ("/v1/completions", {"model": "stories260K", "prompt": "a", "suffix": "b"}, "not filled in"),
        ("/v1/models/breast_cancer/predict", {}, "the object is empty"),
        ("/v2/models/breast_cancer/generate", {"text_input": "a"}, "writes no text (use infer)"),
        ("/v2/models/breast_cancer/generate_stream", {"text_input": "a"}, "writes no text (use infer)"),
    ],
)
def test_a_client_is_told_what_it_can_mend(own: Client, path: str, body: Any, expected: str) -> None:
    found = message(own, path, body)
    assert expected in found
    assert "memory" not in found


def test_a_library_that_the_server_lacks_is_no_fault_of_the_client() -> None:
    refused = refusal(MissingLibraryError("av", extra="video", purpose="reading videos"))
    assert (refused.status, refused.remedy) == (501, "pip install 'educe[video]'")
    assert error_of(refused).type == "server_error"
