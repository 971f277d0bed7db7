"""Completions, embeddings and transcriptions through the OpenAI client."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from educe import api
from educe.errors import InputError
from educe.generate.embedding import Embedder
from educe.machine import usable_cores
from educe.serve import ModelSource
from educe.serve.http.openai import audio, embeddings, logprobs
from educe.serve.writing import Writing
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving, threads_of
from tests.serve.models import wav, write_embedder, write_transcriber

STORIES = ROOT / "zoo" / "stories260K"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_embedder(folder / "reader")
    write_transcriber(folder / "listener")
    return folder


@pytest.fixture(scope="module")
def server(folders: Path) -> Iterator[Client]:
    sources = [ModelSource(name, folders / name) for name in ("reader", "listener")]
    sources.append(ModelSource("talker", STORIES, {"chat_template": "{{ messages[0].content }}"}))
    with serving("stories260K", "breast_cancer", *sources) as found:
        yield found


@pytest.fixture(scope="module")
def api_client(server: Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as found:
        yield found


@pytest.fixture(scope="module")
def writer() -> Iterator[Any]:
    with api.generator(STORIES) as found:
        yield found


@pytest.fixture(scope="module")
def sound() -> bytes:
    samples = np.random.default_rng(4).integers(-9000, 9000, 30_000, np.int16)
    return wav(samples)


# Completions ---------------------------------------------------------------------------------------------


def test_a_text_is_continued_as_by_the_generator(api_client: openai.OpenAI, writer: Any) -> None:
    found = api_client.completions.create(model="stories260K", prompt=PROMPT, max_tokens=12)
    expected = writer.generate(PROMPT, max_tokens=12)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (expected.text, "length", None)
    assert found.object == "text_completion"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.num_prompt_tokens, 12)


def test_many_texts_and_tokens_are_continued_in_their_order(api_client: openai.OpenAI, writer: Any) -> None:
    prompts = [PROMPT, "Tom had a", "Lily"]
    options: Any = {"max_tokens": 6, "seed": 5, "temperature": 0.9, "n": 2}
    expected = [each.text for prompt in prompts for each in writer.generate(prompt, **options).outputs]
    for given in (prompts, [writer.encode(prompt) for prompt in prompts]):
        found = api_client.completions.create(model="stories260K", prompt=given, **options)
        assert [choice.text for choice in found.choices] == expected
        assert [choice.index for choice in found.choices] == list(range(6))
    alone = api_client.completions.create(model="stories260K", prompt=writer.encode(PROMPT), **options)
    assert [choice.text for choice in alone.choices] == expected[:2]
    texts, reasons = [""] * 6, [""] * 6
    for chunk in api_client.completions.create(
        model="stories260K", prompt=prompts, stream=True, stream_options={"include_usage": True}, **options
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == expected
    assert reasons == ["length"] * 6
    assert chunk.choices == []
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 36


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [3, 0])
def test_a_prompt_is_weighed_where_it_is_echoed(
    api_client: openai.OpenAI, writer: Any, stream: bool, count: int
) -> None:
    asked: Any = {
        "model": "stories260K", "prompt": PROMPT, "max_tokens": count, "echo": True, "logprobs": 2, "n": 2,
        "temperature": 0,
    }  # fmt: skip
    ids, expected = writer.encode(PROMPT), writer.generate(PROMPT, max_tokens=count, logprobs=2)
    weighed = [*writer.score(ids, top=2).choices, *expected.outputs[0].logprobs]
    parts: list[list[Any]] = [[], []]
    if stream:
        for chunk in api_client.completions.create(stream=True, **asked):
            parts[chunk.choices[0].index] += chunk.choices
    else:
        parts = [[choice] for choice in api_client.completions.create(**asked).choices]
    for choices in parts:
        assert "".join(choice.text for choice in choices) == PROMPT + expected.text
        assert choices[-1].finish_reason == "length"
        told = [choice.logprobs for choice in choices]
        values = [value for each in told for value in each.token_logprobs]
        assert values[0] is None
        assert values[1:] == pytest.approx([choice.logprob for choice in weighed])
        tops = [top for each in told for top in each.top_logprobs]
        assert tops[0] is None
        assert all(len(top) == 2 for top in tops[1:])
        tokens = [token for each in told for token in each.tokens]
        assert len(tokens) == len(ids) + count
        offsets = [offset for each in told for offset in each.text_offset]
        told_ids = [*ids, *expected.tokens]
        assert offsets == [len(writer.tokenizer.decode(told_ids[:index])) for index in range(len(told_ids))]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [[1, 2, 3], [1], [1, 440, 228], "Zoë"])
def test_offsets_say_where_tokens_stand_in_the_text(
    api_client: openai.OpenAI, writer: Any, prompt: Any, stream: bool, echo: bool
) -> None:
    asked: Any = {"prompt": prompt, "max_tokens": 6, "echo": echo, "logprobs": 0, "temperature": 0}
    found = api_client.completions.create(model="stories260K", stream=stream, **asked)
    choices = [part.choices[0] for part in (found if stream else [found])]
    text = "".join(choice.text for choice in choices)
    told = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for each in told for token in each.tokens]
    offsets = [offset for each in told for offset in each.text_offset]
    assert offsets == sorted(offsets)
    ends = [*offsets[1:], len(text)]
    for token, start, end in zip(tokens, offsets, ends, strict=True):
        if token in ("<s>", "</s>"):
            assert start == end
        elif "\ufffd" not in token:
            assert text[start:end].strip() == token.strip()


def test_a_prompt_of_one_token_is_echoed(api_client: openai.OpenAI) -> None:
    found = api_client.completions.create(
        model="stories260K", prompt=[1], max_tokens=1, echo=True, logprobs=0
    )
    assert found.choices[0].logprobs is not None
    assert found.choices[0].logprobs.token_logprobs is not None
    assert found.choices[0].logprobs.token_logprobs[0] is None
    assert found.choices[0].logprobs.top_logprobs == [None, {}]


def test_a_text_ends_at_a_stop(api_client: openai.OpenAI, writer: Any) -> None:
    found = api_client.completions.create(model="stories260K", prompt="Tom had a", stop=".")
    assert found.choices[0].text == writer.generate("Tom had a", stop=["."]).text
    assert found.choices[0].finish_reason == "stop"


COMPLETIONS: Any = [
    ({"suffix": "a"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": ["a"] * 9, "n": 16}, "prompt"),
    ({"prompt": "Tom " * 600}, "prompt"),
    ({"prompt": "Tom " * 600, "echo": True, "logprobs": 1}, "prompt"),
    ({"json_schema": {"type": 1}}, "json_schema"),
    ({"regex": "a", "choice": ["b"]}, "None"),
    ({"regex": "(a{1000}){1000}", "max_tokens": 9}, "regex"),
    ({"json_schema": {"type": "integer", "multipleOf": 999_983}}, "json_schema"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("changes", "param"), COMPLETIONS, ids=[str(n) for n in range(len(COMPLETIONS))])
def test_what_is_wrong_with_a_completion_is_named(server: Client, changes: Any, param: str) -> None:
    for stream in (False, True):
        body = {"model": "stories260K", "prompt": PROMPT, "max_tokens": 1, "stream": stream, **changes}
        status, _, content = server.ask("POST", "/v1/completions", body)
        error = json.loads(content)["error"]
        assert status == 400
        assert str(error["param"]).startswith(param), error


WEIGHED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "n": 4, "max_tokens": 80, "logprobs": 20},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Once"}],
        "n": 4,
        "max_tokens": 80,
        "logprobs": True,
        "top_logprobs": 20,
    },
    "/v1/responses": {"input": "Once", "max_output_tokens": 320, "top_logprobs": 20},
    "echo": {"prompt": [5] * 300, "max_tokens": 1, "logprobs": 20, "echo": True},
}


@pytest.mark.parametrize("is_large", [True, False])
@pytest.mark.parametrize("name", WEIGHED)
def test_only_large_answers_are_written_beside_the_event_loop(
    server: Client, monkeypatch: pytest.MonkeyPatch, name: str, is_large: bool
) -> None:
    threads = threads_of(monkeypatch, logprobs, "_text")
    body = {"model": "talker", "ignore_eos": True, **WEIGHED[name]}
    if not is_large:
        body |= {key: 1 for key in body if "max" in key}
        body |= {"prompt": [5, 6]} if name == "echo" else {}
    path = "/v1/completions" if name == "echo" else name
    status, _, content = server.ask("POST", path, body)
    assert status == 200, content
    if name == "echo" and is_large:
        assert threads - {"server"}  # the text that follows is small
    else:
        assert ("server" in threads) != is_large
    assert len(threads) == 1


# Embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch": 1, "max_waiting": 1},
        {"max_batch": 8, "max_waiting": 128},
        {"max_batch": 8, "target_seconds": 0.0001},
    ],
)
def test_an_idle_server_makes_vectors_of_as_many_texts_as_it_takes(
    folders: Path, settings: dict[str, Any]
) -> None:
    texts = [" ".join("abcdefghij"[: 1 + index % 10]) for index in range(2048)]
    with serving(ModelSource("reader", folders / "reader"), **settings) as found:
        for _ in range(2):
            answer = found.json("POST", "/v1/embeddings", {"model": "reader", "input": texts})
    expected = api.embedder(folders / "reader").embed(texts)
    vectors = np.array([each["embedding"] for each in answer["data"]], np.float32)
    np.testing.assert_array_equal(vectors, expected)


def test_parts_behind_one_that_fails_do_not_run(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, num_runs = Embedder.embed_tokens, 0

    def fail_once(*given: Any) -> Any:
        nonlocal num_runs
        num_runs += 1
        if num_runs == 3:
            raise InputError("the third one fails")
        return embed(*given)

    monkeypatch.setattr(Embedder, "embed_tokens", fail_once)
    with serving(ModelSource("reader", folders / "reader"), max_batch=1) as found:
        body = {"model": "reader", "input": ["a"] * 50}
        status, _, content = found.ask("POST", "/v1/embeddings", body)
        assert (status, b"the third one fails" in content) == (400, True)
        assert num_runs <= 4  # the next may have begun
        assert found.ask("POST", "/v1/embeddings", body)[0] == 200


def test_vectors_are_those_of_the_embedder(api_client: openai.OpenAI, folders: Path) -> None:
    texts = ["a", "b c d", "", "q r s t"]
    model = api.embedder(folders / "reader")
    expected = model.embed(texts)
    as_base64 = api_client.embeddings.create(model="reader", input=texts)  # the client asks for base64
    as_floats = api_client.embeddings.create(model="reader", input=texts, encoding_format="float")
    ids = api_client.embeddings.create(model="reader", input=[model.tokens(text) for text in texts])
    for found in (as_base64, as_floats, ids):
        np.testing.assert_array_equal(np.array([each.embedding for each in found.data], np.float32), expected)
        assert [each.index for each in found.data] == [0, 1, 2, 3]
        count = sum(len(model.tokens(text)) for text in texts)
        assert (found.usage.prompt_tokens, found.usage.total_tokens) == (count, count)
    alone = api_client.embeddings.create(model="reader", input="a", dimensions=model.dimensions)
    np.testing.assert_array_equal(np.array(alone.data[0].embedding, np.float32), expected[0])
    own = api_client.embeddings.create(model="reader", input=model.tokens("b c d"))
    np.testing.assert_array_equal(np.array(own.data[0].embedding, np.float32), expected[1])


def test_base64_is_of_little_endian_floats(server: Client, folders: Path) -> None:
    body = {"model": "reader", "input": "a b", "encoding_format": "base64"}
    found = server.json("POST", "/v1/embeddings", body)["data"][0]["embedding"]
    expected = api.embedder(folders / "reader").embed(["a b"])[0]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found), "<f4"), expected)


def test_many_texts_run_in_parts_and_in_order(api_client: openai.OpenAI, folders: Path) -> None:
    texts = ["abcdefghij"[index % 10] + " x" * (index % 7) for index in range(300)]
    found = api_client.embeddings.create(model="reader", input=texts)
    expected = api.embedder(folders / "reader").embed(texts)
    np.testing.assert_array_equal(np.array([each.embedding for each in found.data], np.float32), expected)


def test_a_text_that_is_too_long_is_cut_only_if_it_is_asked_for(
    api_client: openai.OpenAI, folders: Path
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        api_client.embeddings.create(model="reader", input=["a", "x " * 60])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input[1]")
    found = api_client.embeddings.create(model="reader", input="x " * 60, extra_body={"truncate": True})
    expected = api.embedder(folders / "reader").embed(["x " * 60], truncate=True)[0]
    np.testing.assert_array_equal(np.array(found.data[0].embedding, np.float32), expected)
    cut, short = (
        api_client.embeddings.create(model="reader", input=ids, extra_body={"truncate": True})
        for ids in ([5] * 60, [5] * api.embedder(folders / "reader").max_tokens)
    )
    assert cut.data[0].embedding == short.data[0].embedding


EMBEDDINGS: Any = [
    ({"dimensions": 3}, "dimensions"),
    ({"input": []}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": ["a", [1]]}, "input"),
    ({"input": [999]}, "input[0]"),
    ({"input": [[1] * 51]}, "input[0]"),
    ({"input": ["a"] * 2049}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize(("changes", "param"), EMBEDDINGS, ids=[str(n) for n in range(len(EMBEDDINGS))])
def test_what_is_wrong_with_texts_is_named(server: Client, changes: Any, param: str) -> None:
    status, _, content = server.ask("POST", "/v1/embeddings", {"model": "reader", "input": "a", **changes})
    error = json.loads(content)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert str(error["param"]).startswith(param), error


@pytest.mark.parametrize("model", ["stories260K", "breast_cancer", "listener"])
def test_a_model_of_another_kind_is_refused(api_client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        api_client.embeddings.create(model=model, input="a")
    assert refused.value.param == "model"


# Transcriptions ------------------------------------------------------------------------------------------


def test_a_transcript_comes_in_every_form(api_client: openai.OpenAI, folders: Path, sound: bytes) -> None:
    expected = api.transcriber(folders / "listener").transcribe(sound, language="en")
    assert expected.segments

    def ask(form: Any) -> Any:
        return api_client.audio.transcriptions.create(
            model="listener", file=("talk.wav", sound), language="en", response_format=form
        )

    plain: Any = ask("json")
    assert plain.text == expected.text
    assert (plain.usage.type, plain.usage.seconds) == ("duration", 2)
    assert ask("text") == f"{expected.text}\n"
    assert ask("srt") == expected.srt()
    assert ask("vtt") == expected.vtt()
    found = ask("verbose_json")
    assert (found.language, found.duration, found.text) == ("en", 30_000 / 16_000, expected.text)
    assert [(each.start, each.end, each.text) for each in found.segments] == [
        (each.start_seconds, each.end_seconds, each.text) for each in expected.segments
    ]


def test_a_transcript_is_streamed(api_client: openai.OpenAI, folders: Path, sound: bytes) -> None:
    expected = api.transcriber(folders / "listener").transcribe(sound, temperature=0.7)
    events: Any = list(
        api_client.audio.transcriptions.create(
            model="listener", file=("talk.wav", sound), temperature=0.7, stream=True
        )
    )
    assert "".join(event.delta for event in events[:-1]) == expected.text == events[-1].text
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"


TRANSCRIPTIONS: Any = [
    ({"prompt": "Tom"}, "prompt"),
    ({"language": "xx"}, "language"),
    ({"temperature": "2"}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"response_format": "xml"}, "response_format"),
    ({"response_format": "srt", "stream": "true"}, "response_format"),
    ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
    ({"include[]": "logprobs"}, "include"),
    ({"chunking_strategy": "auto"}, "chunking_strategy"),
    ({"file": b"no sound"}, "file"),
    ({"file": None}, "file"),
    ({"model": None}, "model"),
    ({"language": b"\xff"}, "language"),
]


def form(fields: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    parts = [
        b'--x\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b'; filename="a.wav"' if name == "file" else b"",
           value if isinstance(value, bytes) else value.encode())
        for name, value in fields.items()
        if value is not None
    ]  # fmt: skip
    return b"".join([*parts, b"--x--\r\n"]), {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("changes", "param"), TRANSCRIPTIONS, ids=[str(n) for n in range(len(TRANSCRIPTIONS))]
)
def test_what_is_wrong_with_a_form_is_named(server: Client, sound: bytes, changes: Any, param: str) -> None:
    body, headers = form({"model": "listener", "file": sound, **changes})
    status, _, content = server.ask("POST", "/v1/audio/transcriptions", body, headers)
    error = json.loads(content)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert str(error["param"]).startswith(param), error


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n", "multipart/form-data", 400),
        (b"", "multipart/form-data; boundary=x", 400),
        (form({f"a{number}": "b" for number in range(101)})[0], "multipart/form-data; boundary=x", 400),
        (form({"model": "listener"})[0].replace(b"--x--\r\n", b"") * 2 + b"--x--\r\n",
         "multipart/form-data; boundary=x", 400),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(server: Client, body: bytes, kind: str, status: int) -> None:
    found, _, content = server.ask("POST", "/v1/audio/transcriptions", body, {"content-type": kind})
    assert found == status, content
    assert json.loads(content)["error"]["message"]


# Places in the queue -------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """What counts the inputs whose reading has begun, and what lets it go on."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(read: Any) -> Any:
        def read_later(*given: Any) -> Any:
            begun.release()
            assert go_on.wait(60)
            return read(*given)

        return read_later

    monkeypatch.setattr(audio, "open_sound", slow(audio.open_sound))
    monkeypatch.setattr(embeddings, "_tokens", slow(embeddings._tokens))
    yield begun, go_on
    go_on.set()


