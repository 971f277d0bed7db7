"""`PromptReader`: what a user gives, a text, tokens or a conversation, as the tokens that the model reads."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from educe.errors import InputError, OptionError, UnsupportedModelError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint
from educe.text.template import ChatTemplate
from educe.text.tokenizer import Tokenizer
from educe.text.tools import count_names, read_calls

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | np.ndarray | Sequence[Message]"
"""A text, tokens, i64[n], or the messages of a conversation."""

# What a template gets of the conversation and of the tokenizer, and a name that Jinja has.
_GIVEN = ("self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


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

    def encode(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a prompt, as the model reads them.

        Args:
            prompt: A text, tokens, which may be NumPy's, or messages.
            tools: What may be called, for the chat template.
            template_options: Further variables of the chat template, values that JSON has.

        Raises:
            InputError: it is no prompt.
            OptionError: `template_options` is not of that form, or there is no conversation.
            UnsupportedModelError: a conversation, and the model has no chat template.
        """
        if isinstance(prompt, np.ndarray):
            prompt = list(prompt)
        if tools and not is_conversation(prompt):
            raise InputError("tools are called in conversations", place="prompt", remedy="give messages")
        if template_options and not is_conversation(prompt):
            raise _no_variables("only a conversation has a template", "give messages as the prompt")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise _no_prompt(prompt)
        if all(isinstance(each, numbers.Integral) for each in prompt):
            return [int(each) for each in prompt if isinstance(each, numbers.Integral)]
        if is_conversation(prompt):
            messages = [each for each in prompt if isinstance(each, Mapping)]
            return self._read_conversation(messages, tools, template_options or {})
        raise _no_prompt(prompt)

    def _read_conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> list[int]:
        if self.template is None:
            raise UnsupportedModelError(
                "the model has no chat template: it was made to continue texts",
                path=self._checkpoint.path,
                place="prompt",
                remedy="give a text instead of messages; or use the model's version for conversations",
            )
        _check_variables(variables, self._limits)
        names = {"bos_token": self.tokenizer.bos, "eos_token": next(iter(self.tokenizer.eos), None)}
        spelled = {
            name: self.tokenizer.token_bytes(index).decode()
            for name, index in names.items()
            if index is not None
        }
        count_names([messages, tools], self._limits)  # bounds their depth
        guarded = [self._guarded(read_calls(message, self._limits)) for message in messages]
        text = self.template.render(
            guarded, self._guarded(tools), True, **self._guarded(variables), **spelled
        )
        return self.tokenizer.encode(text, add_special=False, parse_special=True)

    def _guarded(self, value: Any) -> Any:
        """Return messages or tools whose words cannot be taken for the marks of the template."""
        if isinstance(value, str):
            return self.tokenizer.guard(value)
        if isinstance(value, Mapping):
            return {self._guarded(name): self._guarded(inner) for name, inner in value.items()}
        return [self._guarded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def is_conversation(prompt: object) -> bool:
    """Say whether a prompt is a list of messages, at least one."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, (str, bytes)):
        return False
    return len(prompt) > 0 and all(isinstance(each, Mapping) for each in prompt)


def _check_variables(variables: Mapping[str, Any], limits: Limits) -> None:
    remedy = "such as {'enable_thinking': False}"
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise _no_variables("it has to be a mapping of names to values", remedy)
    if given := sorted(set(_GIVEN) & set(variables)):
        raise _no_variables(f"{given[0]!r} is not the caller's to say", "leave it out")
    count_names(variables, limits)  # bounds their depth
    try:
        text = json.dumps(variables, allow_nan=False)
    except (TypeError, ValueError) as fault:
        raise _no_variables(f"it is not what JSON can say: {fault}", remedy) from None
    limits.check("text_bytes", len(text))


def _no_variables(cause: str, remedy: str) -> OptionError:
    return OptionError(cause, place="template_options", remedy=remedy)


def _kind(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _no_prompt(prompt: object) -> InputError:
    return InputError(
        f"{_kind(prompt)} is no prompt",
        remedy='give a text, a list of tokens, or a list of messages {"role": "user", "content": …}',
    )
