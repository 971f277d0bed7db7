"""`JsonScanner`: where a JSON value ends that is still being written (RFC 8259)."""

from __future__ import annotations

import re
from collections.abc import Callable

WHITESPACE = " \t\n\r"
"""What may stand between the parts of a value."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_LETTERS = frozenset("-+.eE0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
_CLOSING = {"{": "}", "[": "]"}


class JsonScanner:
    """Follows one value, a character at a time, in time linear in its length.

    Args:
        most_depth: Deepest nesting of objects and arrays.

    Attributes:
        ended: Whether the value is complete.
    """

    def __init__(self, most_depth: int) -> None:
        self.ended = False
        self._most_depth = most_depth
        self._open: list[str] = []
        self._state: Callable[[str], None] = self._in_value
        self._is_key = False
        self._digits: list[str] = []
        # Of a literal, the letters that have to follow; of a \u escape, how many digits.
        self._rest = ""
        self._num_hex = 0

    def push(self, character: str) -> bool:
        """Take the next character of a value that has not ended; False if it, a number, has ended before.

        Raises:
            ValueError: it is not JSON, or too deep.
        """
        if self._digits and character not in _NUMBER_LETTERS:
            self._end_number()
            if self.ended:
                return False
        self._state(character)
        return True

    def _end_number(self) -> None:
        if not _NUMBER.fullmatch("".join(self._digits)):
            raise ValueError("no number")
        self._digits = []
        self._end_value()

    def _end_value(self) -> None:
        self._state = self._in_next
        self.ended = not self._open

    def _in_value(self, character: str) -> None:
        if character in WHITESPACE:
            return
        if character in _CLOSING:
            self._descend(character)
        elif character == '"':
            self._state, self._is_key = self._in_string, False
        elif character in _LITERALS:
            self._state, self._rest = self._in_literal, _LITERALS[character]
        elif character in _NUMBER_LETTERS:
            self._state, self._digits = self._in_number, [character]
        else:
            raise ValueError("no value")

    def _descend(self, character: str) -> None:
        self._open.append(character)
        if len(self._open) > self._most_depth:
            raise ValueError("too deep")
        self._state = self._in_first_key if character == "{" else self._in_first_value

    def _ascend(self) -> None:
        self._open.pop()
        self._end_value()

    def _in_first_value(self, character: str) -> None:
        if character == "]":
            self._ascend()
        elif character not in WHITESPACE:
            self._in_value(character)

    def _in_first_key(self, character: str) -> None:
        if character == "}":
            self._ascend()
        else:
            self._in_key(character)

    def _in_key(self, character: str) -> None:
        if character == '"':
            self._state, self._is_key = self._in_string, True
        elif character not in WHITESPACE:
            raise ValueError("no name")

    def _in_colon(self, character: str) -> None:
        if character == ":":
            self._state = self._in_value
        elif character not in WHITESPACE:
            raise ValueError("no colon")

    def _in_next(self, character: str) -> None:
        if character == ",":
            self._state = self._in_key if self._open[-1] == "{" else self._in_value
        elif character == _CLOSING[self._open[-1]]:
            self._ascend()
        elif character not in WHITESPACE:
            raise ValueError("no comma")

    def _in_string(self, character: str) -> None:
        if character == '"' and self._is_key:
            self._state = self._in_colon
        elif character == '"':
            self._end_value()
        elif character == "\\":
            self._state = self._in_escape
        elif character < " ":
            raise ValueError("a control character")

    def _in_escape(self, character: str) -> None:
        if character == "u":
            self._state, self._num_hex = self._in_hex, 4
        elif character in '"\\/bfnrt':
            self._state = self._in_string
        else:
            raise ValueError("no escape")

    def _in_hex(self, character: str) -> None:
        if character not in _HEX:
            raise ValueError("no escape")
        self._num_hex -= 1
        if not self._num_hex:
            self._state = self._in_string

    def _in_literal(self, character: str) -> None:
        if character != self._rest[0]:
            raise ValueError("no literal")
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_value()

    def _in_number(self, character: str) -> None:
        self._digits.append(character)
