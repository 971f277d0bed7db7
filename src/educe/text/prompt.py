"""`PromptReader`: what a user gives, a text, tokens or a conversation, as the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from educe.errors import InputError, UnsupportedModelError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint
from educe.text.template import ChatTemplate
from educe.text.tokenizer import Tokenizer
from educe.text.tools import count_names, read_calls

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message]"
"""A text, tokens, or the messages of a conversation."""


class PromptReader:
    """Makes tokens of prompts.

    Args:
        checkpoint: The model, which has a tokenizer.
        limits: The bounds on texts and templates.

    Attributes:
        tokenizer: What makes tokens of texts.
    """

    def __init__(self, checkpoint: Checkpoint, limits: Limits = DEFAULT_LIMITS) -> None:
        assert checkpoint.tokenizer is not None
        self.tokenizer = Tokenizer.from_files(checkpoint.tokenizer, limits)
        self._checkpoint, self._limits = checkpoint, limits

    @cached_property
    def template(self) -> ChatTemplate | None:
        """What makes a prompt of a conversation, if the model has it."""
        assert self._checkpoint.tokenizer is not None
        text = self._checkpoint.tokenizer.chat_template
        return None if text is None else ChatTemplate(text, self._limits)

    def encode(self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Return the tokens of a prompt, as the model reads them.

        Raises:
            InputError: it is no prompt.
            UnsupportedModelError: a conversation, and the model has no chat template.
        """
        if tools and not _is_conversation(prompt):
            raise InputError("tools are called in conversations", place="prompt", remedy="give messages")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise _no_prompt(prompt)
        if all(isinstance(each, int) for each in prompt):
            return [int(each) for each in prompt if isinstance(each, int)]
        if all(isinstance(each, Mapping) for each in prompt):
            return self._read_conversation([each for each in prompt if isinstance(each, Mapping)], tools)
        raise _no_prompt(prompt)

    def _read_conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        if self.template is None:
            raise UnsupportedModelError(
                "the model has no chat template: it was made to continue texts",
                path=self._checkpoint.path,
                remedy="give a text instead of messages; or use the model's version for conversations",
            )
        names = {"bos_token": self.tokenizer.bos, "eos_token": next(iter(self.tokenizer.eos), None)}
        spelled = {
            name: self.tokenizer.token_bytes(index).decode()
            for name, index in names.items()
            if index is not None
        }
        count_names([messages, tools], self._limits)  # bounds their depth
        guarded = [self._guarded(read_calls(message, self._limits)) for message in messages]
        text = self.template.render(guarded, self._guarded(tools), add_generation_prompt=True, **spelled)
        return self.tokenizer.encode(text, add_special=False, parse_special=True)

    def _guarded(self, value: Any) -> Any:
        """Return messages or tools whose words cannot be taken for the marks of the template."""
        if isinstance(value, str):
            return self.tokenizer.guard(value)
        if isinstance(value, Mapping):
            return {self._guarded(name): self._guarded(inner) for name, inner in value.items()}
        return [self._guarded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_conversation(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and all(isinstance(each, Mapping) for each in prompt)


def _no_prompt(prompt: object) -> InputError:
    return InputError(
        f"a {type(prompt).__name__} is no prompt",
        remedy='give a text, a list of tokens, or a list of messages {"role": "user", "content": …}',
    )
