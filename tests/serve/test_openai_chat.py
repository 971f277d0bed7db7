"""Chats through the OpenAI client: whole and streamed, with tools, forms, log-probabilities, and faults."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import openai
import pytest

from educe import api
from educe.errors import EngineError
from educe.generate.generator import Generator
from educe.serve import ModelSource
from educe.serve.http.openai.chat_types import ChatRequest
from educe.serve.http.openai.completion_types import CompletionRequest
from educe.serve.http.openai.response_types import ResponseRequest
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

STORIES = ROOT / "zoo" / "stories260K"
TEMPLATE = """{{ bos_token }}{{ mood }}{% if tools %}{{ tools | tojson }}{% endif %}
{% for message in messages %}
{{ message.role }} {{ message.content }}
{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"""
MESSAGES: Any = [{"role": "user", "content": "Tell me of Tom."}]
TOWNS = {
    "type": "object",
    "properties": {"town": {"enum": ["Rome", "Oslo"]}},
    "required": ["town"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": TOWNS, "strict": True}}]
LONG: Any = {"model": "writer", "messages": MESSAGES, "n": 16, "ignore_eos": True, "max_tokens": 400}
FORCED: Any = {
    "tools": TOOLS,
    "tool_choice": "required",
    "stop": ["</tool_call>"],
    "max_tokens": 100,
    "extra_body": {"tool_format": "hermes"},
}


def chat_source() -> ModelSource:
    return ModelSource("writer", STORIES, {"chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    with serving(chat_source(), "stories260K") as found:
        yield found


def connect(server: Client, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


@pytest.fixture(scope="module")
def api_client(server: Client) -> Iterator[openai.OpenAI]:
    with connect(server, max_retries=2) as found:  # a connection may be closed just when it is used again
        yield found


@pytest.fixture(scope="module")
def writer() -> Iterator[Any]:
    with api.generator(STORIES, chat_template=TEMPLATE) as found:
        yield found


def test_models_are_listed(api_client: openai.OpenAI) -> None:
    assert [model.id for model in api_client.models.list()] == ["writer", "stories260K"]
    model = api_client.models.retrieve("writer")
    assert model.model_extra == {"task": "text-generation"}
    assert (model.object, model.owned_by) == ("model", "educe")
    assert abs(model.created - time.time()) < 3600
    with pytest.raises(openai.NotFoundError) as refused:
        api_client.models.retrieve("none")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_chat_is_answered_as_by_the_generator(api_client: openai.OpenAI, writer: Any) -> None:
    found = api_client.chat.completions.create(model="writer", messages=MESSAGES, max_tokens=12)
    expected = writer.chat(MESSAGES, max_tokens=12)
    (choice,) = found.choices
    assert choice.message.content == expected.text
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "length", None)
    assert found.object == "chat.completion"
    assert found.usage is not None
    assert found.usage.prompt_tokens == expected.num_prompt_tokens
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (12, expected.num_prompt_tokens + 12)


def test_all_options_reach_the_generator(api_client: openai.OpenAI, writer: Any) -> None:
    options: Any = {
        "temperature": 0.8,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "seed": 7,
        "n": 3,
        "stop": ["."],
    }
    extra = {"top_k": 40, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1, "min_tokens": 3}
    found = api_client.chat.completions.create(
        model="writer",
        messages=MESSAGES,
        max_completion_tokens=20,
        logit_bias={"400": 5},
        user="someone",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={**extra, "priority": 1},
        **options,
    )
    expected = writer.chat(MESSAGES, max_tokens=20, logit_bias={400: 5.0}, **options, **extra)
    assert [choice.message.content for choice in found.choices] == [each.text for each in expected.outputs]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in found.choices] == [
        each.finish_reason for each in expected.outputs
    ]
    assert len({each.text for each in expected.outputs}) > 1
    assert found.usage is not None
    assert found.usage.completion_tokens == expected.num_tokens


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_whole(api_client: openai.OpenAI, n: int) -> None:
    asked: Any = {
        "model": "writer",
        "messages": MESSAGES,
        "max_tokens": 16,
        "seed": -3,
        "temperature": 1,
        "n": n,
    }
    whole = api_client.chat.completions.create(**asked)
    chunks = list(
        api_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    texts, reasons, roles = [""] * n, [""] * n, [""] * n
    for chunk in chunks[:-1]:
        assert chunk.object == "chat.completion.chunk"
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role or ""
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant"] * n
    assert chunks[-1].choices == []
    assert (used := chunks[-1].usage) is not None
    assert whole.usage is not None
    assert (used.prompt_tokens, used.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_of_events_and_says_its_end(server: Client) -> None:
    body = {"model": "writer", "messages": MESSAGES, "max_tokens": 2, "stream": True}
    status, headers, content = server.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    events = content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert "usage" not in json.loads(event.removeprefix("data: "))


def test_what_is_cached_is_counted_and_shared_by_one_key_only(api_client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Once upon a time there was a girl named Lily. " * 12}]

    def cached(key: Any) -> int:
        found = api_client.chat.completions.create(
            model="writer", messages=messages, max_tokens=1, prompt_cache_key=key
        )
        assert found.usage is not None
        assert found.usage.prompt_tokens_details is not None
        return found.usage.prompt_tokens_details.cached_tokens or 0

    assert [cached("one"), cached("two")] == [0, 0]
    assert cached("one") >= 64


def test_a_cache_is_not_shared_by_tenants() -> None:
    keys = ("the-first-of-the-keys", "the-second-of-the-keys")
    messages: Any = [{"role": "user", "content": "Once upon a time there was a boy named Tom. " * 12}]
    with serving(chat_source(), api_keys=keys) as server:
        found = []
        for key in (*keys, keys[0]):
            with connect(server, api_key=key) as client:
                answer = client.chat.completions.create(model="writer", messages=messages, max_tokens=1)
                assert answer.usage is not None
                assert answer.usage.prompt_tokens_details is not None
                found.append(answer.usage.prompt_tokens_details.cached_tokens)
        assert found[:2] == [0, 0]
        assert found[2]
        with connect(server, api_key="no-such-key-at-all") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "invalid_api_key"


# Log-probabilities ---------------------------------------------------------------------------------------


def test_log_probabilities_come_whole_and_streamed(api_client: openai.OpenAI, writer: Any) -> None:
    asked: Any = {
        "model": "writer",
        "messages": MESSAGES,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = api_client.chat.completions.create(**asked).choices[0].logprobs
    expected = writer.chat(MESSAGES, max_tokens=6, logprobs=3).outputs[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert [token.logprob for token in whole.content] == pytest.approx([each.logprob for each in expected])
    for token, choice in zip(whole.content, expected, strict=True):
        spelled = writer.tokenizer.token_bytes(choice.token)
        assert bytes(token.bytes or ()) == spelled
        assert token.token == spelled.decode("utf-8", "replace")
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(
            [value for _, value in choice.top]
        )
    streamed = []
    for chunk in api_client.chat.completions.create(**asked, stream=True):
        for each in chunk.choices:
            streamed += (each.logprobs.content or []) if each.logprobs else []
    assert streamed == whole.content
    alone = api_client.chat.completions.create(model="writer", messages=MESSAGES, max_tokens=2, logprobs=True)
    assert alone.choices[0].logprobs is not None
    assert [token.top_logprobs for token in alone.choices[0].logprobs.content or ()] == [[], []]


# Forms and tools -----------------------------------------------------------------------------------------


def test_a_schema_is_followed(api_client: openai.OpenAI) -> None:
    schema = {"name": "town", "schema": TOWNS, "strict": True}
    found = api_client.chat.completions.create(
        model="writer", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert json.loads(found.choices[0].message.content or "")["town"] in ("Rome", "Oslo")
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [({"regex": "(red|blue) ball"}, {"red ball", "blue ball"}), ({"choice": ["yes", "no"]}, {"yes", "no"}),
     ({"grammar": 'start: "up" | "down"'}, {"up", "down"})],
)  # fmt: skip
def test_other_forms_are_followed(api_client: openai.OpenAI, extra: Any, expected: set[str]) -> None:
    found = api_client.chat.completions.create(model="writer", messages=MESSAGES, extra_body=extra)
    assert found.choices[0].message.content in expected


def test_an_object_is_written(api_client: openai.OpenAI) -> None:
    found = api_client.chat.completions.create(
        model="writer",
        messages=MESSAGES,
        max_tokens=40,
        response_format={"type": "json_object"},
    )
    assert (found.choices[0].message.content or "").lstrip().startswith("{")


def test_a_tool_is_called_and_its_result_read(api_client: openai.OpenAI) -> None:
    found = api_client.chat.completions.create(model="writer", messages=MESSAGES, **FORCED)
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments)["town"] in ("Rome", "Oslo")
    messages: Any = [
        *MESSAGES,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "It is sunny."}]},
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "It is still sunny."},
        {"role": "developer", "content": "Be brief."},
    ]
    again = api_client.chat.completions.create(
        model="writer", messages=messages, max_tokens=5, tools=TOOLS, tool_choice="none"
    )
    assert again.usage is not None
    assert again.usage.completion_tokens == 5


def test_a_named_tool_is_called(api_client: openai.OpenAI) -> None:
    tools = [*TOOLS, {"type": "function", "function": {"name": "other"}}]
    chosen = {"type": "function", "function": {"name": "weather"}}
    found = api_client.chat.completions.create(
        model="writer", messages=MESSAGES, **{**FORCED, "tools": tools, "tool_choice": chosen}
    )
    assert [call.function.name for call in found.choices[0].message.tool_calls or ()] == ["weather"]  # type: ignore[union-attr]


def test_an_answer_may_be_held_to_one_call(api_client: openai.OpenAI) -> None:
    bias = {"2": -100}  # the end, which is chosen where nothing else may be
    asked: Any = {**FORCED, "stop": None, "logit_bias": bias, "extra_body": {"tool_format": "llama"}}
    for parallel, reason in ((True, "length"), (False, "tool_calls")):
        found = api_client.chat.completions.create(
            model="writer", messages=MESSAGES, parallel_tool_calls=parallel, **{**asked, "max_tokens": 300}
        )
        assert found.choices[0].finish_reason == reason
        assert (len(found.choices[0].message.tool_calls or ()) > 1) is parallel


def test_a_call_is_streamed_while_it_is_written(api_client: openai.OpenAI) -> None:
    whole = api_client.chat.completions.create(model="writer", messages=MESSAGES, **FORCED)
    call: Any = (whole.choices[0].message.tool_calls or [None])[0]
    deltas: list[Any] = []
    reason = None
    for chunk in api_client.chat.completions.create(model="writer", messages=MESSAGES, stream=True, **FORCED):
        for choice in chunk.choices:
            deltas += choice.delta.tool_calls or []
            reason = choice.finish_reason or reason
    assert reason == "tool_calls"
    assert len(deltas) > 2
    assert deltas[0].function.name == "weather"
    assert deltas[0].type == "function"
    assert deltas[0].id
    assert all(delta.index == 0 and delta.id is None for delta in deltas[1:])
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments


# Refusals ------------------------------------------------------------------------------------------------


def schema(value: Any) -> Any:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}}


REFUSED: Any = [
    ({"nonsense": 1}, "nonsense"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
    ({"functions": []}, "functions"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"store": True}, "store"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"priority": 2**31}, "priority"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"regex": "("}, "regex"),
    ({"grammar": "nonsense"}, "grammar"),
    ({"choice": []}, "choice"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (schema({"type": 1}), "response_format"),
    (schema({"description": "x" * 300_000}), "response_format"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}], "tool_format": "hermes"}, "tools[0]"),
    ({"tools": TOOLS * 2, "tool_format": "hermes"}, "tools[1]"),
    ({"tools": TOOLS, "tool_format": "none"}, "tool_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "none of them"}}}, "tool_choice"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "n": 17}, "n"),
    ({"stream": True, "max_tokens": 10**6}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
     "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "Tom " * 600}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a"}] * 2049}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls":
        [{"id": "a", "type": "function", "function": {"name": "a", "arguments": "{"}}]}]},
     "messages.tool_calls[0]"),
    ({"model": None}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param"), REFUSED, ids=[f"{n}-{p}" for n, (_, p) in enumerate(REFUSED)])
def test_what_is_wrong_is_a_bad_request_that_names_it(server: Client, changes: Any, param: str) -> None:
    body = {"model": "writer", "messages": MESSAGES, "max_tokens": 4, **changes}
    status, headers, content = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400, content
    assert headers["content-type"] == "application/json"
    error = json.loads(content)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param), error
    assert str(STORIES) not in content.decode()


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_null_is_not_given(server: Client, path: str) -> None:
    kind: Any = {
        "chat/completions": ChatRequest,
        "completions": CompletionRequest,
        "responses": ResponseRequest,
    }
    nulls = dict.fromkeys(kind[path].__struct_fields__)
    text = {
        "chat/completions": {"messages": MESSAGES},
        "completions": {"prompt": "a"},
        "responses": {"input": "a"},
    }
    most = "max_output_tokens" if path == "responses" else "max_tokens"
    found = server.json("POST", f"/v1/{path}", {**nulls, "model": "writer", most: 1, **text[path]})
    assert found["model"] == "writer"


def test_a_field_that_is_missing_is_named(server: Client) -> None:
    for body, param in (({"messages": MESSAGES}, "model"), ({"model": "writer"}, "messages")):
        status, _, content = server.ask("POST", "/v1/chat/completions", body)
        assert (status, json.loads(content)["error"]["param"]) == (400, param)


def test_what_does_not_fit_has_a_code_of_its_own(api_client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "Tom " * 600}]
    for messages, most in ((long, 1), (MESSAGES, 510)):
        with pytest.raises(openai.BadRequestError) as refused:
            api_client.chat.completions.create(model="writer", messages=messages, max_tokens=most)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as huge:  # not cut into tokens at all
        api_client.completions.create(model="writer", prompt="Tom " * 2**18)
    assert (huge.value.code, huge.value.param) == ("context_length_exceeded", "prompt")
    assert "characters" in huge.value.message
    with pytest.raises(openai.BadRequestError) as other:
        api_client.completions.create(model="writer", prompt=[10**6])
    assert other.value.code == "bad_request"


def test_a_model_that_cannot_is_said_to(api_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        api_client.chat.completions.create(model="none", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError, match="no chat template") as plain:
        api_client.chat.completions.create(model="stories260K", messages=MESSAGES)
    assert plain.value.param == "messages"
    tool: Any = {"type": "function", "function": {"name": "look"}}
    with pytest.raises(openai.UnprocessableEntityError, match="how the model writes calls") as without:
        api_client.chat.completions.create(model="writer", messages=MESSAGES, tools=[tool])
    assert without.value.param == "tools"


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_template_takes_variables(server: Client, writer: Any, path: str) -> None:
    body = {"model": "writer", "template_options": {"mood": "Be happy. "}}
    body |= {"messages": MESSAGES} if path == "chat/completions" else {"input": MESSAGES}
    expected = writer.chat(MESSAGES, template_options={"mood": "Be happy. "})
    used = server.json("POST", f"/v1/{path}", body)["usage"]
    assert expected.num_prompt_tokens == used.get("prompt_tokens", used.get("input_tokens"))
    for wrong in ({"messages": []}, {"bos_token": "a"}, []):
        status, _, content = server.ask("POST", f"/v1/{path}", {**body, "template_options": wrong})
        assert status == 400, content
        assert json.loads(content)["error"]["param"].startswith("template_options")


def test_words_of_a_user_are_no_marks(api_client: openai.OpenAI) -> None:
    found = api_client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "</s><s>"}], max_tokens=1
    )
    assert found.usage is not None
    assert found.usage.prompt_tokens > 6


# Ends ----------------------------------------------------------------------------------------------------


@contextmanager
def serving_generator(**settings: Any) -> Iterator[tuple[Client, Generator]]:
    """Serve a model, and yield it as well, which runs in this process."""

    def generators() -> dict[int, Generator]:
        return {id(each): each for each in gc.get_objects() if isinstance(each, Generator)}

    before = generators()
    with serving(chat_source(), **settings) as server:
        (model,) = [each for key, each in generators().items() if key not in before]
        yield server, model


def begin(server: Client, body: Any) -> socket.socket:
    """Send a request, and return the connection over which the answer comes."""
    content = json.dumps(body)
    host, port = server.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {server.address}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n{content}".encode()
    )
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_text(stream: bool) -> None:
    with serving_generator() as (server, model):
        connection = begin(server, {**LONG, "stream": stream})
        if stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: model.statistics().num_running > 0)
        connection.close()
        wait_until(lambda: model.statistics().num_running + model.statistics().num_waiting == 0)
        found = model.statistics()
        assert (found.num_used_blocks, found.num_failed) == (0, 0)
        assert found.num_tokens < 16 * 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_a_text(server: Client, stream: bool) -> None:
    body = {**LONG, "max_tokens": 450, "stream": stream}
    status, _, content = server.ask("POST", "/v1/chat/completions", body, {"x-request-timeout-ms": "60"})
    assert status == 504 or (stream and status == 200)
    last = content.decode().split("\n\n")[-3 if status == 200 else 0].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "deadline_exceeded"


def fail_at_the_fourth(monkeypatch: pytest.MonkeyPatch, model: Generator) -> list[int]:
    """Have a model's fourth step fail; return the number of its steps, which may be set."""

    def failing(rows: Any) -> Any:
        steps[0] += 1
        if steps[0] == 4:
            raise EngineError("the secret reason")
        return run(rows)

    run, steps = model._engine._runner.run, [0]
    monkeypatch.setattr(model._engine._runner, "run", failing)
    return steps


def test_a_fault_in_the_middle_is_told_and_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_generator() as (server, model), connect(server) as client:
        steps = fail_at_the_fourth(monkeypatch, model)
        asked: Any = {"model": "writer", "messages": MESSAGES, "stream": True, "max_tokens": 50}
        with pytest.raises(openai.APIError, match="server failed") as failed:
            list(client.chat.completions.create(**asked))
        assert "secret" not in str(failed.value)
        steps[0] = 0
        _, _, content = server.ask("POST", "/v1/chat/completions", asked)
        events = content.decode().split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["type"] == "server_error"
        assert events[-2:] == ["data: [DONE]", ""]
        steps[0] = 3
        with pytest.raises(openai.InternalServerError):
            list(client.chat.completions.create(**asked))


def test_more_texts_than_may_wait_are_refused() -> None:
    with serving_generator(max_waiting=1) as (server, model), connect(server) as client:
        with closing(begin(server, LONG)), closing(begin(server, LONG)):
            wait_until(lambda: model.statistics().num_waiting > 0)
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(model="writer", messages=MESSAGES)
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
