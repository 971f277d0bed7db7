"""Responses through the OpenAI client: whole and streamed, as Open Responses specifies them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from educe import api
from educe.generate.stream import Completion, Output, Piece, Seconds
from educe.serve.http.openai.response_events import ResponseWriter
from educe.serve.http.openai.response_types import ResponseAnswer, TextConfig
from educe.text.tool_calls import ToolCallDelta
from tests.serve.conftest import Client, serving
from tests.serve.test_openai_chat import (
    STORIES,
    TEMPLATE,
    TOWNS,
    chat_source,
    connect,
    fail_at_the_fourth,
    serving_generator,
)

ASKED: Any = {"model": "writer", "input": "Tell me of Tom.", "max_output_tokens": 12}
TOOLS: Any = [
    {"type": "function", "name": "weather", "parameters": TOWNS, "strict": True, "description": "It."}
]
DONE = Completion((Output("", (), "stop"),), 1, 0, Seconds(0, 0, 0))
FORCED: Any = {
    "model": "writer",
    "input": "Tell me of Tom.",
    "tools": TOOLS,
    "tool_choice": "required",
    "max_output_tokens": 100,
    "extra_body": {"tool_format": "hermes", "stop": ["</tool_call>"]},
}
# All that Open Responses demands of a response.
FIELDS = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model",
    "previous_response_id", "instructions", "output", "error", "tools", "tool_choice", "truncation",
    "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs",
    "temperature", "reasoning", "user", "usage", "max_output_tokens", "max_tool_calls", "store", "background",
    "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    with serving(chat_source()) as found:
        yield found


@pytest.fixture(scope="module")
def api_client(server: Client) -> Iterator[openai.OpenAI]:
    with connect(server, max_retries=2) as found:  # a connection may be closed just when it is used again
        yield found


@pytest.fixture(scope="module")
def writer() -> Iterator[Any]:
    with api.generator(STORIES, chat_template=TEMPLATE) as found:
        yield found


def events_of(server: Client, body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, whose names, numbers and end are what they have to be."""
    status, headers, content = server.ask("POST", "/v1/responses", {**body, "stream": True})
    assert status == 200, content
    assert headers["content-type"] == "text/event-stream"
    *parts, end, rest = content.decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    found = []
    for number, part in enumerate(parts):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
    return found


def test_a_text_is_responded_to_as_by_the_generator(api_client: openai.OpenAI, writer: Any) -> None:
    found = api_client.responses.create(**ASKED)
    expected = writer.chat([{"role": "user", "content": "Tell me of Tom."}], max_tokens=12)
    assert found.output_text == expected.text
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (expected.num_prompt_tokens, 12)
    assert (found.object, found.store, found.temperature) == ("response", False, 0.0)
    assert found.model_dump(exclude_unset=True).keys() >= FIELDS
    again = api_client.responses.create(**{**ASKED, "max_output_tokens": None}, extra_body={"stop": ["."]})
    assert (again.status, again.incomplete_details) == ("completed", None)
    assert again.output[0].status == "completed"  # type: ignore[union-attr]


def test_items_are_a_conversation(api_client: openai.OpenAI, writer: Any) -> None:
    first = api_client.responses.create(**FORCED)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, call.status) == ("weather", "completed")
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "I", "annotations": []}]}
    items: Any = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "What is"}, {"type": "input_text", "text": "it?"}],
        },
        {"type": "message", **said, "id": "msg_1", "status": "completed"},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        {"role": "developer", "content": "Be brief."},
    ]
    found = api_client.responses.create(
        model="writer", input=items, instructions="You know weather.", max_output_tokens=5
    )
    function = {"name": "weather", "arguments": call.arguments}
    expected = writer.chat(
        [
            {"role": "system", "content": "You know weather."},
            {"role": "user", "content": "What is\nit?"},
            {"role": "assistant", "content": "I", "tool_calls": [{"id": "a", "function": function}]},
            {"role": "tool", "content": "sunny", "tool_call_id": "a"},
            {"role": "system", "content": "Be brief."},
        ],
        max_tokens=5,
    )
    assert found.output_text == expected.text
    assert found.usage is not None
    assert found.usage.input_tokens == expected.num_prompt_tokens
    assert found.instructions == "You know weather."


