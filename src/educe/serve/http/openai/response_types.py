"""The bodies of responses, as Open Responses has them: items in, items out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from educe.serve.http.openai.chat_types import ObjectForm, TextForm, TokenLogprob
from educe.serve.http.openai.types import NumTop, Positive, StreamOptions, TextRequest

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


class InputPart(Struct, forbid_unknown_fields=True):
    """A part of a message; fields that answers have and that are empty here may be sent back."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None


Content: TypeAlias = str | list[InputPart]


class InputItem(Struct, forbid_unknown_fields=True):
    """A message, a call of a function, or what one returned.

    Attributes:
        role: Of a message: who says it.
        content: What it says.
        call_id: Of a call, and of what it returned: the call's name in the conversation.
        name: Of a call: the function.
        arguments: A JSON object as text.
        output: What the function returned.
        id: Taken, and without effect.
        status: Taken, and without effect.
    """

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionTool(Struct, forbid_unknown_fields=True):
    """A function that the model may call; its parameters are a JSON schema."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Struct, forbid_unknown_fields=True):
    """The function that the model has to call."""

    type: Literal["function"]
    name: str


class SchemaForm(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that a schema describes; it follows the schema, whether it is strict or not."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, forbid_unknown_fields=True):
    """What the text has to be."""

    format: TextForm | ObjectForm | SchemaForm | None = None


class ResponseRequest(TextRequest, kw_only=True):
    """Items to respond to; nothing is remembered of what was said before.

    Fields that can only be null are known to the API, and not done here.

    Attributes:
        previous_response_id: Taken if it is null.
        include: What of ``message.output_text.logprobs`` and ``reasoning.encrypted_content``, of which there
            is none, the response is to have.
        parallel_tool_calls: Whether the answer may have several calls.
        truncation: Taken if nothing is to be cut.
        background: Taken if it is false.
        template_options: Further variables of the model's chat template.
        tool_format: How the model writes calls, if its chat template does not show it.
    """

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: None = None
    background_options: None = None
    context_management: None = None
    max_tool_calls: None = None
    moderation: None = None
    prompt: None = None
    prompt_cache_options: None = None
    reasoning: None = None
    max_output_tokens: Positive | None = None
    top_logprobs: NumTop | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    tool_format: str | None = None
    template_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: bool | None = None
    stream_options: StreamOptions | None = None


class OutputText(Struct):
    """What the model says."""

    text: str
    logprobs: list[TokenLogprob] = []
    annotations: list[Any] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(Struct, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCall(Struct, tag_field="type", tag="function_call"):
    """A call of a function; its arguments are a JSON object as text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem: TypeAlias = OutputMessage | FunctionCall


class CachedTokens(Struct):
    """How many tokens of the input were found in the cache."""

    cached_tokens: int


class ReasoningTokens(Struct, frozen=True):
    """How many tokens were thought and not said: none."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    """How many tokens were read and written."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: CachedTokens
    output_tokens_details: ReasoningTokens = ReasoningTokens()


class Incomplete(Struct):
    """Why a response is not complete."""

    reason: str


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class ResponseTool(Struct):
    """A function that the model could call."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool
    type: Literal["function"] = "function"


class ResponseAnswer(Struct, kw_only=True):
    """A response: what was asked, what is said, and whether all of it is said."""

    id: str
    created_at: int
    model: str
    status: Status = "in_progress"
    completed_at: int | None = None
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    tools: list[ResponseTool] = []
    tool_choice: str | NamedFunction = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    previous_response_id: None = None
    reasoning: None = None
    truncation: str = "disabled"
    store: bool = False
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    object: Literal["response"] = "response"
