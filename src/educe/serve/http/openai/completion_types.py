"""The bodies of completions: texts to continue, and what follows them, whole or in chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from educe.serve.http.openai.types import (
    Natural,
    NumTexts,
    NumTop,
    StreamOptions,
    TextRequest,
    Usage,
)


class CompletionRequest(TextRequest, kw_only=True):
    """Texts to continue.

    Attributes:
        prompt: A text, its tokens, or many of one of these.
        best_of: Taken if it is `n`.
        suffix: Taken if it is null.
        echo: Whether the answer begins with the prompt.
        logprobs: How many likely tokens come with each.
    """

    prompt: str | Annotated[list[str | Natural | list[Natural]], Meta(min_length=1)]
    n: NumTexts | None = None
    best_of: NumTexts | None = None
    suffix: str | None = None
    echo: bool | None = None
    max_tokens: Natural | None = None
    logprobs: NumTop | None = None
    json_object: bool | None = None
    json_schema: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None


class CompletionLogprobs(Struct):
    """The tokens of a text: their spelling, their log-probabilities, likely others, and where they begin."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One of the texts."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None


class CompletionAnswer(Struct):
    """What follows the texts, or what is new of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
