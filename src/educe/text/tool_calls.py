"""`ToolCallParser`: calls of tools, read out of a text while it is written."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from educe.limits import DEFAULT_LIMITS, Limits
from educe.text.json_scanner import WHITESPACE
from educe.text.tool_call_reader import ToolCallReader
from educe.text.tool_formats import ToolFormat

# An id of nine letters and digits is the form that Mistral's templates take; others take any.
_ID_LETTERS = string.ascii_letters + string.digits
_ID_SIZE = 9
# A long piece is read in parts, so that the time stays linear in its length.
_PART = 4096


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Characters that belong to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What has been written of a call.

    Attributes:
        index: Which of the text's calls it is.
        id: The call's name in the conversation; with its first delta alone.
        name: The tool; with the first delta alone.
        arguments: The next characters of the JSON object of arguments.
        withdrawn: The call is malformed after all: the whole of it comes as content next.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    withdrawn: bool = False


Delta: TypeAlias = "ContentDelta | ToolCallDelta"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One whole call.

    Attributes:
        id: Its name in the conversation, nine letters and digits.
        name: The tool.
        arguments: A JSON object, as the model wrote it.
    """

    id: str
    name: str
    arguments: str

    @property
    def definition(self) -> dict[str, Any]:
        """The call as messages have it, in OpenAI's form."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def collect(deltas: Iterable[Delta]) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the content and the calls that deltas add up to."""
    content: list[str] = []
    calls: dict[int, tuple[str, str, list[str]]] = {}
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content.append(delta.text)
        elif delta.withdrawn:
            del calls[delta.index]
        elif delta.id is not None and delta.name is not None:
            calls[delta.index] = delta.id, delta.name, [delta.arguments]
        else:
            calls[delta.index][2].append(delta.arguments)
    return "".join(content), tuple(ToolCall(id, name, "".join(parts)) for id, name, parts in calls.values())


class ToolCallParser:
    """Reads the calls out of a text while it is written; the result does not depend on how it is cut.

    A call is one of a tool that is known, its arguments an object. Whatever else looks like a call is
    content, with its marks. White space after a call is no content.

    Args:
        format: How the model writes its calls.
        names: The tools that it may call.
        limits: Of which `grammar_depth` bounds the nesting of arguments.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], limits: Limits = DEFAULT_LIMITS) -> None:
        self._format, self._names, self._limits = format, frozenset(names), limits
        self._deltas: list[Delta] = []
        self._content: list[str] = []
        self._held = ""
        # What leads on where the text stands; nothing in the middle of content.
        self._edges: Mapping[str, bool] = {"{": True} if format.bare else {}
        self._is_after = False
        self._call: ToolCallReader | None = None
        self._raw: list[str] = []
        self._index = 0

    def push(self, text: str) -> list[Delta]:
        """Take the next piece of the text, and return what is certain by now."""
        for start in range(0, len(text), _PART):
            self._read(self._held + text[start : start + _PART])
        return self._taken()

    def _read(self, text: str) -> None:
        self._held = ""
        while text:
            if self._call is not None:
                text = self._read_call(self._call, text)
            elif self._edges or self._is_after:
                text = self._read_edge(text)
            else:
                text = self._read_content(text)

    def finish(self) -> list[Delta]:
        """Return what is held at the end of the text: an incomplete call is content."""
        if self._call is not None:
            self._give_up(self._call)
        self._say(self._held)
        self._held = ""
        return self._taken()

    def _taken(self) -> list[Delta]:
        self._end_content()
        taken, self._deltas = self._deltas, []
        return taken

    def _say(self, text: str) -> None:
        if text:
            self._content.append(text)

    def _end_content(self) -> None:
        if self._content:
            self._deltas.append(ContentDelta("".join(self._content)))
            self._content = []

    def _say_of_call(self, delta: ToolCallDelta) -> None:
        self._end_content()
        self._deltas.append(delta)

    def _read_content(self, text: str) -> str:
        """Say what stands before a marker, and return what follows it; hold what may be part of one."""
        marker = self._format.marker
        before, found, rest = text.partition(marker)
        if found:
            self._say(before)
            self._begin(marker)
            return rest
        size = _overlap(text, marker)
        self._held = text[len(text) - size :]
        self._say(text[: len(text) - size])
        return ""

    def _read_edge(self, text: str) -> str:
        """Take what may stand before the first call or after one."""
        rest = text.lstrip(WHITESPACE)
        if not self._is_after:
            self._say(text[: len(text) - len(rest)])
        for edge, leads_on in self._edges.items():
            if rest.startswith(edge):
                if not leads_on:
                    self._edges = {}
                    return rest[len(edge) :]
                self._begin("" if edge == "{" else edge)
                return rest if edge == "{" else rest[len(edge) :]
        if any(edge.startswith(rest) for edge in (*self._edges, self._format.marker)):
            self._held = rest
        else:
            self._edges, self._is_after = {}, False
            return rest
        return ""

    def _begin(self, mark: str) -> None:
        listed = self._format.listed and mark == self._format.marker
        self._call = ToolCallReader(self._names, self._limits.grammar_depth, listed)
        self._raw = [mark]
        self._edges, self._is_after = {}, False

    def _read_call(self, call: ToolCallReader, text: str) -> str:
        for position, character in enumerate(text):
            try:
                call.push(character)
            except ValueError:
                self._tell(call, text[:position])
                self._give_up(call)
                return text[position:]
            if call.ended:
                self._tell(call, text[: position + 1])
                self._call, self._edges, self._is_after = None, self._format.after, True
                self._index += 1
                return text[position + 1 :]
        self._tell(call, text)
        return ""

    def _tell(self, call: ToolCallReader, text: str) -> None:
        """Note the characters that a call has taken, and say what they add to it."""
        self._raw.append(text)
        if call.name is None:
            return
        if not call.announced:
            call.announced = True
            call_id = call.id or "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_SIZE))
            self._say_of_call(ToolCallDelta(self._index, call_id, call.name, call.taken()))
        elif piece := call.taken():
            self._say_of_call(ToolCallDelta(self._index, arguments=piece))

    def _give_up(self, call: ToolCallReader) -> None:
        if call.announced:
            self._say_of_call(ToolCallDelta(self._index, withdrawn=True))
            self._index += 1
        self._say("".join(self._raw))
        self._call = None


def _overlap(text: str, marker: str) -> int:
    """Return the size of the longest end of `text` that begins `marker`, but is not the whole of it."""
    longest = min(len(text), len(marker) - 1)
    return next(size for size in range(longest, -1, -1) if text.endswith(marker[:size]))
