"""`Conversation`: what was said between a user and a language model, and how its answers are chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec

from educe.errors import InputError, refuse_unknown
from educe.files import read_bytes
from educe.generate.options import SamplingOptions
from educe.limits import DEFAULT_LIMITS

# What makes no sense for one answer on a screen.
_NOT_HERE = ("n", "logprobs")
OPTIONS = tuple(field.name for field in dataclasses.fields(SamplingOptions) if field.name not in _NOT_HERE)
"""The names of the options of an answer."""


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a file."""

    role: str
    content: str


class Conversation:
    """Questions and answers in turn.

    Args:
        system: What the model is told before all else; nothing if empty.
        sampling: How answers are chosen; fields of `SamplingOptions`.

    Raises:
        OptionError: one of `sampling` does not take its value.

    Attributes:
        system: What the model is told before all else.
        turns: The messages after it, those of the user and of the assistant in turn.
        sampling: How answers are chosen.
    """

    def __init__(self, system: str = "", sampling: dict[str, Any] | None = None) -> None:
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.sampling = dict(sampling or {})
        SamplingOptions(**self.sampling)

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that the model reads."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def ask(self, question: str) -> None:
        """Add what the user says."""
        self.turns.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        """Add what the model says."""
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> str | None:
        """Take the last question and its answer back, and return the question, if there is one."""
        while self.turns:
            message = self.turns.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def set(self, name: str, text: str) -> None:
        """Set an option of the answers, such as ``temperature``, to a value in JSON, or to the text itself.

        Raises:
            OptionError: there is no such option, or it does not take this value.
        """
        refuse_unknown("option", (name,), OPTIONS)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        changed = {**self.sampling, name: value}
        SamplingOptions(**changed)
        self.sampling = changed

    def save(self, path: Path) -> None:
        """Write the messages to a file, as a list in JSON.

        Raises:
            InputError: it cannot be written.
        """
        try:
            path.write_text(json.dumps(self.messages, indent=1, ensure_ascii=False), encoding="utf-8")
        except (OSError, ValueError) as fault:
            raise InputError(f"cannot be written: {fault}", path=path, remedy="name another file") from None

    def load(self, path: Path) -> None:
        """Go on with the messages of a file that `save` wrote.

        Raises:
            InputError: it cannot be read, or holds no conversation.
            LimitError: it is larger than the limits allow.
        """
        content = read_bytes(path, DEFAULT_LIMITS, "text_bytes")
        try:
            messages = msgspec.json.decode(content, type=list[_Message])
        except (msgspec.MsgspecError, RecursionError) as fault:
            raise InputError(f"holds no conversation: {fault}", path=path, remedy=_REMEDY) from None
        system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        expected = ["user", "assistant"] * (len(messages) // 2)
        if [message.role for message in messages] != expected:
            raise InputError("has no questions and answers in turn", path=path, remedy=_REMEDY)
        self.system, self.turns = system, [msgspec.to_builtins(message) for message in messages]


_REMEDY = "give a file that /save has written"
