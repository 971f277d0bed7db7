"""Tools: definitions, calls in conversations, calls read out of texts however they are cut."""

from __future__ import annotations

import json
import random
import time
from typing import Any
from unittest.mock import ANY

import pytest

from educe.errors import InputError, LimitError, OptionError
from educe.limits import Limits
from educe.text.json_scanner import JsonScanner
from educe.text.tool_calls import ContentDelta, Delta, ToolCallDelta, ToolCallParser, collect
from educe.text.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat, detect
from educe.text.tools import read_calls, read_tools

NAMES = ("f", "get_weather")
NASTY = '{"city": "K}\\"ö{[ln<tool_call>", "n": [1, -2.5e3, {"a": {}}], "t": true}'


def call(name: str = "f", arguments: str = "{}", key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def hermes(*bodies: str) -> str:
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


BARE = call(key="parameters")
CASES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, "", "", []),
    (HERMES, "no call, a < b, <tool_cal", "no call, a < b, <tool_cal", []),
    (HERMES, "Look.\n" + hermes(call("get_weather", NASTY)), "Look.\n", [("get_weather", NASTY)]),
    (HERMES, hermes(call(), call()) + "\nDone. ", "Done. ", [("f", "{}"), ("f", "{}")]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}', "", [("f", '{"a": 1}')]),
    (HERMES, hermes('{"x": 12, "name": "f", "y": null, "arguments": {} }'), "", [("f", "{}")]),
    (HERMES, hermes(call("other")), hermes(call("other")), []),
    (HERMES, hermes('{"name": "f"}'), hermes('{"name": "f"}'), []),
    (HERMES, hermes('{"name": ["f"], "arguments": {}}'), hermes('{"name": ["f"], "arguments": {}}'), []),
    (HERMES, hermes(call("f", '"text"')), hermes(call("f", '"text"')), []),
    (HERMES, hermes(call("f", '{"a": 01}')) + hermes(call()), hermes(call("f", '{"a": 01}')), [("f", "{}")]),
    (HERMES, hermes(call("f", '{"a": tru}'), call()), hermes(call("f", '{"a": tru}')) + "\n", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a', '<tool_call>{"name": "f", "arguments": {"a', []),
    (HERMES, "<tool_call>no<tool_call>" + call(), "<tool_call>no", [("f", "{}")]),
    (HERMES, hermes(call() + "}"), "}\n</tool_call>", [("f", "{}")]),
    (HERMES, '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
    (LLAMA, BARE, "", [("f", "{}")]),
    (LLAMA, f" \n<|python_tag|>{BARE}; {BARE}", " \n", [("f", "{}"), ("f", "{}")]),
    (LLAMA, f"{BARE}\n{BARE}", "", [("f", "{}"), ("f", "{}")]),
    (LLAMA, '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    (LLAMA, f"See {BARE}", f"See {BARE}", []),
    (LLAMA, '<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
    (LLAMA, f"{BARE}; and", "; and", [("f", "{}")]),
    (MISTRAL, f"[TOOL_CALLS] [{call()}, {call('f', NASTY)}]", "", [("f", "{}"), ("f", NASTY)]),
    (MISTRAL, f"[TOOL_CALLS]{call()}", "", [("f", "{}")]),
    (MISTRAL, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]" + NASTY, "",
     [("f", "{}"), ("get_weather", NASTY)]),
    (MISTRAL, "a [TOOL_CALLS]f{}, b", "a , b", [("f", "{}")]),
    (MISTRAL, f"[TOOL_CALLS][{call()}, 3]", ", 3]", [("f", "{}")]),
    (MISTRAL, "[TOOL_CALLS]other[ARGS]{}", "[TOOL_CALLS]other[ARGS]{}", []),
    (MISTRAL, "[TOOL_CALLS]" + "f" * 200, "[TOOL_CALLS]" + "f" * 200, []),
]  # fmt: skip


def read(format: ToolFormat, pieces: list[str]) -> list[Delta]:
    parser = ToolCallParser(format, NAMES)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish()


def told(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    content, calls = collect(deltas)
    return content, [(each.name, each.arguments) for each in calls]


@pytest.mark.parametrize(("format", "text", "content", "calls"), CASES, ids=lambda value: str(value)[:30])
def test_calls_are_read_however_the_text_is_cut(
    format: ToolFormat, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert told(read(format, [text])) == (content, calls)
    assert told(read(format, list(text))) == (content, calls)
    draw = random.Random(text)
    for _ in range(20):
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(1, 8)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert told(read(format, pieces)) == (content, calls)


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL], ids=lambda format: format.name)
def test_random_texts_are_read_alike_in_any_pieces_and_nothing_is_lost(format: ToolFormat) -> None:
    draw = random.Random(5)
    key = format.arguments
    parts = [
        *format.tokens, *format.after, call(key=key), call("f", NASTY, key), call("g", "{}", key),
        "f", "{", "}", '{"name": "f", ', f'"{key}": ', "[", "]",
        "text ", " ", "\n", '"', "<", "[TOOL", "</tool_call>",
    ]  # fmt: skip
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randint(1, 9)))
        whole = read(format, [text])
        assert told(whole) == told(read(format, list(text)))
        content, calls = collect(whole)
        assert all(isinstance(json.loads(each.arguments), dict) for each in calls)
        if not calls:
            assert content == text


def test_a_call_streams_as_it_is_written() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.push("Hm <tool") == [ContentDelta("Hm ")]
    assert parser.push('_call>{"name": "f"') == [ToolCallDelta(0, ANY, "f")]
    assert parser.push(', "arguments": {"a"') == [ToolCallDelta(0, arguments='{"a"')]
    assert parser.push(": 1}") == [ToolCallDelta(0, arguments=": 1}")]
    assert parser.push("}</tool_call>") == []
    assert parser.finish() == []


def test_a_call_that_turns_out_malformed_is_withdrawn() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": ?'
    deltas = read(HERMES, list(text))
    assert ToolCallDelta(0, withdrawn=True) in deltas
    assert collect(deltas) == (text, ())


def test_a_models_own_id_is_kept_and_others_are_made() -> None:
    _, calls = collect(read(MISTRAL, ["[TOOL_CALLS]f[CALL_ID]abcDEF123[ARGS]{}[TOOL_CALLS]f[ARGS]{}"]))
    assert calls[0].id == "abcDEF123"
    assert len(calls[1].id) == 9
    assert calls[1].id.isalnum()


@pytest.mark.parametrize("text", ["<tool_call>x", "<tool_call>{", '{"a":', "[", " ", "<tool_call>" + call()])
@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL], ids=lambda format: format.name)
def test_the_time_is_linear_in_a_hostile_text(format: ToolFormat, text: str) -> None:
    start = time.process_time()
    read(format, [text * (200_000 // len(text))])
    assert time.process_time() - start < 20


def test_the_time_is_linear_in_the_number_of_pieces() -> None:
    begun = ToolCallDelta(0, "abcdefghi", "f", '{"a": "')
    start = time.process_time()
    _, calls = collect([begun, *[ToolCallDelta(0, arguments="0123456789")] * 300_000])
    read(HERMES, ["<tool_call>x" * 150_000])
    assert time.process_time() - start < 20
    assert len(calls[0].arguments) == len(begun.arguments) + 3_000_000


def test_arguments_may_be_too_deep() -> None:
    deep = call("f", '{"a": ' * 80 + "1" + "}" * 80)
    assert told(read(HERMES, [hermes(deep)])) == (hermes(deep), [])


@pytest.mark.parametrize(
    "text", ["[1, -0.5e+3, 0]", '{"a": {"b": []}, "c": "\\u00e9\\n"}', "true", "null", "{}"]
)
def test_the_end_of_a_value_is_found(text: str) -> None:
    scanner = JsonScanner(8)
    for character in text:
        assert not scanner.ended
        assert scanner.push(character)
    assert scanner.ended


@pytest.mark.parametrize(
    "text",
    [
        *("[1,]", "{,}", '{"a"}', '{"a":}', "[01 ", "[1.]", "[-]", "[1e]"),
        *('["\n"]', '["\\x"]', '["\\u00g', "tru3", "[}", "]"),
    ],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    scanner = JsonScanner(8)
    with pytest.raises(ValueError):  # noqa: PT012 - any of the characters may be the wrong one
        for character in text:
            scanner.push(character)


class Vocabulary:
    def __init__(self, *tokens: str) -> None:
        self._tokens = tokens
        self.special = range(len(tokens))

    def added_id(self, token: str) -> int | None:
        return self._tokens.index(token) if token in self._tokens else None


@pytest.mark.parametrize(
    ("template", "tokens", "format"),
    [
        (None, ("[TOOL_CALLS]",), None),
        ("{{ messages }}", ("[TOOL_CALLS]",), None),
        ("{{ tools }}<tool_call>", (), HERMES),
        ("{{ tools }}<tool_call><function=", (), None),
        ("{{ tools }}[TOOL_CALLS]", (), MISTRAL),
        ("{{ tools }}", ("[TOOL_CALLS]",), MISTRAL),
        ("{{ tools }}<|python_tag|>", (), LLAMA),
        ("{{ tools }}", ("<|python_tag|>",), LLAMA),
        ("{{ tools }}", ("<s>",), None),
    ],
)
def test_the_format_is_the_templates(
    template: str | None, tokens: tuple[str, ...], format: ToolFormat | None
) -> None:
    assert detect(template, Vocabulary(*tokens)) is format


def test_a_formats_special_tokens_are_kept() -> None:
    assert MISTRAL.kept_ids(Vocabulary("<s>", "[ARGS]", "[TOOL_CALLS]")) == {1, 2}


def definition(**changes: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **changes}}


def test_tools_are_read() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    plain, strict = read_tools(
        [definition(), definition(name="g", description="G.", parameters=schema, strict=True)]
    )
    assert plain.definition["function"] == {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
    assert (strict.name, strict.parameters, strict.strict) == ("g", schema, True)
    assert "strict" not in strict.definition["function"]


@pytest.mark.parametrize(
    "tools",
    [
        "f",
        [3],
        [{"type": "function"}],
        [{"name": "f"}],
        [definition(name="a b")],
        [definition(name="f" * 65)],
        [definition(name=3)],
        [definition(description=3)],
        [definition(strict="yes")],
        [definition(parameters=[])],
        [definition(parameters={"type": "string"})],
        [definition(parameters={"a": {1, 2}})],
        [definition(parameters={"a": float("nan")})],
        [definition(), definition()],
    ],
    ids=str,
)
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    with pytest.raises(OptionError) as caught:
        read_tools(tools)
    assert caught.value.place.startswith("tools")  # type: ignore[union-attr]
    assert caught.value.remedy


def test_tools_may_be_too_large_or_too_deep() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(LimitError, match="grammar_depth"):
        read_tools([definition(parameters=deep)])
    with pytest.raises(LimitError, match="grammar_bytes"):
        read_tools([definition(description="x" * 100)], Limits(grammar_bytes=100))


def assistant(arguments: object, name: object = "f") -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "1", "function": {"name": name, "arguments": arguments}}],
    }


def test_earlier_calls_have_their_arguments_as_objects() -> None:
    for given in ('{"a": 1}', {"a": 1}):
        found = read_calls(assistant(given))["tool_calls"][0]
        assert found == {"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
    assert read_calls({"role": "user", "content": "x"}) == {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    "message",
    [assistant("{"), assistant("[]"), assistant({}, name=3), {"tool_calls": "f"}, {"tool_calls": [{}]}],
    ids=str,
)
def test_a_broken_earlier_call_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        read_calls(message)
