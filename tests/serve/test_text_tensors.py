"""Language models behind the Open Inference Protocol: texts and sounds as tensors, options as parameters."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import educe
from educe.serve import ModelSource, ServerSettings
from educe.serve.inference import Inference
from educe.serve.repository import Repository
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.models import wav, write_embedder, write_transcriber

PROMPT = "Once upon a time"
SECONDS = 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, ModelSource]:
    base = tmp_path_factory.mktemp("models")
    return {
        "embedder": ModelSource("embedder", write_embedder(base / "embedder")),
        "transcriber": ModelSource("transcriber", write_transcriber(base / "transcriber")),
    }


@pytest.fixture(scope="module")
def texts(folders) -> Iterator[Client]:
    with serving("stories260K", "transliteration", "breast_cancer", *folders.values()) as client:
        yield client


def sound(seconds: float = 0.5) -> bytes:
    samples = np.random.default_rng(1).integers(-3000, 3000, int(16_000 * seconds))
    return wav(samples)


def asked(
    name: str, elements: list[str], shape: list[int] | None = None, **parameters: Any
) -> dict[str, Any]:
    tensor = {"name": name, "shape": shape or [len(elements)], "datatype": "BYTES", "data": elements}
    return {"inputs": [tensor], "parameters": parameters}


def test_metadata_says_what_each_kind_takes_and_gives(texts) -> None:
    wanted = {
        "stories260K": ("generator", "text_input", "text_output", "BYTES", [-1]),
        "transliteration": ("translator", "text_input", "text_output", "BYTES", [-1]),
        "embedder": ("embedder", "text_input", "embedding", "FP32", [-1, 24]),
        "transcriber": ("transcriber", "audio", "text", "BYTES", [-1]),
    }
    for model, (kind, given, found, datatype, shape) in wanted.items():
        assert texts.json("GET", f"/v2/models/{model}") == {
            "name": model,
            "versions": ["1"],
            "platform": f"educe_{kind}",
            "inputs": [{"name": given, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": found, "datatype": datatype, "shape": shape}],
        }


def test_a_generator_continues_each_text(texts) -> None:
    prompts = [PROMPT, "The dog"]
    body = asked("text_input", prompts, max_tokens=12, temperature=0, timing=True)
    answer = texts.json("POST", "/v2/models/stories260K/infer", body)
    with educe.generator(ROOT / "zoo" / "stories260K") as own:
        wanted = [own.generate(prompt, max_tokens=12, temperature=0).text for prompt in prompts]
    assert answer["outputs"] == [
        {"name": "text_output", "shape": [2], "datatype": "BYTES", "data": wanted},
    ]
    assert answer["parameters"]["batch_rows"] == 2


def test_shapes_of_batches_come_back(texts) -> None:
    body = asked("text_input", [PROMPT], [1, 1], max_tokens=2)
    (output,) = texts.json("POST", "/v2/models/stories260K/infer", body)["outputs"]
    assert output["shape"] == [1, 1]


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": "4"}, 400, "max_tokens"),
        ({"temperature": True}, 400, "temperature"),
        ({"top_p": 3}, 400, "top_p"),
        ({"seed": 2.5}, 400, "seed"),
        ({"salt": "mine"}, 400, "unknown parameter"),
        ({"tools": "[]"}, 400, "unknown parameter"),
        ({"n": 3}, 400, "unknown parameter"),
        ({"regex": "("}, 400, "regex"),
        ({"json_schema": "{"}, 400, "json_schema"),
        ({"json_schema": 5}, 400, "json_schema"),
        ({"grammar": 5}, 400, "grammar"),
        ({"stop": ""}, 400, "stop"),
        ({"priority": "high"}, 400, "priority"),
        ({"timeout": -1.5}, 400, "timeout"),
        ({"timing": 1}, 400, "timing"),
    ],
)
def test_an_option_that_is_none_is_refused(texts, parameters, status, says) -> None:
    body = asked("text_input", [PROMPT], **{"max_tokens": 2, **parameters})
    found, _, content = texts.ask("POST", "/v2/models/stories260K/infer", body)
    assert found == status, content
    assert says in json.loads(content)["error"]


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "text_input", "shape": [0], "datatype": "BYTES", "data": []},
        {"name": "text_input", "shape": [], "datatype": "BYTES", "data": ["a"]},
        {"name": "text_input", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]},
        {"name": "text_input", "shape": [1], "datatype": "INT32", "data": [1]},
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]},
        {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["word " * 2000]},
    ],
)
@pytest.mark.parametrize("model", ["stories260K", "transliteration", "embedder"])
def test_what_is_no_text_is_refused(texts, tensor, model) -> None:
    status, _, content = texts.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert status == 400, content


@pytest.mark.parametrize(("model", "count"), [("embedder", 10_001), ("stories260K", 129)])
def test_too_many_texts_are_refused(texts, model, count) -> None:
    body = asked("text_input", ["a"] * count)
    status, _, _ = texts.ask("POST", f"/v2/models/{model}/infer", body)
    assert status == 413


def test_only_language_models_take_options(texts) -> None:
    tensor = {"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0] * 30}
    body = {"inputs": [tensor], "parameters": {"temperature": 0}}
    status, _, content = texts.ask("POST", "/v2/models/breast_cancer/infer", body)
    assert status == 400
    assert b"unknown parameter 'temperature'" in content


def test_an_embedder_gives_vectors(texts, folders) -> None:
    words = ["a b", "c", "d e f"]
    answer = texts.json("POST", "/v2/models/embedder/infer", asked("text_input", words))
    (output,) = answer["outputs"]
    wanted = educe.embedder(folders["embedder"].path).embed(words)
    assert output["shape"] == [3, 24]
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(3, 24), wanted)
    long = asked("text_input", ["x " * 90], truncate=True)
    assert texts.json("POST", "/v2/models/embedder/infer", long)["outputs"][0]["shape"] == [1, 24]
    status, _, content = texts.ask(
        "POST", "/v2/models/embedder/infer", asked("text_input", ["a"], truncate=1)
    )
    assert (status, b"truncate" in content) == (400, True)


def test_requests_that_run_together_are_answered_each_by_itself(texts, folders) -> None:
    embedder = educe.embedder(folders["embedder"].path)
    answers: dict[str, Any] = {}

    def ask(text: str) -> None:
        answers[text] = texts.ask("POST", "/v2/models/embedder/infer", asked("text_input", [text]))

    too_long = "y " * 90
    words = ["a", "b c", too_long, "d", "e f g", "h"]
    threads = [threading.Thread(target=ask, args=(text,)) for text in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers.pop(too_long)[0] == 400
    for text, (status, _, content) in answers.items():
        assert status == 200
        found = np.array(json.loads(content)["outputs"][0]["data"], np.float32)
        np.testing.assert_array_equal(found, embedder.embed([text])[0])


def test_a_translator_translates(texts) -> None:
    words = ["abc", "hello"]
    (output,) = texts.json("POST", "/v2/models/transliteration/infer", asked("text_input", words))["outputs"]
    assert output["data"] == educe.translator(ROOT / "zoo" / "transliteration").translate(words)
    body = asked("text_input", words, target="xx")
    status, _, content = texts.ask("POST", "/v2/models/transliteration/infer", body)
    assert status == 400, content


def test_a_transcriber_hears(texts, folders) -> None:
    raw = sound()
    content = len(raw).to_bytes(4, "little") + raw
    tensor = {
        "name": "audio",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(content)},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"language": "en"}}).encode()
    fields = {"inference-header-content-length": str(len(header))}
    status, _, answer = texts.ask("POST", "/v2/models/transcriber/infer", header + content, fields)
    assert status == 200, answer
    wanted = educe.transcriber(folders["transcriber"].path).transcribe(raw, language="en").text
    assert json.loads(answer)["outputs"][0]["data"] == [wanted]
    for body, says in (
        (asked("audio", ["x"]), b"no text"),
        (asked("audio", ["x"], language="xx"), b""),
        (asked("audio", ["x"], task=3), b"task"),
    ):
        status, _, answer = texts.ask("POST", "/v2/models/transcriber/infer", body)
        assert status == 400
        assert says in answer


def test_generate_is_what_infer_says(texts) -> None:
    options = {"max_tokens": 8, "temperature": 0}
    wanted = texts.json("POST", "/v2/models/stories260K/infer", asked("text_input", [PROMPT], **options))
    text = wanted["outputs"][0]["data"][0]
    for body in (
        {"text_input": PROMPT, "id": "7", **options},
        {"text_input": PROMPT, "id": "7", "parameters": {"stream": False, **options}},
        {"text_input": PROMPT, "id": "7", "max_tokens": 8, "parameters": {"temperature": 0}},
    ):
        answer = texts.json("POST", "/v2/models/stories260K/generate", body)
        assert answer == {"model_name": "stories260K", "model_version": "1", "text_output": text, "id": "7"}
    body = {"text_input": "abc"}
    answer = texts.json("POST", "/v2/models/transliteration/versions/1/generate", body)
    assert answer["text_output"]


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        ("stories260K", {}, 400),
        ("stories260K", {"text_input": 3}, 400),
        ("stories260K", {"text_input": "a", "max_tokens": -1}, 400),
        ("stories260K", {"text_input": "a", "color": "red"}, 400),
        ("stories260K", {"text_input": "a", "parameters": {"color": "red"}}, 400),
        ("stories260K", {"text_input": "a", "num_beams": 3}, 400),
        ("stories260K", {"text_input": "a", "stop": ["a", ""]}, 400),
        ("stories260K", {"text_input": "a", "seed": 2**64}, 400),
        ("transliteration", {"text_input": "a", "temperature": 1}, 400),
        ("embedder", {"text_input": "a"}, 400),
        ("nothing", {"text_input": "a"}, 404),
    ],
)
def test_generate_refuses_what_is_wrong(texts, route, model, body, status) -> None:
    found, fields, content = texts.ask("POST", f"/v2/models/{model}/{route}", body)
    assert found == status, content
    assert fields["content-type"] == "application/json"
    assert "error" in json.loads(content)


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
@pytest.mark.parametrize("among", [3, 8])
def test_an_option_that_is_given_twice_is_named(texts, route, among) -> None:
    body = {"text_input": "a", "max_tokens": 8, "parameters": {"max_tokens": among, "temperature": 0}}
    status, _, content = texts.ask("POST", f"/v2/models/stories260K/{route}", body)
    assert (status, b"parameters.max_tokens" in content) == (400, True)


def test_generate_refuses_to_stream(texts) -> None:
    body = {"text_input": "a", "stream": True}
    status, _, content = texts.ask("POST", "/v2/models/stories260K/generate", body)
    assert status == 400
    assert b"generate_stream" in content


def test_a_stream_has_the_text_in_pieces(texts) -> None:
    body = {"text_input": PROMPT, "max_tokens": 12, "temperature": 0, "id": "a"}
    whole = texts.json("POST", "/v2/models/stories260K/generate", body)["text_output"]
    status, fields, content = texts.ask("POST", "/v2/models/stories260K/generate_stream", body)
    assert (status, fields["content-type"]) == (200, "text/event-stream")
    events = content.decode().split("\n\n")
    assert events.pop() == ""
    pieces = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(pieces) > 3
    assert {(piece["id"], piece["model_name"]) for piece in pieces} == {("a", "stories260K")}
    assert "".join(piece["text_output"] for piece in pieces) == whole


def test_a_reader_that_goes_ends_its_text() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(4) as pool:
            settings = ServerSettings()
            repository = Repository([ModelSource("writer", ROOT / "zoo" / "stories260K")], settings, pool)
            inference = Inference(repository, settings, pool, repository)
            options = {"max_tokens": 400, "min_tokens": 400, "ignore_eos": True}
            feeds = {"text_input": np.array([PROMPT], object)}
            call = inference.call("writer", None, feeds, options)
            num_written = 0

            async def read_pieces() -> None:
                async for _ in inference.stream(call):
                    pass

            async def leave(read: Coroutine[Any, Any, Any]) -> bool:
                """Read, go once the text has begun, and say whether it had not come to its end by then."""
                nonlocal num_written
                task = asyncio.ensure_future(read)
                deployment = await repository.use("writer")
                model = deployment.served.model
                end = time.monotonic() + SECONDS
                while model.statistics().num_running == 0 and time.monotonic() < end and not task.done():
                    await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.wait([task])
                while model.statistics().num_running or deployment.num_users:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.001)
                found = model.statistics()
                assert found.num_running == found.num_waiting == deployment.num_users == 0
                before, num_written = num_written, found.num_tokens
                return num_written - before < 400

            for start in (lambda: inference.infer(call), read_pieces):
                for _ in range(20):  # on a busy machine the text may be whole before its reader goes
                    if await leave(start()):
                        break
                else:
                    pytest.fail("each text was written to its end")
            repository.close()

    asyncio.run(main())


def test_a_text_ends_at_its_deadline(texts) -> None:
    body = asked("text_input", [PROMPT], max_tokens=400, min_tokens=400, ignore_eos=True, timeout=1000)
    status, _, _ = texts.ask("POST", "/v2/models/stories260K/infer", body)
    assert status == 504
