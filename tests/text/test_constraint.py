"""Constrained texts: whatever a random model prefers, what it finishes is valid."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from educe.errors import InternalError, LimitError, OptionError
from educe.generate.options import SamplingOptions
from educe.generate.sampling import SamplingState, sample
from educe.text import constraint
from educe.text.constraint import Constraint, ConstraintCompiler

WORDS = [b'{"', b'":', b'","', b'"}', b"true", b"null", b"12", b"-3.5", b"ab", b"\n  ", b"], [", "é".encode()]
# The text of every byte, some words, two tokens without text, and two that end.
TOKENS = [*(bytes([value]) for value in range(256)), *WORDS, b"", b"", b"", b""]
EOS = [len(TOKENS) - 2, len(TOKENS) - 1]
SIZE = len(TOKENS) + 5
NUM_SCHEMAS = int(os.environ.get("EDUCE_TEST_SCHEMAS", "40"))


class Words:
    vocabulary_size = len(TOKENS)
    eos = EOS
    special = EOS

    def added_id(self, token: str) -> int | None:
        return None

    def token_bytes(self, index: int) -> bytes:
        return TOKENS[index]


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(Words(), size=SIZE)


def generate(constraint: Constraint, rng: np.random.Generator, most: int = 600) -> tuple[str, bool]:
    """Give the text that random logits make, and whether it is finished."""
    state = SamplingState(SamplingOptions(seed=1), end_ids=EOS, constraint=constraint)
    lean = np.zeros(SIZE, np.float32)
    lean[[*b'"}],', *EOS]] = 3
    for _ in range(most):
        logits = (rng.normal(size=(1, SIZE)) + lean).astype(np.float32)
        token = sample(logits, state)[0].token
        if state.ends(token):
            return b"".join(TOKENS[token] for token in state.tokens[:-1]).decode(), True
    return "", False


def random_schema(rng: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    kind = str(rng.choice(kinds if depth > 2 else [*kinds, *["object", "array", "anyOf"] * 3]))
    low, more = int(rng.integers(0, 4)), int(rng.integers(0, 4))
    if kind == "object":
        names = [f"k{index}" for index in range(1 + low)]
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": bool(rng.random() < 0.2),
        }
    if kind == "array":
        return {
            "type": "array",
            "items": random_schema(rng, depth + 1),
            "minItems": low,
            "maxItems": low + more,
        }
    return {
        "anyOf": lambda: {"anyOf": [random_schema(rng, depth + 1) for _ in range(1 + low)]},
        "string": lambda: {"type": "string", "minLength": low, "maxLength": low + more},
        "integer": lambda: {"type": "integer", "minimum": -low, "maximum": low + 100 * more},
        "number": lambda: {"type": "number", "exclusiveMinimum": low, "maximum": low + more + 1},
        "enum": lambda: {"enum": [1, "two", None, [3], {"four": 4.5}][: 1 + low]},
        "const": lambda: {"const": [low, {"a": "é"}, "x\ny", True][more]},
        "pattern": lambda: {"type": "string", "pattern": "^[a-c]{1,4}(-[0-9]+)?$"},
    }.get(kind, lambda: {"type": kind})()


def test_what_random_models_finish_satisfies_random_schemas(compiler: ConstraintCompiler) -> None:
    finished = 0
    for number in range(NUM_SCHEMAS):
        rng = np.random.default_rng(number)
        schema = random_schema(rng)
        text, done = generate(compiler.json_schema(schema), rng)
        if done:
            jsonschema.validate(json.loads(text), schema)
        finished += done
    assert finished >= 0.95 * NUM_SCHEMAS


def test_a_json_object_is_one(compiler: ConstraintCompiler, rng: np.random.Generator) -> None:
    texts = [generate(compiler.json_object(), rng) for _ in range(10)]
    assert all(isinstance(json.loads(text), dict) for text, done in texts if done)
    assert any(done for _, done in texts)


@pytest.mark.parametrize("pattern", [r"[a-f]{3}", r"(ab|cd)*\.[0-9]{1,3}", "é+"])
def test_a_regular_expression_matches(pattern: str, compiler: ConstraintCompiler) -> None:
    for seed in range(5):
        text, done = generate(compiler.regex(pattern), np.random.default_rng(seed))
        assert done
        assert re.fullmatch(pattern, text)


def test_one_of_the_texts_is_chosen(compiler: ConstraintCompiler) -> None:
    texts = ["yes", "no", 'a "quoted" one', "é\n\\"]
    made = [generate(compiler.choice(texts), np.random.default_rng(seed)) for seed in range(30)]
    assert {text for text, _ in made} == set(texts)


@pytest.mark.parametrize(
    "grammar",
    ['start: "(" start ")" | "x"', 'root ::= "(" root ")" | "x"'],
    ids=["lark", "ebnf"],
)
def test_a_grammar_is_followed(grammar: str, compiler: ConstraintCompiler) -> None:
    for seed in range(5):
        text, done = generate(compiler.grammar(grammar), np.random.default_rng(seed))
        depth = len(text) // 2
        assert done
        assert text == "(" * depth + "x" + ")" * depth


def test_the_mask_of_a_place_comes_back_after_a_draft(compiler: ConstraintCompiler) -> None:
    constraint = compiler.choice(["axc", "axd"])
    masks = [constraint.mask()]
    for token in b"axd":
        constraint.advance(token)
        masks.append(constraint.mask())
    assert constraint.complete
    assert constraint.finished
    other = constraint.copy()
    constraint.advance(EOS[0])
    constraint.roll_back(3)
    assert not constraint.complete
    np.testing.assert_array_equal(constraint.mask(), masks[1])
    assert other.finished
    with pytest.raises(InternalError, match="does not follow"):
        constraint.advance(ord("q"))
    np.testing.assert_array_equal(constraint.mask(), masks[1])
    with pytest.raises(InternalError, match="fewer tokens"):
        constraint.roll_back(2)


def test_the_end_may_be_any_of_its_tokens_and_nothing_without_text(compiler: ConstraintCompiler) -> None:
    constraint = compiler.choice(["a"])
    constraint.advance(ord("a"))
    allowed = np.flatnonzero(np.unpackbits(constraint.mask(), bitorder="little"))
    assert allowed.tolist() == EOS


def test_a_draft_that_breaks_the_grammar_is_not_accepted(
    compiler: ConstraintCompiler, rng: np.random.Generator
) -> None:
    state = SamplingState(SamplingOptions(temperature=0), end_ids=EOS, constraint=compiler.choice(["abc"]))
    logits = rng.normal(size=(5, SIZE)).astype(np.float32)
    chosen = sample(logits, state, [TOKENS.index(b"ab"), *b"xcc"])
    assert [TOKENS[choice.token] for choice in chosen] == [b"ab", b"c"]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("json_schema", {"type": "objec"}),
        ("json_schema", "{"),
        ("json_schema", "3"),
        ("json_schema", False),
        ("json_schema", {"const": {1, 2}}),
        ("json_schema", {"type": "string", "minLength": 5, "maxLength": 3}),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}),
        ("json_schema", {"type": "array", "uniqueItems": True}),
        ("json_schema", {"$ref": "https://example.com/schema"}),
        ("json_schema", {"$ref": "#/$defs/none"}),
        ("json_schema", "[" * 100_000),
        ("regex", "(a|"),
        ("regex", "(?=a)b"),
        ("regex", "(" * 5000 + "a" + ")" * 5000),
        ("choice", []),
        ("choice", [""]),
        ("choice", "ab"),
        ("grammar", ""),
        ("grammar", "start: nothing"),
        ("grammar", "start: T\nT: /(.{997})*/ & /(.{991})*/ & /(.{983})*/"),
        ("grammar", "start: T\nT: ~(~/(.{997})*/ | ~/(.{991})*/ | ~ /(.{983})*/)"),
        ("json_schema", {"type": "integer", "multipleOf": 999_983}),
        ("json_schema", {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]}),
        ("grammar", "root ::= ("),
        ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused(kind: str, given: object, compiler: ConstraintCompiler) -> None:
    with pytest.raises(OptionError) as caught:
        getattr(compiler, kind)(given)
    assert (caught.value.place or "").split(",")[0] in (kind, "grammar")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(abc", "unclosed group, at character 1, '(abc'"),
        ("a/b\n[z-a]", "invalid character class range, the start must be <= the end, at character 6, 'z-a]'"),
        ("é\\/(", "unclosed group, at character 4, '('"),
        ("(?P<n", "unclosed capture group name, at its end"),
        ("a" * 500 + ")" + "b" * 500, f"unopened group, at character 501, '){'b' * 19}…'"),
        ("a^b", "lookarounds not supported yet; Start"),
        (r"[^\x00-\x{10FFFF}]", "no text satisfies it"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_said_of_the_pattern(
    pattern: str, cause: str, compiler: ConstraintCompiler
) -> None:
    with pytest.raises(OptionError) as caught:
        compiler.regex(pattern)
    assert caught.value.cause == f"the constraint cannot be used: {cause}"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"not": {"type": "integer"}, "a": {"not": {}}}}, "/properties/a/not"),
        ({"oneOf": [True, {"properties": {"a/b~": {"if": {}}}}]}, "/oneOf/1/properties/a~1b~0/if"),
        ({"enum": [{"format": "x"}], "anyOf": [{"type": "string", "format": "x"}]}, "/anyOf/0/format"),
        ({"items": {"type": ["null", "strin"]}}, "/items/type"),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {}}, "/properties/a/$ref"),
        ({"properties": {"a": {"pattern": "(b"}, "b": {"pattern": "a"}}}, "/properties/a/pattern"),
        ({"properties": {"a": {"minimum": 1}, "b": {"minimum": "x"}}}, "/properties/b/minimum"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, None),
    ],
)
def test_what_is_wrong_with_a_schema_is_pointed_at(
    schema: dict[str, Any], place: str | None, compiler: ConstraintCompiler
) -> None:
    with pytest.raises(OptionError) as caught:
        compiler.json_schema(schema)
    assert caught.value.place == ("json_schema" if place is None else f"json_schema, {place}")
    assert "\n" not in caught.value.cause


def follow(constraint: Constraint, count: int = 40) -> None:
    """Take the last token that may come, some times."""
    for _ in range(count):
        constraint.advance(int(np.flatnonzero(np.unpackbits(constraint.mask(), bitorder="little"))[-1]))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("regex", "(a{1000}){1000}"),
        ("regex", "((a{100}){100}){100}"),
        ("choice", ["ab" * 100_000]),
        ("grammar", "start: T\nT: /(a{1000}){1000}/"),
        ("json_schema", {"type": "string", "pattern": "^(a{1000}){1000}$"}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_takes_too_much_work_is_refused(kind: str, given: object, compiler: ConstraintCompiler) -> None:
    with pytest.raises(OptionError, match="more work than is allowed") as caught:
        follow(getattr(compiler, kind)(given))
    assert caught.value.place == kind


def test_of_a_long_text_that_is_forced_only_the_beginning_is_cut_into_tokens() -> None:
    words = constraint._Words(TOKENS[:-4], [], EOS)
    head, *_ = part = [TOKENS.index(text) for text in (b'{"', b"ab", b"\n  ")]
    assert words(b'{"ab\n  ' * 1_000) == [*part, *part, head]
    assert len(words("ab" * 1_000_000)) == 8


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("regex", r"(\w{1,20}[ ,]){1,50}\."),
        ("regex", "the quick brown fox " * 5_000),
        ("choice", [f"{number:x}" * 9 for number in range(2_000)]),
        ("json_schema", {"enum": [f"value number {number}, of many" for number in range(1_900)]}),
        ("json_schema", {"properties": {f"p{n}": {"type": "string", "maxLength": 500} for n in range(600)}}),
        ("json_schema", {"items": {"type": "integer", "multipleOf": 1000}, "maxItems": 5_000}),
        ("grammar", 'start: "a & b" /x~&y/ T~2..3 // & ~\nT: "~"'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_there_is_room_for_what_is_large(kind: str, given: object, compiler: ConstraintCompiler) -> None:
    text, done = generate(getattr(compiler, kind)(given), np.random.default_rng(1), 60)
    assert text or not done


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("kind", "given", "limit"),
    [
        ("json_schema", nested(80), "grammar_depth"),
        ("json_schema", {"properties": {f"p{n}": True for n in range(3000)}}, "grammar_rules"),
        ("json_schema", {"description": "x" * 300_000}, "grammar_bytes"),
        ("regex", "a" * 300_000, "grammar_bytes"),
        ("choice", [str(number) for number in range(3000)], "grammar_rules"),
        ("grammar", "\n".join(f'r{n}: r{n + 1} "b"' for n in range(9000)), "grammar_rules"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_constraint_beyond_the_limits_is_refused(
    kind: str, given: object, limit: str, compiler: ConstraintCompiler
) -> None:
    with pytest.raises(LimitError, match=limit):
        getattr(compiler, kind)(given)


def test_the_longest_chains_within_the_limits_are_compiled(compiler: ConstraintCompiler) -> None:
    links = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(990)}
    compiler.json_schema({"$ref": "#/$defs/d0", "$defs": {**links, "d990": {"type": "string"}}}).mask()
    rules = "\n".join(f'r{n}: r{n + 1} "b"' for n in range(1990))
    compiler.grammar(f'start: r0\n{rules}\nr1990: "a"').mask()


def test_a_vocabulary_without_an_end_is_refused() -> None:
    class Endless(Words):
        eos: list[int] = []  # noqa: RUF012

    with pytest.raises(OptionError, match="names no token that ends"):
        ConstraintCompiler(Endless())
