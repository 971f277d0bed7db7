"""Constraints: what a text has to follow, as a mask over its next token, through `llguidance`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from educe.errors import InputError, InternalError, OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.text import tool_grammar
from educe.text.constraint_faults import pattern_refused, refused, schema_refused, unbounded_multiple
from educe.text.tool_formats import ToolFormat
from educe.text.tools import Tool, count_names

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Between two tokens of JSON: nothing, a space, or a new line with its indentation; never without end.
_WHITESPACE = r"( |\n {0,32})"
# What a grammar has beside its literals and comments.
_LITERALS = re.compile(r'"(\\.|[^"\\\n])*"|(//|#)[^\n]*|/(\\.|[^/\\\n])+/')
# The work of an intersection has no bound, and negations can make one; `~` is also a count.
_INTERSECTION = re.compile(r"&|~(?!\s*\d)")
_NUM_FORCED = 4
_STYLE: Any = {"whitespace_pattern": _WHITESPACE, "whitespace_flexible": True, "lenient": False}


class Vocabulary(Protocol):
    """What a constraint needs of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""

    @property
    def eos(self) -> Collection[int]:
        """The ids of which each ends a text."""

    @property
    def special(self) -> Collection[int]:
        """The ids that stand for no text."""

    def token_bytes(self, index: int) -> bytes:
        """Return what the token adds to a text.

        Raises:
            InputError: there is no token of this id.
        """

    def added_id(self, token: str) -> int | None:
        """Return the id of a token that is found in a text before it is cut; None if there is none."""