@pytest.mark.parametrize("model", ["listener", "reader"])
def test_what_is_refused_for_those_that_wait_is_not_read(
    model: str, folders: Path, sound: bytes, held: tuple[threading.Semaphore, threading.Event]
) -> None:
    begun, go_on = held
    body, headers = form({"model": "listener", "file": sound})
    asked: Any = ("POST", "/v1/audio/transcriptions", body, headers)
    if model == "reader":
        asked = ("POST", "/v1/embeddings", {"model": "reader", "input": "a"})
    with (
        serving(ModelSource(model, folders / model), max_waiting=1) as found,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(found.ask, *asked)
        assert begun.acquire(timeout=60)
        assert [found.ask(*asked)[0] for _ in range(3)] == [503] * 3
        go_on.set()
        assert first.result()[0] == 200
        assert not begun.acquire(blocking=False)


def test_runs_of_other_models_do_not_wait_for_what_is_read(
    server: Client, sound: bytes, held: tuple[threading.Semaphore, threading.Event]
) -> None:
    begun, go_on = held
    count = 2 * max(4, 2 * usable_cores())
    body, headers = form({"model": "listener", "file": sound})
    row = {"inputs": [{"name": "x", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}
    (given,) = server.json("GET", "/v2/models/breast_cancer")["inputs"]
    row["inputs"][0] |= {"name": given["name"], "datatype": given["datatype"]}
    with ThreadPoolExecutor(count) as pool:
        asked = [
            pool.submit(server.ask, "POST", "/v1/audio/transcriptions", body, headers) for _ in range(count)
        ]
        assert all(begun.acquire(timeout=60) for _ in range(count // 2))
        server.json("POST", "/v2/models/breast_cancer/infer", row)
        chat = {"model": "stories260K", "prompt": [1, 2], "max_tokens": 1}
        assert not any(each.done() for each in asked)
        go_on.set()
        server.json("POST", "/v1/completions", chat)
        assert [each.result()[0] for each in asked] == [200] * count


def test_what_is_weighed_ends_with_its_request(writer: Any) -> None:
    async def main() -> list[Any]:
        with ThreadPoolExecutor(4) as pool, Writing(writer, math.inf, 1, pool) as written:
            weighed = [asyncio.ensure_future(written.weigh([1] * 500, 1)) for _ in range(100)]
            await asyncio.wait(weighed, return_when=asyncio.FIRST_COMPLETED)
            for each in weighed:
                each.cancel()
            return await asyncio.gather(*weighed, return_exceptions=True)

    before = writer.statistics()
    found = asyncio.run(main())
    assert sum(isinstance(each, asyncio.CancelledError) for each in found) > 50
    end = time.monotonic() + 60
    while (statistics := writer.statistics()).num_running + statistics.num_waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert statistics.num_cancelled - before.num_cancelled > 50


def test_a_prompt_is_found_again_whatever_way_it_came(server: Client) -> None:
    prompt = "Lily found a big red ball in the park and took it home. " * 4
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [prompt]}
    body = {"inputs": [tensor], "parameters": {"max_tokens": 1}}
    server.json("POST", "/v2/models/stories260K/infer", body)
    asked = {"model": "stories260K", "prompt": prompt, "max_tokens": 1}
    usage = server.json("POST", "/v1/completions", asked)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 32
