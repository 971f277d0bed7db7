"""Constraints and calls of tools with real tokenizers: what random models finish is valid as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken

from educe.errors import OptionError
from educe.formats.llama2c import read_vocabulary
from educe.generate.options import SamplingOptions
from educe.generate.sampling import SamplingState, sample
from educe.model.checkpoint import TokenizerFiles
from educe.text.constraint import Constraint, ConstraintCompiler
from educe.text.tokenizer import Tokenizer
from educe.text.tool_calls import ToolCallParser, collect
from educe.text.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat
from educe.text.tools import Tool
from tests.text.test_constraint import NUM_SCHEMAS, random_schema
from tests.text.test_tokenizer import byte_json, from_json, gpt2_files, unpacked

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "", WEATHER, strict=True), Tool("f", "", {"type": "object"}))


class Writer:
    """A random model that likes what closes, with the constraints of its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.size = size or tokenizer.vocabulary_size
        self.compiler = ConstraintCompiler(tokenizer, size=self.size)
        self._lean = np.zeros(self.size, np.float32)
        for index in range(tokenizer.vocabulary_size):
            token = b"" if index in tokenizer.special else tokenizer.token_bytes(index)
            if token and set(token) <= set(b'"}],'):
                self._lean[index] = 6
        self._lean[list(tokenizer.eos)] = 6

    def write(self, constraint: Constraint, seed: int, keep: frozenset[int] = frozenset()) -> str | None:
        """Give a text, or None if it does not come to its end."""
        rng = np.random.default_rng(seed)
        state = SamplingState(SamplingOptions(seed=1), end_ids=self.tokenizer.eos, constraint=constraint)
        noise = 3 * rng.standard_normal(2 * self.size, np.float32)
        for _ in range(200):
            start = rng.integers(self.size)
            logits = (noise[start : start + self.size] + self._lean)[None]
            if state.ends(sample(logits, state)[0].token):
                decoder = self.tokenizer.stream(keep=keep)
                return "".join([*map(decoder.push, state.tokens[:-1]), decoder.finish()])
        return None


@pytest.fixture(scope="module")
def gpt2(zoo: Path) -> Writer:
    return Writer(Tokenizer.from_files(TokenizerFiles(files=gpt2_files(zoo))), size=50304)


@pytest.fixture(scope="module")
def stories(zoo: Path) -> Writer:
    path = zoo / "stories260K" / "tok512.bin"
    return Writer(Tokenizer.from_vocabulary(read_vocabulary(path.read_bytes(), 512, path)))


@pytest.fixture(scope="module")
def wiki(zoo: Path) -> Writer:
    content = unpacked(zoo, "sentencepiece_en_wiki_10k.model")
    return Writer(Tokenizer.from_files(TokenizerFiles(files={"tokenizer.model": content})))


@pytest.fixture(scope="module")
def marked() -> Writer:
    """A tokenizer of bytes in which Mistral's marks are special tokens."""
    names = ("</s>", "[TOOL_CALLS]", "[ARGS]")
    return Writer(from_json(byte_json([], [AddedToken(name) for name in names]), eos_token="</s>"))


@pytest.mark.parametrize("name", ["gpt2", "stories"])
def test_what_is_finished_satisfies_random_schemas(name: str, request: pytest.FixtureRequest) -> None:
    writer = request.getfixturevalue(name)
    finished = 0
    for number in range(NUM_SCHEMAS):
        schema = random_schema(np.random.default_rng(number))
        text = writer.write(writer.compiler.json_schema(schema), number)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
        finished += text is not None
    assert finished >= 0.95 * NUM_SCHEMAS


@pytest.mark.parametrize("name", ["gpt2", "stories", "wiki"])
def test_expressions_choices_and_grammars_are_followed(name: str, request: pytest.FixtureRequest) -> None:
    writer = request.getfixturevalue(name)
    for seed in range(3):
        text = writer.write(writer.compiler.regex("(the|a) [a-z]{2,9}( [a-z]+)?"), seed)
        assert text is None or re.fullmatch("(the|a) [a-z]{2,9}( [a-z]+)?", text)
        assert writer.write(writer.compiler.choice(["yes", "no"]), seed) in ("yes", "no")
        text = writer.write(writer.compiler.grammar('start: "a" (" b" | ", c")~1..3'), seed)
        assert text is not None
        assert re.fullmatch("a( b|, c){1,3}", text)