class Constraint:
    """The place of one text in its grammar; used by one thread at a time.

    Args:
        matcher: Where the text stands.
        size: How many tokens the model knows.
        error: Makes the error of what `llguidance` says of it.
        ended: How many tokens were taken after the end.
    """

    def __init__(
        self, matcher: LLMatcher, size: int, error: Callable[[str], OptionError], ended: int = 0
    ) -> None:
        self._matcher = matcher
        self._size = size
        self._error = error
        # The tokens taken after a text that nothing can follow: the matcher takes no more.
        self._ended = ended

    def mask(self) -> np.ndarray:
        """Return a bit for each token that may come next, u8[(size + 7) // 8], the lowest first; not to be
        written.

        Raises:
            OptionError: the grammar takes more work than the limits of one step allow, or demands a character
                that no token has.
        """
        whole = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._error(self._matcher.get_error())
        mask = whole[: (self._size + 7) // 8]
        last = mask[-1:] & (0xFF >> -self._size % 8)
        if not (last.any() or mask[:-1].any()):
            raise self._error("no token of the model can go on")
        return mask

    def advance(self, token: int) -> None:
        """Take the next token, which the mask allows.

        Raises:
            OptionError: the grammar takes more work than the limits allow.
            InternalError: the mask does not allow it.
        """
        if self.finished and self.mask()[token // 8] >> token % 8 & 1:
            self._ended += 1
        elif self._matcher.try_consume_tokens([token]) != 1:
            if self._matcher.is_error():
                raise self._error(self._matcher.get_error())
            raise InternalError(f"token {token} does not follow the grammar")

    def roll_back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        ended = min(count, self._ended)
        if count > ended and not self._matcher.rollback(count - ended):
            raise InternalError(f"a text has fewer tokens than the {count} to be taken back")
        self._ended -= ended

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> Constraint:
        """Return a constraint at the same place, for another text."""
        return Constraint(self._matcher.deep_copy(), self._size, self._error, self._ended)


class ConstraintCompiler:
    """Makes constraints for one vocabulary; making the compiler takes a second for a large one.

    Args:
        vocabulary: The tokenizer's.
        size: How many logits the model gives; the ids that the tokenizer lacks are never allowed.
        limits: The bounds on grammars.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, size: int | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self._vocabulary = vocabulary
        self._size = vocabulary.vocabulary_size if size is None else size
        self._tokenizer = _tokenizer(vocabulary, self._size)

    def json_schema(self, schema: dict[str, Any] | bool | str) -> Constraint:
        """Return a constraint to JSON that the schema, as an object or as text, describes.

        Raises:
            OptionError: it is no schema, uses keywords that have no grammar, or nothing can satisfy it; the
                place has the JSON pointer of what is wrong, where it is known.
            LimitError: it is larger, deeper or has more parts than the limits allow.
        """
        from llguidance import LLMatcher

        if hasattr(schema, "model_json_schema"):
            cause, remedy = "it is a model of Pydantic's, no schema", "give its model_json_schema()"
            raise refused("json_schema", cause, remedy)
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            self._limits.check("grammar_bytes", len(text.encode()))
            parsed = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise refused("json_schema", str(error)) from error
        if not isinstance(parsed, dict | bool):
            raise refused("json_schema", f"a schema is an object, not {type(parsed).__name__}")
        self._limits.check("grammar_rules", count_names(parsed, self._limits))
        if (multiple := unbounded_multiple(parsed)) is not None:
            raise multiple
        whole = parsed if isinstance(parsed, dict) else {"anyOf": [parsed]}
        grammar = LLMatcher.grammar_from_json_schema(whole, overrides=_STYLE)
        return self._compile(grammar, lambda said: schema_refused(parsed, said))

    def json_object(self) -> Constraint:
        """Return a constraint to any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Constraint:
        """Return a constraint to texts that `pattern` matches as a whole; its syntax is Rust's, without
        look-around.

        Raises:
            OptionError: it is no regular expression; the cause says where in it what is wrong stands.
            LimitError: it is longer than the limits allow.
        """
        from llguidance import LLMatcher

        self._check_text("regex", pattern)
        return self._compile(
            LLMatcher.grammar_from_regex(pattern), lambda said: pattern_refused(pattern, said)
        )

    def choice(self, texts: Sequence[str]) -> Constraint:
        """Return a constraint to one of `texts`.

        Raises:
            OptionError: there is none, or one is empty.
            LimitError: there are more than the limits allow.
        """
        from llguidance import LLMatcher

        listed = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not listed or not texts or not all(isinstance(text, str) and text for text in texts):
            raise refused("choice", "it has to be a sequence of texts that are not empty")
        self._limits.check("grammar_rules", len(texts))
        grammar = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        self._check_text("choice", grammar)
        return self._compile(LLMatcher.grammar_from_lark(grammar), lambda said: refused("choice", said))

    def grammar(self, text: str) -> Constraint:
        """Return a constraint to a grammar in Lark's notation, or in the EBNF of llama.cpp (``root ::= …``).

        Raises:
            OptionError: it is no grammar, no text satisfies it, or it has intersections or negations.
            LimitError: it is longer or has more lines than the limits allow.
        """
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        self._check_text("grammar", text)
        self._limits.check("grammar_rules", len(text.splitlines()))
        try:
            lark = any_to_lark(text)
        except Exception as error:  # a parser of another's, on a stranger's text
            raise refused("grammar", str(error)) from error
        if _INTERSECTION.search(_LITERALS.sub('""', lark)):
            raise refused(
                "grammar", "intersections and negations may take work without end", "write it without"
            )
        return self._compile(LLMatcher.grammar_from_lark(lark), lambda said: refused("grammar", said))

    def _check_text(self, place: str, text: str) -> None:
        if not isinstance(text, str):
            raise refused(place, f"it has to be a text, and is of the type {type(text).__name__}")
        self._limits.check("grammar_bytes", len(text.encode(errors="surrogatepass")))

    def tool_calls(
        self, format: ToolFormat, tools: Sequence[Tool], *, required: bool, parallel: bool
    ) -> Constraint:
        """Return a constraint to texts whose calls are of `tools`, those of strict ones as their schemas say.

        Args:
            format: How the model writes calls.
            tools: What may be called, at least one.
            required: Whether the text is nothing but calls; otherwise they stand in any text.
            parallel: Whether there may be several calls; otherwise the text ends after one.

        Raises:
            OptionError: a strict tool's schema has no grammar.
        """
        from llguidance import LLMatcher

        text = tool_grammar.grammar(
            format, tools, self._vocabulary, required=required, parallel=parallel, style=_STYLE
        )
        return self._compile(LLMatcher.grammar_from_lark(text), lambda said: refused("tools", said))

    def _compile(self, grammar: str, error: Callable[[str], OptionError]) -> Constraint:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_work())
        if matcher.is_error():
            raise error(matcher.get_error())
        constraint = Constraint(matcher, self._size, error)
        try:
            constraint.mask()
        except OptionError:
            raise error(matcher.get_error() or "no text satisfies it") from None
        return constraint


def _work() -> Any:
    """Return the bounds on the work that one grammar may be: under half a second to build, less for a step.

    A fixed text of 100,000 characters takes a third of what the lexer may build at first, 2,000 texts to
    choose from a sixth, and a schema of 300 properties a thirtieth.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=300_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=10_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _tokenizer(vocabulary: Vocabulary, size: int) -> LLTokenizer:
    from llguidance import LLTokenizer

    if not vocabulary.eos:
        raise OptionError("the tokenizer names no token that ends a text", remedy="give the model's own")
    known = vocabulary.vocabulary_size
    tokens = [_spelled(vocabulary, index) if index < known else b"" for index in range(size)]
    # What adds nothing to a text gets a name of its own, and is never allowed.
    special = [index for index, token in enumerate(tokens) if not token]
    for index in {*special, *vocabulary.eos}:
        tokens[index] = b"<%d>" % index
    eos = sorted(vocabulary.eos)
    # Without a token for each byte, forced bytes would be left out; those added are beyond the model's.
    tokens += sorted({bytes([byte]) for byte in range(256)}.difference(tokens))
    words: Any = _Words(tokens, sorted({*special, *eos}), eos)
    return LLTokenizer(words, n_vocab=len(tokens), eos_token=eos)


def _spelled(vocabulary: Vocabulary, index: int) -> bytes:
    """Return what a token adds to a text; nothing for a special one, or where ids have a gap."""
    if index in vocabulary.special:
        return b""
    try:
        return vocabulary.token_bytes(index)
    except InputError:
        return b""


class _Words:
    """A vocabulary as `llguidance` takes it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], eos: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos[0]
        named = set(special)
        self._ids = {token: index for index, token in enumerate(tokens) if index not in named}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Return tokens of the beginning of `text`, each the longest that fits: how a forced text is written.

        The text may be all that is forced to its end, at every step. What is asked of it is the token after
        the one before it, when those have gone that could be longer ones: four of the longest say that.
        """
        most = _NUM_FORCED * self._longest
        given = text[:most].encode() if isinstance(text, str) else text[:most]
        ids: list[int] = []
        start = 0
        while start < len(given):
            ends = range(start + self._longest, start, -1)
            index = next((self._ids[part] for end in ends if (part := given[start:end]) in self._ids), None)
            if index is None:
                break
            ids.append(index)
            start += len(self.tokens[index])
        return ids
