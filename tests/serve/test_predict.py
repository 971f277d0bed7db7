"""Raw input over HTTP gives what the predictor gives."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import educe
from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

ZOO = ROOT / "zoo"
FREE = ("input", "seconds")


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in FREE}


def form(content: bytes, kind: str = "image/jpeg", times: int = 1) -> tuple[bytes, dict[str, str]]:
    part = (
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="../../etc/passwd"\r\n'
        + f"Content-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
    )
    return part * times + b"--xx--\r\n", {"content-type": "multipart/form-data; boundary=xx"}


def test_a_picture_is_answered_as_in_python(client: Client) -> None:
    path = ZOO / "images" / "zebra.jpeg"
    expected = educe.predictor(str(ZOO / "mobilenet_v2"))(path).to_dict()
    found = client.json("POST", "/v1/models/mobilenet_v2/predict", path.read_bytes())
    assert plain(found) == json.loads(json.dumps(plain(expected)))
    assert found["predictions"][0]["label"] == "zebra"


def test_a_form_with_one_file_is_as_good(client: Client) -> None:
    body, fields = form((ZOO / "images" / "zebra.jpeg").read_bytes())
    status, headers, found = client.ask("POST", "/v1/models/mobilenet_v2/predict", body, fields)
    assert status == 200
    assert json.loads(found)["predictions"][0]["label"] == "zebra"
    assert "run;dur=" in headers["server-timing"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"no picture", {}),
        form(b"x", times=0),
        form(b"x", times=2),
        form(b"x", times=500),
        (b"--xx\r\n", {"content-type": "multipart/form-data; boundary=xx"}),
        (b"x", {"content-type": "multipart/form-data"}),
        (b"x", {"content-type": 'multipart/form-data; boundary="'}),
        (b"/etc/passwd", {"content-type": "text/plain"}),
    ],
)
def test_what_is_no_picture_is_refused(client: Client, body: bytes, fields: dict[str, str]) -> None:
    status, _, found = client.ask("POST", "/v1/models/mobilenet_v2/predict", body, fields)
    assert status == 400
    assert json.loads(found)["error"]["message"]


def test_a_table_has_a_line_for_each_row(client: Client) -> None:
    path = ZOO / "breast_cancer" / "inputs" / "patients.csv"
    status, headers, found = client.ask("POST", "/v1/models/breast_cancer/predict", path.read_bytes())
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    predictor = educe.predictor(str(ZOO / "breast_cancer"))
    expected = [plain(answer.to_dict()) for answer in predictor.stream(path)]
    assert [plain(json.loads(line)) for line in found.splitlines()] == json.loads(json.dumps(expected))


def test_rows_may_be_json(client: Client) -> None:
    lines = (ZOO / "breast_cancer" / "inputs" / "patients.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    found = client.json("POST", "/v1/models/breast_cancer/predict", row)
    many = client.ask("POST", "/v1/models/breast_cancer/predict", [row, row])[2].splitlines()
    assert [plain(json.loads(line))["predictions"] for line in many] == [found["predictions"]] * 2
    for wrong in (5, [], "x", [1], None):
        body = json.dumps(wrong)
        fields = {"content-type": "application/json"}
        assert client.ask("POST", "/v1/models/breast_cancer/predict", body, fields)[0] == 400


def test_a_bad_row_costs_no_other_its_answer(client: Client) -> None:
    lines = (ZOO / "breast_cancer" / "inputs" / "patients.csv").read_text().splitlines()
    lines[2] = lines[2].replace(lines[2].split(",")[3], "nonsense", 1)
    found = client.ask("POST", "/v1/models/breast_cancer/predict", "\n".join(lines))[2].splitlines()
    kinds = ["error" in json.loads(line) for line in found]
    assert kinds == [number == 1 for number in range(len(lines) - 1)]


def test_a_text_is_never_the_name_of_a_file(client: Client) -> None:
    for text in ("README.md", "/etc/passwd", str(Path(__file__))):
        fields = {"content-type": "text/plain"}
        status, _, found = client.ask("POST", "/v1/models/comment_spam/predict", text, fields)
        assert status == 200, found
        assert json.loads(found)["task"] == "text-classification"


@pytest.mark.parametrize("value", ["win a prize", {"text": "win a prize"}, ["win a prize"] * 2])
def test_texts_may_be_json(client: Client, value: Any) -> None:
    path = "/v1/models/comment_spam/predict"
    plainly = client.ask("POST", path, "win a prize", {"content-type": "text/plain"})[2]
    expected = json.loads(plainly)["predictions"]
    status, _, found = client.ask("POST", path, json.dumps(value), {"content-type": "application/json"})
    assert status == 200
    num_texts = len(value) if isinstance(value, list) else 1
    assert [json.loads(line)["predictions"] for line in found.splitlines()] == [expected] * num_texts


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("comment_spam", value)
        for value in (1, None, [], [1], "", {"txt": "x"}, {"text": 1}, {"text": "x", "y": 1})
    ]
    + [("mobilenet_v2", "x")],
)
def test_other_json_is_refused(client: Client, model: str, value: Any) -> None:
    fields = {"content-type": "application/json"}
    assert client.ask("POST", f"/v1/models/{model}/predict", json.dumps(value), fields)[0] == 400


def test_unknown_query_parameters_are_refused(client: Client) -> None:
    status, _, found = client.ask("POST", "/v1/models/comment_spam/predict?top=1", "x")
    assert (status, b"unknown query parameter" in bytes(found)) == (400, True)


def test_pictures_that_come_at_once_are_answered_as_if_alone() -> None:
    names = ["zebra.jpeg", "bee.jpeg", "fox.jpeg", "kitten.jpg"]
    with serving("mobilenet_v2") as client:
        path = "/v1/models/mobilenet_v2/predict"
        contents = {name: (ZOO / "images" / name).read_bytes() for name in names}
        alone = {name: plain(client.json("POST", path, contents[name])) for name in names}
        faults: list[str] = []

        def ask(name: str) -> None:
            if plain(client.json("POST", path, contents[name])) != alone[name]:
                faults.append(name)

        threads = [threading.Thread(target=ask, args=(name,)) for name in names * 6]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        status, _, _ = client.ask("POST", path, b"poison among them")
    assert not faults
    assert status == 400


def test_a_model_of_raw_tensors_takes_files_of_arrays(tmp_path: Path) -> None:
    import numpy as np

    content = tmp_path / "digit.npy"
    np.save(content, np.zeros((1, 1, 28, 28), np.float32))
    source = ModelSource("digits", ZOO / "mnist" / "model.onnx", {"task": "tensor"})
    with serving(source) as client:
        found = client.json("POST", "/v1/models/digits/predict", content.read_bytes())
        assert next(iter(found["outputs"].values()))["shape"] == [1, 10]


def test_language_models_and_unknown_ones_say_so() -> None:
    with serving("stories260K") as client:
        assert client.ask("POST", "/v1/models/stories260K/predict", b"Once")[0] == 422
        assert client.ask("POST", "/v1/models/nix/predict", b"Once")[0] == 404
