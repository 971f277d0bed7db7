"""Chat templates: the field's conventions, what messages may be, templates that do harm."""

from __future__ import annotations

import resource
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from educe.errors import InputError, LimitError, ModelFileError, OptionError
from educe.limits import Limits
from educe.text.template import ChatTemplate, read_template

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": " Hello "}
HI = {"role": "assistant", "content": "Hi."}
MORE = {"role": "user", "content": "More <b>é</b>"}
TALK = [SYSTEM, HELLO, HI, MORE]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}},
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
    ],
}
RESULT = {"role": "tool", "content": "rain"}

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA3 = """{{ bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

INST = """{{ bos_token }}{% set ns = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}
{%- elif message['role'] == 'user' %}
{{- '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('only user and assistant, not ' ~ message['role']) }}
{%- endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PHI3 = """{% for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

HERMES = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (
            CHATML,
            TALK,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello <|im_end|>\n"
            "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nMore <b>é</b><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            TALK,
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nMore <b>é</b><|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (INST, TALK, "<s>[INST] Be brief.\n\n Hello  [/INST] Hi.</s>[INST] More <b>é</b> [/INST]"),
        (
            GEMMA,
            TALK[1:],
            "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
            "<start_of_turn>user\nMore <b>é</b><end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            PHI3,
            TALK,
            "<|system|>\nBe brief.<|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\nHi.<|end|>\n"
            "<|user|>\nMore <b>é</b><|end|>\n<|assistant|>\n",
        ),
    ],
    ids=["chatml", "llama3", "inst", "gemma", "phi3"],
)
def test_a_conversation_is_written_as_its_model_expects(
    template: str, messages: list[dict[str, Any]], expected: str
) -> None:
    chat = ChatTemplate(template)
    named = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"}
    assert chat.render(messages, **named) == expected
    assert expected.startswith(
        chat.render(messages, add_generation_prompt=False, **named).removesuffix("</s>")
    )


def test_tools_are_offered_called_and_answered() -> None:
    expected = (
        '<|im_start|>system\n# Tools\n<tools>\n{"type": "function", "function": {"name": "weather", '
        '"description": "Tells the weather.", "parameters": {"type": "object"}}}\n</tools><|im_end|>\n'
        "<|im_start|>user\n Hello <|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ChatTemplate(HERMES).render([HELLO, CALL, RESULT, RESULT], [WEATHER]) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ none }} {{ true }} {{ 1.0 }} {{ ['a', none] }}", "None True 1.0 ['a', None]"),
        ("{{ data | tojson }}", '{"z": ["<&\'é"], "a": null}'),
        ("{{ data | tojson(indent=2) }}", '{\n  "z": [\n    "<&\'é"\n  ],\n  "a": null\n}'),
        ("{{ data | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":null,"z":["<&\'é"]}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "01345678"),
        ("{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0123"),
        ("{{ ' a</think>b '.split('</think>')[-1].strip() }}{{ 'ab'.startswith('a') }}", "bTrue"),
        ("{% for name, value in data.items() %}{{ name }}{% endfor %}", "za"),
        ("{{ data.get('q', 7) }}{{ 'x'.upper() }}{{ 'abc'[::-1] }}{{ 'x'.replace('x', 'y') }}", "7Xcbay"),
        ("{% generation %}a{%- endgeneration -%} b", "ab"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('a') }}", "aa"),
        ("{% for m in messages %}\n{% if true %}\nx\n{% endif %}\n{% endfor %}", "x\n"),
        ("{{ tools is none }}{{ tools is defined }}{{ nothing is defined }}", "TrueTrueFalse"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
    ],
)  # fmt: skip
def test_what_templates_use(template: str, expected: str) -> None:
    assert ChatTemplate(template).render([HELLO], data={"z": ["<&'é"], "a": None}) == expected


def test_the_day_is_todays() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) == str(datetime.now().year)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}]) == "ab"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("hello", "has the role 'hello'"),
        ({"content": "a"}, "has the role None"),
        ({"role": "root", "content": "a"}, "has the role 'root'"),
        ({"role": ["user"], "content": "a"}, "has the role"),
        ({"role": "user"}, "has content of the type NoneType"),
        ({"role": "assistant", "content": None}, "has content of the type NoneType"),
        ({"role": "user", "content": 5}, "has content of the type int"),
        ({"role": "user", "content": ["a"]}, "a part of the type 'str'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of the type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "a part of the type 'text'"),
        ({"role": "user", "content": "\ud800"}, "half a character"),
        ({"role": "user", "content": "a", "extra": object()}, "not what JSON can say"),
    ],
)
def test_a_message_that_is_none_is_named(message: Any, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        ChatTemplate(CHATML).render([message])


def test_a_template_may_refuse() -> None:
    with pytest.raises(InputError, match="refuses the messages: System role not supported"):
        ChatTemplate(GEMMA).render(TALK, bos_token="")


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("a\n{% if %}", "line 2: SyntaxError"),
        ("{{ a.b.c }}", "UndefinedError"),
        ("{% include 'x' %}", "TemplateNotFound"),
        ("{{ messages | nothing }}", "UnknownFilter"),
        ("{{ strftime_now(5) }}", "TypeError"),
        ("{% for i in messages %}" * 500, "SyntaxError"),
        ("{{ " + "(" * 10_000, "SyntaxError"),
    ],
)
def test_a_broken_template_is_an_error(template: str, cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause):
        ChatTemplate(template).render([HELLO])


GROWTH = "{% set ns = namespace(a=['x'], s='x') %}{% for i in range(60) %}{% set GROW %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ ['x' * 1000000] * 9000 }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        GROWTH.replace("GROW", "ns.s = ns.s ~ ns.s"),
        GROWTH.replace("GROW", "ns.s = ns.s.replace('x', 'xx')"),
        GROWTH.replace("GROW", "ns.a = ns.a + ns.a") + "{{ ns.a | length }}",
        GROWTH.replace("GROW", "ns.a = [ns.a, ns.a]") + "{{ ns.a }}",
        GROWTH.replace("GROW", "ns.a = [ns.a, ns.a]") + "{{ ns.a | tojson }}",
        GROWTH.replace("60", "99999").replace("GROW", "ns.a = [ns.a]") + "{{ ns.a }}",
    ],
)
def test_a_bomb_is_an_error_in_less_than_a_second(template: str) -> None:
    chat = ChatTemplate(template)
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(ModelFileError, match="chat template"):
        chat.render([HELLO])
    del chat
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 1


def test_a_template_works_again_after_it_was_stopped() -> None:
    chat = ChatTemplate(GROWTH.replace("60", "n").replace("GROW", "ns.s = ns.s.replace('x', 'xx')") + "a")
    assert chat.render([], n=2) == "a"
    with pytest.raises(ModelFileError):
        chat.render([], n=60)
    assert chat.render([], n=2) == "a"


def test_sizes_are_bounded() -> None:
    with pytest.raises(LimitError, match="card_bytes"):
        ChatTemplate("a" * 11, Limits(card_bytes=10))
    with pytest.raises(LimitError, match="text_bytes"):
        ChatTemplate("aé" * 4, Limits(text_bytes=10)).render([])


def test_a_long_conversation_is_no_bomb() -> None:
    talk = [HELLO, {"role": "assistant", "content": "word " * 500}] * 1000
    assert len(ChatTemplate(CHATML).render(talk)) > 2_500_000


def test_a_template_is_given_as_a_text_or_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("\ufeff" + CHATML, encoding="utf-8")
    assert read_template(CHATML) == read_template(path) == read_template(str(path)) == CHATML
    refusing = "{{ raise_exception(messages[0].role ~ ' cannot begin') }}"
    assert read_template(refusing) == refusing


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("{% for x in", OptionError, "line 1"),
        ("{{ messages | nothing }}", OptionError, "nothing"),
        ("{% for i in range(9999999) %}x{% endfor %}", OptionError, "too many elements"),
        ("absent.jinja", InputError, "cannot be opened"),
        ("{{ bos_token }} messages", OptionError, "chat_template: is no chat template: it never refers to"),
        (5, OptionError, "a int is no template"),
        ("{{ x }}" * 99, LimitError, "card_bytes"),
    ],
)
def test_a_template_that_is_of_no_use_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_template(given, Limits(card_bytes=600))


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ("{% for x in", "chat template, line 1", "SyntaxError"),
        ("# A title\n\nmessages\n", None, "never refers"),
    ],
)
def test_the_file_of_a_template_is_named(tmp_path: Path, text: str, place: str | None, cause: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(text)
    with pytest.raises(OptionError, match=cause) as caught:
        read_template(path)
    assert (caught.value.path, caught.value.place) == (str(path), place)
