"""What all of the OpenAI API's bodies have in common: options of texts, models, usage, errors."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType, field

Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Priority: TypeAlias = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
NumTop: TypeAlias = Annotated[int, Meta(ge=0, le=20)]
NumTexts: TypeAlias = Annotated[int, Meta(ge=1, le=16)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
StopText: TypeAlias = Annotated[str, Meta(min_length=1)]
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
    seed: Natural | None = None
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


class EmbeddingRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts to make vectors of.

    Attributes:
        input: A text, its tokens, or many of one of these.
        dimensions: Taken if the model's vectors have so many elements.
        truncate: Whether texts that are too long for the model are cut; else they are refused.
    """

    model: str
    input: str | Annotated[list[str | Natural | list[Natural]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    truncate: bool = False
    priority: Priority = 0
    user: str | None = None


class Embedding(Struct):
    """A vector: its elements, or these as the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingAnswer(Struct):
    """The vectors of texts, in their order."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


class TranscriptionForm(Struct, kw_only=True, forbid_unknown_fields=True):
    """A sound to write down, as a form.

    Attributes:
        file: The sound file's content.
        temperature: At which tokens are drawn; 0 tries the likeliest first, then higher ones where it has to.
        timestamp_granularities: Segments have times; words have none.
    """

    file: bytes
    model: str
    language: str | None = None
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: list[Literal["segment"]] = field(default=[], name="timestamp_granularities[]")
    stream: bool = False
    prompt: Literal[""] = ""


class SoundUsage(Struct):
    """How long a sound was, in whole seconds."""

    seconds: int
    type: Literal["duration"] = "duration"


class Transcription(Struct):
    """What is said in a sound."""

    text: str
    usage: SoundUsage


class TranscriptionSegment(Struct):
    """What is said in a part of a sound; times are in seconds."""

    id: int
    start: float
    end: float
    text: str


class VerboseTranscription(Struct):
    """What is said in a sound, and when.

    Attributes:
        language: The code of the language spoken; empty where the model is not told it.
        duration: The sound's, in seconds.
    """

    language: str
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: SoundUsage
    task: str = "transcribe"


class TranscriptDelta(Struct, tag_field="type", tag="transcript.text.delta"):
    """The next words of a transcript."""

    delta: str


class TranscriptDone(Struct, tag_field="type", tag="transcript.text.done"):
    """A whole transcript."""

    text: str
    usage: SoundUsage
