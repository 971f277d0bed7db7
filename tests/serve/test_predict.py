"""Raw input over HTTP gives what the predictor gives."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import educe
from educe.serve import ModelSource
from educe.serve.http import predict
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving, threads_of

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


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        ("mobilenet_v2", b"no picture", "the body"),
        ("breast_cancer", b"a,b\n1,2\n", "the body"),
        ("breast_cancer", b"mean radius\xff\n1\n", "the body: byte 11"),
    ],
)
def test_what_cannot_be_read_is_said_of_the_body(client: Client, model: str, body: bytes, place: str) -> None:
    status, _, found = client.ask("POST", f"/v1/models/{model}/predict", body)
    error = json.loads(found)["error"]
    assert (status, error["param"]) == (400, place)
    assert error["message"].startswith(f"{place}: ")


def test_a_table_has_a_line_for_each_row(client: Client) -> None:
    path = ZOO / "breast_cancer" / "inputs" / "patients.csv"
    status, headers, found = client.ask("POST", "/v1/models/breast_cancer/predict", path.read_bytes())
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    predictor = educe.predictor(str(ZOO / "breast_cancer"))
    expected = [plain(answer.to_dict()) for answer in predictor.stream(path)]
    assert [plain(json.loads(line)) for line in found.splitlines()] == json.loads(json.dumps(expected))


@pytest.mark.parametrize("num_rows", [2, 2000])
def test_only_many_answers_are_written_beside_the_event_loop(
    client: Client, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    threads = threads_of(monkeypatch, predict, "_plain")
    header, row, *_ = (ZOO / "breast_cancer" / "inputs" / "patients.csv").read_bytes().splitlines()
    table = b"\n".join([header, *[row] * num_rows])
    status, fields, found = client.ask("POST", "/v1/models/breast_cancer/predict", table)
    assert (status, fields["content-type"]) == (200, "application/x-ndjson")
    assert [json.loads(line)["row"] for line in found.splitlines()] == list(range(num_rows))
    assert ("server" in threads) == (num_rows == 2)


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


@pytest.mark.parametrize(
    ("model", "name", "options"),
    [
        ("mobilenet_v2", "images/zebra.jpeg", {"top": 2}),
        ("mobilenet_v2", "images/zebra.jpeg", {"threshold": 0.5}),
        ("breast_cancer", "breast_cancer/inputs/patients.csv", {"top": 1, "threshold": 0.9}),
    ],
)
def test_options_of_answers_are_query_parameters(
    client: Client, model: str, name: str, options: dict[str, Any]
) -> None:
    predictor = educe.predictor(str(ZOO / model), **options)
    expected = [plain(answer.to_dict()) for answer in predictor.stream(ZOO / name)]
    query = "&".join(f"{option}={value}" for option, value in options.items())
    path = f"/v1/models/{model}/predict?{query}"
    status, _, found = client.ask("POST", path, (ZOO / name).read_bytes())
    assert status == 200, found
    assert [plain(json.loads(line)) for line in found.splitlines()] == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("best=1", "best: unknown query parameter (known: top, threshold, priority)"),
        ("top=1&top=2", "a query parameter stands twice"),
        ("top=0", "top: Expected `int` >= 1"),
        ("top=many", "top: Expected `int`"),
        ("priority=high", "priority: Expected `int`"),
        ("threshold=2", "threshold: Expected `float` <= 1"),
        ("threshold=nan", "threshold: Expected `float`"),
    ],
)
def test_options_that_are_none_are_named(client: Client, query: str, message: str) -> None:
    status, _, found = client.ask("POST", f"/v1/models/comment_spam/predict?{query}", "x")
    assert status == 400
    assert message in json.loads(found)["error"]["message"]


def test_options_are_in_the_document(client: Client) -> None:
    operation = client.json("GET", "/openapi.json")["paths"]["/v1/models/{model}/predict"]["post"]
    found = {each["name"]: each["schema"] for each in operation["parameters"] if each["in"] == "query"}
    assert found == {
        "top": {"type": "integer", "minimum": 1},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "priority": {"type": "integer", "minimum": -(2**31), "exclusiveMaximum": 2**31, "default": 0},
    }


WEB_FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize("fields", [WEB_FORM, {}])
def test_bodies_whose_type_says_nothing_are_recognised(client: Client, fields: dict[str, str]) -> None:
    def ask(model: str, body: bytes | str) -> Any:
        status, _, found = client.ask("POST", f"/v1/models/{model}/predict", body, fields)
        return status, json.loads(found.splitlines()[0])

    lines = (ZOO / "breast_cancer" / "inputs" / "patients.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    for body in ("\n".join(lines[:2]), json.dumps(row), json.dumps([row])):
        assert ask("breast_cancer", body)[0] == 200
    status, found = ask("breast_cancer", '{"radius": 1,}')
    assert (status, "byte 13" in found["error"]["message"]) == (400, True)
    expected = ask("comment_spam", "win a prize")[1]["predictions"]
    assert ask("comment_spam", '{"text": "win a prize"}')[1]["predictions"] == expected
    assert ask("comment_spam", "[no json] at all")[0] == 200
    for broken in ('{"text": "click here', ' ["click", here]', '{ "text": "click here"} now'):
        status, found = ask("comment_spam", broken)
        assert (status, "no JSON" in found["error"]["message"]) == (400, True)
    assert ask("mobilenet_v2", (ZOO / "images" / "zebra.jpeg").read_bytes())[0] == 200


def test_a_text_in_json_is_one_text_whatever_is_in_it(client: Client) -> None:
    path = "/v1/models/comment_spam/predict"
    for body in ("win\na\n\nprize", {"text": "win\na prize"}, ["win\na prize"]):
        fields = {"content-type": "application/json"}
        status, headers, found = client.ask("POST", path, json.dumps(body), fields)
        assert (status, headers["content-type"], found.count(b'"predictions"')) == (
            200,
            "application/json",
            1,
        )


def test_rows_in_json_are_objects(client: Client) -> None:
    status, _, found = client.ask("POST", "/v1/models/breast_cancer/predict", [[0.5] * 30])
    assert (status, b"{column: value" in found) == (400, True)


def test_a_table_without_its_line_ends_says_how_to_send_it(client: Client) -> None:
    content = (ZOO / "breast_cancer" / "inputs" / "patients.csv").read_text().replace("\n", "")
    status, _, found = client.ask("POST", "/v1/models/breast_cancer/predict", content, WEB_FORM)
    assert (status, b"--data-binary" in bytes(found)) == (400, True)


def test_a_column_that_is_missing_is_named(client: Client) -> None:
    status, _, found = client.ask("POST", "/v1/models/breast_cancer/predict", {"radius": 1})
    assert status == 400
    message = json.loads(found)["error"]["message"]
    assert "has no column" in message
    assert "'radius'" in message


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
        for body in (b"Once", {"text": "Once"}, "no JSON"):
            fields = {} if isinstance(body, bytes) else {"content-type": "application/json"}
            status, _, found = client.ask("POST", "/v1/models/stories260K/predict", body, fields)
            assert (status, b"POST to /v1/completions" in found) == (422, True)
        assert client.ask("POST", "/v1/models/nix/predict", b"Once")[0] == 404
