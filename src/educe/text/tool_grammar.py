"""The grammar of texts with calls of tools, in Lark's notation with `llguidance`'s extensions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from educe.text.tool_formats import ToolFormat, Vocabulary
from educe.text.tools import Tool


def grammar(
    format: ToolFormat,
    tools: Sequence[Tool],
    vocabulary: Vocabulary,
    *,
    required: bool,
    parallel: bool,
    style: Mapping[str, Any],
) -> str:
    """Return the grammar of texts whose calls are of these tools.

    The arguments of a strict tool follow its schema, those of another are an object.

    Args:
        format: How calls are written.
        tools: What may be called, at least one.
        vocabulary: Which marks are special tokens.
        required: Whether the text is nothing but calls; otherwise calls stand in any text.
        parallel: Whether there may be several calls; otherwise the text ends after one.
        style: How JSON is written: `llguidance`'s ``x-guidance``.
    """

    def mark(token: str) -> str:
        index = vocabulary.added_id(token)
        return f"<[{index}]>" if index is not None and index in vocabulary.special else json.dumps(token)

    headed = format.listed and vocabulary.added_id("[ARGS]") is not None
    begin = mark("[ARGS]") if headed else None
    return "\n".join(
        [
            "%llguidance {}",
            *_text(format, mark(format.marker), required, parallel),
            f"call: {_call(format, mark, headed, parallel)}",
            "object: " + " | ".join(f"object_{index}" for index in range(len(tools))),
            *(_object(format, tool, index, begin, style) for index, tool in enumerate(tools)),
        ]
    )


def _text(format: ToolFormat, marker: str, required: bool, parallel: bool) -> list[str]:
    if format.bare and required:
        return ["start: call"]
    if format.bare:
        return ["start: call | OTHER", r"OTHER: /(\s*[^\s{](.|\n)*)?/"]
    if required:
        return [f"start: {marker} call" + (f' ("\\n"? {marker} call)*' if parallel else "")]
    calls = "(lead call)* TEXT" if parallel else "lead call | TEXT"
    if marker.startswith("<["):
        return [f"start: {calls}", f"lead: TEXT {marker}", r"TEXT: /(.|\n)*/"]
    return [f"start: {calls}", f"lead[lazy]: TEXT {marker}", r"TEXT: /(.|\n)*/"]


def _call(format: ToolFormat, mark: Callable[[str], str], headed: bool, parallel: bool) -> str:
    """Return what follows the marker."""
    if format.bare:
        return 'object ("; " object)*' if parallel else "object"
    if headed:
        return "object"
    if format.listed:
        return '"[" object (", " object)* "]"' if parallel else '"[" object "]"'
    return rf'"\n" object "\n" {mark("</tool_call>")}'


def _object(format: ToolFormat, tool: Tool, index: int, begin: str | None, style: Mapping[str, Any]) -> str:
    schema = dict(tool.parameters) if tool.strict else {"type": "object"}
    arguments = "%json " + json.dumps({**schema, "x-guidance": style})
    if begin is not None:
        return f"object_{index}: {json.dumps(tool.name)} {begin} {arguments}"
    head = json.dumps(f'{{"name": "{tool.name}", "{format.arguments}": ')
    return f'object_{index}: {head} {arguments} "}}"'
