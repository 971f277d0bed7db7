"""The bodies of chats: messages, tools, forms of the answer, and the answer, whole or in chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType, field

from educe.serve.http.openai.types import NumTexts, NumTop, Positive, StreamOptions, TextRequest, Usage


class TextPart(Struct, forbid_unknown_fields=True):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content: TypeAlias = str | Annotated[list[TextPart], Meta(min_length=1)]


class CalledFunction(Struct, forbid_unknown_fields=True):
    """A function and its arguments, a JSON object as text."""

    name: str
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class SystemMessage(Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    """What the model is told to be."""

    content: Content
    name: str | None = None


class DeveloperMessage(Struct, tag_field="role", tag="developer", forbid_unknown_fields=True):
    """What the model is told to be; a template takes it for a system's message."""

    content: Content
    name: str | None = None


class UserMessage(Struct, tag_field="role", tag="user", forbid_unknown_fields=True):
    """What a user says."""

    content: Content
    name: str | None = None


class AssistantMessage(Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    """What the model has said; fields that answers have and that are empty here may be sent back."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolMessage(Struct, tag_field="role", tag="tool", forbid_unknown_fields=True):
    """What a tool has returned."""

    content: Content
    tool_call_id: str
    name: str | None = None


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Struct, forbid_unknown_fields=True):
    """A function that the model may call; its parameters are a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Struct, forbid_unknown_fields=True):
    """The function that the model has to call."""

    name: str


class NamedTool(Struct, forbid_unknown_fields=True):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class TextForm(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class ObjectForm(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """A JSON object."""


class Schema(Struct, forbid_unknown_fields=True):
    """A JSON schema; what is written follows it, whether it is strict or not."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class SchemaForm(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that a schema describes."""

    json_schema: Schema


class ChatRequest(TextRequest, kw_only=True):
    """A conversation to be answered; fields that can only be null are known to the API, and not done here.

    Attributes:
        parallel_tool_calls: Whether the answer may have several calls.
        tool_format: How the model writes calls, if its chat template does not show it.
        modalities: Taken if it is text.
        template_options: Further variables of the model's chat template.
    """

    messages: Annotated[list[Message], Meta(min_length=1)]
    n: NumTexts | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NumTop | None = None
    response_format: TextForm | ObjectForm | SchemaForm | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    tool_format: str | None = None
    template_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: None = None
    web_search_options: None = None


class TopLogprob(Struct):
    """A likely token, as text and as bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    """A token that was written, and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """The tokens of a text."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(Struct):
    """What the model says."""

    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatAnswer(Struct):
    """The answers to a conversation."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class FunctionDelta(Struct, omit_defaults=True):
    """What has been written of a call's function."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, omit_defaults=True):
    """What has been written of a call."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class Delta(Struct, omit_defaults=True):
    """What has been written of an answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Struct):
    """What is new of one of the answers."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct):
    """What is new of the answers."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = field(default="chat.completion.chunk")