def test_a_stream_of_events_adds_up_to_the_response(server: Client, api_client: openai.OpenAI) -> None:
    whole = api_client.responses.create(**ASKED)
    found = events_of(server, ASKED)
    kinds = [event["type"] for event in found]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event["delta"] for event in found[4:-4]) == whole.output_text
    assert found[0]["response"].keys() >= FIELDS
    assert (found[0]["response"]["status"], found[0]["response"]["output"]) == ("in_progress", [])
    last = found[-1]["response"]
    assert (last["status"], last["output"][0]["status"]) == ("incomplete", "incomplete")
    assert last["output"][0]["content"][0]["text"] == found[-4]["text"] == whole.output_text
    assert last["usage"]["output_tokens"] == 12
    assert {event["item_id"] for event in found if "item_id" in event} == {last["output"][0]["id"]}
    assert found[2]["item"]["content"] == []
    ending: Any = {**ASKED, "max_output_tokens": None, "extra_body": {"stop": ["."]}}
    with api_client.responses.stream(**ending) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == api_client.responses.create(**ending).output_text


def test_a_call_is_streamed(server: Client, api_client: openai.OpenAI) -> None:
    (call,) = [item for item in api_client.responses.create(**FORCED).output if item.type == "function_call"]
    body = {**{name: value for name, value in FORCED.items() if name != "extra_body"}, **FORCED["extra_body"]}
    found = events_of(server, body)
    of_call = [event for event in found if event["type"].startswith("response.function_call_arguments")]
    assert len(of_call) > 2
    assert "".join(event["delta"] for event in of_call[:-1]) == call.arguments == of_call[-1]["arguments"]
    added = next(event["item"] for event in found if event["type"] == "response.output_item.added")
    assert (added["type"], added["name"], added["arguments"]) == ("function_call", "weather", "")
    last = found[-1]["response"]
    assert (last["status"], last["tool_choice"]) == ("completed", "required")
    (item,) = last["output"]
    assert (item["status"], item["arguments"], item["id"]) == ("completed", call.arguments, added["id"])
    assert last["tools"] == [{**TOOLS[0]}]


def test_a_response_may_be_held_to_one_call(api_client: openai.OpenAI) -> None:
    own = {"tool_format": "llama", "logit_bias": {"2": -100}}
    asked: Any = {**FORCED, "max_output_tokens": 300, "extra_body": own}
    found = api_client.responses.create(**asked, parallel_tool_calls=False)
    assert [item.type for item in found.output] == ["function_call"]
    assert (found.status, found.parallel_tool_calls) == ("completed", False)


