"""`Tool`: what a model may call, read from OpenAI's definitions; and the calls of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from educe.errors import InputError, OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.text.tool_calls import ToolCall

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_FORM = '{"type": "function", "function": {"name": …, "description": …, "parameters": a JSON schema}}'


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: Up to 64 letters, digits, ``_``, ``.`` and ``-``.
        description: What it does, for the model.
        parameters: The JSON schema of its arguments, an object's.
        strict: Whether the arguments are made to follow the schema.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def read_tools(definitions: Sequence[Mapping[str, Any]], limits: Limits = DEFAULT_LIMITS) -> tuple[Tool, ...]:
    """Return the tools of definitions.

    Args:
        definitions: Each ``{"type": "function", "function": {…}}`` with ``name`` and, if need be,
            ``description``, ``parameters`` and ``strict``.
        limits: Of which `grammar_bytes` and `grammar_depth` bound all of them together and each schema.

    Raises:
        OptionError: a definition is not of that form, or two have one name.
        LimitError: they are larger or deeper than the limits allow.
    """
    if not isinstance(definitions, (list, tuple)):
        raise _refused(f"a {type(definitions).__name__} is no list of tools", "tools")
    limits.check("grammar_rules", count_names(definitions, limits))
    tools = tuple(_read(each, f"tools[{index}]") for index, each in enumerate(definitions))
    for index, tool in enumerate(tools):
        if tool.name in {other.name for other in tools[:index]}:
            raise _refused(f"a second tool has the name {tool.name}", f"tools[{index}]")
    limits.check("grammar_bytes", sum(len(json.dumps(tool.definition)) for tool in tools))
    return tools


def count_names(value: object, limits: Limits) -> int:
    """Return how many names the objects in a JSON value have, without recursion.

    Raises:
        LimitError: it is deeper than `limits.grammar_depth`.
    """
    level, depth, names = [value], 0, 0
    while level:
        limits.check("grammar_depth", depth)
        names += sum(len(node) for node in level if isinstance(node, Mapping))
        level = [child for node in level for child in _children(node)]
        depth += 1
    return names


def _children(node: object) -> Sequence[object]:
    if isinstance(node, Mapping):
        return list(node.values())
    return node if isinstance(node, (list, tuple)) else ()


def _read(definition: object, place: str) -> Tool:
    if not isinstance(definition, Mapping) or definition.get("type") != "function":
        raise _refused("it is no definition of a function", place)
    function = definition.get("function")
    if not isinstance(function, Mapping):
        raise _refused("it has no function", place)
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    strict = function.get("strict") or False
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refused(f"its name {ascii(name)[:100]} is not made of letters, digits, _, . and -", place)
    if not isinstance(description, str) or not isinstance(strict, bool):
        raise _refused("its description is no text, or strict is neither true nor false", place)
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise _refused("its parameters are no JSON schema of an object", place)
    try:
        json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as fault:
        raise _refused(f"its parameters are no JSON: {fault}", place) from None
    return Tool(name, description, parameters, strict)


def read_calls(message: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Mapping[str, Any]:
    """Return a message whose calls have their arguments as objects, as chat templates take them.

    Args:
        message: An assistant's may have ``tool_calls``, whose arguments are objects, or JSON text as OpenAI
            has it; or the `ToolCall`s of a completion.
        limits: Of which `text_bytes` bounds such a text.

    Raises:
        InputError: a call has no name, or arguments that are no JSON object.
    """
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not calls:
        return message
    if not isinstance(calls, (list, tuple)):
        raise _no_call("tool_calls is no list", "tool_calls")
    return {
        **message,
        "tool_calls": [_call(call, f"tool_calls[{at}]", limits) for at, call in enumerate(calls)],
    }


def _call(call: object, place: str, limits: Limits) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = call.definition
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise _no_call("a call has no function", place)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        limits.check("text_bytes", len(arguments))
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise _no_call("its arguments are broken JSON", place) from None
    if not isinstance(function.get("name"), str) or not isinstance(arguments, Mapping):
        raise _no_call("a call has no name, or arguments that are no object", place)
    return {**call, "function": {**function, "arguments": arguments}}


def _refused(cause: str, place: str) -> OptionError:
    return OptionError(f"a tool cannot be used: {cause}", place=place, remedy=f"give {_FORM}")


def _no_call(cause: str, place: str) -> InputError:
    return InputError(
        cause,
        place=place,
        remedy='give {"type": "function", "function": {"name": …, "arguments": an object}}',
    )
