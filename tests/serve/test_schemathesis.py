"""Every operation of the OpenAPI document, asked rightly and wrongly by Schemathesis, with all its checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.models import write_embedder, write_transcriber
from tests.serve.test_openai_chat import chat_source

pytest.importorskip("schemathesis")

NUM_REQUESTS = int(os.environ.get("EDUCE_TEST_REQUESTS", "30"))
KEY = "a-key-for-the-tests"
CONTEXT = 96
CONFIG = ROOT / "tests" / "serve" / "schemathesis.toml"
MODELS = {
    "ChatRequest": ["writer"],
    "CompletionRequest": ["stories260K"],
    "EmbeddingRequest": ["embedder"],
    "ResponseRequest": ["writer"],
    "TranscriptionForm": ["transcriber"],
}
SHORT = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of")


def told_of_models(document: Any) -> Any:
    """Return the document with the names of models for each kind of request, and with short answers."""
    for name, models in MODELS.items():
        fields = document["components"]["schemas"][name]["properties"]
        fields["model"]["enum"] = models
        for each in SHORT:
            for kind in (fields.get(each, {}), *fields.get(each, {}).get("anyOf", ())):
                if kind.get("type") == "integer":
                    kind["maximum"] = 4
    return document


@pytest.mark.parametrize(
    "tell", [lambda document: document, told_of_models], ids=["as it is", "told of models"]
)
def test_the_server_is_as_its_document_says(
    serve: Callable[..., Any], tmp_path: Path, tell: Callable[[Any], Any]
) -> None:
    writer = chat_source()
    models = (
        *("breast_cancer", "comment_spam"),
        ModelSource("stories260K", writer.path, {"context": CONTEXT}),
        replace(writer, options={**writer.options, "context": CONTEXT}),
        ModelSource("embedder", write_embedder(tmp_path / "embedder")),
        ModelSource("transcriber", write_transcriber(tmp_path / "transcriber")),
    )
    authorization = f"Bearer {KEY}"
    path = tmp_path / "openapi.json"
    with serve(*models, api_keys=(KEY,), admin=True) as client:
        document = client.json("GET", "/openapi.json", authorization=authorization)
        path.write_text(json.dumps(tell(document)), "utf-8")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", str(path), "--url", client.url, "-H", f"Authorization: {authorization}"),
            *("--mode", "all", "--max-examples", str(NUM_REQUESTS), "--continue-on-failure"),
            *("--request-timeout", "60", "--generation-database", "none", "--no-color"),
        ]
        seconds = 600 + 60 * NUM_REQUESTS
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_the_document_is_the_same_each_time(serve: Callable[..., Any]) -> None:
    documents = []
    for models in (("mnist",), ("breast_cancer", "mnist")):
        with serve(*models) as client:
            documents.append(client.ask("GET", "/openapi.json")[2])
    assert documents[0] == documents[1]


def test_every_error_of_both_families_is_in_the_document(client: Any) -> None:
    document = client.json("GET", "/openapi.json")
    for path, error in (("/v1/chat/completions", "ErrorAnswer"), ("/v2/models/{model}/infer", "V2Error")):
        responses = document["paths"][path]["post"]["responses"]
        for status in ("400", "404", "413", "415", "422", "500", "503", "504"):
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith(error), (path, status)


def test_keys_are_demanded_where_the_document_says_so(serve: Callable[..., Any]) -> None:
    with serve("mnist", api_keys=(KEY,)) as client:
        document = client.json("GET", "/openapi.json", authorization=f"Bearer {KEY}")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                status, _, _ = client.ask(
                    method.upper(), path.replace("{model}", "mnist").replace("{version}", "1")
                )
                if operation.get("security") == [{"key": []}]:
                    assert status == 401, path
                else:
                    assert status == 200, path
