"""`ToolFormat`: how a family of models writes its calls of tools.

==========  ===========================================================================  ================
format      what the model writes                                                        models
==========  ===========================================================================  ================
`HERMES`    ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``                     Hermes, Qwen
`LLAMA`     ``{"name": …, "parameters": {…}}``, ``;`` between; ``<|python_tag|>`` first  Llama 3.1, 3.2
`MISTRAL`   ``[TOOL_CALLS][{"name": …, "arguments": {…}}, …]``, or                       Mistral
            ``[TOOL_CALLS]name[ARGS]{…}``
==========  ===========================================================================  ================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    @property
    def special(self) -> Collection[int]:
        """The ids that stand for no text."""

    def added_id(self, token: str) -> int | None:
        """Return the id of a token that is found in a text before it is cut; None if there is none."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes its calls.

    Attributes:
        name: The family's.
        marker: What begins a call, anywhere in a text.
        arguments: The name that the model gives the arguments.
        bare: Whether an object at the very beginning of a text is a call without the marker.
        listed: Whether the marker stands before a list, or before the tool's bare name.
        after: What may stand after a call, and whether another call follows it.
        tokens: The special tokens that are part of a call, where the vocabulary has them as such.
    """

    name: str
    marker: str
    arguments: str = "arguments"
    bare: bool = False
    listed: bool = False
    after: Mapping[str, bool] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()

    def kept_ids(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Return the special tokens that a decoder has to spell, so that calls can be read."""
        ids = {vocabulary.added_id(token) for token in self.tokens}
        return frozenset(index for index in ids if index is not None)


HERMES = ToolFormat(
    "hermes", "<tool_call>", after={"</tool_call>": False}, tokens=("<tool_call>", "</tool_call>")
)
LLAMA = ToolFormat(
    "llama",
    "<|python_tag|>",
    arguments="parameters",
    bare=True,
    after={";": True, "{": True},
    tokens=("<|python_tag|>",),
)
MISTRAL = ToolFormat(
    "mistral",
    "[TOOL_CALLS]",
    listed=True,
    after={",": True, "]": False},
    tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
)
FORMATS = {each.name: each for each in (HERMES, LLAMA, MISTRAL)}
"""The formats by their names."""


def detect(template: str | None, vocabulary: Vocabulary) -> ToolFormat | None:
    """Return how a model writes its calls; None if it has no tools, or writes calls in another way.

    The chat template says it, since it writes earlier calls as the model was taught to. Those of Mistral and
    Llama may leave the mark to the vocabulary, in which it is a special token.
    """
    if template is None or "tools" not in template:
        return None
    if "<function=" in template:  # Qwen3-Coder's XML, between the marks of Hermes
        return None
    for each in (MISTRAL, HERMES, LLAMA):
        if each.marker in template:
            return each
    return next((each for each in (MISTRAL, LLAMA) if vocabulary.added_id(each.marker) is not None), None)
