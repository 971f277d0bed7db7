"""`ToolCallReader`: one call of a tool, a character at a time: its name, its id and its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from educe.text.json_scanner import WHITESPACE, JsonScanner

_ARGUMENTS = ("arguments", "parameters")
_ID = re.compile('"[a-zA-Z0-9]{9}"')
_HEADER = re.compile(
    r"(?P<name>[\w.-]{1,64})\s*(?:\[CALL_ID\](?P<id>[a-zA-Z0-9]{9}))?\s*(?:\[ARGS\])?\s*", re.ASCII
)
_MOST_HEADER = 128


class ToolCallReader:
    """Takes the characters of one call, after its marker.

    Args:
        names: The tools that it may be of.
        most_depth: Deepest nesting of its arguments.
        listed: Whether a list of calls may begin here, or a call with its name before its arguments.

    Attributes:
        name: The tool, once it is known.
        id: The id that the model gives the call, if it does so before the name.
        ended: Whether the call is complete.
        announced: Whether its name has been said.
    """

    def __init__(self, names: Collection[str], most_depth: int, listed: bool) -> None:
        self.name: str | None = None
        self.id: str | None = None
        self.ended = self.announced = False
        self._names, self._most_depth = names, most_depth
        self._state: Callable[[str], None] = self._in_list if listed else self._in_object
        self._header = ""
        self._key = ""
        self._value: list[str] = []
        self._scanner = JsonScanner(most_depth)
        self._arguments: list[str] | None = None

    def push(self, character: str) -> None:
        """Take the next character.

        Raises:
            ValueError: it is no call.
        """
        self._state(character)

    def taken(self) -> str:
        """Return the characters of the arguments that are new."""
        taken = "".join(self._arguments or ())
        if self._arguments:
            self._arguments.clear()
        return taken

    def _in_list(self, character: str) -> None:
        """Take the beginning of a list of calls, or of the one call's name."""
        if character == "[":
            self._state = self._in_object
        elif character == "{":
            self._state = self._in_key
        elif character not in WHITESPACE:
            self._state = self._in_header
            self._in_header(character)

    def _in_header(self, character: str) -> None:
        if character != "{":
            self._header += character
            if len(self._header) > _MOST_HEADER:
                raise ValueError("no name")
            return
        found = _HEADER.fullmatch(self._header)
        if found is None:
            raise ValueError("no name")
        self._set_name(found["name"])
        self.id = found["id"]
        self._begin_value("arguments")
        self._in_value(character)

    def _in_object(self, character: str) -> None:
        if character == "{":
            self._state = self._in_key
        elif character not in WHITESPACE:
            raise ValueError("no object")

    def _in_key(self, character: str) -> None:
        if character not in WHITESPACE and character != '"' and not self._value:
            raise ValueError("no name of a member")
        if character == '"' or self._value:
            self._scanner.push(character)
            self._value.append(character)
        if self._scanner.ended:
            self._key = json.loads("".join(self._value))
            self._state = self._in_colon

    def _in_colon(self, character: str) -> None:
        if character == ":":
            self._begin_value(self._key)
        elif character not in WHITESPACE:
            raise ValueError("no colon")

    def _begin_value(self, key: str) -> None:
        self._key, self._state = key, self._in_value
        self._scanner, self._value = JsonScanner(self._most_depth), []
        if key in _ARGUMENTS:
            if self._arguments is not None:
                raise ValueError("arguments twice")
            self._arguments = []

    def _in_value(self, character: str) -> None:
        if not self._scanner.push(character):
            self._end_value()
            self._in_next(character)
            return
        if self._value or character not in WHITESPACE:
            self._take(character)
        if self._scanner.ended:
            self._end_value()

    def _take(self, character: str) -> None:
        if self._key not in _ARGUMENTS:
            self._value.append(character)
            return
        assert self._arguments is not None
        if not self._value and character != "{":
            raise ValueError("arguments that are no object")
        self._value = [character]
        self._arguments.append(character)

    def _end_value(self) -> None:
        if self._key == "name":
            self._set_name(json.loads("".join(self._value)))
        elif self._key == "id" and self.name is None and _ID.fullmatch("".join(self._value)):
            self.id = json.loads("".join(self._value))
        self._state = self._in_next
        self.ended = bool(self._header)

    def _set_name(self, name: object) -> None:
        if self.name is not None or not isinstance(name, str) or name not in self._names:
            raise ValueError("no tool")
        self.name = name

    def _in_next(self, character: str) -> None:
        if character == ",":
            self._state = self._in_key
            self._value, self._scanner = [], JsonScanner(self._most_depth)
        elif character == "}":
            if self.name is None or self._arguments is None:
                raise ValueError("no name or no arguments")
            self.ended = True
        elif character not in WHITESPACE:
            raise ValueError("no comma")
