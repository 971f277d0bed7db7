"""What all of the OpenAI API's bodies have in common: options of texts, models, usage, errors."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63))]
Priority: TypeAlias = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
NumTop: TypeAlias = Annotated[int, Meta(ge=0, le=20)]
NumTexts: TypeAlias = Annotated[int, Meta(ge=1, le=16)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
StopText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1024)]
CacheKey: TypeAlias = Annotated[str, Meta(max_length=1024)]
ServiceTier: TypeAlias = Literal["auto", "default", "flex", "scale", "priority"]


class TextRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every request for a text may say: how its tokens are chosen, and what is only for the record.

    Attributes:
        model: The model's name.
        stream: Whether the text comes while it is written, as server-sent events.
        prompt_cache_key: Only requests of one key share what is cached of prompts.
        service_tier: Taken, and without effect; there is one.
        store: Taken if it is false: nothing is stored.
    """

    model: str
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Natural | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    min_tokens: Natural | None = None
    ignore_eos: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    priority: Priority | None = None
    prompt_cache_key: CacheKey | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: ServiceTier | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    user: str | None = None
    store: bool | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream has beside the text.

    Attributes:
        include_usage: Whether the last event says how many tokens were read and written.
        include_obfuscation: Taken if it is false.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptDetails(Struct):
    """How many tokens of a prompt were found in the cache."""

    cached_tokens: int


class Usage(Struct, omit_defaults=True):
    """How many tokens were read and written."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET
    prompt_tokens_details: PromptDetails | UnsetType = UNSET


class Error(Struct):
    """Why a request was refused.

    Attributes:
        message: What is wrong, and what to do.
        type: Whose fault it is.
        param: The field at fault.
        code: The kind of error.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Struct):
    """An error as the API answers it."""

    error: Error


class Model(Struct):
    """A model that the server knows.

    Attributes:
        created: When the server was started, in seconds since 1970.
        task: What it is for, such as ``text-generation``; null until it is loaded. Not of the API.
    """

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    task: str | None = None


class ModelList(Struct):
    """The models that the server knows."""

    data: list[Model]
    object: Literal["list"] = "list"
