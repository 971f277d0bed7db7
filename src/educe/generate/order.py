"""`OrderReader`: what a caller asks to be written, checked, as the engine takes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from educe.errors import (
    InputError,
    OptionError,
    UnsupportedModelError,
    nearest,
    refuse_unknown,
)
from educe.generate import sequence as texts
from educe.generate.options import SamplingOptions, check_number, sampling_defaults
from educe.generate.sampling import SamplingState
from educe.generate.token_ids import TokenIds
from educe.limits import DEFAULT_LIMITS, Limits
from educe.machine import ForkedLock
from educe.model.checkpoint import Checkpoint
from educe.text import tool_formats
from educe.text.constraint import Constraint, ConstraintCompiler
from educe.text.prompt import Prompt, PromptReader
from educe.text.tokenizer import Decoder, Tokenizer
from educe.text.tool_calls import ToolCallParser
from educe.text.tool_formats import ToolFormat
from educe.text.tools import Tool, read_tools

SPELLING_TOKENS = 32
"""How far back the spelling of a token may depend on those before it."""

_CONSTRAINTS = ("json_schema", "json_object", "regex", "choice", "grammar")
_OF_TOOLS = ("tools", "tool_choice", "tool_format", "parallel_tool_calls")
_SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingOptions))

OPTIONS = (*_SAMPLING, *_CONSTRAINTS, *_OF_TOOLS, "template_options", "priority", "salt")
"""The names of all options of a text."""


@dataclass(frozen=True, eq=False)
class Order:
    """What is to be written.

    Attributes:
        sequence: The prompt.
        states: Of each text that is wanted, how its tokens are chosen.
        spell: Makes what spells a text's tokens.
        parse: Makes what reads calls of tools out of a text, if any may be called.
        stop: Strings of which each ends a text.
    """

    sequence: texts.Sequence
    states: Sequence[SamplingState]
    spell: Callable[[], Decoder]
    parse: Callable[[], ToolCallParser] | None = None
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class _Tools:
    """The tools of a conversation: what is offered, how calls are written, how many there must and may be."""

    offered: tuple[Tool, ...]
    format: ToolFormat
    required: bool
    parallel: bool

    @property
    def are_bound(self) -> bool:
        """Whether the text has to follow a grammar."""
        return self.required or not self.parallel or any(tool.strict for tool in self.offered)


class OrderReader:
    """Reads orders for one model.

    Args:
        prompts: What makes tokens of prompts.
        checkpoint: The model.
        context: Most tokens of a prompt and its text together.
        limits: The bounds on texts, templates and grammars.

    Attributes:
        defaults: How tokens are chosen where an order does not say.
        ids: The model's tokens.

    Raises:
        ModelFileError: the model's files say what cannot be of its tokens or how they are chosen.
    """

    def __init__(
        self, prompts: PromptReader, checkpoint: Checkpoint, context: int, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._prompts = prompts
        self.defaults: Mapping[str, Any] = sampling_defaults(checkpoint)
        self.ids = TokenIds(checkpoint, prompts.tokenizer)
        self._checkpoint, self._context, self._limits = checkpoint, context, limits
        self._compiler_lock = ForkedLock()
        self._compiler: ConstraintCompiler | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of texts."""
        return self._prompts.tokenizer

    def encode(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a prompt, as the model reads them.

        Raises:
            InputError: it is no prompt, or has tokens that the model lacks.
            OptionError: `template_options` has what the chat template does not take.
            UnsupportedModelError: a conversation, and the model has no chat template.
        """
        ids = self._prompts.encode(prompt, tools=tools, template_options=template_options)
        self.ids.check(ids, "prompt")
        return ids

    def refuse_longer(self, prompt: Prompt) -> None:
        """Refuse a prompt that is certainly too long for the context, without reading it.

        Raises:
            InputError: it is.
        """
        if isinstance(prompt, str):
            self.tokenizer.refuse_longer(prompt, self._context)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and len(prompt) > self._context:
            if isinstance(prompt[0], Mapping):  # messages, whose number says nothing
                return
            raise self._too_long(len(prompt))

    def read(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = "auto",
        tool_format: str | None = None,
        parallel_tool_calls: bool | None = True,
        template_options: Mapping[str, Any] | None = None,
        priority: int | None = 0,
        salt: str | None = "",
        **options: Any,
    ) -> Order:
        """Return what a prompt and its options ask for; `Generator.stream` says what they are.

        Raises:
            InputError: the prompt is empty, or does not fit.
            OptionError: an option is unknown, or has a value that it does not take.
            UnsupportedModelError: a conversation, and the model has no chat template; or tools, and it has no
                form for their calls.
        """
        refuse_unknown("option", options, OPTIONS)
        # Without `max_tokens` the model's files bound a text; None is all that fits.
        options = {
            name: value for name, value in options.items() if value is not None or name == "max_tokens"
        }
        rank = check_number("priority", 0 if priority is None else priority, -math.inf, math.inf, True)
        salt = "" if salt is None else salt
        if not isinstance(salt, str):
            raise OptionError(f"is {salt!r}; it has to be a text", place="salt", remedy="such as a name")
        called = self._tools(tools, tool_choice, tool_format, parallel_tool_calls)
        wanted = {name: options.pop(name) for name in _CONSTRAINTS if name in options}
        constraint = self._constraint(wanted, called)
        sampling = SamplingOptions(**{**self.defaults, **options})
        if constraint is not None and sampling.ignore_eos:
            raise OptionError(
                "a text of a given form ends where the form does", place="ignore_eos", remedy="leave it out"
            )
        self.ids.check(sampling.logit_bias, "logit_bias", OptionError)
        offered = [tool.definition for tool in called.offered] if called else None
        self.refuse_longer(prompt)
        ids = self.encode(prompt, tools=offered, template_options=template_options)
        asked = None if options.get("max_tokens") is None else sampling.max_tokens
        sequence = texts.Sequence(
            ids,
            max_tokens=self._max_tokens(len(ids), sampling, asked),
            stop_ids=() if sampling.ignore_eos else self.ids.ends,
            priority=rank,
            salt=salt.encode(),
        )
        constraints = [constraint and constraint.copy() for _ in range(sampling.n)]
        states = [
            SamplingState(
                sampling,
                ids,
                number=number,
                end_ids=self.ids.ends,
                num_tokens=self.ids.num_written,
                gaps=self.ids.gaps,
                constraint=each,
            )
            for number, each in enumerate(constraints)
        ]
        kept = called.format.kept_ids(self.tokenizer) if called else ()
        return Order(
            sequence,
            states,
            lambda: self.tokenizer.stream(after=ids[-SPELLING_TOKENS:], keep=kept),
            self._parser(called) if called else None,
            tuple(sampling.stop),
        )

    def _max_tokens(self, num_prompt: int, sampling: SamplingOptions, asked: int | None) -> int:
        room = self._context - num_prompt
        if room < (asked != 0):
            raise self._too_long(num_prompt)
        # What the model's files say bounds a text that has room for more; it refuses none that has less.
        return min(room, sampling.max_tokens or room) if asked is None else asked

    def _too_long(self, num_prompt: int) -> InputError:
        return InputError(
            f"the prompt has {num_prompt:,} tokens, and the context {self._context:,}",
            too_long=True,
            place="prompt",
            remedy="shorten it; nothing is cut without being asked",
        )

    # Tools and other forms -----------------------------------------------------------------------------

    def _tools(
        self,
        given: Sequence[Mapping[str, Any]] | None,
        wanted: str | Mapping[str, Any] | None,
        named: str | None,
        parallel: bool | None,
    ) -> _Tools | None:
        """Return the tools that may be called; none is called where `wanted` says so.

        Raises:
            OptionError: a tool is broken, or the choice names none of them.
            UnsupportedModelError: it is not known how the model writes calls.
        """
        tools = read_tools(given or (), self._limits)
        names = [tool.name for tool in tools]
        choice = "auto" if wanted is None else _named_choice(wanted)
        _check_known("tool_choice", choice, ["auto", "none", *(["required", *names] if tools else [])])
        if named is not None:
            _check_known("tool_format", named, list(tool_formats.FORMATS))
        if not isinstance(parallel, bool | None):
            raise OptionError(f"{parallel!r} is neither True nor False", place="parallel_tool_calls")
        if not tools or choice == "none":
            return None
        format = self._tool_format(named)
        if choice in names:
            tools = tuple(tool for tool in tools if tool.name == choice)
        return _Tools(tools, format, required=choice != "auto", parallel=parallel is not False)

    def _tool_format(self, named: str | None) -> ToolFormat:
        if named is not None:
            return tool_formats.FORMATS[named]
        template = self._prompts.template
        found = tool_formats.detect(template.text if template else None, self.tokenizer)
        if found is None:
            raise UnsupportedModelError(
                "it is not known how the model writes calls of tools",
                path=self._checkpoint.path,
                place="tools",
                remedy=f"if it was made for tools, give tool_format: {', '.join(tool_formats.FORMATS)}",
            )
        return found

    def _parser(self, tools: _Tools) -> Callable[[], ToolCallParser]:
        names = [tool.name for tool in tools.offered]
        return lambda: ToolCallParser(tools.format, names, self._limits)

    def _constraint_compiler(self) -> ConstraintCompiler:
        """Return what makes constraints; it is made once, since a large vocabulary takes a while."""
        with self._compiler_lock:
            if self._compiler is None:
                self._compiler = ConstraintCompiler(self.tokenizer, size=self.ids.count, limits=self._limits)
            return self._compiler

    def _constraint(self, given: Mapping[str, Any], tools: _Tools | None) -> Constraint | None:
        wanted = {name: value for name, value in given.items() if value is not None}
        if not isinstance(wanted.get("json_object", True), bool):
            raise OptionError(
                f"{wanted['json_object']!r} is neither True nor False",
                place="json_object",
                remedy="give a schema as json_schema",
            )
        if wanted.get("json_object") is False:
            del wanted["json_object"]
        if tools and tools.are_bound:
            wanted["tools"] = tools
        if len(wanted) > 1:
            raise OptionError(f"a text follows one of {' and '.join(wanted)}, not several")
        if tools and tools.are_bound:
            return self._constraint_compiler().tool_calls(
                tools.format, tools.offered, required=tools.required, parallel=tools.parallel
            )
        for name, value in wanted.items():
            make = getattr(self._constraint_compiler(), name)
            made: Constraint = make() if name == "json_object" else make(value)
            return made
        return None


def _named_choice(choice: Any) -> Any:
    """Return the name in OpenAI's form of a choice, ``{"type": "function", "function": {"name": …}}``."""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    return function["name"] if isinstance(function, Mapping) and "name" in function else choice


def _check_known(place: str, value: object, known: list[str]) -> None:
    if value not in known:
        raise OptionError(f"{value!r} cannot be chosen", place=place, remedy=nearest(str(value), known))