def test_log_probabilities_come_if_they_are_asked_for(server: Client, api_client: openai.OpenAI) -> None:
    asked: Any = {**ASKED, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    part: Any = api_client.responses.create(**asked).output[0].content[0]  # type: ignore[union-attr]
    assert len(part.logprobs) == 12
    assert all(len(each.top_logprobs) == 2 for each in part.logprobs)
    deltas = [event for event in events_of(server, asked) if event["type"] == "response.output_text.delta"]
    streamed = [each for event in deltas for each in event["logprobs"]]
    assert [each["logprob"] for each in streamed] == [each.logprob for each in part.logprobs]
    none: Any = api_client.responses.create(**ASKED).output[0].content[0]  # type: ignore[union-attr]
    assert none.logprobs == []


@pytest.mark.parametrize(
    "form",
    [{"type": "json_schema", "name": "town", "schema": TOWNS, "strict": True}, {"type": "json_object"}],
)
def test_a_form_is_followed(api_client: openai.OpenAI, form: Any) -> None:
    found = api_client.responses.create(**{**ASKED, "max_output_tokens": 60}, text={"format": form})
    assert found.output_text.lstrip().startswith("{")
    assert found.text is not None
    assert found.text.format is not None
    assert found.text.format.type == form["type"]


REFUSED: Any = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"reasoning": {"effort": "low"}}, "reasoning"),
    ({"max_tool_calls": 1}, "max_tool_calls"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tool_choice": {"type": "function", "name": "a"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": 1}}}}, "text.format"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"input": []}, "input"),
    ({"input": "Tom " * 600}, "input"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"content": "a"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "a"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
    ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": "a"}] * 2049}, "input"),
    ({"nonsense": 1}, "nonsense"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_is_wrong_is_a_bad_request_that_names_it(server: Client, changes: Any, param: str) -> None:
    for stream in (False, True):
        status, _, content = server.ask("POST", "/v1/responses", {**ASKED, "stream": stream, **changes})
        assert status == 400, content
        error = json.loads(content)["error"]
        assert str(error["param"]).startswith(param), error


def test_a_fault_in_the_middle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_generator() as (server, model), connect(server) as client:
        steps = fail_at_the_fourth(monkeypatch, model)
        found = events_of(server, ASKED)
        assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
        assert found[-2]["error"]["type"] == "server_error"
        assert found[-1]["response"]["status"] == "failed"
        assert "secret" not in found[-1]["response"]["error"]["message"]
        steps[0] = 0
        with pytest.raises(openai.APIError, match="server failed"):
            list(client.responses.create(**ASKED, stream=True))


def test_calls_and_words_of_one_piece_come_in_their_order(writer: Any) -> None:
    def events(*pieces: Piece) -> tuple[list[Any], list[Any]]:
        answer = ResponseAnswer(
            id="a", created_at=0, model="m", text=TextConfig(), temperature=0, top_p=1, presence_penalty=0,
            frequency_penalty=0,
        )  # fmt: skip
        told = ResponseWriter(answer, writer.tokenizer, None)
        found = [
            *told.begin(),
            *(event for piece in pieces for event in told.push(piece)),
            *told.finish(DONE),
        ]
        data = [json.loads(event.split(b"data: ")[1]) for event in found]
        return data, data[-1]["response"]["output"]

    begun = Piece("", (), tool_calls=(ToolCallDelta(0, "call", "weather", '{"town"'),))
    ended = ToolCallDelta(0, arguments=': "Oslo"}')
    withdrawn = ToolCallDelta(0, withdrawn=True)
    _, (call, message) = events(begun, Piece("Good bye.", (), tool_calls=(ended,)))
    assert (call["arguments"], call["status"]) == ('{"town": "Oslo"}', "completed")
    assert message["content"][0]["text"] == "Good bye."
    _, (call, message) = events(begun, Piece('{"town"!', (), tool_calls=(withdrawn,)))
    assert (call["arguments"], call["status"]) == ('{"town"', "incomplete")
    assert message["content"][0]["text"] == '{"town"!'
    both = Piece("[!", (), tool_calls=(*begun.tool_calls, withdrawn))
    _, (message,) = events(both)
    assert message["content"][0]["text"] == "[!"
    found, (call, other) = events(
        begun, Piece("", (), tool_calls=(ended, ToolCallDelta(1, "b", "weather", "{}")))
    )
    assert (call["status"], other["status"], other["call_id"]) == ("completed", "completed", "b")
    assert [event["output_index"] for event in found if event["type"].endswith("item.done")] == [0, 1]
    _, (message,) = events(Piece(" ", ()), Piece("\n", ()), Piece("Tom", ()))
    assert message["content"][0]["text"] == " \nTom"
    _, (message,) = events(Piece(" ", ()))
    assert message["content"][0]["text"] == " "
    _, (call,) = events(Piece("\n", ()), begun)
    assert call["type"] == "function_call"


def test_the_time_that_a_response_took_is_told(server: Client) -> None:
    _, headers, _ = server.ask("POST", "/v1/responses", ASKED)
    assert headers["server-timing"].startswith("queue;dur=")
