"""curl over every route of the document that the server gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import sound
from tests.conftest import ROOT
from tests.serve.conftest import Client

ROW = {"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
TEXT = {"text_input": "Once upon a time", "max_tokens": 4}
BODIES: dict[str, Any] = {
    "/v2/models/{model}/infer": {"inputs": [ROW]},
    "/v2/models/{model}/generate": TEXT,
    "/v2/models/{model}/generate_stream": TEXT,
    "/v2/repository/index": {},
    "/v2/repository/models/{model}/load": {},
    "/v2/repository/models/{model}/unload": {},
    "/v1/chat/completions": {"model": "writer", "messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"model": "writer", "prompt": "Once upon a time", "max_tokens": 4},
    "/v1/responses": {"model": "writer", "input": "Once upon a time", "max_output_tokens": 16},
    "/v1/embeddings": {"model": "embedder", "input": "a text"},
}
# What follows each other at the end, so that others find the models loaded.
LAST = ("/v2/repository/models/{model}/unload", "/v2/repository/models/{model}/load")


def of_forms(path: str, folder: Path) -> list[str] | None:
    """Return what curl is told of a route that takes a file."""
    if path == "/v1/audio/transcriptions":
        return ["--form", f"file=@{folder / 'sound.wav'}", "--form", "model=transcriber"]
    if path == "/v1/models/{model}/predict":
        photo = ROOT / "zoo" / "images" / "zebra.jpeg"
        return ["--header", "content-type: image/jpeg", "--data-binary", f"@{photo}"]
    return None


def values(path: str) -> str:
    """Return a path with models and versions in the place of its parameters."""
    model = "mobilenet_v2" if "predict" in path else "stories260K" if "generate" in path else "breast_cancer"
    return path.replace("{model}", model).replace("{version}", "1")


def test_every_route_answers_curl(client: Client, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    (tmp_path / "sound.wav").write_bytes(sound())
    document = client.json("GET", "/openapi.json")
    operations = [(path, method) for path, methods in document["paths"].items() for method in methods]
    failed = []
    for path, method in sorted(operations, key=lambda each: LAST.index(each[0]) if each[0] in LAST else -1):
        command = [curl, "--silent", "--show-error", "--max-time", "60", "--output", tmp_path / "answer"]
        command += ["--write-out", "%{http_code}", "--request", method.upper(), client.url + values(path)]
        unversioned = path.replace("/versions/{version}", "")
        if unversioned in BODIES:
            command += ["--json", json.dumps(BODIES[unversioned])]
        command += of_forms(path, tmp_path) or []
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        if done.stdout != "200":
            content = (
                (tmp_path / "answer").read_text(errors="replace") if (tmp_path / "answer").exists() else ""
            )
            failed.append((method, path, done.stdout, done.stderr, content[:300]))
    assert not failed, failed
    assert len(operations) > 20