def test_a_character_that_no_token_has_is_told(wiki: Writer) -> None:
    with pytest.raises(OptionError, match="no text satisfies it"):
        wiki.compiler.json_schema({"type": "array"})
    constraint = wiki.compiler.regex(r"a\{")
    (letter,) = np.flatnonzero(np.unpackbits(constraint.mask(), bitorder="little"))
    constraint.advance(int(letter))
    with pytest.raises(OptionError, match="no token of the model can go on"):
        constraint.mask()


def test_special_tokens_are_never_text(marked: Writer) -> None:
    constraint = marked.compiler.regex(r"[A-Z_\[\]]*")
    allowed = np.unpackbits(constraint.mask(), bitorder="little")
    assert not allowed[[marked.tokenizer.added_id("[TOOL_CALLS]"), marked.tokenizer.added_id("[ARGS]")]].any()
    assert allowed[marked.tokenizer.encode("[")].all()


@pytest.mark.parametrize(
    ("name", "format"),
    [("gpt2", HERMES), ("gpt2", LLAMA), ("gpt2", MISTRAL), ("stories", HERMES), ("marked", MISTRAL)],
    ids=lambda value: getattr(value, "name", value),
)
def test_calls_that_are_required_follow_the_schemas(
    name: str, format: ToolFormat, request: pytest.FixtureRequest
) -> None:
    writer = request.getfixturevalue(name)
    constraint = writer.compiler.tool_calls(format, TOOLS, required=True, parallel=True)
    finished = []
    for seed in range(4):
        text = writer.write(constraint.copy(), seed, format.kept_ids(writer.tokenizer))
        if text is None:
            continue
        parser = ToolCallParser(format, [tool.name for tool in TOOLS])
        content, calls = collect([*parser.push(text), *parser.finish()])
        assert content == ""
        assert calls
        for call in calls:
            schema = WEATHER if call.name == "weather" else {"type": "object"}
            jsonschema.validate(json.loads(call.arguments), schema)
        finished += calls
    assert finished


@pytest.mark.parametrize(
    ("name", "format"),
    [("gpt2", HERMES), ("gpt2", LLAMA), ("gpt2", MISTRAL), ("marked", MISTRAL)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_text_of_one_call_ends_after_it(
    name: str, format: ToolFormat, request: pytest.FixtureRequest
) -> None:
    writer = request.getfixturevalue(name)
    one = writer.compiler.tool_calls(format, TOOLS, required=True, parallel=False)
    kept = format.kept_ids(writer.tokenizer)
    texts = [writer.write(one.copy(), seed, kept) for seed in range(4)]
    assert any(texts)
    optional = writer.compiler.tool_calls(format, TOOLS, required=False, parallel=False)
    for text in filter(None, texts):
        parser = ToolCallParser(format, [tool.name for tool in TOOLS])
        assert len(collect([*parser.push(text), *parser.finish()])[1]) == 1
        follower = optional.copy()
        for token in writer.tokenizer.encode(text, parse_special=True):
            follower.advance(token)
        assert follower.complete
        allowed = np.flatnonzero(np.unpackbits(follower.mask(), bitorder="little"))
        assert set(allowed.tolist()) <= set(writer.tokenizer.eos)


@pytest.mark.parametrize(
    ("name", "format"), [("gpt2", HERMES), ("gpt2", LLAMA), ("marked", MISTRAL)], ids=str
)
def test_a_text_with_calls_in_it_is_free_until_one_begins(
    name: str, format: ToolFormat, request: pytest.FixtureRequest
) -> None:
    writer = request.getfixturevalue(name)
    constraint = writer.compiler.tool_calls(format, TOOLS, required=False, parallel=True)
    free = constraint.copy()
    for token in writer.tokenizer.encode("Hm {, <"):
        free.advance(token)
    assert free.complete
    marker = "" if format.bare else format.marker
    for token in writer.tokenizer.encode(marker + '{"name"' * format.bare, parse_special=True):
        constraint.advance(token)
    assert not constraint.complete
    letters = np.unpackbits(constraint.mask(), bitorder="little")[writer.tokenizer.encode("z")]
    assert not letters.any()
