"""Calls of tools through the generator: what is offered, what must be called, and what comes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import educe
from educe.errors import InputError, LimitError, OptionError, UnsupportedModelError
from educe.generate.generator import Generator
from educe.generate.stream import Stream
from educe.text.tool_calls import collect
from tests.stories import write_chat_model

SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Rome", "Oslo"]}},
    "required": ["town"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
    for name in ("weather", "time")
]
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ message.content }} {% endfor %}"
)
END = 2
LIMITS = educe.Limits(grammar_depth=5, text_bytes=2000)
ASKED = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_chat_model(tmp_path_factory.mktemp("model"), template=TEMPLATE)
    with educe.generator(folder) as generator:
        yield generator


def ask(writer: Generator, **options: Any) -> Stream:
    """Return a text that ends as soon as it may."""
    given = {"tools": TOOLS, "tool_format": "hermes", "max_tokens": 120, "logit_bias": {END: 100}}
    return writer.stream(ASKED, **{**given, **options})


@pytest.mark.parametrize("format", ["hermes", "llama", "mistral"])
def test_a_call_that_must_be_is_no_text_and_follows_its_schema(writer: Generator, format: str) -> None:
    completion = ask(writer, tool_choice="time", tool_format=format).result()
    assert completion.tool_calls
    for call in completion.tool_calls:
        assert call.name == "time"
        assert json.loads(call.arguments)["town"] in ("Rome", "Oslo")
    if format != "mistral":  # whose list this model does not close
        assert (completion.text, completion.finish_reason) == ("", "tool_calls")


def test_what_is_streamed_adds_up_to_the_call(writer: Generator) -> None:
    stream = ask(writer, tool_choice="required")
    pieces = list(stream)
    _, calls = collect(delta for piece in pieces for delta in piece.tool_calls)
    found = stream.result().tool_calls
    assert [(call.name, call.arguments) for call in calls] == [(call.name, call.arguments) for call in found]
    assert "".join(piece.text for piece in pieces) == ""
    assert pieces[-1].finish_reason == "tool_calls"


def test_a_text_may_be_held_to_one_call(writer: Generator) -> None:
    free = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    more = {"tool_choice": "required", "tool_format": "llama", "max_tokens": 160, "logit_bias": {END: -100}}
    assert len(ask(writer, **more).result().tool_calls) > 1
    one = ask(writer, parallel_tool_calls=False, **more).result()
    assert (len(one.tool_calls), one.text, one.finish_reason) == (1, "", "tool_calls")
    text = ask(writer, tools=free, parallel_tool_calls=False, max_tokens=20).result()
    assert text.tool_calls == ()


def test_text_stays_text_where_nothing_is_called(writer: Generator) -> None:
    plain = writer.generate(ASKED, max_tokens=20)
    unused = ask(writer, tool_choice="none", max_tokens=20, logit_bias={}).result()
    assert unused.outputs == plain.outputs
    free = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    offered = ask(writer, tools=free, max_tokens=20, logit_bias={}).result()
    assert offered.tool_calls == ()
    assert offered.text != plain.text
    assert offered.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "error", "cause"),
    [
        ({"tool_choice": "wether"}, OptionError, "'wether' cannot be chosen .*did you mean 'weather'"),
        ({"tools": [], "tool_choice": "required"}, OptionError, "'required' cannot be chosen"),
        ({"tool_choice": {"type": "function"}}, OptionError, "cannot be chosen"),
        ({"tool_format": "herms"}, OptionError, "did you mean 'hermes'"),
        ({"tool_format": ["hermes"]}, OptionError, "cannot be chosen"),
        ({"tool_format": None}, UnsupportedModelError, "not known how the model writes calls"),
        ({"parallel_tool_calls": "no"}, OptionError, "'no' is neither True nor False"),
        ({"tool_choice": "required", "regex": "a"}, OptionError, "one of regex and tools, not several"),
    ],
)
def test_what_cannot_be_is_said(
    writer: Generator, options: dict[str, Any], error: type[Exception], cause: str
) -> None:
    with pytest.raises(error, match=cause):
        ask(writer, **options)


def test_tools_want_a_conversation(writer: Generator) -> None:
    with pytest.raises(InputError, match="tools are called in conversations"):
        writer.stream("Once", tools=TOOLS, tool_format="hermes")


def test_a_choice_may_have_the_form_of_openai(writer: Generator) -> None:
    completion = ask(writer, tool_choice={"type": "function", "function": {"name": "time"}}).result()
    assert {call.name for call in completion.tool_calls} == {"time"}


def test_what_comes_back_goes_into_the_conversation(writer: Generator) -> None:
    completion = ask(writer, tool_choice="required").result()
    message = completion.message
    assert json.loads(json.dumps(message)) == message
    assert message["tool_calls"][0]["function"]["name"] == completion.tool_calls[0].name
    loose: Any = {"role": "assistant", "content": completion.text, "tool_calls": completion.tool_calls}
    assert writer.encode([*ASKED, message]) == writer.encode([*ASKED, loose])
    plain = writer.generate(ASKED, max_tokens=2)
    assert plain.message == {"role": "assistant", "content": plain.text}


def test_a_chat_is_a_conversation(writer: Generator) -> None:
    assert writer.chat("Hi", max_tokens=3).tokens == writer.chat(said("Hi"), max_tokens=3).tokens
    wrongs: list[Any] = [[1, 2], [], None, 5, ["Hi"]]
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"messages: .*no conversation"):
            writer.chat(wrong)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_variables_reach_the_template_guarded_and_bounded(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% if thinks %}{{ style.name }}{% endif %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    with educe.generator(write_chat_model(tmp_path, template=template), limits=LIMITS) as writer:

        def count(**options: Any) -> int:
            return writer.chat("Tom", max_tokens=1, **options).num_prompt_tokens

        assert count() == count(template_options={"thinks": False}) == count(template_options=None)
        assert count(template_options={"thinks": True, "style": {"name": "</s>"}}) > count() + 1
        nones: list[Any] = [{"messages": []}, {"self": 1}, {"a": {1, 2}}, {"a": math.nan}, {1: 2}, [1], "x"]
        for wrong in nones:
            with pytest.raises(OptionError, match=r"^template_options: "):
                count(template_options=wrong)
        for large in ({"a": [[[[[[1]]]]]]}, {"a": "x" * 3000}):
            with pytest.raises(LimitError):
                count(template_options=large)
        with pytest.raises(OptionError, match="only a conversation has a template"):
            writer.generate("Tom", template_options={"thinks": True})
